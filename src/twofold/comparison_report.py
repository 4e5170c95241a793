"""The page of a comparison: self-contained, made from its record and its pictures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twofold.report import embedded, page_template, quantity
from twofold.run import write_file

KINDS = (
    ("samples", "Samples", "Drawn from the same latent seed; the data's own beside them."),
    ("translations", "Translations", "Of the same test inputs: in each pair of rows the input, below its translation."),
    (
        "reconstructions",
        "Reconstructions",
        "Of the same test examples: in each pair of rows data above, below decoded.",
    ),
    ("interpolations", "Interpolations", "Between the same draws of the prior, left to right on a great circle."),
)
BETTER = {"higher": "higher", "lower": "lower", "data": "as real data"}


def write_comparison(folder: Path, record: Mapping[str, Any], pictures: Mapping[str, Mapping[str, bytes]]) -> Path:
    """Writes report.html into `folder` and returns its path.

    record: as `compare` returns it. pictures: {model: {kind: PNG}}; "data" may stand among the models.
    """
    models = record["models"]
    names = list(models)
    by_kind = {
        kind: [(name, embedded(f"{name} {kind}", made[kind])) for name, made in pictures.items() if kind in made]
        for kind in (*(kind for kind, _, _ in KINDS), "curves")
    }
    page = page_template("comparison.html").render(
        names=names,
        data=record["data"]["name"],
        seeds=record["seeds"],
        examples=f"{record['examples']:,}",
        equal=_same_networks([model["options"] for model in models.values()]),
        summary=record["summary"],
        kinds=[entry for entry in KINDS if by_kind[entry[0]]],
        pictures=by_kind,
        rows=[_row(row, names) for row in record["figures"]],
        cost=_cost(models),
        failed=[
            f"{run['run']} did not come to its end: {run['failed']}"
            for model in models.values()
            for run in model["runs"]
            if "failed" in run
        ],
        routings=[(name, model["routing"]) for name, model in models.items()],
        options=[
            ("examples", f"{record['examples']:,}"),
            ("batch size", str(record["batch_size"])),
            *(
                (f"{name}: {key}", str(value))
                for name, model in models.items()
                for key, value in model["options"].items()
            ),
        ],
    )
    path = folder / "report.html"
    write_file(path, page.encode("utf-8", "backslashreplace"))
    return path


def _same_networks(options: list[Mapping[str, Any]]) -> bool:
    """Whether the sizes of networks that are given are given to all alike, where they have such an option."""
    sizes = ("arch", "latent", "width", "depth")
    return any(options) and all(len({given[key] for given in options if key in given}) <= 1 for key in sizes)


def _row(row: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    cells = []
    for name in names:
        cell = row["models"].get(name)
        text = "–" if cell is None else _value(cell["mean"], cell["spread"])
        cells.append({"text": text, "best": name in row["winners"]})
    return {
        "name": row["name"],
        "better": BETTER[row["better"]],
        "cells": cells,
        "reference": "" if row["reference"] is None else _value(row["reference"], None),
        "protocol": "; ".join(f"{key}: {value}" for key, value in row["protocol"].items()),
    }


def _value(mean: float | str, spread: float | None) -> str:
    text = mean if isinstance(mean, str) else f"{mean:.4g}"
    return text if spread is None else f"{text} ± {spread:.2g}"


def _cost(models: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    def over_seeds(model: Mapping[str, Any], key: str) -> str:
        values = [run["cost"][key] for run in model["runs"] if "cost" in run]
        return quantity(key, statistics.fmean(values)) if values else "–"

    rows = [
        ("training time", [over_seeds(model, "seconds") for model in models.values()]),
        ("examples a second", [over_seeds(model, "examples_per_second") for model in models.values()]),
        ("parameters", [f"{sum(model['parameters'].values()):,}" for model in models.values()]),
        ("backward passes a step", [f"{model['backward_passes_per_step']:g}" for model in models.values()]),
        ("training state", [quantity("x_bytes", model["training_state_bytes"]) for model in models.values()]),
    ]
    if all("peak_memory_bytes" in model for model in models.values()):
        rows.append(
            ("peak memory of the device", [quantity("x_bytes", m["peak_memory_bytes"]) for m in models.values()])
        )
    return rows
