"""PixelGAN autoencoder (Makhzani & Frey 2017, "PixelGAN autoencoders"): an autoencoder whose decoder is a PixelCNN and
whose codes follow a chosen prior, by a discriminator of codes. There is no critic of images.

The encoder gives a code z = E(x), the decoder the exact likelihood of the image given the code. On every batch:

    reconstruction   encoder and decoder minimise  - Σ_i log p( x_i | x_1, …, x_{i-1}, z )
    discriminator    it minimises  -log D(z_prior) - log(1 - D(z))
    regularization   the encoder minimises  -log D(z)

The first is the paper's cost of reconstruction; the other two match the aggregated posterior to the prior as in the
adversarial autoencoder. Image detail is the decoder's affair, which sees the pixels before; the code has to tell what
the decoder cannot see yet, the global part.

Routing:

    term                              encoder  decoder  code_discriminator
    phase reconstruction
      reconstruction                       +1       +1                   ·
    phase discriminator
      code_adversarial_discriminator        ·        ·                  +1
    phase regularization
      code_adversarial_encoder            +10        ·                   ·

`pixelgan`: a Gaussian code, z ~ N(0, I). `pixelgan-clustering`: one of K categories, z = softmax(E(x)) against one-hot
draws; `classify` gives the softmax, and the clusters are found without labels and numbered as they come.

The code reaches every layer of the decoder as a bias: the same for every pixel ("invariant", the paper's
location-invariant one), or one map of biases that a small network makes of the code ("dependent"). A decoder strong
enough to predict an image from its own pixels may ignore the code; a few layers with small kernels leave it work.

`sample` draws the code and then the pixels. `decode` draws pixels with one fixed noise for all codes, so that what
differs between decoded images comes from their codes; `reconstruct` does that to an image's own code.

Deviations: the discriminator of categories sees draws and softmax through the same noise (`--category-noise`, 0 for the
paper's game), since a one-hot code is told from a softmax by rounding alone. The adversarial weight of 10 stands beside
a sum over pixels, with one Adam for both phases, where the paper has separate optimizers. Networks are small defaults.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twofold.autoencoders import build_code_discriminator, latent_of
from twofold.autoregressive import HEADS, Pixels, build_pixelcnn, pixel_nll
from twofold.decode import Sampler, generate, row_seeds
from twofold.game import Game, Phase, Player, Stage, State, Term
from twofold.latents import prior
from twofold.nets.build import build_encoder
from twofold.nets.pixelcnn import PixelCNN
from twofold.recipe import Recipe, option, require
from twofold.spec import Spec
from twofold.terms.adversarial import build_adversarial

PRIORS = ("normal", "categorical")
BIASES = ("invariant", "dependent")


@dataclass(frozen=True)
class Config:
    prior: str = option("normal", "of the code: N(0, I), or one of several categories", choices=PRIORS)
    latent: int | None = option(None, "size of a Gaussian code; none: 16, or the data's number of values if less")
    clusters: int = option(30, "number of categories of a categorical code")
    bias: str = option("invariant", "how the code reaches the pixels: alike, or each its own way", choices=BIASES)
    map_channels: int = option(16, "channels of the map of a location-dependent bias")
    category_noise: float = option(0.3, "standard deviation of noise on the categories that the discriminator sees")
    adversarial_weight: float = option(10.0, "weight of the discriminator's word in the encoder's row")
    likelihood: str = option("categorical", "p(x_i | …): a softmax over levels, or PixelCNN++'s mixture", choices=HEADS)
    components: int = option(10, "logistics in the mixture")
    levels: int | None = option(None, "values a channel can take; none: the data's own (floats: 256)")
    binarise: bool = option(False, "draw binary images from the grey values, anew at every presentation")
    width: int = option(24, "channels of the decoder's two stacks")
    layers: int = option(3, "the decoder's gated layers")
    kernel: int = option(3, "size of their kernels, odd")
    first_kernel: int = option(5, "size of the decoder's first kernel, odd")
    attention_every: int = option(0, "attention over earlier pixels after each so many layers; 0: none")
    heads: int = option(4, "of the attention")
    dropout: float = option(0.0, "in the decoder, while training")
    width_encoder: int = option(32, "channels of the encoder's first convolution")
    hidden: int = option(256, "units of a fully connected layer between convolutions and code; 0: none")
    norm: str = option("batch", "normalisation in the encoder", choices=("batch", "group", "layer", "none"))
    code_width: int = option(256, "units of the discriminator's layers")
    code_depth: int = option(2, "hidden layers of the discriminator")
    learning_rate: float = option(1e-3, "Adam's learning rate, of encoder and decoder")
    learning_rate_code_discriminator: float | None = option(None, "of the discriminator; none: the same")
    beta1: float = option(0.5, "Adam's β₁")
    beta2: float = option(0.999, "Adam's β₂")
    clip_norm: float | None = option(None, "largest norm of each network's gradient")
    ema_half_life_examples: float | None = option(None, "sample from an average of the decoder with this half-life")
    temperature: float = option(1.0, "of sampling pixels; 0: the most probable value each time")


def clustering() -> Config:
    """A categorical code of 30 clusters, as in the paper's unsupervised clustering of MNIST."""
    return Config(prior="categorical")


