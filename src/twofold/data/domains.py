"""The built-in pairs: what one side is, and how it becomes the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from twofold.data.arrays import Options
from twofold.data.digits import color_of, load_color_digits, load_digits
from twofold.data.pairs import joined, pair_arrays
from twofold.data.shapes import factors_of, render
from twofold.data.split import Data, Split, fingerprint
from twofold.errors import InputError
from twofold.spec import Spec

TRAIN, TEST = 4_000, 500
"""Pairs of outlines and sprites."""
VECTORS = 20_000
AFFINE = ((2.0, 0.5), (3.0, -1.0))
"""Of `affine-2d`: x = scale · a + shift, per coordinate."""
BETWEEN = 0.1
"""Of `two-modes`: the part that lies anywhere between the modes."""
_SEED = 0


def load_digits_to_color(options: Options) -> Data:
    """Each of scikit-learn's digits, in grey, and the same in a random hue; split and labelled as `digits` are."""
    own = replace(options, channels=None)
    return joined("digits-color-digits", load_digits(own), load_color_digits(own), paired=True)


def load_edges_to_shapes(options: Options) -> Data:
    """The outline of a sprite (white on black), and the sprite filled with a random hue; 32×32, or another --size.

    Which colour an outline gets nothing tells: the many answers are what a multi-modal translation should give. Poses
    are those of the source `shapes`, drawn without repeats. The factor is the hue.
    """
    options.refuse("value_range", "labels", "channels", because="edges-shapes states its own")
    height, width = options.size or (32, 32)
    if height != width or not 16 <= height <= 256:
        raise InputError(f"edges-shapes is drawn at {height}×{width}; give one --size from 16 to 256")
    # RandomState's streams are frozen by numpy's policy: the same pairs with every version.
    random = np.random.RandomState(_SEED)
    poses = torch.from_numpy(random.permutation(737_280)[: TRAIN + TEST].astype(np.int64))
    hue = random.random_sample(len(poses))
    lit = render(factors_of(poses), size=height)
    outline = lit - _eroded(lit)
    color = torch.from_numpy(np.rint(color_of(hue) * 255)).to(torch.uint8)
    filled = torch.where(lit > 0, color[:, :, None, None], torch.zeros((), dtype=torch.uint8))
    factors = torch.from_numpy(hue[:, None]).float()
    inputs = Spec("image", (1, height, width), layout="HW", dtype="uint8")
    spec = Spec("image", (3, height, width), layout="HWC", dtype="uint8", input=inputs)
    train = Split(filled[:TRAIN], None, factors[:TRAIN], outline[:TRAIN])
    test = Split(filled[TRAIN:], None, factors[TRAIN:], outline[TRAIN:])
    return Data("edges-shapes", spec, train, test, (), fingerprint(spec, [train, test]))


def load_affine(options: Options) -> Data:
    """Two sets of points without correspondence: four blobs at (±1, ±1), and others like them under `AFFINE`.

    Models see both sides standardised, and so as the same four blobs: a map onto the other side may exchange them in
    eight ways that are all one-to-one, and only one of them is the affine map that was used.
    """
    _refuse(options, "affine-2d")
    random = np.random.RandomState(_SEED)
    a, x = (_blobs(random) for _ in range(2))
    x = x * np.array(AFFINE[0]) + np.array(AFFINE[1])
    own = replace(options, unpaired=True)
    return pair_arrays("affine-2d", a.astype(np.float32), x.astype(np.float32), options=own)


def load_two_modes(options: Options) -> Data:
    """a uniform in [-2, 2], and x = a + s with s = -1 or +1 (45 % each), or anywhere between (10 %).

    The conditional median a + 0 is where almost no x is: what the L1 distance alone asks for.
    """
    _refuse(options, "two-modes")
    random = np.random.RandomState(_SEED)
    a = random.uniform(-2, 2, (VECTORS, 1))
    which, between = random.random_sample((VECTORS, 1)), random.uniform(-1, 1, (VECTORS, 1))
    s = np.where(which < BETWEEN, between, np.where(which < (1 + BETWEEN) / 2, -1.0, 1.0))
    return pair_arrays("two-modes", a.astype(np.float32), (a + s).astype(np.float32), options=options)


def _refuse(options: Options, name: str) -> None:
    options.refuse("size", "channels", "value_range", "labels", because=f"{name} are vectors of their own scale")


def _blobs(random: np.random.RandomState) -> np.ndarray:
    corners = random.randint(0, 2, (VECTORS, 2)) * 2.0 - 1.0
    return corners + 0.2 * random.standard_normal((VECTORS, 2))


def _eroded(lit: Tensor) -> Tensor:
    """Without the pixels that touch a dark one, also by a corner."""
    inside = 1 - F.max_pool2d((lit == 0).float(), 3, stride=1, padding=1)
    return (inside * 255).to(torch.uint8)
