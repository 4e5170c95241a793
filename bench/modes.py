"""Modes on mixtures of Gaussians in the plane: every member of the family and its parents, at equal networks and steps.

    python bench/modes.py --out runs/modes --steps 2000 --seeds 0 1 2

Each model has three layers of 128 units and two code dimensions; LayerNorm in all networks but discriminators; batch
256; the same number of steps, where a critic that plays several times a step sees that many more examples; samples from
an average of the generator. `soft-intro-vae-2d` has its paper's networks. Options that differ from the recipe's
defaults stand in MEMBERS. Trains what is missing (a finished run is read, a cut-off one resumed), then draws 2,500
samples of each: modes with at least one sample within three standard deviations, the share of samples that are that
near, and KL(shares of the modes ‖ uniform) in nats. Models with a likelihood are also measured with the likelihood's
own noise added to their means: what "a VAE smears" is about.

Writes results.json, a picture of all samples for the first seed, and prints a table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import spread

import twofold
from twofold.data import Data, load
from twofold.metrics.modes import mode_coverage
from twofold.model import Model
from twofold.overview import show
from twofold.pictures import scatter
from twofold.recipes import default_config, find

SHARED: dict[str, Any] = {"width": 128, "depth": 3, "latent": 2, "norm": "layer", "norm_discriminator": "none"}
MEMBERS: dict[str, dict[str, Any]] = {
    "vae": {"learning_rate": 1e-3, "kl_warmup_examples": 256_000},
    "iwae": {"learning_rate": 1e-3, "kl_warmup_examples": 256_000},
    "gan": {"learning_rate": 5e-4},
    "wgan-gp": {"learning_rate": 5e-4, "penalty_weight": 0.1},
    "infogan": {"learning_rate": 5e-4},
    "vae-gan": {"learning_rate": 5e-4, "kl_warmup_examples": 256_000},
    "alpha-gan": {"learning_rate": 5e-4},
    "aae": {"learning_rate": 5e-4},
    "wae-gan": {"learning_rate": 5e-4},
    "ali": {"learning_rate": 5e-4},
    "bigan": {"learning_rate": 5e-4},
    "age": {"learning_rate": 5e-4, "prior": "normal", "code_weight": 1.0, "data_weight": 10.0},
    "intro-vae": {"learning_rate": 5e-4},
    "soft-intro-vae-2d": {},
}
"""Recipe → options beside SHARED."""
SAMPLES = 2500
BATCH = 256


def options_of(name: str) -> dict[str, Any]:
    """Those of SHARED that the recipe has (`soft-intro-vae-2d` keeps its paper's networks), then its own."""
    known = {option.name for option in dataclasses.fields(default_config(find(name)))}
    shared = {} if name == "soft-intro-vae-2d" else {k: v for k, v in SHARED.items() if k in known}
    return shared | MEMBERS[name]


def averaged(options: dict[str, Any], batches: int) -> dict[str, Any]:
    """With samples from an average of the generator whose half-life is 100 steps."""
    return options | {"ema_half_life_examples": 100 * BATCH * batches}


def batches_of_a_step(name: str, data: Data, options: dict[str, Any]) -> int:
    """One, and one more for each further play of a repeated phase."""
    (stage,) = show(name, spec=data.spec, options=options)["stages"]
    return 1 + sum(int(phase["repeats"]) - 1 for phase in stage["phases"])


def noisy(model: Model, samples: np.ndarray) -> np.ndarray | None:
    """Means with the noise of a likelihood that learned its scale; None for a model without."""
    decoder = next((model.nets[name] for name in ("decoder", "generator") if name in model.nets), None)
    likelihood = getattr(decoder, "likelihood", None)
    if getattr(likelihood, "log_scale", None) is None:
        return None
    with torch.no_grad():
        std = float(likelihood.log_scale_of(torch.zeros(1)).exp())
    return samples + std * np.random.default_rng(0).standard_normal(samples.shape)


def covered(samples: np.ndarray, data: Data) -> dict[str, float]:
    assert data.modes is not None and data.mode_std is not None
    return mode_coverage(torch.from_numpy(samples), data.modes, data.mode_std)._asdict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/modes"))
    parser.add_argument("--data", nargs="+", default=["gaussians-8", "gaussians-25"])
    parser.add_argument("--models", nargs="+", default=list(MEMBERS), choices=list(MEMBERS))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for source in arguments.data:
        data = load(source)
        table: dict[str, list[dict[str, float]]] = {}
        for name in arguments.models:
            options = options_of(name)
            batches = batches_of_a_step(name, data, options)
            options = averaged(options, batches)
            examples = arguments.steps * BATCH * batches
            for seed in arguments.seeds:
                out = arguments.out / source / f"{name}-seed{seed}"
                model = twofold.train(
                    name, data=source, out=out, examples=examples, batch_size=BATCH, seed=seed, resume=True, **options
                )
                samples = model.sample(SAMPLES, seed=1)
                rows = {name: samples, f"{name}, with noise": noisy(model, samples)}
                for row, points in rows.items():
                    if points is None:
                        continue
                    table.setdefault(row, []).append(covered(points, data))
                    print(source, row, seed, {k: round(v, 3) for k, v in table[row][-1].items()}, flush=True)
                    if seed == arguments.seeds[0]:
                        picture = arguments.out / source / f"{row.replace(', ', '-').replace(' ', '-')}.png"
                        scatter(points, reference=data.train.x[:SAMPLES], title=row).save(picture)
        (arguments.out / source / "results.json").write_text(json.dumps(table, indent=1) + "\n")
        print(f"| {source} | modes | share within 3σ | reverse KL, nats |\n|---|---|---|---|")
        for row, results in table.items():
            cells = (spread([r[key] for r in results]) for key in ("modes", "high_quality", "reverse_kl"))
            print(f"| `{row}` | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
