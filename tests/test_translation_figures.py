"""Figures of translations in `evaluate` and `compare`: models whose answers are known, and refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import twofold
from twofold import recipes, study
from twofold.cli import main
from twofold.comparison import compare
from twofold.data import load, pair
from twofold.errors import InputError
from twofold.evaluation import METRICS, evaluate
from twofold.metrics.record import compare_results
from twofold.model import Model

PALETTE = ((0, 0, 0), (255, 0, 0), (0, 255, 0))
COLORS = torch.tensor([[-1.0, -1, -1], [0.6, -0.4, -0.4], [-0.4, -0.2, 0.6]])
"""Of photos of each class."""


@pytest.fixture(autouse=True)
def small(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TWOFOLD_CACHE", str(tmp_path_factory.getbasetemp() / "translation-cache"))
    monkeypatch.setattr(study, "SEGMENTER_STEPS", 40)


@pytest.fixture(scope="module")
def streets():
    """Label maps with a boundary at a random place, a line of unknown class at the top, and noisy photos of them."""
    random = np.random.RandomState(0)
    classes = (np.arange(16) >= random.randint(3, 13, (80, 1, 1))).astype(int) + np.ones((80, 16, 16), int)
    classes[:, 0] = 0
    maps = np.array(PALETTE, np.uint8)[classes]
    photos = (COLORS.numpy()[classes] + 0.2 * random.standard_normal((80, 16, 16, 3))).clip(-1, 1)
    data = pair(maps, ((photos + 1) * 127.5).astype(np.uint8), paired=True, holdout=0.4)
    given = replace(data.spec.input, palette=PALETTE)
    return replace(data, spec=replace(data.spec, input=given))


def built(name: str, data, **options) -> Model:
    torch.manual_seed(0)
    _, recipe = recipes.build(name, data.spec, {"width": 4} | options)
    return Model(recipe, recipe.nets)


def knowing(model: Model, **abilities) -> Model:
    """The model with other abilities."""
    changed = replace(model.recipe, abilities={**model.recipe.abilities, **abilities})
    return Model(changed, changed.nets)


def right(nets, a, *, z=None, generator=None):
    """The photo of a label map, without noise."""
    colors = torch.tensor(PALETTE) / 127.5 - 1
    nearest = (a[:, None] - colors[None, :, :, None, None]).square().sum(2).argmin(1)
    return COLORS[nearest].permute(0, 3, 1, 2)


def right_back(nets, x, *, z=None, generator=None):
    """The label map of a photo."""
    nearest = (x[:, None] - COLORS[None, :, :, None, None]).square().sum(2).argmin(1)
    return (torch.tensor(PALETTE) / 127.5 - 1)[nearest].permute(0, 3, 1, 2)


def test_fcn_and_label_scores_know_a_right_translation_from_an_untrained_one(streets):
    untrained = built("cyclegan", streets, blocks=1)
    knows = knowing(untrained, translate=right, translate_back=right_back)
    asked = {"data": streets, "metrics": "fcn_score,label_score,l1_to_target", "ignore": (0,)}
    good, bad = evaluate(knows, **asked), evaluate(untrained, **asked)
    accuracy = good["fcn_pixel_accuracy"]
    percent = accuracy.protocol["segmenter"]["pixel_accuracy_on_real_percent"]
    assert accuracy.name == f"fcn_pixel_accuracy_32_test_segmenter-acc{percent}" and percent > 85
    assert accuracy.reference == pytest.approx(percent / 100, abs=1e-3) and accuracy.protocol["ignored"] == [0]
    assert accuracy.value > 0.9 and accuracy.value > bad["fcn_pixel_accuracy"].value + 0.3
    assert good["labels_class_iou"].value > 0.99 > bad["labels_class_iou"].value + 0.3
    assert good["l1_to_target"].value < 0.2 < bad["l1_to_target"].value  # what is left is the noise
    assert compare_results(good["fcn_class_iou"], bad["fcn_class_iou"]).winner == "first"
    # The line at the top counts if it is not ignored: another measurement.
    whole = evaluate(knows, data=streets, metrics="label_score")
    with pytest.raises(InputError, match="cannot be compared"):
        compare_results(whole["labels_pixel_accuracy"], good["labels_pixel_accuracy"])


def test_distances_between_sets_are_measured_on_translations(streets):
    model = knowing(built("pix2pix", streets), translate=right)
    found = evaluate(model, data=streets, metrics="frechet,high_frequency")
    assert found["fd"].name.startswith("fd_32_test_translated_segmenter-acc")
    assert found["high_frequency_ratio"].value < 1  # without the noise of the photos
    assert found["fd"].protocol["samples"] == "translations of test inputs"
    rough = evaluate(built("pix2pix", streets), data=streets, metrics="frechet")
    assert rough["fd"].value > 2 * found["fd"].value


def test_variants_differ_by_their_styles_or_not_at_all():
    data = load("digits-color-digits")
    model = built("bicycle-gan", data, latent=2)

    def tinted(nets, a, *, z=None, generator=None):
        return z[:, :1, None, None].expand(len(a), 3, *a.shape[2:]) / 10

    found = evaluate(knowing(model, translate=tinted), data=data, metrics="variant_distance", features="pixels")
    (result,) = found.results
    assert result.name == "variant_distance_100_test_20variants_values"
    # The mean distance of two draws of N(0, 1) is 2/√π.
    assert result.value == pytest.approx(0.2 / np.pi**0.5, rel=0.05) and result.uncertainty < 0.05 * result.value
    assert result.reference > 0.1 and result.protocol["variants"] == 20
    (same,) = evaluate(built("cyclegan", data, blocks=1, identity_weight=0.0), data=data, metrics="variant_distance",
                       features="pixels").results  # fmt: skip
    assert same.value == 0 and same.uncertainty == 0
    (drops,) = evaluate(built("pix2pix", data), data=data, metrics="variant_distance", features="pixels").results
    assert drops.value > 0


def test_cycle_and_identity_errors_of_known_maps():
    data = load("affine-2d")
    assert not data.spec.paired

    def by(factor, shift):
        return lambda nets, a, *, z=None, generator=None: factor * a + shift

    model = knowing(built("cyclegan", data), translate=by(2, 0), translate_back=by(0.5, 0.25))
    found = evaluate(model, data=data, metrics="cycle_errors,identity_errors", examples=100)
    assert found["cycle_error_input"].value == pytest.approx(0.25, abs=1e-5)
    assert found["cycle_error_target"].value == pytest.approx(0.5, abs=1e-5)
    real = study.Study(model, data, 100)
    assert found["identity_error_target"].value == pytest.approx(float(real.real[0].abs().mean()), rel=1e-5)
    assert found["identity_error_input"].value == pytest.approx(float((0.25 - real.inputs / 2).abs().mean()), rel=1e-5)


def test_pixel_agreement_of_negatives():
    digits = load("digits").train.x[:300, 0].double().numpy()
    data = pair(digits, 16 - digits, paired=False, value_range=(0, 16))
    model = built("cogan", data)

    def pairs(nets, z):
        a = z[:, :1, None, None] + torch.linspace(-2, 2, 8).expand(len(z), 1, 8, 8)
        return a, -a

    def apart(nets, z):
        a, x = pairs(nets, z)
        return a, x.roll(1, 0)

    for couple, low, high in ((pairs, 1.0, 1.0), (apart, 0.3, 0.9)):
        (found,) = evaluate(knowing(model, couple=couple), data=data, metrics="couple_agreement").results
        assert found.name.startswith("pixel_agreement_1k_test_negative") and low <= found.value <= high
        assert 0.3 < found.protocol["note"]["of_different_codes"] < 0.9


@pytest.mark.parametrize(
    ("name", "data", "metric", "says"),
    [
        ("pix2pix", "digits-color-digits", "fcn_score", "not label maps with a palette"),
        ("pix2pix", "digits-color-digits", "label_score", "makes no label maps"),
        ("pix2pix", "digits-color-digits", "cycle_errors", "one direction only"),
        ("pix2pix", "digits-color-digits", "identity_errors", "one direction only"),
        ("cyclegan", "digits-color-digits", "identity_errors", "no map takes its own side"),
        ("pix2pix", "digits-color-digits", "couple_agreement", "does not make pairs from one code"),
        ("pix2pix", "digits-color-digits", "parzen", "cannot sample"),
        ("cyclegan", "affine-2d", "l1_to_target", "do not belong together"),
        ("vae", "digits", "variant_distance", "does not translate"),
    ],
)
def test_what_does_not_apply_is_refused_in_one_line(name, data, metric, says):
    loaded, own = load(data), {"identity_weight": 0.0} if name == "cyclegan" else {}
    with pytest.raises(InputError, match=says) as caught:
        evaluate(built(name, loaded, **own), data=loaded, metrics=metric)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"{metric} cannot be measured: ")
    with pytest.raises(InputError, match=says) as caught:
        compare([name], data=data, out="never", metrics=metric, options={"width": 4} | own)
    assert str(caught.value).startswith(f"{metric} can be measured of none of {name}: ")


def test_wrong_classes_and_other_inputs_are_refused(streets):
    model = built("pix2pix", streets)
    for ignore, says in (((3,), "classes 0 to 2"), ((0, 1, 2), "every class")):
        with pytest.raises(InputError, match=says):
            evaluate(model, data=streets, metrics="fcn_score", ignore=ignore)
    grey = pair(np.zeros((20, 16, 16), np.uint8), np.zeros((20, 16, 16, 3), np.uint8))
    with pytest.raises(InputError, match="inputs are images"):
        evaluate(model, data=grey)
    unpaired = replace(streets, spec=replace(streets.spec, paired=False))
    found = evaluate(built("cyclegan", unpaired, blocks=1), data=unpaired, metrics="cycle_errors", examples=8)
    assert len(found.results) == 2
    with pytest.raises(InputError, match="do not belong together"):
        evaluate(model, data=unpaired, metrics="fcn_score")


def test_translators_are_compared(tmp_path, capsys):
    asked = {"data": "digits-color-digits", "examples": 64, "batch_size": 16, "seeds": 1, "features": "pixels"}
    options = {"options": {"width": 4}, "own_options": {"cyclegan": {"blocks": 1, "identity_weight": 0.0}}}
    lines: list[str] = []
    record = compare(
        ["pix2pix-l1", "cyclegan"], out=tmp_path / "both", evaluate_examples=40, note=lines.append,
        metrics="frechet,l1_to_target,cycle_errors", **asked, **options,
    )  # fmt: skip
    rows = {row["name"]: row for row in record["figures"]}
    assert set(rows["l1_to_target_40_test"]["models"]) == {"pix2pix-l1", "cyclegan"}
    assert set(rows["cycle_error_input_40_test"]["models"]) == {"cyclegan"}
    assert any("pix2pix-l1-seed0: not measured: cycle_errors: " in line for line in lines)
    page = (tmp_path / "both" / "report.html").read_text()
    assert "Translations" in page and page.count("<img") == 1 + 3 + 2  # data; data and two translators; curves
    run = str(tmp_path / "both" / "cyclegan-seed0")
    assert main(["evaluate", run, "--metrics", "list"]) == 0
    listed = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert set(listed) == {metric.name for metric in METRICS}
    assert listed["cycle_errors"].endswith("[yes]") and "not label maps" in listed["fcn_score"]
    assert main(["evaluate", run, "--metrics", "l1_to_target", "--examples", "20", "--ignore", "1"]) == 0
    assert "l1_to_target_20_test" in capsys.readouterr().out
    kept = {r.name for r in twofold.evaluation.stored_results(twofold.load(run))}
    assert {"l1_to_target_20_test", "cycle_error_input_40_test"} <= kept
