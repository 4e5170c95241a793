"""Compare recipes: train what is missing, measure all in one way, say what each wins.

    DIR/
        RECIPE-seedK/        a run, with what was measured of it in comparison.json
        results.json         every figure, mean and spread over seeds, cost, who wins
        report.html          the same for people, with pictures

Nothing is done twice: a finished run is read, one that was cut off goes on where it stopped, and figures that were
measured with the same protocol are kept. So the same command, given again, completes what is missing.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from twofold import recipes
from twofold.data import Data
from twofold.data import load as load_data
from twofold.errors import InputError
from twofold.evaluation import chosen_metrics, evaluate
from twofold.game import begin, step, table
from twofold.metrics.record import ERRORS, FREE, Result
from twofold.model import Model, load, record_of
from twofold.recipe import configure
from twofold.run import Run, write_json
from twofold.study import Study, count_for
from twofold.training import (
    Interrupted,
    Plan,
    Settings,
    TrainingError,
    Watch,
    batches,
    estimate,
    networks,
    prepare,
    train,
)

MEASURED = "comparison.json"
TRANSLATED = 16
"""Inputs whose translations are shown."""
COUNTED_STEPS = 4
"""Steps over which backward passes are counted."""

WORDS = {
    "fid": "FID",
    "fd": "Fréchet distance",
    "kid": "KID",
    "kd": "kernel distance",
    "inception_score": "Inception Score",
    "classifier_score": "classifier score",
    "precision_k3": "precision",
    "recall_k3": "recall",
    "density_k5": "density",
    "coverage_k5": "coverage",
    "swd": "sliced Wasserstein distance",
    "ms_ssim_diversity": "diversity of samples",
    "high_frequency_ratio": "fine detail (power ratio)",
    "wasserstein_critic": "distance by a fresh critic",
    "elbo_nats": "ELBO",
    "rate_nats": "rate",
    "distortion_nats": "distortion",
    "iw50_bound_nats": "likelihood bound (k = 50)",
    "bits_per_dim_iw50": "bits per dimension",
    "mse": "reconstruction error",
    "psnr_db": "PSNR of reconstructions",
    "ssim": "SSIM of reconstructions",
    "ms_ssim": "MS-SSIM of reconstructions",
    "high_quality_share": "share of good samples",
    "reverse_kl_nats": "evenness over modes (reverse KL)",
    "fcn_pixel_accuracy": "FCN-score, pixel accuracy",
    "fcn_class_accuracy": "FCN-score, class accuracy",
    "fcn_class_iou": "FCN-score, class IoU",
    "labels_pixel_accuracy": "pixel accuracy of labels",
    "labels_class_accuracy": "class accuracy of labels",
    "labels_class_iou": "class IoU of labels",
    "l1_to_target": "distance to the target",
    "variant_distance": "diversity of variants",
    "cycle_error_input": "cycle error of inputs",
    "cycle_error_target": "cycle error of targets",
    "identity_error_input": "identity error of inputs",
    "identity_error_target": "identity error of targets",
    "pixel_agreement": "pixel agreement of pairs",
}
"""What figures are called in sentences; others by their own name."""

EQUAL_IMAGES: dict[str, Any] = {"arch": "conv", "latent": 32, "width": 16, "hidden": 0}
EQUAL_VECTORS: dict[str, Any] = {"latent": 16, "width": 128, "depth": 3}
EQUAL_PAIRS: dict[str, dict[str, Any]] = {"image-pair": {"width": 16}, "vector-pair": {"width": 64, "depth": 2}}
"""What all recipes share, where they have the option, unless it is said otherwise."""


@dataclass(frozen=True)
class Plans:
    """What `compare` was asked for, checked before anything is trained."""

    names: tuple[str, ...]
    seeds: tuple[int, ...]
    source: str | Path
    data: Data
    out: Path
    settings: Settings
    options: Mapping[str, Mapping[str, Any]]
    """Each recipe's options, the equal networks among them."""
    data_options: Mapping[str, Any]
    device: str | None
    evaluation: Mapping[str, Any]
    """metrics, examples, features and ignore of `evaluate`."""

    def folder(self, name: str, seed: int) -> Path:
        return self.out / f"{name}-seed{seed}"


