"""The catalogue: every recipe by name, without importing one. A recipe's module is imported when it is built.

A name is a module of this package and, for a paper's variant, a function of that module which returns its Config.
The package is callable: `twofold.recipes()` lists what there is.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from twofold.errors import InputError, unknown
from twofold.spec import Spec

if TYPE_CHECKING:
    from twofold.recipe import Recipe

EXPLICIT, IMPLICIT, HYBRID, TRANSLATION = "explicit", "implicit", "hybrid", "translation"
FAMILIES = (EXPLICIT, IMPLICIT, HYBRID, TRANSLATION)
ANY = ("image", "vector")
PAIRS = ("image-pair", "vector-pair")
GENERATE = ("sample", "decode", "interpolate")
DRAW = ("sample", "complete", "log_prob")
AUTOENCODE = ("sample", "encode", "decode", "reconstruct", "interpolate")


@dataclass(frozen=True)
class Entry:
    """One line of `twofold recipes`."""

    name: str
    family: str
    """"explicit" (a likelihood), "implicit" (a critic), "hybrid" (both) or "translation" (from pairs of data)."""
    paper: str
    year: int
    data_kinds: tuple[str, ...]
    abilities: tuple[str, ...]
    summary: str
    module: str
    preset: str = "Config"
    """The function of the module, or its Config class, that makes this recipe's default Config."""
    side: int | None = None
    """The side of the square images that a paper's networks are made for; None: any size."""

    def to_json(self) -> dict[str, Any]:
        """The record of `twofold recipes --json`."""
        record = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {k: record[k] for k in ("name", "family", "paper", "year", "data_kinds", "abilities")}


