"""Likelihoods p(x | z): negative log-likelihoods as functions, and as modules that join a decoder's output to the data.

A function takes distribution parameters and data and returns nats per example, shape (batch,). A `Likelihood` module
says how many channels a decoder must emit, and turns them into an nll, a mean or a sample. Modules see data in the
model's range: [-1, 1] when bounded (images), any number otherwise (vectors).

A density (normal, Laplace) of data in [-1, 1] and a probability (Bernoulli, categorical, logistic mixture) are
different quantities; do not compare their nats.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twofold.errors import InputError, unknown
from twofold.terms.matching import require_same_shape, single_precision, sum_per_example

SCALES = ("fixed", "scalar", "output")
LOG_SCALE_RANGE = (-7.0, 7.0)
"""Learned log-scales are kept softly within this range: a decoder that can reconstruct an example exactly would
otherwise drive its scale to zero and the density to infinity."""


# ---------------------------------------------------------------------------------------------------------- functions


def bernoulli_nll(logits: Tensor, x: Tensor) -> Tensor:
    """-log Bernoulli(x; sigmoid(logits)) per example. Equal shapes (batch, ...) → (batch,); x lies in [0, 1].

    For x strictly between 0 and 1 this is a cross-entropy and no likelihood: its minimum is the entropy of x, not 0.

    >>> bernoulli_nll(torch.zeros(1, 2), torch.tensor([[0.0, 1.0]]))
    tensor([1.3863])
    """
    require_same_shape(logits=logits, x=x)
    logits, x = single_precision(logits), single_precision(x)
    return sum_per_example(F.binary_cross_entropy_with_logits(logits, x, reduction="none"))


def normal_nll(mean: Tensor, x: Tensor, *, log_std: Tensor | float = 0.0) -> Tensor:
    """-log N(x; mean, e^(2 log_std)) per example, with its ½ log 2π. Equal shapes (batch, ...) → (batch,).

    `log_std` is a number or a tensor that broadcasts to the shape of `mean`.

    >>> normal_nll(torch.zeros(1, 2), torch.zeros(1, 2))
    tensor([1.8379])
    """
    mean, x, log_std = _location_scale(mean, x, log_std, "log_std")
    standard = (x - mean) * torch.exp(-log_std)
    return sum_per_example(0.5 * standard.square() + log_std + 0.5 * math.log(2 * math.pi))


def laplace_nll(mean: Tensor, x: Tensor, *, log_scale: Tensor | float = 0.0) -> Tensor:
    """-log Laplace(x; mean, e^log_scale) per example, with its log 2. Equal shapes (batch, ...) → (batch,).

    `log_scale` is a number or a tensor that broadcasts to the shape of `mean`; the standard deviation is √2 times the
    scale.
    """
    mean, x, log_scale = _location_scale(mean, x, log_scale, "log_scale")
    standard = (x - mean) * torch.exp(-log_scale)
    return sum_per_example(standard.abs() + log_scale + math.log(2))


def categorical_nll(logits: Tensor, x: Tensor) -> Tensor:
    """-log softmax(logits)[x] per example. Shapes (batch, classes, ...) and (batch, ...) int64 → (batch,).

    A label outside 0 … classes - 1 is an error of the device; none is ever skipped as padding.
    """
    if logits.ndim < 2 or x.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(
            f"logits is {tuple(logits.shape)}, x is {tuple(x.shape)}; give (batch, classes, ...) and (batch, ...)"
        )
    if x.dtype != torch.int64:
        raise ValueError(f"x has dtype {x.dtype}; class indices are torch.int64")
    log_prob = F.log_softmax(single_precision(logits), dim=1).gather(1, x.unsqueeze(1)).squeeze(1)
    return -sum_per_example(log_prob)


def discretized_logistic_mixture_nll(params: Tensor, x: Tensor, *, levels: int = 256) -> Tensor:
    """-log probability of x under a mixture of discretised logistics, per example.

    Salimans et al. 2017 (PixelCNN++), eq. 1-3. Shapes: x (batch, channels, ...) on the grid of `levels` equally
    spaced values from -1 to 1; params (batch, k · (1 + groups · channels), ...) → (batch,). The first k are the
    logits of the mixture, shared by all channels of a position; the rest, viewed as (groups, channels, k), are means,
    log-scales and, for three channels only, the coefficients (through tanh) by which green's mean depends on red, and
    blue's on red and on green.

    The probabilities of all grid values sum to one. Deviations: the probability of a bin is
    log σ(a) + log σ(-b) + log(1 - e^(b - a)), exact in the tails too, where the authors' code turns to the density at
    the middle of the bin; log-scales are kept softly within `LOG_SCALE_RANGE` (there: a hard floor of -7).

    Raises `ValueError` for shapes that do not fit and for fewer than two levels.
    """
    if levels < 2:
        raise ValueError(f"levels is {levels}; give 2 or more")
    channels = x.shape[1] if x.ndim > 1 else 1
    per_component = _mixture_width(channels)
    rest_agrees = x.ndim > 1 and params.shape == (x.shape[0], *params.shape[1:2], *x.shape[2:])
    if not rest_agrees or not params.shape[1] or params.shape[1] % per_component:
        raise ValueError(
            f"params is {tuple(params.shape)}, x is {tuple(x.shape)}; give x (batch, channels, ...) and params with "
            f"k · {per_component} channels for {channels}, all other sizes equal"
        )
    x = single_precision(x).unsqueeze(2)
    logits, means, log_scales, coefficients = _mixture(single_precision(params), channels)
    if coefficients is not None:
        values = [x[:, 0], x[:, 1]]
        means = torch.stack([_conditioned(means, coefficients, values, channel) for channel in range(3)], dim=1)
    log_prob = _bin_log_prob(x, means, log_scales, levels)
    return -sum_per_example(torch.logsumexp(F.log_softmax(logits, dim=1) + log_prob.sum(1), dim=1))


def discretized_logistic_mixture_log_prob(params: Tensor, x: Tensor, channel: int, *, levels: int = 256) -> Tensor:
    """log p(every level of one channel | the channels before it) of the same mixture: (batch, levels).

    params (batch, k · (1 + groups · channels)) of one position each, x (batch, channels), of which only the channels
    before `channel` are looked at. Seen values make the components that foretold them more probable. This is what
    turns the mixture into a distribution to draw from token by token; summed over a position's channels it is minus
    `discretized_logistic_mixture_nll`.
    """
    logits, means, log_scales, coefficients = _mixture(single_precision(params), x.shape[1])
    x = single_precision(x).unsqueeze(2)
    weights = F.log_softmax(logits, dim=1)
    for k in range(channel + 1):
        mean = means[:, k] if coefficients is None else _conditioned(means, coefficients, [x[:, 0], x[:, 1]], k)
        if k < channel:
            weights = weights + _bin_log_prob(x[:, k], mean, log_scales[:, k], levels)
    grid = torch.linspace(-1, 1, levels, device=x.device, dtype=x.dtype)[:, None]
    each = _bin_log_prob(grid, mean[:, None], log_scales[:, channel, None], levels)
    return torch.logsumexp(F.log_softmax(weights, dim=1)[:, None] + each, dim=2)


def _bin_log_prob(x: Tensor, means: Tensor, log_scales: Tensor, levels: int) -> Tensor:
    """log probability of the bin around each grid value x under a logistic; the three broadcast."""
    half_bin = 1 / (levels - 1)
    inverse_scales = torch.exp(-log_scales)
    above = F.logsigmoid((x - means + half_bin) * inverse_scales)  # log P(value < upper edge of the bin)
    below = F.logsigmoid((means - x + half_bin) * inverse_scales)  # log P(value > lower edge of the bin)
    width = torch.log(-torch.expm1(-2 * half_bin * inverse_scales))
    # The outermost bins reach to infinity, so that one of their two edges is no bound.
    first, last = x < -1 + half_bin, x > 1 - half_bin
    return above.masked_fill(last, 0) + below.masked_fill(first, 0) + width.masked_fill(first | last, 0)


def soft_clamp(values: Tensor, low: float, high: float) -> Tensor:
    """`values` bent to stay between low and high; the identity up to 0.005 one unit inside, 10⁻⁴ two units inside.

    Unlike a hard clamp it has a gradient outside, fading with the distance, so that a value that has strayed by a few
    units comes back.
    """
    values = high - F.softplus(high - values, beta=4)
    return low + F.softplus(values - low, beta=4)


def _location_scale(mean: Tensor, x: Tensor, log_scale: Tensor | float, name: str) -> tuple[Tensor, Tensor, Tensor]:
    require_same_shape(mean=mean, x=x)
    mean, x = single_precision(mean), single_precision(x)
    if not isinstance(log_scale, Tensor):
        return mean, x, mean.new_full((), log_scale)
    padded = (1,) * (mean.ndim - log_scale.ndim) + tuple(log_scale.shape)
    if len(padded) != mean.ndim or any(size not in (1, full) for size, full in zip(padded, mean.shape, strict=True)):
        raise ValueError(
            f"{name} is {tuple(log_scale.shape)}, mean is {tuple(mean.shape)}; {name} must broadcast to mean"
        )
    return mean, x, single_precision(log_scale)


def _mixture_width(channels: int) -> int:
    """Decoder channels for each component of the mixture."""
    return 1 + (3 if channels == 3 else 2) * channels


def _mixture(params: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Logits (batch, k, ...), and means, log-scales and coefficients (batch, channels, k, ...)."""
    components = params.shape[1] // _mixture_width(channels)
    parts = params[:, components:].unflatten(1, (-1, channels, components))
    log_scales = soft_clamp(parts[:, 1], *LOG_SCALE_RANGE)
    coefficients = torch.tanh(parts[:, 2]) if channels == 3 else None
    return params[:, :components], parts[:, 0], log_scales, coefficients


