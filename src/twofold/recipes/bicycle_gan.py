"""BicycleGAN (Zhu et al. 2017, "Toward Multimodal Image-to-Image Translation").

From pairs (a, x): many x for one a, told apart by a style z. Two models with one generator (their eqs. 3-9; norms are
means over the values):

    cVAE-GAN, x → z → x̂       z ~ E(x), x̂ = G(a, z):   KL( E(x) ‖ N(0, I) ),  ‖x - x̂‖₁,  D_encoded sees x̂
    cLR-GAN,  z → x_p → ẑ      z ~ N(0, I), x_p = G(a, z):   ‖z - E_mean(x_p)‖₁,  D_random sees x_p

Weights 0.01, 10, 1 and 0.5, 1. The distance of styles trains the generator alone: the encoder would otherwise meet it
by hiding z in x_p (their section 3.3).

Routing:

    term                   encoder  generator  discriminator_encoded  discriminator_random
    kl                       +0.01          ·                      ·                     ·
    l1                         +10        +10                      ·                     ·
    adversarial_encoded         +1         +1                      ·                     ·
    adversarial_random           ·         +1                      ·                     ·
    style_l1                     ·       +0.5                      ·                     ·
    discriminator_encoded        ·          ·                     +1                     ·
    discriminator_random         ·          ·                      ·                    +1

All move at once. The encoder's weights are held constant while it reads x_p, so that its row and the generator's need
one backward pass between them; images that a discriminator judges are judged once for both sides.

Presets are its parts (their section 4): `cae-gan` is cVAE-GAN without KL and without noise in z, `cvae-gan` has no
random half, `clr-gan` only that, and there the distance of styles trains the encoder too.

Deviations: both halves use the whole batch (the released code splits it); discriminators at one scale; the encoder has
strided convolutions, no residual blocks; z shifts each map on the way down after its normalisation, which would
remove it; networks size themselves to the data. As released, the discriminators do not see a. Vectors get MLPs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from twofold.game import Game, Phase, Player, Stage, State, Term, held
from twofold.latents import prior, sample_normal, split_mean_log_var
from twofold.nets.build import build_encoder
from twofold.nets.layers import SPATIAL_NORMS
from twofold.recipe import Recipe, option, require
from twofold.rollouts import rate
from twofold.spec import Spec
from twofold.terms.matching import l1_per_value
from twofold.translators import (
    PATCH_LOSSES,
    PatchLoss,
    deceiving,
    distance,
    patch_discriminator,
    patch_loss,
    sides,
    style_prior,
    translating_player,
    translation,
    unet_translator,
)


@dataclass(frozen=True)
class Config:
    latent: int = option(8, "size of the style z")
    encoded: bool = option(True, "the half x → z → x̂ (cVAE-GAN)")
    random: bool = option(True, "the half z → x_p → ẑ (cLR-GAN)")
    kl_weight: float = option(0.01, "weight of the KL of the encoder; 0: z is the encoder's mean")
    l1_weight: float = option(10.0, "weight of the L1 distance of x̂, a mean over the values")
    style_weight: float = option(0.5, "weight of the L1 distance of styles")
    style_to_encoder: bool = option(False, "the distance of styles trains the encoder too")
    adversarial_weight: float = option(1.0, "weight of the adversarial terms")
    sees_input: bool = option(False, "the discriminators see a beside x")
    loss: str = option("least-squares", "adversarial loss", choices=PATCH_LOSSES)
    width: int | None = option(
        None, "channels of the first convolution (none: 32) or units of an MLP's layers (none: 64)"
    )
    max_width: int = option(256, "most channels of generator and encoder")
    halvings: int | None = option(None, "the generator's convolutions down; none: until 2 or 3 pixels are left")
    depth: int = option(2, "hidden layers of an MLP")
    patch: int | None = option(None, "pixels of a patch's side: 1, 16, 34, 70, 142 or 286; none: about a quarter")
    width_discriminator: int | None = option(None, "the discriminators' width; none: the generator's")
    depth_discriminator: int = option(2, "hidden layers of a discriminator of vectors")
    norm: str = option("instance", "normalisation in generator and discriminators", choices=SPATIAL_NORMS)
    learning_rate: float = option(2e-4, "Adam's learning rate")
    learning_rate_discriminator: float | None = option(None, "the discriminators'; none: the same")
    beta1: float = option(0.5, "Adam's first decay")
    constant_examples: int | None = option(None, "examples before the rate falls, linearly, to 0; none: it stays")
    decay_examples: int | None = option(None, "examples over which it falls; none: as many as before")


def cae_gan() -> Config:
    """A conditional autoencoder with a discriminator: no KL, z is the encoder's mean."""
    return Config(random=False, kl_weight=0.0)


def cvae_gan() -> Config:
    """The first half."""
    return Config(random=False)


