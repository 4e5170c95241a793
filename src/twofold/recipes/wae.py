"""Wasserstein autoencoder (Tolstikhin et al. 2018, "Wasserstein Auto-Encoders").

Minimises an optimal-transport distance between data and model, relaxed to a penalised autoencoder (their eq. 4):

    E_p(x) E_q(z|x) ‖x - G(z)‖²  +  λ · D_Z(q_Z, p_Z)
          reconstruction            match of the codes

The VAE draws every single posterior to the prior; here only their mixture q_Z, the aggregated posterior, has to match,
so that q may be deterministic. Two choices of D_Z:

- `wae-gan` (their algorithm 1): a discriminator of codes, as in the adversarial autoencoder. It minimises
  -log D(z') - log(1 - D(z)), z' ~ p(z); then encoder and decoder minimise the cost - λ log D(z) together.
- `wae-mmd` (algorithm 2): the squared maximum mean discrepancy with the inverse multiquadratic kernel; no critic.

Routing:

    term                              encoder  decoder  code_discriminator
    phase code_discriminator
      code_adversarial_discriminator        ·        ·                  +1
    phase autoencoder
      reconstruction                       +1       +1                   ·
      code_adversarial_encoder             +1        ·                   ·

With `--divergence mmd` there is one phase: reconstruction as here, and mmd with λ to the encoder.

Deviations: the kernel is a sum over scales around the paper's 2 · latent · σ², as in its released code; networks size
themselves to the data. The cost is summed over the values of an example, which the models see in [-1, 1]: twice the
paper's difference. `wae-gan-paper` has the widths of the CelebA networks, its decoder starting from 4×4, not 8×8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from twofold.autoencoders import (
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
    mmd_row,
    network_sizes,
    phase,
    require_room,
)
from twofold.game import Game, Stage, State, Term
from twofold.nets.build import build_decoder
from twofold.recipe import Recipe, option, require
from twofold.rollouts import Generator
from twofold.spec import Spec
from twofold.terms.adversarial import build_adversarial
from twofold.terms.divergence import KERNELS
from twofold.terms.matching import squared_error


@dataclass(frozen=True)
class Config:
    divergence: str = option("critic", "D_Z: a discriminator of codes, or MMD", choices=("critic", "mmd"))
    match_weight: float = option(1.0, "λ: weight of D_Z")
    kernel: str = option("imq", "the MMD's kernel", choices=KERNELS)
    latent: int | None = option(None, "size of the code z; none: 8, or the data's number of values if that is less")
    posterior: str = option("deterministic", "q(z|x): z = E(x), E(x, ε) or a Normal's draw", choices=POSTERIORS)
    prior_std: float = option(1.0, "σ of the prior N(0, σ²)")
    real_label: float = option(1.0, "the discriminator's target for the prior; below 1: one-sided label smoothing")
    arch: str = option("conv", "networks for images; vectors always get an MLP", choices=("conv", "mlp"))
    width: int | None = option(
        None, "channels of the first convolution (none: 32) or units of an MLP's layers (none: 256)"
    )
    max_width: int | None = option(None, "no convolution has more channels than this; none: 256, or width if more")
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


def mmd_variant() -> Config:
    """WAE-MMD: algorithm 2."""
    return Config(divergence="mmd", match_weight=10.0)


def paper() -> Config:
    """64×64: convolutions of 128, 256, 512 and 1,024 channels with BatchNorm, 64 codes under N(0, 2), λ = 1, a
    discriminator of four layers of 512 units, Adam at 3e-4 and for the discriminator at 1e-3."""
    return Config(
        match_weight=1.0, latent=64, prior_std=2**0.5, width=128, max_width=1024, hidden=0, code_width=512,
        code_depth=4, learning_rate=3e-4, learning_rate_code_discriminator=1e-3,
    )  # fmt: skip


def build(config: Config, spec: Spec) -> Recipe:
    """The recipe for data that looks like `spec`."""
    require(config.match_weight > 0, f"match_weight is {config.match_weight}; λ must be above 0")
    latent = latent_of(config.latent, 8, spec)
    require_room(latent, config.posterior, spec)
    codes = Codes(Prior(latent, std=config.prior_std), config.posterior)
    sizes: dict[str, Any] = network_sizes(config, spec) | {"norm": config.norm, "max_width": config.max_width}
    nets: dict[str, nn.Module] = {
        "encoder": build_posterior(config.posterior, spec, latent, **sizes),
        "decoder": Generator(build_decoder(spec, latent, outputs=spec.shape[0], **sizes), spec),
    }

    def cost(state: State) -> Tensor:
        return squared_error(state["x_rec"], state["x"]).mean()

    reconstruction = Row(Term("reconstruction", cost, to={"encoder": 1.0, "decoder": 1.0}), ("x_rec",))
    if config.divergence == "mmd":
        require(config.real_label == 1, f"real_label is {config.real_label}, but the MMD has no discriminator")
        match = mmd_row(config.match_weight, kernel=config.kernel, prior_std=config.prior_std)
        phases = [phase("autoencoder", codes, (reconstruction, match))]
    else:
        nets["code_discriminator"] = build_code_discriminator(
            latent, width=config.code_width, depth=config.code_depth, classes=None, spectral=config.spectral
        )
        critic = CodeCritic(build_adversarial("non-saturating", real_label=config.real_label))
        phases = [
            phase("code_discriminator", codes, (critic.discriminator(),)),
            phase("autoencoder", codes, (reconstruction, critic.encoder(config.match_weight))),
        ]
    training = Training(
        config.optimizer, config.learning_rate, config.beta1, config.beta2, config.clip_norm,
        {"code_discriminator": config.learning_rate_code_discriminator},
    )  # fmt: skip
    players = {
        name: training.player(
            name, net, ema_half_life_examples=config.ema_half_life_examples if name == "decoder" else None
        )
        for name, net in nets.items()
    }
    return Recipe((Stage("train", Game(players, phases)),), spec, codes.abilities())