class CodeToMap(nn.Module):
    """A code (batch, latent) as a map (batch, channels, height, width): a coarse map of 1/4 the sides, enlarged."""

    def __init__(self, latent: int, channels: int, height: int, width: int):
        super().__init__()
        self.size = height, width
        coarse = -(-height // 4), -(-width // 4)
        self.net = nn.Sequential(
            nn.Linear(latent, channels * coarse[0] * coarse[1]),
            nn.Unflatten(1, (channels, *coarse)),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1),
        )

    def forward(self, z: Tensor) -> Tensor:
        return F.interpolate(self.net(z), self.size, mode="nearest")


class CodeDecoder(nn.Module):
    """p(x | z): a PixelCNN and how the code reaches it. Calling it gives -log p(tokens | z) in nats, (batch,)."""

    def __init__(self, pixelcnn: PixelCNN, to_map: CodeToMap | None):
        super().__init__()
        self.pixelcnn = pixelcnn
        self.to_map = to_map

    def condition(self, z: Tensor) -> dict[str, Tensor]:
        """What the PixelCNN is conditioned on."""
        return {"vector": z} if self.to_map is None else {"map": self.to_map(z)}

    def forward(self, tokens: Tensor, z: Tensor) -> Tensor:
        return pixel_nll(self.pixelcnn, tokens, self.condition(z))


def build(config: Config, spec: Spec) -> Recipe:
    """The recipe for data that looks like `spec`."""
    require(config.clusters >= 2, f"clusters is {config.clusters}; it starts at 2")
    require(config.map_channels >= 1, f"map_channels is {config.map_channels}; it starts at 1")
    require(config.category_noise >= 0, f"category_noise is {config.category_noise}; it starts at 0")
    require(config.adversarial_weight >= 0, f"adversarial_weight is {config.adversarial_weight}; it starts at 0")
    categorical = config.prior == "categorical"
    latent = config.clusters if categorical else latent_of(config.latent, 16, spec)
    pixels = Pixels.of(config, spec)
    decoder = build_decoder(config, pixels, latent)
    encoder = build_encoder(
        spec,
        latent,
        width=config.width_encoder,
        hidden=config.hidden,
        norm=config.norm,
    )
    critic = build_code_discriminator(
        latent, width=config.code_width, depth=config.code_depth, classes=None, spectral=False
    )
    loss = build_adversarial("non-saturating")

    def seen(z: Tensor, state: State) -> Tensor:
        """A code as the discriminator sees it."""
        if not (categorical and config.category_noise):
            return z
        noise = torch.randn(z.shape, generator=state.generator, device=z.device, dtype=z.dtype)
        return z + config.category_noise * noise

    def code(state: State) -> Tensor:
        return _code(state.nets["encoder"](state.batch["x"]), categorical)

    def autoencode(state: State) -> dict[str, Tensor]:
        z = code(state)
        tokens = pixels.tokens(state.batch["x"], generator=state.generator)
        return {"z": z, "tokens": tokens, "nll": state.nets["decoder"](tokens, z)}

    def judge(state: State) -> dict[str, Tensor]:
        z = code(state)
        z_prior = _draw(len(z), latent, categorical, like=z, generator=state.generator)
        logits = state.nets["code_discriminator"](seen(torch.cat([z_prior, z]), state))
        return {"prior_logits": logits[: len(z)], "code_logits": logits[len(z) :]}

    def deceive(state: State) -> dict[str, Tensor]:
        return {"code_logits": state.nets["code_discriminator"](seen(code(state), state))}

    adam = partial(torch.optim.Adam, lr=config.learning_rate, betas=(config.beta1, config.beta2))
    own_rate = config.learning_rate_code_discriminator
    rate = config.learning_rate if own_rate is None else own_rate
    require(rate > 0, f"learning_rate_code_discriminator is {rate}; it must be above 0")
    game = Game(
        players={
            "encoder": Player(encoder, adam, clip_norm=config.clip_norm),
            "decoder": Player(
                decoder, adam, clip_norm=config.clip_norm, ema_half_life_examples=config.ema_half_life_examples
            ),
            "code_discriminator": Player(critic, partial(adam, lr=rate), clip_norm=config.clip_norm),
        },
        phases=(
            Phase(
                "reconstruction",
                autoencode,
                (Term("reconstruction", lambda s: s["nll"].mean(), to={"encoder": 1.0, "decoder": 1.0}),),
            ),
            Phase(
                "discriminator",
                judge,
                (
                    Term(
                        "code_adversarial_discriminator",
                        lambda s: loss.discriminator(s["prior_logits"], s["code_logits"]),
                        to={"code_discriminator": 1.0},
                    ),
                ),
            ),
            Phase(
                "regularization",
                deceive,
                (
                    Term(
                        "code_adversarial_encoder",
                        lambda s: loss.generator(s["code_logits"]),
                        to={"encoder": config.adversarial_weight},
                    ),
                ),
            ),
        ),
    )
    sampler = Sampler(config.temperature)
    return Recipe((Stage("train", game),), spec, _abilities(pixels, latent, categorical, sampler))


