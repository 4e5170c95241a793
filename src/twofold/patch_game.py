"""The adversarial side of VQGAN: a discriminator of patches against reconstructions, with the adaptive weight of Esser
et al. 2021, eq. 7, and a switch-on that is measured and held within a limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from twofold.coefficients import GradientBalance, Guard, Ramp, product
from twofold.errors import InputError
from twofold.game import Coefficient, State, Term
from twofold.nets.norm import call_together
from twofold.nets.patch import PatchDiscriminator, most_layers
from twofold.nets.switch_on import SwitchOn
from twofold.recipe import require
from twofold.spec import Spec
from twofold.terms.adversarial import Hinge
from twofold.terms.matching import l1

HALF_LIFE_EXAMPLES = 500
"""Of the reconstruction error's moving average."""
PATCH_LAYERS = 3
LARGEST_BALANCE = 1e4
"""The paper's limit of λ, where the reconstruction is a mean over values."""


@dataclass(frozen=True)
class PatchGame:
    """Who plays against the discriminator, and how strongly.

    Raises `InputError` for a setting out of range.
    """

    reaches: tuple[str, ...]
    """The players that the generator's side trains."""
    reference: Mapping[str, float]
    """The terms, with their weights, whose gradient at the decoder's last layer sets the scale of λ."""
    spec: Spec
    weight: float = 0.8
    begin: int = 0
    """Examples after which the weight begins to rise from 0; the discriminator trains from the first."""
    ramp: int = 0
    """Examples over which it rises."""
    limit: float | None = None
    """Relative rise of the reconstruction error since `begin` at which the weight is 0 again."""

    def __post_init__(self) -> None:
        require(self.weight > 0, f"the adversarial weight is {self.weight}; it must be above 0")
        require(self.begin >= 0, f"the adversarial weight begins at {self.begin} examples; that starts at 0")
        require(self.ramp >= 0, f"the adversarial weight rises over {self.ramp} examples; that starts at 0")
        require(self.limit is None or self.limit > 0, f"adversarial_limit is {self.limit}; it must be above 0, or none")

    def memory(self) -> dict[str, nn.Module]:
        """What lives across steps: the error before and after the switch-on."""
        return {"switch_on": SwitchOn(half_life_examples=HALF_LIFE_EXAMPLES)}

    def judge(self, state: State, x: Tensor, x_rec: Tensor) -> dict[str, Tensor]:
        """The discriminator's logits of both, {"real_logits", "rec_logits"}, in one call where its norm allows; notes
        the error."""
        error = l1(x_rec, x).mean() / self.spec.size
        state.peers.average([error])
        examples = len(x) * state.peers.count
        _memory(state).note(error, examples=examples, on=state.examples >= self.begin)
        real_logits, rec_logits = call_together(state.nets["discriminator"], x, x_rec)
        return {"real_logits": real_logits, "rec_logits": rec_logits}

    def coefficient(self) -> Coefficient:
        """Ramp · guard · λ."""
        ramp = Ramp(0.0, self.weight, examples=self.ramp, begin=self.begin)
        guard = [] if self.limit is None else [Guard(rise, self.limit)]
        balance = GradientBalance(
            self.reference,
            "adversarial_generator",
            at=lambda nets: last_weight(nets["decoder"]),
            # Errors are summed over values here, so λ is as many times larger.
            largest=LARGEST_BALANCE * self.spec.size,
        )
        return product(ramp, *guard, balance)

    def terms(self) -> list[Term]:
        """The rows of both sides: hinge losses."""
        hinge, weight = Hinge(), self.coefficient()
        return [
            Term(
                "adversarial_generator", lambda s: hinge.generator(s["rec_logits"]), dict.fromkeys(self.reaches, weight)
            ),
            Term(
                "adversarial_discriminator",
                lambda s: hinge.discriminator(s["real_logits"], s["rec_logits"]),
                to={"discriminator": 0.5},
            ),
        ]

    def measures(self) -> dict[str, Callable[[State], Tensor]]:
        """The rise of the error since the switch-on, its largest value, and the share of patches told right."""

        def accuracy(state: State) -> Tensor:
            return 0.5 * ((state["real_logits"] > 0).float().mean() + (state["rec_logits"] < 0).float().mean())

        return {
            "rise": rise,
            "rise_largest": lambda s: _memory(s).largest_rise.clone(),
            "discriminator_accuracy": accuracy,
        }


def _memory(state: State) -> SwitchOn:
    return cast(SwitchOn, state.nets["switch_on"])


def rise(state: State) -> Tensor:
    """How much larger the reconstruction error is than before the switch-on, relative to that."""
    return _memory(state).rise()


def last_weight(decoder: nn.Module) -> nn.Parameter:
    """The weight of a decoder's last layer, where λ compares gradients."""
    return [w for w in decoder.parameters() if w.ndim > 1][-1]


def build_patch_discriminator(
    spec: Spec, *, width: int, layers: int | None = None, norm: str = "none", spectral: bool = False
) -> PatchDiscriminator:
    """A discriminator of patches for data that looks like `spec`, of 3 layers unless told, or as many as fit."""
    most = most_layers(*spec.shape[1:])
    if layers is not None and not 0 <= layers <= most:
        raise InputError(
            f"patch_layers is {layers}; images of {spec.shape[1]}×{spec.shape[2]} have room for 0 to {most}"
        )
    layers = min(PATCH_LAYERS, most) if layers is None else layers
    return PatchDiscriminator(spec.shape[0], width=width, layers=layers, norm=norm, spectral=spectral)
