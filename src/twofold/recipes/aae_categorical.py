"""Adversarial autoencoder with categories (Makhzani et al. 2015, "Adversarial Autoencoders"): clustering without
labels, and classification with few.

The encoder gives a category y = softmax(…) and a style z; the decoder sees both. Two discriminators say how probably
each came from its prior: one-hot draws of Cat(1/K) for the category, N(0, I) for the style. On every batch:

    reconstruction      encoder and decoder minimise ½ ‖x - x_rec‖² and a constant
    discriminators      each minimises -log D(its prior) - log(1 - D(its code))
    regularization      the encoder minimises -log D(y) - log D(z)
    classification      the encoder minimises the cross-entropy of y on the examples whose labels are known

The last phase is there with `aae-semi-supervised` only; without it the categories are clusters, which the encoder
finds by itself and numbers as it likes.

Routing:

    term                                  encoder  decoder  category_discriminator  style_discriminator
    phase reconstruction
      reconstruction                           +1       +1                       ·                    ·
    phase discriminators
      category_adversarial_discriminator        ·        ·                      +1                    ·
      style_adversarial_discriminator           ·        ·                       ·                   +1
    phase regularization
      category_adversarial_encoder            +10        ·                       ·                    ·
      style_adversarial_encoder               +10        ·                       ·                    ·

A code is (y, z) side by side: `encode` gives the softmax and the style, `sample` one-hot categories with drawn styles,
and `classify` the softmax alone.

Whose label is known is decided by the example itself, from a hash of its values, so that a run knows the same ones in
every epoch and no others: about `labelled_fraction` of the data, not balanced by class. Augmented copies of an example
count as examples of their own; leave --flip and --crop out when few labels are the point.

Deviations: the category's discriminator sees draws and softmax through the same noise (`--category-noise`, 0 for the
paper's game), since an exactly one-hot code is told from a softmax by rounding alone, and categories that it drove to
probability 0 stay dead. One Adam serves all of the encoder's phases, where the paper has SGD for each; the weights of
10 are what its adversarial part needs beside a sum over pixels. Networks size themselves to the data. The paper's
networks of 3,000 units have no preset of their own: `--arch mlp --width 3000`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twofold.autoencoders import OPTIMIZERS, Training, build_code_discriminator, latent_of, network_sizes
from twofold.errors import InputError
from twofold.game import Game, Phase, Stage, State, Term
from twofold.latents import prior
from twofold.nets.build import build_decoder, build_encoder
from twofold.recipe import Recipe, option, require
from twofold.rollouts import LikelihoodDecoder, distortion, likelihood_of
from twofold.spec import Spec
from twofold.terms.adversarial import build_adversarial
from twofold.terms.likelihood import build_likelihood


@dataclass(frozen=True)
class Config:
    clusters: int | None = option(None, "number of categories; none: 16, or the data's classes where labels are used")
    labelled_fraction: float = option(0.0, "part of the examples whose labels are known; 0: clustering")
    latent: int | None = option(None, "size of the style z; none: 5, or the data's number of values if that is less")
    likelihood: str = option(
        "normal", "the reconstruction's cost, as p(x|z) of scale 1", choices=("normal", "laplace", "bernoulli")
    )
    category_noise: float = option(
        0.3,
        "standard deviation of noise on all categories that the discriminator sees, so that it cannot tell them by "
        "being exactly one-hot; 0: the paper's game",
    )
    style_weight: float = option(10.0, "weight of the style discriminator's word in the encoder's row")
    category_weight: float = option(10.0, "weight of the category discriminator's word in the encoder's row")
    classification_weight: float = option(1.0, "weight of the cross-entropy on known labels")
    real_label: float = option(1.0, "the discriminators' target for the priors; below 1: one-sided label smoothing")
    arch: str = option("conv", "networks for images; vectors always get an MLP", choices=("conv", "mlp"))
    width: int | None = option(
        None, "channels of the first convolution (none: 32) or units of an MLP's layers (none: 256)"
    )
    depth: int = option(2, "hidden layers of an MLP")
    hidden: int = option(256, "units of a fully connected layer between convolutions and head; 0: none")
    norm: str = option("batch", "normalisation in encoder and decoder", choices=("batch", "group", "layer", "none"))
    spectral: bool = option(False, "spectral normalisation of both discriminators (Miyato et al. 2018)")
    code_width: int = option(256, "units of the discriminators' layers")
    code_depth: int = option(2, "hidden layers of the discriminators")
    optimizer: str = option("adam", "optimizer of all players", choices=OPTIMIZERS)
    learning_rate: float = option(5e-4, "learning rate of encoder and decoder")
    learning_rate_code_discriminator: float | None = option(None, "of the discriminators; none: the same")
    beta1: float = option(0.5, "Adam's β₁")
    beta2: float = option(0.999, "Adam's β₂")
    clip_norm: float | None = option(None, "largest norm of each network's gradient")
    ema_half_life_examples: float | None = option(None, "sample from an average of the decoder with this half-life")


def semi_supervised() -> Config:
    """One label in ten is known, and the categories are the classes."""
    return Config(labelled_fraction=0.1)


def known(x: Tensor, fraction: float) -> Tensor:
    """(batch,) bool: whether each example is among the labelled ones, by a hash of its values. Whole-number
    arithmetic, so that every device decides alike.

    >>> x = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
    >>> bool(known(x, 1.0).all()), bool(known(x, 0.0).any()), int((known(x, 0.1) & ~known(x, 0.2)).sum())
    (True, False, 0)
    """
    # A factor under which neither 8-bit values nor 17 grey levels fall near the middle between two whole numbers.
    values = (x.flatten(1) * 1009.3).round().to(torch.int64)
    place = torch.arange(values.shape[1], device=x.device) * 2_654_435_761 + 1_013_904_223
    mixed = (values * (place ^ (place >> 15))).sum(1)
    for _ in range(2):
        mixed = (mixed ^ (mixed >> 29)) * 6_364_136_223_846_793_005
    return (mixed >> 32) & 0xFFFF_FFFF < fraction * 2**32


def build(config: Config, spec: Spec) -> Recipe:
    """The recipe for data that looks like `spec`."""
    categories = _categories(config, spec)
    latent = latent_of(config.latent, 5, spec)
    sizes: dict[str, Any] = network_sizes(config, spec) | {"norm": config.norm}
    likelihood = build_likelihood(config.likelihood, bounded=spec.kind == "image", scale="fixed")
    decoder = build_decoder(spec, categories + latent, outputs=likelihood.outputs(spec.shape[0]), **sizes)
    code: dict[str, Any] = {
        "width": config.code_width, "depth": config.code_depth, "classes": None, "spectral": config.spectral,
    }  # fmt: skip
    nets: dict[str, nn.Module] = {
        "encoder": build_encoder(spec, categories + latent, **sizes),
        "decoder": LikelihoodDecoder(decoder, likelihood),
        "category_discriminator": build_code_discriminator(categories, **code),
        "style_discriminator": build_code_discriminator(latent, **code),
    }

    def encode(state: State) -> dict[str, Tensor]:
        out = state.nets["encoder"](state.batch["x"])
        logits, z = out[:, :categories], out[:, categories:]
        return {"x": state.batch["x"], "logits": logits, "y": logits.softmax(dim=1), "z": z}

    def autoencode(state: State) -> dict[str, Tensor]:
        out = encode(state)
        return out | {"params": state.nets["decoder"](torch.cat([out["y"], out["z"]], dim=1))}

    def blurred(y: Tensor, state: State) -> Tensor:
        if not config.category_noise:
            return y
        noise = torch.randn(y.shape, generator=state.generator, device=y.device, dtype=y.dtype)
        return y + config.category_noise * noise

    def judge(state: State) -> dict[str, Tensor]:
        out, n = encode(state), len(state.batch["x"])
        y_prior = _categorical(n, categories, like=out["y"], generator=state.generator)
        z_prior = prior(n, latent, like=out["z"], generator=state.generator)
        categories_seen = blurred(torch.cat([y_prior, out["y"]]), state)
        for name, codes in (("category", categories_seen), ("style", torch.cat([z_prior, out["z"]]))):
            logits = state.nets[f"{name}_discriminator"](codes)
            out |= zip((f"{name}_prior_logits", f"{name}_logits"), logits.split(n), strict=True)
        return out

    def deceive(state: State) -> dict[str, Tensor]:
        out = encode(state)
        return out | {
            "category_logits": state.nets["category_discriminator"](blurred(out["y"], state)),
            "style_logits": state.nets["style_discriminator"](out["z"]),
        }

    loss = build_adversarial("non-saturating", real_label=config.real_label)

    def discriminator_loss(name: str) -> Callable[[State], Tensor]:
        return lambda state: loss.discriminator(state[f"{name}_prior_logits"], state[f"{name}_logits"])

    def encoder_loss(name: str) -> Callable[[State], Tensor]:
        return lambda state: loss.generator(state[f"{name}_logits"])

    def classification(state: State) -> Tensor:
        labelled = known(state["x"], config.labelled_fraction)
        cost = F.cross_entropy(state["logits"].float(), state.batch["y"], reduction="none")
        return torch.where(labelled, cost, 0.0).sum() / labelled.sum().clamp(min=1)

    weights = {"category": config.category_weight, "style": config.style_weight}
    phases = [
        Phase(
            "reconstruction",
            autoencode,
            (Term("reconstruction", distortion, to={"encoder": 1.0, "decoder": 1.0}),),
        ),
        Phase(
            "discriminators",
            judge,
            tuple(
                Term(f"{name}_adversarial_discriminator", discriminator_loss(name), to={f"{name}_discriminator": 1.0})
                for name in weights
            ),
        ),
        Phase(
            "regularization",
            deceive,
            tuple(
                Term(f"{name}_adversarial_encoder", encoder_loss(name), to={"encoder": weight})
                for name, weight in weights.items()
            ),
        ),
    ]
    if config.labelled_fraction:
        term = Term("classification", classification, to={"encoder": config.classification_weight})
        phases.append(Phase("classification", encode, (term,)))
    rate = config.learning_rate_code_discriminator
    training = Training(
        config.optimizer, config.learning_rate, config.beta1, config.beta2, config.clip_norm,
        {"category_discriminator": rate, "style_discriminator": rate},
    )  # fmt: skip
    players = {
        name: training.player(
            name, net, ema_half_life_examples=config.ema_half_life_examples if name == "decoder" else None
        )
        for name, net in nets.items()
    }
    return Recipe((Stage("train", Game(players, phases)),), spec, _abilities(categories, latent))


def _categories(config: Config, spec: Spec) -> int:
    require(config.category_noise >= 0, f"category_noise is {config.category_noise}; it starts at 0")
    require(
        0 <= config.labelled_fraction <= 1,
        f"labelled_fraction is {config.labelled_fraction}; give a part of the examples, 0 to 1",
    )
    if not config.labelled_fraction:
        categories = 16 if config.clusters is None else config.clusters
        require(categories >= 2, f"clusters is {categories}; it starts at 2")
        return categories
    if spec.classes is None:
        raise InputError("labelled_fraction is above 0, but this data has no labels; use aae-clustering")
    require(
        config.clusters in (None, spec.classes),
        f"clusters is {config.clusters}, but the known labels have {spec.classes} classes; leave --clusters out",
    )
    require(spec.classes >= 2, "this data has a single class; there is nothing to classify")
    return spec.classes


def _categorical(n: int, categories: int, *, like: Tensor, generator: torch.Generator) -> Tensor:
    """One-hot draws (n, categories), all categories equally likely."""
    y = torch.randint(categories, (n,), generator=generator, device=generator.device)
    return F.one_hot(y, categories).to(like.dtype)


def _abilities(categories: int, latent: int) -> dict[str, Callable[..., Any]]:
    def draw(nets: nn.ModuleDict, n: int, *, generator: torch.Generator) -> Tensor:
        like = next(nets["decoder"].parameters())
        y = _categorical(n, categories, like=like, generator=generator)
        return torch.cat([y, prior(n, latent, like=like, generator=generator)], dim=1)

    def encode(nets: nn.ModuleDict, x: Tensor, *, y: Tensor | None = None) -> Tensor:
        out = nets["encoder"](x)
        return torch.cat([out[:, :categories].softmax(dim=1), out[:, categories:]], dim=1)

    def decode(nets: nn.ModuleDict, z: Tensor, *, y: Tensor | None = None) -> Tensor:
        return likelihood_of(nets).mean(nets["decoder"](z))

    return {
        "prior": draw,
        "encode": encode,
        "decode": decode,
        "reconstruct": lambda nets, x, *, y=None: decode(nets, encode(nets, x)),
        "sample": lambda nets, n, *, y=None, generator: decode(nets, draw(nets, n, generator=generator)),
        "classify": lambda nets, x, *, y=None: encode(nets, x)[:, :categories],
    }
