"""Codes: drawing them, walking between them, and making them discrete."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from twofold.errors import InputError, unknown

LOG_VAR_EXACT = 10.0
"""`split_mean_log_var` leaves log variances of at most this magnitude exactly as they are."""
LOG_VAR_LIMIT = 20.0
"""No log variance from `split_mean_log_var` exceeds this magnitude."""

PRIORS = ("normal", "uniform", "uniform-sqrt3", "sphere")


def split_mean_log_var(params: Tensor) -> tuple[Tensor, Tensor]:
    """An encoder's output (batch, 2·latent, …) as mean and log variance of a diagonal Normal, each (batch, latent, …).

    The log variance v is returned unchanged for |v| ≤ 10 (standard deviations from 0.0067 to 148). Beyond, it is bent
    smoothly towards ±20, so that exp(v) and its square stay finite in float32 and bfloat16:

        sign(v)·(20 - 100 / |v|)    for |v| > 10

    The bend is monotone with a continuous slope, 100 / v², so that a variance that ran away is pulled back; a clamp
    would leave it without a gradient. Sampling and the KL both use the returned value, so the objective stays an
    exact ELBO; what changes is only which network output stands for which variance. ±inf becomes ±20; NaN stays NaN.

    Raises `InputError` if dimension 1 is missing or odd.

    >>> mean, log_var = split_mean_log_var(torch.tensor([[0.5, -3.0]]))
    >>> mean, log_var
    (tensor([[0.5000]]), tensor([[-3.]]))
    """
    if params.dim() < 2 or params.shape[1] % 2 or params.shape[1] == 0:
        raise InputError(f"the parameters are {tuple(params.shape)}; give (batch, 2·latent, …)")
    mean, raw = params.chunk(2, dim=1)
    # Written around the clamp, so that the middle is exact and no large numbers are subtracted outside it.
    excess = (raw.abs() - LOG_VAR_EXACT).relu()
    room = LOG_VAR_LIMIT - LOG_VAR_EXACT
    bend = room - room**2 / (room + excess)
    return mean, raw.clamp(-LOG_VAR_EXACT, LOG_VAR_EXACT) + raw.sign() * bend


def sample_normal(mean: Tensor, log_var: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """z = mean + exp(log_var / 2)·ε with ε ~ N(0, I): a draw that passes gradients to both (Kingma & Welling 2014,
    §2.4). All of one shape; expand them for several draws of each.

    Raises `InputError` if the shapes differ.
    """
    if mean.shape != log_var.shape:
        raise InputError(f"mean is {tuple(mean.shape)} and log_var is {tuple(log_var.shape)}; give equal shapes")
    noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
    return mean + (0.5 * log_var).exp() * noise


def prior(
    batch: int,
    latent: int,
    *,
    like: Tensor | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
    kind: str = "normal",
) -> Tensor:
    """Codes (batch, latent) drawn from the prior.

    Args:
        like: a tensor whose device and dtype to take; `device` and `dtype` override it. Without any of them: the
            generator's device, or the CPU, and torch's default dtype.
        kind: "normal" is N(0, I); "uniform" is U(-1, 1), DCGAN's, with variance 1/3; "uniform-sqrt3" is U(-√3, √3),
            with variance 1; "sphere" is uniform on the sphere of radius √latent, with variance 1.

    Raises `InputError` for an unknown kind and for negative sizes.

    >>> prior(2, 3, kind="uniform").shape
    torch.Size([2, 3])
    """
    if kind not in PRIORS:
        raise unknown("prior", kind, PRIORS)
    if batch < 0 or latent < 1:
        raise InputError(f"the prior was asked for {batch} codes of {latent} values; give at least 0 and 1")
    if like is not None:
        device, dtype = device or like.device, dtype or like.dtype
    if device is None and generator is not None:
        device = generator.device
    if kind == "normal":
        return torch.randn(batch, latent, generator=generator, device=device, dtype=dtype)
    if kind == "sphere":
        return onto_sphere(torch.randn(batch, latent, generator=generator, device=device, dtype=dtype))
    reach = 1.0 if kind == "uniform" else math.sqrt(3.0)
    return torch.rand(batch, latent, generator=generator, device=device, dtype=dtype) * (2 * reach) - reach


def onto_sphere(z: Tensor) -> Tensor:
    """Codes (batch, latent) moved along their rays onto the sphere of radius √latent, where N(0, I) has most of its
    mass: each example's mean square is 1.

    >>> onto_sphere(torch.tensor([[3.0, 4.0]]))
    tensor([[0.8485, 1.1314]])
    """
    return F.normalize(z, dim=1) * math.sqrt(z.shape[1])


def petals(
    batch: int, *, components: int = 10, y: Tensor | None = None, generator: torch.Generator, dtype: torch.dtype
) -> Tensor:
    """Codes (batch, 2) from a mixture of Gaussians in the plane, equal in weight, drawn out like petals: component k
    lies at distance 2 from the origin in direction 2πk / components, with standard deviation 0.5 along that direction
    and 0.15 across it. The prior of Makhzani et al. 2015, figure 4, for which the paper gives no numbers.

    `y` (batch,) int64 chooses each draw's component; without it all are equally likely.

    >>> petals(3, generator=torch.Generator().manual_seed(0), dtype=torch.float32).shape
    torch.Size([3, 2])
    """
    y = _component(batch, components, y, generator)
    noise = torch.randn(batch, 2, generator=generator, device=generator.device, dtype=dtype)
    along, across = 2 + 0.5 * noise[:, 0], 0.15 * noise[:, 1]
    angle = y.to(dtype) * (2 * math.pi / components)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([along * cos - across * sin, along * sin + across * cos], dim=1)


def swiss_roll(
    batch: int, *, components: int = 10, y: Tensor | None = None, generator: torch.Generator, dtype: torch.dtype
) -> Tensor:
    """Codes (batch, 2) on a spiral of two turns from the origin to distance 3 (Makhzani et al. 2015, figure 4), nearly
    evenly along its length.

    `y` (batch,) int64 chooses one of `components` pieces of equal probability, from the inside outwards.
    """
    y = _component(batch, components, y, generator)
    place = torch.rand(batch, generator=generator, device=generator.device, dtype=dtype)
    # The length of a spiral grows with the square of its angle: the root spreads the draws evenly along it.
    turn = ((y.to(dtype) + place) / components).sqrt()
    angle = 4 * math.pi * turn
    return 3 * turn[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)


def _component(batch: int, components: int, y: Tensor | None, generator: torch.Generator) -> Tensor:
    if components < 1 or (y is not None and y.shape != (batch,)):
        raise InputError(
            f"the prior has {components} components and labels {None if y is None else tuple(y.shape)}; "
            f"give at least 1 component, and no labels or ({batch},)"
        )
    return torch.randint(components, (batch,), generator=generator, device=generator.device) if y is None else y


def lerp(a: Tensor, b: Tensor, t: float | Tensor) -> Tensor:
    """Codes on the straight line from a (t = 0) to b (t = 1), both exact.

    a and b are (…, latent). A tensor t has no latent axis and is broadcast against the axes before it: t (steps,)
    between two codes (latent,) gives a path (steps, latent); t (batch,) between two batches gives each pair a point
    of its own.

    >>> lerp(torch.zeros(2), torch.ones(2), torch.tensor([0.0, 0.5, 1.0]))
    tensor([[0.0000, 0.0000],
            [0.5000, 0.5000],
            [1.0000, 1.0000]])
    """
    return torch.lerp(a, b, _along(t, a))


def slerp(a: Tensor, b: Tensor, t: float | Tensor) -> Tensor:
    """Codes on the arc from a (t = 0) to b (t = 1): the direction turns at constant speed along the great circle
    (Shoemake 1985), the length goes in a straight line from |a| to |b|. Between draws from a Normal of many
    dimensions this stays where the prior has its mass; `lerp` does not. Shapes as in `lerp`.

    Where the arc is not defined this is `lerp`: a or b is 0, or their directions are equal or opposite to within
    √(machine epsilon). Equal directions lose nothing by it; opposite ones go through 0.
    """
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    start, end = torch.broadcast_tensors(a.to(dtype), b.to(dtype))
    where = _along(t, start)
    length_a, unit_a = _polar(start)
    length_b, unit_b = _polar(end)
    no_angle = (length_a == 0) | (length_b == 0)
    # Exact for small and for large angles, where the arc cosine is not (Kahan). Its gradient at (0, 0) is NaN.
    angle = 2 * torch.atan2(_norm(unit_a - unit_b), torch.where(no_angle, 1.0, _norm(unit_a + unit_b)))
    sine = angle.sin()
    straight = no_angle | (sine < torch.finfo(dtype).eps ** 0.5)
    sine = torch.where(straight, 1.0, sine)
    direction = (((1 - where) * angle).sin() * unit_a + (where * angle).sin() * unit_b) / sine
    arc = torch.lerp(length_a, length_b, where) * direction
    return torch.where(straight, torch.lerp(start, end, where), arc).to(torch.promote_types(a.dtype, b.dtype))


def permute_dims(z: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Each latent dimension of z (batch, latent) shuffled over the batch on its own: draws from the product of the
    marginals of q(z) (Kim & Mnih 2018, algorithm 1), exact as the batch grows.

    Raises `InputError` if z is not (batch, latent).

    >>> permute_dims(torch.eye(3)).sum(0)
    tensor([1., 1., 1.])
    """
    if z.dim() != 2:
        raise InputError(f"z is {tuple(z.shape)}; give (batch, latent)")
    return z.gather(0, torch.rand(z.shape, generator=generator, device=z.device).argsort(dim=0))


