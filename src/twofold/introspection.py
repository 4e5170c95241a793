"""What IntroVAE and its soft version share: a VAE whose encoder is also the critic, the tensors of its two phases, and
what the trained model can do.

The networks have the names "encoder" and "decoder". Fakes are of two kinds: reconstructions x_rec = G(z), z ~ q(z|x),
and samples x_fake = G(z_prior).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from twofold.autoencoders import Codes, Training, build_posterior, network_sizes
from twofold.game import Game, Phase, Player, State, Term
from twofold.latents import sample_normal, split_mean_log_var
from twofold.nets.build import build_decoder
from twofold.nets.norm import call_together
from twofold.rollouts import Generator, classes_for
from twofold.spec import Spec
from twofold.terms.divergence import kl_normal
from twofold.terms.likelihood import normal_nll

PLAYERS = ("encoder", "decoder")
KINDS = ("rec", "fake")


@dataclass(frozen=True)
class Introspection:
    """The two rollouts."""

    codes: Codes
    again: bool = False
    """Whether the encoder's phase also decodes the fakes' own codes, into "x_rec_rec" and "x_fake_rec"."""

    def encoder_rollout(self, state: State) -> dict[str, Tensor]:
        """q(z|x), both kinds of fakes, what is shown of them, and q of that.

        The encoder judges fakes as given: "x_rec_shown" is sg[x_r] of the paper. Without it the encoder
        could change the verdict by changing x_rec through its code. x_fake does not depend on it.
        """
        out = self.codes.rollout(state, wants=frozenset(("x_rec", "x_fake")))
        out["x_rec_shown"], out["x_fake_shown"] = out["x_rec"].detach(), out["x_fake"]
        out |= self._judged(state, out["x_rec_shown"], out["x_fake_shown"])
        if self.again:
            y = self.codes.labels(state, "decoder")
            z = [sample_normal(out[f"{k}_mean"], out[f"{k}_log_var"], generator=state.generator) for k in KINDS]
            again = call_together(state.nets["decoder"], *z, ys=(y,) * len(z))
            out |= zip((f"x_{kind}_rec" for kind in KINDS), again, strict=True)
        return out

    def decoder_rollout(self, state: State) -> dict[str, Tensor]:
        """The same draws, with gradient from the encoder's verdict into both kinds of fakes."""
        out = self.codes.rollout(state, wants=frozenset(("x_rec", "x_fake")))
        return out | self._judged(state, out["x_rec"], out["x_fake"])

    def _judged(self, state: State, x_rec: Tensor, x_fake: Tensor) -> dict[str, Tensor]:
        """The parameters of q of both kinds of fakes: "rec_mean", "rec_log_var", "fake_mean", "fake_log_var"."""
        y = self.codes.labels(state, "encoder")
        results = call_together(state.nets["encoder"], x_rec, x_fake, ys=(y, y))
        out: dict[str, Tensor] = {}
        for kind, params in zip(KINDS, results, strict=True):
            out[f"{kind}_mean"], out[f"{kind}_log_var"] = split_mean_log_var(params)
        return out


def rate_of(state: State, kind: str) -> Tensor:
    """KL(q(z|·) ‖ N(0, I)) of each example in nats, (batch,): of the data ("real") or of a kind of fakes."""
    prefix = "" if kind == "real" else f"{kind}_"
    return kl_normal(state[f"{prefix}mean"], state[f"{prefix}log_var"])


def introspective_networks(config: Any, spec: Spec, latent: int) -> dict[str, nn.Module]:
    """Encoder and decoder as the family's Configs ask. The encoder judges, so its units are leaky."""
    sizes: dict[str, Any] = network_sizes(config, spec) | {"classes": classes_for(spec, config.conditional)}
    return {
        "encoder": build_posterior("normal", spec, latent, norm=config.norm_encoder, activation="leaky", **sizes),
        "decoder": Generator(build_decoder(spec, latent, outputs=spec.shape[0], norm=config.norm, **sizes), spec),
    }


def introspective_game(
    config: Any,
    nets: dict[str, nn.Module],
    tensors: Introspection,
    *,
    encoder_terms: tuple[Term, ...],
    decoder_terms: tuple[Term, ...],
) -> Game:
    """The encoder's phase, then the decoder's, on the same batch."""
    training = Training(
        "adam",
        config.learning_rate,
        config.beta1,
        config.beta2,
        config.clip_norm,
        {"decoder": config.learning_rate_decoder},
    )
    ema = {"decoder": config.ema_half_life_examples}
    players: dict[str, Player] = {
        name: training.player(name, net, ema_half_life_examples=ema.get(name)) for name, net in nets.items()
    }
    return Game(
        players,
        (
            Phase("encoder", tensors.encoder_rollout, encoder_terms),
            Phase("decoder", tensors.decoder_rollout, decoder_terms),
        ),
    )


def introspective_abilities(codes: Codes, *, variance: float) -> dict[str, Callable[..., Any]]:
    """The family's abilities, and the ELBO under p(x|z) = N(G(z), variance · I): the one that the objective on data is,
    up to a factor and a constant."""
    log_std = 0.5 * math.log(variance)
    abilities = codes.abilities()

    def elbo(
        nets: nn.ModuleDict, x: Tensor, *, y: Tensor | None = None, generator: torch.Generator
    ) -> dict[str, Tensor]:
        y_seen = y if "encoder" in codes.labelled else None
        mean, log_var = split_mean_log_var(nets["encoder"](x, y_seen))
        x_rec = abilities["decode"](nets, sample_normal(mean, log_var, generator=generator), y=y)
        return {"rate_nats": kl_normal(mean, log_var), "distortion_nats": normal_nll(x_rec, x, log_std=log_std)}

    return abilities | {"elbo": elbo}
