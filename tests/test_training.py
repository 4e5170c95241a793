"""Runs: what is written, exact resume, interruption, refusal, and what a trained model answers."""

from __future__ import annotations

import json
import os
import shlex
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import twofold
from small import ANY_SIZE
from twofold import recipes
from twofold.cli import _chosen, _parser, _read_options
from twofold.data import pair
from twofold.errors import InputError
from twofold.model import Model
from twofold.run import Run
from twofold.training import Interrupted, Settings, Silent, TrainingError, command, estimate, prepare, train

# Presets on pairs train what their module's own recipe trains, with terms left out.
NAMES = [e.name for e in recipes.ENTRIES if e.family != recipes.TRANSLATION or e.preset == "Config"]
TINY = {
    **{"latent": 3, "width": 4, "hidden": 5, "prior_width": 8, "prior_layers": 1, "prior_heads": 2},
    **{"blocks": 1, "pool": 12},
}


def options(name: str) -> dict:
    config = recipes.default_config(recipes.find(name))
    return {k: v for k, v in TINY.items() if hasattr(config, k)} | ANY_SIZE.get(name, {})


def data(n: int = 50, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 8, 8), dtype=np.uint8), np.arange(n) % 3


def data_for(name: str):
    """Images with labels, or pairs of images for the recipes that take these."""
    if recipes.find(name).family != recipes.TRANSLATION:
        return data()
    return pair(data(seed=1)[0], data()[0])


def made(model: Model, n: int, seed: int = 0) -> np.ndarray:
    """Samples of the model, or translations."""
    if "sample" in model.abilities:
        return model.sample(n, seed=seed)
    return model.translate(data(n, seed=9)[0], seed=seed)


def run(name: str, out: Path, *, examples: int = 160, **changes) -> Model:
    return train(
        name, **{"data": data_for(name), "out": out, "examples": examples, "batch_size": 8, **options(name), **changes}
    )


class Stop(Silent):
    """Presses Ctrl-C once `after` examples have been seen."""

    def __init__(self, after: int):
        self.after, self.pressed = after, False

    def update(self, examples, record):
        if examples >= self.after and not self.pressed:
            self.pressed = True
            os.kill(os.getpid(), signal.SIGINT)


def weights(model: Model) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.recipe.nets.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", NAMES)
def test_interrupted_and_resumed_is_uninterrupted_bit_for_bit(name, tmp_path):
    """Weights, optimizers, averages, random states, data order: all of it shows in the final bytes."""
    changes = {"seed": 3, "flip": True, "crop": 1}
    if hasattr(recipes.default_config(recipes.find(name)), "ema_half_life_examples"):
        changes["ema_half_life_examples"] = 50.0
    whole = run(name, tmp_path / "whole", **changes)
    with pytest.raises(Interrupted, match="--resume"):
        run(name, tmp_path / "parts", watch=Stop(40), **changes)
    stopped = Run.open(tmp_path / "parts").checkpoints()[-1]
    assert 0 < stopped < whole.examples
    with pytest.raises(Interrupted):
        run(name, tmp_path / "parts", watch=Stop(stopped + 40), resume=True, **changes)
    parts = run(name, tmp_path / "parts", resume=True, **changes)
    assert same(weights(whole), weights(parts))
    assert np.array_equal(made(whole, 9), made(parts, 9))
    for file in ("weights", "averages", "training"):
        a, b = (Run.open(tmp_path / k).load_checkpoint().tensors[file] for k in ("whole", "parts"))
        assert same(a, b), file
    examples = [r["examples"] for r in Run.open(tmp_path / "parts").metrics()]
    assert examples == sorted(examples) and examples[-1] == parts.examples


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_is_the_same_model(name, tmp_path):
    model = run(name, tmp_path / "run")
    loaded = twofold.load(tmp_path / "run")
    assert same(model.nets.state_dict(), loaded.nets.state_dict())
    assert np.array_equal(made(model, 5, 7), made(loaded, 5, 7))
    assert loaded.spec == model.spec and loaded.examples == model.examples
    assert made(loaded, 2).dtype == np.uint8 and made(loaded, 2).shape == (2, 8, 8)
    os.rename(tmp_path / "run", tmp_path / "moved")
    assert np.array_equal(made(twofold.load(tmp_path / "moved"), 5, 7), made(model, 5, 7))


