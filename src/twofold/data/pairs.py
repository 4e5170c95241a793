"""Pairs → `Data`: arrays, two folders matched by name, two pictures side by side; and two sets without correspondence.

The side that translation starts from is the split's `a`, the side it makes is `x`. Each side is read as a set of its
own kind would be; what is particular here is which belongs to which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twofold.data import folder
from twofold.data.arrays import Options, data_from_arrays, held_in_memory
from twofold.data.cache import decoded_once
from twofold.data.folder import Found, Pictures
from twofold.data.images import CHANNELS
from twofold.data.picture import PixelFormat, Seen
from twofold.data.split import Data, Examples, Split, fingerprint, held_out, take
from twofold.errors import InputError
from twofold.spec import Spec


def pair(
    a: Any,
    x: Any,
    *,
    a_test: Any = None,
    x_test: Any = None,
    paired: bool = True,
    holdout: float = 0.1,
    seed: int = 0,
    value_range: tuple[float, float] | None = None,
) -> Data:
    """`Data` of pairs from arrays or tensors: inputs `a` and targets `x`, each as `load` takes one set.

    paired: a[i] belongs to x[i]; otherwise they are two sets of any lengths. Without test arrays a part of each is held
    out, of pairs the same part. Raises `InputError` as `load` does, and for pairs of different length or size.

    >>> import numpy as np
    >>> grey, colour = np.zeros((20, 8, 8), np.uint8), np.zeros((20, 8, 8, 3), np.uint8)
    >>> data = pair(grey, colour)
    >>> data.spec.shape, data.spec.input.shape, len(data.train)
    ((3, 8, 8), (1, 8, 8), 18)
    """
    options = Options(value_range=value_range, holdout=holdout, seed=seed, unpaired=not paired)
    return pair_arrays("pairs", a, x, a_test, x_test, options=options)


def pair_arrays(
    name: str, a: Any, x: Any, a_test: Any = None, x_test: Any = None, *, options: Options, notes: Sequence[str] = ()
) -> Data:
    """`pair` with a name and the caller's `Options`."""
    if (a_test is None) != (x_test is None):
        raise InputError(f"{name}: only one side has test examples; give them for both or for neither")
    for which, one, other in (("", a, x), (" (test)", a_test, x_test)):
        if not options.unpaired and one is not None and len(one) != len(other):
            raise InputError(
                f"{name}{which}: {len(one)} inputs and {len(other)} targets; give one input per target, or say that "
                "they are two sets without correspondence (--unpaired)"
            )
    sides = []
    for side, train, test in (("input", a, a_test), ("target", x, x_test)):
        if test is None:
            kept, held = held_out(len(train), options.holdout, seed=options.seed)
            train, test = train[_indices(kept, train)], None if held is None else train[_indices(held, train)]
        own = replace(options, holdout=0.0)
        sides.append(data_from_arrays(f"{name} ({side})", train, x_test=test, options=own))
    return joined(name, *sides, paired=not options.unpaired, notes=notes)


def joined(name: str, inputs: Data, targets: Data, *, paired: bool, notes: Sequence[str] = ()) -> Data:
    """One `Data` from the two sides; labels, factors and modes are the targets'."""
    spec = replace(targets.spec, input=replace(inputs.spec, classes=None, class_names=None), paired=paired)
    train = replace(targets.train, a=inputs.train.x)
    test = None
    if targets.test is not None and inputs.test is not None:
        test = replace(targets.test, a=inputs.test.x)
    every = (*notes, *(f"input: {n}" for n in inputs.notes), *(f"target: {n}" for n in targets.notes))
    return Data(name, spec, train, test, every, fingerprint(spec, [train, test]))


def arranged(data: Data, *, unpaired: bool, swap: bool) -> Data:
    """`data` with its sides exchanged, or taken as two sets without correspondence. Raises `InputError` if it is not
    pairs."""
    if not unpaired and not swap:
        return data
    own, other = data.spec, data.spec.input
    if other is None:
        words = " and ".join(w for w, given in (("unpaired", unpaired), ("swap", swap)) if given)
        raise InputError(f"{words} cannot be used here: {data.name} is not pairs; give --pairs or --side-by-side")
    paired = own.paired and not unpaired
    train, test = data.train, data.test
    if swap:
        keep = own.paired and own.classes is not None
        inputs = replace(own, input=None, paired=True, classes=None, class_names=None)
        own = replace(
            other,
            input=inputs,
            classes=own.classes if keep else None,
            class_names=own.class_names if keep else None,
            paired=paired,
        )
        train = _exchanged(train, keep)
        test = None if test is None else _exchanged(test, keep)
    spec = replace(own, paired=paired)
    return replace(data, spec=spec, train=train, test=test, fingerprint=fingerprint(spec, [train, test]))


