"""Adversarial generator-encoder networks (Ulyanov et al. 2018, "It Takes (Only) Two: Adversarial Generator-Encoder
Networks").

Encoder E and generator G (here `decoder`) without a discriminator: E brings codes of data to the prior and codes of
samples away from it, G brings the codes of its samples to the prior. How far a batch of codes is from the prior is
told by its own moments, with mean m and deviation s of every dimension over the batch (their eq. 7):

    KL(z)  =  Σ_j  ½ (m_j² + s_j² - 1) - log s_j

Codes lie on a sphere, and z is uniform there. Both networks minimise (their eqs. 8 and 9)

    encoder    KL(E(x)) - KL(E(sg[G(z)]))  +  μ ‖x - G(E(x))‖₁
    decoder    KL(E(G(z)))  +  λ (1 - cos(z, E(G(z))))

so the reconstruction of data trains the encoder only and that of codes the generator only.

Routing:

    term                    encoder  decoder
    phase encoder
      kl_real                    +1        ·
      kl_fake                    -1        ·
      reconstruction_data        +1        ·
    phase decoder (2 plays a step)
      kl_generated                ·       +1
      reconstruction_codes        ·      +30

At the equilibrium all three KLs are 0. The stop-gradient is routing here: G does not move in the encoder's phase, and
its samples do not depend on E.

Preset: `age-paper` has the released DCGAN networks, for images of 32×32, and the rest of the CIFAR-10 run.

Deviations: the sphere has radius √dims instead of 1, which moves every KL by the same constant, so that it is 0 at best
and not dims · ½ (log dims - 1 + 1/dims). The released code takes the variance where the deviation belongs, and averages
the KL over dimensions and L1 over values; ours are sums, and `age-paper` says what its weights become. The rate is not
halved on the way. By default norms are LayerNorm, which does not mix examples. Both networks are used as averages of
their weights (`--ema-half-life-examples none` is the paper). Networks size themselves to the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from twofold.autoencoders import Codes, Prior, Training, network_sizes
from twofold.game import Game, Phase, Stage, State, Term
from twofold.latents import onto_sphere
from twofold.nets.build import build_decoder, build_encoder
from twofold.nets.layers import norm_layer
from twofold.recipe import Recipe, option, require
from twofold.rollouts import Generator, classes_for
from twofold.spec import Spec
from twofold.terms.divergence import kl_moments
from twofold.terms.matching import cosine_distance, l1


@dataclass(frozen=True)
class Config:
    latent: int | None = option(None, "size of the code z; none: 8, or one more than the data has values if less")
    prior: str = option(
        "sphere", "p(z), and where codes lie: a sphere, or anywhere under N(0, I)", choices=("sphere", "normal")
    )
    data_weight: float = option(1.0, "μ: weight of the L1 distance of data, summed over values")
    code_weight: float = option(30.0, "λ: weight of 1 - cos of a code and its reconstruction")
    generator_plays: int = option(2, "plays of the generator, on fresh draws, to one of the encoder")
    arch: str = option(
        "conv", "networks for images; vectors always get an MLP; paper: 32×32 only", choices=("conv", "mlp", "paper")
    )
    width: int | None = option(
        None, "channels of the first convolution (none: 32) or units of an MLP's layers (none: 256)"
    )
    depth: int = option(2, "hidden layers of an MLP")
    hidden: int = option(256, "units of a fully connected layer between convolutions and head; 0: none")
    norm: str = option("layer", "normalisation in the generator", choices=("batch", "group", "layer", "none"))
    norm_encoder: str = option(
        "layer",
        "the same in the encoder; batch mixes the statistics of data and samples",
        choices=("batch", "group", "layer", "none"),
    )
    learning_rate: float = option(1e-3, "Adam's learning rate of the encoder")
    learning_rate_decoder: float | None = option(None, "of the generator; none: the same")
    beta1: float = option(0.5, "Adam's β₁")
    beta2: float = option(0.999, "Adam's β₂")
    clip_norm: float | None = option(None, "largest norm of each network's gradient")
    ema_half_life_examples: float | None = option(
        5000.0, "use averages of encoder and generator with this half-life; none: the last weights"
    )
    conditional: bool = option(False, "condition both networks on the labels")


def paper() -> Config:
    """The released CIFAR-10 run: 128 latent dimensions, Adam (0.5, 0.999) at 2e-4, batches of 64. With KL and L1 as
    means its weights are 10 and 1,000, the latter of a mean over batch and dimensions; here everything is multiplied by
    the 128 dimensions."""
    return Config(
        latent=128, data_weight=10 * 128 / (3 * 32 * 32), code_weight=1000.0, arch="paper", norm="batch",
        norm_encoder="batch", learning_rate=2e-4, ema_half_life_examples=None,
    )  # fmt: skip


class OntoSphere(nn.Module):
    """A network whose outputs are moved onto the sphere."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return onto_sphere(self.net(x, y))