def test_a_run_describes_itself(tmp_path):
    model = run("vae-gan", tmp_path / "run", conditional=True)
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["recipe"] == "vae-gan" and record["config"]["latent"] == 3 and record["train"]["batch_size"] == 8
    assert record["spec"]["shape"] == [1, 8, 8] and record["data"]["train_examples"] == 45
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert {"config.json", "metrics.jsonl", "samples", "checkpoints", "curves.png", "report.html"} <= names
    last = f"{model.examples:012d}.png"
    assert (tmp_path / "run" / "samples" / last).exists()
    assert (tmp_path / "run" / "samples" / f"reconstructions-{last}").exists()
    report = (tmp_path / "run" / "report.html").read_text()
    for part in (
        "feature_reconstruction",
        "data:image/png;base64,",
        "discriminator",
        "twofold train vae-gan",
        "latent",
    ):
        assert part in report, part
    assert "http://" not in report.replace("http://www.w3.org", "") and "<script" not in report
    terms = {"kl", "feature_reconstruction", "adversarial_decoder", "adversarial_discriminator"}
    assert any(terms <= set(r) for r in Run.open(tmp_path / "run").metrics())
    assert not any(p.suffix in (".pt", ".pkl", ".pth") for p in (tmp_path / "run").rglob("*"))


def test_the_same_seed_gives_the_same_run_and_another_another(tmp_path):
    a, b, c = (run("vae-gan", tmp_path / str(k), seed=s) for k, s in enumerate((1, 1, 2)))
    assert same(weights(a), weights(b)) and not same(weights(a), weights(c))


def test_the_callers_random_state_is_left_alone(tmp_path):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    run("vae", tmp_path / "run")
    assert torch.equal(torch.rand(3), expected)


def test_the_run_ends_with_the_step_that_reaches_its_length(tmp_path):
    assert run("vae", tmp_path / "a", examples=100).examples == 104
    assert run("wgan-gp", tmp_path / "b", examples=100).examples == 120  # five critic batches a step


def test_a_longer_run_resumes_a_finished_one(tmp_path):
    run("vae", tmp_path / "a", examples=80)
    longer = run("vae", tmp_path / "a", examples=160, resume=True)
    assert longer.examples == 160
    assert json.loads((tmp_path / "a" / "config.json").read_text())["train"]["examples"] == 160
    assert same(weights(longer), weights(run("vae", tmp_path / "b", examples=160)))


def test_resume_starts_a_run_that_has_not_begun(tmp_path):
    assert run("vae", tmp_path / "new", resume=True).examples == 160


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent": 4}, "started with latent = 3, now it is 4"),
        ({"batch_size": 4}, "started with batch_size = 8, now it is 4"),
        ({"seed": 5}, "started with seed = 0, now it is 5"),
        ({"data": data(seed=1)}, "started on other data"),
        ({"examples": 80}, "planned for 160 examples; resume may raise that"),
    ],
)
def test_resume_with_another_config_or_data_is_refused_and_costs_nothing(tmp_path, changes, message):
    run("vae", tmp_path / "run")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(InputError, match=message):
        run("vae", tmp_path / "run", resume=True, **changes)
    with pytest.raises(InputError, match="this run trains vae, not gan"):
        run("gan", tmp_path / "run", resume=True)
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 64}, "batch size 64 is larger than the 45 training examples"),
        ({"examples": 0}, "examples is 0; it starts at 1"),
        ({"accumulate": 9}, "accumulate is 9"),
        ({"crop": -1}, "crop is -1"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not there"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"lattent": 3}, "unknown option 'lattent'; did you mean 'latent'"),
        ({"on_nonfinite": "hope"}, "on_nonfinite is 'hope'"),
        ({"data": "digitz"}, "digitz.*did you mean 'digits'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run("vae", tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_an_existing_run_or_folder_is_not_overwritten(tmp_path):
    run("vae", tmp_path / "run")
    with pytest.raises(InputError, match="resume"):
        run("vae", tmp_path / "run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("mine")
    with pytest.raises(InputError):
        run("vae", tmp_path / "full")
    assert (tmp_path / "full" / "precious.txt").read_text() == "mine"


def test_without_out_each_run_gets_a_fresh_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a, b = (run("vae", None, data="digits", examples=16).run.path for _ in range(2))
    assert (a.relative_to(tmp_path), b.relative_to(tmp_path)) == (Path("runs/vae-digits"), Path("runs/vae-digits-2"))


@pytest.mark.parametrize("name", ["vae", "vae-gan"])
def test_divergence_is_named_and_the_last_good_checkpoint_stays(tmp_path, name):
    with pytest.raises(TrainingError, match=r"term '\w+', which trains .* at step \d+; .*last good checkpoint, at 0"):
        run(name, tmp_path / "run", learning_rate=1e30)
    model = twofold.load(tmp_path / "run")
    assert all(w.isfinite().all() for w in weights(model).values() if w.is_floating_point())
    assert model.sample(3).shape == (3, 8, 8)


def test_a_loss_that_is_not_finite_can_be_skipped(tmp_path):
    model = run("vae", tmp_path / "run", learning_rate=1e30, on_nonfinite="skip", examples=80)
    assert model.examples == 80
    assert Run.open(tmp_path / "run").load_checkpoint().state["progress"]["skipped"] > 0


def test_a_damaged_checkpoint_is_refused_and_the_good_one_named(tmp_path):
    run("vae", tmp_path / "run")
    good, bad = Run.open(tmp_path / "run").checkpoints()[-2:]
    file = tmp_path / "run" / "checkpoints" / f"{bad:012d}" / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"weights.safetensors.*{good}"):
        twofold.load(tmp_path / "run")
    assert twofold.load(tmp_path / "run", checkpoint=good).examples == good
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="weights.safetensors"):
        run("vae", tmp_path / "run", resume=True, examples=320)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    run("vae", tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    record = json.loads(path.read_text())
    record["config"]["latent"] = 5
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match="do not fit this recipe: .* has shape"):
        twofold.load(tmp_path / "run")
    record["config"]["depth"] = 99
    record["config"]["norm"] = "none"
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match="on one side only"):
        twofold.load(tmp_path / "run")


