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
from played_steps import apart, played
from twofold import recipes, sharding
from twofold.errors import InputError
from twofold.processes import Processes, _WholeBatchNoise
from twofold.run import Run
from twofold.training import train

TINY = {"latent": 3, "width": 4}
X = np.random.default_rng(0).integers(0, 256, (64, 8, 8), dtype=np.uint8)

Y = np.arange(64) % 4


def data_for(name: str):
    return twofold.data.pair(255 - X, X) if name == "cyclegan" else (X, Y) if name == "vqgan" else X


PROGRAM = """
import json, sys
import torch
from played_steps import held, played
from test_processes import data_for
from twofold import recipes
from twofold.errors import InputError
from twofold.processes import joined
from twofold.training import TrainingError, train
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
for name, options in json.loads(sys.argv[1]):
    try:
        if options.pop("held", False):
            with joined("cpu") as processes:
                print(*held(name, data_for(name), processes, **options), flush=True)
        elif "steps" in options:
            out = options.pop("out")
            with joined("cpu") as processes:
                state, values = played(name, data_for(name), processes=processes, **options)
            if processes.main:
                torch.save(state, out)
        else:
            model = train(name, data=data_for(name), **options)
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
    meet["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
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
        outputs = [child.communicate(timeout=300) for child in children]
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
    "dcgan-compiled": ("dcgan", {"compile": "aot_eager"}),
}
CODES = {"latent": 3, "codes": 16, "restart_examples": 32}
AVERAGED = ("vq-vae", {**CODES, "width": 16, "halvings": 1, "codebook": "ema"})
PLAYED = {
    "vae-gan-released": ("vae-gan-released", {**TINY, "steps": 12}),
    "gated": ("vae-gan-released", {**TINY, "equilibrium_margin": 0.02, "steps": 6}),
    "vq-vae": ("vq-vae", {**CODES, "width": 16, "halvings": 1, "steps": 8}),
    "vq-vae-ema": (AVERAGED[0], {**AVERAGED[1], "steps": 8}),
    "vq-vae-released": ("vq-vae-released", {**CODES, "width": 16, "width_residual": 8, "steps": 8}),
    "vq-vae-2": (
        "vq-vae-2",
        {**CODES, "width": 8, "blocks": 1, "halvings": 1, "prior_width": 8, "refine_share": 1.0, "steps": 4}
        | {"refine_ramp": 16, "width_discriminator": 4},
    ),
    "vqgan": (
        "vqgan",
        {**CODES, "width": 8, "multipliers": "1,2", "perceptual": "features", "width_discriminator": 4, "steps": 4}
        | {"adversarial_begin": 16, "adversarial_ramp": 16, "restart_examples": 16, "conditional": True}
        | {"prior_width": 8, "prior_layers": 1, "prior_heads": 2, "prior_dropout": 0.0},
    ),
    "cyclegan": ("cyclegan", {"width": 4, "blocks": 1, "pool": 8, "steps": 6}),
}
"""Steps of each stage, compared in float64: memory, gates, and what magnifies rounding in float32."""


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """Every case in two processes, then some of them again: cut in the middle and gone on with by one process."""
    folder = tmp_path_factory.mktemp("two")
    jobs = [
        (name, {"out": str(folder / case), "examples": 96, "batch_size": 16, "device": "cpu", **sized(name), **more})
        for case, (name, more) in CASES.items()
    ]
    shorter = [(name, {**options, "examples": 48, "out": options["out"] + "-half"}) for name, options in jobs[:5:4]]
    pooled = {
        "out": str(folder / "pooled"),
        "device": "cpu",
        "batch_size": 16,
        "width": 4,
        "blocks": 1,
        "norm": "batch",
    }
    refused = [("cyclegan", pooled), ("vae", jobs[0][1])]
    uneven = [("vae", {**jobs[0][1], "out": str(folder / "uneven"), "batch_size": 15})]
    said = launch([*jobs, *shorter, *refused, *uneven])
    (folder / "said.json").write_text(json.dumps(said))
    return folder


def sized(name: str) -> dict:
    config = twofold.recipes.default_config(twofold.recipes.find(name))
    return {k: v for k, v in TINY.items() if hasattr(config, k)}


def distance(a: Path, b: Path) -> float:
    """‖a - b‖ / ‖a‖ over all weights, running statistics and memory of two runs."""
    one, other = (Run.open(path).load_checkpoint().tensors["weights"] for path in (a, b))
    return apart(one, other)


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


@pytest.fixture(scope="module")
def steps_together(tmp_path_factory) -> Path:
    """Every case's steps in two processes, in float64, those with memory in float32 as well; and half a run."""
    folder = tmp_path_factory.mktemp("steps")
    jobs = [(name, {**options, "out": str(folder / f"{case}.pt")}) for case, (name, options) in PLAYED.items()]
    coarse = [
        (name, {**options, "out": str(folder / f"{case}.float32.pt"), "dtype": "float32"})
        for case, (name, options) in PLAYED.items()
        if case in IN_FLOAT32
    ]
    half = {**AVERAGED[1], "out": str(folder / "half"), "examples": 48, "batch_size": 16, "device": "cpu"}
    launch([*jobs, *coarse, (AVERAGED[0], half)])
    return folder