ENTRIES = (
    Entry(
        "vae", EXPLICIT, "Kingma & Welling, Auto-Encoding Variational Bayes", 2014, ANY,
        (*AUTOENCODE, "elbo", "iw_bound"), "encoder and decoder by the evidence lower bound", "vae",
    ),
    Entry(
        "vae-paper", EXPLICIT, "Kingma & Welling, the MNIST model", 2014, ("image",), (*AUTOENCODE, "elbo", "iw_bound"),
        "500 tanh units, Bernoulli, Adagrad", "vae", "paper",
    ),
    Entry(
        "beta-vae", EXPLICIT, "Higgins et al., beta-VAE: Learning Basic Visual Concepts", 2017, ANY,
        (*AUTOENCODE, "elbo", "iw_bound"), "the VAE with its KL weighted by β, or held at a capacity", "beta_vae",
    ),
    Entry(
        "beta-vae-paper", EXPLICIT, "Higgins et al., the sprites model", 2017, ANY,
        (*AUTOENCODE, "elbo", "iw_bound"), "fully connected, 1,200 units a layer, Adagrad", "beta_vae", "paper",
    ),
    Entry(
        "iwae", EXPLICIT, "Burda et al., Importance Weighted Autoencoders", 2016, ANY,
        (*AUTOENCODE, "elbo", "iw_bound"), "the VAE's networks by a tighter bound from k draws", "iwae",
    ),
    Entry(
        "iwae-paper", EXPLICIT, "Burda et al., with one stochastic layer on binarised MNIST", 2016, ("image",),
        (*AUTOENCODE, "elbo", "iw_bound"), "784-200-200-50, tanh, k = 50, rate falling in stages", "iwae", "paper",
    ),
    Entry(
        "vq-vae", EXPLICIT, "van den Oord et al., Neural Discrete Representation Learning", 2017, ANY,
        (*AUTOENCODE, "elbo"), "codes from a learned codebook, straight-through gradients", "vq_vae",
    ),
    Entry(
        "vq-vae-paper", EXPLICIT, "van den Oord et al., the CIFAR-10 model", 2017, ANY, (*AUTOENCODE, "elbo"),
        "256 units, 512 codes", "vq_vae", "paper",
    ),
    Entry(
        "vq-vae-released", EXPLICIT, "van den Oord et al., as their released example trains it", 2017, ANY,
        (*AUTOENCODE, "elbo"), "the codebook as moving averages, 128 units, 512 codes", "vq_vae", "released",
    ),
    Entry(
        "vq-vae-2", EXPLICIT, "Razavi et al., Generating Diverse High-Fidelity Images with VQ-VAE-2", 2019, ("image",),
        (*AUTOENCODE, "complete", "elbo", "rate"), "codes on two levels, then a prior for each", "vq_vae_2",
    ),
    Entry(
        "gan", IMPLICIT, "Goodfellow et al., Generative Adversarial Nets", 2014, ANY, GENERATE,
        "generator against discriminator, non-saturating", "gan",
    ),
    Entry(
        "lsgan", IMPLICIT, "Mao et al., Least Squares Generative Adversarial Networks", 2017, ANY, GENERATE,
        "least-squares targets instead of cross-entropy", "gan", "lsgan",
    ),
    Entry(
        "wgan", IMPLICIT, "Arjovsky et al., Wasserstein GAN", 2017, ANY, GENERATE,
        "a critic with clipped weights, five plays to one", "gan", "wgan",
    ),
    Entry(
        "wgan-gp", IMPLICIT, "Gulrajani et al., Improved Training of Wasserstein GANs", 2017, ANY, GENERATE,
        "a critic held to unit gradients by a penalty", "gan", "wgan_gp",
    ),
    Entry(
        "dcgan", IMPLICIT, "Radford et al., Unsupervised Representation Learning with DCGANs", 2016, ("image",),
        GENERATE, "the GAN with strided convolutions and BatchNorm", "dcgan",
    ),
    Entry(
        "dcgan-paper", IMPLICIT, "Radford et al., the 64×64 networks", 2016, ("image",), GENERATE,
        "128 to 1,024 channels", "dcgan", "paper",
    ),
    Entry(
        "infogan", IMPLICIT, "Chen et al., InfoGAN: Interpretable Representation Learning", 2016, ANY,
        (*GENERATE, "classify"), "a GAN whose examples tell the codes they were made from", "infogan",
    ),
    Entry(
        "infogan-paper", IMPLICIT, "Chen et al., the MNIST model", 2016, ("image",), (*GENERATE, "classify"),
        "62 noise values, one code of 10 values, two continuous codes", "infogan", "paper",
    ),
    Entry(
        "vae-gan", HYBRID, "Larsen et al., Autoencoding beyond pixels using a learned similarity metric", 2016, ANY,
        AUTOENCODE, "a VAE whose likelihood is a layer of the GAN's discriminator", "vae_gan",
    ),
    Entry(
        "vae-gan-paper", HYBRID, "Larsen et al., the networks for 64×64 images", 2016, ("image",), AUTOENCODE,
        "128 codes, features of 256 maps of 8×8", "vae_gan", "paper", side=64,
    ),
    Entry(
        "vae-gan-released", HYBRID, "Larsen et al., as their released scripts train it", 2016, ANY, AUTOENCODE,
        "no reconstructions for the discriminator, equilibrium rule, decaying rate", "vae_gan", "released",
    ),
    Entry(
        "vqgan", HYBRID, "Esser et al., Taming Transformers for High-Resolution Image Synthesis", 2021, ("image",),
        (*AUTOENCODE, "complete", "rate"),
        "codes whose decoder faces a discriminator of patches, then a Transformer on them",
        "vqgan",
    ),
    Entry(
        "factor-vae", HYBRID, "Kim & Mnih, Disentangling by Factorising", 2018, ANY,
        (*AUTOENCODE, "elbo", "iw_bound"), "a VAE with independent code dimensions, by a critic of codes", "factor_vae",
    ),
    Entry(
        "factor-vae-paper", HYBRID, "Kim & Mnih, the 2D Shapes model", 2018, ("image",),
        (*AUTOENCODE, "elbo", "iw_bound"),
        "64×64 networks, a critic of six layers of 1,000 units, γ = 35", "factor_vae", "paper", side=64,
    ),
    Entry(
        "alpha-gan", HYBRID, "Rosca et al., Variational Approaches for Auto-Encoding Generative Adversarial Networks",
        2017, ANY, AUTOENCODE, "a discriminator of data and one of codes in place of likelihood and KL", "alpha_gan",
    ),
    Entry(
        "alpha-gan-paper", HYBRID, "Rosca et al., a port's networks for 64×64 images", 2017, ("image",), AUTOENCODE,
        "128 codes, 64 to 1,024 channels, a code critic of 3 × 750 units", "alpha_gan", "paper", side=64,
    ),
    Entry(
        "aae", HYBRID, "Makhzani et al., Adversarial Autoencoders", 2015, ANY, AUTOENCODE,
        "an autoencoder whose codes follow any prior, by a discriminator of codes", "aae",
    ),
    Entry(
        "aae-paper", HYBRID, "Makhzani et al., with the networks of their likelihood table", 2015, ANY, AUTOENCODE,
        "two layers of 1,000 units, 8 codes under N(0, 5²)", "aae", "paper",
    ),
    Entry(
        "aae-clustering", HYBRID, "Makhzani et al., unsupervised clustering", 2015, ANY, (*AUTOENCODE, "classify"),
        "category and style by two discriminators of codes", "aae_categorical",
    ),
    Entry(
        "aae-semi-supervised", HYBRID, "Makhzani et al., classification with few labels", 2015, ANY,
        (*AUTOENCODE, "classify"), "the same, with some labels known", "aae_categorical", "semi_supervised",
    ),
    Entry(
        "wae-gan", HYBRID, "Tolstikhin et al., Wasserstein Auto-Encoders", 2018, ANY, AUTOENCODE,
        "transport cost, the aggregated posterior matched by a discriminator", "wae",
    ),
    Entry(
        "wae-gan-paper", HYBRID, "Tolstikhin et al., the widths of their 64×64 networks", 2018, ("image",), AUTOENCODE,
        "128 to 1,024 channels, 64 codes under N(0, 2)", "wae", "paper",
    ),
    Entry(
        "wae-mmd", EXPLICIT, "Tolstikhin et al., algorithm 2", 2018, ANY, AUTOENCODE,
        "the same, matched by the maximum mean discrepancy", "wae", "mmd_variant",
    ),
    Entry(
        "ali", HYBRID, "Dumoulin et al., Adversarially Learned Inference", 2017, ANY, AUTOENCODE,
        "encoder and decoder as two joints that one discriminator of pairs compares", "ali",
    ),
    Entry(
        "ali-paper", HYBRID, "Dumoulin et al., the CIFAR-10 model", 2017, ("image",), AUTOENCODE,
        "their table of networks, 64 codes, maxout and dropout in the discriminator", "ali", "paper", side=32,
    ),
    Entry(
        "bigan", HYBRID, "Donahue et al., Adversarial Feature Learning", 2017, ANY, AUTOENCODE,
        "the same with an encoder without noise", "bigan",
    ),
    Entry(
        "bigan-paper", HYBRID, "Donahue et al., permutation-invariant MNIST", 2017, ANY, AUTOENCODE,
        "two layers of 1,024 units, 50 codes under U(-1, 1)", "bigan", "paper",
    ),
    Entry(
        "age", HYBRID, "Ulyanov et al., It Takes (Only) Two: Adversarial Generator-Encoder Networks", 2018, ANY,
        AUTOENCODE, "generator against encoder, by the moments of batches of codes", "age",
    ),
    Entry(
        "age-paper", HYBRID, "Ulyanov et al., the CIFAR-10 model", 2018, ("image",), AUTOENCODE,
        "the released networks, 128 codes on the sphere", "age", "paper", side=32,
    ),
    Entry(
        "intro-vae", HYBRID, "Huang et al., IntroVAE", 2018, ANY, (*AUTOENCODE, "elbo"),
        "a VAE whose encoder judges its samples by their KL, up to a margin", "intro_vae",
    ),
    Entry(
        "intro-vae-paper", HYBRID, "Huang et al., the released networks", 2018, ("image",), (*AUTOENCODE, "elbo"),
        "residual networks, 512 codes, margin 120", "intro_vae", "paper",
    ),
    Entry(
        "soft-intro-vae", HYBRID, "Daniel & Tamar, Soft-IntroVAE", 2021, ANY, (*AUTOENCODE, "elbo"),
        "the same by an exponential of the whole evidence bound", "soft_intro_vae",
    ),
    Entry(
        "soft-intro-vae-2d", HYBRID, "Daniel & Tamar, eight Gaussians in the plane", 2021, ANY,
        (*AUTOENCODE, "elbo"), "four layers of 256 units, at first an ordinary VAE", "soft_intro_vae", "plane",
    ),
    Entry(
        "pixelcnn", EXPLICIT, "van den Oord et al., Conditional Image Generation with PixelCNN Decoders", 2016,
        ("image",), DRAW, "pixel after pixel by gated convolutions, log p(x) exact", "pixelcnn",
    ),
    Entry(
        "pixelcnn-pp", EXPLICIT, "Salimans et al., PixelCNN++, its likelihood on the gated network", 2017, ("image",),
        DRAW, "the same, a pixel a mixture of discretised logistics", "pixelcnn", "plus_plus",
    ),
    Entry(
        "pixelgan", HYBRID, "Makhzani & Frey, PixelGAN Autoencoders", 2017, ("image",), AUTOENCODE,
        "an encoder, a PixelCNN for a decoder, a discriminator of codes", "pixelgan",
    ),
    Entry(
        "pixelgan-clustering", HYBRID, "Makhzani & Frey, a categorical code", 2017, ("image",),
        ("sample", "encode", "decode", "reconstruct", "interpolate", "classify"),
        "the same, the code one of K clusters", "pixelgan", "clustering",
    ),
    Entry(
        "pixelcnn-adv", HYBRID, "our own, without a paper: PixelCNN's likelihood and a critic of its samples", 2016,
        ("image",), DRAW, "the likelihood of PixelCNN, and a discriminator of what it draws", "pixelcnn_adv",
    ),
    Entry(
        "pix2pix", TRANSLATION, "Isola et al., Image-to-Image Translation with Conditional Adversarial Networks", 2017,
        PAIRS, ("translate",), "from pairs: L1 and a discriminator of patches that sees the input", "pix2pix",
    ),
    Entry(
        "pix2pix-l1", TRANSLATION, "Isola et al., ablation: L1 alone", 2017, PAIRS, ("translate",),
        "the same generator without a discriminator", "pix2pix", "l1",
    ),
    Entry(
        "pix2pix-gan", TRANSLATION, "Isola et al., ablation: GAN", 2017, PAIRS, ("translate",),
        "a discriminator that does not see the input, no L1", "pix2pix", "gan",
    ),
    Entry(
        "pix2pix-cgan", TRANSLATION, "Isola et al., ablation: cGAN", 2017, PAIRS, ("translate",),
        "the conditional discriminator, no L1", "pix2pix", "cgan",
    ),
    Entry(
        "pix2pix-l1-gan", TRANSLATION, "Isola et al., ablation: L1 + GAN", 2017, PAIRS, ("translate",),
        "L1 and a discriminator that does not see the input", "pix2pix", "l1_gan",
    ),
    Entry(
        "pix2pix-paper", TRANSLATION, "Isola et al., the networks for 256×256", 2017, ("image-pair",), ("translate",),
        "64 to 512 channels, 8 halvings, patches of 70 pixels", "pix2pix", "paper",
    ),
    Entry(
        "cyclegan", TRANSLATION, "Zhu et al., Unpaired Image-to-Image Translation using Cycle-Consistency", 2017, PAIRS,
        ("translate", "translate_back"), "without pairs: there and back again, two discriminators", "cyclegan",
    ),
    Entry(
        "cyclegan-cycle", TRANSLATION, "Zhu et al., ablation: cycles alone", 2017, PAIRS,
        ("translate", "translate_back"), "the generators without discriminators", "cyclegan", "cycle",
    ),
    Entry(
        "cyclegan-gan", TRANSLATION, "Zhu et al., ablation: GAN alone", 2017, PAIRS, ("translate", "translate_back"),
        "the discriminators without cycles", "cyclegan", "gan",
    ),
    Entry(
        "cyclegan-forward", TRANSLATION, "Zhu et al., ablation: GAN + forward cycle", 2017, PAIRS,
        ("translate", "translate_back"), "one cycle, from the input's side", "cyclegan", "forward",
    ),
    Entry(
        "cyclegan-backward", TRANSLATION, "Zhu et al., ablation: GAN + backward cycle", 2017, PAIRS,
        ("translate", "translate_back"), "one cycle, from the target's side", "cyclegan", "backward_cycle",
    ),
    Entry(
        "cyclegan-paper", TRANSLATION, "Zhu et al., the networks for 256×256", 2017, ("image-pair",),
        ("translate", "translate_back"), "64 channels, 9 residual blocks, patches of 70 pixels", "cyclegan", "paper",
    ),
    Entry(
        "bicycle-gan", TRANSLATION, "Zhu et al., Toward Multimodal Image-to-Image Translation", 2017, PAIRS,
        ("translate", "style"), "from pairs: many answers to one input, told apart by a style", "bicycle_gan",
    ),
    Entry(
        "cae-gan", TRANSLATION, "Zhu et al., part: cAE-GAN", 2017, PAIRS, ("translate", "style"),
        "styles from an encoder, without a prior", "bicycle_gan", "cae_gan",
    ),
    Entry(
        "cvae-gan", TRANSLATION, "Zhu et al., part: cVAE-GAN", 2017, PAIRS, ("translate", "style"),
        "styles from a variational encoder", "bicycle_gan", "cvae_gan",
    ),
    Entry(
        "clr-gan", TRANSLATION, "Zhu et al., part: cLR-GAN", 2017, PAIRS, ("translate", "style"),
        "styles from the prior, told again from the image", "bicycle_gan", "clr_gan",
    ),
    Entry(
        "cogan", TRANSLATION, "Liu & Tuzel, Coupled Generative Adversarial Networks", 2016, PAIRS,
        (*GENERATE, "couple"), "without pairs: two GANs with shared layers, one code gives a pair", "cogan",
    ),
    Entry(
        "hybrid", HYBRID, "VAE, AAE, VAE-GAN, α-GAN and what lies between them, composed by choices", 2017, ANY,
        (*AUTOENCODE, "elbo"), "match, likelihood, realism and who sees what, each an option", "hybrid",
    ),
)  # fmt: skip


