"""α-GAN (Rosca et al. 2017, "Variational Approaches for Auto-Encoding Generative Adversarial Networks").

The evidence lower bound with both of its parts made implicit: log p(x|z) is a Laplace likelihood plus a synthetic one,
read off a discriminator D of data; KL(q(z|x) ‖ p(z)) is a density ratio, read off a discriminator C of codes. D says
how probably data is real, C how probably a code came from the prior. With x̂ = G(ẑ), ẑ = E(x), and z ~ p(z), each
player minimises its part (their algorithm 1; L1 is summed over pixels, everything is averaged over the batch):

    encoder E                λ ‖x - x̂‖₁ + R_C(ẑ)
    decoder G                λ ‖x - x̂‖₁ + R_D(x̂) + R_D(G(z))
    discriminator D          -log D(x) - log(1 - D(x̂)) - log(1 - D(G(z)))
    code discriminator C     -log C(z) - log(1 - C(ẑ))

where R(·) = log(1 - D) - log D = -logit: its gradient is -1 at every logit, so it neither saturates nor explodes. The
encoder gets nothing of D, and the decoder nothing of C.

Routing:

    term                              encoder  decoder  discriminator  code_discriminator
    phase autoencoder (2 plays a step)
      reconstruction                       +1       +1              ·                   ·
      code_adversarial_encoder             +1        ·              ·                   ·
      adversarial_decoder                   ·       +1              ·                   ·
    phase discriminators
      adversarial_discriminator             ·        ·             +1                   ·
      code_adversarial_discriminator        ·        ·              ·                  +1

`adversarial_decoder` is R_D(x̂) + R_D(G(z)), `code_adversarial_encoder` is R_C(ẑ).

The posterior is any network: by default z = E(x), with `--posterior implicit` z = E(x, ε), with `--posterior normal`
a reparameterised Normal, which C then meets through its draws. C needs no density of any of them.

Deviations: encoder and decoder move together, D and C move together (the paper's four updates take turns), and
`generator_plays` of the first pair, on fresh batches, go to one of the second; networks size themselves to the data.
λ multiplies a sum over pixels; in ports it is 1 to 50 times a mean. The first version of the paper has prior and
posterior exchanged in C's ratio; here C is the probability of the prior throughout. `paper` is a port's 64×64 network
with the paper's optimiser, as `--arch paper`.
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
    Realism,
    Row,
    Training,
    build_code_discriminator,
    build_posterior,
    latent_of,
    network_sizes,
    phase,
    require_room,
)
from twofold.game import Game, Stage, State, Term
from twofold.nets.augment import POLICIES, check_augment
from twofold.nets.build import build_decoder, build_discriminator
from twofold.nets.layers import norm_layer
from twofold.recipe import Recipe, option, require
from twofold.rollouts import Generator, classes_for, critic_abilities
from twofold.spec import Spec
from twofold.terms.adversarial import build_adversarial
from twofold.terms.matching import l1


@dataclass(frozen=True)
class Config:
    latent: int | None = option(None, "size of the code z; none: 16, or the data's number of values if that is less")
    posterior: str = option("deterministic", "q(z|x): z = E(x), E(x, ε) or a Normal's draw", choices=POSTERIORS)
    reconstruction_weight: float = option(1.0, "λ: weight of the L1 distance, summed over pixels")
    code_weight: float = option(1.0, "weight of the code discriminator's word in the encoder's row")
    real_label: float = option(1.0, "both discriminators' target for what is real; below 1: one-sided label smoothing")
    augment: str = option("none", "what the discriminator sees images through (Zhao et al. 2020)", choices=POLICIES)
    generator_plays: int = option(2, "plays of encoder and decoder, on fresh batches, to one of the discriminators")
    arch: str = option(
        "conv", "networks for images; vectors always get an MLP; paper: 64×64 only", choices=("conv", "mlp", "paper")
    )
    width: int | None = option(
        None, "channels of the first convolution (none: 32) or units of an MLP's layers (none: 256)"
    )
    depth: int = option(2, "hidden layers of an MLP")
    hidden: int = option(256, "units of a fully connected layer between convolutions and head; 0: none")
    norm: str = option("batch", "normalisation in encoder and decoder", choices=("batch", "group", "layer", "none"))
    norm_discriminator: str = option(
        "none", "the same in the discriminator of data", choices=("batch", "group", "layer", "none")
    )
    spectral: bool = option(False, "spectral normalisation of both discriminators (Miyato et al. 2018)")
    code_width: int = option(256, "units of the code discriminator's layers")
    code_depth: int = option(2, "hidden layers of the code discriminator")
    optimizer: str = option("adam", "optimizer of all players", choices=OPTIMIZERS)
    learning_rate: float = option(5e-4, "learning rate of encoder and decoder")
    learning_rate_discriminator: float | None = option(None, "of the discriminator of data; none: the same")
    learning_rate_code_discriminator: float | None = option(None, "of the discriminator of codes; none: the same")
    beta1: float = option(0.5, "Adam's β₁")
    beta2: float = option(0.9, "Adam's β₂")
    clip_norm: float | None = option(None, "largest norm of each network's gradient")
    ema_half_life_examples: float | None = option(None, "sample from an average of the decoder with this half-life")
    conditional: bool = option(False, "condition all four networks on the labels")


def paper() -> Config:
    """64×64: a port's networks, 128 latent dimensions, Adam (0.5, 0.9), rate 5e-4, two plays to one; λ is the port's
    decoder's, 5 times the mean over 3·64·64 values. For the encoder the port has 1."""
    return Config(
        latent=128, arch="paper", norm_discriminator="batch", code_width=750, code_depth=3,
        reconstruction_weight=5 / (3 * 64 * 64),
    )  # fmt: skip


