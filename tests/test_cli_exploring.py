"""The verbs that explore codes and score examples, as a user types and mistypes them."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import twofold
from twofold.cli import main
from twofold.training import command, prepare

TINY = ["--latent", "3", "--width", "4", "--batch-size", "8", "--examples", "64"]


def train(recipe: str, out: Path, *more: str, data: str = "grey.npz") -> None:
    assert main(["train", recipe, "--data", data, "--out", str(out), *TINY, *more]) == 0


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Runs of labelled 8×8 images: `vae` on classes 0 and 1 of three, `both` (vae-gan) and conditional `vae` on all,
    `gan` without an encoder, `clusters`, and `plane`, a vae of vectors."""
    folder = tmp_path_factory.mktemp("explore")
    random = np.random.RandomState(0)
    np.savez(folder / "grey.npz", x=random.randint(0, 256, (120, 8, 8), dtype=np.uint8), y=np.arange(120) % 3)
    np.savez(folder / "plain.npz", x=random.randint(0, 256, (40, 8, 8), dtype=np.uint8))
    np.savez(folder / "flat.npz", x=random.randn(60, 2).astype(np.float32), y=np.arange(60) % 2)
    (folder / "file").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train("vae", folder / "vae", "--hidden", "5", "--classes", "0,1", "--holdout", "0.5")
        train("vae-gan", folder / "both", "--hidden", "5")
        train("vae", folder / "labelled", "--hidden", "5", "--conditional")
        train("gan", folder / "gan")
        train("aae-clustering", folder / "clusters", "--hidden", "5", "--clusters", "4")
        train("vae", folder / "plane", data="flat.npz")
    return folder


@pytest.fixture
def here(work, monkeypatch) -> Path:
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def answer(here, capsys) -> Callable[..., str]:
    def ask(*words: str) -> str:
        capsys.readouterr()
        assert main(list(words)) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return ask


@pytest.fixture
def refused(here, capsys) -> Callable[..., None]:
    """Status 2, one line on stderr, nothing on stdout, nothing written."""

    def check(words: list[str], says: str) -> None:
        before = sorted(here.rglob("*"))
        capsys.readouterr()
        assert main(words) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and err.startswith("twofold: "), (out, err)
        assert re.search(says, err), f"{says!r} is not in {err!r}"
        assert sorted(here.rglob("*")) == before

    return check


def png(path: Path | str) -> tuple[int, int]:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return picture.size


@pytest.mark.parametrize(
    "words",
    [
        ["traverse", "vae", "-n", "2", "--steps", "3"],
        ["traverse", "vae", "--example", "3", "--reach", "2"],
        ["traverse", "gan", "--seed", "4"],
        ["traverse", "labelled", "--label", "1"],
        ["traverse", "labelled", "--example", "0"],
        ["traverse", "plane"],
        ["arithmetic", "both", "--plus", "0", "1", "2", "--minus", "3", "4", "--plus", "5"],
        ["arithmetic", "both"],
        ["arithmetic", "gan", "--plus", "70", "1", "--neighbours", "0"],
        ["arithmetic", "labelled", "--plus", "1", "--label", "2"],
        ["arithmetic", "plane", "--plus", "1", "--minus", "2"],
        ["attributes", "both", "-n", "3", "--strength", "2"],
        ["attributes", "labelled", "-n", "3", "--data", "grey.npz"],
        ["attributes", "plane", "-n", "3"],
        ["invert", "gan", "-n", "3", "--steps", "5", "--restarts", "2"],
        ["invert", "both", "-n", "2", "--steps", "3", "--feature-weight", "0.1"],
        ["invert", "labelled", "-n", "2", "--steps", "3"],
        ["invert", "plane", "-n", "2", "--steps", "3"],
    ],
    ids=" ".join,
)
def test_a_picture_is_written_and_repeats(answer, tmp_path, words):
    for name in ("a.png", "b.png"):
        out = answer(*words, "--out", str(tmp_path / name))
        assert out.splitlines()[-1] == str(tmp_path / name)
        assert min(png(tmp_path / name)) >= 50
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    record = json.loads(answer(*words, "--json", "--out", str(tmp_path / "c.npz")))
    assert record["file"] == str(tmp_path / "c.npz") and np.load(tmp_path / "c.npz").files


def test_the_answer_names_the_ranking_and_the_vectors(answer, tmp_path):
    out = ["--out", str(tmp_path / "a.png")]
    assert re.match(r"mean KL in nats, 38 test examples: z\d ", answer("traverse", "vae", *out))
    assert re.match(r"squared change of the output", answer("traverse", "gan", *out))
    assert re.search(r"^\+ 2 +\d+ examples, length ", answer("attributes", "both", *out), re.MULTILINE)
    assert re.search(r"^pixel_error +\d", answer("invert", "gan", "-n", "2", "--steps", "2", *out), re.MULTILINE)


