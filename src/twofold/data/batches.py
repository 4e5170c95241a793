"""Splits → batches: an endless seeded stream addressed by position (training), or once in order (evaluation)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from twofold.data.convert import to_model
from twofold.data.split import Examples, Split, example_bytes
from twofold.errors import InputError
from twofold.spec import Spec

DEVICE_LIMIT_BYTES = 2 * 2**30
"""Splits up to this size are kept on the accelerator that trains on them."""

_X, _A = 0, 2
"""Streams of random numbers: the order of a side; the next number is its flips and moves."""


class Batches:
    """Full batches of an infinite stream of examples: seeded permutations of the split, one after the other.

    `draw(position)` is a pure function of the seed and the position, so that training resumes exactly from the number
    of examples it has seen. With `flip`, each picture is mirrored left-right with probability 1/2; with `crop` = n, it
    is moved by up to n pixels each way, the border filled by reflection. With `world_size` > 1, `batch_size` counts the
    examples of all ranks together, and each rank is given its own share of the same batch.

    Raises `InputError` if the batch is larger than the split or cannot be shared evenly, or if vectors are to be
    flipped or cropped.

    >>> from twofold.data import load
    >>> data = load("digits")
    >>> batches = Batches(data.train, data.spec, batch_size=64, seed=0)
    >>> tuple(batches.draw(128)["x"].shape)
    (64, 1, 8, 8)
    """

    def __init__(
        self,
        split: Split,
        spec: Spec,
        *,
        batch_size: int,
        seed: int,
        flip: bool = False,
        crop: int = 0,
        device: str | torch.device = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        _check_batch(len(split), batch_size, rank, world_size)
        if split.a is not None:
            _check_batch(len(split.a), batch_size, rank, world_size)
        _check_augmentation(spec, flip, crop)
        if seed < 0:
            raise InputError(f"seed is {seed}; give a whole number from 0")
        self.batch_size = batch_size
        self._spec, self._seed, self._flip, self._crop = spec, seed, flip, crop
        self._device = torch.device(device)
        share = batch_size // world_size
        self._share = slice(rank * share, (rank + 1) * share)
        self._x = _near(split.x, self._device)
        self._a = None if split.a is None else _near(split.a, self._device)
        self._y = None if split.y is None else split.y.to(self._device)
        self._orders: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def draw(self, position: int) -> dict[str, Tensor]:
        """The batch that starts at example number `position` of the stream, on the device.

        "x": (batch, …) float32 as models see it; "y": (batch,) int64, if the split is labelled; "a": the other side,
        if the split is pairs. The two sides of a pair are flipped and moved alike. Sides without correspondence come
        in orders of their own, each a stream of seeded permutations.
        """
        if position < 0:
            raise InputError(f"position is {position}; examples are counted from 0")
        indices = self._indices(position, len(self._x), _X)
        batch = {"x": to_model(self._augmented(self._rows(self._x, indices), position, _X), self._spec)}
        if self._y is not None:
            batch["y"] = self._y[indices[1]]
        if self._a is not None and self._spec.input is not None:
            stream = _X if self._spec.paired else _A
            if not self._spec.paired:
                indices = self._indices(position, len(self._a), _A)
            a = self._augmented(self._rows(self._a, indices), position, stream)
            batch["a"] = to_model(a, self._spec.input)
        return batch

    def where(self, position: int) -> Tensor:
        """Which examples of the split the batch at `position` holds, (batch,) int64 on the device."""
        if position < 0:
            raise InputError(f"position is {position}; examples are counted from 0")
        return self._indices(position, len(self._x), _X)[1]

    @property
    def augmented(self) -> bool:
        """Whether pictures are flipped or moved: then an example is not the same in every pass."""
        return self._flip or self._crop > 0

    def _rows(self, examples: Tensor | Examples, indices: tuple[Tensor, Tensor]) -> Tensor:
        """The examples at `indices` (on the host, on the device), on the device."""
        if isinstance(examples, Tensor) and examples.device.type == self._device.type:
            return examples[indices[1]]
        return _sent(examples[indices[0]], self._device)

    def _indices(self, position: int, examples: int, stream: int) -> tuple[Tensor, Tensor]:
        """Which of the `examples` this rank gets, as (indices on the host, the same on the device)."""
        start, stop = position + self._share.start, position + self._share.stop
        parts = []
        while start < stop:
            pass_number, offset = divmod(start, examples)
            count = min(stop - start, examples - offset)
            parts.append([order[offset : offset + count] for order in self._order(pass_number, examples, stream)])
            start += count
        if len(parts) == 1:
            return parts[0][0], parts[0][1]
        return torch.cat([host for host, _ in parts]), torch.cat([device for _, device in parts])

    def _order(self, pass_number: int, examples: int, stream: int) -> tuple[Tensor, Tensor]:
        key = (stream, pass_number)
        if key not in self._orders:
            order = torch.randperm(examples, generator=_generator(self._seed, stream, pass_number))
            # A batch spans two passes at most, so no older order is needed again when going forward.
            self._orders = {k: v for k, v in self._orders.items() if k[0] != stream or abs(k[1] - pass_number) <= 1}
            self._orders[key] = (order, order.to(self._device))
        return self._orders[key]

    def _augmented(self, x: Tensor, position: int, stream: int) -> Tensor:
        """`x` flipped and moved. Drawn for the whole batch, so that the ranks together see what one process would."""
        if not self.augmented:
            return x
        generator = _generator(self._seed, stream + 1, position)
        flips = torch.randint(2, (self.batch_size,), generator=generator)
        moves = torch.randint(-self._crop, self._crop + 1, (2, self.batch_size), generator=generator)
        drawn = _sent(torch.cat([flips[None] * int(self._flip), moves])[:, self._share], x.device)
        return shifted(x, flip=drawn[0].bool(), down=drawn[1], right=drawn[2])


def ordered(
    split: Split, spec: Spec, batch_size: int, device: str | torch.device = "cpu"
) -> Iterator[dict[str, Tensor]]:
    """Every example once, in order, in batches like those of `Batches.draw`; the last may be smaller. Sides without
    correspondence have no common order: then there is no "a"."""
    if batch_size < 1:
        raise InputError(f"batch size is {batch_size}; give a whole number from 1")
    for start in range(0, len(split), batch_size):
        indices = torch.arange(start, min(start + batch_size, len(split)))
        batch = {"x": to_model(_sent(split.x[indices], torch.device(device)), spec)}
        if split.y is not None:
            batch["y"] = _sent(split.y[indices], torch.device(device))
        if split.a is not None and spec.input is not None and spec.paired:
            batch["a"] = to_model(_sent(split.a[indices], torch.device(device)), spec.input)
        yield batch


def shifted(x: Tensor, *, flip: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Each picture of (batch, channels, height, width) mirrored left-right where `flip` (batch,) says so, then moved
    down and to the right by whole pixels (batch,), negative for up and left. What comes in is the picture's reflection
    about its border pixels."""
    height, width = x.shape[2:]
    rows = _reflected(torch.arange(height, device=x.device) - down[:, None], height)
    columns = _reflected(torch.arange(width, device=x.device) - right[:, None], width)
    columns = torch.where(flip[:, None], width - 1 - columns, columns)
    which = torch.arange(len(x), device=x.device)[:, None, None]
    return x[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _reflected(index: Tensor, size: int) -> Tensor:
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)


