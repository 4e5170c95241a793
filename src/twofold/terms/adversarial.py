"""Adversarial losses, each a pair: what the discriminator minimises and what the generator minimises.

All take logits (or critic values) before any sigmoid, of any shape, and return the mean over all of them, a scalar: the
patches of a patch discriminator count as examples. Two kinds of fakes, such as a VAE-GAN's reconstructions and samples,
are for `discriminate_kinds` and `deceive_kinds`, which say what each kind weighs.

Convention: the discriminator is the probability of "real" (or "from the prior" for codes), so that the optimal logit is
log p_real / p_fake. Everything is finite in value and gradient at ±100.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, final

import torch
import torch.nn.functional as F
from torch import Tensor

from twofold.errors import InputError, unknown
from twofold.terms.matching import require_same_shape, single_precision


class AdversarialLoss(Protocol):
    """The two sides of one adversarial game; each side minimises its own function."""

    needs_real: ClassVar[bool]
    """Whether `generator` needs the real logits as well."""

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Scalar to be minimised by the discriminator, from its logits of real and of generated examples."""
        ...

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        """Scalar to be minimised by the generator, from the discriminator's logits."""
        ...


def bce_real(logits: Tensor, label: float = 1.0) -> Tensor:
    """Cross-entropy of "this is real", -label · log D - (1 - label) · log(1 - D), elementwise and never reduced.

    `label` below 1 is one-sided label smoothing (Salimans et al. 2016, section 3.4).

    >>> import torch
    >>> bce_real(torch.tensor([0.0, -100.0]))
    tensor([  0.6931, 100.0000])
    """
    logits = single_precision(logits)
    loss = -F.logsigmoid(logits)
    # log(1 - D) = log D - logit
    return loss if label == 1 else loss + (1 - label) * logits


def bce_fake(logits: Tensor) -> Tensor:
    """Cross-entropy of "this is generated", -log(1 - D), elementwise and never reduced."""
    return -F.logsigmoid(-single_precision(logits))


def log_ratio_generator(logits: Tensor) -> Tensor:
    """-logit = log(1 - D) - log D, elementwise, to be minimised by the generator; its gradient is -1 at every logit.

    α-GAN (Rosca et al. 2017), R_D and R_C of algorithm 1. At the optimal discriminator its mean over generated examples
    is KL(p_fake ‖ p_real), and neither saturates nor explodes where the discriminator is sure.
    """
    return -single_precision(logits)


@final
@dataclass(frozen=True)
class Minimax:
    """Goodfellow et al. 2014, eq. 1: D minimises -log D(x) - log(1 - D(x_fake)), G minimises log(1 - D(x_fake)).

    G's gradient is -D(x_fake): it saturates, vanishing when D is sure of its fakes. Larsen et al. 2016 use it.
    At the optimal D the discriminator's loss is 2 log 2 - 2 JSD.
    """

    real_label: float = 1.0
    """Label of real examples, in (0, 1]; below 1 is one-sided smoothing. The generator is not smoothed."""
    needs_real: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_real_label(self.real_label)

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return bce_real(real, self.real_label).mean() + bce_fake(fake).mean()

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        return -bce_fake(fake).mean()


@final
@dataclass(frozen=True)
class NonSaturating:
    """Goodfellow et al. 2014, section 3: D as in `Minimax`, G minimises -log D(x_fake), whose gradient is -(1 - D)."""

    real_label: float = 1.0
    """Label of real examples, in (0, 1]; below 1 is one-sided smoothing. The generator is not smoothed."""
    needs_real: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_real_label(self.real_label)

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return bce_real(real, self.real_label).mean() + bce_fake(fake).mean()

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        return bce_real(fake).mean()


@final
@dataclass(frozen=True)
class LogRatio:
    """Rosca et al. 2017 (α-GAN), algorithm 1: D as in `Minimax`, G minimises log(1 - D) - log D = -logit, whose
    gradient is -1 at every logit; see `log_ratio_generator`."""

    real_label: float = 1.0
    """Label of real examples, in (0, 1]; below 1 is one-sided smoothing. The generator is not smoothed."""
    needs_real: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_real_label(self.real_label)

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return bce_real(real, self.real_label).mean() + bce_fake(fake).mean()

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        return log_ratio_generator(fake).mean()


