"""The command line as scripts rely on it, as a newcomer mistypes it, and as somebody tries to break it."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import twofold
from twofold import recipes
from twofold.cli import main
from twofold.display import Bar
from twofold.overview import EXAMPLE, example
from twofold.run import Run

NAMES = [entry.name for entry in recipes.ENTRIES]
TINY = ["--latent", "3", "--width", "4", "--hidden", "5", "--batch-size", "8"]
HEAVY = {"torch", "numpy", "sklearn", "matplotlib", "PIL", "jinja2", "rich", "safetensors"}


def train(data: str, out: str, *more: str, recipe: str = "vae", examples: int = 160) -> list[str]:
    return ["train", recipe, "--data", data, "--out", out, "--examples", str(examples), *TINY, *more]


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A folder with data and two small runs: `vae`, conditional, of grey uint8 images, and `gan`, of RGB floats."""
    folder = tmp_path_factory.mktemp("work")
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (60, 8, 8), dtype=np.uint8)
    labels = np.arange(60) % 3
    np.savez(folder / "grey.npz", x=images, y=labels)
    np.savez(folder / "color.npz", x=random.rand(60, 6, 8, 3).astype(np.float32))
    np.savez(folder / "short.npz", x=images, y=labels[:50])
    np.savez(folder / "outside.npz", x=images.astype(np.float32))
    np.savez(folder / "nan.npz", x=np.where(images == images[3, 2, 1], np.nan, images / 255.0))
    (folder / "empty").mkdir()
    (folder / "plain.txt").write_text("not a run\n")
    for name, sizes in {"photos": [8], "mixed": [8, 9]}.items():
        (folder / name).mkdir()
        for k in range(20):
            side = sizes[k % len(sizes)]
            Image.fromarray(random.randint(0, 256, (side, 8), dtype=np.uint8)).save(folder / name / f"{k:02}.png")
    (folder / "broken").mkdir()
    shutil.copy(folder / "photos" / "00.png", folder / "broken" / "good.png")
    for k, content in enumerate([b"", (folder / "photos" / "01.png").read_bytes()[:60]]):
        (folder / "broken" / f"bad{k}.png").write_bytes(content)
    assert main(train(str(folder / "grey.npz"), str(folder / "vae"), "--conditional")) == 0
    gan = ["train", "gan", "--data", str(folder / "color.npz"), "--out", str(folder / "gan"), "--examples", "64"]
    assert main([*gan, "--batch-size", "8", "--latent", "3", "--width", "4"]) == 0
    return folder


@pytest.fixture
def here(work, monkeypatch) -> Path:
    monkeypatch.chdir(work)
    return work


