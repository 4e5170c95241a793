"""Anomaly scores, their areas and thresholds against known answers, and training on some classes."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import nn

import twofold
from twofold.data import keep_classes, load
from twofold.errors import InputError
from twofold.metrics.detection import detection, threshold
from twofold.metrics.novelty import knn_distance, mahalanobis
from twofold.model import Model
from twofold.recipe import Recipe
from twofold.scoring import SCORES, classify, score
from twofold.spec import Spec

# Areas and thresholds.


@pytest.mark.parametrize("ties", [False, True])
def test_areas_are_those_of_scikit_learn(ties):
    random = np.random.default_rng(0)
    anomalous = random.random(300) < 0.2
    scores = random.standard_normal(300) + anomalous
    scores = scores.round() if ties else scores
    found = detection(torch.from_numpy(scores), torch.from_numpy(anomalous))
    assert found["auroc"] == pytest.approx(roc_auc_score(anomalous, scores), abs=1e-12)
    assert found["aupr"] == pytest.approx(average_precision_score(anomalous, scores), abs=1e-12)


def test_limit_cases_of_the_areas():
    labels = torch.tensor([False] * 50 + [True] * 10)
    perfect = detection(labels.double(), labels)
    assert perfect == {"auroc": 1.0, "auroc_se": 0.0, "aupr": 1.0, "aupr_se": 0.0}
    assert detection(-labels.double(), labels)["auroc"] == 0.0
    constant = detection(torch.zeros(60), labels)
    assert constant["auroc"] == 0.5 and constant["aupr"] == pytest.approx(1 / 6)
    for scores, anomalous, says in (
        (torch.zeros(3), torch.zeros(3, dtype=torch.bool), "0 of 3 examples are anomalies"),
        (torch.zeros(3), torch.ones(3, dtype=torch.bool), "both kinds are needed"),
        (torch.tensor([0.0, math.nan]), torch.tensor([True, False]), "finite"),
        (torch.zeros(2), torch.zeros(3, dtype=torch.bool), "give"),
    ):
        with pytest.raises(InputError, match=says):
            detection(scores, anomalous)


def test_two_gaussians_have_the_known_area_and_its_standard_error():
    """AUROC of N(1, 1) against N(0, 1) is Φ(1/√2); its standard error is Hanley & McNeil's, with Q₁ and Q₂ exact."""
    random, m, n = np.random.default_rng(0), 400, 600
    labels = np.arange(m + n) < m
    scores = random.standard_normal(m + n) + labels
    found = detection(torch.from_numpy(scores), torch.from_numpy(labels), resamples=400)
    area = stats.norm.cdf(1 / math.sqrt(2))
    # P(one anomaly beats two normals): the orthant of a bivariate normal with correlation ½.
    q = stats.multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]]).cdf([1 / math.sqrt(2)] * 2)
    error = math.sqrt((area * (1 - area) + (m - 1 + n - 1) * (q - area**2)) / (m * n))
    assert abs(found["auroc"] - area) < 3 * error
    assert found["auroc_se"] == pytest.approx(error, rel=0.15)


def test_a_threshold_keeps_its_promise():
    assert threshold(torch.arange(1.0, 20.0), 0.1) == 18.0
    assert threshold(torch.arange(1.0, 10.0), 0.1) == 9.0
    with pytest.raises(InputError, match="8 normal examples cannot promise .* 0.1; at least 9 can"):
        threshold(torch.arange(8.0), 0.1)
    for rate in (0.0, 1.0, math.nan):
        with pytest.raises(InputError, match="between 0 and 1"):
            threshold(torch.arange(8.0), rate)
    draws = torch.randn(4000, 40, generator=torch.Generator().manual_seed(0))
    alarms = torch.tensor([float(row[0] > threshold(row[1:], 0.1)) for row in draws])
    assert alarms.mean().item() == pytest.approx(0.1, abs=3 * math.sqrt(0.09 / 4000))  # (n + 1)·0.1 is whole