def test_disk_full_while_saving_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    run("vae", tmp_path / "run", examples=80)
    before = Run.open(tmp_path / "run").checkpoints()
    expected = twofold.load(tmp_path / "run").sample(3)
    real = os.fsync
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 3:
            raise OSError(28, "No space left on device")
        return real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        run("vae", tmp_path / "run", examples=320, resume=True)
    monkeypatch.undo()
    assert Run.open(tmp_path / "run").checkpoints()[: len(before)] == before
    assert np.array_equal(twofold.load(tmp_path / "run").sample(3), expected)
    assert run("vae", tmp_path / "run", examples=320, resume=True).examples == 320


def test_estimate_measures_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = prepare("vae-gan", data=data(), settings=Settings(batch_size=8), **options("vae-gan"))
    cost = estimate(plan, seconds=0.05)
    assert cost["parameters"] == sum(w.numel() for w in plan.recipe.nets.parameters())
    assert cost["seconds"] > 0 and cost["examples_per_second"] > 0
    # Weights, gradients and RMSProp's one average: at least three copies of the weights.
    assert cost["state_bytes"] >= 3 * 4 * cost["parameters"]
    assert not list(tmp_path.iterdir())


def test_bf16_trains_and_keeps_float32_weights(tmp_path):
    model = run("vae-gan", tmp_path / "run", precision="bf16")
    assert all(w.dtype == torch.float32 for w in model.nets.parameters())
    records = [r for r in Run.open(tmp_path / "run").metrics() if "kl" in r]
    assert all(np.isfinite(r["kl"]) for r in records)


