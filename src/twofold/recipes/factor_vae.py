"""FactorVAE (Kim & Mnih 2018, "Disentangling by factorising").

A VAE whose aggregated posterior q(z) is pushed towards the product of its marginals, so that the dimensions of the code
vary independently, without making each code say less as β-VAE does. Encoder and decoder minimise (their eq. 2)

    E_q(z|x) [ -log p(x|z) ]  +  KL( q(z|x) ‖ N(0, I) )  +  γ · KL( q(z) ‖ Π_j q(z_j) )
         reconstruction                  kl                   total_correlation

The last divergence is read from a discriminator of codes, trained by cross-entropy to tell draws of q(z) from codes
whose dimensions were shuffled over the batch one by one: at its optimum its logit is log q(z) / Π_j q(z_j)
(their eq. 3).

Routing:

    term                       encoder  decoder  discriminator
    kl                              +1        ·              ·
    total_correlation              +10        ·              ·
    reconstruction                  +1       +1              ·
    adversarial_discriminator        ·        ·             +1

The discriminator's loss depends on the codes and so on the encoder, which must not hear of it: it would be taught to
make itself easy to see through, against the row above it.

Presets: `paper` has the networks and settings of their 2D Shapes experiments, for 64×64 images.

Deviations: all players move at once from one batch, and the shuffled codes are those of that batch (the paper's
algorithm 2 draws a second batch for them); one logit instead of a softmax over two, which is the same family of
functions; the discriminator is smaller by default. The discriminator's loss is the mean of its two cross-entropies.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from twofold.game import Game, Phase, Player, Stage, State, Term
from twofold.latents import permute_dims
from twofold.nets.build import Discriminator
from twofold.nets.layers import one_hot
from twofold.nets.mlp import MLP
from twofold.nets.norm import call_together
from twofold.recipe import Recipe, option, require
from twofold.rollouts import (
    LikelihoodDecoder,
    autoencode,
    classes_for,
    kl_term,
    likelihood_for,
    reconstruction_term,
    variational_abilities,
    variational_networks,
    variational_players,
    warmed_up,
)
from twofold.spec import Spec
from twofold.terms.adversarial import bce_fake, bce_real
from twofold.terms.information import total_correlation
from twofold.terms.likelihood import LIKELIHOODS


@dataclass(frozen=True)
class Config:
    gamma: float = option(10.0, "γ: weight of the total correlation; the paper tries 1 to 100")
    kl_warmup_examples: int = option(0, "the KL's coefficient rises from 0 to 1 over this many examples; 0: no warm-up")
    latent: int = option(10, "size of the code z")
    likelihood: str = option("normal", "p(x|z); the paper's sprites are binary: bernoulli", choices=LIKELIHOODS)
    likelihood_scale: str = option(
        "scalar",
        "scale of a Normal or Laplace likelihood: fixed to 1, one learned number, or one per value",
        choices=("fixed", "scalar", "output"),
    )
    arch: str = option(
        "conv",
        "networks for images: sized to the data, or the paper's for 64×64; vectors always get an MLP",
        choices=("conv", "mlp", "paper"),
    )
    width: int | None = option(
        None, "channels of the first convolution (none: 32) or units of an MLP's layers (none: 256)"
    )
    depth: int = option(2, "hidden layers of an MLP")
    hidden: int = option(256, "units of a fully connected layer between convolutions and head; 0: none")
    norm: str = option("batch", "normalisation inside the networks", choices=("batch", "group", "layer", "none"))
    width_discriminator: int = option(256, "units of the discriminator's hidden layers")
    depth_discriminator: int = option(4, "hidden layers of the discriminator")
    learning_rate: float = option(1e-3, "Adam's rate for encoder and decoder")
    learning_rate_discriminator: float = option(1e-4, "Adam's rate for the discriminator, with decays 0.5 and 0.9")
    clip_norm: float | None = option(None, "largest norm of each network's gradient")
    ema_half_life_examples: float | None = option(None, "sample from an average of the decoder with this half-life")
    conditional: bool = option(False, "condition encoder and decoder on the labels")


def paper() -> Config:
    """Kim & Mnih 2018 on 2D Shapes: γ = 35, batches of 64, 300,000 of them."""
    return Config(
        gamma=35.0,
        likelihood="bernoulli",
        arch="paper",
        hidden=128,
        norm="none",
        width_discriminator=1000,
        depth_discriminator=6,
        learning_rate=1e-4,
    )


def build(config: Config, spec: Spec) -> Recipe:
    """The recipe for data that looks like `spec`."""
    require(config.gamma >= 0, f"gamma is {config.gamma}; it starts at 0")
    require(config.depth_discriminator >= 0, f"depth_discriminator is {config.depth_discriminator}; it starts at 0")
    require(config.latent >= 2, f"latent is {config.latent}; a code of one dimension has no correlation to remove")
    config = replace(config, arch=config.arch if spec.kind == "image" else "mlp")
    networks = paper_networks if config.arch == "paper" else variational_networks
    sizes = (config.width_discriminator,) * config.depth_discriminator
    discriminator = Discriminator(MLP(config.latent, sizes, 1, activation="leaky"))

    def rollout(state: State) -> dict[str, Tensor]:
        out = autoencode(state, conditional=config.conditional)
        shuffled = permute_dims(out["z"], generator=state.generator)
        joint, product = call_together(state.nets["discriminator"], out["z"], shuffled)
        return out | {"joint_logits": joint, "product_logits": product}

    def discriminator_loss(state: State) -> Tensor:
        return 0.5 * (bce_real(state["joint_logits"]).mean() + bce_fake(state["product_logits"]).mean())

    terms = (
        kl_term(warmed_up(1.0, config.kl_warmup_examples)),
        Term("total_correlation", lambda s: total_correlation(s["joint_logits"]), to={"encoder": config.gamma}),
        reconstruction_term(),
        Term("adversarial_discriminator", discriminator_loss, to={"discriminator": 1.0}),
    )
    adam = partial(torch.optim.Adam, lr=config.learning_rate_discriminator, betas=(0.5, 0.9))
    game = Game(
        players=variational_players(config, *networks(config, spec)) | {"discriminator": Player(discriminator, adam)},
        phases=(Phase("all", rollout, terms),),
    )
    return Recipe((Stage("train", game),), spec, variational_abilities(config.latent), config.conditional)


class PaperEncoder(nn.Module):
    """Four 4×4 convolutions with stride 2 (width, width, 2 width, 2 width channels), `hidden` units, and the parameters
    of q(z|x)."""

    def __init__(self, channels: int, latent: int, *, width: int, hidden: int, classes: int | None):
        super().__init__()
        widths = (channels + (classes or 0), width, width, 2 * width, 2 * width)
        convs = [nn.Sequential(nn.Conv2d(a, b, 4, 2, 1), nn.ReLU()) for a, b in pairwise(widths)]
        self.net = nn.Sequential(
            *convs, nn.Flatten(), nn.Linear(2 * width * 4 * 4, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent)
        )
        self.classes = classes

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        label = one_hot(y, self.classes, like=x)
        if label is not None:
            x = torch.cat([x, label[:, :, None, None].expand(-1, -1, *x.shape[2:])], dim=1)
        return self.net(x)


class PaperDecoder(nn.Module):
    """`hidden` units, 4×4 maps of 2 width channels, and four 4×4 transposed convolutions with stride 2 (2 width, width,
    width and `outputs` channels)."""

    def __init__(self, outputs: int, latent: int, *, width: int, hidden: int, classes: int | None):
        super().__init__()
        widths = (2 * width, 2 * width, width, width)
        ups = [nn.Sequential(nn.ConvTranspose2d(a, b, 4, 2, 1), nn.ReLU()) for a, b in pairwise(widths)]
        self.net = nn.Sequential(
            nn.Linear(latent + (classes or 0), hidden),
            nn.ReLU(),
            nn.Linear(hidden, 2 * width * 4 * 4),
            nn.ReLU(),
            nn.Unflatten(1, (2 * width, 4, 4)),
            *ups,
            nn.ConvTranspose2d(width, outputs, 4, 2, 1),
        )
        self.classes = classes

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        label = one_hot(y, self.classes, like=z)
        return self.net(z if label is None else torch.cat([z, label], dim=1))


def paper_networks(config: Config, spec: Spec) -> tuple[nn.Module, LikelihoodDecoder]:
    """Encoder and decoder of their table 1, for 64×64 images of any number of channels."""
    require(
        spec.shape[1:] == (64, 64),
        f"the paper's networks are for 64×64 images and these are {'×'.join(map(str, spec.shape[1:]))}; "
        "use --arch conv, or --size 64",
    )
    require(config.norm == "none", f"norm is {config.norm}; the paper's networks have none")
    require(config.hidden >= 1, f"hidden is {config.hidden}; the paper's networks have a fully connected layer")
    likelihood = likelihood_for(config, spec)
    sizes: dict[str, Any] = {
        "width": config.width or 32,
        "hidden": config.hidden,
        "classes": classes_for(spec, config.conditional),
    }
    encoder = PaperEncoder(spec.shape[0], config.latent, **sizes)
    decoder = PaperDecoder(likelihood.outputs(spec.shape[0]), config.latent, **sizes)
    return encoder, LikelihoodDecoder(decoder, likelihood)
