"""Our steps beside those of pythae, torchgan and mimicry, on the peers' own networks.

Read off the peers' code: what a step of their trainers does. Ours is the recipe with the peer's modules in place of its
own, on the same batch, with the same optimizer. Called by bench/speed.py, in the environment that `make bench` makes.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from measuring import (
    Report,
    Setting,
    Step,
    alternate,
    calls_of,
    flops_of,
    game_step,
    matmul_flops_per_second,
    memory_of,
    quartiles,
)
from torch import Tensor, nn

LATENT = 16
Side = tuple[list[nn.Module], Step]
"""The networks whose calls are counted, and the step."""


@dataclass(frozen=True)
class Case:
    """One model of a peer, and ours that does its work."""

    title: str
    theirs: Callable[[Tensor], Side]
    """From images in [-1, 1]."""
    networks: Callable[[], Mapping[str, nn.Module]]
    """New networks of the peer by our players' names."""
    recipe: str
    options: Mapping[str, Any]
    shape: tuple[int, int, int] = (1, 28, 28)
    remark: str = ""
    """What the peer computes otherwise than we do."""


# Our side, with the peer's networks.


class Encoder(nn.Module):
    """pythae's encoder as ours are called: (mean, log variance) side by side, images in [-1, 1]."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        out = self.net((x + 1) / 2)
        return torch.cat([out.embedding, out.log_covariance], dim=1) if "log_covariance" in out else out.embedding


class Decoder(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return 2 * self.net(z).reconstruction - 1


class Discriminator(nn.Module):
    """pythae's discriminator without its last sigmoid, which is part of our loss."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net
        self.blocks = len(net.layers) - 1
        net.layers[-1] = net.layers[-1][0]

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.net((x + 1) / 2).embedding.flatten()

    def forward_with_features(self, x: Tensor, y: Tensor | None = None, *, layer: int) -> tuple[Tensor, Tensor]:
        out = self.net((x + 1) / 2, output_layer_levels=[layer, self.blocks + 1])
        return out[f"embedding_layer_{self.blocks + 1}"].flatten(), out[f"embedding_layer_{layer}"]

    def features(self, x: Tensor, y: Tensor | None = None, *, layer: int) -> Tensor:
        return self.net((x + 1) / 2, output_layer_levels=[layer])[f"embedding_layer_{layer}"]


class CodeDiscriminator(nn.Module):
    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net
        net.layers[-1] = net.layers[-1][0]

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return self.net(z).embedding.flatten()


class Plain(nn.Module):
    """A peer's generator or critic: no labels; logits (batch,)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        out = self.net(x)
        return out.flatten() if out.dim() < 4 or out.shape[1:] == (1, 1, 1) else out


def ours(case: Case, x: Tensor, setting: Setting = Setting()) -> Side:  # noqa: B008
    """The recipe with the peer's networks where it would build its own."""
    from twofold import autoencoders, recipes, rollouts
    from twofold.spec import Spec

    nets = dict(case.networks())
    made: dict[str, Any] = {
        "build_encoder": lambda *_, **__: nets["encoder"],
        "build_decoder": lambda *_, **__: nets.get("decoder", nets.get("generator")),
        "build_discriminator": lambda *_, **__: nets["discriminator"],
        "build_code_discriminator": lambda *_, **__: nets["code_discriminator"],
        "Generator": lambda net, _: net,
        "networks": lambda config, spec: _quantised(nets),
    }
    module = importlib.import_module(f"twofold.recipes.{recipes.find(case.recipe).module}")
    with ExitStack() as patched:
        for place in (module, rollouts, autoencoders):
            for word, make in made.items():
                if hasattr(place, word) and (word not in ("Generator", "networks") or place is module):
                    patched.enter_context(mock.patch.object(place, word, make))
        spec = Spec("image", case.shape, layout="HW")
        _, play = game_step(case.recipe, {"x": x}, spec, {**case.options}, setting)
    return [_inner(net) for net in nets.values()], play