def test_one_class_training_scores_the_classes_it_left_out(answer, tmp_path):
    config = json.loads((Path("vae") / "config.json").read_text())
    assert config["data"]["options"] == {"holdout": 0.5, "classes": ["0", "1"]} and config["spec"]["classes"] == 3
    out = answer("score", "vae", "--false-alarm", "0.2", "--out", str(tmp_path / "s"))
    lines = out.splitlines()
    assert lines[0] == "60 examples of grey (test)" and lines[-1] == str(tmp_path / "s")
    assert re.match(
        r"negative_elbo_nats +mean .*auroc 0\.\d{3} ± 0\.\d{3}, aupr .*threshold .*detection_rate", lines[1]
    )
    record = json.loads((tmp_path / "s" / "scores.json").read_text())
    assert record["normal"] == [0, 1] and set(record["scores"]) == {
        "negative_elbo_nats", "squared_error", "code_knn5", "code_mahalanobis",
    }  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "s" / "scores.csv").read_text().splitlines()))
    assert {int(r["normal"]) for r in rows if r["label"] == "2"} == {0}
    # No example that is scored was trained on.
    trained = twofold.data.load("grey.npz", classes=["0", "1"], holdout=0.5).train.x
    scored = twofold.data.load("grey.npz", holdout=0.5).test.x
    assert not any((one == trained).flatten(1).all(1).any() for one in scored)
    assert min(png(tmp_path / "s" / "most-anomalous.png")) > 50
    # The hint that repeats a run names its classes.
    plan = prepare("vae", data="grey.npz", settings=twofold.training.Settings(), data_options={"classes": ["0", "1"]})
    assert "--classes 0,1" in command(plan, Path("x"))


def test_scores_of_other_data_are_compared_with_the_runs_own(answer, tmp_path):
    words = ["score", "both", "--data", "plain.npz", "--split", "all", "--false-alarm", "0.3", "--seed", "2", "--json"]
    record = json.loads(answer(*words, "--out", str(tmp_path / "s")))
    assert record["examples"] == 40 and record["normal"] is None
    assert record["calibration"] == {"false_alarm": 0.3, "on": "test split of grey", "examples": 12}
    assert all("alarm_rate" in found and "auroc" not in found for found in record["scores"].values())
    again = json.loads(answer(*words, "--out", str(tmp_path / "t")))
    assert again["scores"] == record["scores"]
    assert (tmp_path / "s" / "scores.csv").read_bytes() == (tmp_path / "t" / "scores.csv").read_bytes()


def test_what_needs_no_data_works_without_it(answer, here, tmp_path):
    """The run's own data is gone: traversals of the prior and scores of other data remain."""
    np.savez(tmp_path / "gone.npz", x=np.random.RandomState(3).randint(0, 256, (40, 8, 8), dtype=np.uint8))
    train("vae", tmp_path / "run", "--hidden", "5", data=str(tmp_path / "gone.npz"))
    (tmp_path / "gone.npz").unlink()
    out = ["--out", str(tmp_path / "s")]
    assert "squared change of the output" in answer("traverse", str(tmp_path / "run"), "--out", str(tmp_path / "t.png"))
    assert "squared_error" in answer(
        "score", str(tmp_path / "run"), "--data", "plain.npz", "--scores", "reconstruction", *out
    )
    assert main(["score", str(tmp_path / "run"), "--data", "plain.npz", "--scores", "code_knn", *out]) == 2


def test_scores_by_name_also_without_an_encoder_or_with_labels(answer, tmp_path):
    for words, columns in (
        (["gan", "--scores", "anogan,inversion", "--steps", "3"], ["anogan0.1", "inversion3_squared_error"]),
        (["vae", "--scores", "iw_bound", "--draws", "5"], ["negative_iw5_nats"]),
        (["labelled", "--scores", "elbo,code_knn", "--neighbours", "2"], ["negative_elbo_nats", "code_knn2"]),
        (["plane", "--normal", "0"], ["negative_elbo_nats", "squared_error", "code_knn5", "code_mahalanobis"]),
    ):
        record = json.loads(answer("score", *words, "-n", "10", "--json", "--out", str(tmp_path / "s")))
        assert list(record["scores"]) == columns


