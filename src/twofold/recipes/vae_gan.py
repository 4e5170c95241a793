"""VAE-GAN (Larsen et al. 2016, "Autoencoding beyond pixels using a learned similarity metric").

A VAE whose likelihood is a Normal with unit variance on the discriminator's l-th layer, and a GAN whose generator is
the VAE's decoder. With x̃ = Dec(z), z ~ q(z|x), and x_p = Dec(z_p), z_p ~ N(0, I) (their eqs. 5-9):

    kl                      KL( q(z|x) ‖ N(0, I) )
    feature_reconstruction  ½ ‖Dis_l(x̃) - Dis_l(x)‖², summed over the layer
    L_GAN                   log Dis(x) + log(1 - Dis(x̃)) + log(1 - Dis(x_p))

Algorithm 1, all three players at once from one forward pass: the encoder descends kl + feature_reconstruction, the
decoder γ · feature_reconstruction + L_GAN, the discriminator -L_GAN. The encoder gets nothing adversarial, γ stands
in the decoder's row only, and the discriminator gets nothing of the reconstruction, which it would minimise by
forgetting (their section 2.3).

Routing:

    term                       encoder  decoder  discriminator
    kl                              +1        ·              ·
    feature_reconstruction          +1    +0.01              ·
    adversarial_decoder              ·       +1              ·
    adversarial_discriminator        ·        ·             +1

`adversarial_decoder` is E log(1 - Dis(x̃)) + E log(1 - Dis(x_p)), the part of L_GAN that the decoder reaches;
`adversarial_discriminator` is -L_GAN. `--adversarial non-saturating` replaces the decoder's part by -E log Dis.

Dis_l is taken before normalisation, as in the released code. The paper's unit variance belongs to its layer of
16,384 features; a sum over fewer would let the KL win and the codes say nothing. So the variance is
(features / 16,384) unless `--feature-std` gives it: the layer as a whole says as much at every size.

Presets: `vae-gan-released` is what the released scripts do: the discriminator sees real images and prior samples but
no reconstructions, the players rest by the equilibrium rule, γ = 1e-5 / (1 - 1e-5), and the rate decays.
`vae-gan-paper` has the paper's networks for 64×64 images.

Deviations: networks size themselves to the data (the paper's are for 64×64 faces) and have one fully connected layer
of `hidden` units instead of 512 to 2048; γ is tuned for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from twofold.coefficients import Decay, Equilibrium, product
from twofold.game import Coefficient, Game, Phase, Player, Stage, State, Term
from twofold.latents import prior
from twofold.nets.augment import POLICIES, augmentation, check_augment
from twofold.nets.build import Discriminator, build_decoder, build_discriminator, build_encoder
from twofold.nets.layers import Block, linear_block, norm_layer, through
from twofold.recipe import Recipe, option, require
from twofold.rollouts import (
    Generator,
    autoencoder_abilities,
    classes_for,
    convolves,
    critic_abilities,
    kl_term,
    labels,
    posterior,
    warmed_up,
)
from twofold.spec import Spec
from twofold.terms.adversarial import bce_fake, bce_real
from twofold.terms.matching import feature_reconstruction

PAPER_FEATURES = 256 * 8 * 8
"""Features in the paper's layer l, for 64×64 images."""