@final
@dataclass(frozen=True)
class LeastSquares:
    """Mao et al. 2017, eq. 2: D minimises ½ (D(x) - b)² + ½ (D(x_fake) - a)², G minimises ½ (D(x_fake) - c)².

    The defaults are their eq. 9; (a, b, c) = (-1, 1, 0), eq. 8, makes G minimise a Pearson χ² divergence.
    """

    a: float = 0.0
    """What D should say of a generated example."""
    b: float = 1.0
    """What D should say of a real example."""
    c: float = 1.0
    """What G wants D to say of a generated example."""
    needs_real: ClassVar[bool] = False

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return 0.5 * (_square(real, self.b) + _square(fake, self.a))

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        return 0.5 * _square(fake, self.c)


@final
@dataclass(frozen=True)
class Hinge:
    """Lim & Ye 2017: D minimises max(0, 1 - D(x)) + max(0, 1 + D(x_fake)), G minimises -D(x_fake)."""

    needs_real: ClassVar[bool] = False

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.relu(1 - single_precision(real)).mean() + F.relu(1 + single_precision(fake)).mean()

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        return -single_precision(fake).mean()


@final
@dataclass(frozen=True)
class Wasserstein:
    """Arjovsky et al. 2017, eq. 2: the critic minimises f(x_fake) - f(x), G minimises -f(x_fake).

    Minus the critic's loss estimates the Wasserstein-1 distance, up to the critic's Lipschitz constant; that constant
    must be bounded by `penalty.clip_weights` or `penalty.gradient_penalty`.
    """

    needs_real: ClassVar[bool] = False

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return single_precision(fake).mean() - single_precision(real).mean()

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        return -single_precision(fake).mean()


@final
@dataclass(frozen=True)
class Relativistic:
    """Paired relativistic loss: D minimises -log σ(D(x) - D(x_fake)), G minimises -log σ(D(x_fake) - D(x)).

    Jolicoeur-Martineau 2019, RSGAN; Huang et al. 2024 (R3GAN) as RpGAN. The i-th fake is compared with the i-th real
    example, so both have the same shape. The real logits carry no gradient to a generator, but set its weight.
    """

    needs_real: ClassVar[bool] = True

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        require_same_shape(real=real, fake=fake)
        return bce_real(single_precision(real) - single_precision(fake)).mean()

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        real = _required(real, "relativistic")
        require_same_shape(fake=fake, real=real)
        return bce_real(single_precision(fake) - single_precision(real)).mean()


@final
@dataclass(frozen=True)
class RelativisticAverage:
    """Relativistic average loss (Jolicoeur-Martineau 2019, RaSGAN): each logit against the mean of the other side.

    D minimises the cross-entropy of "real" for D(x) - mean D(x_fake) plus that of "generated" for
    D(x_fake) - mean D(x); G minimises the same with the two sides exchanged. The means run over all logits of
    the batch, and the two sides may differ in number.
    """

    needs_real: ClassVar[bool] = True

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        real, fake = single_precision(real), single_precision(fake)
        return bce_real(real - fake.mean()).mean() + bce_fake(fake - real.mean()).mean()

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        return self.discriminator(real=fake, fake=_required(real, "relativistic-average"))


ADVERSARIAL: dict[str, Callable[..., AdversarialLoss]] = {
    "minimax": Minimax,
    "non-saturating": NonSaturating,
    "log-ratio": LogRatio,
    "least-squares": LeastSquares,
    "hinge": Hinge,
    "wasserstein": Wasserstein,
    "relativistic": Relativistic,
    "relativistic-average": RelativisticAverage,
}
SMOOTHABLE = ("minimax", "non-saturating", "log-ratio")
"""The losses whose discriminator minimises a cross-entropy: they have a label to smooth, and a sum over kinds."""
WEIGH = ("sum", "mean")