def _exchanged(split: Split, keep_labels: bool) -> Split:
    assert split.a is not None
    return Split(split.a, split.y if keep_labels else None, split.factors if keep_labels else None, split.x)


def _indices(indices: Tensor, like: Any) -> Any:
    return indices if isinstance(like, Tensor) else indices.numpy()


# Folders.


@dataclass(frozen=True)
class Place:
    """The folders of one split."""

    inputs: Path
    targets: Path


def load_pair_folders(root: Path, options: Options) -> Data:
    """Two subfolders of pictures, inputs and targets, as `options.pairs` names them.

    Where they lie: `train/INPUT` and `train/TARGET` beside `test/` or `val/` with the same; `trainINPUT` and
    `trainTARGET` beside `testINPUT` and `testTARGET` (CycleGAN's layout); or INPUT and TARGET alone. Pairs belong
    together by the file's name without its ending. What has no partner is left out with a note, or refused if
    `options.strict`. Raises `InputError` as a folder of images does.
    """
    _refuse_for_pictures(options, root)
    assert options.pairs is not None
    first, second = options.pairs
    notes: list[str] = []
    train, test = _places(root, first, second)
    found: list[tuple[list[Found], list[Found]]] = []
    for place in (train, test):
        if place is None:
            found.append(([], []))
            continue
        sides = [folder.pictures_in(side, root, notes) for side in (place.inputs, place.targets)]
        found.append((sides[0], sides[1]) if options.unpaired else _matched(sides[0], sides[1], root, options, notes))
    return _from_found(root, found[0], found[1] if test is not None else None, options, notes)


def load_side_by_side(root: Path, options: Options) -> Data:
    """Pictures that are two of one width side by side, the input on the left (pix2pix's layout), in `train/` beside
    `test/` or `val/`, or in the folder itself."""
    _refuse_for_pictures(options, root)
    notes: list[str] = []
    train, test = folder.split_folders(root)
    found = folder.pictures_in(train, root, notes)
    held = None if test is None else folder.pictures_in(test, root, notes)
    halves = ("left", "right")
    return _from_found(root, (found, found), None if held is None else (held, held), options, notes, halves)


def _refuse_for_pictures(options: Options, root: Path) -> None:
    if options.channels not in (None, *CHANNELS):
        raise InputError(f"channels is {options.channels}; allowed for a folder of images: 1, 3 and 4")
    options.refuse("value_range", because="image files state their own range")
    options.refuse("labels", because=f"{root.name} is read as pairs, which have no labels")


def _places(root: Path, first: str, second: str) -> tuple[Place, Place | None]:
    """Where the two sides of the training and of the test split lie."""

    def at(*names: str) -> Place | None:
        inputs, targets = (root / "/".join((*names[:-1], names[-1] + side)) for side in (first, second))
        return Place(inputs, targets) if inputs.is_dir() and targets.is_dir() else None

    tests = folder.TEST_FOLDERS
    for train, held in (
        (at("train", ""), [at(name, "") for name in tests]),
        (at("train"), [at(name) for name in tests]),
        (at(""), []),
    ):
        if train is not None:
            return train, next((place for place in held if place is not None), None)
    raise InputError(
        f"{root.resolve().name}: there are no two folders {first!r} and {second!r} in it, in its train/, nor as "
        f"train{first} and train{second}; name the folders of inputs and targets with --pairs INPUT TARGET"
    )


def _matched(
    inputs: list[Found], targets: list[Found], root: Path, options: Options, notes: list[str]
) -> tuple[list[Found], list[Found]]:
    """The pictures that have a partner of their name, in the order of the names."""
    by_name: list[dict[str, Found]] = []
    for side in (inputs, targets):
        named = {_stem(f): f for f in side}
        if len(named) < len(side):
            twice = next(f for f in side if named[_stem(f)] is not f)
            raise InputError(f"{root.name}: {twice.name} and {named[_stem(twice)].name} would be one pair's same side")
        by_name.append(named)
    common = sorted(by_name[0].keys() & by_name[1].keys())
    alone = sorted(f.name for names in by_name for stem, f in names.items() if stem not in common)
    if not common:
        raise InputError(
            f"{root.name}: no two files have one name ({inputs[0].name}, {targets[0].name}, …); rename them, or say "
            "that they are two sets without correspondence (--unpaired)"
        )
    if alone and options.strict:
        raise InputError(f"{root.name}: {len(alone)} files have no partner of their name, such as {alone[0]}")
    if alone:
        notes.append(f"{len(alone)} file{'s' * (len(alone) > 1)} without a partner left out: {folder.some(alone)}")
    return [by_name[0][stem] for stem in common], [by_name[1][stem] for stem in common]


