"""What ALI and BiGAN share: two joint distributions over data and codes, one discriminator of pairs, both sides of that
game, and the order in which they are played.

The networks have the names "encoder", "decoder" and "discriminator"; the discriminator takes (x, z), and of a
conditional model the label as a part of the code it sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from twofold.autoencoders import Codes, Training, build_posterior, network_sizes
from twofold.game import Game, Phase, State, Term
from twofold.nets.build import build_decoder
from twofold.nets.joint import build_joint_discriminator
from twofold.nets.layers import one_hot
from twofold.nets.norm import call_together
from twofold.recipe import require
from twofold.rollouts import Generator
from twofold.spec import Spec
from twofold.terms.adversarial import AdversarialLoss, build_adversarial
from twofold.terms.matching import squared_error
from twofold.terms.penalty import r1, r2

PENALTIES = ("none", "r1-r2")
ORDERS = ("simultaneous", "alternating")
LOSSES = ("non-saturating", "minimax", "log-ratio", "hinge", "relativistic")
"""Losses in which both labels can be swapped: those that judge a pair alone take minus its logit, and a relativistic
one has its two sides exchanged."""


def pairs(state: State, *, codes: Codes, classes: int | None) -> dict[str, Tensor]:
    """Draws of both joints and the discriminator's logits: adds to {"x", "z"} of the encoder's, and {"z_prior",
    "x_fake"} of the decoder's, "inferred_logits" of (x, z) and "generated_logits" of (x_fake, z_prior)."""
    out = codes.rollout(state, wants=frozenset(("z", "x_fake")))
    see = partial(_seen, state, codes=codes, classes=classes)
    inferred, generated = call_together(
        state.nets["discriminator"], out["x"], out["x_fake"], ys=(see(out["z"]), see(out["z_prior"]))
    )
    return out | {"inferred_logits": inferred, "generated_logits": generated}


def _seen(state: State, z: Tensor, *, codes: Codes, classes: int | None) -> Tensor:
    """What the discriminator is shown of a code: with the label, one-hot, if it is conditional."""
    label = one_hot(codes.labels(state, "discriminator"), classes, like=z)
    return z if label is None else torch.cat([z, label], dim=1)


def discriminator_term(loss: AdversarialLoss) -> Term:
    """The discriminator's side: pairs of the encoder are real, pairs of the decoder are not."""
    return Term(
        "adversarial_discriminator",
        lambda s: loss.discriminator(s["inferred_logits"], s["generated_logits"]),
        to={"discriminator": 1.0},
    )


def inference_term(loss: AdversarialLoss) -> Term:
    """Both labels swapped: the encoder wants its pairs taken for the decoder's, and the decoder the reverse. One sum,
    as neither part depends on the other's network."""

    def swapped(state: State) -> Tensor:
        if loss.needs_real:
            return loss.generator(state["generated_logits"], state["inferred_logits"])
        return loss.generator(state["generated_logits"]) + loss.generator(-state["inferred_logits"])

    return Term("adversarial_inference", swapped, to={"encoder": 1.0, "decoder": 1.0})


def penalty_terms(kind: str, weight: float, *, norm: str, codes: Codes, classes: int | None) -> tuple[Term, ...]:
    """The discriminator's penalty on whole pairs: none, or R1 at the encoder's and R2 at the decoder's pairs.

    It holds the discriminator's slope in data and in codes alike, so that where the joints differ a little it does not
    become sure.
    """
    require(weight >= 0, f"penalty_weight is {weight}; it starts at 0")
    if kind == "none" or weight == 0:
        return ()
    require(
        norm != "batch",
        "a penalty is on one example's slope and BatchNorm mixes them; use --penalty none or another norm",
    )

    def loss(state: State) -> Tensor:
        values = state["x"][0].numel()

        def judge(pair: Tensor) -> Tensor:
            x, z = pair[:, :values].unflatten(1, state["x"].shape[1:]), pair[:, values:]
            return state.nets["discriminator"](x, z)

        see = partial(_seen, state, codes=codes, classes=classes)
        sides = (("x", "z"), ("x_fake", "z_prior"))
        inferred, generated = (torch.cat([state[x].flatten(1), see(state[z])], dim=1) for x, z in sides)
        return r1(judge, inferred) + r2(judge, generated)

    return (Term("r1_r2", loss, to={"discriminator": weight}),)


def code_regression_terms(weight: float, codes: Codes) -> tuple[Term, ...]:
    """None, or ‖z - E(G(z))‖² of the codes of samples, which trains the encoder only. `codes` are deterministic."""
    require(weight >= 0, f"code_weight is {weight}; it starts at 0")

    def loss(state: State) -> Tensor:
        z_again = state.nets["encoder"](state["x_fake"], codes.labels(state, "encoder"))
        return squared_error(z_again, state["z_prior"]).mean()

    return (Term("code_regression", loss, to={"encoder": weight}),) if weight else ()


def joint_networks(config: Any, spec: Spec, codes: Codes, *, classes: int | None) -> dict[str, nn.Module]:
    """Encoder, decoder and the discriminator of pairs, as the Configs of `ali` and `bigan` ask."""
    latent = codes.prior.latent
    sizes: dict[str, Any] = network_sizes(config, spec) | {"norm": config.norm, "classes": classes}
    return {
        "encoder": build_posterior(codes.posterior, spec, latent, **sizes),
        "decoder": Generator(build_decoder(spec, latent, outputs=spec.shape[0], **sizes), spec),
        "discriminator": build_joint_discriminator(
            spec,
            latent + (classes or 0),
            arch=config.arch,
            width=config.width,
            depth=config.depth,
            # The head that joins both needs a layer of its own: without `hidden` as wide as the code's features.
            hidden=config.hidden or config.code_width,
            code_width=config.code_width,
            norm=config.norm_discriminator,
            spectral=config.spectral,
        ),
    }


def labelled(conditional: bool) -> frozenset[str]:
    """The networks that see the labels of a conditional model: all three."""
    return frozenset(("encoder", "decoder", "discriminator") if conditional else ())


def joint_game(
    config: Any, nets: Mapping[str, nn.Module], codes: Codes, *, classes: int | None, more: tuple[Term, ...] = ()
) -> Game:
    """Everybody at once from the same pairs, or the discriminator's `critic_plays` plays and then the others'.

    `more` are terms of encoder and decoder besides the game's. Both are averaged: what one undoes of the other depends
    on the weights of both, which keep moving.
    """
    require(
        config.order == "alternating" or config.critic_plays == 1,
        f"critic_plays is {config.critic_plays} and order is {config.order}; "
        "use --order alternating for more plays than 1",
    )
    training = Training(
        "adam",
        config.learning_rate,
        config.beta1,
        config.beta2,
        config.clip_norm,
        {"discriminator": config.learning_rate_discriminator},
    )
    ema = dict.fromkeys(("encoder", "decoder"), config.ema_half_life_examples)
    players = {name: training.player(name, net, ema_half_life_examples=ema.get(name)) for name, net in nets.items()}
    loss = build_adversarial(config.loss, real_label=config.real_label)
    rollout = partial(pairs, codes=codes, classes=classes)
    penalty = penalty_terms(
        config.penalty, config.penalty_weight, norm=config.norm_discriminator, codes=codes, classes=classes
    )
    judge = (discriminator_term(loss), *penalty)
    infer = (inference_term(loss), *more)
    if config.order == "simultaneous":
        return Game(players, (Phase("joint", rollout, (*judge, *infer)),))
    return Game(
        players,
        (
            Phase("discriminator", rollout, judge, repeats=config.critic_plays),
            Phase("inference", rollout, infer),
        ),
    )
