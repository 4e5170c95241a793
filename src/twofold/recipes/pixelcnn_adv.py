"""Adversarial PixelCNN: our own combination, which has no paper. The likelihood of PixelCNN (van den Oord et al. 2016)
and, beside it, a discriminator of the images that it draws.

The network minimises its exact cost of the data and, with weight λ, what a discriminator says of its own samples; the
discriminator tells data from samples as in the non-saturating GAN:

    -log p(x)  -  λ · E_{x̂ ~ p} [ log D(x̂) - log(1 - D(x̂)) ]
       nll                  adversarial_pixelcnn

At the best discriminator the second part is λ · KL(p ‖ data): the likelihood asks that no image of the data is
impossible, the critic that no sample is unlike the data.

Routing:

    term                         pixelcnn  discriminator
    phase discriminator
      adversarial_discriminator         ·             +1
    phase pixelcnn
      nll                              +1              ·
      adversarial_pixelcnn           +0.1              ·

Samples are whole numbers, drawn pixel by pixel, and no gradient passes through drawing. How it reaches the network:

- `--estimator reinforce` (the default): the score-function estimator (Williams 1992). The logit of D is the reward of a
  whole sample, less the mean reward of the batch's other samples, times the gradient of that sample's log-probability,
  which one pass over the finished sample gives. Unbiased; its noise grows with the number of pixels.
- `--estimator straight-through`: D sees the sample, and its gradient goes to the expected value of each pixel given the
  pixels before it, as if the sample were that. Less noise; biased, since a pixel's influence on the drawing of later
  ones is left out.

Controls: `--reward random` rewards each sample with a number from U(0, 1) that knows nothing of it (reinforce only; the
discriminator still learns, and nobody asks it), and `--adversarial-weight 0` is PixelCNN alone. Whatever the critic is
said to gain must be more than these do: with positive rewards and `--no-baseline` even random ones make samples less
various, which looks like quality. `entropy`, the mean -log p of the samples under the network itself, is logged to see
that.

Deviations: there is nothing to deviate from. The game is played on `samples` images a step, since drawing them is what
it costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor

from twofold.autoregressive import Drawing, build_pixelcnn, label_condition, pixel_nll
from twofold.decode import generate, row_seeds
from twofold.game import Game, Phase, Player, Stage, State, Term
from twofold.latents import straight_through
from twofold.nets.build import build_discriminator
from twofold.nets.norm import call_together
from twofold.nets.pixelcnn import PixelCNN
from twofold.recipe import Recipe, option, require
from twofold.rollouts import classes_for
from twofold.spec import Spec
from twofold.terms.adversarial import build_adversarial
from twofold.terms.policy import reinforce

ESTIMATORS = ("reinforce", "straight-through")
REWARDS = ("discriminator", "random")


@dataclass(frozen=True)
class Config:
    adversarial_weight: float = option(0.1, "λ of the discriminator's word")
    estimator: str = option("reinforce", "how its gradient reaches the PixelCNN", choices=ESTIMATORS)
    reward: str = option("discriminator", "who rewards samples; random: the control", choices=REWARDS)
    baseline: bool = option(True, "subtract the mean reward of the other samples (reinforce)")
    samples: int = option(16, "images drawn in each step, at most a batch")
    adversarial_begin_examples: int = option(0, "examples seen before the discriminator has a word")
    levels: int | None = option(None, "values a channel can take; none: the data's own (floats: 256)")
    binarise: bool = option(False, "draw binary images from the grey values, anew at every presentation")
    width: int = option(32, "channels of the vertical and of the horizontal stack")
    layers: int = option(5, "gated layers")
    kernel: int = option(3, "size of their kernels, odd")
    first_kernel: int = option(7, "size of the input layer's kernel, odd")
    attention_every: int = option(0, "attention over earlier pixels after each so many layers; 0: none")
    heads: int = option(4, "of the attention")
    dropout: float = option(0.0, "before each residual, while training")
    width_discriminator: int = option(32, "channels of the discriminator's first convolution")
    spectral: bool = option(True, "spectral normalisation of the discriminator (Miyato et al. 2018)")
    learning_rate: float = option(1e-3, "the PixelCNN's learning rate")
    learning_rate_discriminator: float = option(2e-4, "the discriminator's")
    clip_norm: float | None = option(1.0, "largest norm of the PixelCNN's gradient")
    ema_half_life_examples: float | None = option(None, "sample from an average of the PixelCNN with this half-life")
    temperature: float = option(1.0, "of sampling with the trained model; training draws at 1")
    conditional: bool = option(False, "condition both networks on the labels")

    # What Drawing asks of every Config with a PixelCNN, and what this one leaves as it is.
    likelihood = "categorical"
    top_k = None
    top_p = None
    guidance = 1.0
    label_dropout = 0.0


def build(config: Config, spec: Spec) -> Recipe:
    """The recipe for data that looks like `spec`."""
    require(config.adversarial_weight >= 0, f"adversarial_weight is {config.adversarial_weight}; it starts at 0")
    require(config.samples >= 1, f"samples is {config.samples}; it starts at 1")
    require(
        config.adversarial_begin_examples >= 0,
        f"adversarial_begin_examples is {config.adversarial_begin_examples}; it starts at 0",
    )
    require(
        config.reward == "discriminator" or config.estimator == "reinforce",
        "a random reward has no gradient to pass straight through; use --estimator reinforce",
    )
    require(
        not config.baseline or config.samples > 1,
        "the baseline is the mean reward of the other samples; use --samples 2 or more, or --no-baseline",
    )
    drawing = Drawing.of(config, spec)
    pixels, classes = drawing.pixels, classes_for(spec, config.conditional)
    net = build_pixelcnn(config, pixels, classes=classes)
    discriminator = build_discriminator(
        spec, width=config.width_discriminator, spectral=config.spectral, classes=classes
    )
    loss = build_adversarial("non-saturating")

    def drawn(state: State) -> tuple[Tensor, Tensor | None]:
        """As many samples as are asked for, as tokens, with the labels of the batch's first examples."""
        n = min(config.samples, len(state.batch["x"]))
        y = state.batch["y"][:n] if config.conditional else None
        model = cast(PixelCNN, state.nets["pixelcnn"])
        seeds = row_seeds(n, generator=state.generator)
        return generate(model, pixels.size, seeds=seeds, condition=label_condition(y)), y

    def judge(state: State) -> dict[str, Tensor]:
        tokens, y = drawn(state)
        # Real images on the same grid of levels: off it, every one of them would be told by that alone.
        real = pixels.images(pixels.tokens(state.batch["x"][: len(tokens)], generator=state.generator))
        x, x_fake = (images.to(state.batch["x"].dtype) for images in (real, pixels.images(tokens)))
        real_logits, fake_logits = call_together(state.nets["discriminator"], x, x_fake, ys=(y, y))
        return {"real_logits": real_logits, "fake_logits": fake_logits}

    def train(state: State) -> dict[str, Tensor]:
        out = drawing.trained(state)
        tokens, y = drawn(state)
        model = cast(PixelCNN, state.nets["pixelcnn"])
        x_fake = pixels.images(tokens).to(state.batch["x"].dtype)
        if config.estimator == "straight-through":
            logits = model(tokens, label_condition(y))
            grid = torch.linspace(-1, 1, pixels.levels, device=logits.device, dtype=logits.dtype)
            expected = (logits.softmax(dim=-1) @ grid).unflatten(1, (*pixels.shape[1:], -1)).permute(0, 3, 1, 2)
            x_fake = straight_through(expected, x_fake)
            log_p = logits.log_softmax(dim=-1).gather(2, tokens.unsqueeze(2)).sum((1, 2))
        else:
            log_p = -pixel_nll(model, tokens, label_condition(y))
        if config.reward == "random":
            reward = torch.rand(log_p.shape, generator=state.generator, device=log_p.device, dtype=log_p.dtype)
        else:
            reward = state.nets["discriminator"](x_fake, y)
        return out | {"log_prob": log_p, "reward": reward}

    def adversarial(state: State) -> Tensor:
        reward = state["reward"]
        if config.estimator == "straight-through":
            return -reward.mean()
        n = len(reward)
        others = (reward.sum() - reward) / (n - 1) if config.baseline and n > 1 else None
        return reinforce(state["log_prob"], reward, baseline=others)

    def weight(state: State) -> float:
        return config.adversarial_weight if state.examples >= config.adversarial_begin_examples else 0.0

    weight.__name__ = f"+{config.adversarial_weight:g} from {config.adversarial_begin_examples:,}"
    coefficient = weight if config.adversarial_begin_examples else config.adversarial_weight
    adam = partial(torch.optim.Adam, lr=config.learning_rate)
    adam_d = partial(torch.optim.Adam, lr=config.learning_rate_discriminator, betas=(0.5, 0.999))
    game = Game(
        players={
            "pixelcnn": Player(
                net, adam, clip_norm=config.clip_norm, ema_half_life_examples=config.ema_half_life_examples
            ),
            "discriminator": Player(discriminator, adam_d),
        },
        phases=(
            Phase(
                "discriminator",
                judge,
                (
                    Term(
                        "adversarial_discriminator",
                        lambda s: loss.discriminator(s["real_logits"], s["fake_logits"]),
                        to={"discriminator": 1.0},
                    ),
                ),
            ),
            Phase(
                "pixelcnn",
                train,
                (
                    Term("nll", lambda s: s["nll"].mean(), to={"pixelcnn": 1.0}),
                    Term("adversarial_pixelcnn", adversarial, to={"pixelcnn": coefficient}),
                ),
                measures={
                    "entropy": lambda s: -s["log_prob"].mean(),
                    "reward": lambda s: s["reward"].mean(),
                },
            ),
        ),
    )
    return Recipe((Stage("train", game),), spec, drawing.abilities(), config.conditional)
