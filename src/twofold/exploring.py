"""Verbs that show what codes mean: traverse, arithmetic, attributes, invert. Each writes a picture or arrays, and
returns a record of what it found with the file's name under "file"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twofold.data import Data
from twofold.errors import InputError
from twofold.model import Model
from twofold.using import (
    chosen,
    data_for,
    drawn,
    no_data,
    refuse_too_many,
    refuse_unable,
    samples_grid,
    seen,
    shuffled,
    write_result,
)

RANKED = 1000
"""Test examples over which code dimensions are ranked."""
AVERAGED = 10_000
"""The most training examples whose codes are averaged for attribute vectors (as many as in Larsen et al. 2016)."""
SHEET = 64
"""Candidates on a numbered sheet."""
COLUMNS = 12
"""The most attributes that are applied in one picture."""


# Traversals.


def traverse(
    model: Model,
    n: int = 10,
    *,
    steps: int = 9,
    reach: float = 3.0,
    example: int | None = None,
    data: Any = None,
    data_options: Mapping[str, Any] | None = None,
    label: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """One row for each of the `n` code dimensions that say most: it alone goes from -`reach` to `reach` in `steps`
    values, the rest of the code stays (Higgins et al. 2017, figure 1). A .png, or an .npz with `x` (n, steps, …).

    The code is that of test example number `example` of `data` (None: the run's own), or without one a draw of the
    prior with `seed`. Dimensions are ranked by their mean KL over test examples where posterior and prior are normal,
    by the variance of codes where there is only an encoder, and by their effect on what is decoded where there is no
    encoder or no data to encode.

    Returns {"file", "ranked_by", "start", "dimensions": [{"dimension", "value"}] of every dimension in order}.
    """
    refuse_unable(model, "interpolate")
    _refuse_numbers(steps=steps, reach=reach)
    loaded = _data_to_encode(model, data, data_options, needed=example is not None)
    z, own = _start(model, loaded, example, label, seed)
    refuse_too_many(model, max(min(n, len(z)) * steps, 32 * len(z)))
    values, ranked_by, short = _ranking(model, loaded, reach, own, seed)
    order = np.argsort(-values, kind="stable")
    rows, columns = order[:n].tolist(), np.linspace(-reach, reach, steps)
    x = model.traverse(z, dimensions=rows, values=columns.tolist(), labels=own)

    def picture() -> Any:
        if model.spec.kind != "image":
            return samples_grid(model, x.reshape(-1, *x.shape[2:]))
        from twofold.pictures import labelled_grid

        named = [(f"z{d}  {short} {values[d]:.3g}", seen(model, x[row])) for row, d in enumerate(rows)]
        return labelled_grid(named, columns=[f"{value:.3g}" for value in columns])

    name = f"traversal-seed{seed}.png" if example is None else f"traversal-example{example}.png"
    arrays = {"x": x, "dimensions": np.array(rows), "values": columns}
    return {
        "file": str(write_result(model, out, name, arrays, picture)),
        "ranked_by": ranked_by,
        "start": f"prior, seed {seed}" if example is None else f"example {example}",
        "dimensions": [{"dimension": int(d), "value": float(values[d])} for d in order],
    }


def _data_to_encode(model: Model, data: Any, data_options: Mapping[str, Any] | None, *, needed: bool) -> Data | None:
    """Data whose codes are asked for; None if it is not `needed` and the model cannot encode, or its own data is not
    to be had."""
    if data is None and data_options:
        raise no_data(data_options)
    if data is not None or needed:
        refuse_unable(model, "encode")
        return data_for(model, data, data_options)
    if "encode" not in model.abilities:
        return None
    try:
        return data_for(model, None, None)
    except InputError:
        return (
            None  # trained on arrays, or on files that are not here: a draw of the prior can be traversed all the same
        )


def _start(
    model: Model, loaded: Data | None, example: int | None, label: int | None, seed: int
) -> tuple[np.ndarray, int | None]:
    """The code to begin with, (latent,), and the label it is decoded with."""
    if example is None or loaded is None:
        if model.recipe.conditional and label is None:
            raise InputError(f"this model is conditional: give a label (--label), 0 to {(model.spec.classes or 1) - 1}")
        return model.draw_codes(1, seed=seed)[0], label
    x, y = _numbered(model, loaded, [example])
    own = int(y[0]) if model.recipe.conditional and y is not None else None
    return model.encode(x, labels=own)[0], own if label is None else label


def _numbered(model: Model, loaded: Data, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray | None]:
    """Examples of the test split by their place in it."""
    split = loaded.test or loaded.train
    for number in numbers:
        if not 0 <= number < len(split):
            raise InputError(f"there is no example {number}; {loaded.name} has 0 to {len(split) - 1} to test on")
    return chosen(model, loaded, split, torch.tensor(list(numbers)))


def _ranking(
    model: Model, loaded: Data | None, reach: float, label: int | None, seed: int
) -> tuple[np.ndarray, str, str]:
    """A number for each code dimension, what it is, and its short name."""
    if loaded is None:
        effects = model.code_effects(reach=reach, seed=seed, labels=label)
        return effects, f"squared change of the output from -{reach:g} to {reach:g}, 16 draws", "effect"
    split = loaded.test or loaded.train
    x, y = chosen(model, loaded, split, shuffled(len(split), seed)[:RANKED])
    labels = y if model.recipe.conditional else None
    if "code_rates" in model.recipe.abilities:
        return model.code_rates(x, labels=labels).mean(0), f"mean KL in nats, {len(x)} test examples", "KL"
    return model.encode(x, labels=labels).var(0), f"variance of codes, {len(x)} test examples", "var"


def _refuse_numbers(*, steps: int, reach: float) -> None:
    if steps < 2:
        raise InputError(f"steps is {steps}; a traversal has at least 2")
    if not 0 < reach < float("inf"):
        raise InputError(f"reach is {reach}; give a number above 0")


# Arithmetic.


def arithmetic(
    model: Model,
    plus: Sequence[Sequence[int]] = (),
    minus: Sequence[Sequence[int]] = (),
    *,
    noise: float = 0.25,
    neighbours: int = 8,
    data: Any = None,
    data_options: Mapping[str, Any] | None = None,
    label: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Sums and differences of concepts, each the mean code of a few exemplars (three in Radford et al. 2016, section
    6.3.2), decoded: the result, and `neighbours` of it at uniform noise up to ±`noise` in every dimension.

    Exemplars are named by number: of a test example of `data` (None: the run's own) for a model that can encode, of a
    sample with `seed` (the n-th of `twofold sample --seed`) for one that cannot. Without any `plus`, a sheet of the
    first candidates with their numbers is written instead. A conditional model needs a `label` to decode with; its
    samples are that label's.

    A .png, or an .npz with `x` (1 + neighbours, …), the result first, and its code `z`.
    Returns {"file", "exemplars", "plus", "minus", "noise"}.
    """
    if not 0 <= noise < float("inf") or neighbours < 0:
        raise InputError(f"noise is {noise} and neighbours {neighbours}; both start at 0")
    if minus and not plus:
        raise InputError("give at least one concept to add (--plus) before one to subtract")
    for concept in (*plus, *minus):
        if not concept:
            raise InputError("a concept is empty; name at least one exemplar, three by custom")
    refuse_unable(model, "interpolate")
    if model.recipe.conditional and label is None:
        raise InputError(f"this model is conditional: give a label (--label), 0 to {(model.spec.classes or 1) - 1}")
    source = _Exemplars(model, data, data_options, label, seed)
    if not plus:
        return _sheet(model, source, out)
    signed = [("+", concept) for concept in plus] + [("−", concept) for concept in minus]
    found = [(sign, *source.take(concept)) for sign, concept in signed]
    means = [codes.mean(0) for _, _, codes in found]
    total = np.sum([mean if sign == "+" else -mean for (sign, _, _), mean in zip(found, means, strict=True)], axis=0)
    around = np.random.default_rng(seed).uniform(-noise, noise, (neighbours, len(total)))
    z = np.concatenate([total[None], total + around]).astype(np.float32)
    x = model.decode(z, labels=label)

    def picture() -> Any:
        if model.spec.kind != "image":
            return samples_grid(model, x)
        from twofold.pictures import labelled_grid

        shown = model.decode(np.stack(means), labels=label)
        rows = [
            (f"{sign} {' '.join(map(str, concept))} | mean", seen(model, np.concatenate([own, shown[k : k + 1]])))
            for k, ((sign, concept), (_, own, _)) in enumerate(zip(signed, found, strict=True))
        ]
        rows.append(("= result", seen(model, x[:1])))
        wide = max(len(concept) for _, concept in signed) + 1
        rows += [(f"± {noise:g}", seen(model, x[k : k + wide])) for k in range(1, len(x), wide)]
        return labelled_grid(rows)

    file = write_result(model, out, f"arithmetic-seed{seed}.png", {"x": x, "z": z[0]}, picture)
    concepts = {"plus": [list(c) for c in plus], "minus": [list(c) for c in minus]}
    return {"file": str(file), "exemplars": source.words, **concepts, "noise": noise}


class _Exemplars:
    """Candidates by number, with their codes: test examples where the model encodes, samples where it does not."""

    def __init__(self, model: Model, data: Any, data_options: Mapping[str, Any] | None, label: int | None, seed: int):
        self.model, self.label, self.seed = model, label, seed
        self.loaded: Data | None = None
        if "encode" in model.abilities:
            self.loaded = data_for(model, data, data_options)
        elif data is not None or data_options:
            raise InputError(
                "this model cannot encode, so its exemplars are samples by their number; leave out --data, use --seed"
            )

    @property
    def words(self) -> str:
        return f"samples of seed {self.seed}" if self.loaded is None else f"test examples of {self.loaded.name}"

    @property
    def count(self) -> int:
        return SHEET if self.loaded is None else min(SHEET, len(self.loaded.test or self.loaded.train))

    def take(self, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Examples and codes."""
        model = self.model
        if self.loaded is not None:
            x, y = _numbered(model, self.loaded, numbers)
            return x, model.encode(x, labels=y if model.recipe.conditional else None)
        if min(numbers) < 0 or max(numbers) >= 2**20:
            raise InputError(f"there is no sample {min(numbers)} or {max(numbers)}; give numbers from 0 to 2^20 - 1")
        codes = model.draw_codes(max(numbers) + 1, seed=self.seed)[list(numbers)]
        return model.decode(codes, labels=self.label), codes


def _sheet(model: Model, source: _Exemplars, out: str | Path | None) -> dict[str, Any]:
    """The first candidates, numbered."""
    if model.spec.kind != "image":
        raise InputError("a sheet of candidates is for images; name exemplars of vectors by their number (--plus)")
    x, _ = source.take(range(source.count))

    def picture() -> Any:
        from twofold.pictures import labelled_grid

        rows = [(str(k), seen(model, x[k : k + 8])) for k in range(0, len(x), 8)]
        return labelled_grid(rows, columns=[f"+ {k}" for k in range(min(8, len(x)))])

    file = write_result(model, out, "candidates.png", {"x": x}, picture)
    return {"file": str(file), "exemplars": source.words, "plus": [], "minus": []}


# Attributes.


def attributes(
    model: Model,
    n: int = 8,
    *,
    data: Any = None,
    data_options: Mapping[str, Any] | None = None,
    strength: float = 1.0,
    seed: int = 0,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Attribute vectors from the labels of `data`, applied to `n` test examples: a column for the example, one for its
    reconstruction, and one for each label with `strength` times its vector added to the code.

    A label's vector is the mean code of the training examples that have it minus the mean code of the others (Larsen et
    al. 2016, section 4.2), over at most 10,000 of them drawn with `seed`. A .png, or an .npz with `vectors` (labels,
    latent), `values` (labels,), `x` (n, …) and `x_changed` (n, labels, …).

    Returns {"file", "examples", "strength", "attributes": [{"label", "name", "examples", "length"}]}.
    """
    refuse_unable(model, "encode")
    if not np.isfinite(strength):
        raise InputError(f"strength is {strength}; give a finite number")
    loaded = data_for(model, data, data_options)
    if loaded.train.y is None:
        raise InputError(f"{loaded.name} has no labels, and attribute vectors come from labels; see --labels")
    x, y = chosen(model, loaded, loaded.train, shuffled(len(loaded.train), seed)[:AVERAGED])
    assert y is not None
    vectors = model.attribute_vectors(x, y, labels=y if model.recipe.conditional else None)
    kept = list(vectors)[:COLUMNS]
    refuse_too_many(model, n * len(kept))
    few, own = drawn(model, loaded, n, seed)
    labels = own if model.recipe.conditional else None
    codes = model.encode(few, labels=labels)
    changed = [model.decode(codes + strength * vectors[k], labels=labels) for k in kept]
    x_rec = model.decode(codes, labels=labels)

    def picture() -> Any:
        if model.spec.kind != "image":
            return samples_grid(model, np.concatenate(changed), reference=few)
        from twofold.pictures import labelled_grid

        rows = [("", seen(model, np.stack([few[k], x_rec[k], *(c[k] for c in changed)]))) for k in range(n)]
        return labelled_grid(rows, columns=["x", "rec", *(f"+ {_name(loaded, k)}" for k in kept)])

    arrays = {
        "vectors": np.stack(list(vectors.values())), "values": np.array(list(vectors)),
        "x": few, "x_changed": np.stack(changed, axis=1),
    }  # fmt: skip
    file = write_result(model, out, f"attributes-seed{seed}.png", arrays, picture)
    found = [
        {"label": k, "name": _name(loaded, k), "examples": int((y == k).sum()), "length": float(np.linalg.norm(v))}
        for k, v in vectors.items()
    ]
    return {"file": str(file), "examples": len(x), "strength": strength, "attributes": found}


def _name(loaded: Data, label: int) -> str:
    return loaded.spec.class_names[label] if loaded.spec.class_names else str(label)


# Inversion.


def invert(
    model: Model,
    n: int = 8,
    *,
    data: Any = None,
    data_options: Mapping[str, Any] | None = None,
    steps: int = 300,
    restarts: int = 4,
    learning_rate: float = 0.1,
    feature_weight: float = 0.0,
    seed: int = 0,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """`n` test examples of `data` (None: the run's own), and below each what the model decodes from the code that
    optimisation found for it: see `Model.invert`. A .png, or an .npz with `x`, `x_rec` and `z`.

    Returns {"file", "examples", "steps", "restarts", "squared_error_mean" (per example, in the model's range),
    "pixel_error" (the same, per value), "squared_error": [of each example]}.
    """
    refuse_unable(model, "decode")
    x, y = drawn(model, data_for(model, data, data_options), n, seed)
    labels = y if model.recipe.conditional else None
    found = model.invert(
        x, steps=steps, restarts=restarts, seed=seed, labels=labels, learning_rate=learning_rate,
        feature_weight=feature_weight,
    )  # fmt: skip
    x_rec, error = model.decode(found["z"], labels=labels), found["squared_error"]

    def picture() -> Any:
        if model.spec.kind != "image":
            return samples_grid(model, x_rec, reference=x)
        from twofold.pictures import labelled_grid

        errors = [f"{value:.2f}" for value in error]
        return labelled_grid([("x", seen(model, x)), ("inverted", seen(model, x_rec))], columns=errors)

    file = write_result(model, out, f"inversions-seed{seed}.png", {"x": x, "x_rec": x_rec, "z": found["z"]}, picture)
    return {
        "file": str(file), "examples": n, "steps": steps, "restarts": restarts,
        "squared_error_mean": float(error.mean()), "pixel_error": float(error.mean() / model.spec.size),
        "squared_error": [float(value) for value in error],
    }  # fmt: skip
