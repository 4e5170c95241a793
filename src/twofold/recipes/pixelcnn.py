"""Gated PixelCNN (van den Oord et al. 2016, "Conditional image generation with PixelCNN decoders").

An image's probability is the product of its pixels' given those before them in raster order (their eq. 1), so that it
is known exactly. One network minimises its negative logarithm, in nats, summed over pixels and channels and averaged
over the batch:

    -log p(x)  =  - Σ_i  log p( x_i | x_1, …, x_{i-1} )
        nll

Routing:

    term  pixelcnn
    nll         +1

Each value is one of `levels` tokens with a softmax over them: two for binary images, what their range holds for images
of whole numbers, 256 for others. `--binarise` draws binary images from the grey values, anew at every presentation
("dynamic" binarisation; nats on it compare with nats on it only), and `--levels 2` takes the nearer of black and white.
`pixelcnn-pp` has the likelihood and the dropout of PixelCNN++ (Salimans et al. 2017): a mixture of ten discretised
logistics for a pixel's channels. `--attention-every` adds the attention over earlier pixels of PixelSNAIL (Chen et al.
2018).

`log_prob` is exact, not a bound. Images are drawn pixel by pixel from a cache (docs/decoding.md); `complete` draws the
rest of an image whose first rows are given. A conditional model that is trained with `--label-dropout` can be guided.

Deviations: the channels of a pixel are predicted in turn by a small network on the pixel's features and its earlier
channels, instead of by masks between groups of channels. Kernels of the masks' shapes on shifted images replace masks.
A channel of ones marks the image's inside (as in PixelCNN++). `pixelcnn-pp` keeps the gated network at one resolution:
none of PixelCNN++'s downsampling, and none of its shortcuts across it. Sizes are small defaults; the paper's networks
for natural images have 15 to 20 layers of 128 to 384 channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from twofold.autoregressive import HEADS, Drawing, build_pixelcnn
from twofold.game import Game, Phase, Player, Stage, Term
from twofold.recipe import Recipe, option
from twofold.rollouts import classes_for
from twofold.spec import Spec


@dataclass(frozen=True)
class Config:
    likelihood: str = option("categorical", "p(x_i | …): a softmax over levels, or PixelCNN++'s mixture", choices=HEADS)
    components: int = option(10, "logistics in the mixture")
    levels: int | None = option(None, "values a channel can take; none: the data's own (floats: 256)")
    binarise: bool = option(False, "draw binary images from the grey values, anew at every presentation")
    width: int = option(32, "channels of the vertical and of the horizontal stack")
    layers: int = option(5, "gated layers")
    kernel: int = option(3, "size of their kernels, odd")
    first_kernel: int = option(7, "size of the input layer's kernel, odd")
    attention_every: int = option(0, "attention over earlier pixels after each so many layers; 0: none")
    heads: int = option(4, "of the attention")
    dropout: float = option(0.0, "before each residual, while training")
    learning_rate: float = option(1e-3, "Adam's learning rate")
    clip_norm: float | None = option(1.0, "largest norm of the gradient")
    ema_half_life_examples: float | None = option(None, "sample from an average of the network with this half-life")
    temperature: float = option(1.0, "of sampling: logits are divided by it; 0: the most probable value each time")
    top_k: int | None = option(None, "sample from the k most probable values only")
    top_p: float | None = option(None, "sample from the most probable values that reach this probability only")
    guidance: float = option(1.0, "scale of classifier-free guidance when sampling; 1: none")
    label_dropout: float = option(0.0, "part of the labels left out in training, so that guidance has its other side")
    conditional: bool = option(False, "condition every layer on the labels")


def plus_plus() -> Config:
    """Salimans et al. 2017: the mixture of ten logistics, dropout 0.5, and an average of the weights. Their average
    keeps 0.9995 a batch of 64: a half-life of 1,386 batches."""
    return Config(likelihood="mixture", width=64, layers=8, dropout=0.5, ema_half_life_examples=88_700.0)


def build(config: Config, spec: Spec) -> Recipe:
    """The recipe for data that looks like `spec`."""
    drawing = Drawing.of(config, spec)
    net = build_pixelcnn(config, drawing.pixels, classes=classes_for(spec, config.conditional))
    adam = partial(torch.optim.Adam, lr=config.learning_rate)
    player = Player(net, adam, clip_norm=config.clip_norm, ema_half_life_examples=config.ema_half_life_examples)
    game = Game(
        players={"pixelcnn": player},
        phases=(Phase("pixelcnn", drawing.trained, (Term("nll", lambda s: s["nll"].mean(), to={"pixelcnn": 1.0}),)),),
    )
    return Recipe((Stage("train", game),), spec, drawing.abilities(), config.conditional)
