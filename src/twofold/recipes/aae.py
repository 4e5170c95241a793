"""Adversarial autoencoder (Makhzani et al. 2015, "Adversarial Autoencoders").

An autoencoder whose codes are made to follow a prior p(z), any that can be drawn from, by a discriminator D that says
how probably a code came from it. On every batch (their section 2):

    reconstruction         encoder and decoder minimise -log p(x|z), by default ½ ‖x - x_rec‖² and a constant
    code discriminator     D minimises -log D(z') - log(1 - D(z)), z' ~ p(z), z ~ q(z|x)
    regularization         the encoder minimises -log D(z)

Routing:

    term                              encoder  decoder  code_discriminator
    phase reconstruction
      reconstruction                       +1       +1                   ·
    phase code_discriminator
      code_adversarial_discriminator        ·        ·                  +1
    phase regularization
      code_adversarial_encoder             +1        ·                   ·

The posterior (section 2.1): deterministic z = E(x); `--posterior normal`, a reparameterised Normal; `--posterior
implicit`, z = E(x, ε), their universal approximator. The prior: N(0, std²), U(-1, 1), or in the plane a mixture of
ten Gaussians drawn out like petals and a swiss roll, their figure 4 (`--prior mixture --latent 2`).

`--conditional` gives D the label of each code, one-hot. With the mixture or the roll the label also chooses the part
from which the prior is drawn, so that every class is led to its own region, while encoder and decoder see no labels
(section 2.3). With other priors the code is made independent of the label and the decoder sees it beside the code
(their supervised autoencoder), so that z holds the style.

Deviations: one Adam serves the encoder in both of its phases, where the paper has SGD for each; `--code-weight` is
what is left of their ratio. Networks size themselves to the data. The paper prints no numbers for its priors in the
plane; ours are in `latents.petals` and `latents.swiss_roll`. `aae-paper` has the networks of its likelihood experiment
on MNIST. Categories beside the style are `aae-clustering` and `aae-semi-supervised`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from twofold.autoencoders import (
    CODE_PRIORS,
    OPTIMIZERS,
    POSTERIORS,
    CodeCritic,
    Codes,
    Prior,
    Row,
    Training,
    build_code_discriminator,
    build_posterior,
    latent_of,
    network_sizes,
    phase,
    require_room,
)
from twofold.game import Game, Stage, Term
from twofold.nets.build import build_decoder
from twofold.recipe import Recipe, option, require
from twofold.rollouts import LikelihoodDecoder, classes_for, distortion
from twofold.spec import Spec
from twofold.terms.adversarial import build_adversarial
from twofold.terms.likelihood import build_likelihood


@dataclass(frozen=True)
class Config:
    latent: int | None = option(None, "size of the code z; none: 8, or the data's number of values if that is less")
    posterior: str = option("deterministic", "q(z|x): z = E(x), E(x, ε) or a Normal's draw", choices=POSTERIORS)
    prior: str = option("normal", "p(z); mixture and swiss-roll lie in the plane", choices=CODE_PRIORS)
    prior_std: float = option(1.0, "standard deviation of the normal prior")
    likelihood: str = option(
        "normal", "the reconstruction's cost, as p(x|z) of scale 1", choices=("normal", "laplace", "bernoulli")
    )
    reconstruction_weight: float = option(1.0, "weight of the reconstruction, which is summed over values")
    code_weight: float = option(1.0, "weight of the encoder's adversarial term")
    code_plays: int = option(1, "plays of the code discriminator, on fresh batches, to one of the others")
    real_label: float = option(1.0, "the discriminator's target for the prior; below 1: one-sided label smoothing")
    arch: str = option("conv", "networks for images; vectors always get an MLP", choices=("conv", "mlp"))
    width: int | None = option(
        None, "channels of the first convolution (none: 32) or units of an MLP's layers (none: 256)"
    )
    depth: int = option(2, "hidden layers of an MLP")
    hidden: int = option(256, "units of a fully connected layer between convolutions and head; 0: none")
    norm: str = option("batch", "normalisation in encoder and decoder", choices=("batch", "group", "layer", "none"))
    spectral: bool = option(False, "spectral normalisation of the discriminator (Miyato et al. 2018)")
    code_width: int = option(256, "units of the discriminator's layers")
    code_depth: int = option(2, "hidden layers of the discriminator")
    optimizer: str = option("adam", "optimizer of all players", choices=OPTIMIZERS)
    learning_rate: float = option(5e-4, "learning rate of encoder and decoder")
    learning_rate_code_discriminator: float | None = option(None, "of the discriminator; none: the same")
    beta1: float = option(0.5, "Adam's β₁")
    beta2: float = option(0.999, "Adam's β₂")
    clip_norm: float | None = option(None, "largest norm of each network's gradient")
    ema_half_life_examples: float | None = option(None, "sample from an average of the decoder with this half-life")
    conditional: bool = option(False, "show the labels to the discriminator, and to prior or decoder")


def paper() -> Config:
    """The MNIST network of their likelihood table: two layers of 1,000 ReLU units everywhere, 8 linear codes under
    N(0, 5²). Adam at 2e-4 stands for their SGD, whose rates of 0.01 and 0.1 for the two phases belong to two optimizers
    of one encoder; with momentum 0.9 and one optimizer they diverge."""
    return Config(
        latent=8, prior_std=5.0, arch="mlp", width=1000, depth=2, norm="none", code_width=1000, code_depth=2,
        learning_rate=2e-4,
    )  # fmt: skip


def build(config: Config, spec: Spec) -> Recipe:
    """The recipe for data that looks like `spec`."""
    require(config.reconstruction_weight > 0, f"reconstruction_weight is {config.reconstruction_weight}, not above 0")
    require(config.code_weight >= 0, f"code_weight is {config.code_weight}; it starts at 0")
    require(config.code_plays >= 1, f"code_plays is {config.code_plays}; it starts at 1")
    classes = classes_for(spec, config.conditional)
    latent = latent_of(config.latent, 8, spec)
    require_room(latent, config.posterior, spec)
    prior = Prior(latent, config.prior, config.prior_std, components=classes or 10)
    labelled = {"code_discriminator", "prior" if prior.labelled else "decoder"} if config.conditional else ()
    codes = Codes(prior, config.posterior, frozenset(labelled))

    sizes: dict[str, Any] = network_sizes(config, spec) | {"norm": config.norm}
    likelihood = build_likelihood(config.likelihood, bounded=spec.kind == "image", scale="fixed")
    decoder = build_decoder(
        spec, latent, outputs=likelihood.outputs(spec.shape[0]),
        classes=classes if "decoder" in labelled else None, **sizes,
    )  # fmt: skip
    nets = {
        "encoder": build_posterior(config.posterior, spec, latent, **sizes),
        "decoder": LikelihoodDecoder(decoder, likelihood),
        "code_discriminator": build_code_discriminator(
            latent, width=config.code_width, depth=config.code_depth, classes=classes, spectral=config.spectral
        ),
    }

    critic = CodeCritic(build_adversarial("non-saturating", real_label=config.real_label))
    weight = config.reconstruction_weight
    reconstruction = Row(Term("reconstruction", distortion, to={"encoder": weight, "decoder": weight}), ("x_rec",))
    training = Training(
        config.optimizer, config.learning_rate, config.beta1, config.beta2, config.clip_norm,
        {"code_discriminator": config.learning_rate_code_discriminator},
    )  # fmt: skip
    game = Game(
        players={
            name: training.player(
                name, net, ema_half_life_examples=config.ema_half_life_examples if name == "decoder" else None
            )
            for name, net in nets.items()
        },
        phases=(
            phase("reconstruction", codes, (reconstruction,)),
            phase("code_discriminator", codes, (critic.discriminator(),), repeats=config.code_plays),
            phase("regularization", codes, (critic.encoder(config.code_weight),)),
        ),
    )
    return Recipe((Stage("train", game),), spec, codes.abilities(), config.conditional)
