"""What a training step costs: beside loops written by hand, beside other libraries, with data, and as things grow.

    python bench/speed.py floor                  # our step against hand-written PyTorch loops
    python bench/speed.py settings               # our step in bf16, with plain optimizers, channels_last, compiled
    python bench/speed.py peers                  # against pythae, torchgan and mimicry, which `make bench` installs
    python bench/speed.py convolutions           # their weights' gradients as matrix products against torch's own
    python bench/speed.py data                   # data without a network against training
    python bench/speed.py folder --data PHOTOS   # a folder of pictures with its cache against memory
    python bench/speed.py growth                 # time per example and memory, as data and runs grow
    python bench/speed.py startup                # seconds until the command line answers
    python bench/speed.py all --out build/bench.md

How it is measured stands in bench/measuring.py.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measuring import (
    Report,
    Setting,
    Step,
    alternate,
    flops_of,
    game_step,
    matmul_flops_per_second,
    memory_of,
    quartiles,
    seconds_of,
)
from torch import Tensor, nn

LATENT = 16

# By hand: the shortest loops that do the same mathematics.


def hand_vae(nets: nn.ModuleDict, x: Tensor, fused: bool | None = None) -> Step:
    from twofold.latents import split_mean_log_var
    from twofold.terms.divergence import kl_normal

    encoder, decoder = nets["encoder"], nets["decoder"]
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3, fused=fused)

    def play() -> None:
        mean, log_var = split_mean_log_var(encoder(x))
        z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
        nll = decoder.likelihood.nll(decoder(z), x).mean()
        optimizer.zero_grad()
        (nll + kl_normal(mean, log_var).mean()).backward()
        optimizer.step()

    return play


def hand_gan(nets: nn.ModuleDict, x: Tensor, fused: bool | None = None) -> Step:
    generator, discriminator = nets["generator"], nets["discriminator"]
    g_optimizer = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999), fused=fused)
    d_optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999), fused=fused)

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


def hand_vae_gan(nets: nn.ModuleDict, x: Tensor, fused: bool | None = None) -> Step:
    from twofold.latents import split_mean_log_var
    from twofold.terms.divergence import kl_normal

    encoder, decoder, discriminator = nets["encoder"], nets["decoder"], nets["discriminator"]
    weights = [list(net.parameters()) for net in (encoder, decoder, discriminator)]
    optimizers = [torch.optim.Adam(w, lr=2e-4, betas=(0.5, 0.999), fused=fused) for w in weights]
    layer = max(1, discriminator.blocks - 2)

    def play() -> None:
        mean, log_var = split_mean_log_var(encoder(x))
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


HANDS: dict[str, tuple[Callable[..., Step], dict[str, Any]]] = {
    "vae": (hand_vae, {"likelihood": "normal"}),
    "gan": (hand_gan, {"arch": "conv"}),
    "vae-gan": (hand_vae_gan, {"optimizer": "adam"}),
}


def floor(report: Report, arguments: argparse.Namespace) -> None:
    from twofold.spec import Spec

    cases = []
    for side, width in ((28, 16), (8, 8)) if not arguments.large else ((64, 64), (28, 32)):
        spec = Spec("image", (1, side, side), layout="HW")
        x = torch.rand(64, 1, side, side) * 2 - 1
        for name, (hand, options) in HANDS.items():
            options = {"latent": LATENT, "width": width, **options}

            def ours(name: str = name, x: Tensor = x, spec: Any = spec, options: Any = options) -> Any:
                return game_step(name, {"x": x}, spec, options)

            def theirs(fused: bool | None = None, ours: Any = ours, hand: Any = hand, x: Tensor = x) -> Step:
                return hand(ours()[0].train(), x, fused)

            # Children of a process that has not trained yet, so before anything else.
            memory = f"{memory_of(theirs):.0f} → {memory_of(lambda ours=ours: ours()[1]):.0f}"
            cases.append((name, f"{side}×{side}, width {width}", ours, theirs, memory))
    peak = matmul_flops_per_second()
    row = report.table(
        "Beside loops written by hand",
        (
            "recipe",
            "images",
            "by hand, ms",
            "ours, ms",
            "ours / by hand",
            "the same, Adam fused by hand too",
            "MiB",
            "of the product's rate",
        ),
        f"Batches of 64. float32 product: {peak / 1e9:.0f} GFLOP/s of processor time. {_plan(arguments)}",
    )
    for name, images, ours, theirs, memory in cases:
        step = ours()[1]
        _, _, fused = alternate(theirs(True), step, turns=arguments.turns, steps=arguments.steps)
        a, b, ratios = alternate(theirs(), step, turns=arguments.turns, steps=arguments.steps)
        rate = f"{flops_of(step) / b / peak:.0%}"
        row(name, images, f"{1e3 * a:.2f}", f"{1e3 * b:.2f}", quartiles(ratios), quartiles(fused), memory, rate)


def _plan(arguments: argparse.Namespace) -> str:
    return f"At most {arguments.turns} turns of {arguments.steps} steps, and fewer for slow ones."


SETTINGS = [
    *("float32 unfused", "float32 channels_last", "float32 compiled"),
    *("bf16", "bf16 channels_last", "bf16 compiled"),
]
"""Ways to take our step, where none are named."""


def settings(report: Report, arguments: argparse.Namespace) -> None:
    """Our step at default networks, with each of the things that may make it faster."""
    from twofold.spec import Spec

    row = report.table(
        "Settings",
        ("recipe", "setting", "default, ms", "so, ms", "default / so"),
        f"28×28, batches of 64, default networks. {_plan(arguments)}",
    )
    spec = Spec("image", (1, 28, 28), layout="HW")
    batch = {"x": torch.rand(64, 1, 28, 28) * 2 - 1}
    for name, (_, options) in HANDS.items():
        default = game_step(name, batch, spec, options)[1]
        for setting in chosen(arguments.settings or SETTINGS):
            step = game_step(name, batch, spec, options, setting)[1]
            a, b, ratios = alternate(step, default, turns=arguments.turns, steps=arguments.steps)
            row(name, setting, f"{1e3 * b:.1f}", f"{1e3 * a:.1f}", quartiles(ratios))


CONVOLUTIONS = [
    *((512, 1024, 3, 4, 2), (512, 1024, 7, 3, 2), (256, 512, 7, 4, 2), (128, 256, 14, 4, 2)),  # pythae's
    *((256, 512, 4, 4, 2), (128, 256, 8, 4, 2), (64, 128, 16, 4, 2), (64, 128, 32, 4, 2)),
    *((512, 512, 4, 3, 1), (256, 256, 8, 3, 1), (64, 64, 16, 3, 1)),
]
"""(channels, outputs, side, kernel, stride), padding 1."""


def convolutions(report: Report, arguments: argparse.Namespace) -> None:
    """Gradients of convolutions' weights: torch's own kernel against the matrix product, and which of them is taken."""
    from twofold.convolutions import pays, weight_gradient

    row = report.table(
        "Gradients of convolutions' weights",
        ("convolution", "numbers", "torch's own, ms", "product, ms", "own / product", "taken"),
        f"Batches of 64. {_plan(arguments)}",
    )
    for inputs, outputs, side, kernel, stride in CONVOLUTIONS:
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(64, inputs, side, side).to(dtype)
            weight = torch.randn(outputs, inputs, kernel, kernel).to(dtype)
            gradient = torch.randn_like(F.conv2d(x, weight, stride=stride, padding=1))
            steps, edges = [stride, stride], [1, 1]
            rest = ([0], steps, edges, [1, 1], False, [0, 0], 1, [False, True, False])

            def own(gradient: Tensor = gradient, x: Tensor = x, weight: Tensor = weight, rest: Any = rest) -> Any:
                return torch.ops.aten.convolution_backward(gradient, x, weight, *rest)

            def product(given: Any = (gradient, x, weight, steps, edges)) -> Tensor:
                return weight_gradient(*given)

            a, b, ratios = alternate(product, own, turns=arguments.turns, steps=arguments.steps)
            name = f"{inputs}×{side}×{side} → {outputs}×{gradient.shape[2]}×{gradient.shape[3]}, kernel {kernel}"
            taken = "product" if pays(gradient, steps) else "torch's own"
            row(name, str(dtype)[6:], f"{1e3 * b:.2f}", f"{1e3 * a:.2f}", quartiles(ratios), taken)


def chosen(settings: list[str]) -> list[Setting]:
    """ "bf16 compiled" → Setting("bf16", compiled=True)."""
    return [Setting(precision, **dict.fromkeys(words, True)) for precision, *words in map(str.split, settings)]


def peers(report: Report, arguments: argparse.Namespace) -> None:
    from peers import compare

    ways = chosen(arguments.settings or ["float32 unfused", "float32", "bf16"])
    for batch in arguments.batch:
        compare(
            report, models=arguments.models, batch=batch, turns=arguments.turns, steps=arguments.steps, settings=ways
        )


# Data, growth and start.


def draws(loaded: Any, batch: int) -> Callable[[], dict[str, Tensor]]:
    """A function that draws the next batch of the training split, as training does."""
    from twofold.data import Batches

    stream = Batches(loaded.train, loaded.spec, batch_size=batch, seed=0)
    position = 0

    def draw() -> dict[str, Tensor]:
        nonlocal position
        position += batch
        return stream.draw(position)

    return draw


def training(draw: Callable[[], dict[str, Tensor]], spec: Any, options: dict[str, Any]) -> Step:
    """A VAE's step on a fresh batch each time."""
    from twofold import recipes
    from twofold.game import begin, step

    game = recipes.build("vae", spec, {"latent": LATENT, **options})[1].stages[0].game
    progress = begin(game)
    return lambda: step(game, progress, draw)


