"""Runs that are broken on purpose: two writers, kill -9 at any moment, moved folders, full and read-only disks, and
clocks that jump. What is left must be readable, and going on must give what an undisturbed run gives."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import twofold
from twofold.errors import InputError
from twofold.run import BusyError, Run, SaveError
from twofold.training import Silent, TrainingError, train
from twofold.using import reconstruct

BENCH = runpy.run_path(str(Path(__file__).resolve().parent.parent / "bench" / "kill.py"))
TINY = {"latent": 3, "width": 4, "hidden": 5}
X = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)


def run(out: Path, name: str = "vae", **changes) -> twofold.Model:
    return train(name, **{"data": X, "out": out, "examples": 80, "batch_size": 8, **TINY, **changes})


def final_bytes(path: Path) -> dict[str, bytes]:
    """What training made, whatever it was disturbed by: the newest checkpoint's tensors."""
    last = Run.open(path).checkpoints()[-1]
    return {f.name: f.read_bytes() for f in sorted((path / f"checkpoints/{last:012d}").glob("*.safetensors"))}


def metrics(path: Path) -> list[dict]:
    """The records of a run without what depends on the machine's speed."""
    return [{k: v for k, v in r.items() if "second" not in k} for r in Run.open(path).metrics()]


class Second(Silent):
    """Starts another training on the same directory in the middle of this one."""

    def __init__(self, out: Path, resume: bool):
        self.out, self.resume, self.error = out, resume, None

    def update(self, examples, record):
        if self.error is None:
            try:
                run(self.out, resume=self.resume)
            except InputError as error:
                self.error = error


@pytest.mark.parametrize("resume", [True, False])
def test_a_second_training_on_one_directory_is_refused_and_does_no_harm(tmp_path, resume):
    second = Second(tmp_path / "run", resume)
    model = run(tmp_path / "run", watch=second)
    assert isinstance(second.error, BusyError if resume else InputError)
    assert model.examples == 80
    run(tmp_path / "alone")
    assert final_bytes(tmp_path / "run") == final_bytes(tmp_path / "alone")


# kill -9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("name", ["vae", "vae-gan"])
def test_killed_at_any_event_on_the_disk_and_resumed_is_undisturbed_bit_for_bit(tmp_path, name):
    """Each child dies by SIGKILL at its n-th rename, sync or append: while training, saving, drawing, reporting."""
    run(tmp_path / "whole", name)
    kills = 0
    for event in (1, 2, 3, 5, 8, 13, 21, 34, 55, 89):
        if killed(tmp_path / "parts", name, at=event):
            kills += 1
            assert_readable(tmp_path / "parts")
    run(tmp_path / "parts", name, resume=True)
    assert kills >= 5
    assert final_bytes(tmp_path / "parts") == final_bytes(tmp_path / "whole")
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert {p.name for p in (tmp_path / "parts").rglob("*")} == {p.name for p in (tmp_path / "whole").rglob("*")}


def assert_readable(path: Path) -> None:
    if (path / "config.json").exists():
        opened = Run.open(path)
        opened.metrics()
        if opened.checkpoints():
            twofold.load(path)


def killed(out: Path, name: str, *, at: int) -> bool:
    """Train in a child that kills itself at the disk event number `at`; False if it finished before."""
    child = os.fork()
    if child == 0:
        try:
            BENCH["die_at"](at)
            run(out, name, resume=True)
        except BaseException:
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


# Folders that move


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "project" / "photos"
    folder.mkdir(parents=True)
    for k, pixels in enumerate(X[:20]):
        Image.fromarray(pixels).save(folder / f"{k}.png")
    return folder