def _stem(found: Found) -> str:
    """The file's path within its side, without its ending."""
    return found.within.rpartition(".")[0]


def _from_found(
    root: Path,
    train: tuple[list[Found], list[Found]],
    test: tuple[list[Found], list[Found]] | None,
    options: Options,
    notes: list[str],
    halves: tuple[str, str] = ("", ""),
) -> Data:
    paired = not options.unpaired
    splits = [train] if test is None else [train, test]
    sides: list[list[list[Found]]] = [[], []]  # side → split → files
    for split in splits:
        kept = _readable(split, root, paired, options, notes)
        for side in (0, 1):
            sides[side].append(kept[side])
    formats = [
        _format([f for split in sides[side] for f in split], root, options, notes, halves[side]) for side in (0, 1)
    ]
    if formats[0].shape[1:] != formats[1].shape[1:]:
        raise InputError(
            f"{root.name}: inputs are {formats[0].height}×{formats[0].width} and targets {formats[1].height}×"
            f"{formats[1].width} (height×width); bring them to one size with --size"
        )
    loaded = []
    for files_of, pixel_format, title in zip(sides, formats, ("inputs", "targets"), strict=True):
        pixels = [_pixels(files, root, pixel_format, options) for files in files_of]
        held = None if test is None else Split(pixels[1])
        first = Split(pixels[0])
        if test is None:
            kept_rows, held_rows = held_out(len(first), options.holdout, seed=options.seed)
            held = None if held_rows is None else Split(take(first.x, held_rows))
            first = Split(take(first.x, kept_rows))
        palette = _palette([f for files in files_of for f in files])
        if palette is not None:
            notes.append(f"{title} are label maps with {len(palette)} colours")
        loaded.append(Data(title, _spec(pixel_format, palette), first, held, (), ""))
    name = root.resolve().name or "folder"
    return joined(name, loaded[0], loaded[1], paired=paired, notes=notes)


def _readable(
    split: tuple[list[Found], list[Found]], root: Path, together: bool, options: Options, notes: list[str]
) -> tuple[list[Found], list[Found]]:
    """The files of both sides whose pixels can be read; of pairs, both or neither."""
    if split[0] is split[1]:  # two halves of the same files
        whole = folder.inspected(split[0], root, options, notes)
        return whole, whole
    looked = [folder.inspected(side, root, options, notes) for side in split]
    if not together:
        return looked[0], looked[1]
    good = [{f.name: f for f in side} for side in looked]
    both = [
        (good[0][a.name], good[1][x.name])
        for a, x in zip(*split, strict=True)
        if a.name in good[0] and x.name in good[1]
    ]
    if not both:
        raise InputError(f"{root.name}: no pair of pictures can be read")
    return [a for a, _ in both], [x for _, x in both]


def _format(found: list[Found], root: Path, options: Options, notes: list[str], half: str) -> PixelFormat:
    if half:
        found = [replace(f, seen=_halved(f.seen)) for f in found]
    pixel_format = folder.common_format(found, root, options, notes)
    return replace(pixel_format, half=half, nearest=_palette(found) is not None)


def _halved(seen: Seen | None) -> Seen | None:
    return None if seen is None else replace(seen, width=seen.width // 2)


def _palette(found: Sequence[Found]) -> tuple[tuple[int, int, int], ...] | None:
    """The palette that all the files share."""
    palettes = {f.seen.palette for f in found if f.seen is not None}
    return palettes.pop() if len(palettes) == 1 else None


def _pixels(found: list[Found], root: Path, pixel_format: PixelFormat, options: Options) -> Tensor | Examples:
    pictures: Pictures = folder.on_access(found, root, pixel_format)
    if not held_in_memory(pictures.shape, pictures.dtype, options):
        return decoded_once(pictures, options.cache)
    return pictures[torch.arange(len(pictures))]


def _spec(pixel_format: PixelFormat, palette: tuple[tuple[int, int, int], ...] | None) -> Spec:
    return replace(folder.spec_of(pixel_format), palette=palette if pixel_format.channels == 3 else None)
