"""Figures of translations, one for each example: how different the variants of one input are, how near a cycle comes
back, how much a map changes what is already on its side, and whether two images show one thing."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from twofold.errors import InputError

Distance = Callable[[Tensor, Tensor], Tensor]
"""(n, …), (n, …) → (n,)."""


def map_errors(made: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute difference per value of each example (n,): of a cycle, from what it started with (cycle error); of
    a map applied to its own side, from what it was given (identity error); of a translation, from the known target."""
    _require_equal(made, wanted)
    return (made - wanted).abs().flatten(1).mean(1)


def diversity(variants: Tensor, distance: Distance = map_errors) -> Tensor:
    """Mean distance between consecutive variants of each input (n,), from `variants` (n, variants, …).

    The protocol of Zhu et al. 2017 (BicycleGAN, section 5), with 100 inputs and 20 variants: 1,900 pairs. Theirs is the
    LPIPS distance; say in the figure's name which it is. Copies of one image give 0.

    >>> diversity(torch.tensor([[[0.0], [2.0], [1.0]], [[3.0], [3.0], [3.0]]]))
    tensor([1.5000, 0.0000])
    """
    if variants.dim() < 3 or variants.shape[1] < 2:
        raise InputError(f"variants have shape {tuple(variants.shape)}; give (inputs, 2 or more variants, …)")
    pairs = distance(variants[:, 1:].flatten(0, 1), variants[:, :-1].flatten(0, 1))
    return pairs.unflatten(0, (len(variants), -1)).mean(1)


def feature_distance(features: Callable[[Tensor], Tensor]) -> Distance:
    """The Euclidean distance of `features`, (n, …) → (n, features)."""

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return (features(a) - features(b)).square().sum(1).sqrt()

    return distance


def pixel_agreement(made: Tensor, wanted: Tensor, *, threshold: float = 0.0) -> Tensor:
    """The part of each pair's pixels that are on the same side of `threshold` in both (n,): CoGAN's measure for pairs
    of binary images (Liu & Tuzel 2016, section 4), one of them brought to the other's side first (a negative: its sign
    turned).

    >>> pixel_agreement(torch.tensor([[-1.0, 1.0]]), torch.tensor([[-0.2, -0.1]]))
    tensor([0.5000])
    """
    _require_equal(made, wanted)
    return ((made > threshold) == (wanted > threshold)).float().flatten(1).mean(1)


def negatives(a: Tensor, x: Tensor) -> bool:
    """Whether what is bright in the images `a` is dark in the images `x`: their mean images, (n, channels, height,
    width) each, correlate negatively over positions.

    >>> a = torch.rand(9, 1, 4, 4)
    >>> negatives(a, -a), negatives(a, 0.5 * a)
    (True, False)
    """
    one, other = (images.double().mean(dim=(0, 1)).flatten() for images in (a, x))
    return bool(((one - one.mean()) * (other - other.mean())).sum() < 0)


def _require_equal(made: Tensor, wanted: Tensor) -> None:
    if made.shape != wanted.shape:
        raise InputError(f"shapes are {tuple(made.shape)} and {tuple(wanted.shape)}; give equal ones")
