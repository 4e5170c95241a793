"""What the recipes on pairs (a, x) share: networks from one side to the other, discriminators of patches, abilities.

a is what translation starts from, x what it makes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from twofold.coefficients import Ramp
from twofold.errors import InputError
from twofold.game import Player, State
from twofold.latents import prior
from twofold.nets.build import Discriminator
from twofold.nets.init import dcgan_init
from twofold.nets.mlp import MLP
from twofold.nets.patch import PatchDiscriminator, layers_of, most_layers, patch_for
from twofold.nets.resnet import ResNetGenerator
from twofold.nets.unet import UNet, halvings_for
from twofold.rollouts import squash
from twofold.spec import Spec
from twofold.terms.adversarial import AdversarialLoss, build_adversarial
from twofold.terms.matching import l1_per_value

PATCH_LOSSES = ("least-squares", "non-saturating", "minimax", "hinge", "wasserstein")
VECTOR_WIDTH = 64
"""Units of an MLP's layers, for pairs of vectors."""


def sides(spec: Spec, name: str, *, paired: bool = False) -> tuple[Spec, Spec]:
    """The Specs of a and of x. Raises `InputError` for data that is not pairs, or that has no correspondence where the
    recipe `name` learns from it."""
    if spec.input is None:
        raise InputError(f"{name} takes pairs, and this data is not; see --pairs and --side-by-side")
    if paired and not spec.paired:
        raise InputError(f"{name} learns from pairs that belong together, and these do not; use cyclegan, or cogan")
    return spec.input, spec


class Translator(nn.Module):
    """A network from a, and a style z where it takes one, to x in the model's range.

    `generator` is where a U-Net's dropout comes from; None: without dropout.
    """

    def __init__(self, net: nn.Module, target: Spec) -> None:
        super().__init__()
        self.net = net
        self.target = target

    def forward(self, a: Tensor, z: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        if isinstance(self.net, UNet):
            return squash(self.net(a, z, generator=generator), self.target)
        return squash(self.net(a if z is None else torch.cat([a, z], dim=1)), self.target)


def unet_translator(config: Any, source: Spec, target: Spec, *, latent: int) -> Translator:
    """A U-Net for images, an MLP for vectors, with Config's `width`, `max_width`, `halvings`, `norm`, `depth`, and
    `skip` and `dropout` where it has them."""
    if target.kind == "vector":
        return _mlp_translator(config, source, target, latent)
    net = UNet(
        source.shape[0],
        target.shape[0],
        halvings=config.halvings or halvings_for(*target.shape[1:]),
        width=config.width or 32,
        max_width=max(config.max_width, config.width or 32),
        norm=config.norm,
        skip=getattr(config, "skip", True),
        dropout=getattr(config, "dropout", 0.0),
        latent=latent,
    )
    dcgan_init(net)
    return Translator(net, target)


def resnet_translator(config: Any, source: Spec, target: Spec) -> Translator:
    """A residual network for images, an MLP for vectors, with Config's `width`, `blocks`, `norm` and `depth`."""
    if target.kind == "vector":
        return _mlp_translator(config, source, target, 0)
    net = ResNetGenerator(
        source.shape[0], target.shape[0], width=config.width or 32, blocks=config.blocks, norm=config.norm
    )
    dcgan_init(net)
    return Translator(net, target)


def _mlp_translator(config: Any, source: Spec, target: Spec, latent: int) -> Translator:
    hidden = (config.width or VECTOR_WIDTH,) * config.depth
    return Translator(MLP(source.size + latent, hidden, target.size, activation="leaky"), target)


def patch_discriminator(config: Any, *seen: Spec) -> nn.Module:
    """A PatchGAN on images of these Specs, one behind the other; for vectors one logit from an MLP."""
    if seen[0].kind == "vector":
        hidden = (config.width_discriminator or config.width or VECTOR_WIDTH,) * config.depth_discriminator
        return Discriminator(MLP(sum(s.size for s in seen), hidden, 1, activation="leaky"))
    height, width = seen[0].shape[1:]
    layers = layers_of(patch_for(height, width) if config.patch is None else config.patch)
    if layers > most_layers(height, width):
        raise InputError(f"images of {height}×{width} are too small for this patch; use a smaller one")
    net = PatchDiscriminator(
        sum(s.shape[0] for s in seen),
        layers=layers,
        width=config.width_discriminator or config.width or 32,
        norm=config.norm,
    )
    dcgan_init(net)
    return net


@dataclass(frozen=True)
class PatchLoss:
    """An adversarial loss as these papers weigh it: least squares without the factor ½ of Mao et al."""

    loss: AdversarialLoss
    scale: float

    def generator(self, fake: Tensor) -> Tensor:
        """What the generator minimises."""
        return self.scale * self.loss.generator(fake)

    def discriminator(self, real: Tensor, fakes: Sequence[Tensor]) -> Tensor:
        """What the discriminator minimises; all patches of all `fakes` weigh the same."""
        return self.scale * self.loss.discriminator(real, fakes[0] if len(fakes) == 1 else torch.cat(list(fakes)))


def patch_loss(name: str) -> PatchLoss:
    """The loss called `name`, one of `PATCH_LOSSES`."""
    return PatchLoss(build_adversarial(name), 2.0 if name == "least-squares" else 1.0)


def distance(one: str, other: str) -> Callable[[State], Tensor]:
    """The term of the L1 distance between two tensors of the rollout, or of the batch: mean over values and batch."""

    def loss(state: State) -> Tensor:
        a, b = (state.rollout[name] if name in state.rollout else state.batch[name] for name in (one, other))
        return l1_per_value(a, b).mean()

    return loss


def deceiving(loss: PatchLoss | AdversarialLoss, which: str) -> Callable[[State], Tensor]:
    """The generator's loss by what the discriminator called `which` says of generated examples."""
    return lambda state: loss.generator(state[f"{which}_fake_logits"])


def translating_player(config: Any, net: nn.Module, rate: float | None = None) -> Player:
    """A player with Adam at Config's `learning_rate`, falling to 0 after `constant_examples` over `decay_examples`."""
    adam = partial(torch.optim.Adam, lr=rate or config.learning_rate, betas=(config.beta1, 0.999))
    decay = None
    if config.constant_examples is not None:
        decay = Ramp(
            1.0, 0.0, examples=config.decay_examples or config.constant_examples, begin=config.constant_examples
        )
    return Player(net, adam, lr_factor=decay)


def noise(n: int, size: int, *, like: Tensor, generator: torch.Generator | None) -> Tensor | None:
    """A style (n, size) from N(0, I); None where there is none."""
    return prior(n, size, like=like, generator=generator) if size else None


def translation(player: str, latent: int = 0) -> Callable[..., Tensor]:
    """The ability `translate` of one network: a style that is not given is drawn."""

    def translate(
        nets: nn.ModuleDict, a: Tensor, *, z: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        style = noise(len(a), latent, like=a, generator=generator) if z is None else z
        return nets[player](a, style, generator=generator)

    return translate


def style_prior(player: str, latent: int) -> Callable[..., Tensor]:
    """The ability `style_prior`: n styles from N(0, I)."""

    def draw(nets: nn.ModuleDict, n: int, *, generator: torch.Generator) -> Tensor:
        return prior(n, latent, like=next(nets[player].parameters()), generator=generator)

    return draw
