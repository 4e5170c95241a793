"""Verbs that use a trained model and write a picture or arrays: sample, reconstruct, complete, interpolate."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twofold.data import Data, Split, from_model, keep_classes, load, raw, to_model
from twofold.errors import InputError
from twofold.model import Model
from twofold.run import write_file

VALUES_LIMIT = 2**29
"""The largest number of values (pixels, features) in what one call makes: 4 GiB while they are float64."""


def sample(
    model: Model, n: int = 64, *, seed: int = 0, label: int | None = None, out: str | Path | None = None
) -> Path:
    """Write `n` samples to `out`: a .png grid, or an .npz with `samples` in the data's own layout and range."""
    refuse_too_many(model, n)
    x = model.sample(n, seed=seed, labels=label)
    return write_result(model, out, f"samples-seed{seed}.png", {"samples": x}, lambda: samples_grid(model, x))


def reconstruct(
    model: Model,
    n: int = 16,
    *,
    data: Any = None,
    data_options: Mapping[str, Any] | None = None,
    seed: int = 0,
    out: str | Path | None = None,
) -> Path:
    """Write `n` test examples beside their reconstructions: a .png, or an .npz with `x` and `x_rec`.

    `data` None: the data the run was trained on, read as it was then; otherwise read with `data_options`, see
    `twofold.data.load`. The examples are drawn with `seed`.
    """
    from twofold.pictures import reconstruction_grid

    refuse_unable(model, "reconstruct")
    x, y = examples_of(model, data, data_options, n, seed)
    x_rec = model.reconstruct(x, labels=y)

    def picture() -> Any:
        if model.spec.kind != "image":
            return samples_grid(model, x_rec, reference=x)
        return reconstruction_grid(seen(model, x), seen(model, x_rec))

    return write_result(model, out, f"reconstructions-seed{seed}.png", {"x": x, "x_rec": x_rec}, picture)


def complete(
    model: Model,
    n: int = 8,
    *,
    known: float = 0.5,
    variants: int = 6,
    data: Any = None,
    data_options: Mapping[str, Any] | None = None,
    seed: int = 0,
    out: str | Path | None = None,
) -> Path:
    """Write `n` test examples whose beginning is kept and whose rest is drawn, in `variants` ways.

    `known`: the part kept, an image's first rows. A .png has a row for each example: it, what is kept of it, the
    variants; an .npz holds `x` and `x_completed` (n, variants, …). `data` and `seed` as in `reconstruct`.
    """
    refuse_unable(model, "complete")
    if variants < 1:
        raise InputError(f"variants is {variants}; it starts at 1")
    refuse_too_many(model, n * (variants + 2))
    x, y = examples_of(model, data, data_options, n, seed)
    drawn = [model.complete(x, known=known, seed=(seed + k) % 2**63, labels=y) for k in range(variants)]
    completed = np.stack(drawn, axis=1)

    def picture() -> Any:
        from twofold.pictures import image_grid

        shown = seen(model, x)
        kept = shown.clone()
        kept[:, :, round(known * shown.shape[2]) :] = 0
        rows = [shown, kept, *(seen(model, variant) for variant in drawn)]
        return image_grid(torch.stack(rows, dim=1).flatten(0, 1), columns=len(rows))

    return write_result(model, out, f"completions-seed{seed}.png", {"x": x, "x_completed": completed}, picture)


def interpolate(
    model: Model,
    n: int = 8,
    *,
    steps: int = 8,
    path: str = "slerp",
    data: Any = None,
    data_options: Mapping[str, Any] | None = None,
    label: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
) -> Path:
    """Write `n` ways from one code to another, `steps` pictures each: a .png, or an .npz with `x` (n, steps, …).

    The ends are codes of the prior, or of examples of `data` (read with `data_options`) for a model that can encode; an
    example's own label goes with it.
    """
    refuse_unable(model, "interpolate" if data is None else "encode")
    refuse_too_many(model, n * steps)
    if data is None:
        if data_options:
            raise no_data(data_options)
        codes = model.draw_codes(2 * n, seed=seed)
        labels: Any = label
        if label is None and model.recipe.conditional:
            labels = np.arange(n) % (model.spec.classes or 1)
    else:
        if label is not None:
            raise InputError("give a label or data, not both: the examples of data have their own labels")
        x, y = examples_of(model, data, data_options, 2 * n, seed)
        codes = model.encode(x, labels=y)
        labels = None if y is None else y[:n]
    x = model.interpolate(codes[:n], codes[n:], steps=steps, path=path, labels=labels)

    def picture() -> Any:
        from twofold.pictures import image_grid

        flat = x.reshape(n * steps, *x.shape[2:])
        return image_grid(seen(model, flat), columns=steps) if model.spec.kind == "image" else samples_grid(model, flat)

    return write_result(model, out, f"interpolations-seed{seed}.png", {"x": x}, picture)


def refuse_unable(model: Model, ability: str) -> None:
    """Before any data is read for what cannot be done with it."""
    if ability not in model.abilities:
        raise InputError(f"this model cannot {ability}; it can {', '.join(model.abilities)}")


def refuse_too_many(model: Model, n: int) -> None:
    """Before memory is asked for `n` examples that it cannot hold."""
    if n * model.spec.size > VALUES_LIMIT:
        raise InputError(
            f"{n:,} are too many at once; ask for at most {VALUES_LIMIT // model.spec.size:,} and change the seed"
        )


