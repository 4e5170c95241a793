"""Compiled steps and channels_last: the eager step's numbers, checkpoints that know nothing of it, and refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import twofold
from played_steps import played
from twofold.cli import _parser
from twofold.compiling import Compiled, CompileError, check, compiled
from twofold.errors import InputError
from twofold.model import evaluating
from twofold.run import Run
from twofold.terms.penalty import differentiating, input_gradient
from twofold.training import Interrupted, Settings, Silent, estimate, fit, prepare, train

X = np.random.default_rng(0).integers(0, 256, (48, 8, 8), dtype=np.uint8)
TINY = {"latent": 3, "width": 4}
STEPS = {
    "vae": ("vae", {**TINY, "norm": "batch", "ema_half_life_examples": 20.0}),
    "vae-gan": ("vae-gan", TINY),  # three backward passes over one graph
    "dcgan": ("dcgan", TINY),  # BatchNorm whose statistics are put back
    "vq-vae": ("vq-vae", {"latent": 3, "codes": 16, "width": 16, "halvings": 1, "restart_examples": 0}),
    "wgan-gp": ("wgan-gp", {**TINY, "arch": "conv"}),  # differentiates twice
    "spectral": ("gan", {**TINY, "arch": "conv", "spectral": True, "penalty": "r1", "penalty_every": 2}),
    "bicycle-gan": ("bicycle-gan", {**TINY}),  # networks held constant in a call
}


def data_for(name: str):
    return twofold.data.pair(255 - X, X) if name == "bicycle-gan" else X


def small(name: str, out=None, **changes):
    options = {"data": X, "out": out, "examples": 64, "batch_size": 16, **TINY}
    return train(name, **{**options, **changes})


def state_of(model) -> dict[str, torch.Tensor]:
    return dict(model.recipe.nets.state_dict())


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Notes(Silent):
    """Keeps what it is told, and presses Ctrl-C after so many examples."""

    def __init__(self, after: int | None = None):
        self.notes: list[str] = []
        self.after = after

    def note(self, line):
        self.notes.append(line)

    def update(self, examples, record):
        if self.after is not None and examples >= self.after:
            self.after = None
            os.kill(os.getpid(), 2)


# The step's numbers.


@pytest.mark.parametrize("case", STEPS)
def test_compiled_steps_are_eager_steps(case):
    """In float64, where a difference of rounding would be about 1e-15 and any other would show: weights, running
    statistics and terms after three steps."""
    name, options = STEPS[case]
    plain, values = played(name, data_for(name), 3, **options)
    traced, traced_values = played(name, data_for(name), 3, compile="aot_eager", **options)
    start, _ = played(name, data_for(name), 0, **options)
    assert plain.keys() == traced.keys() and not same(plain, start)
    for key in plain:
        torch.testing.assert_close(traced[key], plain[key], rtol=1e-10, atol=1e-12, msg=lambda m, k=key: f"{k}: {m}")
    assert [sorted(v) for v in values] == [sorted(v) for v in traced_values]
    for a, b in zip(values, traced_values, strict=True):
        assert a == pytest.approx(b, rel=1e-9, abs=1e-11)


def test_inductor_compiles_on_this_machine():
    """Its own kernels, in C++ or Triton: equal up to rounding."""
    try:
        check("inductor", torch.device("cpu"))
    except InputError as error:
        pytest.skip(str(error))
    options = {"arch": "mlp", "width": 8, "depth": 1, "latent": 2}
    plain, _ = played("vae", X, 3, dtype="float32", **options)
    made, _ = played("vae", X, 3, dtype="float32", compile="inductor", **options)
    for key in plain:
        torch.testing.assert_close(made[key], plain[key], rtol=1e-4, atol=1e-5)


CONVOLVING = ("vae", "vae-gan", "dcgan", "vq-vae", "wgan-gp", "bicycle-gan")


@pytest.mark.parametrize("case", CONVOLVING)
def test_steps_with_channels_last_are_steps_without(case):
    name, options = STEPS[case]
    plain, _ = played(name, data_for(name), 3, **options)
    laid, _ = played(name, data_for(name), 3, channels_last=True, **options)
    turned = [k for k, w in laid.items() if w.dim() == 4 and not w.is_contiguous()]
    assert turned, "no weight is laid out otherwise"
    for key in plain:
        torch.testing.assert_close(laid[key], plain[key], rtol=1e-8, atol=1e-10, msg=lambda m, k=key: f"{k}: {m}")


# What is compiled, and when.


class Counting:
    """A backend that counts what it is given and runs it as it stands."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