def build_adversarial(name: str, *, real_label: float = 1.0) -> AdversarialLoss:
    """The loss called `name` in `ADVERSARIAL`, with one-sided label smoothing if `real_label` is below 1.

    Raises `InputError` for an unknown name, a label outside (0, 1], or smoothing of a loss that has no labels.

    >>> build_adversarial("non-saturating", real_label=0.9)
    NonSaturating(real_label=0.9)
    """
    if name not in ADVERSARIAL:
        raise unknown("adversarial loss", name, ADVERSARIAL)
    if name in SMOOTHABLE:
        return ADVERSARIAL[name](real_label=real_label)
    if real_label != 1:
        raise InputError(
            f"adversarial loss {name!r} has no label to smooth (real_label is {real_label}); "
            f"leave it at 1 or choose one of: {', '.join(SMOOTHABLE)}"
        )
    return ADVERSARIAL[name]()


def how_to_weigh(name: str, weigh: str | None = None) -> str:
    """How the loss called `name` weighs several kinds of fakes: `weigh`, or if None the papers' "sum" for
    cross-entropies and "mean" for all others.

    Raises `InputError` for a sum where there is none: what a Wasserstein critic says of real and of generated examples
    must weigh the same in all, or adding a constant to the critic would change its loss, without bound.
    """
    if weigh is None:
        return "sum" if name in SMOOTHABLE else "mean"
    if weigh not in WEIGH:
        raise unknown("way to weigh kinds of fakes", weigh, WEIGH)
    if weigh == "sum" and name not in SMOOTHABLE:
        raise InputError(
            f"adversarial loss {name!r} compares one real with one generated distribution, so its kinds of fakes weigh "
            f"½ each; choose mean, or one of: {', '.join(SMOOTHABLE)}"
        )
    return weigh


def discriminate_kinds(loss: AdversarialLoss, real: Tensor, fakes: Sequence[Tensor], *, weigh: str = "mean") -> Tensor:
    """What a discriminator minimises that meets several kinds of fakes, a scalar.

    "mean": the mean over the kinds of the loss against each, so that the real examples weigh as much as all fakes.
    "sum", for cross-entropies: the real examples once and every kind once, as in Larsen et al. 2016 (their L_GAN) and
    Rosca et al. 2017 (algorithm 1). With one kind both are the loss itself.

    >>> discriminate_kinds(Wasserstein(), torch.ones(4), [torch.zeros(4), torch.full((4,), 2.0)])
    tensor(0.)
    """
    _check_kinds(fakes)
    if weigh == "mean":
        return torch.stack([loss.discriminator(real, fake) for fake in fakes]).mean()
    if not isinstance(loss, (Minimax, NonSaturating, LogRatio)):
        raise ValueError(f"{type(loss).__name__} has no sum over kinds of fakes; weigh them by their mean")
    return torch.stack([loss.discriminator(real, fakes[0]), *(bce_fake(fake).mean() for fake in fakes[1:])]).sum()


def deceive_kinds(
    loss: AdversarialLoss, fakes: Sequence[Tensor], real: Tensor | None = None, *, weigh: str = "mean"
) -> Tensor:
    """What a generator minimises that makes several kinds of fakes, a scalar: the sum or the mean of its loss on each.
    `weigh` is the discriminator's."""
    _check_kinds(fakes)
    losses = torch.stack([loss.generator(fake, real) for fake in fakes])
    return losses.mean() if weigh == "mean" else losses.sum()


def _check_kinds(fakes: Sequence[Tensor]) -> None:
    if not fakes:
        raise ValueError("an adversarial loss was given no fakes; give the logits of at least one kind")


def _check_real_label(label: float) -> None:
    if not 0 < label <= 1:
        raise InputError(f"real_label is {label}; give a number above 0, at most 1 (0.9 is usual for smoothing)")


def _required(real: Tensor | None, name: str) -> Tensor:
    if real is None:
        raise ValueError(
            f"the {name} loss compares: its generator side needs the real logits too, generator(fake, real)"
        )
    return real


def _square(logits: Tensor, target: float) -> Tensor:
    return (single_precision(logits) - target).square().mean()
