"""Soft-IntroVAE (Daniel & Tamar 2021, "Soft-IntroVAE: Analyzing and Improving the Introspective Variational
Autoencoder").

IntroVAE without the margin: the encoder lowers the whole evidence bound of fakes, not only their KL, through an
exponential that lets go of fakes whose bound is low already. Fakes are reconstructions x_r = G(z) and samples
x_p = G(z_p), rec(x) = ‖x - G(z)‖² with z ~ q(z|x), and s is one over the data's number of values, so that the
exponential does not vanish on large images (their eq. 7 and algorithm 1 with reconstructions as fakes):

    encoder    s (β_rec rec(x) + β_kl KL(x))  +  ¼ Σ_{f=r,p} exp( -2 s (β_rec rec(sg[x_f]) + β_neg KL(sg[x_f])) )
    decoder    s (β_rec rec(x) + β_kl ½ Σ_{f=r,p} KL(x_f))

Routing:

    term                          encoder       decoder
    phase encoder
      reconstruction_encoder  +0.00510204             ·
      kl_real                 +0.00127551             ·
      exp_elbo_rec                  +0.25             ·
      exp_elbo_fake                 +0.25             ·
    phase decoder
      reconstruction_decoder            ·   +0.00510204
      kl_rec                            ·  +0.000637755
      kl_fake                           ·  +0.000637755

The numbers are s = 1/784, its half and four times it, for images of 28×28.

`exp_elbo_*` are the means of the exponentials, in (0, 1]. sg[x_r] is part of the mathematics: x_r depends on the
encoder through its code. `elbo` is that of p(x|z) = N(G(z), β_kl / (2 β_rec) · I), whose rate and distortion the
objective on data weighs.

`vae_examples` trains an ordinary VAE first. `soft-intro-vae-2d` has the released networks and settings for eight
Gaussians in the plane.

Deviations: the decoder's phase draws z and z_p anew, with the encoder that has just moved; the released code keeps
both. That code also trains the decoder on reconstructing its fakes, with a weight of 1e-8 for two more calls of the
decoder; left out here. Networks size themselves to the data.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from twofold.autoencoders import Codes, Prior, latent_of
from twofold.coefficients import Ramp
from twofold.game import Coefficient, Stage, State, Term
from twofold.introspection import (
    PLAYERS,
    Introspection,
    introspective_abilities,
    introspective_game,
    introspective_networks,
    rate_of,
)
from twofold.recipe import Recipe, option, require
from twofold.spec import Spec
from twofold.terms.matching import squared_error


@dataclass(frozen=True)
class Config:
    latent: int | None = option(None, "size of the code z; none: 16, or the data's number of values if that is less")
    beta_rec: float = option(4.0, "β_rec: weight of the summed squared error, of data and of fakes")
    beta_kl: float = option(1.0, "β_kl: weight of the KL of data, and of fakes in the decoder's phase")
    beta_neg: float = option(8.0, "β_neg: weight of the KL of fakes inside the exponential")
    scale: float | None = option(None, "s: scale of the whole objective; none: 1 / number of values")
    vae_examples: int = option(0, "examples of an ordinary VAE before the encoder begins to judge")
    arch: str = option("conv", "networks for images; vectors always get an MLP", choices=("conv", "mlp"))
    width: int | None = option(
        None, "channels of the first convolution (none: 32) or units of an MLP's layers (none: 256)"
    )
    depth: int = option(2, "hidden layers of an MLP")
    hidden: int = option(256, "units of a fully connected layer between convolutions and head; 0: none")
    norm: str = option("batch", "normalisation in the decoder", choices=("batch", "group", "layer", "none"))
    norm_encoder: str = option("none", "the same in the encoder", choices=("batch", "group", "layer", "none"))
    learning_rate: float = option(5e-4, "Adam's learning rate of the encoder")
    learning_rate_decoder: float | None = option(None, "of the decoder; none: the same")
    beta1: float = option(0.9, "Adam's β₁")
    beta2: float = option(0.999, "Adam's β₂")
    clip_norm: float | None = option(None, "largest norm of each network's gradient")
    ema_half_life_examples: float | None = option(None, "sample from an average of the decoder with this half-life")
    conditional: bool = option(False, "condition encoder and decoder on the labels")


def plane() -> Config:
    """The released recipe for eight Gaussians in the plane: four layers of 256 units, two latent dimensions, β_rec 0.2,
    β_kl 0.3, β_neg 0.9, Adam at 2e-4, 2,000 of 30,000 batches of 512 as a VAE. Its rate also falls tenfold after 10,000
    and 15,000 batches; here it stays."""
    return Config(
        latent=2, beta_rec=0.2, beta_kl=0.3, beta_neg=0.9, scale=0.5, vae_examples=2000 * 512, arch="mlp", depth=4,
        norm="none", learning_rate=2e-4,
    )  # fmt: skip


def build(config: Config, spec: Spec) -> Recipe:
    """The recipe for data that looks like `spec`."""
    for name in ("beta_rec", "beta_kl", "beta_neg"):
        require(getattr(config, name) > 0, f"{name} is {getattr(config, name)}; it must be above 0")
    require(config.vae_examples >= 0, f"vae_examples is {config.vae_examples}; it starts at 0")
    scale = 1 / spec.size if config.scale is None else config.scale
    require(scale > 0, f"scale is {scale}; it must be above 0")
    codes = Codes(Prior(latent_of(config.latent, 16, spec)), labelled=frozenset(PLAYERS if config.conditional else ()))

    def later(weight: float) -> Coefficient:
        """The weight, once the ordinary VAE's time is over."""
        return Ramp(0.0, weight, 1, begin=config.vae_examples) if config.vae_examples else weight

    def reconstruction(state: State) -> Tensor:
        return squared_error(state["x_rec"], state["x"]).mean()

    def exp_elbo(kind: str) -> Term:
        def loss(state: State) -> Tensor:
            distance = squared_error(state[f"x_{kind}_rec"], state[f"x_{kind}_shown"])
            bound = config.beta_rec * distance + config.beta_neg * rate_of(state, kind)
            return (-2 * scale * bound).exp().mean()

        return Term(f"exp_elbo_{kind}", loss, to={"encoder": later(0.25)})

    def kl(kind: str, player: str, weight: Coefficient) -> Term:
        return Term(f"kl_{kind}", lambda s: rate_of(s, kind).mean(), to={player: weight})

    game = introspective_game(
        config,
        introspective_networks(config, spec, codes.prior.latent),
        Introspection(codes, again=True),
        encoder_terms=(
            Term("reconstruction_encoder", reconstruction, to={"encoder": scale * config.beta_rec}),
            kl("real", "encoder", scale * config.beta_kl),
            exp_elbo("rec"),
            exp_elbo("fake"),
        ),
        decoder_terms=(
            Term("reconstruction_decoder", reconstruction, to={"decoder": scale * config.beta_rec}),
            kl("rec", "decoder", later(scale * config.beta_kl / 2)),
            kl("fake", "decoder", later(scale * config.beta_kl / 2)),
        ),
    )
    abilities = introspective_abilities(codes, variance=config.beta_kl / (2 * config.beta_rec))
    return Recipe((Stage("train", game),), spec, abilities, config.conditional)
