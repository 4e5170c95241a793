"""What autoencoders with critics share: posteriors and priors, one rollout that computes what a phase's terms ask for,
and the rows of their terms.

A member of the family (α-GAN, AAE, WAE, the composer `hybrid`) says which rows it has and in which phase they are
played. Its networks have the names "encoder", "decoder", "discriminator" (of data) and "code_discriminator".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from twofold.errors import InputError, unknown
from twofold.game import Coefficient, Phase, Player, State, Term
from twofold.latents import petals, prior, sample_normal, split_mean_log_var, swiss_roll
from twofold.nets.augment import augmentation
from twofold.nets.build import Discriminator, build_encoder
from twofold.nets.mlp import MLP
from twofold.nets.norm import call_together
from twofold.recipe import require
from twofold.rollouts import LikelihoodDecoder, Penalty, convolves, labels
from twofold.spec import Spec
from twofold.terms.adversarial import AdversarialLoss, deceive_kinds, discriminate_kinds
from twofold.terms.divergence import kl_normal_per_dimension, mmd
from twofold.terms.matching import feature_reconstruction
from twofold.terms.penalty import gradient_penalty, r1, r2

POSTERIORS = ("normal", "deterministic", "implicit")
CODE_PRIORS = ("normal", "uniform", "sphere", "mixture", "swiss-roll")
LABELLED_PRIORS = ("mixture", "swiss-roll")
OPTIMIZERS = ("adam", "rmsprop")


# Codes.


@dataclass(frozen=True)
class Prior:
    """A distribution of codes (n, latent).

    Raises `InputError` for an unknown kind, a plane's prior with another number of dimensions than 2, or a standard
    deviation that is not above 0 or does not belong to the kind.
    """

    latent: int
    kind: str = "normal"
    """"normal" N(0, std²), "uniform" U(-1, 1), "sphere" (of radius √latent), or in the plane "mixture" (petals) and
    "swiss-roll"."""
    std: float = 1.0
    components: int = 10
    """Parts of the mixture or the roll; labels choose among them."""

    def __post_init__(self) -> None:
        if self.kind not in CODE_PRIORS:
            raise unknown("prior", self.kind, CODE_PRIORS)
        require(self.std > 0, f"prior_std is {self.std}; it must be above 0")
        require(self.std == 1 or self.kind == "normal", f"prior_std is for the normal prior, not for {self.kind}")
        require(
            self.latent == 2 or self.kind not in LABELLED_PRIORS,
            f"prior {self.kind} lies in the plane and latent is {self.latent}; use --latent 2",
        )

    @property
    def labelled(self) -> bool:
        """Whether a label chooses a part of this prior."""
        return self.kind in LABELLED_PRIORS

    def draw(self, n: int, *, like: Tensor, generator: torch.Generator, y: Tensor | None = None) -> Tensor:
        """Codes (n, latent) in the dtype of `like`, on the generator's device; `y` (n,) chooses the parts of a
        labelled prior and is nothing to the others."""
        if self.labelled:
            plane = petals if self.kind == "mixture" else swiss_roll
            return plane(n, components=self.components, y=y, generator=generator, dtype=like.dtype)
        z = prior(n, self.latent, like=like, generator=generator, kind=self.kind)
        return z if self.std == 1 else self.std * z


class ImplicitEncoder(nn.Module):
    """z = E(x, ε): an encoder that sees noise beside the data, whose q(z|x) can have any shape and no known density
    (the "universal approximator posterior" of Makhzani et al. 2015). The noise is one more channel of an image, or
    `features` more numbers of a vector. Without noise it is taken as 0."""

    def __init__(self, spec: Spec, outputs: int, *, features: int, **sizes: Any):
        super().__init__()
        more = 1 if spec.kind == "image" else features
        self.noise_shape = (more, *spec.shape[1:])
        seen = replace(spec, shape=(spec.shape[0] + more, *spec.shape[1:]), mean=None, std=None)
        self.net = build_encoder(seen, outputs, **sizes)

    def forward(self, x: Tensor, y: Tensor | None = None, *, noise: Tensor | None = None) -> Tensor:
        if noise is None:
            noise = x.new_zeros(len(x), *self.noise_shape)
        return cast(Tensor, self.net(torch.cat([x, noise], dim=1), y))


def build_posterior(kind: str, spec: Spec, latent: int, **sizes: Any) -> nn.Module:
    """The encoder of that kind of posterior; see `Codes.posterior`."""
    if kind == "implicit":
        return ImplicitEncoder(spec, latent, features=latent, **sizes)
    return build_encoder(spec, 2 * latent if kind == "normal" else latent, **sizes)


def build_code_discriminator(latent: int, *, width: int, depth: int, classes: int | None, spectral: bool) -> nn.Module:
    """Codes (batch, latent) → logits (batch,): leaky ReLUs, and no BatchNorm, under which α-GAN's did not learn."""
    net = MLP(latent, (width,) * depth, 1, activation="leaky", classes=classes, spectral=spectral)
    return Discriminator(net)


