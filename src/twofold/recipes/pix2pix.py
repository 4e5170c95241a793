"""pix2pix (Isola et al. 2017, "Image-to-Image Translation with Conditional Adversarial Networks").

From pairs (a, x), with noise z in the generator (their eqs. 1-4):

    L_cGAN = E log D(a, x) + E log(1 - D(a, G(a, z)))
    G* = arg min_G max_D  L_cGAN(G, D) + λ · E ‖x - G(a, z)‖₁,   λ = 100, the norm being the mean over the values

D sees a beside x or G(a), and gives one logit per patch. It moves first, at half strength; then G, against the D that
has moved, by the non-saturating -log D. The noise is dropout in the first layers up, in training and in use.

Routing:

    term                         generator  discriminator
    phase discriminator
      adversarial_discriminator          ·           +0.5
    phase generator
      adversarial_generator             +1              ·
      l1                              +100              ·

Presets are their ablation (section 4.2): `pix2pix-l1` has no discriminator, `pix2pix-gan` one that does not see a and
no L1, `pix2pix-cgan` the paper's and no L1, `pix2pix-l1-gan` the unconditional one and L1; `pix2pix-paper` has the
widths and the rate for 256×256. With `--noise N`, N normal values are given to G beside a: the baseline "pix2pix +
noise" of BicycleGAN.

Deviations: networks size themselves to the data: the U-Net stops halving at 2 pixels, the patch is about a quarter of
the side. Instance normalisation in place of batches of one; none at the innermost and outermost layer. Vectors get
MLPs, which have no dropout. In its turn G draws other dropout than D saw.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from twofold.game import Game, Phase, Stage, State, Term
from twofold.nets.layers import SPATIAL_NORMS
from twofold.nets.norm import call_together
from twofold.recipe import Recipe, option, require
from twofold.spec import Spec
from twofold.translators import (
    PATCH_LOSSES,
    distance,
    noise,
    patch_discriminator,
    patch_loss,
    sides,
    translating_player,
    translation,
    unet_translator,
)


@dataclass(frozen=True)
class Config:
    l1_weight: float = option(100.0, "λ: weight of the L1 distance, a mean over the values; 0: without it")
    adversarial_weight: float = option(
        1.0, "weight of the adversarial term in the generator's row; 0: no discriminator"
    )
    sees_input: bool = option(True, "the discriminator sees a beside x (a conditional GAN)")
    loss: str = option("non-saturating", "adversarial loss", choices=PATCH_LOSSES)
    dropout: float = option(0.5, "probability in the first three layers up, in training and in use")
    noise: int = option(0, "normal values given to the generator beside a; 0: dropout is the only noise")
    skip: bool = option(True, "join maps of equal size on the ways down and up (U-Net)")
    width: int | None = option(
        None, "channels of the first convolution (none: 32) or units of an MLP's layers (none: 64)"
    )
    max_width: int = option(256, "most channels of the generator")
    halvings: int | None = option(None, "convolutions down; none: until the smaller side is 2 or 3 pixels")
    depth: int = option(2, "hidden layers of an MLP")
    patch: int | None = option(None, "pixels of a patch's side: 1, 16, 34, 70, 142 or 286; none: about a quarter")
    width_discriminator: int | None = option(None, "the discriminator's width; none: the generator's")
    depth_discriminator: int = option(2, "hidden layers of the discriminator of vectors")
    norm: str = option("instance", "normalisation in both networks for images", choices=SPATIAL_NORMS)
    learning_rate: float = option(2e-4, "Adam's learning rate")
    learning_rate_discriminator: float | None = option(None, "the discriminator's; none: the same")
    beta1: float = option(0.5, "Adam's first decay")
    constant_examples: int | None = option(None, "examples before the rate falls, linearly, to 0; none: it stays")
    decay_examples: int | None = option(None, "examples over which it falls; none: as many as before")


def l1() -> Config:
    """The L1 distance alone."""
    return Config(adversarial_weight=0.0)


def gan() -> Config:
    """An unconditional discriminator alone."""
    return Config(l1_weight=0.0, sees_input=False)


def cgan() -> Config:
    """The conditional discriminator alone."""
    return Config(l1_weight=0.0)


def l1_gan() -> Config:
    """L1 and an unconditional discriminator."""
    return Config(sees_input=False)


def paper() -> Config:
    """Appendix 6.1: U-Net of 64 to 512 channels, 8 halvings (for 256×256), 70-pixel patches."""
    return Config(width=64, max_width=512, halvings=8, patch=70)


def build(config: Config, spec: Spec) -> Recipe:
    """The recipe for pairs that look like `spec`."""
    source, target = sides(spec, "pix2pix", paired=True)
    for name in ("l1_weight", "adversarial_weight"):
        require(getattr(config, name) >= 0, f"{name} is {getattr(config, name)}; it starts at 0")
    require(
        config.l1_weight + config.adversarial_weight > 0,
        "l1_weight and adversarial_weight are both 0: nothing to learn",
    )
    generator = unet_translator(config, source, target, latent=config.noise)
    loss = patch_loss(config.loss)
    players = {"generator": translating_player(config, generator)}
    if config.adversarial_weight:
        seen = (source, target) if config.sees_input else (target,)
        discriminator = patch_discriminator(config, *seen)
        players["discriminator"] = translating_player(config, discriminator, config.learning_rate_discriminator)

    def make(state: State) -> Tensor:
        a = state.batch["a"]
        z = noise(len(a), config.noise, like=a, generator=state.generator)
        return state.nets["generator"](a, z, generator=state.generator)

    def shown(state: State, x: Tensor) -> Tensor:
        return torch.cat([state.batch["a"], x], dim=1) if config.sees_input else x

    def discriminate(state: State) -> dict[str, Tensor]:
        x, x_fake = state.batch["x"], make(state)
        real, fake = call_together(state.nets["discriminator"], shown(state, x), shown(state, x_fake))
        return {"x": x, "x_fake": x_fake, "real_logits": real, "fake_logits": fake}

    def deceive(state: State) -> dict[str, Tensor]:
        x_fake = make(state)
        out = {"x": state.batch["x"], "x_fake": x_fake}
        if not config.adversarial_weight:
            return out
        return out | {"fake_logits": state.nets["discriminator"](shown(state, x_fake))}

    judging = Term(
        "adversarial_discriminator",
        lambda s: loss.discriminator(s["real_logits"], [s["fake_logits"]]),
        to={"discriminator": 0.5},
    )
    deceiving = Term(
        "adversarial_generator",
        lambda s: loss.generator(s["fake_logits"]),
        to={"generator": config.adversarial_weight},
    )
    nearing = Term("l1", distance("x_fake", "x"), to={"generator": config.l1_weight})
    phases = [Phase("discriminator", discriminate, (judging,))] if config.adversarial_weight else []
    terms = [term for term in (deceiving, nearing) if term.to["generator"]]
    game = Game(players, [*phases, Phase("generator", deceive, terms)])
    return Recipe((Stage("train", game),), spec, {"translate": translation("generator", config.noise)})
