"""CoGAN (Liu & Tuzel 2016, "Coupled Generative Adversarial Networks").

Two GANs, one for each of two sets without correspondence, a and x, that share weights: the generators all but their
last layer, the discriminators all but their first. One code z then gives a pair, since what is shared decides what is
shown, and the last layer how it looks in its set (their eqs. 4-6). With the networks of set d ∈ {a, x} written out,

    G_d(z) = head_d(generator(z)),    D_d(·) = discriminator(stem_d(·))

each of the two games is the plain GAN's, non-saturating.

Routing:

    term               generator  head_a  head_x  stem_a  stem_x  discriminator
    phase discriminators
      discriminator_a          ·       ·       ·      +1       ·             +1
      discriminator_x          ·       ·       ·       ·      +1             +1
    phase generators
      adversarial_a           +1      +1       ·       ·       ·              ·
      adversarial_x           +1       ·      +1       ·       ·              ·

`--no-share` gives each set networks of its own, as a control: nothing then makes the two images of one z a pair.

Deviations: networks size themselves to the data; the paper's have fixed layers for 28×28 digits, with maxima over
patches of the first convolution where ours has stride 2. The shared discriminator has BatchNorm, which theirs for
digits has not: without it every code gave the same pair of 8×8 digits (docs/results.md). Vectors get MLPs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from twofold.game import Game, Phase, Player, Stage, State, Term
from twofold.latents import prior
from twofold.nets.build import Discriminator, build_decoder, build_encoder
from twofold.nets.mlp import MLP
from twofold.nets.norm import call_together
from twofold.recipe import Recipe, option
from twofold.rollouts import squash
from twofold.spec import Spec
from twofold.terms.adversarial import AdversarialLoss, build_adversarial
from twofold.translators import PATCH_LOSSES, VECTOR_WIDTH, deceiving, sides

DOMAINS = ("a", "x")


@dataclass(frozen=True)
class Config:
    latent: int = option(64, "size of z")
    share: bool = option(True, "share all but the generators' last and the discriminators' first layer")
    loss: str = option("non-saturating", "adversarial loss", choices=PATCH_LOSSES)
    width: int | None = option(None, "channels of the widest map (none: 32) or units of an MLP's layers (none: 64)")
    depth: int = option(2, "hidden layers of an MLP")
    norm: str = option("batch", "normalisation in the shared generator", choices=("batch", "group", "layer", "none"))
    norm_discriminator: str = option(
        "batch", "normalisation in the shared discriminator of images", choices=("batch", "group", "layer", "none")
    )
    learning_rate: float = option(2e-4, "Adam's learning rate")
    learning_rate_discriminator: float | None = option(None, "the discriminators'; none: the same")
    beta1: float = option(0.5, "Adam's first decay")
    weight_decay: float = option(0.0, "L2 penalty of all players (the paper's MNIST code: 5e-4)")


class Head(nn.Module):
    """The last layer of one set's generator: features to the set's data, in the model's range."""

    def __init__(self, features: int, spec: Spec) -> None:
        super().__init__()
        image = spec.kind == "image"
        last = nn.Conv2d(features, spec.shape[0], 5, 1, 2) if image else nn.Linear(features, spec.shape[0])
        self.layers = nn.Sequential(nn.ReLU(), last)
        self.spec = spec

    def forward(self, h: Tensor) -> Tensor:
        return squash(self.layers(h), self.spec)


