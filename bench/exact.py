"""Linear models, where everything is known: what `vae` and `beta-vae` learn and what bounds say, against exact values.

    python bench/exact.py --seeds 0 1 2

Data of six values, x = W z + N(0, 0.5²) with two factors, standardised as all vectors are; everything below is in those
units. Networks without hidden layers, 800,000 examples in batches of 256, the decoder averaged over the last of them.
Prints mean ± standard deviation over seeds (each with data of its own):

- the largest angle between the VAE's decoder and the first two principal components, trained and before training; its
  noise variance over the mean of the discarded eigenvalues (probabilistic PCA's solution);
- its ELBO and importance-weighted bounds less the exact log p(x) of the model that was learned, in nats, and the same
  with the encoder's variance doubled, which leaves p(x) as it is and makes the ELBO a worse bound;
- β-VAE with the noise fixed to σ² = 1: the decoder's squared weight w² along each principal component against
  max(λ - β σ², 0), its value at the optimum (λ: the component's variance).
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import spread
from torch import Tensor

import twofold
from twofold.data import to_model
from twofold.model import Model

DATA, LATENT, NOISE, EXAMPLES = 6, 2, 0.5, 800_000
BETAS = (1.0, 1.5, 2.5)
SPREADS = (2.5, 1.5)
"""Standard deviations of the two factors."""


def fitted(name: str, x: np.ndarray, out: Path, seed: int, **options: Any) -> Model:
    """Networks without hidden layers, averaged over the last steps."""
    return twofold.train(
        name, data=x, out=out, examples=EXAMPLES, batch_size=256, seed=seed, depth=0, latent=LATENT,
        norm="none", learning_rate=3e-3, clip_norm=None, ema_half_life_examples=20_000, **options,
    )  # fmt: skip


def components(x: np.ndarray, model: Model) -> tuple[Tensor, Tensor]:
    """Eigenvalues, rising, and eigenvectors of the data's covariance, as the model sees the data."""
    values, vectors = torch.linalg.eigh(torch.cov(to_model(torch.from_numpy(x), model.spec).double().T))
    return values, vectors


def exact_log_p(model: Model, x: np.ndarray, variance: float) -> Tensor:
    head = model.nets["decoder"].net.head
    w, b = head.weight.detach().double(), head.bias.detach().double()
    covariance = w @ w.T + variance * torch.eye(DATA, dtype=torch.float64)
    return torch.distributions.MultivariateNormal(b, covariance).log_prob(
        to_model(torch.from_numpy(x), model.spec).double()
    )


def noise_variance(model: Model) -> float:
    with torch.no_grad():
        return float(model.nets["decoder"].likelihood.log_scale_of(torch.zeros(1)).exp()) ** 2


def angle(w: Tensor, vectors: Tensor) -> float:
    """Largest angle between two spans, in degrees."""
    cosine = torch.linalg.svdvals(torch.linalg.qr(w).Q.T @ vectors).min().clamp(max=1.0)
    return math.degrees(math.acos(float(cosine)))


def bounds(model: Model, x: np.ndarray, *, name: str) -> dict[str, float]:
    """Every bound less the exact value."""
    exact = exact_log_p(model, x, noise_variance(model)).mean().item()
    many = np.repeat(x, 20, axis=0)
    parts = model.elbo(many, seed=1)
    out = {f"{name}: ELBO - log p": -float((parts["rate_nats"] + parts["distortion_nats"]).mean()) - exact}
    for k in (5, 50, 500):
        out[f"{name}: IW_{k} - log p"] = float(model.log_prob(x, k=k, seed=1)["log_prob_nats"].mean()) - exact
    return out


def vae(x: np.ndarray, held_out: np.ndarray, out: Path, seed: int) -> dict[str, float]:
    model = fitted("vae", x, out / "vae", seed)
    values, vectors = components(x, model)
    first = vectors[:, -LATENT:].float()
    torch.manual_seed(seed)
    untrained = twofold.recipes.build("vae", model.spec, {"depth": 0, "latent": LATENT})[1].nets
    figures = {
        "VAE: angle to the principal components, degrees": angle(model.nets["decoder"].net.head.weight.detach(), first),
        "the same before training": angle(untrained["decoder"].net.head.weight.detach(), first),
        "VAE: noise variance / mean discarded eigenvalue": noise_variance(model) / float(values[:-LATENT].mean()),
        "log p(x) of the VAE, nats": exact_log_p(model, held_out, noise_variance(model)).mean().item(),
    }
    figures |= bounds(model, held_out, name="VAE")
    with torch.no_grad():
        model.nets["encoder"].head.bias[LATENT:] += math.log(2.0)
    return figures | bounds(model, held_out, name="variance doubled")


def beta_vae(x: np.ndarray, out: Path, seed: int) -> dict[str, float]:
    figures = {}
    for beta in BETAS:
        model = fitted("beta-vae", x, out / f"beta-{beta}", seed, beta=beta, likelihood="normal")
        values, vectors = components(x, model)
        w = model.nets["decoder"].net.head.weight.detach().double()
        for k in range(1, LATENT + 1):
            along = float((vectors[:, -k] @ w).square().sum())
            best = max(float(values[-k]) - beta, 0.0)
            figures[f"β = {beta:g}, component {k}: max(λ - β, 0)"] = best
            figures[f"β = {beta:g}, component {k}: w² less that"] = along - best
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            random = np.random.default_rng(seed)
            w = np.linalg.qr(random.standard_normal((DATA, LATENT)))[0] * SPREADS
            x = random.standard_normal((22_000, LATENT)) @ w.T + NOISE * random.standard_normal((22_000, DATA))
            train, held_out = x[:20_000].astype(np.float32), x[20_000:].astype(np.float32)
            out = Path(folder) / str(seed)
            rows.append(vae(train, held_out, out, seed) | beta_vae(train, out, seed))
    print("| figure | mean ± standard deviation |\n|---|---|")
    for key in rows[0]:
        print(f"| {key} | {spread([row[key] for row in rows], digits=4)} |")


if __name__ == "__main__":
    main()