WANTS: Mapping[str, tuple[str, ...]] = {
    "z": (),
    "z_prior": (),
    "x_rec": ("z",),
    "x_fake": ("z_prior",),
    "real_logits": (),
    "rec_logits": ("x_rec",),
    "fake_logits": ("x_fake",),
    "real_features": ("real_logits",),
    "rec_features": ("rec_logits",),
    "code_logits": ("z",),
    "prior_logits": ("z_prior",),
}
"""The tensors that `Codes.rollout` can compute, and what each is computed from."""


@dataclass(frozen=True)
class Codes:
    """How the family draws codes, and which of its networks see the labels."""

    prior: Prior
    posterior: str = "normal"
    """"normal": diagonal, reparameterised; "deterministic": z = E(x); "implicit": z = E(x, ε)."""
    labelled: frozenset[str] = frozenset()
    """The networks that are conditioned on the labels, and "prior" if they choose the prior's parts."""
    feature_layer: int | None = None
    """The discriminator's block whose features are compared."""
    augment: str = "none"
    """What the discriminator of data sees images through; see `augmentation`."""

    def labels(self, state: State, net: str) -> Tensor | None:
        return labels(state.batch, net in self.labelled)

    def encode(self, state: State) -> dict[str, Tensor]:
        """{"x", "z"}, and of a normal posterior "mean" and "log_var"."""
        x, net = state.batch["x"], state.nets["encoder"]
        y = self.labels(state, "encoder")
        if self.posterior == "normal":
            mean, log_var = split_mean_log_var(net(x, y))
            z = sample_normal(mean, log_var, generator=state.generator)
            return {"x": x, "mean": mean, "log_var": log_var, "z": z}
        if self.posterior == "deterministic":
            return {"x": x, "z": net(x, y)}
        shape = (len(x), *cast(ImplicitEncoder, net).noise_shape)
        noise = torch.randn(shape, generator=state.generator, device=x.device, dtype=x.dtype)
        return {"x": x, "z": net(x, y, noise=noise)}

    def rollout(self, state: State, *, wants: frozenset[str]) -> dict[str, Tensor]:
        """The tensors named in `wants`, and those they are computed from; nothing else is computed, and each network
        is called once where that leaves the maths unchanged. The posterior's noise is drawn first, then the prior's.
        """
        needed = _with_causes(wants)
        x = state.batch["x"]
        out: dict[str, Tensor] = {"x": x}
        if "z" in needed:
            out |= self.encode(state)
        if "z_prior" in needed:
            y = self.labels(state, "prior")
            out["z_prior"] = self.prior.draw(len(x), like=x, generator=state.generator, y=y)
        self._decode(state, needed, out)
        self._judge(state, needed, out)
        judged = [("code_logits", "z"), ("prior_logits", "z_prior")]
        if judged := [(logits, z) for logits, z in judged if logits in needed]:
            y = self.labels(state, "code_discriminator")
            results = call_together(
                state.nets["code_discriminator"], *(out[z] for _, z in judged), ys=(y,) * len(judged)
            )
            out |= zip((logits for logits, _ in judged), results, strict=True)
        return out

    def _decode(self, state: State, needed: frozenset[str], out: dict[str, Tensor]) -> None:
        made = [(x, z) for x, z in (("x_rec", "z"), ("x_fake", "z_prior")) if x in needed]
        if not made:
            return
        net, y = state.nets["decoder"], self.labels(state, "decoder")
        results = call_together(net, *(out[z] for _, z in made), ys=(y,) * len(made))
        for (name, _), result in zip(made, results, strict=True):
            if name == "x_rec":
                out["params"] = result
            out[name] = picture(net, result)

    def _judge(self, state: State, needed: frozenset[str], out: dict[str, Tensor]) -> None:
        kinds = [kind for kind in ("real", "rec", "fake") if f"{kind}_logits" in needed]
        if not kinds:
            return
        net, y = state.nets["discriminator"], self.labels(state, "discriminator")
        seen = augmentation(self.augment, out["x"], generator=state.generator)
        xs = [seen(out["x" if kind == "real" else f"x_{kind}"]) for kind in kinds]
        out |= zip((f"{kind}_seen" for kind in kinds), xs, strict=True)
        if not needed & {"real_features", "rec_features"}:
            results = call_together(net, *xs, ys=(y,) * len(xs))
            out |= zip((f"{kind}_logits" for kind in kinds), results, strict=True)
            return
        judge = partial(cast(Discriminator, net).forward_with_features, layer=cast(int, self.feature_layer))
        for kind, (logits, features) in zip(
            kinds, call_together(net, *xs, ys=(y,) * len(xs), method=judge), strict=True
        ):
            out |= {f"{kind}_logits": logits, f"{kind}_features": features}

    def abilities(self) -> dict[str, Callable[..., Any]]:
        """prior, encode (a normal posterior's mean; an implicit one without noise), decode, reconstruct, sample; and
        code_rates where posterior and prior are both normal."""

        def seen(net: str, y: Tensor | None) -> Tensor | None:
            return y if net in self.labelled else None

        def draw(nets: nn.ModuleDict, n: int, *, y: Tensor | None = None, generator: torch.Generator) -> Tensor:
            like = next(nets["decoder"].parameters())
            return self.prior.draw(n, like=like, generator=generator, y=seen("prior", y))

        def encode(nets: nn.ModuleDict, x: Tensor, *, y: Tensor | None = None) -> Tensor:
            out = nets["encoder"](x, seen("encoder", y))
            return split_mean_log_var(out)[0] if self.posterior == "normal" else out

        def decode(nets: nn.ModuleDict, z: Tensor, *, y: Tensor | None = None) -> Tensor:
            return picture(nets["decoder"], nets["decoder"](z, seen("decoder", y)))

        def code_rates(nets: nn.ModuleDict, x: Tensor, *, y: Tensor | None = None) -> Tensor:
            mean, log_var = split_mean_log_var(nets["encoder"](x, seen("encoder", y)))
            return kl_normal_per_dimension(mean / self.prior.std, log_var - 2 * math.log(self.prior.std))

        return ({"code_rates": code_rates} if self.posterior == self.prior.kind == "normal" else {}) | {
            "prior": draw,
            "encode": encode,
            "decode": decode,
            "reconstruct": lambda nets, x, *, y=None: decode(nets, encode(nets, x, y=y), y=y),
            "sample": lambda nets, n, *, y=None, generator: decode(nets, draw(nets, n, y=y, generator=generator), y=y),
        }