def build(config: Config, spec: Spec) -> Recipe:
    """The recipe for data that looks like `spec`."""
    for name in ("data_weight", "code_weight"):
        require(getattr(config, name) >= 0, f"{name} is {getattr(config, name)}; it starts at 0")
    classes = classes_for(spec, config.conditional)
    latent = min(8, spec.size + 1) if config.latent is None else config.latent
    players = ("encoder", "decoder")
    codes = Codes(Prior(latent, config.prior), "deterministic", frozenset(players if config.conditional else ()))
    nets = _paper_networks(config, spec, latent) if config.arch == "paper" else _networks(config, spec, latent, classes)
    if config.prior == "sphere":
        nets["encoder"] = OntoSphere(nets["encoder"])

    def judge(state: State) -> dict[str, Tensor]:
        """Codes of data and of samples, and the data decoded again."""
        out = codes.rollout(state, wants=frozenset(("x_rec", "x_fake")))
        return out | {"z_fake": state.nets["encoder"](out["x_fake"], codes.labels(state, "encoder"))}

    def make(state: State) -> dict[str, Tensor]:
        """Samples and their codes."""
        out = codes.rollout(state, wants=frozenset(("x_fake",)))
        return out | {"z_fake": state.nets["encoder"](out["x_fake"], codes.labels(state, "encoder"))}

    training = Training(
        "adam", config.learning_rate, config.beta1, config.beta2, config.clip_norm,
        {"decoder": config.learning_rate_decoder},
    )  # fmt: skip
    ema = dict.fromkeys(players, config.ema_half_life_examples)
    game = Game(
        players={name: training.player(name, nets[name], ema_half_life_examples=ema.get(name)) for name in players},
        phases=(
            Phase(
                "encoder",
                judge,
                (
                    Term("kl_real", lambda s: kl_moments(s["z"]), to={"encoder": 1.0}),
                    Term("kl_fake", lambda s: kl_moments(s["z_fake"]), to={"encoder": -1.0}),
                    Term(
                        "reconstruction_data",
                        lambda s: l1(s["x_rec"], s["x"]).mean(),
                        to={"encoder": config.data_weight},
                    ),
                ),
            ),
            Phase(
                "decoder",
                make,
                (
                    Term("kl_generated", lambda s: kl_moments(s["z_fake"]), to={"decoder": 1.0}),
                    Term(
                        "reconstruction_codes",
                        lambda s: cosine_distance(s["z_fake"], s["z_prior"]).mean(),
                        to={"decoder": config.code_weight},
                    ),
                ),
                repeats=config.generator_plays,
            ),
        ),
    )
    return Recipe((Stage("train", game),), spec, codes.abilities(), config.conditional)


def _networks(config: Config, spec: Spec, latent: int, classes: int | None) -> dict[str, nn.Module]:
    sizes: dict[str, Any] = network_sizes(config, spec) | {"classes": classes}
    return {
        "encoder": build_encoder(spec, latent, norm=config.norm_encoder, activation="leaky", **sizes),
        "decoder": Generator(build_decoder(spec, latent, outputs=spec.shape[0], norm=config.norm, **sizes), spec),
    }


# The released networks.


def _paper_networks(config: Config, spec: Spec, latent: int) -> dict[str, nn.Module]:
    require(
        spec.kind == "image" and spec.shape[1:] == (32, 32),
        f"the paper's networks are for images of 32×32 and this data is {spec.kind}s of "
        f"{'×'.join(map(str, spec.shape))}; use --arch conv, or resize with --size 32",
    )
    require(not config.conditional, "the paper's networks take no labels; use --arch conv with --conditional")
    channels, width = spec.shape[0], config.width or 64
    return {
        "encoder": PaperEncoder(channels, latent, width, config.norm_encoder),
        "decoder": Generator(PaperDecoder(channels, latent, width, config.norm), spec),
    }


class PaperEncoder(nn.Module):
    """(batch, channels, 32, 32) → (batch, latent): 4×4 convolutions with stride 2 of 1, 2 and 4 times `width` channels,
    a last one onto the code, and the average of its 2×2 places. The first is not normalised."""

    def __init__(self, channels: int, latent: int, width: int, norm: str):
        super().__init__()
        layers: list[nn.Module] = []
        for number, units in enumerate((width, 2 * width, 4 * width)):
            kind = norm if number else "none"
            layers += [nn.Conv2d(channels, units, 4, 2, 1, bias=False), norm_layer(kind, units, spatial=True)]
            layers += [nn.LeakyReLU(0.2)]
            channels = units
        self.net = nn.Sequential(*layers, nn.Conv2d(channels, latent, 4, 2, 1), nn.AvgPool2d(2), nn.Flatten())

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.net(x)


class PaperDecoder(nn.Module):
    """(batch, latent) → (batch, channels, 32, 32) before any squashing: transposed 4×4 convolutions of 8, 4, 2 and 2
    times `width` channels, all but the first with stride 2, and a 1×1 convolution onto the image."""

    def __init__(self, channels: int, latent: int, width: int, norm: str):
        super().__init__()
        layers: list[nn.Module] = [nn.Unflatten(1, (latent, 1, 1))]
        before = latent
        for number, units in enumerate((8 * width, 4 * width, 2 * width, 2 * width)):
            stride, padding = (2, 1) if number else (1, 0)
            layers += [nn.ConvTranspose2d(before, units, 4, stride, padding, bias=False)]
            layers += [norm_layer(norm, units, spatial=True), nn.ReLU()]
            before = units
        self.net = nn.Sequential(*layers, nn.Conv2d(before, channels, 1))

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return self.net(z)