def build(config: Config, spec: Spec) -> Recipe:
    """The recipe for data that looks like `spec`."""
    require(config.reconstruction_weight > 0, f"reconstruction_weight is {config.reconstruction_weight}, not above 0")
    check_augment(config.augment, spec)
    require(config.code_weight >= 0, f"code_weight is {config.code_weight}; it starts at 0")
    require(config.generator_plays >= 1, f"generator_plays is {config.generator_plays}; it starts at 1")
    classes = classes_for(spec, config.conditional)
    latent = latent_of(config.latent, 16, spec)
    require_room(latent, config.posterior, spec)
    players = ("encoder", "decoder", "discriminator", "code_discriminator")
    codes = Codes(
        Prior(latent), config.posterior, frozenset(players if config.conditional else ()), augment=config.augment
    )
    nets = _paper_networks(config, spec, latent) if config.arch == "paper" else _networks(config, spec, latent, classes)
    nets["code_discriminator"] = build_code_discriminator(
        latent, width=config.code_width, depth=config.code_depth, classes=classes, spectral=config.spectral
    )

    loss = build_adversarial("log-ratio", real_label=config.real_label)
    realism, code_critic = Realism(loss, weigh="sum"), CodeCritic(loss)

    def distance(state: State) -> Tensor:
        return l1(state["x_rec"], state["x"]).mean()

    weight = config.reconstruction_weight
    reconstruction = Row(Term("reconstruction", distance, to={"encoder": weight, "decoder": weight}), ("x_rec",))
    training = Training(
        config.optimizer, config.learning_rate, config.beta1, config.beta2, config.clip_norm,
        {"discriminator": config.learning_rate_discriminator,
         "code_discriminator": config.learning_rate_code_discriminator},
    )  # fmt: skip
    game = Game(
        players={
            name: training.player(
                name, nets[name], ema_half_life_examples=config.ema_half_life_examples if name == "decoder" else None
            )
            for name in players
        },
        phases=(
            phase(
                "autoencoder",
                codes,
                (reconstruction, code_critic.encoder(config.code_weight), realism.decoder()),
                repeats=config.generator_plays,
            ),
            phase("discriminators", codes, (realism.discriminator(), code_critic.discriminator())),
        ),
    )
    abilities = codes.abilities() | critic_abilities(nets["discriminator"])
    return Recipe((Stage("train", game),), spec, abilities, config.conditional)


