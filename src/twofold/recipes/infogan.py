"""InfoGAN (Chen et al. 2016, "InfoGAN: Interpretable representation learning by information maximizing GANs").

A GAN whose generator's input is noise z and codes c that its examples must tell. With the variational lower bound of
the mutual information between c and the example (their eq. 5)

    L_I  =  E_(c, z) [ log Q(c | G(z, c)) ]  +  H(c)   ≤   I(c; G(z, c))

the game is min over G and Q, max over D, of V(D, G) - λ L_I (their eq. 6). c has categorical codes, equally likely, and
continuous ones, uniform on [-1, 1] with Q a Normal of fixed deviation. D and Q (here `posterior`) are two heads on one
`trunk`, which is a player of its own and gets both objectives.

Routing:

    term                         generator  trunk  discriminator  posterior
    phase discriminator
      adversarial_discriminator          ·     +1             +1          ·
      information_discriminator          ·     -1              ·         -1
    phase generator
      adversarial_generator             +1      ·              ·          ·
      information_generator             -1      ·              ·          ·

The information terms are L_I itself in nats, which the negative coefficients -λ maximise, on each phase's own draws.
`categorical_information`, logged beside them, is the categorical codes' part: it comes to log of the number of values
as Q learns to name every code.

A code, to `decode`, is z, the categorical codes one-hot and the continuous codes, side by side.
`classify` gives Q's probabilities of the first categorical code's values: clusters found without labels.

Presets: `infogan-paper` is the MNIST network of their appendix C.1 with the released script's settings, for images
whose sides are multiples of 4.

Deviations: Adam's rates and the networks of the default are sized for small images; the paper network ends in tanh
instead of a sigmoid, as our images are in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twofold.game import Game, Phase, Player, Stage, State, Term
from twofold.latents import PRIORS, prior
from twofold.nets.augment import POLICIES, augmentation, check_augment
from twofold.nets.build import build_decoder, build_encoder
from twofold.nets.layers import norm_layer
from twofold.nets.mlp import MLP
from twofold.nets.norm import call_together
from twofold.recipe import Recipe, option, require
from twofold.rollouts import Generator, convolves
from twofold.spec import Spec
from twofold.terms.adversarial import build_adversarial
from twofold.terms.information import categorical_information, uniform_information

UNITS = 128
"""Hidden units of Q, as in the paper."""


@dataclass(frozen=True)
class Config:
    categories: int = option(10, "values of each categorical code")
    categorical_codes: int = option(1, "number of categorical codes")
    continuous_codes: int = option(2, "number of continuous codes, uniform on [-1, 1]")
    continuous_std: float = option(1.0, "standard deviation of Q for continuous codes; smaller: they weigh more")
    information: float = option(1.0, "λ: weight of the information terms")
    loss: str = option(
        "non-saturating", "adversarial loss", choices=("non-saturating", "minimax", "least-squares", "hinge")
    )
    real_label: float = option(1.0, "the discriminator's target for real examples; below 1: one-sided label smoothing")
    augment: str = option("none", "what the discriminator sees images through (Zhao et al. 2020)", choices=POLICIES)
    latent: int = option(16, "size of the noise z beside the codes")
    noise: str = option("normal", "distribution of z", choices=PRIORS)
    arch: str = option(
        "conv",
        "networks for images: sized to the data, or the paper's for MNIST; vectors always get an MLP",
        choices=("conv", "mlp", "paper"),
    )
    width: int | None = option(
        None, "channels of the first convolution (none: 32) or units of an MLP's layers (none: 256)"
    )
    depth: int = option(2, "hidden layers of an MLP")
    hidden: int = option(256, "units of a fully connected layer between convolutions and heads")
    norm: str = option("batch", "normalisation in the generator", choices=("batch", "group", "layer", "none"))
    norm_discriminator: str = option(
        "auto",
        "the same in trunk and posterior; auto: batch for images, without which the codes are found late, else none",
        choices=("auto", "batch", "group", "layer", "none"),
    )
    spectral: bool = option(False, "spectral normalisation of the trunk (Miyato et al. 2018)")
    learning_rate: float = option(1e-3, "the generator's learning rate")
    learning_rate_discriminator: float = option(2e-4, "the rate of trunk, discriminator and posterior")
    beta1: float = option(0.5, "Adam's first decay")
    ema_half_life_examples: float | None = option(None, "sample from an average of the generator with this half-life")


def paper() -> Config:
    """Chen et al. 2016 on MNIST; use batches of 128."""
    return Config(
        latent=62, noise="uniform", arch="paper", width=64, hidden=1024, norm="batch", norm_discriminator="batch"
    )


@dataclass(frozen=True)
class Codes:
    """The generator's input: noise, categorical codes as one-hot vectors, continuous codes, in that order."""

    noise: int
    kind: str
    categorical: int
    categories: int
    continuous: int
    std: float

    @property
    def size(self) -> int:
        """Values of the whole input."""
        return self.noise + self.outputs

    @property
    def outputs(self) -> int:
        """Values that Q says of an example: log odds of each category, and a mean for each continuous code."""
        return self.categorical * self.categories + self.continuous

    def draw(self, n: int, *, like: Tensor, generator: torch.Generator) -> Tensor:
        """(n, size) from the prior."""
        z = prior(n, self.noise, like=like, generator=generator, kind=self.kind)
        chosen = torch.randint(self.categories, (n, self.categorical), generator=generator, device=like.device)
        one_hot = F.one_hot(chosen, self.categories).to(z.dtype).flatten(1)
        uniform = torch.rand(n, self.continuous, generator=generator, device=like.device, dtype=z.dtype) * 2 - 1
        return torch.cat([z, one_hot, uniform], dim=1)

    def information(self, said: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """L_I of each example, (n,), by categorical and by continuous codes: `said` is Q's output on G's examples of
        z."""
        logits, mean = self.split(said)
        one_hot, uniform = self.split(z[:, self.noise :])
        told = categorical_information(logits.flatten(0, 1), one_hot.argmax(2).flatten())
        nothing = told.new_zeros(len(z))
        return (
            told.unflatten(0, logits.shape[:2]).sum(1) if self.categorical else nothing,
            uniform_information(mean, uniform, std=self.std) if self.continuous else nothing,
        )

    def split(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """(n, outputs) as (n, categorical, categories) and (n, continuous)."""
        categorical, continuous = values.split([self.categorical * self.categories, self.continuous], dim=1)
        return categorical.unflatten(1, (self.categorical, self.categories)), continuous


class Posterior(nn.Module):
    """Q(c|x): a head on the trunk's features. Calling it gives (n, outputs) for `Codes.information`."""

    def __init__(self, features: int, codes: Codes, norm: str):
        super().__init__()
        self.net = MLP(features, (UNITS,), codes.outputs, activation="leaky", norm=norm)
        self.codes = codes

    def forward(self, h: Tensor) -> Tensor:
        return self.net(h)

    def log_probabilities(self, h: Tensor) -> Tensor:
        """Of each value of each categorical code, (n, categorical, categories)."""
        return self.codes.split(self(h))[0].log_softmax(2)


def build(config: Config, spec: Spec) -> Recipe:
    """The recipe for data that looks like `spec`."""
    _check(config)
    check_augment(config.augment, spec)
    if config.norm_discriminator == "auto":
        config = replace(config, norm_discriminator="batch" if spec.kind == "image" else "none")
    codes = Codes(
        config.latent,
        config.noise,
        config.categorical_codes,
        config.categories,
        config.continuous_codes,
        config.continuous_std,
    )
    generator, trunk, features = networks(config, spec, codes.size)
    discriminator = nn.Sequential(nn.Linear(features, 1), nn.Flatten(0))
    loss = build_adversarial(config.loss, real_label=config.real_label)

    def fake(state: State) -> dict[str, Tensor]:
        like = next(state.nets["generator"].parameters())
        z = codes.draw(len(state.batch["x"]), like=like, generator=state.generator)
        return {"z": z, "x_fake": state.nets["generator"](z)}

    def discriminate(state: State) -> dict[str, Tensor]:
        out = fake(state)
        seen = augmentation(config.augment, out["x_fake"], generator=state.generator)
        h_real, h_fake = call_together(state.nets["trunk"], seen(state.batch["x"]), seen(out["x_fake"]))
        real, fake_logits = call_together(state.nets["discriminator"], h_real, h_fake)
        return out | {"real_logits": real, "fake_logits": fake_logits, "said": state.nets["posterior"](h_fake)}

    def deceive(state: State) -> dict[str, Tensor]:
        out = fake(state)
        seen = augmentation(config.augment, out["x_fake"], generator=state.generator)
        h = state.nets["trunk"](seen(out["x_fake"]))
        return out | {"fake_logits": state.nets["discriminator"](h), "said": state.nets["posterior"](h)}

    def information(state: State) -> Tensor:
        categorical, continuous = codes.information(state["said"], state["z"])
        return (categorical + continuous).mean()

    rate_d = config.learning_rate_discriminator
    game = Game(
        players={
            "generator": Player(
                generator,
                _adam(config, config.learning_rate),
                ema_half_life_examples=config.ema_half_life_examples,
            ),
            "trunk": Player(trunk, _adam(config, rate_d)),
            "discriminator": Player(discriminator, _adam(config, rate_d)),
            "posterior": Player(Posterior(features, codes, config.norm_discriminator), _adam(config, rate_d)),
        },
        phases=(
            Phase(
                "discriminator",
                discriminate,
                (
                    Term(
                        "adversarial_discriminator",
                        lambda s: loss.discriminator(s["real_logits"], s["fake_logits"]),
                        to={"trunk": 1.0, "discriminator": 1.0},
                    ),
                    Term(
                        "information_discriminator",
                        information,
                        to={"trunk": -config.information, "posterior": -config.information},
                    ),
                ),
            ),
            Phase(
                "generator",
                deceive,
                (
                    Term("adversarial_generator", lambda s: loss.generator(s["fake_logits"]), to={"generator": 1.0}),
                    Term("information_generator", information, to={"generator": -config.information}),
                ),
                measures={"categorical_information": lambda s: codes.information(s["said"], s["z"])[0].mean()},
            ),
        ),
    )

    def draw(nets: nn.ModuleDict, n: int, *, generator: torch.Generator) -> Tensor:
        return codes.draw(n, like=next(nets["generator"].parameters()), generator=generator)

    def decode(nets: nn.ModuleDict, z: Tensor, *, y: None = None) -> Tensor:
        return nets["generator"](z)

    abilities: dict[str, Callable[..., Any]] = {
        "prior": draw,
        "decode": decode,
        "sample": lambda nets, n, *, y=None, generator: decode(nets, draw(nets, n, generator=generator)),
    }
    abilities |= {
        "judge": lambda nets, x, *, y=None: nets["discriminator"](nets["trunk"](x)),
        "features": lambda nets, x, *, y=None: nets["trunk"](x).flatten(1),
    }
    if config.categorical_codes:
        abilities["classify"] = classify
    return Recipe((Stage("train", game),), spec, abilities)


def classify(nets: nn.ModuleDict, x: Tensor, *, y: None = None) -> Tensor:
    """Q's probability of each value of the first categorical code, (n, categories)."""
    return cast(Posterior, nets["posterior"]).log_probabilities(nets["trunk"](x))[:, 0].exp()


def _check(config: Config) -> None:
    require(config.latent >= 1, f"latent is {config.latent}; there is at least 1 value of noise beside the codes")
    require(config.categories >= 2, f"categories is {config.categories}; a code tells something from 2 values on")
    for name in ("categorical_codes", "continuous_codes"):
        require(getattr(config, name) >= 0, f"{name} is {getattr(config, name)}; it starts at 0")
    require(
        config.categorical_codes + config.continuous_codes >= 1,
        "there are no codes to tell; give --categorical-codes or --continuous-codes, or train a gan",
    )
    require(config.continuous_std > 0, f"continuous_std is {config.continuous_std}; it must be above 0")
    require(config.information > 0, f"information is {config.information}; it must be above 0, or train a gan")
    require(config.hidden >= 1, f"hidden is {config.hidden}; trunk and heads meet in at least 1 unit")
    require(config.depth >= 1, f"depth is {config.depth}; trunk and heads meet in at least 1 layer")


def _adam(config: Config, rate: float) -> partial:
    return partial(torch.optim.Adam, lr=rate, betas=(config.beta1, 0.999))


# Networks.


class Trunk(nn.Module):
    """A network to features (n, features) with normalisation and activation at its end."""

    def __init__(self, net: nn.Module, features: int, norm: str):
        super().__init__()
        self.net = net
        self.norm = norm_layer(norm, features, spatial=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.net(x)), 0.2)


def networks(config: Config, spec: Spec, inputs: int) -> tuple[Generator, Trunk, int]:
    """Generator, trunk, and the number of features on which the heads stand."""
    if config.arch == "paper" and spec.kind == "image":
        return paper_networks(config, spec, inputs)
    arch = "mlp" if spec.kind == "vector" else config.arch
    flat = not convolves(arch, spec)
    features = (config.width or 256) if flat else config.hidden
    sizes: dict[str, Any] = {"arch": arch, "width": config.width}
    generator = build_decoder(
        spec,
        inputs,
        outputs=spec.shape[0],
        depth=config.depth,
        hidden=0 if flat else config.hidden,
        norm=config.norm,
        activation="relu",
        **sizes,
    )
    trunk = build_encoder(
        spec,
        features,
        depth=config.depth - 1,
        norm=config.norm_discriminator,
        first_norm=False,
        activation="leaky",
        spectral=config.spectral,
        **sizes,
    )
    return Generator(generator, spec), Trunk(trunk, features, config.norm_discriminator), features


def paper_networks(config: Config, spec: Spec, inputs: int) -> tuple[Generator, Trunk, int]:
    """Their table 1: two 4×4 convolutions with stride 2 (width, 2 width channels) and `hidden` units, both ways."""
    channels, height, columns = cast("tuple[int, int, int]", spec.shape)
    require(
        height % 4 == 0 and columns % 4 == 0,
        f"the paper's networks halve the sides twice, but the images are {height}×{columns}; use --arch conv",
    )
    require(not config.spectral, "the paper's networks have no spectral normalisation; use --arch conv with --spectral")
    width, hidden = config.width or 64, config.hidden
    places = (2 * width, height // 4, columns // 4)
    size = places[0] * places[1] * places[2]
    generator = nn.Sequential(
        nn.Linear(inputs, hidden),
        norm_layer(config.norm, hidden, spatial=False),
        nn.ReLU(),
        nn.Linear(hidden, size),
        norm_layer(config.norm, size, spatial=False),
        nn.ReLU(),
        nn.Unflatten(1, places),
        nn.ConvTranspose2d(2 * width, width, 4, 2, 1),
        norm_layer(config.norm, width, spatial=True),
        nn.ReLU(),
        nn.ConvTranspose2d(width, channels, 4, 2, 1),
    )
    trunk = nn.Sequential(
        nn.Conv2d(channels, width, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 4, 2, 1),
        norm_layer(config.norm_discriminator, 2 * width, spatial=True),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(size, hidden),
    )
    return (
        Generator(_NoLabels(generator), spec),
        Trunk(trunk, hidden, config.norm_discriminator),
        hidden,
    )


class _NoLabels(nn.Module):
    """Lets a network of one argument stand where labels may be given."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, z: Tensor, y: None = None) -> Tensor:
        return self.net(z)