def picture(decoder: nn.Module, output: Tensor) -> Tensor:
    """What a decoder's output shows: its likelihood's mean, or the output itself if it has no likelihood."""
    return decoder.likelihood.mean(output) if isinstance(decoder, LikelihoodDecoder) else output


def _with_causes(wants: frozenset[str]) -> frozenset[str]:
    causes = frozenset(cause for want in wants for cause in WANTS[want])
    return wants if causes <= wants else _with_causes(wants | causes)


# Rows: a term, and the tensors that the rollout must hold for it.


@dataclass(frozen=True)
class Row:
    """A term and the tensors of the rollout that it reads."""

    term: Term
    wants: tuple[str, ...]


def phase(name: str, codes: Codes, rows: Sequence[Row], *, repeats: int | Callable[[State], int] = 1) -> Phase:
    """A phase of these rows, with a rollout that computes what they want."""
    wants = frozenset(want for row in rows for want in row.wants)
    return Phase(name, partial(codes.rollout, wants=wants), tuple(row.term for row in rows), repeats=repeats)


@dataclass(frozen=True)
class Realism:
    """The game between decoder and discriminator over reconstructions x_rec, prior samples x_fake, or both."""

    loss: AdversarialLoss
    weigh: str
    """"sum" or "mean" of several kinds of fakes; see `discriminate_kinds`."""
    kinds: tuple[str, ...] = ("rec", "fake")

    @property
    def logits(self) -> tuple[str, ...]:
        return tuple(f"{kind}_logits" for kind in self.kinds)

    def decoder(self, weight: Coefficient = 1.0) -> Row:
        """The decoder's side. It reaches the decoder only: not the encoder, through x_rec, and not the judge."""
        real = ("real_logits",) if self.loss.needs_real else ()

        def loss(state: State) -> Tensor:
            fakes = [state[name] for name in self.logits]
            return deceive_kinds(self.loss, fakes, state["real_logits"] if real else None, weigh=self.weigh)

        return Row(Term("adversarial_decoder", loss, to={"decoder": weight}), (*self.logits, *real))

    def discriminator(self) -> Row:
        def loss(state: State) -> Tensor:
            fakes = [state[name] for name in self.logits]
            return discriminate_kinds(self.loss, state["real_logits"], fakes, weigh=self.weigh)

        term = Term("adversarial_discriminator", loss, to={"discriminator": 1.0})
        return Row(term, ("real_logits", *self.logits))

    def penalty(self, penalty: Penalty, codes: Codes) -> list[Row]:
        """The discriminator's penalty; none, or one row. Fakes of two kinds take turns from example to example."""

        def fake(state: State) -> Tensor:
            x, *others = (state[f"{kind}_seen"] for kind in self.kinds)
            if not others:
                return x
            even = torch.arange(len(x), device=x.device).view(-1, *[1] * (x.ndim - 1)) % 2 == 0
            return torch.where(even, x, others[0])

        made = ("real_logits", *self.logits)
        return _penalty_rows(penalty, codes, "discriminator", "", lambda s: s["real_seen"], fake, made)


