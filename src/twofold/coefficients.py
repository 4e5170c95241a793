"""Coefficients that change while a game is played: schedules, adaptive weights and gates.

Each is a function of `State`, is printed in the routing table by its `str`, and keeps no state of its own, so that a
resumed run computes the same values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from twofold.game import Coefficient, State, coefficient_text, sum_of_products


@dataclass(frozen=True)
class Ramp:
    """A straight line in examples seen: `start` until `begin`, then to `end` over `examples`, then `end`. Over 0
    examples it is a step.

    KL warm-up is `Ramp(0, 1, examples=50_000)`.
    """

    start: float
    end: float
    examples: int
    begin: int = 0

    def __call__(self, state: State) -> float:
        if self.examples <= 0:
            return self.end if state.examples >= self.begin else self.start
        done = (state.examples - self.begin) / self.examples
        return self.start + (self.end - self.start) * min(max(done, 0.0), 1.0)

    def __str__(self) -> str:
        return f"{self.start:g}→{self.end:g} ({self.begin:,}…{self.begin + self.examples:,})"


@dataclass(frozen=True)
class Cycle:
    """KL annealing in cycles (Fu et al. 2019): in each period, 0 → `end` over its first `rising` part, then `end`."""

    end: float
    period_examples: int
    rising: float = 0.5

    def __call__(self, state: State) -> float:
        phase = (state.examples % self.period_examples) / self.period_examples
        return self.end * min(phase / self.rising, 1.0)

    def __str__(self) -> str:
        return f"0→{self.end:g} each {self.period_examples:,}"


@dataclass(frozen=True)
class Decay:
    """Multiplies by `factor` for every `examples` seen, in steps, never below `floor`: a learning-rate factor."""

    factor: float
    examples: int
    floor: float = 0.0

    def __call__(self, state: State) -> float:
        return max(self.factor ** (state.examples // self.examples), self.floor)

    def __str__(self) -> str:
        return f"×{self.factor:g} each {self.examples:,}"


@dataclass(frozen=True)
class Product:
    """The product of coefficients; exactly 0.0, and the rest not evaluated, once a factor is 0.0."""

    factors: tuple[Coefficient, ...]

    def __call__(self, state: State) -> float | Tensor:
        product: float | Tensor = 1.0
        for factor in self.factors:
            value = factor(state) if callable(factor) else factor
            if not isinstance(value, Tensor) and value == 0.0:
                return 0.0
            product = product * value
        return product

    def __str__(self) -> str:
        return "·".join(coefficient_text(f).removeprefix("+") for f in self.factors)


def product(*factors: Coefficient) -> Coefficient:
    """The product of coefficients: a number if all are numbers, a function otherwise. Factors of 1 are left out."""
    numbers = math.prod(f for f in factors if not callable(f))
    functions = tuple(f for f in factors if callable(f))
    if not functions or numbers == 0.0:
        return float(numbers)
    if len(functions) == 1 and numbers == 1.0:
        return functions[0]
    return Product((*((numbers,) if numbers != 1.0 else ()), *functions))


@dataclass(frozen=True)
class GradientBalance:
    """VQGAN's adaptive weight (Esser et al. 2021, eq. 7): λ = ‖∇_L reference‖ / (‖∇_L term‖ + 1e-4).

    The norms are taken at one parameter, usually the weight of the decoder's last layer; λ is a constant to the
    gradient. Zero before `begin` examples, without evaluating anything. Costs two partial backward passes.
    """

    reference: str | Mapping[str, float]
    """The term whose gradient sets the scale, or several with their weights."""
    term: str
    """The term whose coefficient this is."""
    at: Callable[[nn.ModuleDict], nn.Parameter]
    """Finds the parameter among the networks; it must belong to a player that moves in the phase."""
    begin: int = 0
    largest: float = 1e4

    def __call__(self, state: State) -> float | Tensor:
        if state.examples < self.begin:
            return 0.0
        parameter = self.at(state.nets)
        weights = {self.reference: 1.0} if isinstance(self.reference, str) else self.reference
        reference = sum_of_products([(weight, state.losses[name]) for name, weight in weights.items()])
        gradients = [
            torch.autograd.grad(loss, parameter, retain_graph=True)[0] for loss in (reference, state.losses[self.term])
        ]
        state.peers.average(gradients)
        norms = [gradient.norm() for gradient in gradients]
        return (norms[0] / (norms[1] + 1e-4)).clamp(0.0, self.largest).detach()

    def __str__(self) -> str:
        return "λ"


@dataclass(frozen=True)
class Guard:
    """Holds a term back while it does harm: 1 as long as the harm is at most half of `limit`, then in a straight line
    to 0 at `limit`. A tensor of the device, so nothing waits for it.

    With `harm` the relative rise of the reconstruction error since a discriminator was switched on, that rise cannot
    stay above `limit`: there the discriminator has no say.
    """

    harm: Callable[[State], Tensor]
    """A scalar, 0 where there is none."""
    limit: float

    def __call__(self, state: State) -> Tensor:
        return (2 - 2 * self.harm(state) / self.limit).clamp(0.0, 1.0).detach()

    def __str__(self) -> str:
        return "guard"


@dataclass(frozen=True)
class Equilibrium:
    """Larsen's balance rule (released code of Larsen et al. 2016), as two gates.

    r and g are the discriminator's mean cost on real and on generated examples. The discriminator rests if r or g is
    below `target - margin`; the decoder rests if r or g is above `target + margin`; if both would rest, both move.
    Deciding needs r and g on the host: a game with this rule waits for the device once per play.
    """

    real: Callable[[State], Tensor]
    fake: Callable[[State], Tensor]
    target: float = 0.68
    margin: float = 0.35

    def decide(self, state: State) -> tuple[bool, bool]:
        """(discriminator moves, decoder moves)."""
        if self not in state.memo:
            costs = torch.stack([self.real(state).detach(), self.fake(state).detach()])
            state.peers.average([costs])  # processes that decide differently would wait for each other for ever
            state.memo[self] = equilibrium_rule(*costs.tolist(), target=self.target, margin=self.margin)
        return state.memo[self]

    @property
    def discriminator(self) -> Gate:
        return Gate(self, 0, "gate_dis")

    @property
    def decoder(self) -> Gate:
        return Gate(self, 1, "gate_dec")


def equilibrium_rule(real: float, fake: float, *, target: float, margin: float) -> tuple[bool, bool]:
    """(discriminator moves, decoder moves) for given mean costs; see `Equilibrium`."""
    discriminator = min(real, fake) >= target - margin
    decoder = max(real, fake) <= target + margin
    return (discriminator, decoder) if discriminator or decoder else (True, True)


@dataclass(frozen=True)
class Gate:
    """One side of an `Equilibrium`: 1.0 while the player moves, 0.0 while it rests."""

    rule: Equilibrium
    side: int
    name: str = field(default="gate")

    def __call__(self, state: State) -> float:
        return float(self.rule.decide(state)[self.side])

    def __str__(self) -> str:
        return self.name
