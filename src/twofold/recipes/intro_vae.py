"""IntroVAE (Huang et al. 2018, "IntroVAE: Introspective Variational Autoencoders for Photographic Image Synthesis").

A VAE that judges its own samples: the encoder is the critic, and its verdict is the KL of its posterior from the prior.
It gives data a small KL and drives that of reconstructions x_r = G(z) and samples x_p = G(z_p) up to a margin m; the
decoder wants theirs small too. With L_AE = ½ ‖x - x_r‖², summed, and sg[] for no gradient (their eqs. 11 and 12):

    encoder    β L_AE  +  KL(E(x))  +  α/2 Σ_{s=r,p} [ m - KL(E(sg[x_s])) ]₊
    decoder    β L_AE  +  α/2 Σ_{s=r,p} KL(E(x_s))

Routing:

    term                      encoder  decoder
    phase encoder
      reconstruction_encoder       +8        ·
      kl_real                      +1        ·
      margin_rec               +0.125        ·
      margin_fake              +0.125        ·
    phase decoder
      reconstruction_decoder        ·       +8
      kl_rec                        ·   +0.125
      kl_fake                       ·   +0.125

The margin holds for each example. sg[x_r] is part of the mathematics: x_r depends on the encoder through its code.

`elbo` is that of p(x|z) = N(G(z), I / β), which `β L_AE + KL` is the negative of, up to a constant.

`intro-vae-paper` has the residual networks of the released code at 256×256 and the settings of its script, for images
with even sides of 8 and more.

Deviations: the decoder's phase draws z and z_p anew and encodes with the encoder that has just moved; the paper keeps
its first codes. The released code, and with it the preset, weighs the margin by 0.5 and the decoder's KL by 1
(`alpha_decoder`), averages the KL before the margin, and omits L_AE's ½. Networks size themselves to the data, and tanh
keeps images in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from twofold.autoencoders import Codes, Prior, latent_of
from twofold.game import Stage, State, Term
from twofold.introspection import (
    PLAYERS,
    Introspection,
    introspective_abilities,
    introspective_game,
    introspective_networks,
    rate_of,
)
from twofold.nets.layers import one_hot
from twofold.recipe import Recipe, option, require
from twofold.rollouts import Generator, classes_for
from twofold.spec import Spec
from twofold.terms.divergence import margin
from twofold.terms.matching import squared_error


@dataclass(frozen=True)
class Config:
    latent: int | None = option(None, "size of the code z; none: 16, or the data's number of values if that is less")
    margin_nats: float = option(20.0, "m: the KL up to which fakes are pushed")
    alpha: float = option(0.25, "α: weight of the encoder's margins, half for each kind of fakes")
    alpha_decoder: float | None = option(None, "weight of the decoder's KLs in the same way; none: α")
    beta: float = option(8.0, "β: weight of the reconstruction, ½ of the summed squared error")
    arch: str = option(
        "conv",
        "networks for images: sized to the data, or the released residual ones; vectors always get an MLP",
        choices=("conv", "mlp", "paper"),
    )
    width: int | None = option(
        None, "channels of the first convolution (none: 32) or units of an MLP's layers (none: 256)"
    )
    depth: int = option(2, "hidden layers of an MLP")
    hidden: int = option(256, "units of a fully connected layer between convolutions and head; 0: none")
    norm: str = option("batch", "normalisation in the decoder", choices=("batch", "group", "layer", "none"))
    norm_encoder: str = option("none", "the same in the encoder", choices=("batch", "group", "layer", "none"))
    learning_rate: float = option(5e-4, "Adam's learning rate of the encoder")
    learning_rate_decoder: float | None = option(None, "of the decoder; none: the same")
    beta1: float = option(0.9, "Adam's β₁")
    beta2: float = option(0.999, "Adam's β₂")
    clip_norm: float | None = option(None, "largest norm of each network's gradient")
    ema_half_life_examples: float | None = option(None, "sample from an average of the decoder with this half-life")
    conditional: bool = option(False, "condition encoder and decoder on the labels")


def paper() -> Config:
    """The released script for CelebA-HQ at 256×256: 512 latent dimensions, m = 120, 0.05 times the squared error, Adam
    at 2e-4; use batches of 16."""
    return Config(
        latent=512, margin_nats=120.0, alpha=0.5, alpha_decoder=1.0, beta=0.1, arch="paper", norm_encoder="batch",
        learning_rate=2e-4,
    )  # fmt: skip


def build(config: Config, spec: Spec) -> Recipe:
    """The recipe for data that looks like `spec`."""
    alpha_decoder = config.alpha if config.alpha_decoder is None else config.alpha_decoder
    for name, value in (("margin_nats", config.margin_nats), ("alpha", config.alpha), ("alpha_decoder", alpha_decoder)):
        require(value >= 0, f"{name} is {value}; it starts at 0")
    require(config.beta > 0, f"beta is {config.beta}; it must be above 0")
    codes = Codes(Prior(latent_of(config.latent, 16, spec)), labelled=frozenset(PLAYERS if config.conditional else ()))

    def reconstruction(state: State) -> Tensor:
        return 0.5 * squared_error(state["x_rec"], state["x"]).mean()

    def kl(kind: str, player: str, weight: float) -> Term:
        return Term(f"kl_{kind}", lambda s: rate_of(s, kind).mean(), to={player: weight})

    def kept_away(kind: str) -> Term:
        return Term(
            f"margin_{kind}",
            lambda s: margin(rate_of(s, kind), nats=config.margin_nats).mean(),
            to={"encoder": config.alpha / 2},
        )

    game = introspective_game(
        config,
        _networks(config, spec, codes.prior.latent),
        Introspection(codes),
        encoder_terms=(
            Term("reconstruction_encoder", reconstruction, to={"encoder": config.beta}),
            kl("real", "encoder", 1.0),
            kept_away("rec"),
            kept_away("fake"),
        ),
        decoder_terms=(
            Term("reconstruction_decoder", reconstruction, to={"decoder": config.beta}),
            kl("rec", "decoder", alpha_decoder / 2),
            kl("fake", "decoder", alpha_decoder / 2),
        ),
    )
    abilities = introspective_abilities(codes, variance=1 / config.beta)
    return Recipe((Stage("train", game),), spec, abilities, config.conditional)


def _networks(config: Config, spec: Spec, latent: int) -> dict[str, nn.Module]:
    if config.arch == "paper" and spec.kind == "image":
        return _paper_networks(config, spec, latent)
    return introspective_networks(config, spec, latent)


# The residual networks of the released code.

GROWTH = (1, 2, 4, 8, 16, 16)
"""Channels of each halving, in units of `width`."""


def _paper_networks(config: Config, spec: Spec, latent: int) -> dict[str, nn.Module]:
    channels, height, columns = spec.shape
    sides = [(height >> n, columns >> n) for n in range(len(GROWTH) + 1) if height % 2**n == columns % 2**n == 0]
    places = [size for size in sides if min(size) >= 4]
    require(
        len(places) > 1,
        f"the paper's networks halve even sides of 8 and more and these images are {height}×{columns}; "
        "use --arch conv, or resize with --size 64",
    )
    widths = [(config.width or 32) * growth for growth in GROWTH[: len(places) - 1]]
    classes = classes_for(spec, config.conditional)
    return {
        "encoder": PaperEncoder(channels, 2 * latent, widths, places[-1], classes),
        "decoder": Generator(PaperDecoder(channels, latent, widths, places[-1], classes), spec),
    }


class PaperEncoder(nn.Module):
    """Images (batch, channels, height, width) → (batch, outputs): a 5×5 convolution, then a residual block after each
    halving by an average, down to the map `places`. A label is a shift of the first convolution's output."""

    def __init__(self, channels: int, outputs: int, widths: list[int], places: tuple[int, int], classes: int | None):
        super().__init__()
        first, last = widths[0], widths[-1]
        self.classes = classes
        self.first = nn.Conv2d(channels, first, 5, 1, 2, bias=False)
        self.label = None if classes is None else nn.Linear(classes, first, bias=False)
        layers: list[nn.Module] = [nn.BatchNorm2d(first), nn.LeakyReLU(0.2), nn.AvgPool2d(2)]
        for before, after in pairwise(widths):
            layers += [Residual(before, after), nn.AvgPool2d(2)]
        head = nn.Linear(last * places[0] * places[1], outputs)
        self.rest = nn.Sequential(*layers, Residual(last, last), nn.Flatten(), head)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.first(x)
        label = one_hot(y, self.classes, like=h)
        if label is not None and self.label is not None:
            h = h + self.label(label)[:, :, None, None]
        return self.rest(h)


