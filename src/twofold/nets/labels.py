"""Labels as vectors, with one more label that stands for none: what classifier-free guidance needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from twofold.errors import InputError
from twofold.nets.layers import whole


class LabelEmbedding(nn.Module):
    """A vector (batch, width) for each label 0 … classes - 1, and one for `classes`, which stands for no label."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.classes = whole("classes", classes)
        self.table = nn.Embedding(classes + 1, width)

    def forward(self, y: Tensor | None, batch: int) -> Tensor:
        """`y` (batch,) int64; None: no labels."""
        if y is None:
            return self.table.weight[self.classes].expand(batch, -1)
        if y.dtype != torch.int64 or y.shape != (batch,):
            raise InputError(f"y is {y.dtype} of shape {tuple(y.shape)}; give int64 of shape ({batch},)")
        return self.table(y)


class FirstSlot(nn.Module):
    """What stands before the first token of a sequence: a learned vector, plus the label's, (batch, 1, width)."""

    def __init__(self, width: int, classes: int | None) -> None:
        super().__init__()
        self.vector = nn.Parameter(0.02 * torch.randn(width))
        self.label = None if classes is None else LabelEmbedding(classes, width)

    def forward(self, batch: int, condition: Mapping[str, Tensor] | None) -> Tensor:
        """`condition` may hold "y" where there are classes, and nothing else."""
        refuse_unknown(condition, ("y",) if self.label is not None else ())
        slot = self.vector.expand(batch, -1)
        if self.label is not None:
            slot = slot + self.label((condition or {}).get("y"), batch)
        return slot[:, None]


def refuse_unknown(condition: Mapping[str, Tensor] | None, known: Sequence[str]) -> None:
    """Raise `InputError` if the condition holds what the model was not built for."""
    if unknown := sorted(set(condition or {}) - set(known)):
        allowed = ", ".join(known) if known else "nothing"
        raise InputError(f"this model is not conditioned on {', '.join(unknown)}; it takes {allowed}")


def drop_labels(y: Tensor, classes: int, probability: float, *, generator: torch.Generator | None = None) -> Tensor:
    """Labels of which each is replaced by `classes`, the label for none, with the given probability (Ho & Salimans
    2022, algorithm 1): a model trained so can be guided.

    >>> drop_labels(torch.tensor([0, 2, 1]), 3, 1.0)
    tensor([3, 3, 3])
    """
    if probability == 0:
        return y
    uniform = torch.rand(y.shape, generator=generator, device=y.device)
    return torch.where(uniform < probability, classes, y)


def without_label(condition: Mapping[str, Tensor] | None, classes: int | None) -> dict[str, Tensor]:
    """The condition with its label "y" replaced by the one for none; everything else stays.

    Raises `InputError` if there is no label to leave out.
    """
    if classes is None or condition is None or "y" not in condition:
        raise InputError("guidance compares with and without a label, but this model or this call has none")
    return {**condition, "y": torch.full_like(condition["y"], classes)}