def test_only_calls_in_a_step_are_compiled():
    nets = nn.ModuleDict({"net": nn.Sequential(nn.Linear(2, 3), nn.ReLU()), "memory": nn.Identity()})
    backend = Counting()
    with compiled(nets, backend) as calls:
        with calls.stepping():
            for _ in range(3):
                nets["net"](torch.zeros(4, 2))
        assert backend.graphs == 1
        with evaluating(nets):  # samples of another number
            nets["net"](torch.zeros(7, 2))
        assert backend.graphs == 1
        with calls.stepping():
            nets["net"](torch.zeros(8, 2))
        assert backend.graphs == 2
    assert not any("_compiled_call_impl" in vars(net) for net in nets.modules())


def test_each_network_may_be_compiled_many_times():
    """torch counts by code, and gives up at 8: here each network has its own, and more room."""
    nets = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("a", "b")})
    backend = Counting()
    with compiled(nets, backend) as calls, calls.stepping():
        for length in range(2, 12):
            for net in nets.values():
                net(torch.zeros(length, 2))
    assert backend.graphs == 20


def test_a_penalty_calls_its_critic_as_it_is():
    nets = nn.ModuleDict({"critic": nn.Linear(2, 1)})
    backend, inside = Counting(), []

    def critic(x):
        inside.append(differentiating())
        return nets["critic"](x)

    with compiled(nets, backend) as calls, calls.stepping():
        penalty = input_gradient(critic, torch.ones(3, 2)).square().sum()
        penalty.backward()
        assert inside == [True] and not differentiating() and backend.graphs == 0
        assert calls.newly_eager() == ["critic"] and calls.newly_eager() == []
        torch.testing.assert_close(nets["critic"].weight.grad, 6 * nets["critic"].weight.detach())
        with pytest.raises(RuntimeError, match="as it comes"):
            input_gradient(_broken, torch.ones(3, 2))
        assert not differentiating()


def _broken(x):
    raise RuntimeError("as it comes")


def test_what_cannot_be_compiled_is_one_line():
    def backend(graph, inputs):
        raise ValueError("no kernel\nfor this")

    nets = nn.ModuleDict({"net": nn.Linear(2, 2)})
    with compiled(nets, backend) as calls, calls.stepping(), pytest.raises(CompileError) as failed:
        nets["net"](torch.zeros(4, 2))
    assert "net could not be compiled" in str(failed.value) and "no kernel" in str(failed.value)
    assert "\n" not in str(failed.value)
    assert nets["net"](torch.zeros(4, 2)).shape == (4, 2)


# Runs.


def test_a_compiled_run_differs_from_another_in_its_record_alone(tmp_path):
    plain = small("wgan-gp", tmp_path / "plain", ema_half_life_examples=50.0)
    watch = Notes()
    whole = small("wgan-gp", tmp_path / "whole", ema_half_life_examples=50.0, compile="aot_eager", watch=watch)
    assert [note for note in watch.notes if note.startswith("compile")] == [
        "compile: discriminator is not compiled where its gradient is differentiated, in a penalty"
    ]
    for a, b in zip(state_of(plain).values(), state_of(whole).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert same(whole.nets.state_dict(), twofold.load(tmp_path / "whole").nets.state_dict())
    assert np.array_equal(whole.sample(5), twofold.load(tmp_path / "whole").sample(5))
    saved = [Run.open(tmp_path / name).load_checkpoint().tensors for name in ("plain", "whole")]
    assert {k: sorted(v) for k, v in saved[0].items()} == {k: sorted(v) for k, v in saved[1].items()}
    records = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("plain", "whole")]
    assert [record["train"].pop("compile") for record in records] == [None, "aot_eager"]
    assert records[0] == records[1]