def compare(
    names: Sequence[str],
    *,
    data: str | Path,
    out: str | Path,
    seeds: int = 3,
    examples: int = Settings.examples,
    batch_size: int = Settings.batch_size,
    device: str | None = None,
    metrics: str | Sequence[str] | None = None,
    evaluate_examples: int | None = None,
    features: str | None = None,
    ignore: Sequence[int] = (),
    equal: bool = True,
    options: Mapping[str, Any] | None = None,
    own_options: Mapping[str, Mapping[str, Any]] | None = None,
    data_options: Mapping[str, Any] | None = None,
    watch: Callable[[], Watch] | None = None,
    note: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Train and measure each recipe with each seed; write results.json and report.html into `out`; return the record.

    Args:
        names: recipes, at least one.
        data: a named source or a path (runs must be able to read it again).
        seeds: how many; they are 0, 1, 2, …
        examples, batch_size, device: of every training, see `twofold.train`.
        metrics, evaluate_examples, features, ignore: of every measurement, see `twofold.evaluate`.
        equal: give all recipes the same networks (`EQUAL_IMAGES`, `EQUAL_VECTORS`, `EQUAL_PAIRS`) where they have the
            options.
        options: options for all recipes that have them, over `equal`; refused if none has them.
        own_options: {recipe: {option: value}}, over both.
        watch: makes the progress display of one training.
        note: told what is being done, a line at a time.

    Raises `InputError` before anything is trained, `Interrupted` after Ctrl-C: the same call goes on from there.
    """
    plans = _plans(
        names, data, out, seeds, Settings(examples=examples, batch_size=batch_size), device, equal,
        options or {}, own_options or {}, data_options or {},
        {"metrics": metrics, "examples": evaluate_examples, "features": features, "ignore": list(ignore)},
    )  # fmt: skip
    say = note or (lambda line: None)
    models: dict[str, list[dict[str, Any]]] = {name: [] for name in plans.names}
    for seed in plans.seeds:  # all recipes with the first seed come first: there is something to look at early
        for name in plans.names:
            models[name].append(_one(plans, name, seed, watch, say))
    record = _record(plans, models)
    write_json(plans.out / "results.json", record)
    from twofold.comparison_report import write_comparison

    write_comparison(plans.out, record, _pictures(plans, models))
    return record


# The plan.


def _plans(
    names: Sequence[str],
    source: Any,
    out: str | Path,
    seeds: int,
    settings: Settings,
    device: str | None,
    equal: bool,
    options: Mapping[str, Any],
    own_options: Mapping[str, Mapping[str, Any]],
    data_options: Mapping[str, Any],
    evaluation: Mapping[str, Any],
) -> Plans:
    if not names or len(set(names)) < len(names):
        raise InputError(f"recipes to compare are {', '.join(names) or 'none'}; name at least one, each once")
    if not isinstance(source, (str, Path)):
        raise InputError("compare needs data that can be read again: a built-in's name or a path")
    if seeds < 1:
        raise InputError(f"seeds is {seeds}; train at least 1")
    entries = [recipes.find(name) for name in names]
    for entry in entries:
        if not {"sample", "translate"} & set(entry.abilities):
            raise InputError(f"compare measures samples or translations; {entry.name} makes neither; leave it out")
    if strange := sorted(set(own_options) - set(names)):
        raise InputError(f"options are given for {strange[0]}, which is not compared; compared are {', '.join(names)}")
    data = load_data(source, seed=0, **data_options)
    whole = EQUAL_IMAGES if data.spec.kind == "image" else EQUAL_VECTORS
    shared = EQUAL_PAIRS.get(data.spec.data_kind, whole) if equal else {}
    known = {entry.name: set(asdict(recipes.default_config(entry))) for entry in entries}
    if nobody := sorted(set(options) - set().union(*known.values())):
        raise InputError(f"none of {', '.join(names)} has an option {nobody[0]}")
    chosen = {
        name: {**{k: v for k, v in {**shared, **options}.items() if k in known[name]}, **own_options.get(name, {})}
        for name in names
    }
    named = chosen_metrics(evaluation["metrics"])
    path = Path(out)
    if path.exists() and not path.is_dir():
        raise InputError(f"out is {str(out)!r}, which is a file; give a folder")
    plans = Plans(
        tuple(names), tuple(range(seeds)), source, data, path, settings, chosen, data_options, device, evaluation
    )
    untrained = []
    for name in names:  # everything a recipe may refuse, it refuses now
        plan = _plan(plans, name, 0)
        batches(plan)
        untrained.append(_study(plans, plan))
    for metric in named:
        reasons = [metric.lacks(study) for study in untrained]
        if None not in reasons:
            raise InputError(f"{metric.name} can be measured of none of {', '.join(names)}: {reasons[0]}")
    return plans


def _study(plans: Plans, plan: Plan) -> Study:
    """What a metric is asked about before there is a trained model."""
    count = count_for(plans.data, plans.evaluation["examples"])
    features, ignore = plans.evaluation["features"], tuple(plans.evaluation["ignore"])
    model = Model(plan.recipe, plan.recipe.nets)
    return Study(model, plans.data, count, features=features, ignore=ignore, config=asdict(plan.config))


def _settings(plans: Plans, seed: int) -> Settings:
    return Settings(**{**asdict(plans.settings), "seed": seed})


def _plan(plans: Plans, name: str, seed: int) -> Plan:
    return prepare(
        name,
        data=plans.source,
        settings=_settings(plans, seed),
        device=plans.device,
        data_options=plans.data_options,
        **plans.options[name],
    )


# One recipe with one seed.


def _one(
    plans: Plans, name: str, seed: int, watch: Callable[[], Watch] | None, say: Callable[[str], None]
) -> dict[str, Any]:
    folder = plans.folder(name, seed)
    if _finished(plans, name, seed):
        say(f"{folder.name}: trained already")
    else:
        say(f"{folder.name}: training")
        try:
            _train(plans, name, seed, watch)
        except TrainingError as error:
            say(f"{folder.name}: {error}")
            return {"seed": seed, "run": folder.name, "failed": str(error).replace(str(folder.resolve()), folder.name)}
    model = load(folder)
    return {"seed": seed, "run": folder.name, "results": _measured(plans, model, say), "cost": _cost(plans, model)}


def _train(plans: Plans, name: str, seed: int, watch: Callable[[], Watch] | None) -> None:
    settings = asdict(_settings(plans, seed))
    try:
        train(
            name,
            data=plans.source,
            out=plans.folder(name, seed),
            resume=True,
            device=plans.device,
            data_options=plans.data_options,
            watch=watch() if watch else None,
            **settings,
            **plans.options[name],
        )
    except Interrupted as stop:
        reached = str(stop).partition(";")[0]
        raise Interrupted(f"{name}, seed {seed}: {reached}; the same command goes on from here") from None


def _finished(plans: Plans, name: str, seed: int) -> bool:
    """Whether the run is there, is the one that is asked for, and has come to its end."""
    folder = plans.folder(name, seed)
    if not (folder / "report.html").is_file():
        return False
    run = Run.open(folder)
    record, saved = record_of(run), run.checkpoints()
    config = configure(recipes.default_config(recipes.find(name)), plans.options[name])
    same = (
        record["recipe"] == name
        and record["config"] == json.loads(json.dumps(asdict(config)))
        and record["train"] == asdict(_settings(plans, seed))
        and record["data"].get("fingerprint") == plans.data.fingerprint
    )
    return same and bool(saved) and saved[-1] >= plans.settings.examples


def _measured(plans: Plans, model: Model, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The figures of one run, from its comparison.json if they were measured in the same way."""
    assert model.run is not None
    wanted = plans.evaluation["metrics"]
    asked = {
        **plans.evaluation,
        "metrics": wanted if wanted is None or isinstance(wanted, str) else ",".join(wanted),
        "trained_examples": model.examples,
        "data": plans.data.fingerprint,
    }
    if (model.run.path / MEASURED).is_file():
        stored = model.run.read_json(MEASURED)
        if isinstance(stored, dict) and stored.get("asked") == asked:
            return stored["results"]
    say(f"{model.run.path.name}: measuring")
    found = evaluate(model, **plans.evaluation, only_possible=True)
    if wanted is not None:
        for name, reason in found.left_out.items():
            say(f"{model.run.path.name}: not measured: {name}: {reason}")
    results = [result.to_json() for result in found.results]
    model.run.write_json(MEASURED, {"asked": asked, "results": results, "left_out": dict(found.left_out)})
    return results


# Cost.


class _CountBackward(TorchFunctionMode):
    """Counts calls of `Tensor.backward` while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += function is torch.Tensor.backward
        return function(*args, **(kwargs or {}))


def backward_passes(plan: Plan) -> float:
    """Backward passes in a step of the plan's first stage, the mean over a few steps that are thrown away."""
    stream, game = batches(plan), plan.recipe.stages[0].game
    with torch.random.fork_rng(devices=[]):
        progress = begin(game, seed=0)
        with _CountBackward() as counter:
            for _ in range(COUNTED_STEPS):
                step(game, progress, lambda: stream.draw(progress.examples))
    return counter.calls / COUNTED_STEPS


def _cost(plans: Plans, model: Model) -> dict[str, Any]:
    """Of one run, as its own records have it."""
    assert model.run is not None
    timed = [record for record in model.run.metrics() if "seconds" in record]
    seconds = max((record["seconds"] for record in timed), default=0.0)
    return {"seconds": seconds, "examples_per_second": round(model.examples / max(seconds, 1e-9), 1)}


def _size(plan: Plan) -> dict[str, Any]:
    """What does not depend on the seed."""
    measured = estimate(plan, seconds=0.0)
    on_device = {"peak_memory_bytes": measured["peak_memory_bytes"]} if plan.device.type == "cuda" else {}
    return {
        "parameters": {network["name"]: network["parameters"] for network in networks(plan.recipe)},
        "backward_passes_per_step": backward_passes(plan),
        "training_state_bytes": measured["state_bytes"],
        **on_device,
    }


# The record.


def _record(plans: Plans, models: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    described = {}
    for name in plans.names:
        plan = _plan(plans, name, 0)
        described[name] = {
            "summary": recipes.find(name).summary,
            "options": dict(plans.options[name]),
            "routing": "\n\n".join(table(stage.game) for stage in plan.recipe.stages),
            **_size(plan),
            "runs": list(models[name]),
        }
    figures = summarise({name: [run for run in runs if "results" in run] for name, runs in models.items()})
    return {
        "data": {"source": str(plans.source), "name": plans.data.name, "fingerprint": plans.data.fingerprint},
        "examples": plans.settings.examples,
        "batch_size": plans.settings.batch_size,
        "seeds": list(plans.seeds),
        "models": described,
        "figures": figures,
        "summary": in_words(figures, list(plans.names), len(plans.seeds)),
    }


def summarise(models: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each figure of one protocol: {name, better, reference, models: {model: {mean, spread, values}},
    winners}. `models`: {model: [{"results": [a `Result` as JSON, …]}, …]}, one entry for each seed."""
    rows: dict[str, dict[str, Any]] = {}
    for model, runs in models.items():
        for run in runs:
            for stored in run["results"]:
                result = Result.from_json(stored)
                fixed = {k: v for k, v in result.protocol.items() if k not in FREE}
                row = rows.setdefault(
                    f"{result.name} {json.dumps(fixed, sort_keys=True)}",
                    {"name": result.name, "better": result.better, "reference": result.reference, "protocol": fixed,
                     "measured": {}},
                )  # fmt: skip
                row["measured"].setdefault(model, []).append(result)
    return [_row(row) for row in rows.values()]


def _row(row: dict[str, Any]) -> dict[str, Any]:
    measured: dict[str, list[Result]] = row.pop("measured")
    cells = {model: _cell(results) for model, results in measured.items()}
    return {**row, "models": cells, "winners": _winners(row, cells)}


def _cell(results: Sequence[Result]) -> dict[str, Any]:
    """Mean over seeds and its standard error: from the spread over seeds, but never less than the error of measuring
    leaves of it, which two seeds that happen to agree would hide; with one seed the error of measuring alone."""
    values = [result.value for result in results]
    finite = all(math.isfinite(v) for v in values)
    spread = statistics.stdev(values) if len(values) > 1 and finite else None
    errors = [result.uncertainty for result in results if result.uncertainty is not None]
    known = [*([] if spread is None else [spread]), *([statistics.fmean(errors)] if errors else [])]
    error = max(known) / math.sqrt(len(values)) if known and finite else None
    mean = statistics.fmean(values)
    said = [v if math.isfinite(v) else str(v) for v in values]
    return {"mean": mean if math.isfinite(mean) else str(mean), "spread": spread, "error": error, "values": said}


def _winners(row: Mapping[str, Any], cells: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The best model and those that cannot be told from it: within the 95 % interval of the difference by Welch's t
    over seeds, or within two errors of measuring with one seed."""
    if len(cells) < 2:
        return []

    def loss(model: str) -> float:
        mean = float(cells[model]["mean"])
        if row["better"] == "data":
            return abs(mean - (row["reference"] if row["reference"] is not None else 0.0))
        return mean if row["better"] == "lower" else -mean

    if row["better"] == "data" and row["reference"] is None:
        return []
    ordered = sorted(cells, key=lambda model: (math.isnan(loss(model)), loss(model)))
    best = ordered[0]

    def tied(model: str) -> bool:
        errors = [cells[m]["error"] for m in (best, model)]
        counts = [len(cells[m]["values"]) for m in (best, model)]
        return None in errors or not loss(model) - loss(best) > _least_difference(errors, counts)

    return [best, *(model for model in ordered[1:] if tied(model))]


def _least_difference(errors: Sequence[float], counts: Sequence[int]) -> float:
    """The difference of two means that is beyond chance, from their standard errors and numbers of seeds."""
    from scipy.stats import t

    if max(counts) < 2 or not any(errors):
        return ERRORS * math.hypot(*errors)
    variances = [error**2 for error in errors]
    freedom = sum(variances) ** 2 / sum(v**2 / max(n - 1, 1) for v, n in zip(variances, counts, strict=True))
    return float(t.ppf(0.975, freedom)) * math.hypot(*errors)


def in_words(figures: Sequence[Mapping[str, Any]], names: Sequence[str], seeds: int) -> list[str]:
    """What each model wins, in sentences made from the figures."""
    compared = [row for row in figures if row["winners"]]
    if not compared:
        return [f"There are no figures of several models to compare; the table has those of {', '.join(names)}."]
    lines = []
    for name in names:
        won = [row for row in compared if row["winners"] == [name]]
        if won:
            told = "; ".join(_told(row, name) for row in won)
            lines.append(f"{name} is best in {len(won)} of {len(compared)} figures that can be compared: {told}.")
        else:
            shared = sum(name in row["winners"] for row in compared)
            lines.append(
                f"{name} is alone at the top in none of {len(compared)} figures, and shares the top in {shared}."
            )
    ties = [row for row in compared if len(row["winners"]) > 1]
    if ties:
        told = "; ".join(f"{title(row['name'])} ({', '.join(row['winners'])})" for row in ties)
        lines.append(f"Not told apart: {told}.")
    if alone := [name for name in names if any(list(row["models"]) == [name] for row in figures)]:
        lines.append(
            f"Some figures exist for one model only ({', '.join(alone)}); they are in the table without a winner."
        )
    if seeds == 1:
        lines.append(
            "There is one seed, so how much training varies is not known: a difference here is beyond the error of "
            "measuring, not beyond that of training again."
        )
    else:
        lines.append(
            "A winner is ahead by more than the 95 % interval of the difference: Welch's t over "
            f"{seeds} seeds, with the error of measuring as the least spread. "
            f"One in twenty of {len(compared)} figures would differ so by chance."
        )
    return lines


def _told(row: Mapping[str, Any], winner: str) -> str:
    others = {model: cell for model, cell in row["models"].items() if model != winner}
    others_text = ", ".join(f"{model} {value_text(cell)}" for model, cell in others.items())
    return f"{title(row['name'])} {value_text(row['models'][winner])} ({others_text})"


def short(name: str) -> str:
    """The metric of a figure's name, without its protocol: up to the sample count.

    >>> short("precision_k3_359_test_classifier_acc97.8"), short("linear_probe_359_test_codes")
    ('precision_k3', 'linear_probe of codes')
    """
    words = name.split("_")
    at = next((k for k, word in enumerate(words) if k and word.removesuffix("k").isdigit()), len(words))
    rest = words[at + 2 :] if words[0] in ("linear", "1nn", "beta") else []
    return "_".join(words[:at]) + (f" of {'_'.join(rest)}" if rest else "")


def title(name: str) -> str:
    """A figure's name in a sentence.

    >>> title("fd_359_test_classifier_acc97.8")
    'Fréchet distance'
    """
    return WORDS.get(short(name), short(name).replace("_", " "))


def value_text(cell: Mapping[str, Any]) -> str:
    """ "0.31 ± 0.02": mean and spread over seeds (without the spread for one seed)."""
    mean = cell["mean"]
    text = mean if isinstance(mean, str) else f"{mean:.3g}"
    return text if cell["spread"] is None else f"{text} ± {cell['spread']:.1g}"


# Pictures.


def _pictures(plans: Plans, models: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, bytes]]:
    """{model: {"samples", "translations", "reconstructions", "interpolations", "curves": PNG}} of the first seed, all
    from the same latent seed and the same test examples; under "data" the real ones."""
    from twofold.data import from_model, to_model
    from twofold.pictures import curves, image_grid, png_bytes, reconstruction_grid, samples_picture

    held_out, spec = plans.data.test or plans.data.train, plans.data.spec
    real = to_model(held_out.x[torch.arange(min(len(held_out), 1024))], spec)
    images = spec.kind == "image"
    shown = 64 if images else 1024
    pictures = {"data": {"samples": png_bytes(samples_picture(real[:shown], spec))}}
    given = None
    if images and spec.input is not None and held_out.a is not None:
        given = to_model(held_out.a[torch.arange(min(len(held_out.a), TRANSLATED))], spec.input)
        if spec.paired:
            pictures["data"]["translations"] = png_bytes(reconstruction_grid(given, real[: len(given)], columns=8))
    for name, runs in models.items():
        if "failed" in runs[0]:
            continue
        model = load(plans.folder(name, plans.seeds[0]))
        assert model.run is not None
        seen = partial(samples_picture, spec=spec, reference=None if images else real)
        made: dict[str, bytes] = {}
        if "sample" in model.abilities:
            made["samples"] = png_bytes(seen(model.sample_tensor(shown, seed=0)))
        if given is not None and "translate" in model.abilities:
            there = model.translate_tensor(given, seed=0)[:, 0]
            made["translations"] = png_bytes(reconstruction_grid(given, there, columns=8))
        if images and "reconstruct" in model.abilities:
            labels = held_out.y[:16].numpy() if model.recipe.conditional and held_out.y is not None else None
            rec = model.reconstruct(from_model(real[:16], spec), labels=labels)
            made["reconstructions"] = png_bytes(reconstruction_grid(real[:16], _seen(rec, spec), columns=8))
        if images and "interpolate" in model.abilities:
            codes = model.draw_codes(8, seed=0)
            ways = [k % (spec.classes or 1) for k in range(4)] if model.recipe.conditional else None
            way = model.interpolate(codes[:4], codes[4:], steps=8, labels=ways)
            made["interpolations"] = png_bytes(image_grid(_seen(way.reshape(-1, *way.shape[2:]), spec), columns=8))
        made["curves"] = png_bytes(curves(model.run.metrics()))
        pictures[name] = made
    return pictures


def _seen(x: Any, spec: Any) -> torch.Tensor:
    from twofold.data import raw, to_model

    return to_model(raw(x, spec), spec)
