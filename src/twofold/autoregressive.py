"""What recipes with a PixelCNN share: images as tokens, the head of PixelCNN++, and the abilities of a model that draws
pixel by pixel.

Tokens are the levels of an image in raster order, channels innermost: what `nets.pixelcnn` and `decode` speak of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import log, prod
from typing import Any, cast

import torch
from torch import Tensor, nn

from twofold.decode import Sampler, generate, row_seeds
from twofold.game import State
from twofold.nets.labels import drop_labels
from twofold.nets.pixelcnn import PixelCNN
from twofold.recipe import require
from twofold.rollouts import classes_for, draw_binary, levels
from twofold.spec import Spec
from twofold.terms.likelihood import (
    DiscretizedLogisticMixture,
    categorical_nll,
    discretized_logistic_mixture_log_prob,
)

MAX_LEVELS = 1024
"""Each level is a token with a logit of its own."""

HEADS = ("categorical", "mixture")


@dataclass(frozen=True)
class Pixels:
    """An image of `shape` (channels, height, width) as tokens of `levels` values."""

    shape: tuple[int, int, int]
    levels: int
    binarise: bool = False
    """Draw binary images from the grey values, anew at every presentation."""

    @classmethod
    def of(cls, config: Any, spec: Spec) -> Pixels:
        """As the Config's `levels` and `binarise` say. Raises `InputError` if they do not go together."""
        require(
            not config.binarise or config.levels in (None, 2),
            f"levels is {config.levels}, but --binarise gives 2; leave one of them out",
        )
        count = 2 if config.binarise else levels(spec) if config.levels is None else config.levels
        require(count >= 2, f"levels is {count}; a pixel has at least 2")
        require(count <= MAX_LEVELS, f"{count} levels are too many tokens; use --levels {MAX_LEVELS} or fewer")
        channels, height, width = spec.shape
        return cls((channels, height, width), count, config.binarise)

    @property
    def size(self) -> int:
        """Tokens of an image."""
        return prod(self.shape)

    def tokens(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """x (batch, channels, height, width) in [-1, 1] as tokens (batch, size), each value at its nearest level; with
        `binarise` and a generator, drawn."""
        if self.binarise and generator is not None:
            x = draw_binary(x, generator=generator)
        index = ((x.float() + 1) * ((self.levels - 1) / 2)).round().long().clamp(0, self.levels - 1)
        return index.permute(0, 2, 3, 1).flatten(1)

    def images(self, tokens: Tensor) -> Tensor:
        """The way back: tokens (batch, size) as x (batch, channels, height, width) in [-1, 1]."""
        channels, height, width = self.shape
        index = tokens.unflatten(1, (height, width, channels)).permute(0, 3, 1, 2)
        return index.float() * (2 / (self.levels - 1)) - 1


class MixtureHead(nn.Module):
    """PixelCNN++'s discretised logistic mixture as a head of `PixelCNN`: the logits of a channel's levels are their log
    probabilities given the pixel's earlier channels."""

    unshardable = "a mixture's likelihood is not computed by calling the network"

    def __init__(self, width: int, channels: int, levels: int, components: int) -> None:
        super().__init__()
        self.likelihood = DiscretizedLogisticMixture(components=components, levels=levels)
        self.params = nn.Linear(width, self.likelihood.outputs(channels))
        self.channels = channels

    def forward(self, features: Tensor, earlier: Tensor, channel: int) -> Tensor:
        params = self.params(features).flatten(0, -2)
        x = params.new_zeros(len(params), self.channels)
        x[:, :channel] = earlier.flatten(0, -2)
        logits = discretized_logistic_mixture_log_prob(params, x, channel, levels=self.likelihood.levels)
        return logits.unflatten(0, features.shape[:-1])

    def nll(self, features: Tensor, values: Tensor) -> Tensor:
        """-log p(values) in nats, (batch,); both (batch, height, width, …), without a logit for every level."""
        params = self.params(features).movedim(-1, 1)
        return self.likelihood.nll(params, values.movedim(-1, 1))


def build_pixelcnn(config: Any, pixels: Pixels, **more: Any) -> PixelCNN:
    """The network that the fields width, layers, kernel, first_kernel, attention_every, heads, dropout, likelihood and
    components of a Config describe; `more` are further arguments of `PixelCNN`."""
    head = None
    if config.likelihood == "mixture":
        require(config.components >= 1, f"components is {config.components}; it starts at 1")
        head = MixtureHead(config.width, pixels.shape[0], pixels.levels, config.components)
    for name in ("layers", "attention_every", "dropout"):
        require(getattr(config, name) >= 0, f"{name} is {getattr(config, name)}; it starts at 0")
    require(config.dropout < 1, f"dropout is {config.dropout}; it lies below 1")
    return PixelCNN(
        *pixels.shape,
        levels=pixels.levels,
        width=config.width,
        layers=config.layers,
        kernel=config.kernel,
        first_kernel=config.first_kernel,
        attention_every=config.attention_every,
        heads=config.heads,
        dropout=config.dropout,
        head=head,
        **more,
    )


def pixel_nll(net: PixelCNN, tokens: Tensor, condition: Mapping[str, Tensor] | None = None) -> Tensor:
    """-log p(tokens) in nats, (batch,): exact, in one pass."""
    if isinstance(net.head, MixtureHead):
        values = net.values(net.to_grid(tokens))
        return net.head.nll(net.features(values, condition), values)
    return categorical_nll(net(tokens, condition).transpose(1, 2), tokens)


def label_condition(y: Tensor | None) -> dict[str, Tensor]:
    """The condition of a model with labels; empty for one without."""
    return {} if y is None else {"y": y}


@dataclass(frozen=True)
class Drawing:
    """A player "pixelcnn" with labels or without: how it is trained on a batch and asked for images."""

    pixels: Pixels
    sampler: Sampler
    guidance: float = 1.0
    label_dropout: float = 0.0
    conditional: bool = False

    @classmethod
    def of(cls, config: Any, spec: Spec) -> Drawing:
        """As the fields temperature, top_k, top_p, guidance, label_dropout and conditional of a Config say."""
        classes_for(spec, config.conditional)
        require(0 <= config.label_dropout < 1, f"label_dropout is {config.label_dropout}; it lies from 0 to below 1")
        require(config.guidance >= 0, f"guidance is {config.guidance}; it starts at 0")
        require(config.guidance == 1 or config.conditional, "guidance is by labels; use --conditional with it")
        require(
            config.guidance == 1 or config.label_dropout > 0,
            f"guidance {config.guidance} compares with no label, which a model trained with label_dropout 0 never saw",
        )
        sampler = Sampler(config.temperature, config.top_k, config.top_p)
        dropout = config.label_dropout if config.conditional else 0.0
        return cls(Pixels.of(config, spec), sampler, config.guidance, dropout, config.conditional)

    def trained(self, state: State) -> dict[str, Tensor]:
        """The batch as tokens, and their exact cost: {"tokens" (batch, n), "nll" (batch,)}."""
        net = cast(PixelCNN, state.nets["pixelcnn"])
        tokens = self.pixels.tokens(state.batch["x"], generator=state.generator)
        y = state.batch["y"] if self.conditional else None
        if y is not None:
            y = drop_labels(y, cast(int, net.classes), self.label_dropout, generator=state.generator)
        return {"tokens": tokens, "nll": pixel_nll(net, tokens, label_condition(y))}

    def abilities(self) -> dict[str, Callable[..., Any]]:
        """sample, complete, log_prob."""

        def draw(nets: nn.ModuleDict, n: int, y: Tensor | None, generator: torch.Generator, **options: Any) -> Tensor:
            net = cast(PixelCNN, nets["pixelcnn"])
            tokens = generate(
                net,
                self.pixels.size,
                seeds=row_seeds(n, generator=generator),
                condition=label_condition(y),
                sampler=self.sampler,
                guidance=self.guidance,
                **options,
            )
            return self.pixels.images(tokens)

        def complete(
            nets: nn.ModuleDict, x: Tensor, *, known: float, y: Tensor | None = None, generator: torch.Generator
        ) -> Tensor:
            channels, height, width = self.pixels.shape
            given = round(known * height) * width * channels
            return draw(nets, len(x), y, generator, prompts=self.pixels.tokens(x)[:, :given])

        def log_prob(
            nets: nn.ModuleDict, x: Tensor, *, y: Tensor | None = None, generator: torch.Generator
        ) -> dict[str, Tensor]:
            tokens = self.pixels.tokens(x, generator=generator)
            nats = -pixel_nll(cast(PixelCNN, nets["pixelcnn"]), tokens, label_condition(y))
            return {"log_prob_nats": nats, "bits_per_dim": -nats / (self.pixels.size * log(2))}

        return {
            "sample": lambda nets, n, *, y=None, generator: draw(nets, n, y, generator),
            "complete": complete,
            "log_prob": log_prob,
        }