def _conditioned(means: Tensor, coefficients: Tensor, earlier: list[Tensor], channel: int) -> Tensor:
    """Mean of one channel of three given the values of the earlier ones."""
    mean = means[:, channel]
    if channel == 1:
        mean = mean + coefficients[:, 0] * earlier[0]
    if channel == 2:
        mean = mean + coefficients[:, 1] * earlier[0] + coefficients[:, 2] * earlier[1]
    return mean


# ------------------------------------------------------------------------------------------------------------ modules


class Likelihood(nn.Module, ABC):
    """What a decoder's raw output says about x.

    For data of `channels` channels (or features) the decoder emits params of shape (batch, outputs(channels), ...);
    x has shape (batch, channels, ...) with the same trailing sizes. Calling the module is calling `nll`. A module may
    own a learned scale: make it a part of the player that trains it.
    """

    @abstractmethod
    def outputs(self, channels: int) -> int:
        """Number of channels the decoder must emit for `channels` channels of data."""

    @abstractmethod
    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        """-log p(x | params) in nats, (batch,); x in the model's range. Raises `ValueError` for shapes that differ."""

    @abstractmethod
    def mean(self, params: Tensor) -> Tensor:
        """x_rec, the mean of x, (batch, channels, ...), in the model's range and differentiable."""

    @abstractmethod
    def sample(self, params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """One x drawn from the distribution, (batch, channels, ...), without gradient."""

    def forward(self, params: Tensor, x: Tensor) -> Tensor:
        return self.nll(params, x)

    def _require(self, params: Tensor, x: Tensor) -> None:
        if x.ndim < 2 or params.shape != (x.shape[0], self.outputs(x.shape[1]), *x.shape[2:]):
            needed = (x.shape[0], self.outputs(x.shape[1]), *x.shape[2:]) if x.ndim > 1 else "(batch, outputs, ...)"
            raise ValueError(
                f"params is {tuple(params.shape)}, x is {tuple(x.shape)}; {type(self).__name__} needs params {needed}"
            )


@final
class Bernoulli(Likelihood):
    """Independent binary values; x = -1 and 1 stand for 0 and 1. Decoder: one logit per value. Bounded data only.

    >>> Bernoulli().mean(torch.zeros(1, 1, 2, 2)).unique()
    tensor([0.])
    """

    def outputs(self, channels: int) -> int:
        return channels

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        self._require(params, x)
        return bernoulli_nll(params, (single_precision(x) + 1) / 2)

    def mean(self, params: Tensor) -> Tensor:
        return torch.tanh(single_precision(params) / 2)  # 2 sigmoid(logit) - 1

    @torch.no_grad()
    def sample(self, params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        ones = _uniform(params, generator) < torch.sigmoid(single_precision(params))
        return ones.to(single_precision(params).dtype) * 2 - 1


class LocationScale(Likelihood):
    """What `Normal` and `Laplace` share: a location for each value, and a scale from one of three places.

    `scale`: "fixed" is e^log_scale for ever; "scalar" is one learned parameter that starts there (σ-VAE, Rybkin et al.
    2021); "output" is one per value, emitted by the decoder, in a second half of its channels, as an offset to
    log_scale. Learned log-scales stay within `LOG_SCALE_RANGE`.

    When `bounded`, the location passes tanh. A sample is the location plus noise and may leave [-1, 1]; clamp it for
    display.
    """

    def __init__(self, bounded: bool, *, scale: str, log_scale: float) -> None:
        super().__init__()
        if scale not in SCALES:
            raise unknown("scale", scale, SCALES)
        if not math.isfinite(log_scale):
            raise InputError(f"the log-scale of a likelihood is {log_scale}; give a finite number")
        low, high = LOG_SCALE_RANGE
        if scale != "fixed" and not low < log_scale < high:
            raise InputError(f"a learned log-scale starts at {log_scale}; give a number between {low} and {high}")
        self.bounded = bounded
        self.scale = scale
        self.initial_log_scale = log_scale
        # One element and not a scalar tensor, which sharded training refuses.
        self.log_scale = nn.Parameter(torch.full((1,), float(log_scale))) if scale == "scalar" else None

    def outputs(self, channels: int) -> int:
        return 2 * channels if self.scale == "output" else channels

    def mean(self, params: Tensor) -> Tensor:
        params = single_precision(params)
        if self.scale == "output":
            params = self._halves(params)[0]
        return torch.tanh(params) if self.bounded else params

    def log_scale_of(self, params: Tensor) -> Tensor:
        """The log-scale of every value, broadcasting to the shape of x."""
        if self.log_scale is not None:
            return soft_clamp(self.log_scale, *LOG_SCALE_RANGE)
        params = single_precision(params)
        if self.scale == "output":
            return soft_clamp(self._halves(params)[1] + self.initial_log_scale, *LOG_SCALE_RANGE)
        return params.new_full((), self.initial_log_scale)

    def extra_repr(self) -> str:
        return f"bounded={self.bounded}, scale={self.scale!r}, initial={self.initial_log_scale}"

    def _halves(self, params: Tensor) -> tuple[Tensor, Tensor]:
        if params.ndim < 2 or params.shape[1] % 2:
            raise ValueError(f"params is {tuple(params.shape)}; scale 'output' needs (batch, 2 · channels, ...)")
        location, log_scale = params.chunk(2, dim=1)
        return location, log_scale


@final
class Normal(LocationScale):
    """Independent normals. Decoder: one mean per value, and with scale="output" one log standard deviation as well.

    See `LocationScale` for `scale`; `log_std` is the fixed value or the start of the learned one. 0 with scale="fixed"
    is half the squared error plus a constant.

    >>> Normal(bounded=True, scale="output").outputs(3)
    6
    """

    def __init__(self, bounded: bool, *, scale: str = "scalar", log_std: float = 0.0) -> None:
        super().__init__(bounded, scale=scale, log_scale=log_std)

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        self._require(params, x)
        return normal_nll(self.mean(params), x, log_std=self.log_scale_of(params))

    @torch.no_grad()
    def sample(self, params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        mean = self.mean(params)
        device = mean.device if generator is None else generator.device
        noise = torch.randn(mean.shape, generator=generator, device=device, dtype=mean.dtype).to(mean.device)
        return mean + torch.exp(self.log_scale_of(params)) * noise


@final
class Laplace(LocationScale):
    """Independent Laplace distributions: the L1 distance as a likelihood. Decoder as for `Normal`."""

    def __init__(self, bounded: bool, *, scale: str = "scalar", log_scale: float = 0.0) -> None:
        super().__init__(bounded, scale=scale, log_scale=log_scale)

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        self._require(params, x)
        return laplace_nll(self.mean(params), x, log_scale=self.log_scale_of(params))

    @torch.no_grad()
    def sample(self, params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        mean = self.mean(params)
        # The difference of two exponentials is Laplace, with no logarithm of zero on the way.
        noise = _exponential(mean, generator) - _exponential(mean, generator)
        return mean + torch.exp(self.log_scale_of(params)) * noise


@final
class Categorical(Likelihood):
    """Every value one of `levels` grid values from -1 to 1, each with its own logit. Bounded data only.

    Decoder: levels · channels logits per position, viewed as (levels, channels). x is rounded to the nearest
    grid value.
    """

    def __init__(self, *, levels: int = 256) -> None:
        super().__init__()
        self.levels = _checked_levels(levels)

    def outputs(self, channels: int) -> int:
        return self.levels * channels

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        self._require(params, x)
        return categorical_nll(self._logits(params), _to_index(x, self.levels))

    def mean(self, params: Tensor) -> Tensor:
        probabilities = torch.softmax(self._logits(params), dim=1)
        grid = torch.linspace(-1, 1, self.levels, device=params.device, dtype=probabilities.dtype)
        return (probabilities * grid.view(-1, *[1] * (probabilities.ndim - 2))).sum(1)

    @torch.no_grad()
    def sample(self, params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        logits = self._logits(params)
        return _to_value(_draw_index(logits, generator), self.levels, logits.dtype)

    def extra_repr(self) -> str:
        return f"levels={self.levels}"

    def _logits(self, params: Tensor) -> Tensor:
        if params.ndim < 2 or params.shape[1] % self.levels or not params.shape[1]:
            raise ValueError(f"params is {tuple(params.shape)}; give (batch, {self.levels} · channels, ...)")
        return single_precision(params).unflatten(1, (self.levels, -1))


@final
class DiscretizedLogisticMixture(Likelihood):
    """The PixelCNN++ likelihood; see `discretized_logistic_mixture_nll` for the decoder's layout. Bounded data only.

    `mean` is the exact mean of each logistic cut off at -1 and 1, averaged over the mixture; it leaves out the rounding
    to the grid (under half a step), and for three channels it conditions green and blue on the means of the earlier
    channels. `sample` is exact: it draws on the grid, channel after channel.
    """

    def __init__(self, *, components: int = 10, levels: int = 256) -> None:
        super().__init__()
        if components < 1:
            raise InputError(f"a mixture of {components} components is empty; give 1 or more (10 is usual)")
        self.components = components
        self.levels = _checked_levels(levels)

    def outputs(self, channels: int) -> int:
        return self.components * _mixture_width(channels)

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        self._require(params, x)
        return discretized_logistic_mixture_nll(params, x, levels=self.levels)

    def mean(self, params: Tensor) -> Tensor:
        params = single_precision(params)
        logits, means, log_scales, coefficients = _mixture(params, self._channels(params))
        if coefficients is None:
            component_means = _mean_within_bounds(means, log_scales)
        else:
            conditioned: list[Tensor] = []
            for channel in range(3):
                mean = _conditioned(means, coefficients, conditioned, channel)
                conditioned.append(_mean_within_bounds(mean, log_scales[:, channel]))
            component_means = torch.stack(conditioned, dim=1)
        return (component_means * torch.softmax(logits, dim=1).unsqueeze(1)).sum(2)

    @torch.no_grad()
    def sample(self, params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        params = single_precision(params)
        channels = self._channels(params)
        logits, *parts = _mixture(params, channels)
        component = _draw_index(logits, generator)[:, None, None].expand(-1, channels, -1, *logits.shape[2:])
        means, log_scales, coefficients = (None if p is None else p.gather(2, component).squeeze(2) for p in parts)
        assert means is not None and log_scales is not None
        # The difference of two Gumbel variables is logistic; at a bound the clamp below takes an infinite one.
        noise = torch.log(_exponential(means, generator)) - torch.log(_exponential(means, generator))
        drawn: list[Tensor] = []
        for channel in range(channels):
            mean = means[:, channel] if coefficients is None else _conditioned(means, coefficients, drawn, channel)
            value = mean + torch.exp(log_scales[:, channel]) * noise[:, channel]
            drawn.append(_to_value(_to_index(value.clamp(-1, 1), self.levels), self.levels, value.dtype))
        return torch.stack(drawn, dim=1)

    def extra_repr(self) -> str:
        return f"components={self.components}, levels={self.levels}"

    def _channels(self, params: Tensor) -> int:
        per_component, left_over = divmod(params.shape[1] if params.ndim > 1 else 0, self.components)
        channels = 3 if per_component == _mixture_width(3) else (per_component - 1) // 2
        if left_over or channels < 1 or per_component != _mixture_width(channels):
            raise ValueError(
                f"params is {tuple(params.shape)}; {self.components} components need "
                f"(batch, {self.outputs(1)}, ...) for 1 channel, (batch, {self.outputs(3)}, ...) for 3"
            )
        return channels


def _mean_within_bounds(means: Tensor, log_scales: Tensor) -> Tensor:
    """E clamp(X, -1, 1) of a logistic X: -1 plus the integral of P(X > t) from -1 to 1."""
    scales = torch.exp(log_scales)

    def from_below(mean: Tensor) -> Tensor:
        return scales * (F.softplus((mean + 1) / scales) - F.softplus((mean - 1) / scales)) - 1

    # An odd function of the mean; for a large positive one the two softplus are large and would cancel.
    return torch.where(means > 0, -from_below(-means), from_below(means))


def _to_index(x: Tensor, levels: int) -> Tensor:
    return ((single_precision(x) + 1) * ((levels - 1) / 2)).round().long()


def _to_value(index: Tensor, levels: int, dtype: torch.dtype) -> Tensor:
    return index.to(dtype) * (2 / (levels - 1)) - 1


def _draw_index(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """An index drawn from softmax(logits) over dimension 1 (the Gumbel-max rule)."""
    return (logits - torch.log(_exponential(logits, generator))).argmax(dim=1)


def _exponential(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.empty(like.shape, device=device, dtype=like.dtype).exponential_(generator=generator).to(like.device)


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    dtype = single_precision(like).dtype
    return torch.rand(like.shape, generator=generator, device=device, dtype=dtype).to(like.device)


def _checked_levels(levels: int) -> int:
    if levels < 2:
        raise InputError(f"levels is {levels}; give 2 or more (256 for 8-bit data)")
    return levels


# ----------------------------------------------------------------------------------------------------------- by name

LIKELIHOODS: dict[str, Callable[..., Likelihood]] = {
    "bernoulli": Bernoulli,
    "normal": Normal,
    "laplace": Laplace,
    "categorical": Categorical,
    "logistic-mixture": DiscretizedLogisticMixture,
}


def build_likelihood(name: str, *, bounded: bool, scale: str = "scalar", levels: int = 256) -> Likelihood:
    """The likelihood called `name` in `LIKELIHOODS`.

    `bounded`: whether x lies in [-1, 1]. `scale` is for normal and laplace (see `LocationScale`), `levels`, the number
    of distinct values the data can take, for categorical and logistic-mixture; each is ignored by the others.

    Raises `InputError` for an unknown name or scale, too few levels, or unbounded data with a likelihood that needs
    bounds.

    >>> build_likelihood("normal", bounded=True)
    Normal(bounded=True, scale='scalar', initial=0.0)
    """
    if name not in LIKELIHOODS:
        raise unknown("likelihood", name, LIKELIHOODS)
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    if name in ("normal", "laplace"):
        return LIKELIHOODS[name](bounded, scale=scale)
    if not bounded:
        raise InputError(
            f"likelihood {name!r} needs values in known bounds, such as images; for others choose normal or laplace"
        )
    return Bernoulli() if name == "bernoulli" else LIKELIHOODS[name](levels=levels)
