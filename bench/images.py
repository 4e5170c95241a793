"""VAE against VAE-GAN at equal encoder and decoder, and DCGAN beside them, on one set of images.

    python bench/images.py --data mnist.npz --out runs/images --examples 300000 --seeds 3

Trains what is missing (a finished run is read, a cut-off one resumed), measures every run in one way and prints a
table of means and standard deviations over seeds:

- high-frequency power of 2,000 samples relative to 2,000 test images (1 = the data's own sharpness);
- pixel mean squared error of reconstructions of 2,000 test images, in [-1, 1];
- test ELBO in nats of [-1, 1] pixels, where it is defined;
- seconds of training on this machine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from cells import spread

import twofold
from twofold.data import from_model, load, to_model
from twofold.display import Bar
from twofold.metrics.spectrum import high_frequency_power_ratio
from twofold.model import Model

COUNT = 2_000


def measure(model: Model, x: torch.Tensor) -> dict[str, float]:
    """The figures of one run; `x`: test images in [-1, 1]."""
    out = {
        "power_ratio": high_frequency_power_ratio(model.sample_tensor(COUNT, seed=1), x),
        "seconds": model.run.metrics()[-1].get("seconds") or max(r.get("seconds", 0) for r in model.run.metrics()),
    }
    raw = from_model(x, model.spec)
    if "reconstruct" in model.abilities:
        x_rec = to_model(twofold.data.raw(model.reconstruct(raw), model.spec), model.spec)
        out["pixel_mse"] = float(((x_rec - x) ** 2).mean())
        out["power_ratio_rec"] = high_frequency_power_ratio(x_rec, x)
    if "elbo" in model.abilities:
        bound = model.elbo(raw, seed=0)
        out["elbo_nats"] = -float((bound["rate_nats"] + bound["distortion_nats"]).mean())
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/images"))
    parser.add_argument("--examples", type=int, default=300_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=["vae", "dcgan", "vae-gan"])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--latent", type=int, default=32)
    parser.add_argument("--device", default=None)
    arguments = parser.parse_args()

    data = load(arguments.data)
    held_out = data.test or data.train
    x = to_model(held_out.x[torch.arange(min(COUNT, len(held_out)))], data.spec)
    results: dict[str, list[dict[str, float]]] = {}
    for name in arguments.models:
        for seed in range(arguments.seeds):
            model = twofold.train(
                name,
                data=arguments.data,
                out=arguments.out / f"{name}-seed{seed}",
                examples=arguments.examples,
                seed=seed,
                device=arguments.device,
                resume=True,
                watch=Bar(),
                width=arguments.width,
                latent=arguments.latent,
            )
            results.setdefault(name, []).append(measure(model, x))
            print(name, seed, results[name][-1], flush=True)
    (arguments.out / "results.json").write_text(
        json.dumps(vars(arguments) | {"results": results}, default=str, indent=2)
    )
    columns = ["power_ratio", "power_ratio_rec", "pixel_mse", "elbo_nats", "seconds"]
    print("| model | " + " | ".join(columns) + " |\n|" + "---|" * (1 + len(columns)))
    for name, runs in results.items():
        cells = []
        for column in columns:
            values = [r[column] for r in runs if column in r]
            cells.append(spread(values, digits=4) if values else "–")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