@dataclass(frozen=True)
class CodeCritic:
    """The game between encoder and code discriminator, which says how probably a code came from the prior."""

    loss: AdversarialLoss

    def encoder(self, weight: Coefficient = 1.0) -> Row:
        """The encoder's side: its codes are the fakes."""
        real = ("prior_logits",) if self.loss.needs_real else ()

        def loss(state: State) -> Tensor:
            return self.loss.generator(state["code_logits"], state["prior_logits"] if real else None)

        return Row(Term("code_adversarial_encoder", loss, to={"encoder": weight}), ("code_logits", *real))

    def discriminator(self) -> Row:
        def loss(state: State) -> Tensor:
            return self.loss.discriminator(state["prior_logits"], state["code_logits"])

        term = Term("code_adversarial_discriminator", loss, to={"code_discriminator": 1.0})
        return Row(term, ("prior_logits", "code_logits"))

    def penalty(self, penalty: Penalty, codes: Codes) -> list[Row]:
        """The code discriminator's penalty; none, or one row."""
        made = ("z", "z_prior")
        return _penalty_rows(
            penalty, codes, "code_discriminator", "code_", lambda s: s["z_prior"], lambda s: s["z"], made
        )


def _penalty_rows(
    penalty: Penalty,
    codes: Codes,
    critic: str,
    prefix: str,
    real: Callable[[State], Tensor],
    fake: Callable[[State], Tensor],
    made: tuple[str, ...],
) -> list[Row]:
    if penalty.kind == "none" or penalty.weight == 0:
        return []

    def loss(state: State) -> Tensor:
        judge = partial(state.nets[critic], y=codes.labels(state, critic))
        if penalty.kind == "r1":
            return r1(judge, real(state))
        if penalty.kind == "r2":
            return r2(judge, fake(state))
        return gradient_penalty(judge, real(state), fake(state), generator=state.generator)

    name = prefix + penalty.kind.replace("-", "_")
    return [Row(Term(name, loss, to={critic: penalty.weight}, every=penalty.every), made)]