def data(report: Report, arguments: argparse.Namespace) -> None:
    """Examples a second of data with the network removed, and of training, of processor time."""
    from PIL import Image

    from twofold.data import load

    rng = np.random.default_rng(0)
    photos = Path(tempfile.mkdtemp()) / "photos"
    photos.mkdir()
    for k in range(arguments.pictures):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(photos / f"{k:05d}.jpg", quality=90)
    sources: list[tuple[str, Any, dict[str, Any]]] = [
        ("digits in memory", "digits", {}),
        ("28×28 grey in memory", rng.integers(0, 256, (10_000, 28, 28), dtype=np.uint8), {}),
        ("64×64 JPEGs in memory", photos, {}),
        ("64×64 JPEGs on access", photos, {"memory_limit_bytes": 1}),
    ]
    row = report.table(
        "Data without a network", ("data", "examples/s", "training vae-gan, examples/s", "data / training")
    )
    for title, source, options in sources:
        loaded = load(source, **options)
        draw = draws(loaded, 64)
        _, train_step = game_step("vae-gan", draw(), loaded.spec, {"latent": LATENT})
        drawn, trained, _ = alternate(draw, train_step, turns=5, steps=5)
        row(title, f"{64 / drawn:,.0f}", f"{64 / trained:,.0f}", f"{trained / drawn:.1f}")


