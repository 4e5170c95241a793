"""VQ-VAE-2 (Razavi, van den Oord & Vinyals 2019, "Generating diverse high-fidelity images with VQ-VAE-2").

Two maps of codes, a small one on top and a larger one at the bottom, both quantised as in VQ-VAE with codebooks that
are moving averages. The bottom's encoder sees the top's codes, so that it can leave to them what they say; the decoder
reads both. Encoder and decoder minimise (their eq. 2, algorithm 1), summed over values and positions,

    -log p(x | top, bottom)  +  β · ‖z_top - sg[e_top]‖²  +  β · ‖z_bottom - sg[e_bottom]‖²

Routing:

    term                 encoder  decoder
    quantisation_top       +0.25        ·
    quantisation_bottom    +0.25        ·
    reconstruction            +1       +1

Then two priors by exact likelihood (their algorithm 2), gated PixelCNNs with attention over all earlier codes as in
PixelSNAIL (Chen et al. 2018): p(top), or p(top | y), and p(bottom | top), whose every place sees the codes of the top
around it. The codes of the training split are computed once and kept in the run, unless pictures are flipped or moved.
So the ELBO is exact up to the decoder: `elbo`'s rate is -log p(top) - log p(bottom | top), which `rate` gives by level.

`--refine-share` above 0 adds what is no part of the paper: a stage after the first in which the decoder alone learns on
against a discriminator of patches, beside the reconstruction and with VQGAN's adaptive weight (Esser et al. 2021, eq.
7). The codes stay as they are, and so do the priors.

`codes_used`, `perplexity` and `codes_restarted` are logged for each level. Presets: `released()` has the sizes of a
released implementation: 512 codes of 64 values, 128 units, residual 32.

Deviations: any size of image, with the VQ-VAE's networks. The priors are smaller, without dropout by default, and their
attention follows the gated layers instead of standing in a block with them; the bottom's has none by default, as in the
paper. Dead codes are restarted. The likelihood's scale is learned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from twofold.codes import CodePrior, Level, Quantiser, code_abilities, code_view, completion, quantise, vectors_of
from twofold.decode import Sampler
from twofold.errors import InputError
from twofold.game import Game, Phase, Player, Stage, State, Term
from twofold.nets.pixelcnn import PixelCNN
from twofold.nets.residual import Double, DoublingDecoder, HalvingEncoder, HalvingTrunk, Residual, halved
from twofold.patch_game import PatchGame, build_patch_discriminator
from twofold.recipe import Recipe, option, require
from twofold.rollouts import classes_for, likelihood_for, likelihood_of, reconstruction_term
from twofold.spec import Spec
from twofold.terms.likelihood import LIKELIHOODS, Likelihood


@dataclass(frozen=True)
class Config:
    codes: int = option(256, "K: vectors in each codebook")
    latent: int = option(32, "values of each vector")
    halvings: int = option(2, "how often the bottom halves an image's sides")
    halvings_top: int = option(1, "how often the top halves the bottom's")
    codebook: str = option("ema", "how the codebooks learn: from their loss, or as averages", choices=("loss", "ema"))
    commitment: float = option(0.25, "β: how strongly the encoder stays with its codes")
    decay: float = option(0.99, "of the moving averages, per batch")
    smoothing: float = option(1e-5, "ε of the averages' Laplace smoothing")
    restart_examples: int = option(2_000, "move a code that was not chosen for this many examples; 0: never")
    likelihood: str = option("normal", "p(x | codes)", choices=LIKELIHOODS)
    likelihood_scale: str = option(
        "scalar",
        "scale of a Normal or Laplace likelihood: fixed, one learned number, or one per value",
        choices=("fixed", "scalar", "output"),
    )
    width: int = option(64, "channels of the residual blocks")
    width_residual: int | None = option(None, "channels inside the residual blocks; none: half of width")
    blocks: int = option(2, "residual blocks in each encoder and decoder")
    learning_rate: float = option(3e-4, "Adam's learning rate")
    clip_norm: float | None = option(None, "largest norm of each network's gradient")
    ema_half_life_examples: float | None = option(None, "sample from an average of the decoder with this half-life")
    refine_share: float = option(0.0, "length of the decoder's adversarial stage relative to the first; 0: none")
    refine_weight: float = option(0.8, "of the discriminator in that stage, times the adaptive weight")
    refine_ramp: int = option(10_000, "examples over which that weight rises from 0")
    width_discriminator: int = option(32, "channels of that stage's discriminator")
    prior_share: float = option(1.0, "length of the top prior's stage, relative to the first")
    prior_share_bottom: float = option(1.0, "length of the bottom prior's stage, relative to the first")
    prior_width: int = option(64, "channels of the priors")
    prior_layers: int = option(6, "their gated layers")
    prior_attention_every: int = option(3, "attention after each so many layers of the top's prior; 0: none")
    prior_attention_every_bottom: int = option(0, "the same in the bottom's prior")
    prior_heads: int = option(4, "heads of that attention")
    prior_dropout: float = option(0.0, "dropout of the priors")
    prior_learning_rate: float = option(5e-4, "Adam's learning rate for the priors")
    conditional: bool = option(False, "condition both priors on labels")
    label_dropout: float = option(0.1, "share of labels left out in training; guidance needs some")
    guidance: float = option(1.0, "scale of classifier-free guidance in sampling; 1: none")
    temperature: float = option(1.0, "of the codes in sampling")
    top_k: int | None = option(None, "sample among the k most probable codes")
    top_p: float | None = option(None, "sample among the most probable codes that sum to p")


def released() -> Config:
    """The autoencoder of a released implementation for 256×256 images, and the paper's larger top prior in kind: more
    layers, wider, with dropout."""
    return Config(
        codes=512,
        latent=64,
        restart_examples=0,
        width=128,
        width_residual=32,
        prior_width=256,
        prior_layers=20,
        prior_attention_every=5,
        prior_heads=8,
        prior_dropout=0.1,
        prior_learning_rate=3e-4,
    )


def build(config: Config, spec: Spec) -> Recipe:
    """The recipe for images that look like `spec`."""
    _check(config)
    sizes = halved(spec.shape[1:], config.halvings + config.halvings_top)
    top = Level(Quantiser.of(config, level="top"), sizes[-1])
    bottom = Level(Quantiser.of(config, level="bottom"), sizes[config.halvings])
    levels = (top, bottom)
    likelihood = likelihood_for(config, spec)
    nets: dict[str, nn.Module] = {
        "encoder": TwoLevelEncoder(config, spec.shape[0], sizes),
        "decoder": TwoLevelDecoder(config, likelihood, spec.shape[0], sizes),
        **{level.quantiser.named("codebook"): level.quantiser.build() for level in levels},
    }
    classes = classes_for(spec, config.conditional)
    rules: dict[str, Any] = {
        "classes": classes,
        "label_dropout": config.label_dropout,
        "sampler": Sampler(config.temperature, config.top_k, config.top_p),
        "guidance": config.guidance,
    }
    prior_top = CodePrior("prior_top", top, **rules)
    prior_bottom = CodePrior("prior_bottom", bottom, given=top, **rules)
    adam = partial(torch.optim.Adam, lr=config.prior_learning_rate)
    sizes_of_prior: dict[str, Any] = {
        "levels": config.codes,
        "width": config.prior_width,
        "layers": config.prior_layers,
        "heads": config.prior_heads,
        "embedding": config.prior_width,
        "dropout": config.prior_dropout,
        "classes": classes,
    }
    net_top = PixelCNN(1, *top.places, attention_every=config.prior_attention_every, **sizes_of_prior)
    net_bottom = BottomPrior(top, bottom.places, attention_every=config.prior_attention_every_bottom, **sizes_of_prior)
    seeing = {name: nets[name] for name in nets if name != "decoder"}
    view = code_view(levels, indices, conditional=config.conditional)
    stages = [Stage("autoencoder", autoencoder_game(config, levels, nets))]
    if config.refine_share:
        stages.append(Stage("refine", refining_game(config, spec, nets), config.refine_share))
    for prior, net, share in (
        (prior_top, net_top, config.prior_share),
        (prior_bottom, net_bottom, config.prior_share_bottom),
    ):
        stages.append(prior.stage(prior.player, Player(net, adam), frozen=seeing, view=view, share=share))
    parts: dict[str, Any] = {"encode": indices, "picture": picture, "draw": drawing(prior_top, prior_bottom)}
    abilities = code_abilities(levels, **parts) | {"complete": completion(levels, **parts)}
    return Recipe(tuple(stages), spec, abilities | likelihood_abilities(prior_top, prior_bottom), config.conditional)


def _check(config: Config) -> None:
    for name in ("halvings", "blocks", "refine_share", "refine_ramp"):
        value = getattr(config, name)
        require(value >= 0, f"{name} is {value}; it starts at 0")
    require(config.halvings_top >= 1, f"halvings_top is {config.halvings_top}; it starts at 1")
    for name in ("prior_share", "prior_share_bottom", "refine_weight"):
        value = getattr(config, name)
        require(value > 0, f"{name} is {value}; it must be above 0")


# Stages.


def autoencoder_game(config: Config, levels: Sequence[Level], nets: Mapping[str, nn.Module]) -> Game:
    """Stage 1: both levels and the decoder."""
    top, bottom = (level.quantiser for level in levels)

    def rollout(state: State) -> dict[str, Tensor]:
        x = state.batch["x"]
        encoder: Any = state.nets["encoder"]
        features, z_top = encoder(x)
        out = top.learn(state, z_top)
        out |= bottom.learn(state, encoder.bottom(features, out["codes_top"]))
        return {"x": x, **out, "params": state.nets["decoder"](out["codes_top"], out["codes_bottom"])}

    adam = partial(torch.optim.Adam, lr=config.learning_rate)
    players = {
        "encoder": Player(nets["encoder"], adam, clip_norm=config.clip_norm),
        "decoder": decoder_player(config, nets["decoder"]),
    }
    memory: dict[str, nn.Module] = {}
    measures: dict[str, Callable[[State], Tensor]] = {}
    for quantiser in (top, bottom):
        players |= quantiser.players(quantiser.book(nets), adam)
        memory |= quantiser.memory(quantiser.book(nets))
        measures |= quantiser.measures()
    terms = (top.term(), bottom.term(), reconstruction_term())
    return Game(players, (Phase("autoencoder", rollout, terms, measures=measures),), memory=memory)


def decoder_player(config: Config, decoder: nn.Module) -> Player:
    """The decoder as both of its stages train it."""
    return Player(
        decoder,
        partial(torch.optim.Adam, lr=config.learning_rate),
        clip_norm=config.clip_norm,
        ema_half_life_examples=config.ema_half_life_examples,
    )


def refining_game(config: Config, spec: Spec, nets: Mapping[str, nn.Module]) -> Game:
    """The extension: the decoder alone, on codes that stay, against a discriminator."""
    adversary = PatchGame(("decoder",), {"reconstruction": 1.0}, spec, config.refine_weight, ramp=config.refine_ramp)

    def rollout(state: State) -> dict[str, Tensor]:
        x = state.batch["x"]
        params = state.nets["decoder"](*vectors(state.nets, x))
        x_rec = likelihood_of(state.nets).mean(params)
        return {"x": x, "params": params, **adversary.judge(state, x, x_rec)}

    discriminator = build_patch_discriminator(spec, width=config.width_discriminator)
    adam = partial(torch.optim.Adam, lr=config.learning_rate, betas=(0.5, 0.9))
    reconstruction = Term("reconstruction", reconstruction_term().loss, to={"decoder": 1.0})
    return Game(
        {"decoder": decoder_player(config, nets["decoder"]), "discriminator": Player(discriminator, adam)},
        (Phase("refine", rollout, (reconstruction, *adversary.terms()), measures=adversary.measures()),),
        frozen={name: net for name, net in nets.items() if name != "decoder"},
        memory=adversary.memory(),
    )


# Abilities.


def vectors(nets: nn.ModuleDict, x: Tensor) -> list[Tensor]:
    """The codes' vectors of x, top and bottom."""
    return [vectors_of(index, nets[f"codebook_{name}"]) for name, index in zip(LEVELS, indices(nets, x), strict=True)]


