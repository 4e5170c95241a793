"""Rollouts, terms and abilities shared by families of recipes.

A family's members differ in their rows; what they compute before the rows is here, once: first for models with an
encoder and a decoder, then for models with a generator and a discriminator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from twofold.coefficients import Ramp, product
from twofold.errors import InputError
from twofold.game import Batch, Coefficient, Game, Phase, Player, Stage, State, Term
from twofold.latents import prior, sample_normal, split_mean_log_var
from twofold.nets.augment import augmentation
from twofold.nets.build import Discriminator, build_decoder, build_encoder
from twofold.nets.norm import call_together
from twofold.recipe import Recipe
from twofold.spec import Spec
from twofold.terms.adversarial import AdversarialLoss
from twofold.terms.divergence import free_bits, importance_weighted_bound, kl_normal, kl_normal_per_dimension
from twofold.terms.likelihood import Likelihood, build_likelihood, normal_nll
from twofold.terms.penalty import gradient_penalty, r1, r2

DRAWS = 4096
"""Codes that `iw_bound` decodes at a time."""


def labels(batch: Batch, conditional: bool) -> Tensor | None:
    """The batch's labels for a conditional model, None for an unconditional one."""
    return batch["y"] if conditional else None


def classes_for(spec: Spec, conditional: bool) -> int | None:
    """The number of labels a conditional model is built for; None for an unconditional one."""
    if conditional and spec.classes is None:
        raise InputError("conditional models need labels, but this data has none; leave out --conditional")
    return spec.classes if conditional else None


class LikelihoodDecoder(nn.Module):
    """A decoder network together with the likelihood that reads its output; one player, since a learned scale trains
    with the decoder.

    Calling it gives the likelihood's parameters (batch, outputs, …).
    """

    def __init__(self, net: nn.Module, likelihood: Likelihood):
        super().__init__()
        self.net = net
        self.likelihood = likelihood

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return self.net(z, y)


def levels(spec: Spec) -> int:
    """Number of values a pixel can take: of whole-number images what their range holds, otherwise 256."""
    whole = spec.kind == "image" and spec.dtype.startswith(("int", "uint", "bool"))
    return round(spec.high - spec.low) + 1 if whole else 256


def draw_binary(x: Tensor, *, generator: torch.Generator) -> Tensor:
    """Each grey value of x in [-1, 1] as the probability of +1 against -1."""
    uniform = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return torch.where(uniform < (x + 1) / 2, 1.0, -1.0).to(x.dtype)


def convolves(arch: str, spec: Spec) -> bool:
    """Whether networks of this arch for this data are convolutional."""
    return arch == "conv" and spec.kind == "image"


def squash(x: Tensor, spec: Spec) -> Tensor:
    """A generator's raw output in the model's range: tanh for images, unchanged for vectors."""
    return torch.tanh(x) if spec.kind == "image" else x


# Models with an encoder and a decoder.


def posterior(state: State, conditional: bool) -> dict[str, Tensor]:
    """q(z|x) and one draw from it: {"x", "mean", "log_var", "z"}."""
    x = state.batch["x"]
    mean, log_var = split_mean_log_var(state.nets["encoder"](x, labels(state.batch, conditional)))
    return {"x": x, "mean": mean, "log_var": log_var, "z": sample_normal(mean, log_var, generator=state.generator)}


def autoencode(state: State, *, conditional: bool) -> dict[str, Tensor]:
    """x → q(z|x) → z → the likelihood's parameters: adds {"params"} to `posterior`."""
    out = posterior(state, conditional)
    return out | {"params": state.nets["decoder"](out["z"], labels(state.batch, conditional))}


def rate(state: State) -> Tensor:
    """KL(q(z|x) ‖ N(0, I)) in nats, mean over the batch."""
    return kl_normal(state["mean"], state["log_var"]).mean()


def distortion(state: State) -> Tensor:
    """-log p(x|z) in nats, summed over dimensions, mean over the batch."""
    return likelihood_of(state.nets).nll(state["params"], state["x"]).mean()


def likelihood_of(nets: nn.ModuleDict) -> Likelihood:
    """The likelihood inside the player "decoder"."""
    return cast(LikelihoodDecoder, nets["decoder"]).likelihood


