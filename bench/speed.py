"""What a training step costs, beside loops written by hand and beside pythae, on equal networks.

    python bench/speed.py floor                  # our step against hand-written PyTorch loops
    python bench/speed.py peers                  # against pythae, which `make bench` installs elsewhere
    python bench/speed.py data                   # data without a network against training
    python bench/speed.py startup                # seconds until the command line answers

Both sides take turns, a few steps each, and the ratio is taken turn by turn, of processor time: on a machine that does
other work the median of these holds when single times do not. FLOPs are counted by torch (matrix products and
convolutions, forward and backward) and divided by what the same process reaches in a square float32 product.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Step = Callable[[], Any]
LATENT = 16


# Measuring.


def seconds_of(step: Step, count: int) -> float:
    start = time.process_time()
    for _ in range(count):
        step()
    return (time.process_time() - start) / count


def alternate(one: Step, other: Step, *, turns: int, steps: int) -> tuple[float, float, list[float]]:
    """(median seconds of one, of the other, ratios other / one turn by turn)."""
    for step in (one, other):
        step(), step()
    pairs = []
    for turn in range(turns):
        order = (one, other) if turn % 2 else (other, one)
        times = {id(step): seconds_of(step, steps) for step in order}
        pairs.append((times[id(one)], times[id(other)]))
    ratios = sorted(b / a for a, b in pairs)
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), ratios


def flops_of(step: Step) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def matmul_flops_per_second() -> float:
    a = torch.randn(1024, 1024)
    return 2 * 1024**3 / statistics.median(seconds_of(lambda: a @ a, 3) for _ in range(7))


def calls_of(step: Step, nets: list[nn.Module]) -> int:
    """Forward calls of the networks in one step."""
    count = 0

    def seen(*_: Any) -> None:
        nonlocal count
        count += 1

    hooks = [net.register_forward_hook(seen) for net in nets]
    step()
    for hook in hooks:
        hook.remove()
    return count


def extra_memory(step: Step) -> float:
    """MiB that three steps add to the peak of a child of this process; NaN if the child hangs, as forks of a process
    with thread pools may."""

    def peak(work: Callable[[], None]) -> float:
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            work()
            os._exit(0)
        _, status, used = os.wait4(child, 0)
        return used.ru_maxrss if status == 0 else math.nan

    return (peak(lambda: [step() for _ in range(3)] and None) - peak(lambda: None)) / 1024


def quartiles(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.3f} ({ratios[len(ratios) // 4]:.3f}–{ratios[3 * len(ratios) // 4]:.3f})"


# Our side.


def game_step(name: str, batch: dict[str, Tensor], spec: Any, options: dict[str, Any], precision: str = "float32"):
    """(networks, step) of a recipe, on one batch that is there already."""
    from twofold import recipes
    from twofold.device import autocast
    from twofold.game import begin, step

    torch.manual_seed(0)
    recipe = recipes.build(name, spec, options)[1]
    start = copy.deepcopy(recipe.nets)
    game = recipe.stages[0].game
    progress = begin(game)

    def play() -> None:
        with autocast(torch.device("cpu"), precision):
            step(game, progress, lambda: batch)

    return start, list(game.nets.values()), play


# By hand: the shortest loops that do the same mathematics.


def hand_vae(nets: nn.ModuleDict, x: Tensor) -> Step:
    from twofold.terms.divergence import kl_normal

    encoder, decoder = nets["encoder"], nets["decoder"]
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)

    def play() -> None:
        mean, log_var = encoder(x).chunk(2, dim=1)
        z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
        nll = decoder.likelihood.nll(decoder(z), x).mean()
        optimizer.zero_grad()
        (nll + kl_normal(mean, log_var).mean()).backward()
        optimizer.step()

    return play


def hand_gan(nets: nn.ModuleDict, x: Tensor) -> Step:
    generator, discriminator = nets["generator"], nets["discriminator"]
    g_optimizer = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    d_optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))

    def play() -> None:
        with torch.no_grad():
            fake = generator(torch.randn(len(x), LATENT))
        real_logits, fake_logits = discriminator(torch.cat([x, fake])).chunk(2)
        d_optimizer.zero_grad()
        (F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()).backward()
        d_optimizer.step()
        discriminator.requires_grad_(False)
        g_optimizer.zero_grad()
        F.softplus(-discriminator(generator(torch.randn(len(x), LATENT)))).mean().backward()
        g_optimizer.step()
        discriminator.requires_grad_(True)

    return play


def hand_vae_gan(nets: nn.ModuleDict, x: Tensor) -> Step:
    from twofold.terms.divergence import kl_normal

    encoder, decoder, discriminator = nets["encoder"], nets["decoder"], nets["discriminator"]
    weights = [list(net.parameters()) for net in (encoder, decoder, discriminator)]
    optimizers = [torch.optim.Adam(w, lr=2e-4, betas=(0.5, 0.999)) for w in weights]
    layer = max(1, discriminator.blocks - 2)

    def play() -> None:
        mean, log_var = encoder(x).chunk(2, dim=1)
        z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
        x_rec, x_fake = decoder(z), decoder(torch.randn_like(z))  # BatchNorm: separate calls
        real, f_real = discriminator.forward_with_features(x, layer=layer)
        rec, f_rec = discriminator.forward_with_features(x_rec, layer=layer)
        fake = discriminator(x_fake)
        feature = 0.5 * (f_rec - f_real).square().flatten(1).sum(1).mean()
        kl = kl_normal(mean, log_var).mean()
        judged = F.softplus(-real).mean() + F.softplus(rec).mean() + F.softplus(fake).mean()
        deceived = F.softplus(-rec).mean() + F.softplus(-fake).mean()
        for optimizer in optimizers:
            optimizer.zero_grad()
        (kl + feature).backward(inputs=weights[0], retain_graph=True)
        (0.01 * feature + deceived).backward(inputs=weights[1], retain_graph=True)
        judged.backward(inputs=weights[2])
        for optimizer in optimizers:
            optimizer.step()

    return play


def floor(arguments: argparse.Namespace) -> None:
    from twofold.spec import Spec

    peak = matmul_flops_per_second()
    print(f"float32 product: {peak / 1e9:.0f} GFLOP/s of processor time; load {os.getloadavg()[0]:.1f}")
    print("\n| recipe | images | batch | ours, ms | by hand, ms | ours / by hand | of the product's rate | extra MiB |")
    print("|---|---|---|---|---|---|---|---|")
    sizes = ((28, 16), (8, 8)) if not arguments.large else ((64, 64), (28, 32))
    for side, width in sizes:
        spec = Spec("image", (1, side, side), layout="HW")
        x = torch.rand(64, 1, side, side) * 2 - 1
        common = {"latent": LATENT, "width": width}
        for name, hand, options in (
            ("vae", hand_vae, {"likelihood": "normal"}),
            ("gan", hand_gan, {"arch": "conv"}),
            ("vae-gan", hand_vae_gan, {"optimizer": "adam"}),
        ):
            nets, _, ours = game_step(name, {"x": x}, spec, common | options)
            theirs = hand(nets.train(), x)
            a, b, ratios = alternate(theirs, ours, turns=arguments.turns, steps=arguments.steps)
            rate = flops_of(ours) / b / peak
            memory = f"{extra_memory(ours):.0f} / {extra_memory(theirs):.0f}"
            print(
                f"| {name} | {side}×{side}, width {width} | {len(x)} | {1e3 * b:.1f} | {1e3 * a:.1f} "
                f"| {quartiles(ratios)} | {rate:.0%} | {memory} |",
                flush=True,
            )


# pythae: its own modules in both.


class Encoder(nn.Module):
    """pythae's encoder as ours are called: (mean, log variance) side by side, images in [-1, 1]."""

    def __init__(self, net: nn.Module, deterministic: bool = False):
        super().__init__()
        self.net, self.deterministic = net, deterministic

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        out = self.net((x + 1) / 2)
        return out.embedding if self.deterministic else torch.cat([out.embedding, out.log_covariance], dim=1)