PIXELS = {"levels": 4, "layers": 2, "width": 8, "batch_size": 16, "device": "cpu"}
CODED = {**PLAYED["vqgan"][1], "adversarial_weight": 0.0, "perceptual": "none", "batch_size": 16, "device": "cpu"}
CODED.pop("steps")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> tuple[Path, list[list[str]]]:
    """Runs with `shard` in two processes, what they would not do, and what each process held."""
    if not sharding.possible(torch.device("cpu")):
        pytest.skip(f"torch {torch.__version__} does not shard on the CPU")
    folder = tmp_path_factory.mktemp("shard")
    whole, half, other = (str(folder / name) for name in ("coded", "half", "other-half"))
    said = launch(
        [
            ("vqgan", {**CODED, "out": whole, "examples": 64, "shard": True, "keep_best": "min:nll"}),
            ("pixelcnn", {**PIXELS, "out": half, "examples": 32, "shard": True}),
            ("pixelcnn", {**PIXELS, "out": other, "examples": 32}),
            ("pixelcnn", {**PIXELS, "out": other, "examples": 64, "shard": True, "resume": True}),
            ("vae", {**TINY, "device": "cpu", "out": whole, "shard": True}),
            ("pixelcnn", {**PIXELS, "out": whole, "shard": True, "ema_half_life_examples": 9.0}),
            ("pixelcnn", {**PIXELS, "out": whole, "shard": True, "likelihood": "mixture"}),
            ("pixelcnn", {**PIXELS, "held": True}),
        ]
    )
    return folder, [text.splitlines() for text in said]


def test_a_sharded_network_trains_and_is_saved_as_a_whole_one(sharded, tmp_path):
    """The stage of the Transformer on the codes is sharded, the autoencoder's is not."""
    model = train("vqgan", data=(X, Y), out=tmp_path / "one", examples=64, **CODED)
    start = recipes.build(
        "vqgan", model.recipe.spec, {k: v for k, v in CODED.items() if k not in ("batch_size", "device")}
    )
    moved = apart(dict(model.recipe.nets.state_dict()), dict(start[1].nets.state_dict()))
    near = distance(tmp_path / "one", sharded[0] / "coded")
    assert near < 1e-4 and near < moved / 100, (near, moved)
    assert Run.open(sharded[0] / "coded").best() is not None
    one, two = (twofold.load(path).sample(2, seed=0) for path in (tmp_path / "one", sharded[0] / "coded"))
    assert one.shape == two.shape


def test_sharded_and_whole_runs_go_on_from_each_other(sharded, tmp_path):
    """With their optimizers: a sharded half by one process, a half with whole copies by two that shard."""
    train("pixelcnn", data=X, out=tmp_path / "whole", examples=64, **PIXELS)
    train("pixelcnn", data=X, out=sharded[0] / "half", examples=64, resume=True, **PIXELS)
    for half in ("half", "other-half"):
        assert distance(tmp_path / "whole", sharded[0] / half) < 1e-5
        one, two = (Run.open(p).load_checkpoint().tensors["training"] for p in (tmp_path / "whole", sharded[0] / half))
        moments = [name for name in one if "exp_avg" in name]
        assert moments and apart({n: one[n] for n in moments}, {n: two[n] for n in moments}) < 1e-4


