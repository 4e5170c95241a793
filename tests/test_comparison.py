"""`compare`: nothing is trained or measured twice, a cut-off comparison goes on, and the words follow the figures."""

from __future__ import annotations

import json
import os
import re
import signal

import pytest

from twofold import comparison, extractors
from twofold.cli import main
from twofold.comparison import backward_passes, compare, in_words, short, summarise
from twofold.errors import InputError
from twofold.metrics.record import Result
from twofold.training import Interrupted, Settings, Silent, TrainingError, prepare

SMALL = {
    "data": "digits",
    "examples": 96,
    "batch_size": 16,
    "evaluate_examples": 40,
    "metrics": "sliced,mse,frechet",
    "options": {"width": 4, "latent": 3},
}


@pytest.fixture(autouse=True)
def small_classifier(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TWOFOLD_CACHE", str(tmp_path_factory.getbasetemp() / "comparison-cache"))
    monkeypatch.setattr(extractors, "LEAST_EXAMPLES", 3_000)
    monkeypatch.setattr(extractors, "PASSES", 2)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A comparison of two recipes with two seeds, and its folder."""
    patch = pytest.MonkeyPatch()
    patch.setenv("TWOFOLD_CACHE", str(tmp_path_factory.getbasetemp() / "comparison-cache"))
    patch.setattr(extractors, "LEAST_EXAMPLES", 3_000)
    patch.setattr(extractors, "PASSES", 2)
    out = tmp_path_factory.mktemp("comparison") / "both"
    record = compare(["vae", "dcgan"], out=out, seeds=2, **SMALL)
    patch.undo()
    return record, out


def figures(record) -> list:
    return record["figures"]


def test_the_record_has_every_figure_with_its_spread_and_the_cost(done):
    record, out = done
    assert json.loads((out / "results.json").read_text()) == record
    rows = {short(row["name"]): row for row in figures(record)}
    assert set(rows) == {"swd", "mse", "fd"}
    assert list(rows["mse"]["models"]) == ["vae"] and rows["mse"]["winners"] == []
    cell = rows["swd"]["models"]["dcgan"]
    a, b = cell["values"]
    assert (
        a != b and cell["mean"] == pytest.approx((a + b) / 2) and cell["spread"] == pytest.approx(abs(a - b) / 2**0.5)
    )
    assert cell["error"] >= cell["spread"] / 2**0.5 - 1e-12
    vae, gan = record["models"]["vae"], record["models"]["dcgan"]
    assert vae["backward_passes_per_step"] == 1 and gan["backward_passes_per_step"] == 2
    assert vae["options"] == {"arch": "conv", "latent": 3, "width": 4, "hidden": 0}
    assert "reconstruction" in vae["routing"] and sum(vae["parameters"].values()) > 0
    assert [run["run"] for run in vae["runs"]] == ["vae-seed0", "vae-seed1"]
    assert all(run["cost"]["seconds"] > 0 for run in vae["runs"] + gan["runs"])
    assert str(out) not in (out / "results.json").read_text()


def test_the_page_stands_alone_and_shows_every_model(done):
    record, out = done
    page = (out / "report.html").read_text()
    assert not re.search(r"(?:src|href)=\"(?!data:)", page) and "<script" not in page
    assert page.count("<img") == 3 + 1 + 2 + 2  # samples with the data's, reconstructions, interpolations, curves
    for row in figures(record):
        assert row["name"] in page
    assert "backward passes a step" in page and "adversarial_generator" in page
    assert all(line.split(" (")[0].replace("'", "&#39;") in page for line in record["summary"])


def test_nothing_is_done_twice(done, monkeypatch):
    record, out = done
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/**/*") if path.is_file()}
    monkeypatch.setattr(comparison, "train", None)
    monkeypatch.setattr(comparison, "evaluate", None)
    said = []
    again = compare(["vae", "dcgan"], out=out, seeds=2, note=said.append, **SMALL)
    assert figures(again) == figures(record) and again["summary"] == record["summary"]
    assert said == [f"{name}-seed{k}: trained already" for k in (0, 1) for name in ("vae", "dcgan")]
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/**/*") if path.is_file()} == before


def test_other_metrics_measure_again_but_train_nothing(done, monkeypatch):
    _, out = done
    monkeypatch.setattr(comparison, "train", None)
    record = compare(["vae"], out=out, seeds=1, **(SMALL | {"metrics": ["structure"]}))
    assert {short(row["name"]) for row in figures(record)} == {"psnr_db", "ssim"}


class Stop(Silent):
    """A watch that presses Ctrl-C at the third record of the run that is number `at`."""

    seen = 0

    def __init__(self, at: int) -> None:
        Stop.seen += 1
        self.active, self.updates = Stop.seen == at, 0

    def update(self, examples, record) -> None:
        self.updates += 1
        if self.active and self.updates == 3:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_comparison_that_was_cut_off_goes_on_to_the_same_figures(done, tmp_path, monkeypatch):
    record, _ = done
    Stop.seen = 0
    out = tmp_path / "cut"
    with pytest.raises(Interrupted, match=r"dcgan, seed 0: stopped at 48 of 96 examples; the same command goes on"):
        compare(["vae", "dcgan"], out=out, seeds=2, watch=lambda: Stop(2), **SMALL)
    assert not (out / "results.json").exists() and (out / "vae-seed0" / "comparison.json").exists()
    trained = []
    real = comparison.train
    monkeypatch.setattr(comparison, "train", lambda name, **o: trained.append((name, o["seed"])) or real(name, **o))
    again = compare(["vae", "dcgan"], out=out, seeds=2, **SMALL)
    assert trained == [("dcgan", 0), ("vae", 1), ("dcgan", 1)]
    assert figures(again) == figures(record)


def test_a_run_that_fails_is_reported_and_the_others_count(tmp_path, monkeypatch):
    real = comparison.train

    def train(name, **options):
        if name == "dcgan":
            raise TrainingError("term 'x' was not finite at step 3")
        return real(name, **options)

    monkeypatch.setattr(comparison, "train", train)
    record = compare(["vae", "dcgan"], out=tmp_path / "out", seeds=1, **SMALL)
    assert "not finite" in record["models"]["dcgan"]["runs"][0]["failed"]
    assert all(list(row["models"]) == ["vae"] for row in figures(record))
    assert "dcgan-seed0 did not come to its end" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("names", "more", "says"),
    [
        (["vea"], {}, "did you mean 'vae'"),
        (["vae", "vae"], {}, "each once"),
        (["vae"], {"metrics": "fit"}, "unknown metric 'fit'"),
        (["vae", "gan"], {"options": {"gamma": 2.0}}, "none of vae, gan has an option gamma"),
        (["vae"], {"own_options": {"gan": {"latent": 2}}}, "gan, which is not compared"),
        (["vae"], {"own_options": {"vae": {"latent": 0}}}, "latent is 0"),
        (["vae"], {"batch_size": 5000}, "batch"),
        (["vae"], {"seeds": 0}, "train at least 1"),
        (["vae"], {"data": [1, 2]}, "read again"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_written(tmp_path, names, more, says):
    with pytest.raises(InputError, match=says):
        compare(names, out=tmp_path / "out", **(SMALL | {"seeds": 1} | more))
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [
        "compare",
        "vae",
        "--data",
        "digits",
        "--out",
        "c",
        "--seeds",
        "1",
        "--examples",
        "48",
        "--batch-size",
        "16",
    ]
    words += ["--metrics", "mse", "--set", "width=4", "vae.latent=3", "vae.norm=none"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "no figures of several models to compare" in out and out.splitlines()[-1].endswith("c/report.html")
    config = json.loads((tmp_path / "c" / "vae-seed0" / "config.json").read_text())["config"]
    assert (config["width"], config["latent"], config["norm"]) == (4, 3, "none")
    assert main([*words[:-1], "norm"]) == 2 and "is not OPTION=VALUE" in capsys.readouterr().err
    assert main([*words[:-1], "vae.norm=5"]) == 2 and "norm" in capsys.readouterr().err


def test_backward_passes_are_counted_over_all_plays_of_a_step():
    settings = Settings(examples=64, batch_size=8)
    plan = prepare("wgan-gp", data="digits", settings=settings, width=4)
    assert backward_passes(plan) == 6  # five plays of the critic, one of the generator


# Words from figures.


def runs(*values: float, name: str = "fd_10_test", better: str = "lower", **more) -> list[dict]:
    protocol = more.pop("protocol", {"count": 10})
    made = [Result(name, v, better, protocol, **{"uncertainty": 0.1, "reference": 1.0} | more) for v in values]
    return [{"results": [result.to_json()]} for result in made]


def winners(**models) -> list[list[str]]:
    return [row["winners"] for row in summarise(models)]


def test_who_wins_follows_from_mean_and_spread():
    assert winners(a=runs(1.0, 1.1, 0.9), b=runs(2.0, 2.1, 1.9)) == [["a"]]
    assert winners(a=runs(1.0, 1.9, 0.1), b=runs(1.4, 2.1, 0.7)) == [["a", "b"]]
    assert winners(a=runs(1.0, 1.1, better="higher"), b=runs(2.0, 2.1, better="higher")) == [["b"]]
    assert winners(a=runs(0.9, 0.91, better="data"), b=runs(2.5, 2.51, better="data")) == [["a"]]
    # Two seeds that happen to agree do not make a difference smaller than the error of measuring.
    assert winners(a=runs(1.0, 1.0), b=runs(1.2, 1.2)) == [["a", "b"]]
    assert winners(a=runs(1.0, 1.0, uncertainty=None), b=runs(1.2, 1.2, uncertainty=None)) == [["a"]]
    # One seed: the error of measuring decides, and where that is not known, nothing does.
    assert winners(a=runs(1.0), b=runs(2.0)) == [["a"]] and winners(a=runs(1.0), b=runs(1.2)) == [["a", "b"]]
    assert winners(a=runs(1.0, uncertainty=None), b=runs(9.0, uncertainty=None)) == [["a", "b"]]
    assert winners(a=runs(1.0)) == [[]]
    assert winners(a=runs(float("inf"), 1.0), b=runs(2.0, 2.1)) != [["a"]]


def test_figures_of_different_protocols_stand_in_different_rows():
    rows = summarise({"a": runs(1.0), "b": runs(2.0, protocol={"count": 20})})
    assert len(rows) == 2 and all(row["winners"] == [] for row in rows)
    assert len(summarise({"a": runs(1.0, protocol={"seed": 1}), "b": runs(2.0, protocol={"seed": 2})})) == 1


def test_the_words_name_winners_ties_and_what_is_not_known():
    wins = summarise({"a": runs(1.0, 1.1), "b": runs(2.0, 2.1)})
    ties = summarise({"a": runs(1.0, 1.1, name="swd_9_test"), "b": runs(1.0, 1.2, name="swd_9_test")})
    alone = summarise({"a": runs(1.0, name="mse_9_test")})
    text = in_words([*wins, *ties, *alone], ["a", "b"], 2)
    assert text[0].startswith(
        "a is best in 1 of 2 figures that can be compared: Fréchet distance 1.05 ± 0.07 (b 2.05 ± 0.07)"
    )
    assert text[1] == "b is alone at the top in none of 2 figures, and shares the top in 1."
    assert "Not told apart: sliced Wasserstein distance (a, b)" in text[2] and "one model only (a)" in text[3]
    assert "one seed" in in_words(wins, ["a", "b"], 1)[-1]