@dataclass(frozen=True)
class Config:
    latent: int = option(32, "size of the code z")
    kl_warmup_examples: int = option(0, "the KL's coefficient rises from 0 to 1 over this many examples; 0: no warm-up")
    gamma: float = option(1e-2, "γ: weight of the feature reconstruction in the decoder's row")
    feature_layer: int | None = option(
        None, "l: the discriminator's block whose output is compared, counted from 1; none: the last but two"
    )
    feature_std: float | None = option(
        None, "standard deviation of the Normal on the layer; none: 1 for the paper's layer, less for smaller ones"
    )
    adversarial: str = option("minimax", "the decoder's adversarial term", choices=("minimax", "non-saturating"))
    see_reconstructions: bool = option(True, "the discriminator sees x̃ beside x and x_p")
    real_label: float = option(1.0, "the discriminator's target for real examples; below 1: one-sided label smoothing")
    augment: str = option("none", "what the discriminator sees images through (Zhao et al. 2020)", choices=POLICIES)
    equilibrium: bool = option(False, "let the discriminator or the decoder rest when it is far ahead (released code)")
    equilibrium_target: float = option(0.68, "mean cost in nats around which both move")
    equilibrium_margin: float = option(0.35, "distance from the target at which one rests")
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
        "batch", "the same in the discriminator", choices=("batch", "group", "layer", "none")
    )
    spectral: bool = option(False, "spectral normalisation of the discriminator (Miyato et al. 2018)")
    optimizer: str = option("rmsprop", "optimizer of all players", choices=("adam", "rmsprop"))
    learning_rate: float = option(3e-4, "learning rate of encoder and decoder")
    learning_rate_discriminator: float | None = option(None, "the discriminator's; none: the same")
    weight_decay: float = option(0.0, "L2 penalty of all players, as the optimizer's weight decay")
    decay: float = option(1.0, "the learning rates are multiplied by this after every decay_examples")
    decay_examples: int = option(16_000, "examples between two decays")
    decay_floor: float = option(0.0, "the learning rates do not fall below this part of their start")
    clip_norm: float | None = option(None, "largest norm of each network's gradient")
    ema_half_life_examples: float | None = option(None, "sample from an average of the decoder with this half-life")
    conditional: bool = option(False, "condition all three networks on the labels")


def paper() -> Config:
    """Larsen et al. 2016, table 1, and section 4: RMSProp at 3e-4, batches of 64. The weight γ is that of the released
    script for faces; one fully connected layer of the encoder has the script's 1,024 units."""
    return Config(latent=128, gamma=1e-6 / (1 - 1e-6), feature_layer=4, feature_std=1.0, arch="paper", hidden=1024)


def released() -> Config:
    """The released scripts' choices where they differ from the paper's: what Dis sees, the balance rule, γ = w/(1 - w)
    with w = 1e-5, the rate 0.025/64 falling by a quarter per epoch of 250 batches to 1e-5, and weight decay."""
    rate = 0.025 / 64
    return Config(
        see_reconstructions=False,
        equilibrium=True,
        gamma=1e-5 / (1 - 1e-5),
        feature_std=1.0,
        learning_rate=rate,
        weight_decay=1e-5,
        decay=0.75,
        decay_floor=1e-5 / rate,
    )