def _generator(*key: int) -> torch.Generator:
    """A generator whose stream depends on every number of the key, and is unrelated to that of any other key."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def _near(x: Tensor | Examples, device: torch.device) -> Tensor | Examples:
    fits = example_bytes(tuple(x.shape), x.dtype) <= DEVICE_LIMIT_BYTES
    return x.to(device) if isinstance(x, Tensor) and fits else x


def _sent(x: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda" and x.device.type == "cpu":
        # Only a copy from pinned memory lets the host go on at once.
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def _check_batch(examples: int, batch_size: int, rank: int, world_size: int) -> None:
    if batch_size < 1:
        raise InputError(f"batch size is {batch_size}; give a whole number from 1")
    if batch_size > examples:
        raise InputError(
            f"batch size {batch_size} is larger than the {examples} training examples; "
            f"use --batch-size {examples} or less"
        )
    if world_size < 1 or not 0 <= rank < world_size:
        raise InputError(f"rank {rank} of world size {world_size} does not exist")
    if batch_size % world_size:
        raise InputError(
            f"batch size {batch_size} cannot be shared evenly by {world_size} processes; use a multiple of {world_size}"
        )


def _check_augmentation(spec: Spec, flip: bool, crop: int) -> None:
    if spec.kind != "image" and (flip or crop):
        raise InputError("flip and crop are for images; these examples are vectors")
    if spec.kind == "image" and not 0 <= crop < min(spec.shape[1:]):
        raise InputError(
            f"crop is {crop}; give 0 to {min(spec.shape[1:]) - 1} pixels for {spec.shape[1]}×{spec.shape[2]}"
        )