def straight_through(z: Tensor, z_q: Tensor) -> Tensor:
    """z_q forwards, exactly; backwards its gradient goes to z unchanged and none to z_q (van den Oord et al. 2017).

    Raises `InputError` if the shapes differ.
    """
    if z.shape != z_q.shape:
        raise InputError(f"z is {tuple(z.shape)} and z_q is {tuple(z_q.shape)}; give equal shapes")
    # z - z.detach() is 0 to the last bit; the more common z + (z_q - z).detach() rounds.
    return z_q.detach() + (z - z.detach())


@torch.no_grad()
def nearest_code(z: Tensor, codebook: Tensor) -> Tensor:
    """Index (…,) int64 of the code nearest in Euclidean distance to each z (…, latent); codebook (codes, latent).

    Computed in float32 or better, also under autocast: rounding to bfloat16 picks other codes.

    Raises `InputError` if the shapes do not fit.

    >>> nearest_code(torch.tensor([[0.9], [-3.0]]), torch.tensor([[0.0], [1.0]]))
    tensor([1, 0])
    """
    if codebook.dim() != 2 or 0 in codebook.shape or z.dim() < 1 or z.shape[-1] != codebook.shape[1]:
        raise InputError(
            f"z is {tuple(z.shape)} and the codebook {tuple(codebook.shape)}; give (…, latent) and (codes, latent)"
        )
    dtype = torch.promote_types(torch.promote_types(z.dtype, codebook.dtype), torch.float32)
    with torch.autocast(z.device.type, enabled=False):
        codes, points = codebook.to(dtype), z.to(dtype)
        # Centred, as the expanded square loses digits far from the origin. |z|² is the same for every code.
        centre = codes.mean(dim=0)
        codes, points = codes - centre, points - centre
        distance = codes.square().sum(dim=1) - 2 * points @ codes.T
    return distance.argmin(dim=-1)