def _inner(net: nn.Module) -> nn.Module:
    return net.get_submodule("net")


def _quantised(nets: Mapping[str, nn.Module]) -> tuple[nn.Module, nn.Module, tuple[int, int]]:
    from twofold.rollouts import LikelihoodDecoder
    from twofold.terms.likelihood import Normal

    return nets["encoder"], LikelihoodDecoder(nets["decoder"], Normal(False, scale="fixed")), (4, 4)


# pythae.


def pythae_cases() -> list[Case]:
    from pythae.models import (
        VAE,
        VAEGAN,
        VQVAE,
        Adversarial_AE,
        Adversarial_AE_Config,
        VAEConfig,
        VAEGANConfig,
        VQVAEConfig,
    )
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDiscriminator
    from pythae.models.nn.benchmarks import mnist
    from pythae.models.nn.default_architectures import Discriminator_MLP

    sizes: dict[str, Any] = {"input_dim": (1, 28, 28), "latent_dim": LATENT}
    adam = partial(torch.optim.Adam, lr=1e-4)
    shared: dict[str, Any] = {"latent": LATENT, "learning_rate": 1e-4}
    any_config = VAEGANConfig(**sizes)

    class SmallDiscriminator(BaseDiscriminator):
        """What a user of pythae would write to go with its residual networks: 32 to 128 channels, no BatchNorm."""

        def __init__(self) -> None:
            super().__init__()
            plan = ((1, 32), (32, 64), (64, 128), (128, 128))
            layers = [nn.Sequential(nn.Conv2d(a, b, 4, 2, padding=1), nn.ReLU()) for a, b in plan]
            self.layers = nn.ModuleList([*layers, nn.Sequential(nn.Linear(128, 1), nn.Sigmoid())])
            self.depth = len(self.layers)

        def forward(self, x: Tensor, output_layer_levels: list[int] | None = None) -> ModelOutput:
            output, last = ModelOutput(), max(output_layer_levels or [self.depth])
            for level, layer in enumerate(self.layers[:last], 1):
                x = layer(x.flatten(1) if level == self.depth else x)
                if output_layer_levels and level in output_layer_levels:
                    output[f"embedding_layer_{level}"] = x
                if level == self.depth:
                    output["embedding"] = x
            return output

    def vae(x: Tensor) -> Side:
        config = VAEConfig(**sizes)
        model = VAE(config, mnist.Encoder_Conv_VAE_MNIST(config), mnist.Decoder_Conv_AE_MNIST(config))
        return _one_optimizer(model, x)

    def vq_vae(x: Tensor) -> Side:
        config = VQVAEConfig(**sizes, num_embeddings=512)
        model = VQVAE(config, mnist.Encoder_ResNet_VQVAE_MNIST(config), mnist.Decoder_ResNet_VQVAE_MNIST(config))
        return _one_optimizer(model, x)

    def _one_optimizer(model: Any, x: Tensor) -> Side:
        optimizer, x = adam(model.parameters()), (x + 1) / 2

        def play() -> None:
            optimizer.zero_grad()
            out = model({"data": x})
            out.loss.backward()
            optimizer.step()
            out.loss.item()  # its trainer reads the loss in every step

        return [model.encoder, model.decoder], play

    def vae_gan(networks: Callable[[], list[Any]], x: Tensor) -> Side:
        config = VAEGANConfig(**sizes, reconstruction_layer=2, equilibrium=1e9, margin=2e9)  # nobody rests, as in ours
        nets, x = networks(), (x + 1) / 2
        model = VAEGAN(config, *nets)
        optimizers = [adam(net.parameters()) for net in nets]

        def play() -> None:  # CoupledOptimizerAdversarialTrainer._optimizers_step and train_step
            out = model({"data": x})
            optimizers[0].zero_grad()
            out.encoder_loss.backward(retain_graph=True)
            optimizers[1].zero_grad()
            out.decoder_loss.backward(retain_graph=True)
            optimizers[2].zero_grad()
            out.discriminator_loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            for loss in (out.encoder_loss, out.decoder_loss, out.discriminator_loss, out.loss):
                loss.item()

        return nets, play

    def aae(x: Tensor) -> Side:
        config = Adversarial_AE_Config(**sizes, deterministic_posterior=True)
        model = Adversarial_AE(config, mnist.Encoder_Conv_VAE_MNIST(config), mnist.Decoder_Conv_AE_MNIST(config))
        both = adam([*model.encoder.parameters(), *model.decoder.parameters()])
        judge, x = adam(model.discriminator.parameters()), (x + 1) / 2

        def play() -> None:  # AdversarialTrainer._optimizers_step
            out = model({"data": x})
            both.zero_grad()
            out.autoencoder_loss.backward(retain_graph=True)
            judge.zero_grad()
            out.discriminator_loss.backward()
            both.step()
            judge.step()
            out.loss.item()

        return [model.encoder, model.decoder, model.discriminator], play

    def code_discriminator() -> nn.Module:
        config = Adversarial_AE_Config(**sizes)
        config.discriminator_input_dim = (LATENT,)
        return CodeDiscriminator(Discriminator_MLP(config))

    def conv_nets() -> list[Any]:
        return [
            mnist.Encoder_Conv_VAE_MNIST(any_config),
            mnist.Decoder_Conv_AE_MNIST(any_config),
            mnist.Discriminator_Conv_MNIST(any_config),
        ]

    def residual_nets() -> list[Any]:
        return [
            mnist.Encoder_ResNet_VAE_MNIST(any_config),
            mnist.Decoder_ResNet_AE_MNIST(any_config),
            SmallDiscriminator(),
        ]

    def wrapped(nets: list[Any]) -> dict[str, nn.Module]:
        kinds = (("encoder", Encoder), ("decoder", Decoder), ("discriminator", Discriminator))
        return {name: kind(net) for (name, kind), net in zip(kinds, nets, strict=True)}

    def aae_nets() -> dict[str, nn.Module]:
        return {
            "encoder": Encoder(mnist.Encoder_Conv_AE_MNIST(any_config)),
            "decoder": Decoder(mnist.Decoder_Conv_AE_MNIST(any_config)),
            "code_discriminator": code_discriminator(),
        }

    vae_gan_options = {**shared, "optimizer": "adam", "feature_layer": 2, "see_reconstructions": False}
    wrong = (
        "pythae's three backward passes leave gradients in each other's networks: its decoder moves by (1 - s) times "
        "the discriminator's gradient instead of -s times, so it helps it, and its encoder by the decoder's loss too"
    )
    return [
        Case(
            "pythae VAE",
            vae,
            lambda: {
                "encoder": Encoder(mnist.Encoder_Conv_VAE_MNIST(any_config)),
                "decoder": Decoder(mnist.Decoder_Conv_AE_MNIST(any_config)),
            },
            "vae",
            {**shared, "likelihood": "normal"},
        ),
        Case(
            "pythae VAEGAN", partial(vae_gan, conv_nets), lambda: wrapped(conv_nets()), "vae-gan", vae_gan_options,
            remark=wrong,
        ),
        Case(
            "pythae VAEGAN, residual networks", partial(vae_gan, residual_nets), lambda: wrapped(residual_nets()),
            "vae-gan", vae_gan_options, remark=wrong,
        ),
        Case("pythae AAE", aae, aae_nets, "aae", {**shared, "posterior": "deterministic"}),
        Case(
            "pythae AAE, ours in one move", aae, aae_nets, "hybrid",
            {**shared, "match": "critic", "likelihood": "normal", "adversarial": "none", "play": "together",
             "posterior": "deterministic"},
        ),
        Case(
            "pythae VQVAE, residual networks",
            vq_vae,
            lambda: {
                "encoder": Encoder(mnist.Encoder_ResNet_VQVAE_MNIST(any_config)),
                "decoder": Decoder(mnist.Decoder_ResNet_VQVAE_MNIST(any_config)),
            },
            "vq-vae",
            {**shared, "codes": 512, "restart_examples": 0, "learning_rate": 1e-4},
        ),
    ]  # fmt: skip


