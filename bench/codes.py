"""What the encoders of the family do to codes: do they follow the prior, and what does the encoder's game reach?

    python bench/codes.py --data mnist.npz --size 14 --out runs/codes --examples 300000 --seeds 0 1 2

All models have the same fully connected networks. Trains what is missing (a finished run is read, a cut-off one
resumed), then measures on the test images:

- vae, aae, wae-gan, alpha-gan: whether codes of images follow the prior N(0, I). Largest |mean| and largest
  |covariance - I| over code dimensions; accuracy on unseen codes of a new discriminator (logistic regression on the
  code, its squares and products) that tells codes from draws of the prior: 0.5 is not at all. The VAE's codes are the
  means of its posterior and so no draws; they are here to show what the measures say of codes that do not match.
- ali: pixel error of reconstructions, trained and before training, and of the mean image.
- age: the two KLs of its game, of the Gaussian with the moments of the codes of images and of samples from the prior.
- intro-vae: mean KL of the posterior from the prior for images, reconstructions and samples.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import spread
from pixels import images, told_apart

import twofold
from twofold.data import Data, from_model, load, to_model
from twofold.display import Bar
from twofold.model import Model
from twofold.terms.divergence import kl_moments

SHARED: dict[str, Any] = {"arch": "mlp", "width": 256, "depth": 2, "latent": 8}
MATCHED = ("vae", "aae", "wae-gan", "alpha-gan")


def measure(name: str, model: Model, untrained: Model, data: Data) -> dict[str, float]:
    """The figures of one run."""
    x_model, _ = images(data, "test", 10_000)
    x = from_model(x_model, data.spec)
    if name in MATCHED:
        return matched(model.encode(x), model.draw_codes(len(x)))
    if name == "ali":
        mean = images(data, "train", 10_000)[0].mean(0, keepdim=True)
        return {
            "pixel_error": error(model, x, data),
            "pixel_error_untrained": error(untrained, x, data),
            "pixel_error_of_the_mean": float((x_model - mean).square().mean()),
        }
    samples = model.sample(len(x), seed=1)
    if name == "age":
        return {f"kl_{k}": kl(model.encode(v)) for k, v in (("data", x), ("samples", samples))} | {
            f"kl_{k}_untrained": kl(untrained.encode(v)) for k, v in (("data", x), ("samples", samples))
        }
    judged = {"data": x, "reconstructions": model.reconstruct(x), "samples": samples}
    return {f"kl_{k}": float(model.code_rates(v).sum(1).mean()) for k, v in judged.items()}


def matched(codes: np.ndarray, draws: np.ndarray) -> dict[str, float]:
    covariance = np.cov(codes, rowvar=False)
    return {
        "largest_mean": float(np.abs(codes.mean(0)).max()),
        "largest_covariance_error": float(np.abs(covariance - np.eye(len(covariance))).max()),
        "told_from_prior": told_apart(codes, draws),
        "told_prior_from_prior": told_apart(draws[::2], draws[1::2]),
    }


def error(model: Model, x: np.ndarray, data: Data) -> float:
    difference = to_model(torch.from_numpy(model.reconstruct(x)), data.spec) - to_model(torch.from_numpy(x), data.spec)
    return float(difference.square().mean())


def kl(codes: np.ndarray) -> float:
    return float(kl_moments(torch.from_numpy(codes)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--size", type=int)
    parser.add_argument("--out", type=Path, default=Path("runs/codes"))
    parser.add_argument("--models", nargs="+", default=[*MATCHED, "ali", "age", "intro-vae"])
    parser.add_argument("--examples", type=int, default=300_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    read = {} if arguments.size is None else {"size": arguments.size}
    data = load(arguments.data, **read)
    results: dict[str, list[dict[str, float]]] = {}
    for name in arguments.models:
        for seed in arguments.seeds:
            model = twofold.train(
                name,
                data=arguments.data,
                data_options=read,
                out=arguments.out / f"{name}-seed{seed}",
                examples=arguments.examples,
                seed=seed,
                resume=True,
                watch=Bar(),
                **SHARED,
            )
            torch.manual_seed(seed)
            recipe = twofold.recipes.build(name, data.spec, SHARED)[1]
            untrained = Model(recipe, recipe.nets)
            results.setdefault(name, []).append(measure(name, model, untrained, data))
            print(name, seed, {k: round(v, 4) for k, v in results[name][-1].items()}, flush=True)
            (arguments.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    for name, rows in results.items():
        for key in rows[0]:
            print(f"| `{name}` | {key} | {spread([row[key] for row in rows])} |")


if __name__ == "__main__":
    main()
