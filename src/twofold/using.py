"""Verbs that use a trained model and write a picture or arrays: sample, reconstruct, interpolate."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twofold.data import Data, Split, from_model, load, raw, to_model
from twofold.errors import InputError
from twofold.model import Model
from twofold.run import write_file

VALUES_LIMIT = 2**29
"""The largest number of values (pixels, features) in what one call makes: 4 GiB while they are float64."""


def sample(
    model: Model, n: int = 64, *, seed: int = 0, label: int | None = None, out: str | Path | None = None
) -> Path:
    """Write `n` samples to `out`: a .png grid, or an .npz with `samples` in the data's own layout and range."""
    _refuse_too_many(model, n)
    x = model.sample(n, seed=seed, labels=label)
    return _write(model, out, f"samples-seed{seed}.png", {"samples": x}, lambda: _grid(model, x))


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

    _refuse_unable(model, "reconstruct")
    x, y = _examples(model, data, data_options, n, seed)
    x_rec = model.reconstruct(x, labels=y)

    def picture() -> Any:
        if model.spec.kind != "image":
            return _grid(model, x_rec, reference=x)
        return reconstruction_grid(_seen(model, x), _seen(model, x_rec))

    return _write(model, out, f"reconstructions-seed{seed}.png", {"x": x, "x_rec": x_rec}, picture)


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
    _refuse_unable(model, "interpolate" if data is None else "encode")
    _refuse_too_many(model, n * steps)
    if data is None:
        if data_options:
            raise _no_data(data_options)
        codes = model.draw_codes(2 * n, seed=seed)
        labels: Any = label
        if label is None and model.recipe.conditional:
            labels = np.arange(n) % (model.spec.classes or 1)
    else:
        if label is not None:
            raise InputError("give a label or data, not both: the examples of data have their own labels")
        x, y = _examples(model, data, data_options, 2 * n, seed)
        codes = model.encode(x, labels=y)
        labels = None if y is None else y[:n]
    x = model.interpolate(codes[:n], codes[n:], steps=steps, path=path, labels=labels)

    def picture() -> Any:
        from twofold.pictures import image_grid

        flat = x.reshape(n * steps, *x.shape[2:])
        return image_grid(_seen(model, flat), columns=steps) if model.spec.kind == "image" else _grid(model, flat)

    return _write(model, out, f"interpolations-seed{seed}.png", {"x": x}, picture)


def _refuse_unable(model: Model, ability: str) -> None:
    """Before any data is read for what cannot be done with it."""
    if ability not in model.abilities:
        raise InputError(f"this model cannot {ability}; it can {', '.join(model.abilities)}")


def _refuse_too_many(model: Model, n: int) -> None:
    if n * model.spec.size > VALUES_LIMIT:
        raise InputError(
            f"{n:,} are too many at once; ask for at most {VALUES_LIMIT // model.spec.size:,} and change the seed"
        )


def _examples(
    model: Model, data: Any, data_options: Mapping[str, Any] | None, n: int, seed: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """`n` examples drawn from the test split of `data` in the model's own layout, with labels for a conditional one."""
    if data is None:
        if data_options:
            raise _no_data(data_options)
        loaded = _own_data(model)
    else:
        loaded = load(data, **(data_options or {}))
    if loaded.spec.shape != model.spec.shape or loaded.spec.kind != model.spec.kind:
        raise InputError(
            f"this model takes {model.spec.kind}s of {model.spec.shape}; {loaded.name} has {loaded.spec.kind}s of "
            f"{loaded.spec.shape}"
        )
    classes = loaded.spec.classes
    if model.recipe.conditional and (classes is None or classes > (model.spec.classes or 0)):
        given = f"{classes} classes" if classes else "no labels"
        raise InputError(f"this model is conditional on {model.spec.classes} classes; {loaded.name} has {given}")
    split: Split = loaded.test or loaded.train
    if n > len(split):
        raise InputError(f"asked for {n} examples; {loaded.name} has {len(split)}")
    chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:n]
    x = from_model(to_model(split.x[chosen], loaded.spec), model.spec)
    y = split.y[chosen].numpy() if split.y is not None and model.recipe.conditional else None
    return x, y


def _no_data(data_options: Mapping[str, Any]) -> InputError:
    return InputError(
        f"{' and '.join(data_options)} would say how to read data, but no data is given; give it (--data)"
    )


DATA_OPTIONS = (
    *("size", "channels", "value_range", "labels", "strict", "holdout"),
    *("pairs", "side_by_side", "unpaired", "swap"),
)
"""What a run remembers of how its data was read."""


def _own_data(model: Model) -> Data:
    """The data the run was trained on. Raises `InputError` if it cannot be had again, or is not what it was."""
    record = model.run.config.get("data", {}) if model.run else {}
    source = record.get("source")
    if source is None:
        raise InputError("this run was trained on arrays, not on a named source; give data (--data SOURCE)")
    given = record.get("options", {})
    if not isinstance(given, dict) or set(given) - set(DATA_OPTIONS):
        raise InputError("this run's config.json does not say how its data was read; give data (--data SOURCE)")
    options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    loaded = load(source, **options)
    if loaded.fingerprint != record.get("fingerprint"):
        # What is a test example today may have been trained on then.
        raise InputError(f"{source} is not what it was when this run was trained; to use it, name it: --data {source}")
    return loaded


def _seen(model: Model, x: np.ndarray) -> torch.Tensor:
    return to_model(raw(x, model.spec), model.spec)


def _grid(model: Model, x: np.ndarray, reference: np.ndarray | None = None) -> Any:
    from twofold.pictures import samples_picture

    behind = None if reference is None else _seen(model, reference)
    return samples_picture(_seen(model, x), model.spec, reference=behind)


def _write(model: Model, out: str | Path | None, default: str, arrays: dict[str, np.ndarray], picture: Any) -> Path:
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