class Decoder(nn.Module):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return 2 * self.net(z).reconstruction - 1


class Discriminator(nn.Module):
    """pythae's discriminator without its last sigmoid, which is part of our loss."""

    blocks = 4

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        net.layers[-1] = net.layers[-1][0]

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.net((x + 1) / 2).embedding.flatten()

    def forward_with_features(self, x: Tensor, y: Tensor | None = None, *, layer: int) -> tuple[Tensor, Tensor]:
        out = self.net((x + 1) / 2, output_layer_levels=[layer, self.blocks + 1])
        return out[f"embedding_layer_{self.blocks + 1}"].flatten(), out[f"embedding_layer_{layer}"]


class CodeDiscriminator(nn.Module):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        net.layers[-1] = net.layers[-1][0]

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return self.net(z).embedding.flatten()


def peers(arguments: argparse.Namespace) -> None:
    from pythae.models import VAE, VAEGAN, Adversarial_AE, Adversarial_AE_Config, VAEConfig, VAEGANConfig
    from pythae.models.nn.benchmarks.mnist import (
        Decoder_Conv_AE_MNIST,
        Discriminator_Conv_MNIST,
        Encoder_Conv_AE_MNIST,
        Encoder_Conv_VAE_MNIST,
    )

    from twofold.spec import Spec

    peak = matmul_flops_per_second()
    print(f"float32 product: {peak / 1e9:.0f} GFLOP/s of processor time; load {os.getloadavg()[0]:.1f}")
    spec = Spec("image", (1, 28, 28), layout="HW")
    x = torch.rand(arguments.batch, 1, 28, 28)
    ours_x = {"x": 2 * x - 1}
    sizes = {"input_dim": (1, 28, 28), "latent_dim": LATENT}
    adam = partial(torch.optim.Adam, lr=1e-4)

    def pythae_vae() -> tuple[list[nn.Module], Step]:
        config = VAEConfig(**sizes)
        model = VAE(config, Encoder_Conv_VAE_MNIST(config), Decoder_Conv_AE_MNIST(config))
        optimizer = adam(model.parameters())

        def play() -> None:
            optimizer.zero_grad()
            out = model({"data": x})
            out.loss.backward()
            optimizer.step()
            out.loss.item()  # its trainer reads the loss in every step

        return [model.encoder, model.decoder], play

    def pythae_vae_gan() -> tuple[list[nn.Module], Step]:
        config = VAEGANConfig(**sizes, reconstruction_layer=2, equilibrium=1e9, margin=2e9)  # nobody rests, as in ours
        nets = Encoder_Conv_VAE_MNIST(config), Decoder_Conv_AE_MNIST(config), Discriminator_Conv_MNIST(config)
        model = VAEGAN(config, nets[0], nets[1], nets[2])
        optimizers = [adam(net.parameters()) for net in nets]

        def play() -> None:  # CoupledOptimizerAdversarialTrainer._optimizers_step and train_step
            out = model({"data": x})
            optimizers[0].zero_grad()
            out.encoder_loss.backward(retain_graph=True)
            optimizers[1].zero_grad()
            out.decoder_loss.backward(retain_graph=True)
            optimizers[2].zero_grad()
            out.discriminator_loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            for loss in (out.encoder_loss, out.decoder_loss, out.discriminator_loss, out.loss):
                loss.item()

        return list(nets), play

    def pythae_aae() -> tuple[list[nn.Module], Step]:
        config = Adversarial_AE_Config(**sizes)
        model = Adversarial_AE(config, Encoder_Conv_AE_MNIST(config), Decoder_Conv_AE_MNIST(config))
        both = adam([*model.encoder.parameters(), *model.decoder.parameters()])
        judge = adam(model.discriminator.parameters())

        def play() -> None:  # AdversarialTrainer._optimizers_step
            out = model({"data": x})
            both.zero_grad()
            out.autoencoder_loss.backward(retain_graph=True)
            judge.zero_grad()
            out.discriminator_loss.backward()
            both.step()
            judge.step()
            out.loss.item()

        return [model.encoder, model.decoder, model.discriminator], play

    def ours(name: str, options: dict[str, Any], precision: str = "float32") -> tuple[list[nn.Module], Step]:
        from twofold import autoencoders, recipes, rollouts

        config = VAEGANConfig(**sizes)
        deterministic = name == "aae"
        encoder = (Encoder_Conv_AE_MNIST if deterministic else Encoder_Conv_VAE_MNIST)(config)
        made = {
            "build_encoder": lambda *_, **__: Encoder(encoder, deterministic),
            "build_decoder": lambda *_, **__: Decoder(Decoder_Conv_AE_MNIST(config)),
            "build_discriminator": lambda *_, **__: Discriminator(Discriminator_Conv_MNIST(config)),
            "build_code_discriminator": lambda *_, **__: _code_discriminator(sizes),
            "Generator": lambda net, _: net,
        }
        recipes.find(name)
        import importlib

        module = importlib.import_module(f"twofold.recipes.{recipes.find(name).module}")
        with ExitStack() as patched:
            for place in (module, rollouts, autoencoders):
                for word, make in made.items():
                    if hasattr(place, word) and (word != "Generator" or place is module):
                        patched.enter_context(mock.patch.object(place, word, make))
            _, nets, play = game_step(name, ours_x, spec, {"latent": LATENT, **options}, precision)
        return nets, play

    print(
        "\n| model | pythae, ms | ours, ms | pythae / ours | network calls a step | extra MiB | of the product's rate |"
    )
    print("|---|---|---|---|---|---|---|")
    cases = [
        ("VAE", pythae_vae, "vae", {"likelihood": "normal", "learning_rate": 1e-4}),
        (
            "VAEGAN",
            pythae_vae_gan,
            "vae-gan",
            {"optimizer": "adam", "feature_layer": 2, "see_reconstructions": False, "learning_rate": 1e-4},
        ),
        ("AAE", pythae_aae, "aae", {"posterior": "deterministic"}),
    ]
    for title, make, name, options in [case for case in cases if case[0] in arguments.models]:
        for precision in ("float32", "bf16"):
            theirs_nets, theirs = make()
            own_nets, own = ours(name, options, precision)
            a, b, ratios = alternate(own, theirs, turns=arguments.turns, steps=arguments.steps)
            calls = f"{calls_of(theirs, theirs_nets)} → {calls_of(own, own_nets)}"
            memory = f"{extra_memory(theirs):.0f} → {extra_memory(own):.0f}"
            rates = f"{flops_of(theirs) / b / peak:.0%} → {flops_of(own) / a / peak:.0%}"
            label = title if precision == "float32" else f"{title}, ours in bf16"
            print(
                f"| {label} | {1e3 * b:.0f} | {1e3 * a:.0f} | {quartiles(ratios)} | {calls} | {memory} | {rates} |",
                flush=True,
            )