def content(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.fixture
def refused(here, capsys) -> Callable[..., str]:
    """Runs a command that must be refused: status 2, one line on stderr, nothing on stdout, nothing written."""
    before = content(here)

    def check(*words: str, says: str = "") -> str:
        capsys.readouterr()
        assert main(words) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and err.startswith("twofold: ") and "Traceback" not in err, (out, err)
        assert re.search(says, err), f"{says!r} is not in {err!r}"
        assert content(here) == before
        return err

    return check


def answer(capsys, *words: str) -> str:
    """What a command that must succeed prints."""
    capsys.readouterr()
    assert main(words) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def python(*words: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120, **settings)


# What there is.


def test_recipes_json_is_the_documented_list(capsys):
    listing = json.loads(answer(capsys, "recipes", "--json"))
    assert listing == twofold.recipes() and [record["name"] for record in listing] == NAMES
    for record in listing:
        assert list(record) == ["name", "family", "paper", "year", "data_kinds", "abilities"]
        assert all(isinstance(record[key], str) for key in ("name", "family", "paper"))
        assert isinstance(record["year"], int) and record["year"] > 1980
        kinds = {"image", "vector"} if record["family"] != "translation" else {"image-pair", "vector-pair"}
        assert set(record["data_kinds"]) <= kinds and {"sample", "translate"} & set(record["abilities"])


def test_recipes_lists_every_recipe_once_with_its_paper(capsys):
    lines = answer(capsys, "recipes").splitlines()
    for entry in recipes.ENTRIES:
        assert sum(line.startswith(f"  {entry.name} ") for line in lines) == 1
        assert any(entry.paper in line and str(entry.year) in line for line in lines)


@pytest.mark.parametrize("name", NAMES)
def test_show_json_is_the_documented_record(capsys, name):
    record = json.loads(answer(capsys, "show", name, "--json"))
    assert list(record) == ["name", "stages"] and record["name"] == name and record["stages"]
    _, recipe = recipes.build(name, example(name))
    for stage, built in zip(record["stages"], recipe.stages, strict=True):
        assert list(stage) == ["name", "players", "phases"]
        assert stage["players"] == {
            player: sum(w.numel() for w in settings.net.parameters()) for player, settings in built.game.players.items()
        }
        for phase in stage["phases"]:
            assert list(phase) == ["name", "repeats", "every", "terms"]
            for term in phase["terms"]:
                assert list(term) == ["name", "every", "to"] and set(term["to"]) <= set(stage["players"])
                assert all(isinstance(c, (int, float, str)) and not isinstance(c, bool) for c in term["to"].values())
        reached = {player for phase in stage["phases"] for term in phase["terms"] for player in term["to"]}
        assert reached == set(stage["players"])


def test_show_takes_the_recipes_options_and_data(capsys, here):
    def rows(*more: str) -> dict[str, Any]:
        (stage,) = json.loads(answer(capsys, "show", "vae-gan", "--json", *more))["stages"]
        return {term["name"]: term["to"] for phase in stage["phases"] for term in phase["terms"]}

    assert rows()["feature_reconstruction"] == {"encoder": 1.0, "decoder": 0.01}
    assert rows("--gamma", "5")["feature_reconstruction"] == {"encoder": 1.0, "decoder": 5.0}
    assert isinstance(rows("--equilibrium")["adversarial_decoder"]["decoder"], str)
    text = answer(capsys, "show", "vae", "--data", "grey.npz", "--latent", "3", "--likelihood", "laplace")
    assert "images of 1×8×8" in text and re.search(r"--latent +3\n", text) and re.search(r"--conditional +no\n", text)
    assert "vectors of 2" in answer(capsys, "show", "--data", "gaussians-8", "wgan-gp")
    assert "images of 1×12×10" in answer(capsys, "show", "gan", "--data", "mixed", "--size", "12x10")


def test_data_lists_sources_and_says_what_is_in_one(capsys, here):
    listed = answer(capsys, "data")
    assert all(source.name in listed for source in twofold.data.sources())
    found = answer(capsys, "data", "grey.npz")
    assert "1×8×8" in found and "54 to train on, 6 to test on" in found and "3 classes" in found
    assert "15 to train on, 5 to test on" in answer(capsys, "data", "photos", "--holdout", "0.25")
    found = answer(capsys, "data", "broken", "--holdout", "0")
    assert "1 of 3 image files left out: bad0.png" in found and "1 of 2 image files left out: bad1.png" in found


def test_names_of_files_cannot_drive_the_terminal(capsys, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for k in range(3):
        Image.new("L", (8, 8), 60 * k).save(folder / f"{k}.png")
    (folder / "\x1b[31m\nred.png").write_bytes(b"")
    found = answer(capsys, "data", str(folder))
    assert "\x1b" not in found and r"\x1b[31m" in found and "1 of 4 image files left out" in found


# Help.


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_names_every_command(capsys, words):
    if words:
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0
    else:
        assert main(words) == 0
    out = capsys.readouterr().out
    verbs = (
        "recipes",
        "show",
        "data",
        "train",
        "sample",
        "reconstruct",
        "interpolate",
        "evaluate",
        "compare",
        "translate",
    )
    for command in verbs:
        assert re.search(rf"^    {command} +\S", out, re.MULTILINE), command


@pytest.mark.parametrize("name", NAMES)
def test_a_recipes_help_has_every_option_with_its_meaning_and_default(capsys, name):
    with pytest.raises(SystemExit) as stop:
        main(["train", name, "--help"])
    assert stop.value.code == 0
    out = "".join(capsys.readouterr().out.split())  # lines break at spaces and hyphens
    assert "".join(recipes.find(name).paper.split()) in out and "SUPPRESS" not in out
    for field in fields(recipes.default_config(recipes.find(name))):
        flag = "--" + field.name.replace("_", "-")
        assert flag in out and "".join(field.metadata["help"].split()) in out, flag
        if str(field.type) == "bool":
            assert f"{flag},--no-{flag[2:]}" in out


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"twofold {twofold.__version__}\n"


# Training.


@pytest.fixture
def planned(monkeypatch, capsys, here) -> Callable[..., dict[str, Any]]:
    """What --dry-run says a command would do. Its speed is measured for an instant only."""
    monkeypatch.setattr("twofold.training.estimate", partial(twofold.training.estimate, seconds=0.001))

    def plan(*words: str) -> dict[str, Any]:
        return json.JSONDecoder().raw_decode(answer(capsys, "train", *words, "--dry-run"))[0]

    return plan


def test_dry_run_says_what_it_would_do_and_writes_nothing(planned, capsys, here):
    before = content(here)
    out = answer(capsys, *train("grey.npz", "nothing"), "--dry-run")
    record, end = json.JSONDecoder().raw_decode(out)
    assert record["recipe"] == "vae" and record["config"]["latent"] == 3 and record["train"]["examples"] == 160
    assert record["data"]["train_examples"] == 54 and record["spec"]["shape"] == [1, 8, 8]
    said = dict(re.split(r"  +", line) for line in out[end:].strip().splitlines()[:-1])
    _, recipe = recipes.build("vae", twofold.Spec.from_json(record["spec"]), record["config"])
    assert said["parameters"] == f"{sum(w.numel() for w in recipe.nets.parameters()):,}"
    assert {"peak memory so far", "speed", "the whole run"} <= set(said)
    assert content(here) == before and not (here / "nothing").exists()


def test_options_reach_the_config_in_any_order(planned):
    vae_gan = ["vae-gan", "--data", "grey.npz", *TINY]
    assert planned(*vae_gan)["config"]["see_reconstructions"] is True
    config = planned(
        *["--data", "grey.npz", "--conditional", "--no-see-reconstructions", "--clip-norm", "2.5", "--feature-layer"],
        *["none", "--adversarial", "non-saturating", "vae-gan", "--latent=4", "--decay-examples", "1e3", *TINY[2:]],
    )["config"]
    assert config["conditional"] is True and config["see_reconstructions"] is False
    assert config["clip_norm"] == 2.5 and config["feature_layer"] is None and config["latent"] == 4
    assert config["adversarial"] == "non-saturating" and config["decay_examples"] == 1000
    assert planned("vae-gan-released", "--data", "grey.npz", *TINY)["config"]["feature_std"] == 1.0
    assert (
        planned("vae-gan-released", "--data", "grey.npz", *TINY, "--feature-std", "none")["config"]["feature_std"]
        is None
    )
    # A source may have a recipe's name.
    assert planned("--out", "gan", "vae", "--data", "grey.npz", *TINY)["recipe"] == "vae"


def test_options_left_out_have_the_recipes_defaults(planned):
    for name in ("wgan", "vae-gan-released"):
        record = planned(name, "--data", "grey.npz", "--batch-size", "8")
        default = recipes.default_config(recipes.find(name))
        assert record["config"] == {field.name: getattr(default, field.name) for field in fields(default)}


def test_settings_reach_the_run(planned):
    words = ["vae", "--data", "photos", *TINY, "--examples", "2e3", "--seed", "9223372036854775807", "--flip"]
    words += ["--crop", "2", "--accumulate", "2", "--on-nonfinite", "skip", "--precision", "bf16", "--holdout", "0.5"]
    words += ["--no-fused", "--compile", "aot_eager", "--channels-last"]
    words += ["--stop-on", "mode-collapse", "--keep-best", "min:kl"]
    record = planned(*words, "--size", "10x9", "--channels", "3")
    assert record["train"] == {
        "examples": 2000, "batch_size": 8, "seed": 2**63 - 1, "precision": "bf16", "fused": False,
        "compile": "aot_eager", "channels_last": True, "flip": True, "crop": 2, "accumulate": 2,
        "on_nonfinite": "skip", "stop_on": "mode-collapse", "keep_best": "min:kl",
    }  # fmt: skip
    assert record["spec"]["shape"] == [3, 10, 9] and record["data"]["test_examples"] == 10
    # The same value twice is no contradiction, as when a script appends what it was given.
    assert planned(*words, "--seed", "9223372036854775807")["train"]["seed"] == 2**63 - 1


def test_training_says_where_to_look_and_what_it_left_out(capsys, here, tmp_path):
    shutil.copytree("photos", tmp_path / "photos")
    (tmp_path / "photos" / "torn.png").write_bytes(b"\x89PNG")
    out = str(tmp_path / "the run")
    assert main(train(str(tmp_path / "photos"), out, "--crop", "1")) == 0
    said, progress = capsys.readouterr()
    assert f"trained vae on 160 examples: {out}" in said and f"twofold sample {shlex.quote(out)} -n 64" in said
    assert (tmp_path / "the run" / "report.html").exists()
    lines = progress.splitlines()
    assert "vae on photos: 18 images of 1×8×8" in lines[0] and "parameters on" in lines[1]
    assert "1 of 21 image files left out: torn.png" in lines[2]
    assert len(lines) <= 3 + 10 and "160/160 examples" in lines[-1]
    assert all("kl " in line and "reconstruction " in line for line in lines[3:]) and "\x1b" not in progress
    assert any("examples/s" in line and "left" in line for line in lines[3:])


def test_resume_continues_to_the_same_bits(capsys, here, tmp_path):
    assert main(train("grey.npz", str(tmp_path / "parts"), examples=40)) == 0
    capsys.readouterr()
    assert main(train("grey.npz", str(tmp_path / "parts"), "--resume", examples=80)) == 0
    assert capsys.readouterr().err.splitlines()[2] == "going on from 40 examples"
    assert main(train("grey.npz", str(tmp_path / "whole"), examples=80)) == 0
    assert_same_weights(tmp_path / "parts", tmp_path / "whole")


def assert_same_weights(a: Path, b: Path) -> None:
    saved = [Run.open(path).load_checkpoint() for path in (a, b)]
    assert saved[0].examples == saved[1].examples
    for name in ("weights", "training"):
        one, other = (checkpoint.tensors[name] for checkpoint in saved)
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to a child alone")
def test_ctrl_c_saves_and_the_printed_options_go_on_to_the_same_bits(capsys, here, tmp_path):
    words = ["train", "vae", "--data", "grey.npz", "--examples", "1600", *TINY]
    out = tmp_path / "interrupted run"
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    child = subprocess.Popen(
        [sys.executable, "-m", "twofold", *words, "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    metrics = out / "metrics.jsonl"
    while child.poll() is None and not (metrics.exists() and '"kl"' in metrics.read_text()):
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    said, errors = child.communicate(timeout=60)
    assert child.returncode == 130 and said == "" and "Traceback" not in errors
    last = errors.splitlines()[-1]
    assert re.match(
        r"twofold: stopped at [\d,]+ of 1,600 examples; the state is saved\. Go on with: twofold train ", last
    )
    assert Run.open(out).load_checkpoint().examples < 1600
    # The state was saved at the very step that it stopped after.
    assert f"stopped at {Run.open(out).load_checkpoint().examples:,} " in last
    hint = shlex.split(last[last.index("Go on with: twofold ") :])[4:]
    assert hint[-1] == "--resume" and str(out) in hint
    assert main(hint) == 0
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    assert_same_weights(out, tmp_path / "whole")


def test_training_outlives_whoever_reads_its_progress(capsys, here, tmp_path, monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    assert main(train("grey.npz", str(tmp_path / "a"), examples=16)) == 0
    assert (tmp_path / "a" / "report.html").exists()
    monkeypatch.setattr(sys, "stderr", None)  # closed by the caller: `2>&-`
    capsys.readouterr()
    assert main(["sample", "nowhere"]) == 2
    assert main(train("grey.npz", str(tmp_path / "b"), examples=16)) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["trained", "look"]


def test_divergence_is_status_1_and_one_line(capsys, here, tmp_path):
    assert main(train("grey.npz", str(tmp_path / "run"), "--learning-rate", "1e30")) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("twofold: ") and "last good checkpoint" in last
    assert main(["sample", str(tmp_path / "run"), "-n", "2"]) == 0


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError("x: can't allocate memory: y")],
)
def test_memory_exhausted_is_status_1_and_one_line(capsys, here, monkeypatch, error):
    def exhausted(*args: Any, **settings: Any) -> None:
        raise error

    monkeypatch.setattr("twofold.training.train", exhausted)
    assert main(train("grey.npz", "nothing")) == 1
    assert capsys.readouterr() == (
        "",
        "twofold: out of memory; use a smaller network or batch, or compute batches in parts (--accumulate)\n",
    )


def test_a_defect_is_not_dressed_up_as_bad_input(here, monkeypatch):
    def broken(*args: Any, **settings: Any) -> None:
        raise RuntimeError("a shape is wrong")

    monkeypatch.setattr("twofold.training.train", broken)
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        main(train("grey.npz", "nothing"))


# Using a run.


def test_sample_writes_the_datas_own_layout_range_and_type(capsys, here, tmp_path):
    out = tmp_path / "s.npz"
    assert answer(capsys, "sample", "vae", "-n", "5", "--seed", "3", "--out", str(out)) == f"{out}\n"
    with np.load(out) as file:
        assert file.files == ["samples"]
        x = file["samples"]
    assert x.shape == (5, 8, 8) and x.dtype == np.uint8
    assert np.array_equal(x, twofold.load("vae").sample(5, seed=3))
    answer(capsys, "sample", "gan", "-n", "70", "--out", str(out))
    with np.load(out) as file:
        x = file["samples"]
    assert x.shape == (70, 6, 8, 3) and x.dtype == np.float32 and 0 <= x.min() < x.max() <= 1


def test_sample_writes_a_grid_that_repeats_under_its_seed(capsys, here, tmp_path):
    first, second, other = (tmp_path / f"{k}.png" for k in range(3))
    for path, seed in ((first, "1"), (second, "1"), (other, "2")):
        answer(capsys, "sample", "vae", "-n", "4", "--seed", seed, "--out", str(path))
    assert first.read_bytes() == second.read_bytes() != other.read_bytes()
    with Image.open(first) as picture:
        assert picture.format == "PNG" and min(picture.size) >= 2 * 8


def test_without_out_the_result_lies_in_the_run(capsys, here, tmp_path):
    shutil.copytree("vae", tmp_path / "moved")
    for verb, name in (
        ("sample", "samples-seed7.png"),
        ("reconstruct", "reconstructions-seed7.png"),
        ("interpolate", "interpolations-seed7.png"),
    ):
        said = answer(capsys, verb, str(tmp_path / "moved"), "-n", "3", "--seed", "7").rstrip("\n")
        assert said == str(tmp_path / "moved" / name)
        with Image.open(said) as picture:
            assert picture.format == "PNG"


def test_label_asks_for_a_class(capsys, here, tmp_path):
    out = tmp_path / "s.npz"
    answer(capsys, "sample", "vae", "-n", "4", "--label", "2", "--out", str(out))
    expected = twofold.load("vae").sample(4, labels=2)
    with np.load(out) as file:
        assert np.array_equal(file["samples"], expected)
    assert not np.array_equal(expected, twofold.load("vae").sample(4, labels=0))
    answer(capsys, "interpolate", "vae", "-n", "2", "--steps", "3", "--label", "1", "--out", str(out))
    model = twofold.load("vae")
    codes = model.draw_codes(4, seed=0)
    with np.load(out) as file:
        assert file["x"].shape == (2, 3, 8, 8)
        assert np.array_equal(file["x"][:, 0], model.decode(codes[:2], labels=1))
        assert np.array_equal(file["x"][:, -1], model.decode(codes[2:], labels=1))


def test_checkpoint_chooses_an_older_one(capsys, here, tmp_path):
    older, newest = Run.open("vae").checkpoints()
    drawn = {}
    for examples in (older, newest):
        answer(capsys, "sample", "vae", "-n", "4", "--checkpoint", str(examples), "--out", str(tmp_path / "s.npz"))
        with np.load(tmp_path / "s.npz") as file:
            drawn[examples] = file["samples"]
    assert np.array_equal(drawn[newest], twofold.load("vae").sample(4))
    assert not np.array_equal(drawn[older], drawn[newest])


def test_reconstruct_takes_test_examples_with_their_own_labels(capsys, here, tmp_path):
    answer(capsys, "reconstruct", "vae", "-n", "6", "--out", str(tmp_path / "r.npz"))
    with np.load(tmp_path / "r.npz") as file, np.load("grey.npz") as data:
        assert sorted(file.files) == ["x", "x_rec"]
        x, x_rec, known, y = file["x"], file["x_rec"], data["x"], data["y"]
    index = [int(np.flatnonzero((known == one).all((1, 2)))[0]) for one in x]
    trained_on = twofold.data.load("grey.npz").train.x[torch.arange(54)][:, 0].numpy()
    assert len(set(index)) == 6 and not any((trained_on == one).all((1, 2)).any() for one in x)
    assert np.array_equal(x_rec, twofold.load("vae").reconstruct(x, labels=y[index]))


def test_other_data_may_be_read_with_options(capsys, here, tmp_path):
    assert main(train("grey.npz", str(tmp_path / "plain"), examples=16)) == 0
    words = ["--data", "mixed", "--size", "8", "--holdout", "0.2", "--out", str(tmp_path / "r.npz")]
    answer(capsys, "reconstruct", str(tmp_path / "plain"), "-n", "4", *words)
    with np.load(tmp_path / "r.npz") as file:
        assert file["x"].shape == file["x_rec"].shape == (4, 8, 8)
    model = twofold.load(tmp_path / "plain")
    answer(capsys, "interpolate", str(tmp_path / "plain"), "-n", "2", "--path", "lerp", "--steps", "5", *words)
    with np.load(tmp_path / "r.npz") as file:
        ends = file["x"][:, [0, -1]]
    assert ends.shape == (2, 2, 8, 8) and model.spec.layout == "HW"
    with pytest.raises(twofold.InputError, match="differ in size"):
        twofold.reconstruct(model, 2, data="mixed")


def test_models_are_asked_in_their_own_words(capsys, refused):
    refused("sample", "gan", "--label", "1", says="not conditional")
    refused("sample", "vae", "--label", "3", says="labels do not fit.*from 0 to 2")
    refused("sample", "vae", "--label", "-1", says="labels do not fit")
    refused("reconstruct", "gan", says="cannot reconstruct; it can .*sample")
    refused("interpolate", "gan", "--data", "color.npz", "-n", "2", says="cannot encode")
    refused("reconstruct", "vae", "-n", "7", says=r"asked for 7 examples; grey\S* has 6")
    refused("reconstruct", "vae", "--data", "gaussians-8", says="this model takes images of")
    refused("reconstruct", "vae", "--data", "photos", "-n", "1", says="conditional on 3 classes; photos has no labels")
    refused("reconstruct", "vae", "--size", "8", says="size would say how to read data, but no data is given")
    refused("interpolate", "vae", "--strict", "--size", "8", says="size and strict would say how to read data")
    refused("interpolate", "vae", "--data", "grey.npz", "-n", "2", "--label", "1", says="a label or data, not both")
    refused("interpolate", "vae", "--steps", "1", says="at least 2")
    refused("sample", "vae", "-n", "1e9", says="1,000,000,000 are too many at once; ask for at most 8,388,608")
    refused("interpolate", "vae", "-n", "1e5", "--steps", "1e4", says="too many at once")


def test_data_that_changed_since_is_not_taken_for_the_runs_own(capsys, here, tmp_path):
    np.savez(tmp_path / "d.npz", x=np.random.RandomState(1).randint(0, 256, (40, 8, 8), dtype=np.uint8))
    assert main(train(str(tmp_path / "d.npz"), str(tmp_path / "run"), examples=16)) == 0
    np.savez(tmp_path / "d.npz", x=np.random.RandomState(2).randint(0, 256, (40, 8, 8), dtype=np.uint8))
    assert main(["reconstruct", str(tmp_path / "run"), "-n", "2"]) == 2
    assert "is not what it was when this run was trained" in capsys.readouterr().err
    assert main(["reconstruct", str(tmp_path / "run"), "-n", "2", "--data", str(tmp_path / "d.npz")]) == 0
    (tmp_path / "d.npz").unlink()
    assert main(["reconstruct", str(tmp_path / "run"), "-n", "2"]) == 2
    assert "there is no file or folder of that name" in capsys.readouterr().err


# Bad usage and bad input.

OK = ["--data", "grey.npz", "--out", "new", "--batch-size", "8"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        # Names.
        (["trian"], r"unknown command 'trian'; did you mean 'train'\?"),
        (["--verison"], r"unknown option '--verison'; did you mean '--version'\?"),
        (["train", "vea"], r"unknown recipe 'vea'; did you mean 'vae'\?"),
        (["train", "vea", "--help"], "did you mean 'vae'"),
        (["train", "vea", "--latent", "3", *OK], "unknown recipe 'vea'; did you mean 'vae'"),
        (["train", "--latent", "3", "vea", *OK], "unknown recipe 'vea'; did you mean 'vae'"),
        (["show", "vae-gna"], "did you mean 'vae-gan'"),
        (["show"], "required: RECIPE; see twofold show --help"),
        (["train", "vae", "--latnt", "3", *OK], "unknown option '--latnt'; did you mean '--latent'"),
        (["train", "vae", "--gamma", "3", *OK], "unknown option '--gamma'"),
        (["train", "vae", "--exampels=3", *OK], "unknown option '--exampels'; did you mean '--examples'"),
        (["train", "vae", "--lat", "3", *OK], "unknown option '--lat'"),
        (["sample", "vae", "--sed", "3"], "did you mean '--seed'"),
        (["train", "vae", "extra", *OK], "unexpected 'extra'; see twofold train --help"),
        (["train", "vae", "--out", "new"], "required: --data"),
        (["train"], "required: RECIPE, --data"),
        (["sample"], "required: RUN"),
        # Values.
        (["train", "vae", "--likelihood", "norml", *OK], "--likelihood 'norml'; did you mean 'normal'"),
        (["train", "vae", "--precision", "bf61", *OK], "--precision 'bf61'; did you mean 'bf16'"),
        (["train", "vae", "--channels", "2", *OK], r"--channels '2' \(known: 1, 3, 4\)"),
        (["train", "vae", "--latent", "abc", *OK], "argument --latent: 'abc' is not a whole number"),
        (["train", "vae", "--latent", "1.5", *OK], "'1.5' is not a whole number"),
        (["train", "vae", "--latent", "0", *OK], "0"),
        (["train", "vae", "--width", "-4", *OK], "width is -4"),
        (["train", "vae", "--learning-rate", "nan", *OK], "'nan' is not a finite number"),
        (["train", "vae", "--clip-norm", "inf", *OK], "'inf' is not a finite number"),
        (["train", "vae", "--latent", "none", *OK], "'none' is not a whole number"),
        (["train", "vae", "--conditional=yes", *OK], "--conditional"),
        (["train", "vae", "--examples", "0", *OK], "--examples: '0' is below 1"),
        (["train", "vae", "--examples=-1e3", *OK], "--examples: '-1e3' is below 1"),
        (["train", "vae", "--examples", "1e400", *OK], "'1e400' is not a whole number"),
        (["train", "vae", "--examples", "9" * 5000, *OK], r"'9{37}\.\.\.' is not a whole number"),
        (["train", "vae", "--examples", "", *OK], "'' is not a whole number"),
        (["train", "vae", "--examples", *OK], "--examples: expected one argument"),
        (["train", "vae", "--data", "grey.npz", "--batch-size", "-8"], "--batch-size: '-8' is below 1"),
        (["train", "vae", "--seed", "-1", *OK], r"'-1' is not a whole number from 0 to 2\^63 - 1"),
        (["train", "vae", "--seed", str(2**63), *OK], r"from 0 to 2\^63 - 1"),
        (["sample", "vae", "--seed", str(2**70)], r"from 0 to 2\^63 - 1"),
        (["sample", "vae", "-n", "-3"], "-n: '-3' is below 1"),
        (["sample", "vae", "-n", "0"], "-n: '0' is below 1"),
        (["train", "vae", "--size", "8by8", *OK], "'8by8' is not a size"),
        (["train", "vae", "--range", "0", *OK], "expected 2 arguments"),
        (["train", "vae", "--range", "0", "nan", *OK], "'nan' is not a finite number"),
        (["train", "vae", "--holdout", "1", *OK], "holdout is 1"),
        (["train", "vae", "--accumulate", "9", *OK], "accumulate is 9; a batch of 8"),
        (["train", "vae", "--crop", "-1", *OK], "crop is -1"),
        (["train", "vae", "--seed", "1", "--seed", "2", *OK], "argument --seed: given twice, with different values"),
        (["train", "vae", "--conditional", "--no-conditional", *OK], "given twice, with different values"),
        # Devices.
        (["train", "vae", "--device", "cuda:99", *OK], "device 'cuda:99' is not there: .*use --device cpu"),
        (["train", "vae", "--device", "cpuu", *OK], "unknown device 'cpuu'; did you mean 'cpu'"),
        (["sample", "vae", "--device", "cuda:99"], "device 'cuda:99' is not there"),
        # Data.
        (["train", "vae", "--data", "digitz", "--out", "new"], "did you mean 'digits'.*no file or folder"),
        (["data", "missing"], "unknown data source 'missing'"),
        (["data", ""], "argument SOURCE: is empty"),
        (["data", "empty"], "the folder empty is empty"),
        (["data", "x" * 5000], "unknown data source .* no file or folder of that name"),
        (["data", "mixed"], "images differ in size: .* is 8×8, .* is 9×8 .*--size"),
        (["data", "broken", "--strict"], r"bad0\.png cannot be used .*1 of 3 files"),
        (["train", "vae", "--data", "broken", "--strict", "--out", "new"], r"bad0\.png cannot be used"),
        (["data", "plain.txt"], r"plain\.txt: cannot read \.txt"),
        (["train", "vae", "--data", "outside.npz", "--out", "new"], "outside|range"),
        (["train", "vae", "--data", "nan.npz", "--out", "new"], "NaN|nan|not finite"),
        (["train", "vae", "--data", "short.npz", "--out", "new"], "50 labels for 60"),
        (["train", "vae", "--data", "grey.npz", "--labels", "z", "--out", "new"], "z"),
        (["train", "vae", "--data", "grey.npz", "--batch-size", "55", "--out", "new"], "batch size 55 is larger .* 54"),
        (["train", "vae", "--batch-size", "55", "--data", "grey.npz", "--dry-run"], "batch size 55 is larger"),
        (["train", "dcgan", "--data", "gaussians-8", "--out", "new"], "dcgan takes image data; this data is vectors"),
        (["train", "gan", "--conditional", "--data", "photos", "--out", "new", "--batch-size", "8"], "label"),
        (["show", "dcgan", "--data", "gaussians-8"], "dcgan takes image data"),
        # Places.
        (["train", "vae", "--data", "grey.npz", "--out", "vae", *TINY], "there is a run at .*--resume"),
        (["train", "vae", "--data", "grey.npz", "--out", "photos", *TINY], "not empty and not a run"),
        (["train", "vae", "--data", "grey.npz", "--out", "plain.txt", *TINY], "is not a directory"),
        (["train", "vae", "--data", "grey.npz", "--out", "plain.txt/run", *TINY], "cannot write .*Not a directory"),
        (["train", "vae", "--data", "grey.npz", "--out", "a/" + "b" * 300, *TINY], "cannot write .*File name too long"),
        (["train", "vae", "--data", "grey.npz", "--out", "", *TINY], "argument --out: is empty"),
        (["train", "vae", "--data", "grey.npz", "--out", "new\udcff", *TINY], "bytes that cannot be shown; rename it"),
        (["train", "vae", "--data", "grey.npz", "--out", "a\nb", *TINY], "cannot be shown"),
        (["train", "vae", "--data", "grey.npz", "--resume", *TINY], r"give out \(--out DIR\)"),
        (["sample", "vae", "--out", "x.jpg"], r"out is 'x\.jpg'; give a \.png \(a grid\) or an \.npz"),
        (["sample", "vae", "--out", "x"], "give a .png"),
        (["sample", "vae", "--out", "nowhere/x.png"], "there is no folder 'nowhere'"),
        (["reconstruct", "vae", "--out", "plain.txt/x.png"], "there is no folder"),
        (["interpolate", "vae", "--out", "x.gif"], "give a .png"),
        # Runs.
        (["sample", "nowhere"], "there is no run at .*nowhere"),
        (["sample", "empty"], "is not a run directory: it has no config.json"),
        (["sample", "plain.txt"], "is a file, not a run directory"),
        (["sample", ""], "argument RUN: is empty"),
        (["sample", "vae", "--checkpoint", "7"], r"has no checkpoint 7; there is: \d+, 160"),
        # Another run resumed.
        (train("grey.npz", "vae", "--resume", "--conditional", "--seed", "3"), "started with seed = 0, now it is 3"),
        (train("grey.npz", "vae", "--resume", "--no-conditional"), "started with conditional = True, now it is False"),
        (train("grey.npz", "vae", "--resume", "--conditional", examples=80), "planned for 160 examples"),
        (train("grey.npz", "vae", "--resume", "--conditional", "--holdout", "0.5"), "started on other data"),
        (["train", "gan", *OK[:2], "--out", "vae", "--batch-size", "8", "--resume"], "this run trains vae, not gan"),
    ],
)  # fmt: skip
def test_bad_usage_and_bad_input_is_one_line_and_costs_nothing(refused, words, says):
    refused(*words, says=says)


def test_a_file_is_not_replaced_by_a_folder_of_its_name(refused, here):
    (here / "dir.png").mkdir()
    try:
        before = content(here)
        assert main(["sample", "vae", "--out", "dir.png"]) == 2
        assert content(here) == before
    finally:
        (here / "dir.png").rmdir()


@pytest.fixture
def copied(here, tmp_path) -> Path:
    """A copy of the run `vae` to be damaged."""
    return Path(shutil.copytree("vae", tmp_path / "run"))


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]


@pytest.mark.parametrize("damage", [cut, flip, lambda data: b""])
@pytest.mark.parametrize("name", ["weights.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named_with_the_one_to_use(refused, copied, tmp_path, capsys, name, damage):
    good, bad = Run.open(copied).checkpoints()
    file = copied / "checkpoints" / f"{bad:012d}" / name
    file.write_bytes(damage(file.read_bytes()))
    says = refused("sample", str(copied), says=rf"checkpoint {bad:012d} is damaged: {name}")
    refused(*train("grey.npz", str(copied), "--resume", "--conditional"), says=name)
    hint = re.search(r"--checkpoint \d+", says)
    assert hint and hint[0] == f"--checkpoint {good}"
    answer(capsys, "sample", str(copied), *hint[0].split(), "-n", "2", "--out", str(tmp_path / "s.npz"))
    with np.load(tmp_path / "s.npz") as file_:
        assert np.array_equal(file_["samples"], twofold.load("vae", checkpoint=good).sample(2))


def test_a_damaged_config_is_refused(refused, copied):
    config = copied / "config.json"
    whole = config.read_bytes()
    record = json.loads(whole)
    for damaged, says in (
        (cut(whole), "is not readable JSON"),
        (b"[1, 2]", "no run_format"),
        (b"{}", "no run_format"),
        (json.dumps({**record, "run_format": 99}).encode(), "newer Twofold"),
        (json.dumps({**record, "recipe": "../vae"}).encode(), "unknown recipe"),
        (json.dumps({**record, "config": {**record["config"], "latent": 4}}).encode(), "do not fit this recipe"),
        (json.dumps({**record, "config": {**record["config"], "latent": "4"}}).encode(), "option latent is '4'"),
        (json.dumps({**record, "spec": {**record["spec"], "shape": [1, -8, 8]}}).encode(), "spec.shape"),
    ):
        config.write_bytes(damaged)
        refused("sample", str(copied), says=says)


def test_disk_full_while_training_keeps_the_checkpoint(capsys, copied, monkeypatch):
    before = Run.open(copied).checkpoints()
    expected = twofold.load(copied).sample(3)
    real, left = os.fsync, iter(range(4))

    def full(descriptor: int) -> None:
        if next(left, None) is None:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    longer = train("grey.npz", str(copied), "--resume", "--conditional", examples=320)
    assert main(longer) == 2
    monkeypatch.undo()
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    assert re.match(r"twofold: cannot write .*No space left on device", err.splitlines()[-1])
    assert set(before) & set(Run.open(copied).checkpoints())
    assert np.array_equal(twofold.load(copied).sample(3), expected)


def test_disk_full_while_writing_a_picture_keeps_the_old_one(refused, here, tmp_path, monkeypatch):
    old = tmp_path / "s.png"
    old.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused("sample", "vae", "--out", str(old), says=r"cannot write .*s\.png: No space left on device")
    assert old.read_bytes() == b"old" and list(tmp_path.iterdir()) == [old]


def test_one_line_even_if_a_name_has_several(refused):
    assert r"nowhere" in refused("sample", "nowhere\u2028else", says=r"nowhere else")
    refused("show", "va\x1b[2Je", says=r"va\\x1b\[2Je")


# The process.


@pytest.mark.parametrize("words", [["--help"], ["recipes"], ["recipes", "--json"], ["data"], ["train", "vea"]])
def test_quick_answers_import_nothing_heavy(words):
    code = f"""
import sys
from twofold.cli import main
try:
    main({words!r})
except SystemExit:
    pass
print("\\n" + " ".join(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""
    done = python("-c", code)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "twofold" in loaded and not loaded & HEAVY, loaded & HEAVY


def test_python_m_twofold_is_the_command():
    done = python("-m", "twofold", "recipes", "--json")
    assert done.returncode == 0 and json.loads(done.stdout) == twofold.recipes() and done.stderr == ""
    done = python("-m", "twofold", "trian")
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [["recipes"], ["--help"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_is_no_error(words, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as nobody_reads:
        done = subprocess.run(
            [sys.executable, "-m", "twofold", *words],
            stdout=nobody_reads, stderr=subprocess.PIPE, text=True, timeout=120,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_one_line():
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "twofold", "recipes"],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, env=environment,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, "twofold: No space left on device\n")


def test_an_encoding_without_the_characters_is_no_error():
    done = python("-m", "twofold", "--help", env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 0 and r"Explicit \xd7 implicit" in done.stdout


# The progress bar.


def plan(examples: int = 1000, notes: tuple[str, ...] = ()) -> Any:
    data = SimpleNamespace(name="digits", train=range(1438), notes=notes)
    recipe = SimpleNamespace(spec=EXAMPLE, nets=torch.nn.ModuleDict({"net": torch.nn.Linear(99, 10)}))
    settings = SimpleNamespace(examples=examples)
    return SimpleNamespace(name="vae", data=data, recipe=recipe, settings=settings, device="cpu")


def record(rate: float | None = 250.0) -> dict[str, float]:
    found = {"examples": 1, "seconds": 1.0, "kl": 12.3456, "a_term_of_a_long_name": float("nan"), "another_term": 1e-9}
    return found if rate is None else {**found, "examples_per_second": rate}


def test_on_a_terminal_the_bar_shows_pace_time_left_and_every_term(monkeypatch):
    from rich.console import Console

    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("twofold.display.time", SimpleNamespace(monotonic=lambda: next(clock)))
    bar = Bar()
    bar.console = Console(
        file=io.StringIO(), force_terminal=True, force_interactive=True, width=80, height=24, color_system=None
    )
    bar.start(plan())
    bar.update(500, record())  # resumed at 500: what was before is not this session's pace
    bar.update(600, record())
    bar.update(700, record(1234.0))
    bar.note("a note\x1b[31m")
    bar.update(1024, record(None))
    bar.stop()
    screen = bar.console.file.getvalue()
    lines = [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "\n", screen).split("\n")]
    # 10 seconds by the clock for 100 examples, 300 to go.
    assert any(re.search(r"700/1,000 examples 1,234 examples/s 0:00:\d\d left$", line) for line in lines), screen
    assert any(re.search(r"1,000/1,000 examples 1,234 examples/s 0:00:00 left$", line) for line in lines)
    for term in ("kl 12.35", "a_term_of_a_long_name nan", "another_term 1e-09"):
        assert any(term in line for line in lines)
    assert "a note?[31m" in lines and max(map(len, lines)) <= 80


def test_time_left_is_by_this_sessions_pace(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("twofold.display.time", SimpleNamespace(monotonic=lambda: now[0]))
    bar = Bar()
    bar.total = 10_000
    assert bar._left(5_000) == ""
    bar.first = 5_000, 100.0
    now[0] = 120.0
    assert bar._left(5_000) == "" and bar._left(5_100) == "0:16:20 left" and bar._left(10_040) == "0:00:00 left"
    now[0] = 100.0 + 3600
    assert bar._left(6_000) == "4:00:00 left"


def test_without_a_terminal_there_is_a_line_at_each_tenth(capsys):
    bar = Bar()
    bar.start(plan(notes=("2 of 9 left out: \x1b[31mred.png",)))
    for examples in range(8, 1032, 8):
        bar.update(examples, record())
    bar.stop()
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and lines[:2] == ["vae on digits: 1,438 images of 1×28×28", "1,000 parameters on cpu"]
    assert lines[2] == "note: 2 of 9 left out: ?[31mred.png" and "\x1b" not in err
    assert len(lines) == 3 + 10
    assert re.match(r" +104/1,000 examples  250 examples/s  .*kl 12\.35  a_term_of_a_long_name nan", lines[3])