def build(config: Config, spec: Spec) -> Recipe:
    """The recipe for data that looks like `spec`."""
    require(config.feature_std is None or config.feature_std > 0, f"feature_std is {config.feature_std}, not above 0")
    require(config.gamma >= 0, f"gamma is {config.gamma}; it starts at 0")
    check_augment(config.augment, spec)
    classes = classes_for(spec, config.conditional)
    sizes: dict[str, Any] = {
        "arch": config.arch,
        "width": config.width,
        "depth": config.depth,
        "hidden": config.hidden if convolves(config.arch, spec) else 0,
        "classes": classes,
    }
    discriminator: Discriminator | PaperDiscriminator
    if config.arch == "paper":
        encoder, decoder, discriminator = paper_networks(config, spec)
    else:
        encoder = build_encoder(spec, 2 * config.latent, norm=config.norm, **sizes)
        decoder = Generator(build_decoder(spec, config.latent, outputs=spec.shape[0], norm=config.norm, **sizes), spec)
        discriminator = build_discriminator(spec, norm=config.norm_discriminator, spectral=config.spectral, **sizes)
    layer = max(1, discriminator.blocks - 2) if config.feature_layer is None else config.feature_layer
    require(
        1 <= layer <= discriminator.blocks,
        f"feature_layer is {layer}; this discriminator has blocks 1 to {discriminator.blocks}",
    )

    def rollout(state: State) -> dict[str, Tensor]:
        out = posterior(state, config.conditional)
        x, y = out["x"], labels(state.batch, config.conditional)
        z_p = prior(len(x), config.latent, like=out["z"], generator=state.generator)
        # One call each, whatever the norm: joined, a row's backward pass would carry the pictures of the others.
        decode, judge = state.nets["decoder"], cast(Discriminator, state.nets["discriminator"])
        x_rec, x_fake = decode(out["z"], y), decode(z_p, y)
        seen = augmentation(config.augment, x, generator=state.generator)
        real, f_real = judge.forward_with_features(seen(x), y, layer=layer)
        out |= {"x_rec": x_rec, "x_fake": x_fake, "real_logits": real, "real_features": f_real}
        if config.see_reconstructions:
            rec, f_rec = judge.forward_with_features(seen(x_rec), y, layer=layer)
            out |= {"rec_logits": rec, "rec_features": f_rec}
        else:
            out |= {"rec_features": judge.features(seen(x_rec), y, layer=layer)}
        return out | {"fake_logits": judge(seen(x_fake), y)}

    # L_GAN's two sides. Every expectation keeps its own coefficient of 1: with two kinds of fakes they count twice.
    def fakes(state: State) -> list[Tensor]:
        return [state["fake_logits"], *([state["rec_logits"]] if config.see_reconstructions else [])]

    def discriminator_loss(state: State) -> Tensor:
        real = bce_real(state["real_logits"], config.real_label).mean()
        return torch.stack([real, *(bce_fake(logits).mean() for logits in fakes(state))]).sum()

    def decoder_loss(state: State) -> Tensor:
        if config.adversarial == "minimax":
            return torch.stack([-bce_fake(logits).mean() for logits in fakes(state)]).sum()
        return torch.stack([bce_real(logits).mean() for logits in fakes(state)]).sum()

    def feature_loss(state: State) -> Tensor:
        features = state["real_features"]
        variance = features[0].numel() / PAPER_FEATURES if config.feature_std is None else config.feature_std**2
        return feature_reconstruction(state["rec_features"], features).mean() / variance

    decoder_gate: Coefficient = 1.0
    discriminator_gate: Coefficient = 1.0
    if config.equilibrium:
        rule = Equilibrium(
            real=lambda s: bce_real(s["real_logits"]).mean(),
            fake=lambda s: bce_fake(s["fake_logits"]).mean(),
            target=config.equilibrium_target,
            margin=config.equilibrium_margin,
        )
        decoder_gate, discriminator_gate = rule.decoder, rule.discriminator

    terms = (
        kl_term(warmed_up(1.0, config.kl_warmup_examples)),
        Term(
            "feature_reconstruction",
            feature_loss,
            to={"encoder": 1.0, "decoder": product(config.gamma, decoder_gate)},
        ),
        Term("adversarial_decoder", decoder_loss, to={"decoder": decoder_gate}),
        Term("adversarial_discriminator", discriminator_loss, to={"discriminator": discriminator_gate}),
    )
    game = Game(
        players={
            "encoder": _player(config, encoder),
            "decoder": _player(config, decoder, ema_half_life_examples=config.ema_half_life_examples),
            "discriminator": _player(config, discriminator, config.learning_rate_discriminator),
        },
        phases=(Phase("all", rollout, terms),),
    )
    abilities = autoencoder_abilities(config.latent, lambda nets, z, y: nets["decoder"](z, y))
    abilities |= critic_abilities(discriminator)
    return Recipe((Stage("train", game),), spec, abilities, config.conditional)


def _player(config: Config, net: nn.Module, learning_rate: float | None = None, **settings: Any) -> Player:
    rate = learning_rate or config.learning_rate
    optimizer: Any = {
        "rmsprop": partial(torch.optim.RMSprop, lr=rate, weight_decay=config.weight_decay),
        "adam": partial(torch.optim.Adam, lr=rate, betas=(0.5, 0.999), weight_decay=config.weight_decay),
    }[config.optimizer]
    decay = Decay(config.decay, config.decay_examples, config.decay_floor) if config.decay != 1.0 else None
    return Player(net, optimizer, lr_factor=decay, clip_norm=config.clip_norm, **settings)