def folder(report: Report, arguments: argparse.Namespace) -> None:
    """Training on a folder of pictures that does not fit in memory, with its cache, against the same in memory."""
    from twofold.data import load

    source = arguments.data
    in_memory = load(source)
    with tempfile.TemporaryDirectory() as cache:
        cached = load(source, memory_limit_bytes=1, cache=cache)
        count = len(cached.train)
        first_draw, memory_draw, cached_draw = (draws(d, 64) for d in (cached, in_memory, cached))
        first = seconds_of(first_draw, count // 64 + 1)
        row = report.table(
            f"A folder of {count:,} pictures of {'×'.join(map(str, cached.spec.shape))} and its cache",
            ("training", "first pass: pictures/s", "in memory, examples/s", "cached, examples/s", "cached / in memory"),
            f"The first pass without a network. {_plan(arguments)}",
        )
        for width in (4, 16, 32):
            ours, theirs = (
                training(draw, cached.spec, {"width": width, "hidden": 0}) for draw in (cached_draw, memory_draw)
            )
            a, b, ratios = alternate(ours, theirs, turns=arguments.turns, steps=arguments.steps)
            rates = [f"{64 / seconds:,.0f}" for seconds in (first, b, a)]
            row(f"vae, width {width}", *rates, quartiles(ratios))


def growth(report: Report, arguments: argparse.Namespace) -> None:
    """Time per example as the data grows; memory and time as a run does."""
    from twofold.data import load

    rng = np.random.default_rng(0)
    row = report.table(
        "Time per example against the size of the data",
        ("examples", "loading, s", "step, µs an example", "against the smallest"),
        f"16×16 grey images in memory, vae of width 8, batches of 64. {arguments.turns} turns of 20 steps.",
    )
    smallest: Step | None = None
    for count in (1_000, 10_000, 100_000, 1_000_000):
        pixels = rng.integers(0, 256, (count, 16, 16), dtype=np.uint8)
        kept: list[Any] = []
        seconds = seconds_of(lambda kept=kept, pixels=pixels: kept.append(load(pixels)), 1)
        ours = training(draws(kept[0], 64), kept[0].spec, {"width": 8, "hidden": 0})
        smallest = smallest or ours
        _, b, ratios = alternate(smallest, ours, turns=arguments.turns, steps=20)
        row(f"{count:,}", f"{seconds:.2f}", f"{1e6 * b / 64:.1f}", quartiles(ratios))
    row = report.table(
        "Memory and time against the length of a run",
        ("recipe", "examples", "peak, MiB", "processor, s", "ms a further 1,000 examples"),
        "`twofold train RECIPE --data digits --width 8` in a process of its own, monitor, pictures and checkpoints "
        "included.",
    )
    for name in ("vae", "vae-gan"):
        before = (0, 0.0)
        for count in (4_000, 12_000, 36_000):
            with tempfile.TemporaryDirectory() as out:
                words = ["train", name, "--data", "digits", "--width", "8", "--examples", str(count)]
                peak, seconds = child(*words, "--seed", "0", "--out", f"{out}/run")
            slope = f"{1e6 * (seconds - before[1]) / (count - before[0]):.0f}" if before[0] else ""
            row(name, f"{count:,}", f"{peak:.0f}", f"{seconds:.1f}", slope)
            before = (count, seconds)


LAUNCHER = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "twofold", *sys.argv[1:]], capture_output=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(done.returncode, used.ru_maxrss / 1024, used.ru_utime + used.ru_stime)
"""


def child(*words: str) -> tuple[float, float]:
    """(peak MiB, processor seconds) of `twofold` with these words. Started by a small process: Linux counts what the
    starter holds as the started one's peak."""
    words = (sys.executable, "-c", LAUNCHER, *words)
    code, peak, seconds = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
    if code != "0":
        raise RuntimeError(f"twofold {' '.join(words[3:])} ended with {code}")
    return float(peak), float(seconds)