# torchgan and mimicry.


def stand_in(*names: str) -> None:
    """Empty modules for imports of a peer that a training step does not use, where they are missing."""
    for name in names:
        try:
            importlib.import_module(name)
        except Exception:
            sys.modules[name] = mock.MagicMock(name=name)


def torchgan_cases() -> list[Case]:
    stand_in("torchvision", "torchvision.models", "torchvision.utils", "tensorboardX", "visdom")
    from torchgan import losses
    from torchgan.models import DCGANDiscriminator, DCGANGenerator

    here = torch.device("cpu")
    shape = (3, 32, 32)

    def networks(batchnorm: bool) -> tuple[Any, Any]:
        generator = DCGANGenerator(encoding_dims=100, out_size=32, step_channels=64, nonlinearity=nn.ReLU())
        critic = DCGANDiscriminator(
            in_size=32, step_channels=64, batchnorm=batchnorm, nonlinearity=nn.LeakyReLU(0.2),
            last_nonlinearity=nn.Identity(),
        )  # fmt: skip
        return generator, critic

    def side(batchnorm: bool, rate: float, betas: tuple[float, float], terms: list[Any], x: Tensor) -> Side:
        generator, critic = networks(batchnorm)
        g = torch.optim.Adam(generator.parameters(), lr=rate, betas=betas)
        d = torch.optim.Adam(critic.parameters(), lr=rate, betas=betas)

        def play() -> None:  # Trainer.train_iter with one play of the critic
            for term in terms:
                if isinstance(term, losses.DiscriminatorLoss):
                    term.train_ops(generator, critic, d, x, here)
            for term in terms:
                if isinstance(term, losses.GeneratorLoss):
                    term.train_ops(generator, critic, g, here, len(x))

        return [generator, critic], play

    def wrapped(batchnorm: bool) -> dict[str, nn.Module]:
        generator, critic = networks(batchnorm)
        return {"generator": Plain(generator), "discriminator": Plain(critic)}

    minimax = [losses.MinimaxDiscriminatorLoss(), losses.MinimaxGeneratorLoss()]
    wasserstein = [
        losses.WassersteinDiscriminatorLoss(), losses.WassersteinGradientPenalty(), losses.WassersteinGeneratorLoss()
    ]  # fmt: skip
    return [
        Case(
            "torchgan DCGAN", partial(side, True, 2e-4, (0.5, 0.999), minimax), lambda: wrapped(True), "dcgan",
            {"latent": 100}, shape,
        ),
        Case(
            "torchgan WGAN-GP", partial(side, False, 1e-4, (0.5, 0.9), wasserstein), lambda: wrapped(False),
            "wgan-gp", {"latent": 100, "critic_plays": 1, "arch": "conv"}, shape,
            remark="torchgan moves its critic twice a step, by the loss and then by the penalty; its penalty takes one "
            "norm and one mixing weight of the whole batch and runs back through the generator",
        ),
    ]  # fmt: skip


