"""Sprites with known factors: the grid of dSprites (Matthey et al. 2017), drawn when they are asked for.

737,280 pictures = 1 colour × 3 shapes (square, ellipse, heart) × 6 scales × 40 orientations × 32 × 32 positions. The
grid and the numbering are those of dSprites. The outlines were measured from its published animation, whose frames are
met to about one pixel each (squares nearly always exactly), so this is "dSprites-like": near enough to learn the same
things from, not the same bytes. Orientations 0 and 39 are the same pose, there as here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from twofold.data.arrays import Options, part
from twofold.data.split import Data, Split, fingerprint, held_out
from twofold.errors import InputError
from twofold.spec import Spec

factor_names = ("color", "shape", "scale", "orientation", "position_x", "position_y")
factor_sizes = (1, 3, 6, 40, 32, 32)
"""Number of values of each factor; the last varies fastest in the numbering."""
shape_names = ("square", "ellipse", "heart")

_BASES = (737_280, 245_760, 40_960, 1024, 32, 1)
_COUNT = math.prod(factor_sizes)
_TEST_FRACTION = 0.05
_SEED = 0

# Geometry in pixels of the 64×64 original, at scale 1.
_NATIVE = 64
_MASK_CELLS = 1024
_REACH = 14.4  # The masks cover [-_REACH, _REACH]²; the farthest point of any outline is a corner of the square, 13.58.
_CHUNK = 4096


def index_of(factors: Tensor) -> Tensor:
    """The number of the picture with these factor indices: (…, 6) whole numbers → (…) int64.

    >>> int(index_of(torch.tensor([0, 2, 5, 39, 31, 31])))
    737279
    """
    return (_checked(factors) * torch.tensor(_BASES)).sum(-1)


def factors_of(index: Tensor) -> Tensor:
    """The factor indices of the picture with this number: (…) → (…, 6) int64. The inverse of `index_of`."""
    if bool(((index < 0) | (index >= _COUNT)).any()):
        raise InputError(f"picture numbers go from 0 to {_COUNT - 1}")
    bases, sizes = torch.tensor(_BASES), torch.tensor(factor_sizes)
    return torch.div(index[..., None].long(), bases, rounding_mode="floor") % sizes


def render(factors_int: Tensor, *, size: int = _NATIVE) -> Tensor:
    """Pictures with these factor indices: (batch, 6) whole numbers → (batch, 1, size, size) uint8, 0 or 255.

    The centre is at 16 + 32 · position of 64 pixels, y downwards; orientation k of 0 … 39 turns by 2πk/39
    counter-clockwise as seen; a pixel is lit if its centre is inside the outline. There is no anti-aliasing.
    Raises `InputError` for an index outside its factor.

    >>> render(torch.zeros(1, 6)).shape
    torch.Size([1, 1, 64, 64])
    """
    if factors_int.ndim != 2:
        raise InputError(f"factors have shape {tuple(factors_int.shape)}; give (batch, 6)")
    factors = _checked(factors_int.cpu())
    if len(factors) == 0:
        return torch.zeros(0, 1, size, size, dtype=torch.uint8)
    return torch.cat([_rendered(some, size) for some in factors.split(_CHUNK)])


@dataclass(frozen=True, eq=False)
class Sprites:
    """All the pictures of the grid, drawn on access."""

    size: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (_COUNT, 1, self.size, self.size)

    @property
    def dtype(self) -> torch.dtype:
        return torch.uint8

    def __len__(self) -> int:
        return _COUNT

    def __getitem__(self, indices: Tensor) -> Tensor:
        return render(factors_of(indices), size=self.size)

    def identity(self) -> bytes:
        return f"sprites {self.size} {factor_sizes}".encode() + _masks().numpy().tobytes()


def load_shapes(name: str, size: int, options: Options) -> Data:
    """The whole grid at `size` × `size`; a fixed twentieth is the test split.

    The factors of a split are the indices in `factor_names` order, as float32.
    """
    options.refuse("value_range", "labels", because=f"{name} states its own")
    height, width = options.size or (size, size)
    if height != width or not 8 <= height <= 1024:
        raise InputError(f"{name} is drawn at {height}×{width}; give one --size from 8 to 1024")
    if options.channels not in (None, 1):
        raise InputError(f"{name} has 1 channel; {options.channels} cannot be given")
    spec = Spec("image", (1, height, height), layout="HW", dtype="uint8")
    kept, held = held_out(_COUNT, _TEST_FRACTION, seed=_SEED)
    assert held is not None
    everything = Split(Sprites(height), None, factors_of(torch.arange(_COUNT)).float())
    train, test = part(everything, kept), part(everything, held)
    return Data(name, spec, train, test, (), fingerprint(spec, [train, test]))


def _checked(factors: Tensor) -> Tensor:
    if factors.shape[-1:] != (len(factor_sizes),):
        raise InputError(
            f"factors have shape {tuple(factors.shape)}; the last axis must be the {len(factor_sizes)} factors"
        )
    whole = factors.long()
    wrong = ((whole != factors) | (whole < 0) | (whole >= torch.tensor(factor_sizes))).reshape(-1, len(factor_sizes))
    if bool(wrong.any()):
        which = int(wrong.any(0).int().argmax())
        raise InputError(f"factor {factor_names[which]} must be a whole number from 0 to {factor_sizes[which] - 1}")
    return whole


def _rendered(factors: Tensor, size: int) -> Tensor:
    _, shape, scale, orientation, x, y = factors.T
    pixel = _NATIVE / size
    column, x_offset = _window(16 + 32 * x.double() / 31, size)
    row, y_offset = _window(16 + 32 * y.double() / 31, size)
    width = x_offset.shape[1]
    # The last orientation is a full turn; taking it as none keeps the two poses equal to the last bit.
    angle = 2 * math.pi * (orientation % 39).double() / 39
    per_cell = _MASK_CELLS / (2 * _REACH) / (0.5 + 0.1 * scale.double())[:, None]
    cos, sin = angle.cos()[:, None] * per_cell, angle.sin()[:, None] * per_cell
    # Where each pixel centre falls in the mask: turned back about the centre, y upwards. Each coordinate is a sum of a
    # part that depends on the column and one that depends on the row, so that only the sum is as large as the picture.
    right, up = x_offset * pixel, -y_offset * pixel
    across = (cos * right)[:, None, :] + (sin * up)[:, :, None]
    along = (-sin * right)[:, None, :] + (cos * up)[:, :, None]
    half = _MASK_CELLS / 2
    u = (across + half).floor_().clamp_(0, _MASK_CELLS - 1).long()
    v = (along + half).floor_().clamp_(0, _MASK_CELLS - 1).long()
    lit = _masks().reshape(-1)[(shape[:, None, None] * _MASK_CELLS + v) * _MASK_CELLS + u]
    pictures = torch.zeros(len(factors), size, size, dtype=torch.uint8)
    steps = torch.arange(width)
    which = torch.arange(len(factors))[:, None, None]
    pictures[which, (row[:, None] + steps)[:, :, None], (column[:, None] + steps)[:, None, :]] = lit
    return pictures[:, None]


def _window(centre: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(first pixel, offsets of the pixel centres from the sprite's centre in pixels) of the part a sprite can reach."""
    centre = centre * size / _NATIVE
    width = min(size, math.ceil(2 * _REACH * size / _NATIVE) + 1)
    first = (centre.floor().long() - width // 2).clamp(0, size - width)
    return first, first[:, None] + torch.arange(width) + 0.5 - centre[:, None]


# Drawn once per process: the outlines are constants.
@lru_cache(maxsize=1)
def _masks() -> Tensor:
    """(3, cells, cells) uint8, 0 or 255: each shape at scale 1 without rotation, rows from the bottom up."""
    axis = (torch.arange(_MASK_CELLS, dtype=torch.float64) + 0.5) * (2 * _REACH / _MASK_CELLS) - _REACH
    x, y = axis[None, :], axis[:, None]
    square = (x.abs() <= 9.6) & (y.abs() <= 9.6)
    ellipse = (x / 12.8).square() + (y / 7.2).square() <= 1
    heart = torch.from_numpy(_inside(_heart(), axis.numpy()))
    return torch.stack([square, ellipse, heart]).to(torch.uint8) * 255


def _heart() -> np.ndarray:
    """The heart's outline at scale 1, (points, 2), y upwards, point down."""
    t = 2 * np.pi * np.arange(4000) / 4000
    y = 10.6 / 16 * (13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) + 1.4
    return np.stack([9.6 * np.sin(t) ** 3, y], 1)


def _inside(polygon: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """(rows, columns) bool: which points of the square lattice `axis` × `axis` lie inside a polygon (even-odd rule)."""
    start, end = polygon, np.roll(polygon, -1, axis=0)
    inside = np.zeros((len(axis), len(axis)), dtype=bool)
    for i, y in enumerate(axis):
        crossing = (start[:, 1] <= y) != (end[:, 1] <= y)
        a, b = start[crossing], end[crossing]
        at = np.sort(a[:, 0] + (y - a[:, 1]) / (b[:, 1] - a[:, 1]) * (b[:, 0] - a[:, 0]))
        inside[i] = np.searchsorted(at, axis) % 2 == 1
    return inside
