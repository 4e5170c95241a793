"""VQGAN with a Transformer (Esser, Rombach & Ommer 2021, "Taming transformers for high-resolution image synthesis").

Stage 1, the autoencoder: encoder, codebook and decoder as in a VQ-VAE, and a discriminator of patches. With z the
encoder's output, z_q the nearest codes and x_rec what the decoder makes of them, encoder and decoder minimise (their
eq. 4-7)

    |x - x_rec|  +  v · perceptual(x, x_rec)  +  β ‖z - sg[z_q]‖²  -  w · λ · D(x_rec)

and the discriminator its hinge loss. λ keeps the adversarial gradient at the decoder's last layer as large as the
reconstruction's (both first terms'): λ = ‖∇ reconstruction‖ / (‖∇ adversarial‖ + 1e-4). It reaches the encoder too, as
in the paper's code. With `--codebook ema` codes are moving averages.

Routing:

    term                                             encoder                        decoder  codebook  discriminator
    quantisation                                       +0.25                              ·        +1              ·
    reconstruction                                        +1                             +1         ·              ·
    adversarial_generator      0→0.2 (20,000…40,000)·guard·λ  0→0.2 (20,000…40,000)·guard·λ         ·              ·
    adversarial_discriminator                              ·                              ·         ·           +0.5

The switch-on is guarded. The discriminator trains from the first step, while its weight w in the generator's objective
is 0; then w rises in a straight line. `rise` is the reconstruction error's moving average relative to that before the
switch-on, `rise_largest` its largest value so far; the guard takes w away as `rise` comes near `adversarial_limit`.
`discriminator_accuracy` is the share of patches that it tells right. λ is logged as well.

Stage 2, the prior: a GPT on the codes in raster order, by their exact likelihood,

    -Σ_i log p(code_i | code_1 … code_(i-1), y)

with a label (`--conditional`) that is left out for a part of the examples, so that sampling can be guided. The codes of
the training split are computed once and kept in the run, unless pictures are flipped or moved. `rate` gives the codes'
exact negative log-likelihood of an example; `complete` keeps the codes of an image's first rows and draws the others.

`perceptual` is a distance of a network's layers. The paper's is LPIPS, whose weights are a download; `features` trains
a small classifier on the labels first, in a stage of its own, and takes its layers.

Presets: `vqgan-paper` has the networks of the ImageNet model with 16-fold halving and 1,024 codes, and the 24 layers of
its Transformer.

Deviations: losses are sums over an image's values and not means, which is the same objective at a rate the optimizer
undoes, except that the commitment weighs less by (values of z / values of x); λ's limit is scaled to that. w is 0.2 by
default, as at the authors' 0.8, without perceptual loss, the discriminator fell to chance on small images. All players
move at once. The ramp and the guard (`adversarial_limit none` leaves it out). Without perceptual loss by default. The
halving networks (`--arch halving`) are the VQ-VAE's, for comparisons at equal networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twofold.codes import CodePrior, Level, Quantiser, code_abilities, code_view, completion, quantise
from twofold.decode import Sampler
from twofold.game import Game, Phase, Player, Stage, State, Term
from twofold.nets.features import FeatureClassifier
from twofold.nets.layers import norm_layer
from twofold.nets.residual import DoublingDecoder, HalvingEncoder, halved
from twofold.nets.transformer import GPT
from twofold.patch_game import PatchGame, build_patch_discriminator
from twofold.recipe import Recipe, option, require
from twofold.rollouts import classes_for
from twofold.spec import Spec
from twofold.terms.matching import l1
from twofold.terms.perceptual import perceptual_distance

ARCHS = ("resnet", "halving")
PERCEPTUAL = ("none", "features")


@dataclass(frozen=True)
class Config:
    codes: int = option(256, "K: vectors in the codebook")
    latent: int = option(32, "values of each vector")
    arch: str = option("resnet", "networks: the paper's, or the VQ-VAE's", choices=ARCHS)
    width: int = option(32, "channels at the image's own size (resnet), or of the residual blocks (halving)")
    multipliers: str = option("1,2,2", "resnet: channels at each size, in units of width; each but the last halves")
    halvings: int = option(2, "halving: how often the encoder halves an image's sides")
    blocks: int = option(1, "residual blocks at each size; the resnet's decoder has one more")
    codebook: str = option("loss", "how the codebook learns: from its loss, or as averages", choices=("loss", "ema"))
    commitment: float = option(0.25, "β: how strongly the encoder stays with its codes")
    decay: float = option(0.99, "of the moving averages, per batch")
    smoothing: float = option(1e-5, "ε of the averages' Laplace smoothing")
    restart_examples: int = option(2_000, "move a code that was not chosen for this many examples; 0: never")
    perceptual: str = option("none", "features: a classifier trained first, on the labels", choices=PERCEPTUAL)
    perceptual_weight: float = option(1.0, "v: weight of the perceptual distance beside the mean error of a value")
    adversarial_weight: float = option(0.2, "w: of the discriminator in the generator's objective, times λ; 0: none")
    adversarial_begin: int = option(20_000, "examples after which w begins to rise")
    adversarial_ramp: int = option(20_000, "examples over which w rises")
    adversarial_limit: float | None = option(
        0.5, "relative rise of the reconstruction error, since w began, at which w is 0 again; none: no guard"
    )
    width_discriminator: int = option(32, "channels of the discriminator's first convolution")
    patch_layers: int | None = option(
        None, "its convolutions of stride 2; none: 3, or as many as the image has room for"
    )
    norm_discriminator: str = option("none", "its normalisation", choices=("none", "batch", "layer", "group"))
    spectral: bool = option(False, "divide its weights by their largest singular value")
    learning_rate: float = option(5e-4, "Adam's learning rate")
    learning_rate_discriminator: float = option(5e-4, "Adam's learning rate for the discriminator")
    beta1: float = option(0.5, "Adam's first beta")
    beta2: float = option(0.9, "Adam's second beta")
    clip_norm: float | None = option(None, "largest norm of each network's gradient")
    ema_half_life_examples: float | None = option(None, "sample from an average of the decoder with this half-life")
    prior_share: float = option(1.0, "length of the prior's stage, relative to the autoencoder's")
    features_share: float = option(0.2, "length of the classifier's stage, relative to the autoencoder's")
    prior_width: int = option(128, "units of the Transformer")
    prior_layers: int = option(4, "its layers")
    prior_heads: int = option(4, "its heads")
    prior_dropout: float = option(0.1, "its dropout")
    prior_learning_rate: float = option(5e-4, "AdamW's learning rate")
    prior_weight_decay: float = option(0.01, "AdamW's weight decay")
    conditional: bool = option(False, "condition the prior on labels")
    label_dropout: float = option(0.1, "share of labels left out in training; guidance needs some")
    guidance: float = option(1.0, "scale of classifier-free guidance in sampling; 1: none")
    temperature: float = option(1.0, "of the codes in sampling")
    top_k: int | None = option(None, "sample among the k most probable codes")
    top_p: float | None = option(None, "sample among the most probable codes that sum to p")


def released() -> Config:
    """The authors' networks for 256×256 images: their ImageNet autoencoder with 1,024 codes and 16-fold halving, its
    rate at batches of 12, and the Transformer of their face model. Their code halves neither term."""
    return Config(
        codes=1024,
        latent=256,
        width=128,
        multipliers="1,1,2,2,4",
        blocks=2,
        restart_examples=0,
        width_discriminator=64,
        adversarial_weight=0.8,
        adversarial_begin=250_001 * 12,
        adversarial_ramp=0,
        adversarial_limit=None,
        norm_discriminator="batch",
        learning_rate=5.4e-5,
        learning_rate_discriminator=5.4e-5,
        prior_width=1024,
        prior_layers=24,
        prior_heads=16,
        prior_dropout=0.0,
        prior_learning_rate=4.5e-6 * 16,
    )


def build(config: Config, spec: Spec) -> Recipe:
    """The recipe for images that look like `spec`."""
    _check(config)
    quantiser = Quantiser.of(config)
    encoder, decoder, places = networks(config, spec)
    book = quantiser.build()
    level = Level(quantiser, places)
    classes = classes_for(spec, config.conditional)
    prior = CodePrior(
        "transformer",
        level,
        classes,
        config.label_dropout,
        sampler=Sampler(config.temperature, config.top_k, config.top_p),
        guidance=config.guidance,
    )
    transformer = GPT(
        config.codes,
        level.positions,
        width=config.prior_width,
        layers=config.prior_layers,
        heads=config.prior_heads,
        dropout=config.prior_dropout,
        classes=classes,
    )

    def indices(nets: nn.ModuleDict, x: Tensor) -> list[Tensor]:
        return [quantise(nets["encoder"](x), nets["codebook"])[1]]

    stages = [
        Stage("autoencoder", autoencoder_game(config, spec, quantiser, encoder, decoder, book)),
        prior.stage(
            "prior",
            Player(
                transformer,
                partial(
                    torch.optim.AdamW,
                    lr=config.prior_learning_rate,
                    betas=(0.9, 0.95),
                    weight_decay=config.prior_weight_decay,
                ),
            ),
            frozen={"encoder": encoder, "codebook": book},
            view=code_view([level], indices, conditional=config.conditional),
            share=config.prior_share,
        ),
    ]
    if config.perceptual == "features":
        stages = features_first(stages, config, spec)

    def rate(
        nets: nn.ModuleDict, x: Tensor, *, y: Tensor | None = None, generator: torch.Generator
    ) -> dict[str, Tensor]:
        nats = prior.nats(nets, indices(nets, x)[0].flatten(1), prior.condition(y))
        return {"rate_nats": nats.sum(1), "nats_per_code": nats.mean(1)}

    def draw(
        nets: nn.ModuleDict,
        n: int,
        *,
        y: Tensor | None,
        generator: torch.Generator,
        prompts: Sequence[Tensor | None] = (None,),
    ) -> list[Tensor]:
        return [prior.draw(nets, n, y=prior.labels(n, y, generator), prompts=prompts[0], generator=generator)]

    parts: dict[str, Any] = {
        "encode": indices,
        "picture": lambda nets, vectors: nets["decoder"](vectors[0]).clamp(-1, 1),
        "draw": draw,
    }
    abilities = code_abilities([level], **parts) | {"complete": completion([level], **parts), "rate": rate}
    return Recipe(tuple(stages), spec, abilities, config.conditional)


def _check(config: Config) -> None:
    for name in ("halvings", "adversarial_weight", "perceptual_weight"):
        value = getattr(config, name)
        require(value >= 0, f"{name} is {value}; it starts at 0")
    least = 1 if config.arch == "resnet" else 0
    require(config.blocks >= least, f"blocks is {config.blocks}; it starts at {least} with arch {config.arch}")
    for name in ("prior_share", "features_share"):
        value = getattr(config, name)
        require(value > 0, f"{name} is {value}; it must be above 0")


def autoencoder_game(
    config: Config, spec: Spec, quantiser: Quantiser, encoder: nn.Module, decoder: nn.Module, book: nn.Module
) -> Game:
    """Stage 1."""
    both = {"encoder": 1.0, "decoder": 1.0}
    terms = [quantiser.term(), Term("reconstruction", lambda s: l1(s["x_rec"], s["x"]).mean(), to=both)]
    reference = {"reconstruction": 1.0}
    if config.perceptual == "features":
        reference["perceptual"] = config.perceptual_weight * spec.size
        terms.append(Term("perceptual", perceptual, to=dict.fromkeys(both, reference["perceptual"])))
    adversary = None
    if config.adversarial_weight > 0:
        adversary = PatchGame(
            tuple(both),
            reference,
            spec,
            config.adversarial_weight,
            config.adversarial_begin,
            config.adversarial_ramp,
            config.adversarial_limit,
        )

    def rollout(state: State) -> dict[str, Tensor]:
        x, nets = state.batch["x"], state.nets
        out = quantiser.learn(state, nets["encoder"](x))
        x_rec = nets["decoder"](out["codes"])
        judged = {} if adversary is None else adversary.judge(state, x, x_rec)
        return {"x": x, "x_rec": x_rec, **out, **judged}

    adam = partial(torch.optim.Adam, lr=config.learning_rate, betas=(config.beta1, config.beta2))
    own: dict[str, Any] = {"clip_norm": config.clip_norm}
    players = {
        "encoder": Player(encoder, adam, **own),
        "decoder": Player(decoder, adam, ema_half_life_examples=config.ema_half_life_examples, **own),
        **quantiser.players(book, adam),
    }
    memory, measures = quantiser.memory(book), quantiser.measures()
    if adversary is not None:
        discriminator = build_patch_discriminator(
            spec,
            width=config.width_discriminator,
            layers=config.patch_layers,
            norm=config.norm_discriminator,
            spectral=config.spectral,
        )
        players["discriminator"] = Player(discriminator, partial(adam, lr=config.learning_rate_discriminator), **own)
        terms += adversary.terms()
        measures |= adversary.measures()
        memory |= adversary.memory()
    return Game(players, (Phase("autoencoder", rollout, terms, measures=measures),), memory=memory)


def perceptual(state: State) -> Tensor:
    """The distance of reconstructions in the classifier's layers."""
    net = cast(FeatureClassifier, state.nets["features"])
    return perceptual_distance(net.maps(state["x"]), net.maps(state["x_rec"])).mean()