def test_distances_are_those_of_the_definition():
    random = np.random.default_rng(0)
    x, reference = random.standard_normal((7, 3)), random.standard_normal((500, 3)) * [1, 5, 0.2] + 100
    distances = np.sort(np.linalg.norm(x[:, None] - reference[None], axis=2), axis=1)
    found = knn_distance(torch.from_numpy(x), torch.from_numpy(reference), k=4)
    np.testing.assert_allclose(found, distances[:, 3])
    with pytest.raises(InputError, match="k is 9 and there are 8"):
        knn_distance(torch.zeros(1, 2), torch.zeros(8, 2), k=9)
    many = random.multivariate_normal([1, -2], [[4, 1], [1, 2]], 200_000)
    at = np.array([[1, -2], [3, 0], [1, 1.0]])
    exact = np.sqrt(np.einsum("ni,ij,nj->n", at - [1, -2], np.linalg.inv([[4, 1], [1, 2]]), at - [1, -2]))
    np.testing.assert_allclose(mahalanobis(torch.from_numpy(at), torch.from_numpy(many)), exact, atol=0.02)
    few = mahalanobis(torch.randn(3, 50), torch.randn(10, 50))
    assert few.isfinite().all()
    with pytest.raises(InputError, match="at most 4,096 features"):
        mahalanobis(torch.zeros(1, 5000), torch.zeros(3, 5000))


# Some classes of the data.


def test_classes_are_parts_of_the_whole_splits():
    whole, some = load("digits"), load("digits", classes=(3, "7"))
    for name in ("train", "test"):
        split, kept = getattr(whole, name), getattr(some, name)
        own = (split.y == 3) | (split.y == 7)
        assert torch.equal(kept.x, split.x[own]) and torch.equal(kept.y, split.y[own])
    assert some.spec == whole.spec and some.fingerprint != whole.fingerprint
    assert some.fingerprint == keep_classes(whole, [7, 3, 7]).fingerprint
    assert any("kept classes 3, 7" in note for note in some.notes)
    whole, some = load("gaussians-8"), load("gaussians-8", classes=[2])
    assert torch.equal(some.modes, whole.modes[2:3]) and len(some.train) == int((whole.train.y == 2).sum())


def test_names_choose_classes_and_vectors_are_standardised_by_what_is_left():
    x = np.array([[float(k), 100.0 * (k % 2)] for k in range(40)], dtype=np.float32)
    y = np.array(["cat", "dog"])[np.arange(40) % 2]
    data = load((x, y), classes=["dog"], holdout=0.1)
    assert data.spec.class_names == ("cat", "dog") and set(data.train.y.tolist()) == {1}
    assert data.spec.mean[0] == pytest.approx(data.train.x[:, 0].mean().item())
    assert data.spec.mean[1] == pytest.approx(100.0) and data.spec.std[1] == 1.0
    assert len(load((x, y), classes=[0], holdout=0.0).train) == 20


@pytest.mark.parametrize(
    ("source", "classes", "says"),
    [
        ("digits", [10], "digits has no class 10; it has classes 0 to 9"),
        ("digits", ["x"], "digits has no class 'x'"),
        ("digits", [-1], "no class -1"),
        ("digits", [True], "no class True"),
        ("digits", [], "give a list of one class or more"),
        ("digits", "34", "give a list"),
        ((np.zeros((9, 3), dtype=np.float32), np.array(["cat", "dog", "dog"] * 3)), ["dgo"], "did you mean 'dog'"),
        ((np.zeros((9, 3), dtype=np.float32), np.array([0, 2, 2] * 3)), [1], "no training example of class 1"),
        (np.zeros((9, 3), dtype=np.float32), [0], "has no labels to choose by"),
    ],
)
def test_classes_that_cannot_be_kept_are_refused(source, classes, says):
    with pytest.raises(InputError, match=says):
        load(source, classes=classes)


# Scores of a model that is known.


