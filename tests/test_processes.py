"""Several processes: what they compute together is what one computes alone, and only one of them writes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import twofold
from twofold.errors import InputError
from twofold.processes import _WholeBatchNoise
from twofold.run import Run
from twofold.training import train

TINY = {"latent": 3, "width": 4}
X = np.random.default_rng(0).integers(0, 256, (64, 8, 8), dtype=np.uint8)

PROGRAM = """
import json, sys
import numpy as np
import torch
from twofold.errors import InputError
from twofold.training import TrainingError, train
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
x = np.random.default_rng(0).integers(0, 256, (64, 8, 8), dtype=np.uint8)
for name, options in json.loads(sys.argv[1]):
    try:
        model = train(name, data=x, **options)
    except (InputError, TrainingError) as error:
        print("refused:", error, flush=True)
torch.distributed.destroy_process_group()
"""


def launch(jobs: list[tuple[str, dict]], count: int = 2) -> list[str]:
    """Train each job in `count` processes that meet as torchrun's do; what each of them printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meet = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", PROGRAM, json.dumps(jobs)],
            env={**os.environ, **meet, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        outputs = [child.communicate(timeout=150) for child in children]
    finally:
        for child in children:
            child.kill()
            child.communicate()
    assert all(child.returncode == 0 for child in children), outputs[0][1][-3000:] + outputs[1][1][-3000:]
    return [out for out, _ in outputs]


CASES = {
    "vae": ("vae", {}),
    "vae-accumulated-bf16": ("vae", {"precision": "bf16", "accumulate": 2, "flip": True, "crop": 1}),
    "dcgan": ("dcgan", {}),
    "wgan-gp": ("wgan-gp", {"ema_half_life_examples": 50.0}),
    "vae-gan": ("vae-gan", {}),
    "vae-gan-released": ("vae-gan-released", {}),
    "iwae": ("iwae", {}),
}


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """Every case in two processes, then some of them again: cut in the middle and gone on with by one process."""
    folder = tmp_path_factory.mktemp("two")
    jobs = [
        (name, {"out": str(folder / case), "examples": 96, "batch_size": 16, "device": "cpu", **sized(name), **more})
        for case, (name, more) in CASES.items()
    ]
    shorter = [(name, {**options, "examples": 48, "out": options["out"] + "-half"}) for name, options in jobs[:5:4]]
    refused = [("vq-vae", {**jobs[0][1], "out": str(folder / "vq"), "width": 16, "latent": 3}), ("vae", jobs[0][1])]
    uneven = [("vae", {**jobs[0][1], "out": str(folder / "uneven"), "batch_size": 15})]
    said = launch([*jobs, *shorter, *refused, *uneven])
    (folder / "said.json").write_text(json.dumps(said))
    return folder


def sized(name: str) -> dict:
    config = twofold.recipes.default_config(twofold.recipes.find(name))
    return {k: v for k, v in TINY.items() if hasattr(config, k)}


def distance(a: Path, b: Path) -> float:
    """‖a - b‖ / ‖a‖ over all weights and running statistics of two runs."""
    one, other = (Run.open(path).load_checkpoint().tensors["weights"] for path in (a, b))
    assert one.keys() == other.keys()
    pairs = [(w.double(), other[name].double()) for name, w in one.items() if w.is_floating_point()]
    apart = sum(float((u - v).square().sum()) for u, v in pairs)
    return (apart / sum(float(u.square().sum()) for u, _ in pairs)) ** 0.5


def alone(out: Path, case: str, **changes) -> None:
    name, more = CASES[case]
    train(name, **{"data": X, "out": out, "examples": 96, "batch_size": 16, **sized(name), **more, **changes})


@pytest.mark.parametrize("case", ["vae", "dcgan", "wgan-gp", "vae-gan", "vae-gan-released", "iwae"])
def test_two_processes_train_what_one_trains(together, tmp_path, case):
    """The same batches, the same noise, BatchNorm over the whole batch: what is left is the order of additions in
    float32, about 1e-7, which Adam and RMSprop magnify where a gradient is near 0: a few steps, and 1e-3."""
    alone(tmp_path / "one", case)
    alone(tmp_path / "other seed", case, seed=1)
    near, far = distance(tmp_path / "one", together / case), distance(tmp_path / "one", tmp_path / "other seed")
    assert near < 1e-3 and near < far / 100, (near, far)
    one, two = ([r for r in Run.open(p).metrics() if "seconds" in r] for p in (tmp_path / "one", together / case))
    for a, b in zip(one, two, strict=True):
        assert a["examples"] == b["examples"]
        for key in a:
            # Pairs of logits are ranked within each process, so that their share is another estimate of the same.
            if "second" not in key and not key.endswith("discriminator_accuracy"):
                assert b[key] == pytest.approx(a[key], rel=1e-2, abs=1e-3), key


def test_bf16_and_accumulation_train_in_two_processes(together):
    model = twofold.load(together / "vae-accumulated-bf16")
    assert model.examples == 96 and all(w.dtype == torch.float32 for w in model.nets.parameters())


def test_resume_across_a_change_of_process_count(together, tmp_path):
    for case in ("vae", "vae-gan"):
        alone(together / f"{case}-half", case, resume=True)
        alone(tmp_path / case, case)
        assert distance(tmp_path / case, together / f"{case}-half") < 1e-3


def test_only_the_main_process_writes_and_all_are_refused_alike(together):
    said = [text.splitlines() for text in json.loads((together / "said.json").read_text())]
    assert said[0] == said[1]
    assert [line[:40] for line in said[0]] == [
        "refused: this recipe keeps state of its ",
        f"refused: there is a run at {together}"[:40],
        "refused: batch_size 15 cannot be shared ",
    ]
    assert not (together / "vq").exists() and not (together / "uneven").exists()
    examples = [r["examples"] for r in Run.open(together / "vae").metrics() if "seconds" in r]
    assert examples == sorted(set(examples))


def test_noise_is_the_whole_batchs_cut_into_rows():
    def draws(generator: torch.Generator) -> list[torch.Tensor]:
        return [
            torch.randn(n, 3, generator=generator),
            torch.rand((n, 2), generator=generator),
            torch.randint(7, (n, 2), generator=generator),
            torch.randint(3, 9, size=(n,), generator=generator),
            torch.empty(n, 4).exponential_(generator=generator),
            torch.randn(2 * n, 2, generator=generator),
            torch.randn(5, generator=torch.Generator().manual_seed(1)),
            torch.bernoulli(torch.full((n, 2), 0.5), generator=generator),
        ]

    n = 8
    generator = torch.Generator().manual_seed(0)
    whole = draws(generator)
    n = 4
    shares = []
    for rank in range(2):
        own = torch.Generator().manual_seed(0)
        with _WholeBatchNoise(own, n, rank, 2):
            shares.append((draws(own), own.get_state()))
    assert torch.equal(shares[0][1], shares[1][1])
    for k in range(6):
        assert torch.equal(torch.cat([shares[0][0][k], shares[1][0][k]]), whole[k]), k
    assert torch.equal(shares[0][0][6], whole[6]) and torch.equal(shares[1][0][6], whole[6])
    assert not torch.equal(shares[0][0][7], shares[1][0][7])


def test_one_process_verbs_refuse_a_launcher(monkeypatch, tmp_path):
    from twofold.device import choose_device

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="start it without a launcher"):
        choose_device("cpu")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(InputError, match="RANK is not set"):
        train("vae", data=X, out=tmp_path / "run")
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(InputError, match="WORLD_SIZE is 'two'"):
        train("vae", data=X, out=tmp_path / "run")


def test_fp16_scales_its_losses_and_resumes(tmp_path):
    options = {"data": X, "batch_size": 16, "precision": "fp16", **sized("vae")}
    train("vae", out=tmp_path / "whole", examples=320, **options)
    train("vae", out=tmp_path / "parts", examples=160, **options)
    train("vae", out=tmp_path / "parts", examples=320, resume=True, **options)
    assert distance(tmp_path / "whole", tmp_path / "parts") == 0.0
    state = Run.open(tmp_path / "parts").load_checkpoint().state
    assert state["loss_scale"]["value"] > 1 and state["progress"]["skipped"] < 10
    losses = [r["reconstruction"] for r in Run.open(tmp_path / "whole").metrics() if "reconstruction" in r]
    train("vae", out=tmp_path / "float32", examples=320, **{**options, "precision": "float32"})
    exact = [r["reconstruction"] for r in Run.open(tmp_path / "float32").metrics() if "reconstruction" in r]
    assert losses[-1] == pytest.approx(exact[-1], rel=0.02)
