"""DCGAN (Radford, Metz & Chintala 2016, "Unsupervised representation learning with deep convolutional GANs").

The game is Goodfellow's with the non-saturating generator loss; what the paper adds is the networks and how they are
trained (their section 3): strided convolutions instead of pooling, 5×5 kernels, BatchNorm everywhere except at the
generator's output and the discriminator's input, ReLU in the generator with tanh at its end, leaky ReLU (0.2) in the
discriminator, weights drawn from N(0, 0.02²), z uniform on [-1, 1], Adam with rate 2e-4 and β₁ = 0.5.

Routing:

    term                         generator  discriminator
    phase discriminator
      adversarial_discriminator          ·             +1
    phase generator
      adversarial_generator             +1              ·

Deviations: depth follows the image's size, halving each side until it is at most 4 (the paper's 64×64 networks have
four such steps, from 1024 channels at 4×4; `dcgan-paper` has them); the released code's
weight decay is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from twofold.game import Player, Stage
from twofold.nets.augment import POLICIES, check_augment
from twofold.nets.build import build_decoder, build_discriminator
from twofold.nets.init import dcgan_init
from twofold.recipe import Recipe, option, require
from twofold.rollouts import Generator, Penalty, adversarial_game, classes_for, critic_abilities, generator_abilities
from twofold.spec import Spec
from twofold.terms.adversarial import build_adversarial


@dataclass(frozen=True)
class Config:
    latent: int = option(100, "size of z")
    width: int = option(32, "channels of the discriminator's first convolution; doubles with each step")
    max_width: int = option(1024, "no layer has more channels than this")
    real_label: float = option(1.0, "the discriminator's target for real examples; below 1: one-sided label smoothing")
    critic_plays: int = option(1, "plays of the discriminator, on fresh batches, to one of the generator")
    spectral: bool = option(False, "spectral normalisation of the discriminator (Miyato et al. 2018)")
    augment: str = option("none", "what the discriminator sees images through (Zhao et al. 2020)", choices=POLICIES)
    learning_rate: float = option(2e-4, "Adam's learning rate, the generator's")
    learning_rate_discriminator: float | None = option(None, "the discriminator's; none: the same")
    ema_half_life_examples: float | None = option(None, "sample from an average of the generator with this half-life")
    conditional: bool = option(False, "condition both players on the labels")


def paper() -> Config:
    """The 64×64 networks of their figure 1, for images of any size: 128 to 1,024 channels."""
    return Config(width=128)


def build(config: Config, spec: Spec) -> Recipe:
    """The recipe for images that look like `spec`."""
    require(spec.kind == "image", f"dcgan is for images and this data is {spec.kind}s; use gan, lsgan or wgan-gp")
    classes = classes_for(spec, config.conditional)
    sizes: dict[str, Any] = {"width": config.width, "max_width": config.max_width, "classes": classes}
    generator = Generator(
        build_decoder(spec, config.latent, outputs=spec.shape[0], norm="batch", activation="relu", **sizes), spec
    )
    discriminator = build_discriminator(
        spec, norm="batch", activation="leaky", first_norm=False, spectral=config.spectral, **sizes
    )
    dcgan_init(generator)
    dcgan_init(discriminator)
    adam = partial(torch.optim.Adam, betas=(0.5, 0.999))
    rate = config.learning_rate
    game = adversarial_game(
        {
            "generator": Player(
                generator, partial(adam, lr=rate), ema_half_life_examples=config.ema_half_life_examples
            ),
            "discriminator": Player(discriminator, partial(adam, lr=config.learning_rate_discriminator or rate)),
        },
        loss=build_adversarial("non-saturating", real_label=config.real_label),
        penalty=Penalty("none", 0.0),
        latent=config.latent,
        noise="uniform",
        conditional=config.conditional,
        critic_plays=config.critic_plays,
        augment=check_augment(config.augment, spec),
    )
    abilities = generator_abilities(config.latent, "uniform") | critic_abilities(discriminator)
    return Recipe((Stage("train", game),), spec, abilities, config.conditional)