class PaperDecoder(nn.Module):
    """Codes (batch, latent) → (batch, channels, height, width) before any squashing: a linear layer onto the map
    `places`, a residual block before each doubling and one after the last, a 5×5 convolution. A label is beside the
    code."""

    def __init__(self, channels: int, latent: int, widths: list[int], places: tuple[int, int], classes: int | None):
        super().__init__()
        self.classes = classes
        before = widths[-1]
        onto = nn.Linear(latent + (classes or 0), before * places[0] * places[1])
        layers: list[nn.Module] = [onto, nn.ReLU(), nn.Unflatten(1, (before, *places))]
        for after in widths[::-1]:
            layers += [Residual(before, after), nn.Upsample(scale_factor=2)]
            before = after
        self.net = nn.Sequential(*layers, Residual(before, before), nn.Conv2d(before, channels, 5, 1, 2))

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        label = one_hot(y, self.classes, like=z)
        return self.net(z if label is None else torch.cat([z, label], dim=1))


class Residual(nn.Module):
    """Two 3×3 convolutions beside the identity, or beside a 1×1 convolution where the channels change; BatchNorm and a
    leaky ReLU after the first and after the sum."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.beside = nn.Identity() if before == after else nn.Conv2d(before, after, 1, bias=False)
        self.first = nn.Sequential(
            nn.Conv2d(before, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)
        )
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.end = nn.Sequential(nn.BatchNorm2d(after), nn.LeakyReLU(0.2))

    def forward(self, h: Tensor) -> Tensor:
        return self.end(self.beside(h) + self.second(self.first(h)))
