"""Variational autoencoder (Kingma & Welling 2014, "Auto-Encoding Variational Bayes").

Minimises the negative evidence lower bound (their eq. 3), in nats, summed over dimensions and averaged over the batch:

    E_q(z|x) [ -log p(x|z) ]  +  KL( q(z|x) ‖ N(0, I) )
         reconstruction                  kl

Routing:

    term            encoder  decoder
    kl                   +1        ·
    reconstruction       +1       +1

Deviations: Adam instead of Adagrad; networks size themselves to the data; the Normal likelihood learns one scale for
all pixels (Rybkin et al. 2021) instead of a fixed one, which removes the hidden β of a fixed scale. A Bernoulli
likelihood on grey values treats them as probabilities: its ELBO is comparable with published ones on binary data only.
"""

from __future__ import annotations

from dataclasses import dataclass

from twofold.recipe import Recipe, option
from twofold.rollouts import VARIATIONAL_OPTIMIZERS, kl_term, variational_autoencoder, variational_networks, warmed_up
from twofold.spec import Spec
from twofold.terms.likelihood import LIKELIHOODS


@dataclass(frozen=True)
class Config:
    latent: int = option(16, "size of the code z")
    likelihood: str = option("normal", "p(x|z)", choices=LIKELIHOODS)
    likelihood_scale: str = option(
        "scalar",
        "scale of a Normal or Laplace likelihood: fixed to 1, one learned number, or one per value",
        choices=("fixed", "scalar", "output"),
    )
    kl_warmup_examples: int = option(0, "the KL's coefficient rises from 0 to 1 over this many examples; 0: no warm-up")
    free_bits_nats: float = option(0.0, "each latent dimension's KL costs at least this many nats (Kingma et al. 2016)")
    arch: str = option("conv", "networks for images; vectors always get an MLP", choices=("conv", "mlp"))
    width: int | None = option(
        None, "channels of the first convolution (none: 32) or units of an MLP's layers (none: 256)"
    )
    depth: int = option(2, "hidden layers of an MLP")
    hidden: int = option(256, "units of a fully connected layer between convolutions and head; 0: none")
    norm: str = option("batch", "normalisation inside the networks", choices=("batch", "group", "layer", "none"))
    activation: str = option("relu", "activation of the hidden layers", choices=("relu", "tanh", "softplus", "silu"))
    optimizer: str = option("adam", "optimizer of both networks", choices=tuple(VARIATIONAL_OPTIMIZERS))
    learning_rate: float = option(1e-3, "the optimizer's learning rate")
    clip_norm: float | None = option(None, "largest norm of each network's gradient")
    ema_half_life_examples: float | None = option(None, "sample from an average of the decoder with this half-life")
    conditional: bool = option(False, "condition encoder and decoder on the labels")


def paper() -> Config:
    """Kingma & Welling 2014 on MNIST: one hidden layer of 500 tanh units, Bernoulli, Adagrad; batches of 100. Of the
    code sizes and rates that they try, 20 and 0.01."""
    return Config(
        latent=20, likelihood="bernoulli", arch="mlp", width=500, depth=1, hidden=0, norm="none", activation="tanh",
        optimizer="adagrad", learning_rate=0.01,
    )  # fmt: skip


def build(config: Config, spec: Spec) -> Recipe:
    """The recipe for data that looks like `spec`."""
    return variational_autoencoder(
        config,
        spec,
        kl=kl_term(warmed_up(1.0, config.kl_warmup_examples), free_bits_nats=config.free_bits_nats),
        networks=variational_networks(config, spec, activation=config.activation),
    )