def startup(report: Report, arguments: argparse.Namespace) -> None:
    """Seconds until the command line has answered."""
    row = report.table("Starting", ("command", "processor seconds", "elapsed seconds"))
    for words in (["--help"], ["recipes"], ["data"], ["train", "vae-gan", "--help"], ["show", "vae-gan"]):
        used, elapsed = [], []
        for _ in range(7):
            before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run([sys.executable, "-m", "twofold", *words], check=True, stdout=subprocess.DEVNULL)
            elapsed.append(time.perf_counter() - start)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        row(f"twofold {' '.join(words)}", f"{statistics.median(used):.2f}", f"{statistics.median(elapsed):.2f}")


def everything(report: Report, arguments: argparse.Namespace) -> None:
    for table in (floor, peers, settings, convolutions, data, growth, startup):
        table(report, arguments)
    if arguments.data is not None:
        folder(report, arguments)


TABLES = {
    "floor": floor,
    "settings": settings,
    "convolutions": convolutions,
    "peers": peers,
    "data": data,
    "folder": folder,
    "growth": growth,
    "startup": startup,
    "all": everything,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tuple(TABLES))
    parser.add_argument("--out", type=Path, help="write the tables to this .md file, and to a .json beside it")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 32], help="peers: batch sizes")
    parser.add_argument("--models", nargs="+", default=[], help="peers: titles that begin with these; none: all")
    parser.add_argument(
        "--settings",
        nargs="+",
        help="peers, settings: how our step is taken, e.g. bf16 'float32 unfused'",
    )
    parser.add_argument("--pictures", type=int, default=512, help="data: how many JPEGs to write")
    parser.add_argument("--data", type=Path, help="folder: a folder of pictures")
    parser.add_argument("--large", action="store_true", help="floor: networks of the size that people train")
    arguments = parser.parse_args()
    if arguments.pictures < 100:
        parser.error("--pictures starts at 100: a tenth is held out, and a batch has 64")
    if arguments.what == "folder" and arguments.data is None:
        parser.error("folder needs --data, a folder of pictures")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    report = Report(arguments.out)
    TABLES[arguments.what](report, arguments)


if __name__ == "__main__":
    main()