def _code_discriminator(sizes: dict[str, Any]) -> nn.Module:
    from pythae.models import Adversarial_AE_Config
    from pythae.models.nn.default_architectures import Discriminator_MLP

    config = Adversarial_AE_Config(**sizes)
    config.discriminator_input_dim = (LATENT,)
    return CodeDiscriminator(Discriminator_MLP(config))


# Data and start.


def data(arguments: argparse.Namespace) -> None:
    """Examples a second of data with the network removed, and of training, of processor time."""
    import tempfile
    from pathlib import Path

    import numpy as np
    from PIL import Image

    from twofold.data import Batches, load

    rng = np.random.default_rng(0)
    folder = Path(tempfile.mkdtemp())
    photos = folder / "photos"
    photos.mkdir()
    for k in range(arguments.pictures):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(photos / f"{k:05d}.jpg", quality=90)
    sources: list[tuple[str, Any, dict[str, Any]]] = [
        ("digits in memory", "digits", {}),
        ("28×28 grey in memory", rng.integers(0, 256, (10_000, 28, 28), dtype=np.uint8), {}),
        ("64×64 JPEGs in memory", photos, {}),
        ("64×64 JPEGs on access", photos, {"memory_limit_bytes": 1}),
    ]
    print("\n| data | examples/s | training vae-gan, examples/s | data / training |\n|---|---|---|---|")
    for title, source, options in sources:
        loaded = load(source, **options)
        stream = Batches(loaded.train, loaded.spec, batch_size=64, seed=0)
        position = 0

        def draw(stream: Any = stream) -> dict[str, Tensor]:
            nonlocal position
            position += 64
            return stream.draw(position)

        _, _, train_step = game_step("vae-gan", draw(), loaded.spec, {"latent": LATENT})
        drawn, trained, _ = alternate(draw, train_step, turns=5, steps=5)
        print(f"| {title} | {64 / drawn:,.0f} | {64 / trained:,.0f} | {trained / drawn:.1f} |", flush=True)


def startup(arguments: argparse.Namespace) -> None:
    """Seconds until the command line has answered."""
    print("\n| command | processor seconds | elapsed seconds |\n|---|---|---|")
    for words in (["--help"], ["recipes"], ["data"], ["train", "vae-gan", "--help"], ["show", "vae-gan"]):
        used, elapsed = [], []
        for _ in range(7):
            before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run([sys.executable, "-m", "twofold", *words], check=True, stdout=subprocess.DEVNULL)
            elapsed.append(time.perf_counter() - start)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        print(f"| twofold {' '.join(words)} | {statistics.median(used):.2f} | {statistics.median(elapsed):.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("floor", "peers", "data", "startup"))
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--models", nargs="+", default=["VAE", "VAEGAN", "AAE"], help="peers: which of them")
    parser.add_argument("--large", action="store_true", help="floor: networks of the size that people train")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    {"floor": floor, "peers": peers, "data": data, "startup": startup}[arguments.what](arguments)


if __name__ == "__main__":
    main()