def test_the_runs_data_is_found_from_another_folder_and_after_a_move(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(pictures.parent)
    train("vae", data="photos", out="runs/a", examples=16, batch_size=8, **TINY)
    monkeypatch.chdir("/")
    assert reconstruct(twofold.load(pictures.parent / "runs" / "a"), 2).exists()
    moved = tmp_path / "elsewhere"
    shutil.move(pictures.parent, moved)
    assert reconstruct(twofold.load(moved / "runs" / "a"), 2).exists()
    shutil.copytree(moved / "runs" / "a", tmp_path / "alone")
    with pytest.raises(InputError, match="no file or folder"):
        reconstruct(twofold.load(tmp_path / "alone"), 2)
    monkeypatch.chdir(moved)  # as it was named then
    assert reconstruct(twofold.load(tmp_path / "alone"), 2).exists()


def test_a_copied_run_goes_on_and_leaves_the_original_alone(tmp_path):
    run(tmp_path / "a")
    before = final_bytes(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert run(tmp_path / "b", resume=True, examples=160).examples == 160
    assert final_bytes(tmp_path / "a") == before
    run(tmp_path / "whole", examples=160)
    assert final_bytes(tmp_path / "b") == final_bytes(tmp_path / "whole")


def test_no_absolute_path_reaches_a_report(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(pictures.parent)
    train("vae", data=str(pictures), out=tmp_path / "far" / "run", examples=16, batch_size=8, **TINY)
    report = (tmp_path / "far" / "run" / "report.html").read_text()
    assert "twofold train vae --data photos --out run " in report
    assert str(tmp_path) not in report and "project" not in report


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody-of-that-name/x", "a\0b", "\ud800"])
def test_impossible_names_are_refused_in_one_line(name, tmp_path):
    for source in (name, Path(name)):
        with pytest.raises(InputError, match="no file or folder"):
            twofold.data.load(source)
    np.savez(tmp_path / "a.npz", x=X)
    (tmp_path / "a.csv").write_text("a,b\n1,2\n3,4\n")
    for source in (X, tmp_path / "a.npz", tmp_path / "a.csv"):
        with pytest.raises(InputError, match="nor a file|not a file"):
            twofold.data.load(source, labels=name)


# Disks and clocks

LIMITED = """
import resource, signal, sys
import numpy as np
from twofold.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file size")
@pytest.mark.parametrize("limit", [200, 20_000])
def test_a_full_disk_ends_with_one_line_and_resumes(tmp_path, limit):
    """200 bytes do not hold config.json; 20,000 hold it and no checkpoint."""
    words = ["train", "vae", "--data", "digits", "--examples", "128", "--out", str(tmp_path / "run"), "--latent", "3"]
    words += ["--width", "4", "--hidden", "5"]
    limited = [sys.executable, "-c", LIMITED, str(limit), *words]
    result = subprocess.run(limited, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2, result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("twofold: cannot write ")
    assert "Traceback" not in result.stderr and "File too large" in result.stderr
    if limit == 200:
        assert not (tmp_path / "run").exists()
    sizes = {**TINY, "examples": 128}
    assert train("vae", data="digits", out=tmp_path / "run", resume=True, **sizes).examples == 128


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_run_is_refused_before_training(tmp_path):
    run(tmp_path / "run")
    os.chmod(tmp_path / "run", 0o555)
    try:
        with pytest.raises(SaveError, match="Permission denied"):
            run(tmp_path / "run", resume=True, examples=160)
        with pytest.raises(SaveError, match="Permission denied"):
            run(tmp_path / "run" / "inner")
        assert twofold.load(tmp_path / "run").sample(1).shape == (1, 8, 8)
    finally:
        os.chmod(tmp_path / "run", 0o755)


def test_clocks_that_jump_change_nothing(tmp_path, monkeypatch):
    run(tmp_path / "steady")
    now = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: next(now))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(now)))
    run(tmp_path / "jumping")
    assert final_bytes(tmp_path / "jumping") == final_bytes(tmp_path / "steady")
    assert metrics(tmp_path / "jumping") == metrics(tmp_path / "steady")


# Divergence


FAMILIES = {
    "vae": {},
    "beta-vae": {},
    "iwae": {},
    "vq-vae": {"width": 16, "width_residual": 8},
    "gan": {},
    "wgan-gp": {},
    "infogan": {},
    "vae-gan": {},
    "factor-vae": {},
    "alpha-gan": {},
    "aae": {},
    "wae-mmd": {},
    "hybrid": {},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_gone_bad_is_noticed_in_the_next_step_and_named(tmp_path, name):
    """Weights that became NaN, in the middle of a run: the next step's terms show it, and none of them is saved."""

    class Poison(Silent):
        def __init__(self):
            self.plan, self.at = None, None

        def start(self, plan):
            self.plan = plan

        def update(self, examples, record):
            if self.at is None and examples >= 40:
                self.at = examples
                with torch.no_grad():
                    for player in self.plan.recipe.stages[0].game.players.values():
                        for weight in player.net.parameters():
                            weight.fill_(float("nan"))

    poison = Poison()
    config = twofold.recipes.default_config(twofold.recipes.find(name))
    known = {k: v for k, v in {**TINY, **FAMILIES[name]}.items() if hasattr(config, k)}
    with pytest.raises(
        TrainingError, match=r"term '(\w+)', which trains [\w ]+, was not finite at step (\d+)"
    ) as error:
        train(name, data=X, out=tmp_path / "run", examples=10_000, batch_size=8, watch=poison, **known)
    step = int(str(error.value).split("at step ")[1].split(";")[0])
    games = poison.plan.recipe.stages[0].game
    per_step = 8 * sum(phase.repeats if isinstance(phase.repeats, int) else 1 for phase in games.phases)
    assert step <= poison.at / min(8, per_step) and step * 8 <= poison.at
    kept = twofold.load(tmp_path / "run")
    assert kept.examples <= poison.at
    assert all(w.isfinite().all() for w in kept.nets.state_dict().values() if w.is_floating_point())
    assert json.loads((tmp_path / "run" / "config.json").read_text())["recipe"] == name