def autoencoder_abilities(latent: int, mean: Callable[..., Tensor]) -> dict[str, Callable[..., Any]]:
    """Abilities of any model with a Normal encoder. `mean(nets, z, y)` decodes a code to x."""

    def draw(nets: nn.ModuleDict, n: int, *, generator: torch.Generator) -> Tensor:
        return prior(n, latent, like=next(nets["decoder"].parameters()), generator=generator)

    def encode(nets: nn.ModuleDict, x: Tensor, *, y: Tensor | None = None) -> Tensor:
        return split_mean_log_var(nets["encoder"](x, y))[0]

    def decode(nets: nn.ModuleDict, z: Tensor, *, y: Tensor | None = None) -> Tensor:
        return mean(nets, z, y)

    def code_rates(nets: nn.ModuleDict, x: Tensor, *, y: Tensor | None = None) -> Tensor:
        return kl_normal_per_dimension(*split_mean_log_var(nets["encoder"](x, y)))

    return {
        "prior": draw,
        "code_rates": code_rates,
        "encode": encode,
        "decode": decode,
        "reconstruct": lambda nets, x, *, y=None: decode(nets, encode(nets, x, y=y), y=y),
        "sample": lambda nets, n, *, y=None, generator: decode(nets, draw(nets, n, generator=generator), y=y),
    }


def elbo(nets: nn.ModuleDict, x: Tensor, *, y: Tensor | None = None, generator: torch.Generator) -> dict[str, Tensor]:
    """Rate and distortion of each example from one draw of the posterior, in nats of the model's range."""
    mean, log_var = split_mean_log_var(nets["encoder"](x, y))
    params = nets["decoder"](sample_normal(mean, log_var, generator=generator), y)
    return {"rate_nats": kl_normal(mean, log_var), "distortion_nats": likelihood_of(nets).nll(params, x)}


def log_weights(
    nets: nn.ModuleDict,
    x: Tensor,
    *,
    k: int,
    y: Tensor | None = None,
    generator: torch.Generator,
    kl_weight: float = 1.0,
) -> Tensor:
    """log p(x, z_i) - log q(z_i | x) for k draws z_i of q(z|x), (n, k): the importance weights of Burda et al. 2016.

    kl_weight: multiplies log p(z_i) - log q(z_i | x), whose mean is the negative KL; below 1 while training warms up.
    """
    mean, log_var = (v.repeat_interleave(k, 0) for v in split_mean_log_var(nets["encoder"](x, y)))
    z = sample_normal(mean, log_var, generator=generator)
    params = nets["decoder"](z, None if y is None else y.repeat_interleave(k, 0))
    log_likelihood = -likelihood_of(nets).nll(params, x.repeat_interleave(k, 0))
    log_prior = -normal_nll(torch.zeros_like(z), z)
    log_posterior = -normal_nll(mean, z, log_std=0.5 * log_var)
    return (log_likelihood + kl_weight * (log_prior - log_posterior)).unflatten(0, (len(x), k))