def _networks(config: Config, spec: Spec, latent: int, classes: int | None) -> dict[str, nn.Module]:
    sizes: dict[str, Any] = network_sizes(config, spec) | {"classes": classes}
    return {
        "encoder": build_posterior(config.posterior, spec, latent, norm=config.norm, **sizes),
        "decoder": Generator(build_decoder(spec, latent, outputs=spec.shape[0], norm=config.norm, **sizes), spec),
        "discriminator": build_discriminator(spec, norm=config.norm_discriminator, spectral=config.spectral, **sizes),
    }


def _paper_networks(config: Config, spec: Spec, latent: int) -> dict[str, nn.Module]:
    require(
        spec.kind == "image" and spec.shape[1:] == (64, 64),
        f"the paper's networks are for images of 64×64 and this data is {spec.kind}s of "
        f"{'×'.join(map(str, spec.shape))}; use --arch conv, or resize with --size 64",
    )
    require(not config.conditional, "the paper's networks take no labels; use --arch conv with --conditional")
    require(config.posterior != "implicit", "the paper's encoder takes no noise; use --arch conv for an implicit one")
    require(not config.spectral, "the paper's networks have no spectral normalisation; use --arch conv for it")
    channels, codes = spec.shape[0], 2 * latent if config.posterior == "normal" else latent
    return {
        "encoder": PaperNet(channels, codes, config.norm),
        "decoder": Generator(PaperDecoder(channels, latent, config.norm), spec),
        "discriminator": PaperDiscriminator(channels, config.norm_discriminator),
    }


class PaperNet(nn.Module):
    """(batch, channels, 64, 64) → (batch, outputs): five convolutions of 64, 128, 256 (5×5, stride 2), 512 (5×5,
    stride 1) and 1024 (3×3, stride 2) channels, each with ReLU and the norm, then one linear layer."""

    def __init__(self, channels: int, outputs: int, norm: str):
        super().__init__()
        plan = ((64, 5, 2), (128, 5, 2), (256, 5, 2), (512, 5, 1), (1024, 3, 2))
        layers: list[nn.Module] = []
        for units, kernel, stride in plan:
            conv = nn.Conv2d(channels, units, kernel, stride, kernel // 2, bias=norm != "batch")
            layers += [conv, norm_layer(norm, units, spatial=True), nn.ReLU()]
            channels = units
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024 * 4 * 4, outputs))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.net(x)


class PaperDiscriminator(PaperNet):
    """The same network with one output: logits (batch,)."""

    def __init__(self, channels: int, norm: str):
        super().__init__(channels, 1, norm)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.net(x).squeeze(1)


class PaperDecoder(nn.Module):
    """(batch, latent) → (batch, channels, 64, 64): a linear layer onto 4×4×1024, four transposed convolutions (5×5,
    stride 2) of 512, 256, 128 and 64 channels, each with ReLU and the norm, then one of stride 1 onto the image."""

    def __init__(self, channels: int, latent: int, norm: str):
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(latent, 1024 * 4 * 4), nn.Unflatten(1, (1024, 4, 4))]
        layers += [norm_layer(norm, 1024, spatial=True), nn.ReLU()]
        before = 1024
        for units in (512, 256, 128, 64):
            conv = nn.ConvTranspose2d(before, units, 5, 2, 2, output_padding=1, bias=norm != "batch")
            layers += [conv, norm_layer(norm, units, spatial=True), nn.ReLU()]
            before = units
        self.net = nn.Sequential(*layers, nn.ConvTranspose2d(before, channels, 5, 1, 2))

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return self.net(z)
