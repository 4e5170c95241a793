"""What `evaluate` measures of models of pairs: each function makes the figures of one metric from a `Study`, and beside
it stands what it needs. The mathematics is in `metrics/`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from twofold.metrics import perceptual
from twofold.metrics.fcn_score import fcn_score, label_score
from twofold.metrics.record import Result, standard_error
from twofold.metrics.translation import (
    Distance,
    diversity,
    feature_distance,
    map_errors,
    negatives,
    pixel_agreement,
)
from twofold.study import Study

INPUTS, VARIANTS = 100, 20
"""Of the diversity of variants (Zhu et al. 2017, section 5)."""
COUPLES = 1_000
RANGE = "-1 to 1, mean over values"


# What they need.


def no_translation(study: Study) -> str | None:
    """Why nothing can be translated, or None."""
    if "translate" not in study.model.recipe.abilities:
        return "this model does not translate"
    return None if study.data.spec.input is not None else f"{study.data.name} is not pairs; read it as such (--pairs)"


def no_cycle(study: Study) -> str | None:
    """Why no cycle can be closed."""
    if "translate_back" not in study.model.recipe.abilities:
        return "this model translates in one direction only, or not at all"
    return no_translation(study)


def no_identity(study: Study) -> str | None:
    """Why maps between two sides cannot be applied to what they make."""
    if reason := no_cycle(study):
        return reason
    source, target = study.model.spec.input, study.model.spec
    if source is not None and source.shape != target.shape:
        return f"the two sides have shapes {source.shape} and {target.shape}, so no map takes its own side"
    return None


def no_target(study: Study) -> str | None:
    """Why the right answer of a translation is not known."""
    if reason := no_translation(study):
        return reason
    if not study.data.spec.paired:
        return f"the two sides of {study.data.name} do not belong together; give --data whose pairs do"
    return None


def no_photos_of_labels(study: Study) -> str | None:
    """Why no FCN-score can be measured."""
    if reason := no_target(study):
        return reason
    source = study.data.spec.input
    assert source is not None
    if source.palette is None:
        return f"the inputs of {study.data.name} are not label maps with a palette"
    if study.data.spec.shape[0] != 3:
        return f"the targets of {study.data.name} are not RGB photos"
    return _wrong_classes(study, len(source.palette))


def no_labels_of_photos(study: Study) -> str | None:
    """Why translations to label maps cannot be scored."""
    if reason := no_target(study):
        return reason
    palette = _label_palette(study)
    if palette is None:
        return "this model makes no label maps with a palette"
    return _wrong_classes(study, len(palette))


def no_couples(study: Study) -> str | None:
    """Why the two images of one code cannot be laid over each other."""
    if "couple" not in study.model.recipe.abilities:
        return "this model does not make pairs from one code"
    source, target = study.data.spec.input, study.data.spec
    if source is None:
        return f"{study.data.name} is not pairs; read it as such (--pairs)"
    if source.kind != "image" or source.shape != target.shape:
        return "it is for two sides that are images of one shape"
    return None


def _wrong_classes(study: Study, classes: int) -> str | None:
    wrong = [k for k in study.ignore if not 0 <= k < classes]
    if wrong:
        return f"class {wrong[0]} is to be ignored; the palette has classes 0 to {classes - 1}"
    return None if len(set(study.ignore)) < classes else "every class is to be ignored"


def _label_palette(study: Study) -> tuple[tuple[int, int, int], ...] | None:
    """Of the label maps that this model makes, by either direction."""
    if study.data.spec.palette is not None:
        return study.data.spec.palette
    back = "translate_back" in study.model.recipe.abilities
    return study.data.spec.input.palette if back and study.data.spec.input is not None else None


# The figures.


def photos_of_labels(study: Study) -> list[Result]:
    """FCN-scores of the translations."""
    source = study.data.spec.input
    assert source is not None and source.palette is not None
    true = study.classes(study.inputs, source.palette)
    return _with_protocol(
        study, fcn_score(study.segmenter, study.translations, true, real=study.real[0], split=study.split)
    )


def labels_of_photos(study: Study) -> list[Result]:
    """Scores of the label maps that the model makes of photos."""
    palette = _label_palette(study)
    assert palette is not None
    forward = study.data.spec.palette is not None
    made = study.translations if forward else study.translated(study.real[0], back=True)
    true = study.classes(study.real[0] if forward else study.inputs, palette)
    return _with_protocol(study, label_score(made, true, palette, ignore=study.ignore, split=study.split))


def _with_protocol(study: Study, results: list[Result]) -> list[Result]:
    shared = study.protocol(ignored=sorted(set(study.ignore)))
    return [replace(result, protocol={**shared, **result.protocol}) for result in results]


def l1_to_target(study: Study) -> list[Result]:
    """The distance of each translation to the target that belongs to its input."""
    return [study.mean("l1_to_target", map_errors(study.translations, study.real[0]), "lower", range=RANGE)]


def variant_distance(study: Study) -> list[Result]:
    """How different the translations of one input are, by every distance that there is here; beside it the distance of
    targets of different inputs."""
    count = min(INPUTS, study.count, len(study.inputs))
    made = _variants(study, study.inputs[:count])
    several = len(study.real[0]) // count
    real = study.real[0][: count * several].unflatten(0, (several, count)).transpose(0, 1) if several > 1 else None
    found = []
    for label, distance, said in _distances(study):
        values = diversity(made, distance)
        beside = None if real is None else float(diversity(real, distance).mean())
        name = study.name("variant_distance", f"{VARIANTS}variants", label, count=count)
        protocol = study.protocol(
            count=count, variants=VARIANTS, pairs="consecutive variants", uncertainty="standard error over inputs",
            **said,
        )  # fmt: skip
        found.append(Result(name, float(values.mean()), "higher", protocol, standard_error(values), beside))
    return found


def _variants(study: Study, a: Tensor) -> Tensor:
    """(inputs, variants, …), every one with a style or noise of its own."""
    model = study.model
    if "style_prior" not in model.recipe.abilities:
        made = model.translate_tensor(a, variants=2, seed=study.seed)
        if torch.equal(made[:, 0], made[:, 1]):  # a network without noise says the same each time
            return made[:, :1].expand(-1, VARIANTS, *made.shape[2:])
        return model.translate_tensor(a, variants=VARIANTS, seed=study.seed)
    styles = model.draw_styles(len(a) * VARIANTS, seed=study.seed).unflatten(0, (len(a), VARIANTS))
    return torch.cat([model.translate_tensor(a, style=styles[:, k], seed=study.seed) for k in range(VARIANTS)], dim=1)


def _distances(study: Study) -> Iterator[tuple[str, Distance, dict[str, Any]]]:
    """(name, distance, what the protocol says of it)."""
    yield "values", map_errors, {"distance": "mean absolute difference", "range": RANGE}
    if study.extractor.label != "pixels":
        extractor = study.extractor
        label = extractor.label or "inception"
        said = {"distance": "Euclidean, of features", **extractor.protocol}
        yield label, feature_distance(extractor.features), said
    spec = study.model.spec
    if spec.kind == "image" and spec.shape[0] in (1, 3) and min(spec.shape[1:]) >= 64 and perceptual.missing() is None:
        yield "lpips_alex_v0.1", perceptual.lpips, {"distance": "LPIPS 0.1, AlexNet"}


def cycle_errors(study: Study) -> list[Result]:
    """Of both cycles: input → target → input, and the reverse."""
    a, x = study.inputs, study.real[0]
    again_a = study.translated(study.translations, back=True)
    again_x = study.translated(study.translated(x, back=True))
    return [
        study.mean("cycle_error_input", map_errors(again_a, a), "lower", range=RANGE),
        study.mean("cycle_error_target", map_errors(again_x, x), "lower", range=RANGE),
    ]


def identity_errors(study: Study) -> list[Result]:
    """How much each of two maps changes what is already on its side."""
    a, x = study.inputs, study.real[0]
    return [
        study.mean("identity_error_target", map_errors(study.translated(x), x), "lower", range=RANGE),
        study.mean("identity_error_input", map_errors(study.translated(a, back=True), a), "lower", range=RANGE),
    ]


def couple_agreement(study: Study) -> list[Result]:
    """Whether the two images of one code show one thing: as they are, or one of them turned negative, whichever the
    data's mean images ask for."""
    a, x = study.model.couple_tensor(COUPLES, seed=study.seed)
    turned = negatives(study.inputs, study.real[0])
    values = pixel_agreement(-a if turned else a, x)
    other = torch.arange(len(x)).roll(1)
    apart = float(pixel_agreement(-a if turned else a, x[other]).mean())
    how = "negative" if turned else "same"
    said = {"relation": how, "threshold": "middle of the range", "note": {"of_different_codes": apart}}
    return [study.mean("pixel_agreement", values, "higher", how, **said)]
