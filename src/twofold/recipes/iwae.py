"""Importance-weighted autoencoder (Burda, Grosse & Salakhutdinov 2016, "Importance weighted autoencoders").

The VAE's networks, trained by a tighter bound. With k draws z_i of q(z|x), encoder and decoder maximise (their eq. 8)

    L_k  =  E [ log 1/k Σ_i w_i ],    w_i = p(x, z_i) / q(z_i|x)

in nats, summed over dimensions and averaged over the batch. k = 1 is the VAE, and log p(x) ≥ L_(k+1) ≥ L_k. Its
gradient is that of Σ_i w̃_i log w_i with the weights w̃_i = w_i / Σ_j w_j held constant (their eq. 14), which automatic
differentiation of the logarithm of the mean gives by itself.

Routing:

    term              encoder  decoder
    importance_bound       +1       +1

`importance_bound` is -L_k; there is no separate KL, whose expectation is inside.

Presets: `iwae-paper` is the network of their section 5 with one stochastic layer (784-200-200-50, tanh) and its
training: binary images drawn anew from the grey values at every presentation, k = 50, and the learning rate falling in
eight stages of 3^0 … 3^7 passes over the data, 3,280 in all.

Deviations: their Adam starts its second moments at 1 and theirs starts the output's bias at the data's mean, ours do
not; the stages count 60,000 training images. Only one stochastic layer. `--kl-warmup-examples` is none of theirs: until
it ends the weights are p(x|z_i) (p(z_i) / q(z_i|x))^t with t from 0 to 1, as VAEs anneal their KL, so that a learned
scale does not grow to the data's before codes are of use. As in `vae`, a Normal likelihood with one
learned scale is the default.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from twofold.game import Game, Phase, Stage, State, Term
from twofold.nets.init import xavier_init
from twofold.recipe import Recipe, option, require
from twofold.rollouts import (
    draw_binary,
    elbo,
    iw_bound,
    labels,
    log_weights,
    variational_abilities,
    variational_networks,
    variational_players,
    warmed_up,
)
from twofold.spec import Spec
from twofold.terms.divergence import importance_weighted_bound
from twofold.terms.likelihood import LIKELIHOODS


@dataclass(frozen=True)
class Config:
    draws: int = option(5, "k: draws of the posterior for each example")
    kl_warmup_examples: int = option(
        0, "log p(z) - log q(z|x) inside the weights counts from 0 to 1 over this many examples; 0: no warm-up"
    )
    latent: int = option(16, "size of the code z")
    likelihood: str = option("normal", "p(x|z)", choices=LIKELIHOODS)
    likelihood_scale: str = option(
        "scalar",
        "scale of a Normal or Laplace likelihood: fixed to 1, one learned number, or one per value",
        choices=("fixed", "scalar", "output"),
    )
    binarise: bool = option(False, "draw binary images from the grey values, anew at every presentation")
    arch: str = option("conv", "networks for images; vectors always get an MLP", choices=("conv", "mlp"))
    width: int | None = option(
        None, "channels of the first convolution (none: 32) or units of an MLP's layers (none: 256)"
    )
    depth: int = option(2, "hidden layers of an MLP")
    hidden: int = option(256, "units of a fully connected layer between convolutions and head; 0: none")
    norm: str = option("batch", "normalisation inside the networks", choices=("batch", "group", "layer", "none"))
    activation: str = option("relu", "activation of the hidden layers", choices=("relu", "tanh", "softplus", "silu"))
    glorot: bool = option(False, "start the weights as Glorot & Bengio 2010 do; otherwise torch's default")
    learning_rate: float = option(1e-3, "Adam's learning rate")
    beta1: float = option(0.9, "Adam's first decay")
    epsilon: float = option(1e-8, "Adam's ε")
    stage_examples: int = option(
        0, "the rate falls from 1 to 1/10 in eight stages; stage i lasts 3^(i-1) times this many examples; 0: no stages"
    )
    clip_norm: float | None = option(None, "largest norm of each network's gradient")
    ema_half_life_examples: float | None = option(None, "sample from an average of the decoder with this half-life")
    conditional: bool = option(False, "condition encoder and decoder on the labels")


def paper() -> Config:
    """Burda et al. 2016, one stochastic layer on MNIST, k = 50; use batches of 20."""
    return Config(
        draws=50,
        latent=50,
        likelihood="bernoulli",
        binarise=True,
        arch="mlp",
        width=200,
        depth=2,
        norm="none",
        activation="tanh",
        glorot=True,
        beta1=0.99,
        epsilon=1e-4,
        stage_examples=60_000,
    )


@dataclass(frozen=True)
class Stages:
    """Burda et al.'s learning rate relative to its start, 10^(-(i-1)/7) rounded to tenths in stage i = 1 … 8."""

    examples: int
    """Length of the first stage; each further one is three times as long as the one before."""

    def __call__(self, state: State) -> float:
        passed = sum(state.examples >= self.examples * (3**i - 1) // 2 for i in range(1, 8))
        return round(10 ** (1 - passed / 7), 1) / 10

    def __str__(self) -> str:
        return f"1→0.1 in 8 stages from {self.examples:,}"


def build(config: Config, spec: Spec) -> Recipe:
    """The recipe for data that looks like `spec`."""
    require(config.draws >= 1, f"draws is {config.draws}; it starts at 1")
    require(config.stage_examples >= 0, f"stage_examples is {config.stage_examples}; it starts at 0")
    require(0 <= config.beta1 < 1, f"beta1 is {config.beta1}; it lies from 0 to below 1")
    require(config.epsilon > 0, f"epsilon is {config.epsilon}; it must be above 0")
    require(
        not config.binarise or (config.likelihood == "bernoulli" and spec.kind == "image"),
        "binary images go with their own likelihood: use --likelihood bernoulli with --binarise, on images",
    )
    encoder, decoder = variational_networks(config, spec, activation=config.activation)
    if config.glorot:
        xavier_init(encoder)
        xavier_init(decoder)

    warm_up = warmed_up(1.0, config.kl_warmup_examples)

    def rollout(state: State) -> dict[str, Tensor]:
        x = state.batch["x"]
        if config.binarise:
            x = draw_binary(x, generator=state.generator)
        y = labels(state.batch, config.conditional)
        weight = warm_up(state) if callable(warm_up) else warm_up
        return {
            "log_weights": log_weights(
                state.nets, x, k=config.draws, y=y, generator=state.generator, kl_weight=float(weight)
            )
        }

    adam = partial(torch.optim.Adam, lr=config.learning_rate, betas=(config.beta1, 0.999), eps=config.epsilon)
    stages = Stages(config.stage_examples) if config.stage_examples else None
    game = Game(
        players=variational_players(config, encoder, decoder, optimizer=adam, lr_factor=stages),
        phases=(Phase("autoencoder", rollout, (Term("importance_bound", loss, to={"encoder": 1.0, "decoder": 1.0}),)),),
    )
    abilities = variational_abilities(config.latent)
    if config.binarise:
        abilities |= {"elbo": _on_binary(elbo), "iw_bound": _on_binary(iw_bound)}
    return Recipe((Stage("train", game),), spec, abilities, config.conditional)


def loss(state: State) -> Tensor:
    """-L_k in nats, mean over the batch."""
    return -importance_weighted_bound(state["log_weights"]).mean()


def _on_binary(score: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
    """A bound of binary images drawn from x, as the model was trained on."""

    def drawn(nets: nn.ModuleDict, x: Tensor, *, generator: torch.Generator, **options: Any) -> dict[str, Tensor]:
        return score(nets, draw_binary(x, generator=generator), generator=generator, **options)

    return drawn
