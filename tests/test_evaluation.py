"""`evaluate`: what is measured of which model, what is kept, what is refused; and the extractors."""

from __future__ import annotations

import hashlib
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import twofold
from twofold import evaluation, extractors
from twofold.cli import main
from twofold.data import load as load_data
from twofold.errors import InputError
from twofold.evaluation import METRICS, STORED, availability, evaluate, results_table, stored_results
from twofold.metrics.record import compare_results

TINY = {"latent": 3, "width": 4, "batch_size": 16, "examples": 128}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Small runs, and a cache of their own: `vae` and `vae-gan` on digits, `gan` on a mixture, `factors` on sprites."""
    folder = tmp_path_factory.mktemp("evaluation")
    patch = pytest.MonkeyPatch()
    patch.setenv("TWOFOLD_CACHE", str(folder / "cache"))
    patch.setattr(extractors, "LEAST_EXAMPLES", 6_000)
    patch.setattr(extractors, "PASSES", 4)
    patch.setattr(evaluation, "CRITIC_STEPS", 20)
    patch.setattr(evaluation, "PARZEN_SAMPLES", 500)
    patch.setattr(evaluation, "FEW_LABELS", (1, 10))
    patch.setattr(evaluation, "FEW_LABEL_DRAWS", 2)
    made = {}
    for name, recipe, data, options in (
        ("vae", "vae", "digits", {"hidden": 8}),
        ("vae-gan", "vae-gan", "digits", {}),
        ("gan", "gan", "gaussians-8", {}),
        ("factors", "vae", "shapes-32", {"arch": "mlp", "size": 8}),
        ("clusters", "aae-clustering", "digits", {}),
    ):
        settings = {k: v for k, v in options.items() if k != "size"}
        read = {"size": options["size"]} if "size" in options else {}
        made[name] = twofold.train(
            recipe, data=data, out=folder / name, data_options=read, **(TINY | settings)
        ).run.path  # fmt: skip
    yield made
    patch.undo()


def names(found) -> list[str]:
    return [result.name for result in found.results]


def test_a_vae_is_measured_in_every_way_it_can_be_and_the_figures_are_kept(runs):
    found = evaluate(runs["vae"], examples=100)
    accuracy = found["fd"].protocol["extractor_accuracy_percent"]
    label = f"classifier_acc{accuracy:.1f}"
    assert 80 < accuracy <= 100
    assert {f"fd_100_test_{label}", "mse_100_test", "ssim_100_test_w7", "elbo_nats_100_test"} <= set(names(found))
    assert {f"coverage_k5_100_test_{label}", "iw50_bound_nats_100_test", "1nn_100_test_codes"} <= set(names(found))
    assert not found.left_out and len(set(names(found))) == len(found.results)
    for result in found.results:
        assert {"data", "data_sha256", "split", "count", "seed", "uncertainty"} <= set(result.protocol)
        assert np.isfinite(result.value) and (result.uncertainty is None or result.uncertainty >= 0)
    # An untrained model is worse than real data in the data's place, and the bounds are in order.
    assert found["fd"].value > 3 * found["fd"].reference > 0
    assert found["recall_k3"].value < found["recall_k3"].reference
    assert found["iw50_bound_nats"].value >= found["elbo_nats"].value
    elbo = -(found["rate_nats"].value + found["distortion_nats"].value)
    assert found["elbo_nats"].value == pytest.approx(elbo, rel=1e-5)
    model = twofold.load(runs["vae"])
    assert stored_results(model) == list(found.results)
    text = results_table(found.results).splitlines()
    assert len(text) == 1 + len(found.results) and text[0].split() == ["metric", "value", "real", "data", "better"]


def test_the_same_seed_gives_the_same_figures_and_another_replaces_nothing(runs):
    first = evaluate(runs["vae"], metrics="sliced", examples=50)
    assert evaluate(runs["vae"], metrics=["sliced"], examples=50).results == first.results
    other = evaluate(runs["vae"], metrics="sliced", examples=50, seed=1)
    assert other["swd"].value != first["swd"].value
    kept = [r for r in stored_results(twofold.load(runs["vae"])) if r.name == first["swd"].name]
    assert [r.protocol["seed"] for r in kept] == [0, 1]
    assert compare_results(first["swd"], other["swd"]).uncertainty > 0


def test_figures_are_those_of_the_models_own_verbs(runs):
    model = twofold.load(runs["vae"])
    data = load_data("digits")
    chosen = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))[:60]
    x = np.asarray(data.test.x[chosen][:, 0], dtype=np.float64)
    rec = model.reconstruct(x)
    expected = float(((rec - x) ** 2).mean()) / 8**2  # 16 grey levels are 2 in the model's range
    assert evaluate(model, metrics="mse", examples=60)["mse"].value == pytest.approx(expected, rel=1e-5)
    bound = model.log_prob(x, k=50, seed=0)["log_prob_nats"].mean()
    assert evaluate(model, metrics="iw_bound", examples=60)["iw50_bound_nats"].value == pytest.approx(bound, rel=1e-4)


def test_a_gan_of_a_mixture(runs):
    found = evaluate(runs["gan"], examples=200)
    assert {"modes_of_8_2500_test_3sigma", "fd_200_test_pixels"} <= set(names(found))
    assert found["modes_of_8"].reference == 8 and found["modes_of_8"].value < 8
    assert found["high_quality_share"].reference == pytest.approx(1 - np.exp(-4.5), abs=0.01)
    assert not [name for name in names(found) if name.startswith(("elbo", "mse", "ssim"))]


def test_hybrids_and_clusters_have_probes(runs):
    found = evaluate(runs["vae-gan"], metrics="discriminator_probes,few_labels", examples=100)
    assert found["linear_probe_100_test_discriminator"].value > 0.5  # even random blocks tell digits apart
    assert found["linear_probe_100_test_10labels_per_class_codes"].protocol["labels_per_class"] == 10
    found = evaluate(runs["clusters"], metrics="clusters,parzen", examples=100)
    assert 0.1 <= found["clustering_accuracy"].value <= found["purity"].value <= 1
    assert found["historical_parzen_nats"].protocol["historical"]


def test_disentanglement_of_sprites(runs, monkeypatch):
    monkeypatch.setattr("twofold.evaluation.VOTES", 150)
    monkeypatch.setattr("twofold.evaluation.TRAIN_VOTES", 100)
    monkeypatch.setattr("twofold.evaluation.FITTED_PICTURES", 300)
    found = evaluate(runs["factors"], metrics="beta_vae,mig,beta_vae_baselines", examples=20)
    scores = {name.rpartition("factors_")[2]: r.value for name, r in zip(names(found), found.results, strict=True)}
    assert scores["ground_truth"] == 1 and 0.1 < scores["raw_pixels"] < 0.9
    assert {"codes", "pca10", "ica10", "untrained"} <= set(scores)
    assert 0 <= found["mig"].value < 0.5


def test_a_metric_that_was_not_asked_for_may_fail_alone(runs, monkeypatch):
    monkeypatch.setattr("twofold.study.Study.samples", torch.zeros(50, 1, 8, 8))
    found = evaluate(runs["vae"], examples=50)
    assert "high_frequency" in found.left_out and "no contrast" in found.left_out["high_frequency"]
    assert found["precision_k3"].value <= 1 and found["coverage_k5"].value < 0.2  # a constant generator
    assert found["ms_ssim_diversity"].value == pytest.approx(0, abs=1e-6)
    with pytest.raises(InputError, match="high_frequency: the images have no contrast"):
        evaluate(runs["vae"], metrics="high_frequency", examples=50)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"metrics": "fid"}, "unknown metric 'fid'"),
        ({"metrics": "modes"}, "modes cannot be measured: the modes of digits are not known"),
        ({"metrics": "clusters"}, "this model cannot classify"),
        ({"metrics": "lpips"}, "images of 64 pixels or more"),
        ({"metrics": "beta_vae"}, "it can for shapes"),
        ({"examples": 10_000}, "digits has 3.. to compare with"),
        ({"features": "inception", "metrics": "frechet"}, "Inception"),
        ({"features": "faces", "metrics": "frechet"}, "unknown features 'faces'"),
        ({"data": "gaussians-8"}, "this model takes images"),
        ({"json": "nowhere/at/all.json"}, "there is no folder"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(runs, options, says):
    with pytest.raises(InputError, match=says) as refused:
        evaluate(runs["vae"], **options)
    assert "\n" not in str(refused.value)


def test_the_command_prints_a_table_and_writes_json(runs, tmp_path, capsys):
    path = str(runs["vae"])
    out = tmp_path / "figures.json"
    assert main(["evaluate", path, "--metrics", "mse", "--examples", "30", "--json", str(out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].startswith("mse_30_test ") and printed[1].endswith("lower")
    (record,) = json.loads(out.read_text())["results"]
    assert record["name"] == "mse_30_test" and record["protocol"]["count"] == 30
    assert main(["evaluate", path, "--metrics", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [metric.name for metric in METRICS]
    assert lines == availability(path)
    assert main(["evaluate", path, "--metrics", "mse,"]) == 2
    assert capsys.readouterr().err.startswith("twofold: unknown metric ''")


def test_damaged_results_are_refused(runs, tmp_path):
    model = twofold.load(runs["gan"])
    before = (runs["gan"] / STORED).read_bytes() if (runs["gan"] / STORED).exists() else None
    (runs["gan"] / STORED).write_text("[]")
    with pytest.raises(InputError, match="remove it"):
        evaluate(model, metrics="modes")
    if before is not None:
        (runs["gan"] / STORED).write_bytes(before)


# Extractors.


def test_the_classifier_is_trained_once_and_a_damaged_cache_is_said(runs, monkeypatch):
    data = load_data("digits")
    first = extractors.build_extractor(None, data)
    monkeypatch.setattr(extractors, "_train_classifier", lambda *_: pytest.fail("trained again"))
    again = extractors.build_extractor("classifier", data)
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(first.features(x), again.features(x)) and first.features(x).shape == (5, 128)
    assert again.probabilities(x).sum(1) == pytest.approx(1, abs=1e-5)
    assert first.protocol == again.protocol and first.label == again.label
    (cached,) = extractors.cache_folder().glob("classifier-*.safetensors")
    content = cached.read_bytes()
    cached.write_bytes(content[:100])
    with pytest.raises(InputError, match="cannot be read"):
        extractors.build_extractor("classifier", data)
    cached.write_bytes(content)


def test_vectors_and_unlabelled_images_are_compared_as_they_are():
    data = load_data(np.zeros((20, 8, 8), dtype=np.uint8))
    assert extractors.build_extractor(None, data).label == "pixels"
    with pytest.raises(InputError, match="no labels to train a classifier on; use --features pixels"):
        extractors.build_extractor("classifier", data)
    with pytest.raises(InputError, match="holds vectors"):
        extractors.build_extractor("classifier", load_data("gaussians-8"))


def test_inception_weights_are_used_only_if_they_are_the_published_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("TWOFOLD_CACHE", str(tmp_path))
    monkeypatch.delenv("TWOFOLD_INCEPTION", raising=False)
    with pytest.raises(InputError, match="--download, or name the file"):
        extractors.inception_weights()
    monkeypatch.setenv("TWOFOLD_INCEPTION", str(tmp_path / "weights.pth"))
    with pytest.raises(InputError, match="which is not a file"):
        extractors.inception_weights(download=True)
    (tmp_path / "weights.pth").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(InputError, match="checksum is another"):
        extractors.inception_weights()
    monkeypatch.setattr(extractors, "INCEPTION_SHA256", hashlib.sha256(b"right").hexdigest()[:8])
    (tmp_path / "weights.pth").write_bytes(b"right")
    assert extractors.inception_weights() == tmp_path / "weights.pth"


def test_a_download_that_fails_says_what_to_do(tmp_path, monkeypatch):
    def offline(*words, **options):
        raise OSError("no route\nto host")

    monkeypatch.setenv("TWOFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TWOFOLD_INCEPTION", raising=False)
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(InputError, match=r"no route to host.*name it in TWOFOLD_INCEPTION") as refused:
        extractors.inception_weights(download=True)
    assert "\n" not in str(refused.value)


def test_inception_features_give_the_published_names(runs, monkeypatch):
    """With a stand-in for the network, which is not here: what it is shown, and what its figures are called."""
    seen = []

    class Net(torch.nn.Module):
        def __init__(self, name, features_list, feature_extractor_weights_path):
            super().__init__()
            assert features_list == ["2048", "logits_unbiased"]

        def forward(self, x):
            seen.append(x)
            values = x.float().flatten(1)[:, :20]
            return values, values[:, :8] / 50

    package, module = ModuleType("torch_fidelity"), ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    package.__spec__ = ModuleSpec("torch_fidelity", None)
    module.FeatureExtractorInceptionV3 = Net
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)
    monkeypatch.setattr(extractors, "inception_weights", lambda download: Path("weights"))
    found = evaluate(runs["vae"], metrics="frechet,kernel,inception_score,manifold", features="inception", examples=64)
    assert names(found)[:3] == ["fid_64_test", "kid_64_test", "inception_score_64_test_1splits"]
    assert "precision_k3_64_test_inception" in names(found)
    assert all(x.dtype == torch.uint8 and x.shape[1:] == (3, 8, 8) for x in seen)
    assert found["fid"].protocol["resize"] == "bilinear as TensorFlow 1, to 299"