def mimicry_cases() -> list[Case]:
    # It imports torch._six, which torch no longer has, and tensorflow; neither from its networks or their steps.
    stand_in("torch_mimicry.metrics", "torch_mimicry.datasets", "torch_mimicry.training", "torchvision")
    from torch_mimicry.nets.dcgan import dcgan_32
    from torch_mimicry.nets.wgan_gp import wgan_gp_32

    class Log:
        def add_metric(self, name: str, value: Any, **_: Any) -> None:
            self.last = value.item() if isinstance(value, Tensor) else value

    kinds: dict[str, tuple[Any, Any]] = {
        "dcgan": (dcgan_32.DCGANGenerator32, dcgan_32.DCGANDiscriminator32),
        "wgan-gp": (wgan_gp_32.WGANGPGenerator32, wgan_gp_32.WGANGPDiscriminator32),
    }

    def networks(kind: str) -> tuple[Any, Any]:
        generator, critic = kinds[kind]
        return generator(ngf=64), critic(ndf=32)

    def side(kind: str, betas: tuple[float, float], x: Tensor) -> Side:
        generator, critic = networks(kind)
        g = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=betas)
        d = torch.optim.Adam(critic.parameters(), lr=2e-4, betas=betas)
        log, batch = Log(), (x, torch.zeros(len(x)))
        here = torch.device("cpu")

        def play() -> None:  # Trainer.train with n_dis = 1
            critic.train_step(batch, netG=generator, optD=d, log_data=log, device=here)
            generator.train_step(batch, netD=critic, optG=g, log_data=log, device=here)

        return [generator, critic], play

    def wrapped(kind: str) -> dict[str, nn.Module]:
        generator, critic = networks(kind)
        return {"generator": Plain(generator), "discriminator": Plain(critic)}

    return [
        Case(
            "mimicry DCGAN, residual networks", partial(side, "dcgan", (0.5, 0.999)), lambda: wrapped("dcgan"),
            "dcgan", {"latent": 128}, (3, 32, 32),
        ),
        Case(
            "mimicry WGAN-GP, residual networks", partial(side, "wgan-gp", (0.5, 0.9)), lambda: wrapped("wgan-gp"),
            "wgan-gp", {"latent": 128, "critic_plays": 1, "arch": "conv"}, (3, 32, 32),
        ),
    ]  # fmt: skip


