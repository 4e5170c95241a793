"""Adversarially learned inference (Dumoulin et al. 2017, "Adversarially Learned Inference").

Two joint distributions over data and codes, the encoder's q(x) q(z|x) and the decoder's p(z) p(x|z), and a
discriminator D(x, z) that says how probably a pair came from the encoder (their eq. 2 with the labels of algorithm 1):

    min over E, G   max over D   E_q(x) [ log D(x, ẑ) ]  +  E_p(z) [ log(1 - D(G(z), z)) ],   ẑ ~ q(z|x)

Where both joints agree, q(z|x) is the posterior of p and encoding and decoding undo each other. Nothing else asks for
that: there is no reconstruction anywhere. Encoder and decoder minimise the same with both labels swapped (their
section 2.3), which does not saturate:

    discriminator          -log D(x, ẑ) - log(1 - D(G(z), z))
    encoder, decoder       -log(1 - D(x, ẑ)) - log D(G(z), z)

Routing:

    term                         encoder  decoder  discriminator
    phase discriminator (3 plays a step)
      adversarial_discriminator        ·        ·             +1
      r1_r2                            ·        ·          +0.01
    phase inference
      adversarial_inference           +1       +1              ·

The encoder's part of `adversarial_inference` does not depend on the decoder nor the decoder's on the encoder, so one
sum serves both. q(z|x) is a Normal; `encode` returns its mean.

Preset: `ali-paper` has the networks of their CIFAR-10 table, for images of 32×32, and the rest of that run.

Deviations: `ali-paper` undoes these three. In the paper all move at once, from the same pairs (algorithm 1;
`--order simultaneous --critic-plays 1`). Here the discriminator has three plays and a higher rate, its slope at its
pairs is penalised (`r1_r2`), and encoder and decoder are used as averages of their weights. Without that,
reconstructions of digits were worse than a constant after a short run. Networks size themselves to the data.
In `ali-paper`: tanh for the sigmoid, as our images are in [-1, 1]; the encoder emits a log variance instead of log σ;
the decoder's bias of every pixel starts at 0 instead of the training set's log odds. β₂ is 0.999: the paper's table has
10⁻³, the released code Adam's usual.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from twofold.autoencoders import Codes, Prior, latent_of
from twofold.game import Stage
from twofold.joint_inference import LOSSES, ORDERS, PENALTIES, joint_game, joint_networks, labelled
from twofold.nets.init import dcgan_init
from twofold.nets.joint import JointDiscriminator
from twofold.recipe import Recipe, option, require
from twofold.rollouts import Generator, classes_for
from twofold.spec import Spec


@dataclass(frozen=True)
class Config:
    latent: int | None = option(None, "size of the code z; none: 6, or the data's number of values if that is less")
    loss: str = option(
        "non-saturating", "adversarial loss, both labels swapped for encoder and decoder", choices=LOSSES
    )
    real_label: float = option(1.0, "the discriminator's target for the encoder's pairs; below 1: label smoothing")
    order: str = option("alternating", "all at once, or the discriminator and then the others", choices=ORDERS)
    critic_plays: int = option(3, "plays of the discriminator, on fresh batches, if the order is alternating")
    arch: str = option(
        "conv", "networks for images; vectors always get an MLP; paper: 32×32 only", choices=("conv", "mlp", "paper")
    )
    width: int | None = option(
        None, "channels of the first convolution (none: 32) or units of an MLP's layers (none: 256)"
    )
    depth: int = option(2, "hidden layers of an MLP")
    hidden: int = option(256, "units of a fully connected layer between convolutions and head")
    code_width: int = option(256, "features that the discriminator of images takes from a code")
    norm: str = option("batch", "normalisation in encoder and decoder", choices=("batch", "group", "layer", "none"))
    norm_discriminator: str = option(
        "none", "the same in the discriminator", choices=("batch", "group", "layer", "none")
    )
    penalty: str = option("r1-r2", "penalty on the slope of the discriminator, at all its pairs", choices=PENALTIES)
    penalty_weight: float = option(0.01, "weight of the penalty")
    spectral: bool = option(False, "spectral normalisation of the discriminator (Miyato et al. 2018)")
    learning_rate: float = option(1e-3, "Adam's learning rate of encoder and decoder")
    learning_rate_discriminator: float | None = option(2e-3, "of the discriminator; none: the same")
    beta1: float = option(0.5, "Adam's β₁")
    beta2: float = option(0.999, "Adam's β₂")
    clip_norm: float | None = option(None, "largest norm of each network's gradient")
    ema_half_life_examples: float | None = option(
        5000.0, "use averages of encoder and decoder with this half-life; none: the last weights"
    )
    conditional: bool = option(False, "condition all three networks on the labels")


def paper() -> Config:
    """Dumoulin et al. 2017, CIFAR-10: 64 latent dimensions, Adam at 1e-4; use batches of 100."""
    return Config(
        latent=64, order="simultaneous", critic_plays=1, arch="paper", penalty="none", learning_rate=1e-4,
        learning_rate_discriminator=None, ema_half_life_examples=None,
    )  # fmt: skip


def build(config: Config, spec: Spec) -> Recipe:
    """The recipe for data that looks like `spec`."""
    classes = classes_for(spec, config.conditional)
    codes = Codes(Prior(latent_of(config.latent, 6, spec)), "normal", labelled(config.conditional))
    if config.arch == "paper":
        nets = _paper_networks(config, spec, codes.prior.latent)
    else:
        nets = joint_networks(config, spec, codes, classes=classes)
    game = joint_game(config, nets, codes, classes=classes)
    return Recipe((Stage("train", game),), spec, codes.abilities(), config.conditional)


# The networks of their CIFAR-10 table.


def _paper_networks(config: Config, spec: Spec, latent: int) -> dict[str, nn.Module]:
    require(
        spec.kind == "image" and spec.shape[1:] == (32, 32),
        f"the paper's networks are for images of 32×32 and this data is {spec.kind}s of "
        f"{'×'.join(map(str, spec.shape))}; use --arch conv, or resize with --size 32",
    )
    require(not config.conditional, "the paper's networks take no labels; use --arch conv with --conditional")
    require(not config.spectral, "the paper's networks have no spectral normalisation; use --arch conv for it")
    channels = spec.shape[0]
    nets: dict[str, nn.Module] = {
        "encoder": PaperEncoder(channels, latent),
        "decoder": Generator(PaperDecoder(channels, latent), spec),
        "discriminator": paper_discriminator(channels, latent),
    }
    for net in nets.values():
        dcgan_init(net, std=0.01)
    return nets


def _blocks(plan: Sequence[tuple[type[nn.Module], int, int, int]], channels: int) -> nn.Sequential:
    """Convolutions (class, kernel, stride, channels) without bias or padding, BatchNorm, leaky ReLU of slope 0.1."""
    layers: list[nn.Module] = []
    for convolution, kernel, stride, units in plan:
        layers += [convolution(channels, units, kernel, stride, bias=False), nn.BatchNorm2d(units), nn.LeakyReLU(0.1)]
        channels = units
    return nn.Sequential(*layers)


class PaperEncoder(nn.Module):
    """(batch, channels, 32, 32) → (batch, 2·latent): maps of 28, 13, 10, 4, 1 and 1."""

    def __init__(self, channels: int, latent: int):
        super().__init__()
        down = partial(_plan, nn.Conv2d)
        plan = down((5, 1, 32), (4, 2, 64), (4, 1, 128), (4, 2, 256), (4, 1, 512), (1, 1, 512))
        self.net = nn.Sequential(_blocks(plan, channels), nn.Conv2d(512, 2 * latent, 1), nn.Flatten())

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.net(x)


class PaperDecoder(nn.Module):
    """(batch, latent) → (batch, channels, 32, 32) before any squashing: maps of 4, 10, 13, 28, 32 and 32, and at the
    end a bias for every pixel."""

    def __init__(self, channels: int, latent: int):
        super().__init__()
        up = partial(_plan, nn.ConvTranspose2d)
        plan = up((4, 1, 256), (4, 2, 128), (4, 1, 64), (4, 2, 32), (5, 1, 32), (1, 1, 32))
        self.net = nn.Sequential(
            nn.Unflatten(1, (latent, 1, 1)), _blocks(plan, latent), nn.Conv2d(32, channels, 1, bias=False)
        )
        self.bias = nn.Parameter(torch.zeros(channels, 32, 32))

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return self.net(z) + self.bias


def paper_discriminator(channels: int, latent: int) -> JointDiscriminator:
    """Maxout of two pieces after every convolution, dropout before: 0.2 of the inputs, 0.5 of what is hidden. Sizes
    count the pieces, as in the table: 32 channels become 16."""
    x_net = nn.Sequential(
        nn.Dropout(0.2), nn.Conv2d(channels, 32, 5), Maxout(2),
        *_hidden_maxout((4, 2, 64), 16), *_hidden_maxout((4, 1, 128), 32), *_hidden_maxout((4, 2, 256), 64),
        *_hidden_maxout((4, 1, 512), 128),
    )  # fmt: skip
    z_net = nn.Sequential(
        nn.Dropout(0.2), nn.Unflatten(1, (latent, 1, 1)), nn.Conv2d(latent, 512, 1, bias=False), Maxout(2),
        *_hidden_maxout((1, 1, 512), 256),
    )  # fmt: skip
    joint = nn.Sequential(
        nn.Dropout(0.5), nn.Linear(512, 1024), Maxout(2),
        nn.Dropout(0.5), nn.Linear(512, 1024), Maxout(2),
        nn.Dropout(0.5), nn.Linear(512, 1),
    )  # fmt: skip
    return JointDiscriminator(x_net, z_net, joint)


def _hidden_maxout(sizes: tuple[int, int, int], channels: int) -> tuple[nn.Module, ...]:
    kernel, stride, units = sizes
    return nn.Dropout(0.5), nn.Conv2d(channels, units, kernel, stride, bias=False), Maxout(2)


def _plan(convolution: type[nn.Module], *sizes: tuple[int, int, int]) -> list[tuple[type[nn.Module], int, int, int]]:
    return [(convolution, *size) for size in sizes]


class Maxout(nn.Module):
    """(batch, channels, …) → (batch, channels / pieces, …): the largest of each group of neighbouring channels."""

    def __init__(self, pieces: int):
        super().__init__()
        self.pieces = pieces

    def forward(self, h: Tensor) -> Tensor:
        return h.unflatten(1, (-1, self.pieces)).amax(2)