def test_without_out_results_lie_in_the_run(answer, here):
    assert answer("score", "gan", "-n", "5").splitlines()[-1] == str(here / "gan" / "scores")
    assert (here / "gan" / "scores" / "scores.csv").is_file()
    out = answer("classify", "clusters")
    assert out.splitlines()[-1] == str(here / "clusters" / "classes.csv") and "cluster_accuracy" in out
    assert answer("traverse", "vae").splitlines()[-1] == str(here / "vae" / "traversal-seed0.png")
    assert answer("arithmetic", "gan").splitlines()[-1] == str(here / "gan" / "candidates.png")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        # What the model cannot.
        (["classify", "vae"], "this model cannot classify; it can"),
        (["attributes", "gan"], "this model cannot encode"),
        (["traverse", "gan", "--example", "1"], "this model cannot encode"),
        (["traverse", "gan", "--data", "grey.npz"], "this model cannot encode"),
        (["arithmetic", "gan", "--plus", "1", "--data", "grey.npz"], "cannot encode, so its exemplars are samples"),
        (["invert", "vae", "--feature-weight", "1"], "cannot give features of examples"),
        (["score", "vae", "--scores", "discriminator"], "cannot give the score 'discriminator'; it can give elbo"),
        (["traverse", "labelled"], r"conditional: give a label \(--label\), 0 to 2"),
        (["traverse", "labelled", "--label", "3"], "labels do not fit"),
        (["arithmetic", "labelled", "--plus", "1"], "give a label"),
        (["arithmetic", "vae", "--plus", "1", "--label", "1"], "not conditional"),
        # Values.
        (["traverse", "vae", "--example", "99"], "there is no example 99; grey has 0 to 37 to test on"),
        (["traverse", "vae", "--example", "-1"], "there is no example -1"),
        (["traverse", "vae", "--steps", "1"], "at least 2"),
        (["traverse", "vae", "--reach", "0"], "reach is 0"),
        (["traverse", "vae", "--reach", "inf"], "not a finite number"),
        (["traverse", "gan", "-n", "1e8", "--steps", "1e8"], "too many at once"),
        (["arithmetic", "vae", "--plus", "a"], "'a' is not a whole number"),
        (["arithmetic", "vae", "--plus"], "expected at least one argument"),
        (["arithmetic", "vae", "--minus", "1"], "at least one concept to add"),
        (["arithmetic", "gan", "--plus", "99999999"], "there is no sample"),
        (["arithmetic", "vae", "--plus", "1", "--noise", "-1"], "noise is -1"),
        (["attributes", "both", "-n", "99"], "asked for 99 examples; grey has 12"),
        (["attributes", "both", "--data", "plain.npz"], "plain has no labels"),
        (["attributes", "both", "--strength", "nan"], "not a finite number"),
        (["invert", "gan", "--restarts", "0"], "--restarts: '0' is below 1"),
        (["invert", "gan", "--learning-rate", "0"], "learning_rate is 0"),
        (["invert", "gan", "-n", "99"], "asked for 99 examples"),
        (["score", "vae", "--scores", "elbw"], "unknown score 'elbw'; did you mean 'elbo'"),
        (["score", "vae", "--scores", "elbo,"], "'elbo,' is not a list"),
        (["score", "vae", "--by", "elbow"], "unknown score to sort by 'elbow'; did you mean 'elbo'"),
        (["score", "vae", "--normal", "7"], "grey has no class 7; it has classes 0 to 2"),
        (["score", "vae", "--data", "plain.npz", "--normal", "1"], "plain has no labels to choose by"),
        (["score", "vae", "--false-alarm", "1"], "rate of false alarms is 1"),
        (["score", "vae", "--false-alarm", "0.001"], "cannot promise a false-alarm rate of 0.001; at least 999 can"),
        (["score", "vae", "--split", "tset"], "did you mean 'test'"),
        (["score", "vae", "--false-alarm", "0.2", "--split", "train"], "not trained on: score the test split"),
        (["score", "vae", "--data", "plain.npz", "--holdout", "0"], "plain has no test split; use --split train"),
        (["score", "vae", "--data", "gaussians-8"], "this model takes images of"),
        (["score", "vae", "--data", "missing"], "unknown data source 'missing'"),
        # Classes.
        (
            ["train", "vae", "--data", "grey.npz", "--classes", "3", *TINY],
            "grey has no class 3; it has classes 0 to 2",
        ),
        (["train", "vae", "--data", "grey.npz", "--classes", "0,,1", *TINY], "'0,,1' is not a list such as 0,1,2"),
        (["train", "vae", "--data", "plain.npz", "--classes", "0", *TINY], "plain has no labels to choose by"),
        (["data", "digits", "--classes", "x"], "digits has no class 'x'"),
        (["reconstruct", "vae", "--classes", "1"], "classes would say how to read data, but no data is given"),
        # Places.
        (["traverse", "vae", "--out", "x.jpg"], r"give a \.png \(a grid\) or an \.npz"),
        (["invert", "gan", "--out", "nowhere/x.png"], "there is no folder 'nowhere'"),
        (["score", "vae", "--out", "file"], "out is 'file', which is a file; give a folder"),
        (["score", "vae", "--out", "nowhere/s"], "there is no folder 'nowhere'"),
        (["classify", "clusters", "--out", "x.png"], r"out is 'x\.png'; give a \.csv or a \.json"),
        (["score", "nowhere"], "there is no run at"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_usage_is_one_line_and_costs_nothing(refused, words, says):
    refused(words, says)