def examples_of(
    model: Model, data: Any, data_options: Mapping[str, Any] | None, n: int, seed: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """`n` examples drawn from the test split of `data` in the model's own layout, with labels for a conditional one."""
    x, y = drawn(model, data_for(model, data, data_options), n, seed)
    return x, y if model.recipe.conditional else None


def drawn(model: Model, loaded: Data, n: int, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    """`n` examples drawn from the test split, as `chosen` gives them. Raises `InputError` if it has fewer."""
    split = loaded.test or loaded.train
    if n > len(split):
        raise InputError(f"asked for {n} examples; {loaded.name} has {len(split)}")
    return chosen(model, loaded, split, shuffled(len(split), seed)[:n])


def data_for(
    model: Model, data: Any = None, data_options: Mapping[str, Any] | None = None, *, every_class: bool = False
) -> Data:
    """`data` read with `data_options`, or the data that the run was trained on if it is None (see `own_data`).

    Raises `InputError` if the model cannot take examples of it.
    """
    if data is None:
        if data_options:
            raise no_data(data_options)
        loaded = own_data(model, every_class=every_class)
    else:
        loaded = load(data, **(data_options or {}))
    if loaded.spec.shape != model.spec.shape or loaded.spec.kind != model.spec.kind:
        raise InputError(
            f"this model takes {model.spec.kind}s of {model.spec.shape}; {loaded.name} has {loaded.spec.kind}s of "
            f"{loaded.spec.shape}"
        )
    own, theirs = model.spec.input, loaded.spec.input
    if own is not None and theirs is not None and own.shape != theirs.shape:
        raise InputError(
            f"this model's inputs are {own.kind}s of {own.shape}; those of {loaded.name} are of {theirs.shape}"
        )
    classes = loaded.spec.classes
    if model.recipe.conditional and (classes is None or classes > (model.spec.classes or 0)):
        given = f"{classes} classes" if classes else "no labels"
        raise InputError(f"this model is conditional on {model.spec.classes} classes; {loaded.name} has {given}")
    return loaded


def chosen(model: Model, loaded: Data, split: Split, indices: torch.Tensor) -> tuple[np.ndarray, np.ndarray | None]:
    """Examples of a split in the model's own layout, and their labels if the data has any.

    Vectors keep their units: the model standardises them as it did those it was trained on.
    """
    x = split.x[indices]
    if model.spec.kind == "image":
        ready = from_model(to_model(x, loaded.spec), model.spec)
    else:
        ready = x.numpy().astype(model.spec.dtype)
    return ready, None if split.y is None else split.y[indices].numpy()


def shuffled(n: int, seed: int) -> torch.Tensor:
    """0 … n - 1 in an order that follows from the seed."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def no_data(data_options: Mapping[str, Any]) -> InputError:
    """The error for options of reading data that is not given."""
    return InputError(
        f"{' and '.join(data_options)} would say how to read data, but no data is given; give it (--data)"
    )


DATA_OPTIONS = (
    *("size", "channels", "value_range", "labels", "strict", "holdout", "classes", "cache"),
    *("pairs", "side_by_side", "unpaired", "swap"),
)
"""What a run remembers of how its data was read."""


def own_data(model: Model, *, every_class: bool = False) -> Data:
    """The data the run was trained on; with `every_class` also the classes that training left out.

    Raises `InputError` if it cannot be had again, or is not what it was.
    """
    record = model.run.config.get("data", {}) if model.run else {}
    source = record.get("source")
    if source is None:
        raise InputError("this run was trained on arrays, not on a named source; give data (--data SOURCE)")
    given = record.get("options", {})
    if not isinstance(given, dict) or set(given) - set(DATA_OPTIONS):
        raise InputError("this run's config.json does not say how its data was read; give data (--data SOURCE)")
    options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    classes = options.pop("classes", None)
    whole = load(_located(model, source, record.get("path_from_run")), **options)
    kept = whole if classes is None else keep_classes(whole, classes)
    if kept.fingerprint != record.get("fingerprint"):
        # What is a test example today may have been trained on then.
        raise InputError(f"{source} is not what it was when this run was trained; to use it, name it: --data {source}")
    return whole if every_class else kept


def _located(model: Model, source: str, path_from_run: Any) -> str | Path:
    """Where the run's data is: the same way from the run directory as when it was trained, else as it was named then,
    from the current folder."""
    if model.run is not None and isinstance(path_from_run, str) and "\0" not in path_from_run:
        path = Path(os.path.normpath(model.run.path.resolve() / path_from_run))
        if os.path.exists(path):
            return path
    return source


def seen(model: Model, x: np.ndarray) -> torch.Tensor:
    """Examples in the data's own layout as pictures take them: in the model's range."""
    return to_model(raw(x, model.spec), model.spec)


def samples_grid(model: Model, x: np.ndarray, reference: np.ndarray | None = None) -> Any:
    """The picture that suits the data: a grid of images, a scatter or histograms of vectors."""
    from twofold.pictures import samples_picture

    behind = None if reference is None else seen(model, reference)
    return samples_picture(seen(model, x), model.spec, reference=behind)


def write_result(
    model: Model, out: str | Path | None, default: str, arrays: dict[str, np.ndarray], picture: Any
) -> Path:
    """Write what `picture()` draws (.png) or `arrays` (.npz) to `out`, or into the run under the name `default`."""
    from twofold.pictures import png_bytes

    path = Path(out) if out is not None else (model.run.path if model.run else Path()) / default
    if path.suffix == ".png":
        content = png_bytes(picture())
    elif path.suffix == ".npz":
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        content = buffer.getvalue()
    else:
        raise InputError(f"out is {str(path)!r}; give a .png (a grid) or an .npz (arrays)")
    write_file(path, content)
    return path