def test_fused_trains_the_same_up_to_rounding_and_resumes_to_the_byte(tmp_path):
    plain, whole = run("vae", tmp_path / "plain", fused=False), run("vae", tmp_path / "whole")
    assert not same(weights(plain), weights(whole))  # it did use another kernel
    for a, b in zip(weights(plain).values(), weights(whole).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    with pytest.raises(Interrupted):
        run("vae", tmp_path / "parts", watch=Stop(40))
    with pytest.raises(InputError, match="fused = True, now it is False; give what it had"):
        run("vae", tmp_path / "parts", resume=True, fused=False)
    assert same(weights(whole), weights(run("vae", tmp_path / "parts", resume=True)))


def test_a_run_of_before_there_were_these_settings_resumes_with_what_it_had(tmp_path):
    with pytest.raises(Interrupted):
        run("vae", tmp_path / "run", watch=Stop(40), fused=False)
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    for name in ("fused", "compile", "channels_last"):
        del record["train"][name]
    (tmp_path / "run" / "config.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="fused = False, now it is True; give what it had"):
        run("vae", tmp_path / "run", resume=True)
    assert run("vae", tmp_path / "run", resume=True, fused=False).examples >= 80


def test_learning_on_real_digits(tmp_path):
    """Negative control beside it: an untrained model reconstructs far worse than a trained one."""
    untrained = train("vae", data="digits", out=tmp_path / "u", examples=64, width=16, hidden=64)
    trained = train("vae", data="digits", out=tmp_path / "t", examples=30_000, width=16, hidden=64, learning_rate=2e-3)
    x = twofold.data.load("digits").test
    from twofold.data import from_model, to_model

    images = from_model(to_model(x.x[torch.arange(200)], trained.spec), trained.spec)

    def error(model):
        return float(((model.reconstruct(images) - images) ** 2).mean())

    def bound(model):
        out = model.elbo(images)
        return float(-(out["rate_nats"] + out["distortion_nats"]).mean())

    constant = float(((images - images.mean(0)) ** 2).mean())
    assert error(trained) < 0.6 * constant < error(untrained)
    assert bound(trained) > bound(untrained) + 10


def test_two_dimensional_data_end_to_end(tmp_path):
    model = train("wgan-gp", data="gaussians-8", out=tmp_path / "g", examples=640, width=16)
    x = model.sample(100)
    assert x.shape == (100, 2) and np.isfinite(x).all()
    assert (tmp_path / "g" / "report.html").exists()


def test_tensorboard_on_request(tmp_path):
    pytest.importorskip("tensorboard")
    run("vae", tmp_path / "run", tensorboard=True)
    assert list((tmp_path / "run" / "tensorboard").iterdir())


# What a trained model answers.


def test_models_refuse_what_they_cannot_use(tmp_path):
    model = run("vae", tmp_path / "run")
    x, _ = data(4)
    assert model.encode(x).shape == (4, 3)
    with pytest.raises(InputError, match="shape"):
        model.encode(x[:, :7])
    with pytest.raises(InputError, match="float|convert"):
        model.encode(x / 255.0)
    with pytest.raises(InputError, match=r"this model decodes \(n, 3\)"):
        model.decode(np.zeros((2, 4)))
    with pytest.raises(InputError, match="n is 0"):
        model.sample(0)
    z = model.encode(x)
    with pytest.raises(InputError, match="path is 'curly'"):
        model.interpolate(z[:1], z[1:2], path="curly")
    with pytest.raises(InputError, match="at least 2"):
        model.interpolate(z[:1], z[1:2], steps=1)
    way = model.interpolate(z[:2], z[2:], steps=4)
    assert np.array_equal(way[:, 0], model.decode(z[:2])) and np.array_equal(way[:, -1], model.decode(z[2:]))
    assert "160 examples seen, can encode, decode, reconstruct, sample" in repr(model)


@pytest.mark.parametrize(
    ("part", "value"),
    [("spec", None), ("recipe", 3), ("config", []), ("data", "x"), ("train", None), ("stages", {})],
)
def test_a_tampered_record_is_refused(tmp_path, part, value):
    run("vae", tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    record = json.loads(path.read_text())
    if value is None:
        del record[part]
    else:
        record[part] = value
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match=f"'{part}' is not there"):
        twofold.load(tmp_path / "run")
    with pytest.raises(InputError, match=f"'{part}' is not there"):
        run("vae", tmp_path / "run", resume=True)


def test_the_printed_command_repeats_the_run(tmp_path):
    plan = prepare(
        "vae-gan",
        data="digits",
        settings=Settings(batch_size=8, flip=True),
        data_options={"size": (12, 10), "strict": True},
        see_reconstructions=False,
        latent=3,
        learning_rate_discriminator=1e-3,
        conditional=True,
    )
    words = shlex.split(command(plan, tmp_path / "a run"))
    arguments, rest = _parser(words[1:]).parse_known_args(words[1:])
    assert not rest and arguments.out == str(tmp_path / "a run")
    assert _chosen(arguments) == {
        "see_reconstructions": False,
        "latent": 3,
        "learning_rate_discriminator": 1e-3,
        "conditional": True,
    }
    assert _read_options(arguments) == {"size": (12, 10), "strict": True}
    assert (arguments.flip, arguments.batch_size, arguments.examples) == (True, 8, 100_000)


@pytest.mark.parametrize("path", ["nowhere", "file", "empty"])
def test_a_directory_that_is_no_run_is_refused(tmp_path, path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="run"):
        twofold.load(tmp_path / path)
