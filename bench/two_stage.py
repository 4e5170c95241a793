"""VQ-VAE, VQGAN and VQ-VAE-2 with their priors on small colour images, at equal bits for each image.

    python bench/two_stage.py --data cifar10 --out runs/two-stage --examples 60000 --seeds 0

Trains what is missing (a finished run is read, a cut-off one resumed), then measures every run in one way. `--examples`
is the length of the autoencoder's stage; each prior sees `--prior-share` times as many. VQ-VAE is VQGAN without its
discriminator: the same networks, loss, codebook and prior, 8×8 codes of 1,024 for 32×32 images; `vqgan-perceptual` adds
the distance of features of a classifier of its own. VQ-VAE-2 has 4×4 and 8×8 codes of 256: also 640 bits. The priors
are conditional on the label.

- error: mean |x_rec - x| and mean squared error of a value in [-1, 1], 10,000 test images;
- rFD, FD: Fréchet distance of the test images' reconstructions, and of samples with labels drawn uniformly, to the test
  images, on the pooled last layer (256 features) of a classifier trained here on the training images;
- usage: share of the codes that occur in the test images, and the perplexity of their frequencies;
- nats per code on test images: the prior's, and those of unigram and bigram frequencies of the training codes; of
  VQ-VAE-2's bottom also with the top's codes of another image;
- rise: largest rise of the reconstruction error after the discriminator's switch-on.

Writes results.json, and pictures beside it: samples, reconstructions, the switch-on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import twofold
from twofold.data import Batches, Data, load, to_model
from twofold.display import Bar
from twofold.metrics.code_entropy import bigram_nats, unigram_nats
from twofold.metrics.frechet import frechet_distance
from twofold.model import Model, evaluating
from twofold.nets.features import FeatureClassifier
from twofold.pictures import image_grid, png_bytes, reconstruction_grid

SHARED: dict[str, Any] = {"width": 64, "latent": 32, "conditional": True}
GPT_SIZE = {"prior_width": 96, "prior_layers": 3}
ONE_LEVEL = {**SHARED, **GPT_SIZE, "arch": "halving", "blocks": 2, "codes": 1024, "patch_layers": 2}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "vq-vae": ("vqgan", {**ONE_LEVEL, "adversarial_weight": 0.0}),
    "vqgan": ("vqgan", ONE_LEVEL),
    "vqgan-perceptual": ("vqgan", {**ONE_LEVEL, "perceptual": "features", "features_share": 0.2}),
    "vq-vae-2": ("vq-vae-2", {**SHARED, "codes": 256}),
}
"""Name → recipe and options. The discriminator's ramp is from a quarter to half of the autoencoder's stage."""
PART = 500


def options_of(variant: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The recipe's options."""
    recipe, options = VARIANTS[variant]
    options = options | {"prior_share": arguments.prior_share, "ema_half_life_examples": arguments.ema}
    if recipe == "vq-vae-2":
        options["prior_share_bottom"] = arguments.prior_share
    if options.get("adversarial_weight", 1.0) and "arch" in options:
        quarter = arguments.examples // 4
        options = options | {"adversarial_begin": quarter, "adversarial_ramp": quarter}
    return options


def trained(variant: str, seed: int, arguments: argparse.Namespace) -> Model:
    """The run of one variant and seed, trained as far as it is not."""
    recipe, _ = VARIANTS[variant]
    options = options_of(variant, arguments)
    shares = 1 + sum(value for name, value in options.items() if "_share" in name)
    return twofold.train(
        recipe,
        data=arguments.data,
        out=arguments.out / f"{variant}-seed{seed}",
        examples=round(arguments.examples * shares),
        seed=seed,
        device="cpu",
        precision=arguments.precision,
        resume=True,
        watch=Bar(),
        **options,
    )


class Extractor:
    """A classifier trained on the data, and the features that it reads."""

    def __init__(self, data: Data, *, examples: int):
        torch.manual_seed(0)
        self.net = FeatureClassifier(data.spec.shape[0], data.spec.classes or 2)
        batches = Batches(data.train, data.spec, batch_size=64, seed=0, flip=True)
        optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-3)
        for position in range(0, examples, 64):
            batch = batches.draw(position)
            optimizer.zero_grad()
            F.cross_entropy(self.net(batch["x"]), batch["y"]).backward()
            optimizer.step()
        x, y = test_images(data)
        self.real = self.features(x)
        logits = self.net.head(self.real.float()).detach()
        self.accuracy = float((logits.argmax(1) == y).float().mean())

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """(n, 256) float64."""
        return torch.cat([self.net.maps(part)[-1].mean((2, 3)) for part in x.split(PART)]).double()

    def distance(self, x: Tensor) -> float:
        """Fréchet distance to the test images."""
        return frechet_distance(self.features(x), self.real)


def test_images(data: Data) -> tuple[Tensor, Tensor]:
    """All test images in [-1, 1], and their labels."""
    test = data.test or data.train
    assert test.y is not None
    return to_model(test.x[torch.arange(len(test))], data.spec), test.y


def mapped(function: Any, *tensors: Tensor) -> Any:
    """A function of parts, its results joined."""
    parts = [function(*part) for part in zip(*(t.split(PART) for t in tensors), strict=True)]
    if isinstance(parts[0], dict):
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    return torch.cat(parts)