def build_decoder(config: Config, pixels: Pixels, latent: int) -> CodeDecoder:
    """The PixelCNN and the way from the code to it."""
    if config.bias == "invariant":
        return CodeDecoder(build_pixelcnn(config, pixels, vector=latent), None)
    net = build_pixelcnn(config, pixels, map_channels=config.map_channels)
    return CodeDecoder(net, CodeToMap(latent, config.map_channels, *pixels.shape[1:]))


def _code(out: Tensor, categorical: bool) -> Tensor:
    return out.softmax(dim=1) if categorical else out


def _draw(n: int, latent: int, categorical: bool, *, like: Tensor, generator: torch.Generator) -> Tensor:
    if not categorical:
        return prior(n, latent, like=like, generator=generator)
    y = torch.randint(latent, (n,), generator=generator, device=generator.device)
    return F.one_hot(y, latent).to(like.dtype)


def _abilities(pixels: Pixels, latent: int, categorical: bool, sampler: Sampler) -> dict[str, Callable[..., Any]]:
    def draw(nets: nn.ModuleDict, n: int, *, generator: torch.Generator) -> Tensor:
        return _draw(n, latent, categorical, like=next(nets["decoder"].parameters()), generator=generator)

    def encode(nets: nn.ModuleDict, x: Tensor, *, y: None = None) -> Tensor:
        return _code(nets["encoder"](x), categorical)

    def paint(nets: nn.ModuleDict, z: Tensor, seeds: Tensor) -> Tensor:
        decoder = cast(CodeDecoder, nets["decoder"])
        condition = decoder.condition(z)
        return pixels.images(generate(decoder.pixelcnn, pixels.size, seeds=seeds, condition=condition, sampler=sampler))

    def decode(nets: nn.ModuleDict, z: Tensor, *, y: None = None) -> Tensor:
        return paint(nets, z, torch.zeros(len(z), dtype=torch.int64, device=z.device))

    def sample(nets: nn.ModuleDict, n: int, *, y: None = None, generator: torch.Generator) -> Tensor:
        return paint(nets, draw(nets, n, generator=generator), row_seeds(n, generator=generator))

    abilities: dict[str, Callable[..., Any]] = {
        "prior": draw,
        "encode": encode,
        "decode": decode,
        "reconstruct": lambda nets, x, *, y=None: decode(nets, encode(nets, x)),
        "sample": sample,
    }
    return abilities | ({"classify": encode} if categorical else {})