def indices(nets: nn.ModuleDict, x: Tensor) -> list[Tensor]:
    """The codes of x, top and bottom."""
    encoder: Any = nets["encoder"]
    features, z_top = encoder(x)
    z_q, top = quantise(z_top, nets["codebook_top"])
    return [top, quantise(encoder.bottom(features, z_q), nets["codebook_bottom"])[1]]


def picture(nets: nn.ModuleDict, codes: Sequence[Tensor]) -> Tensor:
    """The mean of p(x | top, bottom)."""
    return likelihood_of(nets).mean(nets["decoder"](*codes))


def drawing(top: CodePrior, bottom: CodePrior) -> Callable[..., list[Tensor]]:
    """Codes of the top, then of the bottom given them."""

    def draw(
        nets: nn.ModuleDict,
        n: int,
        *,
        y: Tensor | None,
        generator: torch.Generator,
        prompts: Sequence[Tensor | None] = (None, None),
    ) -> list[Tensor]:
        y = top.labels(n, y, generator)
        above = top.draw(nets, n, y=y, prompts=prompts[0], generator=generator)
        given = above.flatten(1)
        return [above, bottom.draw(nets, n, y=y, given=given, prompts=prompts[1], generator=generator)]

    return draw


def likelihood_abilities(top: CodePrior, bottom: CodePrior) -> dict[str, Callable[..., Any]]:
    """rate and elbo."""

    def nats(nets: nn.ModuleDict, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        above, below = (index.flatten(1) for index in indices(nets, x))
        return top.nats(nets, above, top.condition(y)), bottom.nats(nets, below, bottom.condition(y, above))

    def rate(
        nets: nn.ModuleDict, x: Tensor, *, y: Tensor | None = None, generator: torch.Generator
    ) -> dict[str, Tensor]:
        above, below = nats(nets, x, y)
        return {
            "rate_nats": above.sum(1) + below.sum(1),
            "nats_per_code_top": above.mean(1),
            "nats_per_code_bottom": below.mean(1),
        }

    def elbo(
        nets: nn.ModuleDict, x: Tensor, *, y: Tensor | None = None, generator: torch.Generator
    ) -> dict[str, Tensor]:
        distortion = likelihood_of(nets).nll(nets["decoder"](*vectors(nets, x)), x)
        return {
            "rate_nats": rate(nets, x, y=y, generator=generator)["rate_nats"],
            "distortion_nats": distortion,
        }

    return {"rate": rate, "elbo": elbo}


# Networks.

LEVELS = ("top", "bottom")


def _inner(config: Config) -> int:
    return config.width_residual or max(1, config.width // 2)


class TwoLevelEncoder(nn.Module):
    """x → features at the bottom's size and the top's vectors; and, from the features and the top's codes, the bottom's
    vectors."""

    def __init__(self, config: Config, channels: int, sizes: Sequence[tuple[int, ...]]):
        super().__init__()
        width, inner, latent = config.width, _inner(config), config.latent
        self.below = HalvingTrunk(channels, width, inner, config.blocks, config.halvings)
        self.above = HalvingEncoder(width, latent, width, inner, config.blocks, config.halvings_top)
        self.from_top = DoublingDecoder(latent, latent, width, inner, config.blocks, list(sizes[config.halvings :]))
        self.head = nn.Conv2d(latent + width, latent, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.below(x)
        return features, self.above(features)

    def bottom(self, features: Tensor, codes_top: Tensor) -> Tensor:
        """z of the bottom, (batch, latent, rows, columns)."""
        return self.head(torch.cat([self.from_top(codes_top), features], dim=1))


class TwoLevelDecoder(nn.Module):
    """Both levels' vectors → the likelihood's parameters; the top's are brought to the bottom's size first."""

    def __init__(self, config: Config, likelihood: Likelihood, channels: int, sizes: Sequence[tuple[int, ...]]):
        super().__init__()
        self.likelihood = likelihood
        latent = config.latent
        up = [Double(latent, latent, size) for size in sizes[config.halvings : -1][::-1]]
        self.up = nn.Sequential(*up)
        outputs, to = likelihood.outputs(channels), list(sizes[: config.halvings + 1])
        self.net = DoublingDecoder(outputs, 2 * latent, config.width, _inner(config), config.blocks, to)

    def forward(self, top: Tensor, bottom: Tensor) -> Tensor:
        return self.net(torch.cat([self.up(top), bottom], dim=1))


class BottomPrior(nn.Module):
    """p(bottom | top): a PixelCNN each of whose places sees a map made of the top's codes. Its condition holds "top"
    (batch, positions) int64 and, where there are classes, "y". Obeys `decode.SequenceModel`."""

    slides = False

    def __init__(self, top: Level, places: tuple[int, ...], *, width: int, **sizes: Any):
        super().__init__()
        self.places_top, self.places = top.places, places
        self.table = nn.Embedding(top.quantiser.codes, width)
        self.around = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), Residual(width, width), nn.ReLU())
        self.net = PixelCNN(1, *places, width=width, map_channels=width, **sizes)

    @property
    def vocabulary(self) -> int:
        """Number of codes."""
        return self.net.vocabulary

    @property
    def window(self) -> int:
        """Number of places."""
        return self.net.window

    def seen(self, condition: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """The condition with the top's codes as a map at the bottom's size."""
        if condition is None or "top" not in condition:
            raise InputError("the bottom's prior needs the codes of the top; give the condition 'top'")
        h = self.around(self.table(condition["top"]).transpose(1, 2).unflatten(2, self.places_top))
        rows, columns = (-(-n // m) for n, m in zip(self.places, self.places_top, strict=True))
        h = h.repeat_interleave(rows, 2).repeat_interleave(columns, 3)[:, :, : self.places[0], : self.places[1]]
        return {**{name: value for name, value in condition.items() if name != "top"}, "map": h}

    def forward(self, tokens: Tensor, condition: Mapping[str, Tensor] | None = None) -> Tensor:
        return self.net(tokens, self.seen(condition))

    def start(self, rows: int, condition: Mapping[str, Tensor] | None = None) -> Any:
        """An empty map of codes."""
        return self.net.start(rows, self.seen(condition))

    def step(self, tokens: Tensor, cache: Any) -> Tensor:
        """Logits (rows, codes) of the next code."""
        return self.net.step(tokens, cache)

    def null(self, condition: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """The condition without its label; the top's codes stay."""
        return self.net.null(condition)