def known(**more) -> Model:
    """Codes are the vectors themselves; the discriminator's logit is -‖x‖², its features are x; the reconstruction is
    the first value with zeros."""
    net = nn.Linear(1, 1)

    def draw(nets, n, *, generator):
        return torch.randn(n, 2, generator=generator)

    abilities = {
        "prior": draw,
        "sample": lambda nets, n, *, y=None, generator: draw(nets, n, generator=generator),
        "encode": lambda nets, x, *, y=None: x,
        "decode": lambda nets, z, *, y=None: z,
        "reconstruct": lambda nets, x, *, y=None: x * torch.tensor([1.0, 0.0]),
        "judge": lambda nets, x, *, y=None: -x.square().sum(1),
        "features": lambda nets, x, *, y=None: x,
    }
    spec = Spec("vector", (2,), classes=2, layout="D", dtype="float32")
    return Model(Recipe((), spec, abilities | more), nn.ModuleDict({"net": net}))


def ring(n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Normal examples (label 0) around the origin, anomalies (label 1) at a distance of 10."""
    random, y = np.random.default_rng(0), np.arange(n) % 2
    angle = random.uniform(0, 2 * np.pi, n)
    far = 10 * np.stack([np.cos(angle), np.sin(angle)], 1)
    return (random.standard_normal((n, 2)) * 0.5 + y[:, None] * far).astype(np.float32), y


def test_scores_separate_what_is_far_and_the_record_says_how_well(tmp_path):
    x, y = ring()
    record = score(
        known(), data=(x, y), data_options={"holdout": 0.5}, normal=[0], false_alarm=0.1, out=tmp_path / "s", seed=1
    )
    columns = record["scores"]
    assert list(columns) == [
        "squared_error", "negative_logit", "code_knn5", "code_mahalanobis", "feature_knn5", "feature_mahalanobis",
    ]  # fmt: skip
    assert record["normal"] == [0] and record["calibration"]["on"] == "half of the normal examples scored"
    for name in ("negative_logit", "code_knn5", "code_mahalanobis", "feature_knn5", "feature_mahalanobis"):
        assert columns[name]["auroc"] == columns[name]["aupr"] == columns[name]["detection_rate"] == 1.0
        assert columns[name]["false_alarm_rate"] < 0.3
    # The second value alone is lost in reconstruction: an anomaly on the first axis is not seen.
    assert 0.6 < columns["squared_error"]["auroc"] < 1 and columns["squared_error"]["auroc_se"] > 0
    assert json.loads((tmp_path / "s" / "scores.json").read_text()) == record
    rows = list(csv.DictReader((tmp_path / "s" / "scores.csv").read_text().splitlines()))
    test = load((x, y), holdout=0.5).test
    assert len(rows) == record["examples"] == len(test)
    assert (
        sum(int(r["calibration"]) for r in rows) == record["calibration"]["examples"] == int((test.y == 0).sum()) // 2
    )
    for row in rows:
        own = test.x[int(row["index"])]
        assert float(row["squared_error"]) == pytest.approx(own[1].item() ** 2, rel=1e-4, abs=1e-6)
        assert float(row["negative_logit"]) == pytest.approx(own.square().sum().item(), rel=1e-4)
        assert int(row["normal"]) == 1 - int(row["label"])
        alarm = float(row["negative_logit"]) > columns["negative_logit"]["threshold"]
        assert int(row["negative_logit_alarm"]) == alarm or math.isclose(
            float(row["negative_logit"]), columns["negative_logit"]["threshold"], rel_tol=1e-6
        )
    aside = [float(r["negative_logit"]) for r in rows if r["calibration"] == "1"]
    assert np.mean(np.array(aside) > columns["negative_logit"]["threshold"] * (1 + 1e-6)) <= 0.1
    assert not (tmp_path / "s" / "most-anomalous.png").exists()


def test_anogan_and_inversion_are_their_formulas(tmp_path):
    x, y = ring(40)
    found = score(known(), data=(x, y), scores=["anogan"], out=tmp_path / "a")
    test = load((x, y)).test.x.numpy()
    assert found["scores"]["anogan0.1"]["mean"] == pytest.approx(np.abs(test[:, 1]).mean(), rel=1e-4)
    blind = known()
    for ability in ("encode", "reconstruct"):
        del blind.recipe.abilities[ability]
    found = score(blind, data=(x, y), scores=["inversion"], steps=400, out=tmp_path / "b")
    assert found["scores"]["inversion400_squared_error"]["mean"] < 1e-3
    with pytest.raises(InputError, match="cannot give the score 'reconstruction'; it can give inversion"):
        score(blind, data=(x, y), scores=["reconstruction"])


def test_without_labels_there_is_no_area_but_a_threshold(tmp_path):
    x, _ = ring(400)
    found = score(known(), data=x, split="all", false_alarm=0.2, out=tmp_path / "a")["scores"]["negative_logit"]
    assert "auroc" not in found and found["alarm_rate"] == pytest.approx(0.2, abs=0.1)


def test_likelihood_scores_are_the_models_own(tmp_path):
    _, recipe = twofold.recipes.build("vae", Spec("vector", (2,), layout="D", dtype="float32"), {"width": 8})
    model, x = Model(recipe, recipe.nets), ring(40)[0]
    found = score(model, data=x, scores=["elbo", "iw_bound"], draws=7, seed=3, out=tmp_path / "a")["scores"]
    test = load(x).test.x.numpy()
    bound = model.elbo(test, seed=3)
    assert found["negative_elbo_nats"]["mean"] == pytest.approx(
        (bound["rate_nats"] + bound["distortion_nats"]).mean(), rel=1e-5
    )
    expected = -model.log_prob(test, k=7, seed=3)["log_prob_nats"].mean()
    assert found["negative_iw7_nats"]["mean"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"scores": ["elbw"]}, "unknown score 'elbw'; did you mean 'elbo'"),
        ({"scores": ["elbo"]}, "cannot give the score 'elbo'; it can give reconstruction, discriminator"),
        ({"by": "anogan"}, "unknown score to sort by 'anogan'"),
        ({"split": "valid"}, "unknown split 'valid'"),
        ({"n": 0}, "n is 0"),
        ({"neighbours": 0}, "neighbours is 0"),
        ({"neighbours": 10_000}, "k is 10000 and there are"),
        ({"false_alarm": 1.0}, "rate of false alarms is 1.0"),
        ({"false_alarm": 0.001, "normal": [0]}, "cannot promise"),
        ({"normal": [2]}, "has no class 2"),
        ({"normal": []}, "give a list of one class or more"),
    ],
)
def test_scores_refuse_what_cannot_be_and_write_nothing(tmp_path, given, says):
    with pytest.raises(InputError, match=says):
        score(known(), data=ring(), **given, out=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_score_that_is_not_finite_is_named(tmp_path):
    broken = known(judge=lambda nets, x, *, y=None: x[:, 0] / 0)
    with pytest.raises(InputError, match="score 'discriminator' of example 0 is not finite"):
        score(broken, data=ring(), out=tmp_path / "s")


def test_every_score_says_what_it_needs():
    assert all(set(s.needs) <= {*twofold.recipe.ABILITIES, *twofold.recipe.PARTS} for s in SCORES.values())


# Classes.


def test_classification_reports_classes_and_clusters(tmp_path):
    """Cluster 1 holds label 0 and the other way round: wrong as a class, right as a cluster."""
    x, y = ring()
    far = known(
        classify=lambda nets, x, *, y=None: nn.functional.one_hot((x.norm(dim=1) < 4).long(), 3).float(),
    )
    record = classify(far, data=(x, y), out=tmp_path / "c.csv")
    assert record["accuracy"] == 0.0 and record["cluster_accuracy"] == 1.0 and record["classes"] == 3
    rows = list(csv.DictReader((tmp_path / "c.csv").read_text().splitlines()))
    assert len(rows) == 40 and all(int(r["class"]) == 1 - int(r["label"]) and r["p2"] == "0.0" for r in rows)
    classify(far, data=(x, y), out=tmp_path / "c.json")
    columns = json.loads((tmp_path / "c.json").read_text())["columns"]
    assert columns["class"] == [int(r["class"]) for r in rows]
    with pytest.raises(InputError, match="cannot classify"):
        classify(known(), data=x)
    with pytest.raises(InputError, match="give a .csv or a .json"):
        classify(far, data=x, out=tmp_path / "c.png")