def features_first(stages: Sequence[Stage], config: Config, spec: Spec) -> list[Stage]:
    """A stage that trains the classifier whose layers the autoencoder's stage, the first of `stages`, compares."""
    require(spec.classes is not None, "perceptual features are trained on labels, but this data has none; use none")
    net = FeatureClassifier(spec.shape[0], spec.classes or 2)
    term = Term("classification", lambda s: F.cross_entropy(s["logits"].float(), s.batch["y"]), to={"features": 1.0})
    phase = Phase(
        "features",
        lambda s: {"logits": s.nets["features"](s.batch["x"])},
        (term,),
        measures={"features_accuracy": lambda s: (s["logits"].argmax(1) == s.batch["y"]).float().mean()},
    )
    game = Game({"features": Player(net, partial(torch.optim.Adam, lr=1e-3))}, (phase,))
    autoencoder, *rest = stages
    before = autoencoder.game
    seeing = Game(before.players, before.phases, frozen={"features": net}, memory=before.memory)
    return [
        Stage("features", game, config.features_share),
        Stage(autoencoder.name, seeing, autoencoder.share),
        *rest,
    ]


# Networks.


def networks(config: Config, spec: Spec) -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
    """Encoder to (batch, latent, rows, columns), decoder from it, and the sizes of that map."""
    channels = spec.shape[0]
    if config.arch == "halving":
        sizes = halved(spec.shape[1:], config.halvings)
        inner = max(1, config.width // 2)
        encoder = HalvingEncoder(channels, config.latent, config.width, inner, config.blocks, config.halvings)
        decoder = DoublingDecoder(channels, config.latent, config.width, inner, config.blocks, sizes)
        return encoder, decoder, sizes[-1]
    widths = [config.width * factor for factor in _multipliers(config.multipliers)]
    sizes = halved(spec.shape[1:], len(widths) - 1)
    return (
        ResNetEncoder(channels, config.latent, widths, config.blocks),
        ResNetDecoder(channels, config.latent, widths, config.blocks, sizes),
        sizes[-1],
    )


def _multipliers(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    require(
        all(word.isdecimal() and int(word) > 0 for word in words),
        f"multipliers is {text!r}; give whole numbers from 1, such as '1,2,2'",
    )
    return [int(word) for word in words]


class NormalisedBlock(nn.Module):
    """h + conv(silu(norm(conv(silu(norm h))))), h by a 1×1 convolution where the channels change."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.net = nn.Sequential(
            norm_layer("group", inputs, spatial=True),
            nn.SiLU(),
            nn.Conv2d(inputs, outputs, 3, 1, 1),
            norm_layer("group", outputs, spatial=True),
            nn.SiLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1),
        )
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, h: Tensor) -> Tensor:
        return self.skip(h) + self.net(h)


class MapAttention(nn.Module):
    """h + attention(norm h) with one head, every place of a map asking all others."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = norm_layer("group", width, spatial=True)
        self.joint = nn.Conv2d(width, 3 * width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, h: Tensor) -> Tensor:
        queries, keys, values = self.joint(self.norm(h)).flatten(2).transpose(1, 2)[:, None].chunk(3, dim=-1)
        seen = F.scaled_dot_product_attention(queries, keys, values)[:, 0]
        return h + self.out(seen.transpose(1, 2).unflatten(2, h.shape[2:]))


class ShrinkingConv(nn.Module):
    """A 3×3 convolution with stride 2, padded below and to the right: n to ⌈n / 2⌉."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, 2)

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(F.pad(h, (0, 1 + h.shape[3] % 2, 0, 1 + h.shape[2] % 2)))


class GrowingConv(nn.Module):
    """Each place four times, cut to `size`, and a 3×3 convolution."""

    def __init__(self, width: int, size: tuple[int, ...]):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, 1, 1)
        self.size = size

    def forward(self, h: Tensor) -> Tensor:
        h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return self.conv(h[:, :, : self.size[0], : self.size[1]])


def _with_attention(inputs: int, outputs: int) -> list[nn.Module]:
    return [NormalisedBlock(inputs, outputs), MapAttention(outputs)]


def _middle(width: int) -> list[nn.Module]:
    return [*_with_attention(width, width), NormalisedBlock(width, width)]


def _head(width: int, outputs: int) -> list[nn.Module]:
    return [norm_layer("group", width, spatial=True), nn.SiLU(), nn.Conv2d(width, outputs, 3, 1, 1)]


class ResNetEncoder(nn.Sequential):
    """Blocks at each size, attention at the smallest, then the head and the 1×1 convolution before the codebook."""

    def __init__(self, channels: int, latent: int, widths: Sequence[int], blocks: int):
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, 1, 1)]
        for k, (inputs, width) in enumerate(pairwise([widths[0], *widths])):
            last = k == len(widths) - 1
            for a, b in pairwise([inputs, *[width] * blocks]):
                layers += _with_attention(a, b) if last else [NormalisedBlock(a, b)]
            if not last:
                layers.append(ShrinkingConv(width if blocks else inputs))
        smallest = widths[-1]
        super().__init__(*layers, *_middle(smallest), *_head(smallest, latent), nn.Conv2d(latent, latent, 1))


class ResNetDecoder(nn.Sequential):
    """The way back, with one block more at each size."""

    def __init__(
        self, channels: int, latent: int, widths: Sequence[int], blocks: int, sizes: Sequence[tuple[int, ...]]
    ):
        smallest = widths[-1]
        layers: list[nn.Module] = [
            nn.Conv2d(latent, latent, 1),
            nn.Conv2d(latent, smallest, 3, 1, 1),
            *_middle(smallest),
        ]
        inputs = smallest
        for k in range(len(widths) - 1, -1, -1):
            for a, b in pairwise([inputs, *[widths[k]] * (blocks + 1)]):
                layers += _with_attention(a, b) if k == len(widths) - 1 else [NormalisedBlock(a, b)]
            inputs = widths[k]
            if k:
                layers.append(GrowingConv(inputs, sizes[k - 1]))
        super().__init__(*layers, *_head(inputs, channels))