class PaperDecoder(nn.Module):
    """(batch, latent) → (batch, channels, 64, 64): a linear layer onto 8×8×256, three transposed convolutions (5×5,
    stride 2) of 256, 128 and 32 channels, each with BatchNorm and ReLU, then one of stride 1 onto the image."""

    def __init__(self, latent: int, channels: int):
        super().__init__()
        layers: list[nn.Module] = [
            nn.Linear(latent, 256 * 8 * 8),
            nn.Unflatten(1, (256, 8, 8)),
            nn.BatchNorm2d(256),
            nn.ReLU(),
        ]
        for inputs, outputs in pairwise((256, 256, 128, 32)):
            up = nn.ConvTranspose2d(inputs, outputs, 5, 2, 2, output_padding=1, bias=False)
            layers += [up, nn.BatchNorm2d(outputs), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Conv2d(32, channels, 5, padding=2))

    def forward(self, z: Tensor, y: None = None) -> Tensor:
        return self.net(z)


class PaperDiscriminator(nn.Module):
    """(batch, channels, 64, 64) → logits (batch,): 32 channels at stride 1 without BatchNorm, then 128, 256 and 256 at
    stride 2 (all 5×5), then 512 units, each with BatchNorm and ReLU. Block 4, 256 maps of 8×8, is the paper's layer."""

    def __init__(self, channels: int):
        super().__init__()
        plan = zip(pairwise((channels, 32, 128, 256, 256)), (1, 2, 2, 2), strict=True)
        convs = [nn.Conv2d(a, b, 5, stride, 2, bias=stride == 1) for (a, b), stride in plan]
        kinds = ("none", "batch", "batch", "batch")
        self.layers = nn.ModuleList(
            Block(conv, norm_layer(kind, conv.out_channels, spatial=True), "relu")
            for conv, kind in zip(convs, kinds, strict=True)
        )
        self.layers.append(linear_block(256 * 8 * 8, 512, norm="batch", activation="relu"))
        self.head = nn.Linear(512, 1)

    @property
    def blocks(self) -> int:
        return len(self.layers)

    def forward(self, x: Tensor, y: None = None) -> Tensor:
        return self.head(through(self.layers, x)[0]).squeeze(1)

    def forward_with_features(self, x: Tensor, y: None = None, *, layer: int) -> tuple[Tensor, Tensor]:
        """Logits and the block's linear output before its normalisation; see `Discriminator`."""
        h, features = through(self.layers, x, layer=layer)
        assert features is not None
        return self.head(h).squeeze(1), features

    def features(self, x: Tensor, y: None = None, *, layer: int) -> Tensor:
        features = through(self.layers[:layer], x, layer=layer)[1]
        assert features is not None
        return features


def paper_networks(config: Config, spec: Spec) -> tuple[nn.Module, Generator, PaperDiscriminator]:
    """Encoder, decoder and discriminator of their table 1."""
    require(
        spec.shape[1:] == (64, 64),
        f"the paper's networks are for images of 64×64 and this data is {spec.kind}s of "
        f"{'×'.join(map(str, spec.shape))}; use --arch conv, or resize with --size 64",
    )
    require(not config.conditional, "the paper's networks take no labels; use --arch conv with --conditional")
    require(not config.spectral, "the paper's networks have no spectral normalisation; use --arch conv for it")
    require(
        config.norm == config.norm_discriminator == "batch",
        "the paper's networks have BatchNorm; use --arch conv for another norm",
    )
    encoder = build_encoder(spec, 2 * config.latent, width=64, hidden=config.hidden, norm="batch", min_size=8)
    decoder = Generator(PaperDecoder(config.latent, spec.shape[0]), spec)
    return encoder, decoder, PaperDiscriminator(spec.shape[0])
