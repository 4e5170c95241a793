"""Verbs that use a trained model and write a picture or arrays: sample, reconstruct, interpolate."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twofold.data import Split, from_model, load, raw, to_model
from twofold.errors import InputError
from twofold.model import Model
from twofold.run import write_file


def sample(
    model: Model, n: int = 64, *, seed: int = 0, label: int | None = None, out: str | Path | None = None
) -> Path:
    """Write `n` samples to `out`: a .png grid, or an .npz with `samples` in the data's own layout and range."""
    x = model.sample(n, seed=seed, labels=label)
    return _write(model, out, f"samples-seed{seed}.png", {"samples": x}, lambda: _grid(model, x))


def reconstruct(model: Model, n: int = 16, *, data: Any = None, seed: int = 0, out: str | Path | None = None) -> Path:
    """Write `n` test examples beside their reconstructions: a .png, or an .npz with `x` and `x_rec`.

    `data` None: the data the run was trained on. The examples are drawn with `seed`.
    """
    from twofold.pictures import reconstruction_grid

    x, y = _examples(model, data, n, seed)
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
    label: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
) -> Path:
    """Write `n` ways from one code to another, `steps` pictures each: a .png, or an .npz with `x` (n, steps, …).

    The ends are codes of the prior, or of examples of `data` for a model that can encode.
    """
    if data is None:
        codes = model.draw_codes(2 * n, seed=seed)
        labels: Any = label
        if label is None and model.recipe.conditional:
            labels = np.arange(n) % (model.spec.classes or 1)
    else:
        x, y = _examples(model, data, 2 * n, seed)
        codes = model.encode(x, labels=y)
        labels = None if y is None else y[:n]
    x = model.interpolate(codes[:n], codes[n:], steps=steps, path=path, labels=labels)

    def picture() -> Any:
        from twofold.pictures import image_grid

        flat = x.reshape(n * steps, *x.shape[2:])
        return image_grid(_seen(model, flat), columns=steps) if model.spec.kind == "image" else _grid(model, flat)

    return _write(model, out, f"interpolations-seed{seed}.png", {"x": x}, picture)


def _examples(model: Model, data: Any, n: int, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    """`n` examples drawn from the test split of `data` in the model's own layout, with labels for a conditional one."""
    options: dict[str, Any] = {}
    if data is None:
        record = model.run.config["data"] if model.run else {}
        data = record.get("source")
        if data is None:
            raise InputError("this run was trained on arrays, not on a named source; give data (--data SOURCE)")
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in record.get("options", {}).items()}
    loaded = load(data, **options)
    if loaded.spec.shape != model.spec.shape or loaded.spec.kind != model.spec.kind:
        raise InputError(
            f"this model takes {model.spec.kind}s of {model.spec.shape}; {loaded.name} has {loaded.spec.kind}s of "
            f"{loaded.spec.shape}"
        )
    split: Split = loaded.test or loaded.train
    if n > len(split):
        raise InputError(f"asked for {n} examples; {loaded.name} has {len(split)}")
    chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:n]
    x = from_model(to_model(split.x[chosen], loaded.spec), model.spec)
    y = split.y[chosen].numpy() if split.y is not None and model.recipe.conditional else None
    return x, y


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
