"""Bidirectional GAN (Donahue et al. 2017, "Adversarial Feature Learning").

A GAN with an encoder: the discriminator sees pairs of an example and a code, (x, E(x)) and (G(z), z), and says how
probably a pair came from the encoder (their eq. 2):

    min over E, G   max over D   E_x [ log D(x, E(x)) ]  +  E_z [ log(1 - D(G(z), z)) ],   z ~ p(z)

E and G are functions without noise, and at the optimum each other's inverse (their theorem 2). They minimise the
objective with both labels swapped (their section 3.4), -log(1 - D(x, E(x))) - log D(G(z), z); without reconstruction.

Routing:

    term                         encoder  decoder  discriminator
    phase discriminator (3 plays a step)
      adversarial_discriminator        ·        ·             +1
      r1_r2                            ·        ·          +0.01
    phase inference
      adversarial_inference           +1       +1              ·

The discriminator takes `critic_plays` steps, then encoder and generator (here `decoder`) one together;
`--order simultaneous` moves all three at once from the same pairs, as the released script does when the numbers of
plays are equal. The encoder's part of `adversarial_inference` does not depend on the decoder nor the decoder's on the
encoder, so one sum serves both.

`bigan-paper` has the networks of their permutation-invariant MNIST: two layers of 1,024 units everywhere and 50 codes
under U(-1, 1).

`--code-weight 0.25` adds ‖z - E(G(z))‖², which trains the encoder only: the latent regressor that the paper compares
with, here beside the game. Theirs is beside a GAN, and a cross-entropy for uniform codes.

Deviations: `bigan-paper` undoes these. Encoder and decoder are used as averages of their weights, as the last
weights of a short run undo each other badly. The discriminator's slope at its pairs is penalised (`r1_r2`), and it has
three plays and a higher rate: it has to see which code belongs to which image, not only that both look right. In all:
networks size themselves to the data. Adam has no weight decay, and its rate does not fall over the second half of the
run. The released networks lay the code beside the hidden layers of the discriminator too; here it is beside the image,
or beside its features where those are convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass

from twofold.autoencoders import Codes, Prior, latent_of, require_room
from twofold.game import Stage
from twofold.joint_inference import (
    LOSSES,
    ORDERS,
    PENALTIES,
    code_regression_terms,
    joint_game,
    joint_networks,
    labelled,
)
from twofold.recipe import Recipe, option
from twofold.rollouts import classes_for
from twofold.spec import Spec


@dataclass(frozen=True)
class Config:
    latent: int | None = option(None, "size of the code z; none: 6, or the data's number of values if that is less")
    prior: str = option("uniform", "p(z): U(-1, 1), N(0, I) or a sphere", choices=("uniform", "normal", "sphere"))
    loss: str = option(
        "non-saturating", "adversarial loss, both labels swapped for encoder and decoder", choices=LOSSES
    )
    real_label: float = option(1.0, "the discriminator's target for the encoder's pairs; below 1: label smoothing")
    order: str = option("alternating", "the discriminator and then the others, or all at once", choices=ORDERS)
    critic_plays: int = option(3, "plays of the discriminator, on fresh batches, to one of the others")
    arch: str = option("conv", "networks for images; vectors always get an MLP", choices=("conv", "mlp"))
    width: int | None = option(
        None, "channels of the first convolution (none: 32) or units of an MLP's layers (none: 256)"
    )
    depth: int = option(2, "hidden layers of an MLP")
    hidden: int = option(256, "units of a fully connected layer between convolutions and head")
    code_width: int = option(256, "features that the discriminator of images takes from a code")
    norm: str = option("batch", "normalisation in encoder and decoder", choices=("batch", "group", "layer", "none"))
    norm_discriminator: str = option(
        "none", "the same in the discriminator", choices=("batch", "group", "layer", "none")
    )
    penalty: str = option("r1-r2", "penalty on the slope of the discriminator, at all its pairs", choices=PENALTIES)
    penalty_weight: float = option(0.01, "weight of the penalty")
    code_weight: float = option(0.0, "weight of ‖z - E(G(z))‖², which trains the encoder: a joint latent regressor")
    spectral: bool = option(False, "spectral normalisation of the discriminator (Miyato et al. 2018)")
    learning_rate: float = option(1e-3, "Adam's learning rate of encoder and decoder")
    learning_rate_discriminator: float | None = option(2e-3, "of the discriminator; none: the same")
    beta1: float = option(0.5, "Adam's β₁")
    beta2: float = option(0.999, "Adam's β₂")
    clip_norm: float | None = option(None, "largest norm of each network's gradient")
    ema_half_life_examples: float | None = option(
        5000.0, "use averages of encoder and decoder with this half-life; none: the last weights"
    )
    conditional: bool = option(False, "condition all three networks on the labels")


def paper() -> Config:
    """Donahue et al. 2017, permutation-invariant MNIST: Adam (0.5, 0.999) at 2e-4, batches of 128, 200 epochs at that
    rate."""
    return Config(
        latent=50, critic_plays=1, arch="mlp", width=1024, norm_discriminator="batch", penalty="none",
        learning_rate=2e-4, learning_rate_discriminator=None, ema_half_life_examples=None,
    )  # fmt: skip


def build(config: Config, spec: Spec) -> Recipe:
    """The recipe for data that looks like `spec`."""
    classes = classes_for(spec, config.conditional)
    latent = latent_of(config.latent, 6, spec)
    require_room(latent, "deterministic", spec)
    codes = Codes(Prior(latent, config.prior), "deterministic", labelled(config.conditional))
    nets = joint_networks(config, spec, codes, classes=classes)
    more = code_regression_terms(config.code_weight, codes)
    game = joint_game(config, nets, codes, classes=classes, more=more)
    return Recipe((Stage("train", game),), spec, codes.abilities(), config.conditional)