def find(name: str) -> Entry:
    """The entry of that name. Raises `InputError` offering the nearest name."""
    by_name = {entry.name: entry for entry in ENTRIES}
    if not isinstance(name, str):
        raise InputError(f"recipe is {name!r}; give a name such as 'vae'")
    if name not in by_name:
        raise unknown("recipe", name, by_name)
    return by_name[name]


def default_config(entry: Entry) -> Any:
    """The recipe's Config with nothing changed. Imports its module, and torch with it."""
    return getattr(import_module(f"twofold.recipes.{entry.module}"), entry.preset)()


def build(name: str, spec: Spec, options: Mapping[str, Any] | None = None) -> tuple[Any, Recipe]:
    """The resolved Config and the recipe, networks initialised from torch's random state.

    Raises `InputError` for an unknown name or option, a value outside its range, or data of a kind it cannot take.
    """
    from twofold.recipe import configure

    entry = find(name)
    if spec.data_kind not in entry.data_kinds:
        hint = "; see --pairs and --side-by-side" if spec.input is None and entry.data_kinds[0].endswith("pair") else ""
        raise InputError(f"{name} takes {' or '.join(entry.data_kinds)} data; this data is {spec.data_kind}s{hint}")
    config = configure(default_config(entry), options or {})
    return config, import_module(f"twofold.recipes.{entry.module}").build(config, spec)


def listing() -> list[dict[str, Any]]:
    """[{name, family, paper, year, data_kinds, abilities}] of every recipe."""
    return [entry.to_json() for entry in ENTRIES]


class _Catalogue(ModuleType):
    """This package's module class, so that the verb `twofold.recipes()` and the package of that name can coexist."""

    def __call__(self) -> list[dict[str, Any]]:
        return listing()


sys.modules[__name__].__class__ = _Catalogue
