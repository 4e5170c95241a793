"""β-VAE (Higgins et al. 2017), and its capacity form (Burgess et al. 2018, "Understanding disentangling in β-VAE").

Minimises, in nats, summed over dimensions and averaged over the batch (Higgins et al., eq. 4):

    E_q(z|x) [ -log p(x|z) ]  +  β · KL( q(z|x) ‖ N(0, I) )
         reconstruction                    kl

With `capacity_nats` C > 0 the second part becomes β · |KL - C|, C rising from 0 over `capacity_examples`
(Burgess et al., eq. 8, whose γ is our β).

Routing:

    term            encoder  decoder
    kl                   +4        ·
    reconstruction       +1       +1

Presets: `beta-vae-paper` has the fully connected networks and Adagrad that the paper uses for sprites.

Deviations: by default Adam instead of Adagrad, and networks that size themselves to the data. The paper's likelihood
for binary sprites, Bernoulli, is the default; on grey images it treats values as probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from twofold.coefficients import Ramp
from twofold.game import State, Term
from twofold.nets.build import build_decoder, build_encoder
from twofold.recipe import Recipe, option, require
from twofold.rollouts import (
    VARIATIONAL_OPTIMIZERS,
    LikelihoodDecoder,
    classes_for,
    kl_term,
    likelihood_for,
    variational_autoencoder,
    variational_networks,
    warmed_up,
)
from twofold.spec import Spec
from twofold.terms.divergence import capacity, kl_normal
from twofold.terms.likelihood import LIKELIHOODS


@dataclass(frozen=True)
class Config:
    beta: float = option(4.0, "weight of the KL; above 1 favours independent latent dimensions")
    kl_warmup_examples: int = option(0, "the KL's coefficient rises from 0 to β over this many examples; 0: no warm-up")
    capacity_nats: float = option(0.0, "final target C of the KL (Burgess et al. 2018); 0: plain β-VAE")
    capacity_examples: int = option(1_000_000, "C rises from 0 to capacity_nats over this many examples")
    latent: int = option(10, "size of the code z")
    likelihood: str | None = option(None, "p(x|z); none: bernoulli for images, normal for vectors", choices=LIKELIHOODS)
    likelihood_scale: str = option(
        "fixed",
        "scale of a Normal or Laplace likelihood: fixed to 1, one learned number, or one per value",
        choices=("fixed", "scalar", "output"),
    )
    arch: str = option(
        "conv",
        "networks for images; paper: theirs for sprites; vectors always get an MLP",
        choices=("conv", "mlp", "paper"),
    )
    width: int | None = option(
        None, "channels of the first convolution (none: 32), units of an MLP's layers (256) or the paper's (1,200)"
    )
    depth: int = option(2, "hidden layers of an MLP")
    hidden: int = option(256, "units of a fully connected layer between convolutions and head; 0: none")
    norm: str = option("none", "normalisation inside the networks", choices=("batch", "group", "layer", "none"))
    optimizer: str = option("adam", "optimizer of both networks", choices=tuple(VARIATIONAL_OPTIMIZERS))
    learning_rate: float = option(1e-3, "the optimizer's learning rate")
    clip_norm: float | None = option(None, "largest norm of each network's gradient")
    ema_half_life_examples: float | None = option(None, "sample from an average of the decoder with this half-life")
    conditional: bool = option(False, "condition encoder and decoder on the labels")


def paper() -> Config:
    """Higgins et al. 2017, table 1, 2D Shapes: fully connected, 1,200 units a layer, Adagrad."""
    return Config(arch="paper", hidden=0, optimizer="adagrad", learning_rate=1e-2)


def build(config: Config, spec: Spec) -> Recipe:
    """The recipe for data that looks like `spec`."""
    require(config.beta > 0, f"beta is {config.beta}; it must be above 0")
    require(config.capacity_nats >= 0, f"capacity_nats is {config.capacity_nats}; it starts at 0")
    kl = kl_term(warmed_up(config.beta, config.kl_warmup_examples))
    if config.capacity_nats:
        require(not config.kl_warmup_examples, "capacity_nats and kl_warmup_examples both schedule the KL; choose one")
        target = Ramp(0.0, config.capacity_nats, config.capacity_examples)

        def distance_to_capacity(state: State):
            return capacity(kl_normal(state["mean"], state["log_var"]), target_nats=target(state))

        kl = Term("kl", distance_to_capacity, to={"encoder": config.beta})
    likelihood = config.likelihood or ("bernoulli" if spec.kind == "image" else "normal")
    config = replace(config, likelihood=likelihood)
    networks = paper_networks(config, spec) if config.arch == "paper" else variational_networks(config, spec)
    return variational_autoencoder(config, spec, kl=kl, networks=networks)


def paper_networks(config: Config, spec: Spec) -> tuple[nn.Module, LikelihoodDecoder]:
    """Two layers of ReLUs to q(z|x), three layers of tanh to the likelihood's parameters; `width` units each."""
    units, likelihood = config.width or 1200, likelihood_for(config, spec)
    sizes: dict[str, Any] = {
        "arch": "mlp",
        "width": units,
        "norm": config.norm,
        "classes": classes_for(spec, config.conditional),
    }
    encoder = build_encoder(spec, 2 * config.latent, depth=2, activation="relu", **sizes)
    outputs = likelihood.outputs(spec.shape[0])
    decoder = build_decoder(spec, config.latent, outputs=outputs, depth=3, activation="tanh", **sizes)
    return encoder, LikelihoodDecoder(decoder, likelihood)