# The tables.

MAKERS = {"pythae": pythae_cases, "torchgan": torchgan_cases, "mimicry": mimicry_cases}


def cases(wanted: list[str]) -> list[Case]:
    """Those whose titles begin with one of the given words; all if there are none."""
    found = [case for make in MAKERS.values() for case in make()]
    return [case for case in found if not wanted or any(case.title.startswith(word) for word in wanted)]


def compare(report: Report, *, models: list[str], batch: int, turns: int, steps: int, settings: list[Setting]) -> None:
    """One table: each peer's step beside ours in each setting. Freed memory is treated as either trainer does: kept by
    ours, glibc's business in theirs; and kept by both."""
    chosen = cases(models)

    def images(case: Case) -> Tensor:
        return torch.rand(batch, *case.shape) * 2 - 1

    # Children of a process that has not trained yet, so before anything else.
    memory = {
        case.title: (
            memory_of(lambda case=case: case.theirs(images(case))[1], nullcontext),
            [memory_of(lambda case=case, s=setting: ours(case, images(case), s)[1]) for setting in settings],
        )
        for case in chosen
    }
    peak = matmul_flops_per_second()
    row = report.table(
        f"Beside the peers' own steps, batch {batch}",
        (
            "model", "ours in", "peer, ms", "ours, ms", "peer / ours", "both keeping memory", "GFLOP a step",
            "network calls", "MiB", "of the product's rate",
        ),
        f"float32 product: {peak / 1e9:.0f} GFLOP/s of processor time. At most {turns} turns of {steps} steps.",
    )  # fmt: skip
    for case in chosen:
        x = images(case)
        torch.manual_seed(0)
        their_nets, theirs = case.theirs(x)
        work = flops_of(theirs)
        for setting, used in zip(settings, memory[case.title][1], strict=True):
            own_nets, own = ours(case, x, setting)
            own_work = flops_of(own)
            calls = f"{calls_of(theirs, their_nets)} → {calls_of(own, own_nets)}"
            _, _, alike = alternate(own, theirs, turns=turns, steps=steps)
            a, b, ratios = alternate(own, theirs, turns=turns, steps=steps, around_other=nullcontext)
            row(
                case.title, setting, f"{1e3 * b:.1f}", f"{1e3 * a:.1f}", quartiles(ratios), quartiles(alike),
                f"{work / 1e9:.2f} → {own_work / 1e9:.2f}", calls, f"{memory[case.title][0]:.0f} → {used:.0f}",
                f"{work / b / peak:.0%} → {own_work / a / peak:.0%}",
            )  # fmt: skip
