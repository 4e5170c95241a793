"""CycleGAN (Zhu et al. 2017, "Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks").

From two sets without correspondence, a and x. G_x makes x of a, G_a makes a of x (their eqs. 1-4, with the
least-squares losses of section 4 and the identity term of 5.2; norms are means over the values):

    adversarial_x   E (D_x(G_x(a)) - 1)²                 adversarial_a   E (D_a(G_a(x)) - 1)²
    cycle_a         E ‖G_a(G_x(a)) - a‖₁, "forward"      cycle_x         E ‖G_x(G_a(x)) - x‖₁, "backward"
    identity_x      E ‖G_x(x) - x‖₁                      identity_a      E ‖G_a(a) - a‖₁
    discriminator_x E (D_x(x) - 1)² + E D_x(pool)²       discriminator_a likewise

λ = 10 for the cycles, λ/2 for the identities, ½ for the discriminators. A discriminator is shown images from a pool of
50 past ones in place of half of the new ones.

Routing:

    term             generator_x  generator_a  discriminator_x  discriminator_a
    adversarial_x             +1            ·                ·                ·
    adversarial_a              ·           +1                ·                ·
    cycle_a                  +10          +10                ·                ·
    cycle_x                  +10          +10                ·                ·
    identity_x                +5            ·                ·                ·
    identity_a                 ·           +5                ·                ·
    discriminator_x            ·            ·             +0.5                ·
    discriminator_a            ·            ·                ·             +0.5

All four move at once, each from what the others were before the step: what the released PyTorch code does by updating
the generators and then the discriminators on the same images. So one pass serves both: generated images that the
discriminator is shown themselves are judged once for both sides, the identities are computed in the same generator call
as the translations, and both generators share one backward pass.

Presets are the ablation of section 5.1.3, without identities: `cyclegan-cycle` (cycles alone), `cyclegan-gan` (no
cycles), `cyclegan-forward` and `cyclegan-backward` (one cycle); `cyclegan-paper` has the widths for 256×256.

Deviations: networks size themselves to the data (6 residual blocks and half the paper's channels; borders inside the
blocks are repeated rather than reflected, so that small maps work). The paper's released Lua code updates G_x, D_x,
G_a, D_a in turn. Identities are left out where the two sides differ in channels. Vectors get MLPs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from twofold.game import Game, Phase, Player, Stage, State, Term
from twofold.nets.layers import SPATIAL_NORMS
from twofold.nets.norm import call_together
from twofold.nets.pool import ImagePool
from twofold.recipe import Recipe, option, require
from twofold.spec import Spec
from twofold.translators import (
    PATCH_LOSSES,
    PatchLoss,
    deceiving,
    distance,
    patch_discriminator,
    patch_loss,
    resnet_translator,
    sides,
    translating_player,
    translation,
)


@dataclass(frozen=True)
class Config:
    cycle_weight: float = option(10.0, "λ: weight of the cycles; 0: without them")
    cycles: str = option("both", "forward: a → x → a; backward: x → a → x", choices=("both", "forward", "backward"))
    identity_weight: float | None = option(
        None, "weight of the identities; none: half of λ, or 0 where the two sides differ in channels"
    )
    adversarial_weight: float = option(1.0, "weight of the adversarial terms; 0: no discriminators")
    loss: str = option("least-squares", "adversarial loss", choices=PATCH_LOSSES)
    pool: int = option(50, "past images from which a discriminator is shown half; 0: new ones only")
    width: int | None = option(
        None, "channels of the first convolution (none: 32) or units of an MLP's layers (none: 64)"
    )
    blocks: int = option(6, "residual blocks of a generator")
    depth: int = option(2, "hidden layers of an MLP")
    patch: int | None = option(None, "pixels of a patch's side: 1, 16, 34, 70, 142 or 286; none: about a quarter")
    width_discriminator: int | None = option(None, "the discriminators' width; none: the generators'")
    depth_discriminator: int = option(2, "hidden layers of a discriminator of vectors")
    norm: str = option("instance", "normalisation in all networks for images", choices=SPATIAL_NORMS)
    learning_rate: float = option(2e-4, "Adam's learning rate")
    learning_rate_discriminator: float | None = option(None, "the discriminators'; none: the same")
    beta1: float = option(0.5, "Adam's first decay")
    constant_examples: int | None = option(None, "examples before the rate falls, linearly, to 0; none: it stays")
    decay_examples: int | None = option(None, "examples over which it falls; none: as many as before")


def cycle() -> Config:
    """Cycles alone."""
    return Config(adversarial_weight=0.0, identity_weight=0.0)


def gan() -> Config:
    """Adversarial terms alone."""
    return Config(cycle_weight=0.0, identity_weight=0.0)


def forward() -> Config:
    """Adversarial terms and the forward cycle."""
    return Config(cycles="forward", identity_weight=0.0)


def backward_cycle() -> Config:
    """Adversarial terms and the backward cycle."""
    return Config(cycles="backward", identity_weight=0.0)


def paper() -> Config:
    """Appendix 7.2: 64 channels, 9 blocks (for 256×256), 70-pixel patches."""
    return Config(width=64, blocks=9, patch=70)


def build(config: Config, spec: Spec) -> Recipe:
    """The recipe for two sets that look like `spec`."""
    source, target = sides(spec, "cyclegan")
    identity = config.identity_weight
    if identity is None:
        identity = config.cycle_weight / 2 if source.shape == target.shape else 0.0
    for name, value in (
        ("cycle_weight", config.cycle_weight),
        ("adversarial_weight", config.adversarial_weight),
        ("identity_weight", identity),
    ):
        require(value >= 0, f"{name} is {value}; it starts at 0")
    require(
        identity == 0 or source.shape == target.shape,
        f"identity_weight is {identity}, but the two sides have shapes {source.shape} and {target.shape}; use 0",
    )
    cycles = {
        "a": config.cycle_weight * (config.cycles != "backward"),
        "x": config.cycle_weight * (config.cycles != "forward"),
    }
    require(
        config.adversarial_weight > 0 or all(cycles.values()) or identity > 0,
        "without adversarial terms both cycles are needed: nothing else would train the generators",
    )
    specs, other = {"a": source, "x": target}, {"a": "x", "x": "a"}
    players: dict[str, Player] = {
        f"generator_{d}": translating_player(config, resnet_translator(config, specs[other[d]], specs[d]))
        for d in ("x", "a")
    }
    memory = {}
    if config.adversarial_weight:
        for d in ("x", "a"):
            net = patch_discriminator(config, specs[d])
            players[f"discriminator_{d}"] = translating_player(config, net, config.learning_rate_discriminator)
            memory[f"pool_{d}"] = ImagePool(config.pool, specs[d].shape)
    loss = patch_loss(config.loss)

    def rollout(state: State) -> dict[str, Tensor]:
        out = {"a": state.batch["a"], "x": state.batch["x"]}
        for d in ("x", "a"):
            given = out[other[d]]
            if identity:
                out[f"{d}_fake"], out[f"{d}_same"] = call_together(state.nets[f"generator_{d}"], given, out[d])
            else:
                out[f"{d}_fake"] = state.nets[f"generator_{d}"](given)
        for d in ("x", "a"):
            if cycles[d]:
                out[f"{d}_cycle"] = state.nets[f"generator_{d}"](out[f"{other[d]}_fake"])
            if config.adversarial_weight:
                out |= _judged(state, d, out[d], out[f"{d}_fake"])
        return out

    terms = [
        *(
            Term(f"adversarial_{d}", deceiving(loss, d), to={f"generator_{d}": config.adversarial_weight})
            for d in ("x", "a")
        ),
        *(
            Term(f"cycle_{d}", distance(f"{d}_cycle", d), to={"generator_x": cycles[d], "generator_a": cycles[d]})
            for d in ("a", "x")
        ),
        *(Term(f"identity_{d}", distance(f"{d}_same", d), to={f"generator_{d}": identity}) for d in ("x", "a")),
    ]
    terms = [term for term in terms if any(term.to.values())]
    if config.adversarial_weight:
        terms += [Term(f"discriminator_{d}", _judging(loss, d), to={f"discriminator_{d}": 0.5}) for d in ("x", "a")]
    game = Game(players, [Phase("all", rollout, terms)], memory=memory)
    abilities = {"translate": translation("generator_x"), "translate_back": translation("generator_a")}
    return Recipe((Stage("train", game),), spec, abilities)


def _judged(state: State, d: str, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """Logits of real images, of generated ones, and of those from the pool; which of the generated are shown to the
    discriminator."""
    discriminator = state.nets[f"discriminator_{d}"]
    pool = cast(ImagePool, state.nets[f"pool_{d}"])
    whole = state.peers.gathered(fake)
    own = state.peers.own(len(whole))
    shown = pool.show(whole, seen=state.examples, key=state.generator.initial_seed(), own=own)
    if shown.past is None:
        logits = discriminator(fake)
        return {
            f"{d}_fake_logits": logits,
            f"{d}_new_logits": logits,
            f"{d}_real_logits": discriminator(real),
        }
    # Calls by who learns from them: a backward pass goes through no image that it has no use for.
    real_logits, past_logits = call_together(discriminator, real, shown.past)
    out = {f"{d}_real_logits": real_logits, f"{d}_past_logits": past_logits}
    unseen = discriminator(fake[[k for k in range(len(fake)) if k not in shown.new]])
    if not shown.new:
        return out | {f"{d}_fake_logits": unseen}
    new = discriminator(fake[shown.new])
    return out | {f"{d}_new_logits": new, f"{d}_fake_logits": torch.cat([new, unseen])}


def _judging(loss: PatchLoss, d: str) -> Callable[[State], Tensor]:
    def value(state: State) -> Tensor:
        fakes = [state[name] for name in (f"{d}_new_logits", f"{d}_past_logits") if name in state.rollout]
        return loss.discriminator(state[f"{d}_real_logits"], fakes)

    return value