def clr_gan() -> Config:
    """The second half; the encoder learns from the distance of styles, as nothing else reaches it."""
    return Config(encoded=False, style_to_encoder=True)


def build(config: Config, spec: Spec) -> Recipe:
    """The recipe for pairs that look like `spec`."""
    source, target = sides(spec, "bicycle-gan", paired=True)
    for name in ("kl_weight", "l1_weight", "style_weight", "adversarial_weight"):
        require(getattr(config, name) >= 0, f"{name} is {getattr(config, name)}; it starts at 0")
    require(config.encoded or config.random, "encoded and random are both off: there is nothing to learn")
    require(config.adversarial_weight > 0, "adversarial_weight is 0; the discriminators would have nothing to do")
    require(
        config.encoded or (config.style_to_encoder and config.style_weight > 0),
        "without the encoded half only the distance of styles can train the encoder; use --style-to-encoder",
    )
    require(not config.encoded or config.l1_weight > 0, "l1_weight is 0, and nothing else makes z tell about x")
    generator = unet_translator(config, source, target, latent=config.latent)
    encoder = build_encoder(
        target,
        2 * config.latent,
        width=config.width or (None if target.kind == "image" else 64),
        max_width=max(config.max_width, config.width or 32),
        depth=config.depth,
        activation="leaky",
    )
    players = {"encoder": translating_player(config, encoder), "generator": translating_player(config, generator)}
    halves = [half for half, on in (("encoded", config.encoded), ("random", config.random)) if on]
    for half in halves:
        seen = (source, target) if config.sees_input else (target,)
        net = patch_discriminator(config, *seen)
        players[f"discriminator_{half}"] = translating_player(config, net, config.learning_rate_discriminator)

    def rollout(state: State) -> dict[str, Tensor]:
        a, x = state.batch["a"], state.batch["x"]
        out, styles = {"x": x}, {}
        if config.encoded:
            mean, log_var = split_mean_log_var(state.nets["encoder"](x))
            noisy = config.kl_weight > 0
            styles["encoded"] = sample_normal(mean, log_var, generator=state.generator) if noisy else mean
            out |= {"mean": mean, "log_var": log_var}
        if config.random:
            styles["random"] = out["z"] = prior(len(a), config.latent, like=a, generator=state.generator)
        for half in halves:
            # A call each: in one call both halves would depend on the encoder, and its row need a backward pass alone.
            x_fake = out[f"x_{half}"] = state.nets["generator"](a, styles[half])
            discriminator = state.nets[f"discriminator_{half}"]
            for name, image in (("real", x), ("fake", x_fake)):
                # One call each: the generator's backward pass goes through the generated images only.
                shown = torch.cat([a, image], dim=1) if config.sees_input else image
                out[f"{half}_{name}_logits"] = discriminator(shown)
        if config.random and config.style_weight:
            reading = state.nets["encoder"] if config.style_to_encoder else held(state.nets["encoder"])
            out["z_rec"] = split_mean_log_var(reading(out["x_random"]))[0]
        return out

    loss = patch_loss(config.loss)
    game = Game(players, [Phase("all", rollout, _terms(config, loss, players))])

    def style(nets: nn.ModuleDict, x: Tensor) -> Tensor:
        return split_mean_log_var(nets["encoder"](x))[0]

    abilities: dict[str, Callable[..., Any]] = {
        "translate": translation("generator", config.latent),
        "style": style,
        "style_prior": style_prior("generator", config.latent),
    }
    return Recipe((Stage("train", game),), spec, abilities)


def _terms(config: Config, loss: PatchLoss, players: dict[str, Player]) -> list[Term]:
    weight = config.adversarial_weight
    terms: list[Term] = []
    if config.encoded and config.kl_weight:
        terms.append(Term("kl", rate, to={"encoder": config.kl_weight}))
    if config.encoded:
        both = {"encoder": config.l1_weight, "generator": config.l1_weight}
        terms.append(Term("l1", distance("x_encoded", "x"), to=both))
        both = {"encoder": weight, "generator": weight}
        terms.append(Term("adversarial_encoded", deceiving(loss, "encoded"), to=both))
    if config.random:
        terms.append(Term("adversarial_random", deceiving(loss, "random"), to={"generator": weight}))
    if config.random and config.style_weight:
        reached = ("encoder", "generator") if config.style_to_encoder else ("generator",)
        terms.append(Term("style_l1", _style_distance, to=dict.fromkeys(reached, config.style_weight)))
    for player in players:
        if player.startswith("discriminator_"):
            half = player.removeprefix("discriminator_")
            terms.append(Term(player, _judging(loss, half), to={player: 1.0}))
    return terms


def _style_distance(state: State) -> Tensor:
    return l1_per_value(state["z_rec"], state["z"]).mean()


def _judging(loss: PatchLoss, half: str) -> Callable[[State], Tensor]:
    return lambda state: loss.discriminator(state[f"{half}_real_logits"], [state[f"{half}_fake_logits"]])
