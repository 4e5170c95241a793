"""Generative adversarial networks: one alternating game, four published losses.

- `gan` (Goodfellow et al. 2014): D maximises log D(x) + log(1 - D(G(z))); G minimises -log D(G(z)), the
  non-saturating form of their section 3. `--loss minimax` gives the game of their eq. 1.
- `lsgan` (Mao et al. 2017): least squares with targets a = 0, b = c = 1 (their eq. 9).
- `wgan` (Arjovsky et al. 2017, algorithm 1): the critic maximises E f(x) - E f(G(z)) with weights clipped to
  [-0.01, 0.01], five critic plays to one of the generator, RMSProp.
- `wgan-gp` (Gulrajani et al. 2017, algorithm 1): clipping replaced by 10 · E(‖∇f(x̂)‖ - 1)², Adam.

Routing:

    term                         generator  discriminator
    phase discriminator
      adversarial_discriminator          ·             +1
    phase generator
      adversarial_generator             +1              ·

Deviations: the papers' z is uniform or Normal, ours Normal throughout (`--noise` changes it); Goodfellow's maxout
discriminator with dropout and SGD is replaced by leaky ReLU networks and Adam; WGAN-GP's default networks have no
BatchNorm in the critic, as the paper asks, and none in the generator. A discriminator with BatchNorm sees real and
generated batches in separate calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from twofold.game import Player, Stage
from twofold.latents import PRIORS
from twofold.nets.augment import POLICIES, check_augment
from twofold.nets.build import build_decoder, build_discriminator
from twofold.recipe import Recipe, option, require
from twofold.rollouts import (
    PENALTIES,
    Generator,
    Penalty,
    adversarial_game,
    classes_for,
    critic_abilities,
    generator_abilities,
)
from twofold.spec import Spec
from twofold.terms.adversarial import ADVERSARIAL, build_adversarial


@dataclass(frozen=True)
class Config:
    loss: str = option("non-saturating", "adversarial loss", choices=ADVERSARIAL)
    real_label: float = option(1.0, "the discriminator's target for real examples; below 1: one-sided label smoothing")
    penalty: str = option("none", "what keeps the discriminator smooth", choices=PENALTIES)
    penalty_weight: float = option(10.0, "λ of the gradient penalty, γ of R1 and R2")
    penalty_every: int = option(1, "evaluate the penalty in every n-th play only, n times as strong")
    critic_plays: int = option(1, "plays of the discriminator, on fresh batches, to one of the generator")
    weight_limit: float | None = option(None, "clip the discriminator's weights to ± this number")
    augment: str = option("none", "what the discriminator sees images through (Zhao et al. 2020)", choices=POLICIES)
    latent: int = option(64, "size of z")
    noise: str = option("normal", "distribution of z", choices=PRIORS)
    arch: str = option("mlp", "networks for images; vectors always get an MLP", choices=("conv", "mlp"))
    width: int | None = option(
        None, "channels of the first convolution (none: 32) or units of an MLP's layers (none: 256)"
    )
    depth: int = option(2, "hidden layers of an MLP")
    norm: str = option("none", "normalisation in the generator", choices=("batch", "group", "layer", "none"))
    norm_discriminator: str = option(
        "none", "the same in the discriminator", choices=("batch", "group", "layer", "none")
    )
    spectral: bool = option(False, "spectral normalisation of the discriminator (Miyato et al. 2018)")
    optimizer: str = option("adam", "optimizer of both players", choices=("adam", "rmsprop"))
    learning_rate: float = option(2e-4, "the generator's learning rate")
    learning_rate_discriminator: float | None = option(None, "the discriminator's; none: the generator's")
    beta1: float = option(0.5, "Adam's first decay")
    beta2: float = option(0.999, "Adam's second decay")
    ema_half_life_examples: float | None = option(None, "sample from an average of the generator with this half-life")
    conditional: bool = option(False, "condition both players on the labels")


def lsgan() -> Config:
    """Mao et al. 2017."""
    return Config(loss="least-squares")


def wgan() -> Config:
    """Arjovsky et al. 2017, algorithm 1. The paper's rate of 5e-5 is for weeks of training; so is ours."""
    return Config(
        loss="wasserstein", weight_limit=0.01, critic_plays=5, optimizer="rmsprop", learning_rate=5e-5, norm="batch"
    )


def wgan_gp() -> Config:
    """Gulrajani et al. 2017, algorithm 1; Adam (0.5, 0.9) as in their small-image and toy scripts."""
    return Config(
        loss="wasserstein", penalty="gradient-penalty", critic_plays=5, learning_rate=1e-4, beta1=0.5, beta2=0.9
    )


def build(config: Config, spec: Spec) -> Recipe:
    """The recipe for data that looks like `spec`."""
    require(config.critic_plays >= 1, f"critic_plays is {config.critic_plays}; it starts at 1")
    require(
        config.penalty != "gradient-penalty" or config.norm_discriminator != "batch",
        "a gradient penalty is about single examples and BatchNorm mixes them; use --norm-discriminator layer",
    )
    classes = classes_for(spec, config.conditional)
    sizes: dict[str, Any] = {"arch": config.arch, "width": config.width, "depth": config.depth, "classes": classes}
    generator = Generator(
        build_decoder(spec, config.latent, outputs=spec.shape[0], norm=config.norm, activation="relu", **sizes), spec
    )
    discriminator = build_discriminator(
        spec, norm=config.norm_discriminator, activation="leaky", spectral=config.spectral, **sizes
    )
    rate_d = config.learning_rate_discriminator or config.learning_rate
    game = adversarial_game(
        {
            "generator": Player(
                generator,
                _optimizer(config, config.learning_rate),
                ema_half_life_examples=config.ema_half_life_examples,
            ),
            "discriminator": Player(discriminator, _optimizer(config, rate_d), weight_limit=config.weight_limit),
        },
        loss=build_adversarial(config.loss, real_label=config.real_label),
        penalty=Penalty(config.penalty, config.penalty_weight, config.penalty_every),
        latent=config.latent,
        noise=config.noise,
        conditional=config.conditional,
        critic_plays=config.critic_plays,
        augment=check_augment(config.augment, spec),
    )
    abilities = generator_abilities(config.latent, config.noise) | critic_abilities(discriminator)
    return Recipe((Stage("train", game),), spec, abilities, config.conditional)


def _optimizer(config: Config, learning_rate: float) -> partial:
    if config.optimizer == "rmsprop":
        return partial(torch.optim.RMSprop, lr=learning_rate)
    return partial(torch.optim.Adam, lr=learning_rate, betas=(config.beta1, config.beta2))
