"""Quality beside pythae: its VAE and VAEGAN and ours, the same networks, images, optimizer, rate and passes.

    build/bench/bin/python bench/quality.py --data mnist.npz --out runs/quality --images 10000 --passes 10 --seeds 0 1 2

In the environment that `make bench` makes. Our networks, each with its initial weights, are given to pythae's models,
which its own trainers train (its defaults, but for Adam's rate and the batch, which are ours too). 2,000 samples of the
last weights against 2,000 test images: Fréchet distance, precision and recall on the features of a classifier trained
here, and power above 0.25 cycles per pixel relative to the data's; mean squared error of 2,000 reconstructions in
[-1, 1].
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch
from cells import spread
from torch import Tensor, nn

import twofold
from twofold import recipes
from twofold.data import Data, load, to_model
from twofold.extractors import build_extractor
from twofold.metrics.frechet import frechet_distance
from twofold.metrics.manifold import manifold_figures
from twofold.metrics.spectrum import high_frequency_power_ratio
from twofold.model import evaluating

COUNT, BATCH, RATE = 2000, 64, 5e-4
SHARED: dict[str, Any] = {"width": 8, "latent": 16, "hidden": 0, "optimizer": "adam", "learning_rate": RATE}
MODELS = ("vae", "vae-gan")


def ours(name: str, arguments: argparse.Namespace, data: Data, seed: int) -> tuple[Tensor, Any]:
    """Samples, and a function that reconstructs; both in [-1, 1]."""
    options = SHARED | ({"see_reconstructions": False} if name == "vae-gan" else {})
    model = twofold.train(
        name,
        data=data,
        out=arguments.out / f"{name}-{seed}",
        examples=arguments.passes * len(data.train),
        batch_size=BATCH,
        seed=seed,
        resume=True,
        **options,
    )

    def reconstruct(x: Tensor) -> Tensor:
        with evaluating(model.nets):
            return model.recipe.abilities["reconstruct"](model.nets, x)

    return model.sample_tensor(COUNT, seed=1), reconstruct


def theirs(name: str, arguments: argparse.Namespace, data: Data, seed: int) -> tuple[Tensor, Any]:
    from pythae.models import VAE, VAEGAN, VAEConfig, VAEGANConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseDiscriminator, BaseEncoder
    from pythae.pipelines import TrainingPipeline
    from pythae.trainers import BaseTrainerConfig, CoupledOptimizerAdversarialTrainerConfig

    class Encoder(BaseEncoder):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Any:
            mean, log_var = self.net(2 * x - 1).chunk(2, dim=1)
            return ModelOutput(embedding=mean, log_covariance=log_var)

    class Decoder(BaseDecoder):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=(torch.tanh(self.net(z)) + 1) / 2)

    class Discriminator(BaseDiscriminator):
        """Levels: the blocks of ours, and the probability after them."""

        def __init__(self, net: Any) -> None:
            super().__init__()
            self.net = net
            self.depth = net.blocks + 1

        def forward(self, x: Tensor, output_layer_levels: list[int] | None = None) -> Any:
            output = ModelOutput()
            for level in output_layer_levels or [self.depth]:
                if level < self.depth:
                    output[f"embedding_layer_{level}"] = self.net.forward_with_features(2 * x - 1, layer=level)[1]
                else:
                    output["embedding"] = torch.sigmoid(self.net(2 * x - 1))[:, None]
                    output[f"embedding_layer_{level}"] = output["embedding"]
            return output

    torch.manual_seed(seed)
    nets = recipes.build(name, data.spec, SHARED)[1].nets
    # Both of our decoders put a head (tanh, or a likelihood's mean) on a network of raw outputs.
    encoder, decoder = Encoder(nets["encoder"]), Decoder(nets["decoder"].net)
    sizes: dict[str, Any] = {"input_dim": data.spec.shape, "latent_dim": SHARED["latent"]}
    settings: dict[str, Any] = {
        "output_dir": str(arguments.out / f"pythae-{name}-{seed}"),
        "num_epochs": arguments.passes,
        "per_device_train_batch_size": BATCH,
        "no_cuda": True,
        "seed": seed,
    }
    if name == "vae":
        model: Any = VAE(VAEConfig(**sizes), encoder, decoder)
        config: Any = BaseTrainerConfig(**settings, learning_rate=RATE)
    else:
        judge = nets["discriminator"]
        model = VAEGAN(
            VAEGANConfig(**sizes, reconstruction_layer=judge.blocks - 1), encoder, decoder, Discriminator(judge)
        )
        rates = {f"{player}_learning_rate": RATE for player in ("encoder", "decoder", "discriminator")}
        config = CoupledOptimizerAdversarialTrainerConfig(**settings, **rates)
    x = (to_model(data.train.x[torch.arange(len(data.train))], data.spec) + 1) / 2
    TrainingPipeline(model=model, training_config=config)(train_data=x)
    model.eval()

    @torch.no_grad()
    def reconstruct(x: Tensor) -> Tensor:
        return 2 * model.decoder(model.encoder((x + 1) / 2).embedding).reconstruction - 1

    with torch.no_grad():
        z = torch.randn(COUNT, SHARED["latent"], generator=torch.Generator().manual_seed(1))
        return 2 * model.decoder(z).reconstruction - 1, reconstruct


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    parser.add_argument("--images", type=int, help="train on the first so many (default: all)")
    parser.add_argument("--passes", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load(arguments.data)
    if arguments.images:
        part = torch.arange(arguments.images)
        train = dataclasses.replace(
            data.train, x=data.train.x[part], y=None if data.train.y is None else data.train.y[part]
        )
        data = dataclasses.replace(data, train=train, fingerprint=f"{data.fingerprint} {arguments.images}")
    extractor = build_extractor("classifier", data)
    held_out = data.test or data.train
    x = to_model(held_out.x[torch.arange(COUNT)], data.spec)
    real = extractor.features(x)
    results: dict[str, list[dict[str, float]]] = {}
    for seed in arguments.seeds:
        for name in MODELS:
            for side in ("ours", "pythae"):
                start = time.process_time()
                samples, reconstruct = (
                    ours(name, arguments, data, seed) if side == "ours" else theirs(name, arguments, data, seed)
                )
                seconds = time.process_time() - start
                features = extractor.features(samples)
                manifold = manifold_figures(features, real)
                row = {
                    "fd": frechet_distance(features, real),
                    "precision": manifold.precision,
                    "recall": manifold.recall,
                    "power_ratio": high_frequency_power_ratio(samples, x),
                    "mse": float((reconstruct(x) - x).square().mean()),
                    "processor_seconds": seconds,
                }
                results.setdefault(f"{name}, {side}", []).append(row)
                print(name, side, seed, {k: round(v, 4) for k, v in row.items()}, flush=True)
                (arguments.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print("| model | " + " | ".join(row) + " |\n|" + "---|" * (1 + len(row)))
    for title, rows in results.items():
        cells = (spread([r[key] for r in rows]) for key in row)
        print(f"| {title} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
