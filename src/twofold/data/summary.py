"""What was loaded, in lines for a person."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from twofold.data.split import Data, Split, example_bytes

_SEEN = 1000
_LABELS = 20


def describe(data: Data) -> list[str]:
    """Lines that say what `data` is: counts, shape, values, labels, notes, memory, and what looks wrong."""
    spec = data.spec
    lines = [f"{data.name}: {spec.kind}s, {'×'.join(map(str, spec.shape))} ({_axes(spec.kind)})"]
    lines.append(
        f"examples: {len(data.train):,} to train on" + (f", {len(data.test):,} to test on" if data.test else "")
    )
    low, high, note = _seen(data.train)
    lines.append(f"source: {spec.dtype}, layout {spec.layout}, values seen {low:g} to {high:g}{note}")
    if spec.kind == "image":
        lines.append(f"models see [-1, 1] for [{spec.low:g}, {spec.high:g}]")
    else:
        lines.append(
            "models see standardised features" if spec.mean is not None else "models see the values as they are"
        )
    lines += _input_lines(data)
    lines += _label_lines(data)
    if data.train.factors is not None:
        lines.append(f"known factors: {data.train.factors.shape[1]}")
    if data.modes is not None:
        lines.append(f"modes: {len(data.modes)}, standard deviation {data.mode_std:.4g}")
    lines.append(_memory(data))
    lines += [f"note: {note}" for note in data.notes]
    lines += [f"suggestion: {suggestion}" for suggestion in _suggestions(data, low, high)]
    lines.append(f"fingerprint: {data.fingerprint[:16]}")
    return lines


def _axes(kind: str) -> str:
    return "channels × height × width" if kind == "image" else "features"


def _input_lines(data: Data) -> list[str]:
    """What the other side of pairs is."""
    spec = data.spec.input
    if spec is None or data.train.a is None:
        return []
    shape = "×".join(map(str, spec.shape))
    kinds = f", a label map of {len(spec.palette)} colours" if spec.palette else ""
    lines = [f"input: {spec.kind}s, {shape}, {spec.dtype}{kinds}"]
    if data.spec.paired:
        return [*lines, "pairs: each input belongs to the target of its number"]
    test = f" and {len(data.test.a):,}" if data.test is not None and data.test.a is not None else ""
    return [*lines, f"no correspondence: {len(data.train.a):,}{test} inputs"]


def _seen(split: Split) -> tuple[float, float, str]:
    if isinstance(split.x, Tensor):
        return float(split.x.min()), float(split.x.max()), ""
    # Evenly spread: the first ones may all be of one class.
    count = min(_SEEN, len(split))
    x = split.x[torch.linspace(0, len(split) - 1, count).long()]
    return float(x.min()), float(x.max()), f" (in {count:,} of them)"


def _label_lines(data: Data) -> list[str]:
    spec, y = data.spec, data.train.y
    if y is None or spec.classes is None:
        return ["labels: none"]
    counts = torch.bincount(y, minlength=spec.classes).tolist()
    names = spec.class_names or [str(i) for i in range(spec.classes)]
    shown = ", ".join(f"{name} ({count:,})" for name, count in zip(names[:_LABELS], counts[:_LABELS], strict=True))
    more = f", and {spec.classes - _LABELS} more" if spec.classes > _LABELS else ""
    return [f"labels: {spec.classes} classes: {shown}{more}"]


def _memory(data: Data) -> str:
    splits = [split for split in (data.train, data.test) if split is not None]
    sides = [side for split in splits for side in (split.x, split.a) if side is not None]
    total = sum(example_bytes(tuple(side.shape), side.dtype) for side in sides) / 2**20
    held = isinstance(data.train.x, Tensor)
    return f"memory: {total:,.1f} MiB" if held else f"memory: made on access ({total:,.1f} MiB if it were held)"


def _suggestions(data: Data, low: float, high: float) -> list[str]:
    spec, found = data.spec, []
    if spec.kind == "image" and high - low < 0.1 * (spec.high - spec.low):
        found.append(
            f"the values span {low:g} to {high:g} of {spec.low:g} to {spec.high:g}: nearly no contrast; "
            f"if that is the whole range, say --range {low:g} {high:g}"
        )
    side = math.isqrt(spec.size)
    if spec.kind == "vector" and side >= 8 and side * side == spec.size:
        found.append(f"{spec.size} features = {side} × {side}: if these are flattened images, reshape them")
    if len(data.train) < 100:
        found.append(f"{len(data.train)} examples are few: expect a model that remembers them")
    if data.train.y is not None and spec.classes is not None:
        missing = int((torch.bincount(data.train.y, minlength=spec.classes) == 0).sum())
        if missing:
            found.append(f"{missing} of the {spec.classes} classes have no training example")
    return found