def perplexity(indices: Tensor, codes: int) -> Tensor:
    """exp(entropy) of how often each of `codes` codes is used, a scalar: 1 if one is used, `codes` if all are used
    equally.

    Raises `InputError` if there are no indices or `codes` is below 1; an index outside 0 … codes - 1 is torch's error.

    >>> perplexity(torch.tensor([0, 0, 2, 2]), 4)
    tensor(2.)
    """
    if indices.numel() == 0 or codes < 1:
        raise InputError(f"perplexity of {indices.numel()} indices into {codes} codes; give at least 1 of each")
    return perplexity_of_counts(code_counts(indices, codes))


def code_counts(indices: Tensor, codes: int) -> Tensor:
    """How often each of `codes` codes stands among the indices (…,): (codes,) int64."""
    flat = indices.flatten()
    # Not bincount: its length depends on the data, for which the host would have to wait.
    return torch.zeros(codes, dtype=torch.int64, device=flat.device).scatter_add(0, flat, torch.ones_like(flat))


def perplexity_of_counts(counts: Tensor) -> Tensor:
    """exp(entropy) of how often each code is used, counts (codes,), a scalar."""
    return torch.special.entr(counts / counts.sum()).sum().exp()


def gumbel_softmax_sample(
    logits: Tensor, *, temperature: float | Tensor, hard: bool = False, generator: torch.Generator | None = None
) -> Tensor:
    """A draw from the Gumbel-softmax (Concrete) distribution over the last axis (Jang et al. 2017, eq. 2).

    Args:
        logits: (…, codes), unnormalised log probabilities.
        temperature: above 0. Low: draws close to one-hot with gradients that vary much; high: towards uniform.
        hard: forwards exactly one-hot at the largest value, which has the categorical distribution at any
            temperature; backwards as if soft.

    Raises `InputError` for a number `temperature` that is not above 0 (a tensor's value is not looked at).
    """
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise InputError(f"temperature is {temperature}; give a number above 0")
    exponential = torch.empty_like(logits, dtype=torch.promote_types(logits.dtype, torch.float32), requires_grad=False)
    exponential.exponential_(generator=generator)
    gumbel = -exponential.clamp_min(torch.finfo(exponential.dtype).tiny).log()
    soft = ((logits + gumbel) / temperature).softmax(dim=-1).to(logits.dtype)
    if not hard:
        return soft
    return straight_through(soft, F.one_hot(soft.argmax(dim=-1), logits.shape[-1]).to(soft.dtype))


def _along(t: float | Tensor, codes: Tensor) -> Tensor:
    return torch.as_tensor(t, dtype=codes.dtype, device=codes.device).unsqueeze(-1)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def _polar(x: Tensor) -> tuple[Tensor, Tensor]:
    """Length (…, 1) and unit vector; a zero vector's unit vector is 0."""
    length = _norm(x)
    return length, x / torch.where(length == 0, 1.0, length)