def build(config: Config, spec: Spec) -> Recipe:
    """The recipe for two sets that look like `spec`."""
    specs = dict(zip(DOMAINS, sides(spec, "cogan"), strict=True))
    image = spec.kind == "image"
    width = config.width or (32 if image else VECTOR_WIDTH)
    rate = {"g": config.learning_rate, "d": config.learning_rate_discriminator or config.learning_rate}
    adam = {
        k: partial(torch.optim.Adam, lr=v, betas=(config.beta1, 0.999), weight_decay=config.weight_decay)
        for k, v in rate.items()
    }
    trunk, judge = (_shared(config, "generator"), _shared(config, "discriminator"))
    players: dict[str, Player] = {}
    for name in dict.fromkeys(trunk.values()):
        players[name] = Player(_trunk(config, spec, width), adam["g"])
    players |= {f"head_{d}": Player(Head(width, specs[d]), adam["g"]) for d in DOMAINS}
    players |= {f"stem_{d}": Player(_stem(specs[d], width), adam["d"]) for d in DOMAINS}
    for name in dict.fromkeys(judge.values()):
        players[name] = Player(_judge(config, spec, width), adam["d"])

    def generate(state: State) -> dict[str, Tensor]:
        x = state.batch["x"]
        z = prior(len(x), config.latent, like=x, generator=state.generator)
        return dict(zip((f"{d}_fake" for d in DOMAINS), _couple(state.nets, z, trunk), strict=True))

    def logits(state: State, d: str, images: Tensor) -> Tensor:
        return state.nets[judge[d]](state.nets[f"stem_{d}"](images))

    def discriminate(state: State) -> dict[str, Tensor]:
        out = generate(state)
        for d in DOMAINS:
            real = state.batch[d]
            judged = call_together(state.nets[judge[d]], real, out[f"{d}_fake"], method=partial(logits, state, d))
            out[f"{d}_real_logits"], out[f"{d}_fake_logits"] = judged
        return out

    def deceive(state: State) -> dict[str, Tensor]:
        out = generate(state)
        return out | {f"{d}_fake_logits": logits(state, d, out[f"{d}_fake"]) for d in DOMAINS}

    loss = build_adversarial(config.loss)
    game = Game(
        players,
        [
            Phase(
                "discriminators",
                discriminate,
                [Term(f"discriminator_{d}", _judging(loss, d), to={f"stem_{d}": 1.0, judge[d]: 1.0}) for d in DOMAINS],
            ),
            Phase(
                "generators",
                deceive,
                [Term(f"adversarial_{d}", deceiving(loss, d), to={trunk[d]: 1.0, f"head_{d}": 1.0}) for d in DOMAINS],
            ),
        ],
    )
    return Recipe((Stage("train", game),), spec, _abilities(config.latent, trunk))


def _shared(config: Config, name: str) -> dict[str, str]:
    """The player of each set: one for both, or one each."""
    return {d: name if config.share else f"{name}_{d}" for d in DOMAINS}


def _couple(nets: nn.ModuleDict, z: Tensor, trunk: dict[str, str]) -> tuple[Tensor, ...]:
    """The images (a, x) of codes z; a shared trunk runs once."""
    features = {name: nets[name](z) for name in dict.fromkeys(trunk.values())}
    return tuple(nets[f"head_{d}"](features[trunk[d]]) for d in DOMAINS)


def _trunk(config: Config, spec: Spec, width: int) -> nn.Module:
    if spec.kind == "vector":
        return MLP(config.latent, (width,) * max(0, config.depth - 1), width, activation="relu")
    return build_decoder(spec, config.latent, outputs=width, width=width, norm=config.norm)


def _stem(spec: Spec, width: int) -> nn.Module:
    image = spec.kind == "image"
    first = nn.Conv2d(spec.shape[0], width, 5, 2, 2) if image else nn.Linear(spec.shape[0], width)
    return nn.Sequential(first, nn.LeakyReLU(0.2))


def _judge(config: Config, spec: Spec, width: int) -> nn.Module:
    if spec.kind == "vector":
        return Discriminator(MLP(width, (width,) * max(0, config.depth - 1), 1, activation="leaky"))
    half = Spec("image", (width, *((n + 1) // 2 for n in spec.shape[1:])))
    return Discriminator(build_encoder(half, 1, width=width, activation="leaky", norm=config.norm_discriminator))


def _judging(loss: AdversarialLoss, d: str) -> Callable[[State], Tensor]:
    return lambda state: loss.discriminator(state[f"{d}_real_logits"], state[f"{d}_fake_logits"])


def _abilities(latent: int, trunk: dict[str, str]) -> dict[str, Callable[..., Any]]:
    def draw(nets: nn.ModuleDict, n: int, *, generator: torch.Generator) -> Tensor:
        return prior(n, latent, like=next(nets["head_x"].parameters()), generator=generator)

    def decode(nets: nn.ModuleDict, z: Tensor, *, y: Tensor | None = None) -> Tensor:
        return _couple(nets, z, trunk)[1]

    return {
        "prior": draw,
        "decode": decode,
        "sample": lambda nets, n, *, y=None, generator: decode(nets, draw(nets, n, generator=generator)),
        "couple": lambda nets, z: _couple(nets, z, trunk),
    }
