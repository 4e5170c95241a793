"""Mixtures of narrow Gaussians in the plane, where every mode that a model misses can be counted."""

from __future__ import annotations

import numpy as np
import torch

from twofold.data.arrays import Options, split_by
from twofold.data.split import Data, Split, fingerprint
from twofold.spec import Spec

EXAMPLES = 100_000
_SEED = 0


def load_ring(options: Options) -> Data:
    """8 modes on a circle of radius 2 with standard deviation 0.02, all divided by 1.414 (Gulrajani et al. 2017)."""
    angle = 2 * np.pi * np.arange(8) / 8
    return _mixture("gaussians-8", 2 * np.stack([np.cos(angle), np.sin(angle)], 1) / 1.414, 0.02 / 1.414, options)


def load_grid(options: Options) -> Data:
    """25 modes on a 5×5 grid of spacing 2, standard deviation 0.05, all divided by 2.828 (Gulrajani et al. 2017)."""
    axis = 2.0 * np.arange(-2, 3)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(25, 2)
    return _mixture("gaussians-25", grid / 2.828, 0.05 / 2.828, options)


def _mixture(name: str, modes: np.ndarray, std: float, options: Options) -> Data:
    options.refuse(
        "size", "channels", "value_range", "labels", because=f"{name} are labelled vectors of their own scale"
    )
    # RandomState's streams are frozen by numpy's policy: the same samples with every version.
    random = np.random.RandomState(_SEED)
    mode = random.permutation(np.arange(EXAMPLES) % len(modes))
    x = torch.from_numpy(modes[mode] + std * random.standard_normal((EXAMPLES, 2))).float()
    spec = Spec("vector", (2,), classes=len(modes), layout="D", dtype="float32")
    train, test = split_by(Split(x, torch.from_numpy(mode.astype(np.int64))), options)
    digest = fingerprint(spec, [train, test])
    return Data(name, spec, train, test, (), digest, torch.from_numpy(modes).float(), std)