def measure(model: Model, data: Data, extractor: Extractor, *, samples: int) -> dict[str, float]:
    """The figures of one run."""
    x, y = test_images(data)
    nets, recipe = model.nets, model.recipe
    with evaluating(nets):
        x_rec = mapped(lambda a: recipe.abilities["reconstruct"](nets, a), x)
        rate = recipe.abilities["rate"]
        random = torch.Generator()
        nats = mapped(lambda a, b: rate(nets, a, y=b, generator=random), x, y)
        out = {
            "l1": float((x_rec - x).abs().mean()),
            "mse": float((x_rec - x).square().mean()),
            "rfd": extractor.distance(x_rec),
            "fd": extractor.distance(model.sample_tensor(samples, seed=1)),
        }
        view = recipe.stages[-1].view
        assert view is not None
        seen = mapped(lambda a, b: view(nets, {"x": a, "y": b}), x, y)
        train = to_model(data.train.x[torch.arange(len(data.train))], data.spec)
        train_codes = mapped(lambda a: view(nets, {"x": a, "y": a[:, 0, 0, 0]}), train)
        for name in [key for key in seen if key != "y"]:
            level = name.removeprefix("codes").removeprefix("_")
            tail = f"_{level}" if level else ""
            codes = nets[f"codebook{tail}"].weight.shape[0]
            frequency = torch.bincount(seen[name].flatten(), minlength=codes).double()
            p = frequency / frequency.sum()
            out[f"usage{tail}"] = float((frequency > 0).double().mean())
            out[f"perplexity{tail}"] = float(torch.special.entr(p).sum().exp())
            out[f"nats_per_code{tail}"] = float(nats[f"nats_per_code{tail}"].mean())
            out[f"unigram{tail}"] = unigram_nats(train_codes[name], seen[name], codes)
            out[f"bigram{tail}"] = bigram_nats(train_codes[name], seen[name], codes)
        if "prior_bottom" in nets:
            net = nets["prior_bottom"]

            def shuffled(codes: Tensor, top: Tensor, labels: Tensor) -> Tensor:
                logits = net(codes, {"top": top, "y": labels})
                return F.cross_entropy(logits.transpose(1, 2), codes, reduction="none")

            other = mapped(shuffled, seen["codes_bottom"], seen["codes_top"].roll(1, 0), y)
            out["nats_per_code_bottom_shuffled_top"] = float(other.mean())
    records = model.run.metrics() if model.run else []
    rises = [record["rise_largest"] for record in records if "rise_largest" in record]
    if rises:
        out["largest_rise"] = rises[-1]
    out["seconds"] = max(record.get("seconds", 0.0) for record in records)
    return out


def switch_on_picture(model: Model, path: Path) -> None:
    """Reconstruction error, rise, weight and the discriminator's accuracy along the autoencoder's stage."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    assert model.run is not None
    records = [r for r in model.run.metrics() if "rise" in r]
    examples = [r["examples"] / 1000 for r in records]
    figure, axes = plt.subplots(1, 3, figsize=(11, 3), constrained_layout=True)
    values = model.spec.size
    axes[0].plot(examples, [r["reconstruction"] / values for r in records])
    axes[0].set_title("mean |x_rec - x| (training batches)")
    axes[0].set_ylim(0)
    axes[1].plot(examples, [r["adversarial_generator → decoder"] / values for r in records])
    axes[1].set_title("weight of the adversarial term: ramp · guard · λ")
    axes[2].plot(examples, [r["discriminator_accuracy"] for r in records], label="discriminator's accuracy")
    axes[2].plot(examples, [r["rise"] for r in records], label="rise of the error since the switch-on")
    axes[2].legend(fontsize=8)
    for axis in axes:
        axis.set_xlabel("thousands of examples seen")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def pictures(models: dict[str, Model], data: Data, out: Path) -> None:
    """Samples of each model, a block each; reconstructions of the same test images; the switch-on."""
    x, _ = test_images(data)
    for name, model in models.items():
        labels = np.repeat(np.arange(data.spec.classes or 1), 8)
        sampled = model.sample_tensor(len(labels), seed=0, labels=labels)
        (out / f"samples-{name}.png").write_bytes(png_bytes(image_grid(sampled, columns=8)))
        with evaluating(model.nets):
            x_rec = model.recipe.abilities["reconstruct"](model.nets, x[:16])
        (out / f"reconstructions-{name}.png").write_bytes(png_bytes(reconstruction_grid(x[:16], x_rec)))
    if "vqgan" in models:
        switch_on_picture(models["vqgan"], out / "switch-on.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/two-stage"))
    parser.add_argument("--examples", type=int, default=60_000)
    parser.add_argument("--prior-share", type=float, default=0.5)
    parser.add_argument("--precision", default="float32")
    parser.add_argument(
        "--ema", type=float, help="decode with an average of the decoder with this half-life (examples)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", nargs="+", default=["vq-vae", "vqgan", "vq-vae-2"], choices=list(VARIANTS))
    parser.add_argument("--samples", type=int, default=5_000)
    parser.add_argument("--extractor-examples", type=int, default=100_000)
    arguments = parser.parse_args()
    data = load(arguments.data)
    extractor = Extractor(data, examples=arguments.extractor_examples)
    results: dict[str, Any] = {"extractor_accuracy": extractor.accuracy}
    print(results, flush=True)
    for seed in arguments.seeds:
        models = {}
        for variant in arguments.variants:
            models[variant] = trained(variant, seed, arguments)
            figures = measure(models[variant], data, extractor, samples=arguments.samples)
            results[f"{variant}-seed{seed}"] = figures
            print(variant, seed, json.dumps({k: round(v, 4) for k, v in figures.items()}), flush=True)
            (arguments.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        if seed == arguments.seeds[0]:
            pictures(models, data, arguments.out)


if __name__ == "__main__":
    main()