def mmd_row(weight: Coefficient, *, kernel: str, prior_std: float = 1.0) -> Row:
    """The maximum mean discrepancy between the batch's codes and as many draws from the prior: encoder only."""

    def loss(state: State) -> Tensor:
        # The kernel's scales are those of a standard Normal prior.
        return mmd(state["z"] / prior_std, state["z_prior"] / prior_std, kernel=kernel)

    return Row(Term("mmd", loss, to={"encoder": weight}), ("z", "z_prior"))


def feature_row(to: Mapping[str, Coefficient], *, variance: Callable[[int], float]) -> Row:
    """½ ‖Dis_l(x_rec) - Dis_l(x)‖² divided by `variance(number of features)`, mean over the batch."""

    def loss(state: State) -> Tensor:
        real = state["real_features"]
        return feature_reconstruction(state["rec_features"], real).mean() / variance(real[0].numel())

    return Row(Term("feature_reconstruction", loss, to=to), ("real_features", "rec_features"))


PAPER_FEATURES = 256 * 8 * 8
"""Features in the layer that Larsen et al. 2016 compare, for their 64×64 images."""


def feature_variance(std: float | None) -> Callable[[int], float]:
    """The variance of the Normal on a layer of n features: std², or without it n / 16,384, so that a layer says as
    much in all as the paper's does at variance 1."""
    return lambda features: features / PAPER_FEATURES if std is None else std**2


# Settings that the family's Configs share.


@dataclass(frozen=True)
class Training:
    """Optimizers of the family's players."""

    optimizer: str = "adam"
    learning_rate: float = 1e-3
    beta1: float = 0.5
    beta2: float = 0.999
    clip_norm: float | None = None
    rates: Mapping[str, float | None] = field(default_factory=dict)
    """A player's own learning rate; None or absent: `learning_rate`."""

    def __post_init__(self) -> None:
        for name, rate in {"learning_rate": self.learning_rate, **self.rates}.items():
            require(rate is None or rate > 0, f"the learning rate of {name} is {rate}; it must be above 0")

    def player(self, name: str, net: nn.Module, **settings: Any) -> Player:
        """The player of that name; `settings` are `Player`'s, such as its EMA."""
        rate = self.rates.get(name) or self.learning_rate
        optimizer: Any = {
            "adam": partial(torch.optim.Adam, lr=rate, betas=(self.beta1, self.beta2)),
            "rmsprop": partial(torch.optim.RMSprop, lr=rate),
        }[self.optimizer]
        return Player(net, optimizer, clip_norm=self.clip_norm, **settings)


def network_sizes(config: Any, spec: Spec) -> dict[str, Any]:
    """The arguments of `build_encoder` and its like from the Config fields arch, width, depth and hidden."""
    return {
        "arch": config.arch,
        "width": config.width,
        "depth": config.depth,
        "hidden": config.hidden if convolves(config.arch, spec) else 0,
    }


def require_room(latent: int, posterior: str, spec: Spec) -> None:
    """Raise `InputError` if codes that are a function of the data would have more dimensions than the data has values:
    they could not fill the prior, and whoever compares the two would always tell them apart."""
    require(
        posterior != "deterministic" or latent <= spec.size,
        f"latent is {latent}, but this data has {spec.size} values, so codes that are a function of it cannot fill "
        f"{latent} dimensions; use --latent {spec.size} or less, or --posterior normal",
    )


def latent_of(config_latent: int | None, usual: int, spec: Spec) -> int:
    """The code's size: the Config's, or the usual one, or as many as the data has values if those are fewer."""
    latent = min(usual, spec.size) if config_latent is None else config_latent
    if latent < 1:
        raise InputError(f"latent is {latent}; it starts at 1")
    return latent