def iw_bound(
    nets: nn.ModuleDict, x: Tensor, *, y: Tensor | None = None, generator: torch.Generator, k: int
) -> dict[str, Tensor]:
    """The importance-weighted bound of log p(x) from k draws of the posterior, in nats of the model's range."""
    # At most DRAWS codes are decoded at a time, so that k = 5000 fits in memory.
    size = max(1, DRAWS // len(x))
    parts = [min(size, k - start) for start in range(0, k, size)]
    weights = torch.cat([log_weights(nets, x, k=part, y=y, generator=generator) for part in parts], dim=1)
    return {"log_prob_nats": importance_weighted_bound(weights)}


def warmed_up(weight: float, examples: int) -> Coefficient:
    """KL annealing (Bowman et al. 2016): a weight that rises from 0 over so many examples; 0: it is there at once."""
    if examples < 0:
        raise InputError(f"kl_warmup_examples is {examples}; it starts at 0")
    return product(weight, Ramp(0.0, 1.0, examples)) if examples else weight


def kl_term(weight: Coefficient, *, free_bits_nats: float = 0.0) -> Term:
    """The row of the KL to N(0, I): it reaches the encoder only."""
    if free_bits_nats < 0:
        raise InputError(f"free_bits_nats is {free_bits_nats}; it starts at 0")

    def floored(state: State) -> Tensor:
        return free_bits(kl_normal_per_dimension(state["mean"], state["log_var"]), nats=free_bits_nats)

    return Term("kl", floored if free_bits_nats else rate, to={"encoder": weight})


def variational_networks(config: Any, spec: Spec, *, activation: str = "relu") -> tuple[nn.Module, LikelihoodDecoder]:
    """Encoder and decoder with its likelihood, as the Configs of `vae`, `beta-vae`, `iwae` and `factor-vae` ask."""
    sizes: dict[str, Any] = {
        "arch": config.arch,
        "width": config.width,
        "depth": config.depth,
        "hidden": config.hidden if convolves(config.arch, spec) else 0,
        "norm": config.norm,
        "activation": activation,
        "classes": classes_for(spec, config.conditional),
    }
    likelihood = likelihood_for(config, spec)
    encoder = build_encoder(spec, 2 * config.latent, **sizes)
    decoder = build_decoder(spec, config.latent, outputs=likelihood.outputs(spec.shape[0]), **sizes)
    return encoder, LikelihoodDecoder(decoder, likelihood)


def likelihood_for(config: Any, spec: Spec) -> Likelihood:
    """The likelihood that the Config's `likelihood` and `likelihood_scale` name, for data that looks like `spec`."""
    return build_likelihood(
        config.likelihood, bounded=spec.kind == "image", scale=config.likelihood_scale, levels=levels(spec)
    )


def variational_players(
    config: Any, encoder: nn.Module, decoder: nn.Module, *, optimizer: Any = None, lr_factor: Any = None
) -> dict[str, Player]:
    """Encoder and decoder with Adam at the Config's rate, unless there is another `optimizer`."""
    optimizer = optimizer or partial(torch.optim.Adam, lr=config.learning_rate)
    return {
        "encoder": Player(encoder, optimizer, lr_factor, config.clip_norm),
        "decoder": Player(
            decoder, optimizer, lr_factor, config.clip_norm, ema_half_life_examples=config.ema_half_life_examples
        ),
    }


def reconstruction_term() -> Term:
    """The row of -log p(x|z): it reaches both."""
    return Term("reconstruction", distortion, to={"encoder": 1.0, "decoder": 1.0})


def variational_abilities(latent: int) -> dict[str, Callable[..., Any]]:
    """Abilities of an encoder and a decoder with a likelihood, whatever they were trained by."""
    abilities = autoencoder_abilities(latent, lambda nets, z, y: likelihood_of(nets).mean(nets["decoder"](z, y)))
    return abilities | {"elbo": elbo, "iw_bound": iw_bound}


VARIATIONAL_OPTIMIZERS = {"adam": torch.optim.Adam, "adagrad": torch.optim.Adagrad}


def variational_autoencoder(
    config: Any, spec: Spec, *, kl: Term, networks: tuple[nn.Module, LikelihoodDecoder]
) -> Recipe:
    """Encoder, decoder with a likelihood, and one phase: the given row of the KL beside the reconstruction's.

    `config` has the fields that the Configs of `vae` and `beta-vae` share.
    """
    rollout = partial(autoencode, conditional=config.conditional)
    optimizer = partial(VARIATIONAL_OPTIMIZERS[config.optimizer], lr=config.learning_rate)
    game = Game(
        players=variational_players(config, *networks, optimizer=optimizer),
        phases=(Phase("autoencoder", rollout, (kl, reconstruction_term())),),
    )
    return Recipe((Stage("train", game),), spec, variational_abilities(config.latent), config.conditional)


# Models with a generator and a discriminator.


@dataclass(frozen=True)
class Penalty:
    """What keeps a discriminator smooth: its kind, weight and how lazily it is evaluated."""

    kind: str
    """"none", "gradient-penalty" (towards norm 1, between real and generated), "r1" (real) or "r2" (generated)."""
    weight: float
    every: int = 1

    def term(self, discriminator: str, conditional: bool) -> list[Term]:
        """The row of the penalty: it reaches the discriminator only."""
        if self.kind == "none" or self.weight == 0:
            return []
        name = self.kind.replace("-", "_")
        loss = partial(_penalty, kind=self.kind, discriminator=discriminator, conditional=conditional)
        return [Term(name, loss, to={discriminator: self.weight}, every=self.every)]


PENALTIES = ("none", "gradient-penalty", "r1", "r2")


def _penalty(state: State, *, kind: str, discriminator: str, conditional: bool) -> Tensor:
    critic = partial(state.nets[discriminator], y=labels(state.batch, conditional))
    if kind == "r1":
        return r1(critic, state["x"])
    if kind == "r2":
        return r2(critic, state["x_fake"])
    return gradient_penalty(critic, state["x"], state["x_fake"], generator=state.generator)


def generate(state: State, *, latent: int, noise: str, conditional: bool) -> Tensor:
    """As many generated examples as the batch has, with the batch's labels."""
    like = next(state.nets["generator"].parameters())
    z = prior(len(state.batch["x"]), latent, like=like, generator=state.generator, kind=noise)
    return state.nets["generator"](z, labels(state.batch, conditional))


def adversarial_game(
    players: Mapping[str, Player],
    *,
    loss: AdversarialLoss,
    penalty: Penalty,
    latent: int,
    noise: str,
    conditional: bool,
    critic_plays: int = 1,
    augment: str = "none",
) -> Game:
    """Alternating play of "generator" and "discriminator": `critic_plays` plays of the discriminator on fresh
    batches, then one of the generator. The discriminator, and its penalty, see images through `augment`."""
    fake = partial(generate, latent=latent, noise=noise, conditional=conditional)

    def judge(state: State, x: Tensor, x_fake: Tensor) -> dict[str, Tensor]:
        y = labels(state.batch, conditional)
        seen = augmentation(augment, x, generator=state.generator)
        x, x_fake = seen(x), seen(x_fake)
        real_logits, fake_logits = call_together(state.nets["discriminator"], x, x_fake, ys=(y, y))
        return {"x": x, "x_fake": x_fake, "real_logits": real_logits, "fake_logits": fake_logits}

    def discriminate(state: State) -> dict[str, Tensor]:
        return judge(state, state.batch["x"], fake(state))

    def deceive(state: State) -> dict[str, Tensor]:
        if loss.needs_real:
            return judge(state, state.batch["x"], fake(state))
        x_fake = fake(state)
        seen = augmentation(augment, x_fake, generator=state.generator)
        return {"fake_logits": state.nets["discriminator"](seen(x_fake), labels(state.batch, conditional))}

    def generator_loss(state: State) -> Tensor:
        return loss.generator(state["fake_logits"], state["real_logits"] if loss.needs_real else None)

    return Game(
        players=players,
        phases=(
            Phase(
                "discriminator",
                discriminate,
                (
                    Term(
                        "adversarial_discriminator",
                        lambda s: loss.discriminator(s["real_logits"], s["fake_logits"]),
                        to={"discriminator": 1.0},
                    ),
                    *penalty.term("discriminator", conditional),
                ),
                repeats=critic_plays,
            ),
            Phase(
                "generator",
                deceive,
                (Term("adversarial_generator", generator_loss, to={"generator": 1.0}),),
            ),
        ),
    )


def generator_abilities(latent: int, noise: str) -> dict[str, Callable[..., Any]]:
    """Abilities of a generator whose output is already in the model's range."""

    def draw(nets: nn.ModuleDict, n: int, *, generator: torch.Generator) -> Tensor:
        return prior(n, latent, like=next(nets["generator"].parameters()), generator=generator, kind=noise)

    def decode(nets: nn.ModuleDict, z: Tensor, *, y: Tensor | None = None) -> Tensor:
        return nets["generator"](z, y)

    return {
        "prior": draw,
        "decode": decode,
        "sample": lambda nets, n, *, y=None, generator: decode(nets, draw(nets, n, generator=generator), y=y),
    }


def critic_abilities(critic: nn.Module) -> dict[str, Callable[..., Any]]:
    """`judge`, and `features` if it has hidden layers, of the player "discriminator", which is `critic` and sees data
    and, in a conditional model, the labels."""

    def judge(nets: nn.ModuleDict, x: Tensor, *, y: Tensor | None = None) -> Tensor:
        return nets["discriminator"](x, y)

    def features(nets: nn.ModuleDict, x: Tensor, *, y: Tensor | None = None) -> Tensor:
        net = cast(Discriminator, nets["discriminator"])
        return net.forward_with_features(x, y, layer=net.blocks)[1].flatten(1)

    deep = isinstance(critic, Discriminator) and critic.blocks > 0
    return {"judge": judge} | ({"features": features} if deep else {})


class Generator(nn.Module):
    """A decoder network whose output is squashed to the model's range."""

    def __init__(self, net: nn.Module, spec: Spec):
        super().__init__()
        self.net = net
        self.spec = spec

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return squash(self.net(z, y), self.spec)