def test_a_run_with_both_is_saved_as_any_other_and_resumes_to_the_byte(tmp_path):
    changes = {"compile": "aot_eager", "channels_last": True, "ema_half_life_examples": 50.0, "examples": 96}
    whole = small("dcgan", tmp_path / "whole", **changes)
    assert all(w.is_contiguous() for w in whole.nets.state_dict().values())
    loaded = twofold.load(tmp_path / "whole")
    assert same(whole.nets.state_dict(), loaded.nets.state_dict())
    assert np.array_equal(whole.sample(5), loaded.sample(5))
    with pytest.raises(Interrupted, match="--compile aot_eager --channels-last"):
        small("dcgan", tmp_path / "parts", watch=Notes(32), **changes)
    with pytest.raises(InputError, match="compile = aot_eager, now it is None"):
        small("dcgan", tmp_path / "parts", resume=True, **{**changes, "compile": False})
    with pytest.raises(InputError, match="channels_last = True, now it is False"):
        small("dcgan", tmp_path / "parts", resume=True, **{**changes, "channels_last": False})
    parts = small("dcgan", tmp_path / "parts", resume=True, **changes)
    assert same(state_of(whole), state_of(parts))
    tensors = [Run.open(tmp_path / name).load_checkpoint().tensors for name in ("whole", "parts")]
    assert all(same(tensors[0][file], tensors[1][file]) for file in ("weights", "averages", "training"))


def test_training_in_memory_and_estimates_are_compiled_too(monkeypatch):
    used: list[str] = []
    made = Compiled._call
    monkeypatch.setattr(Compiled, "_call", lambda self, name, *rest: used.append(name) or made(self, name, *rest))
    settings = Settings(examples=32, batch_size=16, compile="aot_eager", channels_last=True)
    plan = prepare("vae", data=X, settings=settings, device="cpu", **TINY)
    assert estimate(plan, seconds=0.01)["examples_per_second"] > 0 and used == ["encoder", "decoder"]
    model, _ = fit(plan)
    assert used == 2 * ["encoder", "decoder"] and all(w.is_contiguous() for w in model.nets.parameters())


# Refusals.


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"compile": "indutcor"}, "unknown value for compile 'indutcor'; did you mean 'inductor'"),
        ({"compile": "aot_eager", "shard": True}, "compile cannot be used with shard"),
        ({"channels_last": True, "arch": "mlp"}, "channels_last is a layout of images and convolutions, and vae has"),
        ({"channels_last": True, "data": np.zeros((20, 3), np.float32)}, "and vae has none here; leave it out"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_written(tmp_path, changes, says):
    with pytest.raises(InputError, match=says) as refused:
        small("vae", tmp_path / "run", **changes)
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()


def test_without_a_compiler_it_is_one_line_and_nothing_is_written(tmp_path):
    """A process of its own, with a compiler that is not there and no kernels kept from before."""
    empty = {"CXX": "/nowhere/c++", "PATH": "/nowhere", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "kernels")}
    words = ["train", "vae", "--data", "digits", "--device", "cpu", "--compile", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-m", "twofold", *words],
        env={**os.environ, **empty, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "torch.compile with inductor does not work here" in done.stderr and "Leave --compile out" in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_flag_takes_a_backend_or_none():
    words = ["train", "vae", "--data", "digits"]
    for more, backend in (([], None), (["--compile"], "inductor"), (["--compile", "aot_eager"], "aot_eager")):
        for line in ([*words, *more], [*words[:2], *more, *words[2:]]):
            assert _parser(line).parse_args(line).compile == backend
    # The words after a flag whose value is left out are not taken for its value.
    line = ["train", "--compile", "--out", "gan", "vae", "--data", "digits"]
    assert _parser(line).parse_args(line).name == "vae"
    with pytest.raises(InputError, match=r"unknown value for --compile 'vae' \(known: aot_eager, inductor\)"):
        _parser(["train", "--compile", "vae"]).parse_args(["train", "--compile", "vae"])
