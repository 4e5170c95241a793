"""Kill -9 a training again and again, resume it each time, and compare the end with an undisturbed run, bit for bit.

    python bench/kill.py --kills 50 --recipe vae-gan

Half of the kills come at a random moment of the child's life, half at a random event on the disk (a rename, a sync, an
appended record): while training, saving, drawing and writing the report. After each kill the directory must be
readable: config, metrics, and the newest checkpoint with its checksums. At the end the newest checkpoint's files, the
metrics (but for times), the pictures of samples and the names of all files must be those of the undisturbed run.

Children are forked from one process, so that a kill costs a fraction of a second and not an import of torch.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

import twofold
from twofold.run import Run
from twofold.training import train


def fork(work) -> int:
    child = os.fork()
    if child == 0:
        code = 3
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def die_at(event: int) -> None:
    """From here on, this process kills itself at its `event`-th rename, sync or appended record."""
    left = event

    def counted(function):
        def call(*arguments, **keywords):
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return call

    os.replace, os.fsync = counted(os.replace), counted(os.fsync)
    Run.append_metrics = counted(Run.append_metrics)


def state_of(path: Path) -> dict[str, object]:
    """All that must not depend on the kills."""
    run = Run.open(path)
    last = path / f"checkpoints/{run.checkpoints()[-1]:012d}"
    return {
        "tensors": {f.name: f.read_bytes() for f in last.glob("*.safetensors")},
        "metrics": [{k: v for k, v in r.items() if "second" not in k} for r in run.metrics()],
        "samples": {f.name: f.read_bytes() for f in (path / "samples").iterdir()},
        "names": sorted(str(p.relative_to(path)) for p in path.rglob("*")),
    }


def check_readable(path: Path) -> int | None:
    """Examples of the newest checkpoint, which must be whole."""
    if not (path / "config.json").exists():
        return None
    run = Run.open(path)
    run.metrics()
    return twofold.load(path).examples if run.checkpoints() else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--recipe", default="vae-gan")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--examples", type=int, default=4_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a child may wait for ever for threads that only its parent has
    rng = random.Random(arguments.seed)
    folder = Path(tempfile.mkdtemp())

    def work(out: str, event: int | None = None) -> None:
        if event is not None:
            die_at(event)
        train(arguments.recipe, data=arguments.data, out=folder / out, examples=arguments.examples, resume=True)

    start = time.perf_counter()
    child = fork(lambda: work("whole"))
    assert os.waitpid(child, 0)[1] == 0
    whole_seconds = time.perf_counter() - start
    kills = finished = 0
    before = None
    moments: dict[str, int] = {}
    while kills < arguments.kills:
        event = rng.randint(1, 150) if kills % 2 else None
        child = fork(lambda event=event: work("parts", event))
        if event is None:
            time.sleep(rng.random() * whole_seconds * 1.05)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == 0, "a resume failed"
        else:
            kills += 1
        seen = check_readable(folder / "parts")
        assert before is None or seen is None or seen >= before, f"went back from {before} to {seen} examples"
        before = seen
        kind = "event on disk" if event else "moment"
        moments[kind] = moments.get(kind, 0) + bool(os.WIFSIGNALED(status))
        complete = seen is not None and seen >= arguments.examples
        if complete and rng.random() < 0.3:  # a whole life: compare it and begin another
            finished += compare(folder, work)
            before = None
    finished += compare(folder, work)
    print(f"{kills} kills ({moments}), {finished} runs brought to their end: each bit for bit the undisturbed one")
    shutil.rmtree(folder)
    return 0


def compare(folder: Path, work) -> int:
    """Finish the killed run, compare it with the undisturbed one and remove it."""
    assert os.waitpid(fork(lambda: work("parts")), 0)[1] == 0
    whole, parts = state_of(folder / "whole"), state_of(folder / "parts")
    for name in whole:
        if whole[name] != parts[name]:
            sys.exit(f"{name} differ from the undisturbed run's; see {folder}")
    shutil.rmtree(folder / "parts")
    return 1


if __name__ == "__main__":
    sys.exit(main())