def test_shard_refuses_what_it_cannot_divide_and_holds_half(sharded):
    for said in sharded[1]:
        assert [line[:42] for line in said[:3]] == [
            "refused: shard needs a stage in which one "[:42],
            "refused: shard keeps no moving average of "[:42],
            "refused: shard cannot divide this network:"[:42],
        ]
        held, of = (int(number) for number in said[3].split())
        assert of / 2 <= held < 0.55 * of  # uneven rows are padded
    with pytest.raises(InputError, match="there is one; launch several"):
        train("pixelcnn", data=X, shard=True, **PIXELS)


def test_shard_is_refused_where_torch_cannot_do_it(monkeypatch):
    monkeypatch.setattr(sharding, "possible", lambda device: False)
    stages = recipes.build("pixelcnn", twofold.data.load(X).spec, {"levels": 4, "layers": 2, "width": 8})[1].stages
    two = Processes(count=2)
    with pytest.raises(InputError, match="use a newer one, or leave shard out"):
        sharding.check(stages, two, torch.device("cpu"))


IN_FLOAT32 = ("vq-vae", "vq-vae-ema")
"""Not `cyclegan`: a bias in front of InstanceNorm has no gradient but rounding, which Adam makes a whole step of."""


@pytest.mark.parametrize("case", PLAYED)
def test_two_processes_train_what_one_trains_up_to_rounding(steps_together, case):
    """In float64 nothing is left but the order of additions: 1e-16 a step, which Adam and RMSprop magnify to less than
    1e-8. A code chosen or moved otherwise, another pool or gate, an average over a share alone is 1e-3 or more."""
    name, options = PLAYED[case]
    one, values = played(name, data_for(name), **options)
    other, _ = played(name, data_for(name), seed=1, **options)
    two = torch.load(steps_together / f"{case}.pt", weights_only=True)
    assert apart(one, two) < 1e-8 and apart(one, other) > 0.1, (apart(one, two), apart(one, other))
    for key, value in one.items():  # for how long codes were idle, which places of a pool are filled
        assert value.is_floating_point() or torch.equal(value, two[key]), key
    # What the comparison is about has happened.
    if "restart_examples" in options:
        assert sum(v.get(key, 0) for v in values for key in ("codes_restarted", "codes_restarted_top")) > 0
    if case == "gated":
        assert {v["adversarial_decoder → decoder"] for v in values} == {0.0, 1.0}


@pytest.mark.parametrize("case", IN_FLOAT32)
def test_memory_agrees_in_float32_too(steps_together, case):
    name, options = PLAYED[case]
    one, other = (played(name, data_for(name), dtype="float32", seed=seed, **options)[0] for seed in (0, 1))
    two = torch.load(steps_together / f"{case}.float32.pt", weights_only=True)
    assert apart(one, two) < 1e-3 and apart(one, two) < apart(one, other) / 100


def test_a_codebook_goes_on_in_another_number_of_processes(steps_together, tmp_path):
    for out, options in ((steps_together / "half", {"resume": True}), (tmp_path / "whole", {})):
        train(AVERAGED[0], data=X, out=out, examples=96, batch_size=16, **AVERAGED[1], **options)
    assert distance(tmp_path / "whole", steps_together / "half") < 1e-3


def test_bf16_and_accumulation_train_in_two_processes(together):
    model = twofold.load(together / "vae-accumulated-bf16")
    assert model.examples == 96 and all(w.dtype == torch.float32 for w in model.nets.parameters())


def test_resume_across_a_change_of_process_count(together, tmp_path):
    for case in ("vae", "vae-gan"):
        alone(together / f"{case}-half", case, resume=True)
        alone(tmp_path / case, case)
        assert distance(tmp_path / case, together / f"{case}-half") < 1e-3


def test_compiled_steps_work_in_two_processes(together):
    """BatchNorm's exchange in the middle of a compiled network included."""
    assert distance(together / "dcgan", together / "dcgan-compiled") < 1e-6


def test_only_the_main_process_writes_and_all_are_refused_alike(together):
    said = [text.splitlines() for text in json.loads((together / "said.json").read_text())]
    assert said[0] == said[1]
    assert [line[:40] for line in said[0]] == [
        "refused: several processes cannot share ",
        f"refused: there is a run at {together}"[:40],
        "refused: batch_size 15 cannot be shared ",
    ]
    assert not (together / "pooled").exists() and not (together / "uneven").exists()
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
