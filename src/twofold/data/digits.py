"""The handwritten digits that scikit-learn ships, plain and tinted."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from twofold.data.arrays import Options, Reading, part
from twofold.data.split import Data, Split, fingerprint, held_out
from twofold.errors import InputError
from twofold.spec import Spec

_TEST_FRACTION = 0.2
_SEED = 0


def load_digits(options: Options) -> Data:
    """1,797 digits, 8×8 grey levels 0 to 16, labelled; a fixed fifth is the test split."""
    images, labels = _digits()
    low, high = 0.0, 16.0
    x = Reading("HW", "float64", _shape(options, 1), low, high)(images)
    if options.size is None:
        # Grey levels are whole; resized ones are not.
        x = x.round().to(torch.uint8)
    layout = "HW" if x.shape[1] == 1 else "HWC"
    spec = Spec("image", tuple(x.shape[1:]), classes=10, layout=layout, dtype="float64", low=low, high=high)
    return _data("digits", spec, Split(x, labels))


def load_color_digits(options: Options) -> Data:
    """The digits in colour: intensity times a random fully saturated hue, 8×8 RGB uint8.

    The label is the digit and the one factor the hue, in [0, 1), independent of it. Split as `digits` are.
    """
    images, labels = _digits()
    hue = np.random.RandomState(_SEED).random_sample(len(images))
    colored = np.rint(images[..., None] / 16 * color_of(hue)[:, None, None, :] * 255).astype(np.uint8)
    x = Reading("HWC", "uint8", _shape(options, 3), stored="uint8")(colored)
    spec = Spec("image", tuple(x.shape[1:]), classes=10, layout="HWC", dtype="uint8")
    return _data("color-digits", spec, Split(x, labels, torch.from_numpy(hue[:, None]).float()))


def _digits() -> tuple[np.ndarray, Tensor]:
    from sklearn.datasets import load_digits as sklearn_digits

    bunch = sklearn_digits()
    return bunch.images, torch.from_numpy(bunch.target.astype(np.int64))


def _shape(options: Options, channels: int) -> tuple[int, ...]:
    options.refuse("value_range", "labels", because="the built-in digits state their own")
    if options.channels not in (None, 1, 3, 4):
        raise InputError(f"channels is {options.channels}; allowed: 1, 3 and 4")
    return (options.channels or channels, *(options.size or (8, 8)))


def color_of(hue: np.ndarray) -> np.ndarray:
    """(n, 3) in [0, 1]: red at 0, green at 1/3, blue at 2/3, full saturation and value."""
    distance = np.abs((hue[:, None] - np.array([0, 1, 2]) / 3 + 0.5) % 1 - 0.5)
    return np.clip(2 - 6 * distance, 0, 1)


def _data(name: str, spec: Spec, split: Split) -> Data:
    kept, held = held_out(len(split), _TEST_FRACTION, seed=_SEED)
    assert held is not None
    train, test = part(split, kept), part(split, held)
    return Data(name, spec, train, test, (), fingerprint(spec, [train, test]))
