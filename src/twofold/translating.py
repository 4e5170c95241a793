"""The verb translate: pictures of any size, one or a folder of them, through a model trained on pairs.

A picture larger than those the model was trained on is translated in overlapping tiles of that size, which are blended;
a smaller one is enlarged by reflection and cut back.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twofold.data.convert import from_model
from twofold.data.folder import pictures_in
from twofold.data.images import CHANNELS, covering
from twofold.data.numpy_files import read_npy
from twofold.data.picture import PixelFormat, Unreadable, decode, inspect
from twofold.errors import InputError
from twofold.model import Model
from twofold.run import write_file
from twofold.spec import Spec

OVERLAP = 4
"""Neighbouring tiles share at least this part of a tile: one in four pixels."""


def translate(
    model: Model,
    source: str | Path,
    *,
    out: str | Path,
    direction: str = "forward",
    variants: int = 1,
    style: str | Path | None = None,
    fit: bool = False,
    seed: int = 0,
) -> tuple[list[Path], list[str]]:
    """Translate the picture or folder of pictures `source` into PNG files in the folder `out`, named as the inputs are.

    For models of vectors, `source` is a .npy file (n, features) in the data's own scale, and so is what is written.

    Args:
        direction: "forward", or "back" from targets to inputs where the model can.
        variants: how many of each, NAME-1.png …; see `Model.translate`.
        style: a picture of the target's side whose style is given to every translation.
        fit: scale each picture, at its own aspect, until it just covers the size of training, instead of tiling it.
        seed: of styles and noise.

    Returns the files written, and notes about pictures that were left out.

    Raises `InputError` for a model that cannot translate, a source that cannot be read, and names that would fall
    together; nothing is then written.
    """
    specs = model.translated_specs(direction)
    out, source = Path(out), Path(source).expanduser()
    if out.exists() and not out.is_dir():
        raise InputError(f"out is {str(out)!r}, which is a file; give a folder")
    if not source.exists():
        raise InputError(f"there is no file or folder {str(source)!r}")
    if style is not None and variants > 1:
        raise InputError("give a style, or a number of variants, whose styles are drawn")
    settings: dict[str, Any] = {"direction": direction, "variants": variants, "seed": seed}
    if style is not None:
        if direction == "back":
            raise InputError("a style belongs to the forward direction; leave out one of the two")
        settings["style"] = model.style(_style_picture(Path(style), model.spec))
    if specs[0].kind == "vector":
        return [_vectors(model, source, out, settings)], []
    for spec, which in zip(specs, ("reads", "writes"), strict=True):
        if spec.shape[0] not in CHANNELS:
            raise InputError(f"this model {which} images of {spec.shape[0]} channels; in Python, use model.translate")
    notes: list[str] = []
    found = _found(source, notes)
    written: list[Path] = []
    for path, name in found:
        try:
            picture = _read(path, specs[0], fit)
        except Unreadable as error:
            if source.is_file():
                raise InputError(f"{path.name}: {error}") from None
            notes.append(f"{name} left out: {error}")
            continue
        for k in range(variants):
            one = settings | {"variants": 1, "seed": (seed + k) % 2**63}
            if variants > 1 and "style_prior" in model.recipe.abilities:
                one["style"] = model.draw_styles(variants, seed=seed)[k]
            x = whole(model, picture, **one) if fit else tiled(model, picture, specs[0].shape[1:], **one)
            ending = f"-{k + 1}.png" if variants > 1 else ".png"
            written.append(_write(out / f"{name}{ending}", x, specs[1]))
    if not written:
        raise InputError(f"{source.name}: none of the {len(found)} images can be used; {notes[-1]}")
    return written, notes


def whole(model: Model, picture: Tensor, **settings: Any) -> Tensor:
    """The translation (channels, height, width) of a picture at once, whatever its size."""
    return model.translate_tensor(picture[None], **settings)[0, 0]


def tiled(model: Model, picture: Tensor, tile: tuple[int, ...], **settings: Any) -> Tensor:
    """The translation (channels, height, width) of a picture by tiles of `tile` = (height, width), blended.

    A tile's weight falls linearly from its middle to its border, so that no seam shows where two differ a little.
    """
    height, width = picture.shape[1:]
    picture = _enlarged(picture, tile[0], tile[1])
    window = _hat(tile[0])[:, None] * _hat(tile[1])
    total: Tensor | None = None
    weight = torch.zeros(picture.shape[1:])
    columns = starts(picture.shape[2], tile[1])
    for top in starts(picture.shape[1], tile[0]):
        row = torch.stack([picture[:, top : top + tile[0], left : left + tile[1]] for left in columns])
        made = model.translate_tensor(row, **settings)[:, 0]
        if total is None:
            total = torch.zeros(made.shape[1], *picture.shape[1:])
        for left, x in zip(columns, made, strict=True):
            where = (slice(top, top + tile[0]), slice(left, left + tile[1]))
            total[:, where[0], where[1]] += window * x
            weight[where] += window
    assert total is not None
    return (total / weight)[:, :height, :width]


def starts(length: int, tile: int) -> list[int]:
    """Where tiles begin along a side: evenly, the first at the start and the last at the end.

    >>> starts(64, 64), starts(150, 64)
    ([0], [0, 43, 86])
    """
    count = 1 if length <= tile else math.ceil((length - tile) / max(1, tile - tile // OVERLAP)) + 1
    return [round(k * (length - tile) / max(1, count - 1)) for k in range(count)]


def _hat(length: int) -> Tensor:
    """Weights along a tile's side: rising to the middle and falling again, nowhere 0."""
    ramp = torch.arange(1, length + 1, dtype=torch.float32)
    return torch.minimum(ramp, ramp.flip(0))


