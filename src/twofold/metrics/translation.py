"""Figures of translations: how different the variants of one input are, how near a cycle comes back, how much a map
changes what is already on its side, and whether two images show one thing."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from twofold.errors import InputError

Features = Callable[[Tensor], Tensor]


def diversity(variants: Tensor, features: Features | None = None) -> float:
    """Mean distance between consecutive variants of the same input, `variants` (inputs, variants, …).

    The protocol of Zhu et al. 2017 (BicycleGAN, section 5), with 100 inputs and 20 variants: 1,900 pairs. Theirs is the
    LPIPS distance; here it is the Euclidean distance of `features` of (n, …), (n, features), or without any the mean
    absolute difference of the values. Say which in the figure's name. Copies of one image give 0.

    >>> diversity(torch.zeros(3, 4, 1, 2, 2)), diversity(torch.tensor([[[0.0], [2.0], [1.0]]]))
    (0.0, 1.5)
    """
    if variants.dim() < 3 or variants.shape[1] < 2:
        raise InputError(f"variants have shape {tuple(variants.shape)}; give (inputs, 2 or more variants, …)")
    if features is None:
        return float((variants[:, 1:] - variants[:, :-1]).abs().mean())
    codes = features(variants.flatten(0, 1)).unflatten(0, variants.shape[:2])
    return float((codes[:, 1:] - codes[:, :-1]).square().sum(-1).sqrt().mean())


def map_error(made: Tensor, wanted: Tensor) -> float:
    """Mean absolute difference per value: of a cycle, from what it started with (cycle error); of a map applied to its
    own side, from what it was given (identity error); of a translation, from the known target."""
    if made.shape != wanted.shape:
        raise InputError(f"shapes are {tuple(made.shape)} and {tuple(wanted.shape)}; give equal ones")
    return float((made - wanted).abs().mean())


def pixel_agreement(made: Tensor, wanted: Tensor, *, threshold: float = 0.0) -> float:
    """The part of pixels that are on the same side of `threshold` in both: CoGAN's measure for pairs of binary images
    (Liu & Tuzel 2016, section 4), one of them brought to the other's side first (a negative: its sign turned).

    >>> pixel_agreement(torch.tensor([[-1.0, 1.0]]), torch.tensor([[-0.2, -0.1]]))
    0.5
    """
    if made.shape != wanted.shape:
        raise InputError(f"shapes are {tuple(made.shape)} and {tuple(wanted.shape)}; give equal ones")
    return float(((made > threshold) == (wanted > threshold)).float().mean())