def _enlarged(picture: Tensor, height: int, width: int) -> Tensor:
    """At least (height, width), what is missing below and to the right filled by reflection."""
    down, right = max(0, height - picture.shape[1]), max(0, width - picture.shape[2])
    if not down and not right:
        return picture
    return torch.from_numpy(np.pad(picture.numpy(), ((0, 0), (0, down), (0, right)), mode="symmetric"))


def _found(source: Path, notes: list[str]) -> list[tuple[Path, str]]:
    """(file, its name without ending within the folder). Raises `InputError` if two would be written to one name."""
    if source.is_file():
        return [(source, source.stem)]
    found = [(f.path, f.within.rpartition(".")[0]) for f in pictures_in(source, source, notes)]
    names: dict[str, Path] = {}
    for path, name in found:
        if name in names:
            raise InputError(f"{names[name].name} and {path.name} would both be written as {name}.png; rename one")
        names[name] = path
    return found


def _read(path: Path, spec: Spec, fit: bool) -> Tensor:
    """The picture in the range of models, (channels, height, width). Raises `Unreadable`."""
    seen = inspect(path)
    size = (seen.height, seen.width)
    if fit:
        size = covering(*size, (spec.shape[1], spec.shape[2]))
    deep = seen.kind == "grey16" and spec.shape[0] == 1
    pixel_format = PixelFormat(spec.shape[0], *size, sixteen_bit=deep, nearest=seen.palette is not None)
    return torch.from_numpy(decode(path, pixel_format)).float() * (2 / (65535 if deep else 255)) - 1


def _style_picture(path: Path, spec: Spec) -> np.ndarray:
    """One example of the target's side, in the data's layout, from a picture (or for vectors the first row of a .npy
    file)."""
    if not path.is_file():
        raise InputError(f"there is no file {str(path)!r} to take the style of")
    if spec.kind == "vector":
        return read_npy(path)[:1]
    try:
        picture = _read(path, spec, True)
    except Unreadable as error:
        raise InputError(f"{path.name}: {error}") from None
    top, left = ((n - m) // 2 for n, m in zip(picture.shape[1:], spec.shape[1:], strict=True))
    return from_model(picture[None, :, top : top + spec.shape[1], left : left + spec.shape[2]], spec)


def _vectors(model: Model, source: Path, out: Path, settings: dict[str, Any]) -> Path:
    if source.suffix != ".npy":
        raise InputError(f"{source.name}: this model translates vectors; give a .npy file, (examples, features)")
    x = model.translate(read_npy(source), **settings)
    buffer = io.BytesIO()
    np.save(buffer, x, allow_pickle=False)
    path = out / source.name
    write_file(path, buffer.getvalue())
    return path


def _write(path: Path, x: Tensor, spec: Spec) -> Path:
    from PIL import Image

    deep = spec.dtype == "uint16" and spec.shape[0] == 1
    values = ((x.clamp(-1, 1) + 1) * ((65535 if deep else 255) / 2)).round().numpy()
    pixels = values.transpose(1, 2, 0).astype(np.uint16 if deep else np.uint8)
    image = Image.fromarray(pixels[..., 0] if spec.shape[0] == 1 else pixels)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, buffer.getvalue())
    return path
