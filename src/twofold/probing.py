"""Numbers that show how a model is doing, for `health` to judge: what a step can tell on the way (`observe`) and what
is asked of the model beside training, on fixed examples (`Probes`).

Nothing here is written for a particular recipe. What can be measured follows from the names of the tensors that its
rollouts return, which mean the same in all of them: "mean" and "log_var" of a Normal posterior, "indices" of a codebook
called "codebook", "real_logits" beside "fake_logits" or "rec_logits", and "NAME_prior_logits" beside "NAME_logits" for
codes. A recipe that returns none of them is asked about its samples only.

Probes leave no trace: buffers, modes and random states are what they were, so a run's weights do not depend on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from twofold.data import Data, Split, load, to_model
from twofold.errors import InputError
from twofold.game import Game, Stage, State
from twofold.model import Model
from twofold.model import load as load_model
from twofold.recipe import Recipe
from twofold.run import Run
from twofold.spec import Spec
from twofold.terms.divergence import kl_normal_per_dimension

SAMPLES = 256
"""Samples that are compared with data."""
BATCHES = 4
"""Batches of training and of held-out examples that the rollouts are played on."""
ANCHORS = 64
"""Training examples whose neighbourhoods are the regions of the data."""
SIDE = 16
"""Images are averaged down to at most this many pixels a side before they are compared."""
VALUES = 2**24
"""The largest training set, in values after averaging, that samples are compared with one by one …"""
ROWS = 2**16
"""… and in examples; fewer in few dimensions, where distances take longer and so many examples leave no gaps."""
REFERENCE = 1024
"""Examples at most that stand for the data elsewhere."""
ACTIVE = 0.01
"""Variance over the data of a unit's posterior mean above which it is active (Burda et al. 2016, section 5.1)."""
EDGE = 0.98
"""Values of an image beyond ± this stand at the edge of the output's range."""
READ = ("mean", "log_var", "indices")
"""The tensors of a rollout that are probed, …"""
REAL = "real_logits"
"""… with those whose names are this or end in it behind a name."""
PAIRS = 512
"""Logits of each side that are compared pair by pair."""


# What a step can tell.


def observe(state: State) -> dict[str, Tensor]:
    """Scalars, without waiting for the device, for each discriminator that saw two sides in this play:

    `discriminator_accuracy` (or `code_discriminator_accuracy`, `x_discriminator_accuracy`, …): the share of pairs, one
    of each side, that it ranks right; 0.5 if it cannot tell, for every loss and whatever its logits' offset.
    `adversarial_signal`: mean over generated examples of |∂loss/∂logit| of the generator's loss: how much of the
    adversarial gradient gets past the discriminator's certainty (1 for losses that do not saturate).
    """
    out: dict[str, Tensor] = {}
    for prefix, real, fake in _sides(state.rollout):
        if real is not None:
            with torch.no_grad():
                out[f"{prefix}discriminator_accuracy"] = ranked(real, fake)
        for name, loss in state.losses.items():
            # Which of several discriminators a term deceives, its gradient tells.
            deceives = "adversarial_" in name and not name.endswith("_discriminator")
            if deceives and loss.requires_grad and fake.requires_grad:
                (gradient,) = torch.autograd.grad(loss, fake, retain_graph=True, allow_unused=True)
                if gradient is not None:
                    out[f"{prefix}adversarial_signal"] = gradient.abs().sum()
    return out


def _sides(rollout: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor | None, Tensor]]:
    """(prefix, logits of the real side if they are there, logits of the other) of each discriminator."""
    for name in rollout:
        prefix = name.removesuffix("fake_logits")
        if prefix != name and _named(prefix):
            yield prefix, rollout.get(f"{prefix}{REAL}"), rollout[name]
    if "rec_logits" in rollout and "fake_logits" not in rollout:
        yield "", rollout.get(REAL), rollout["rec_logits"]
    if "code_logits" in rollout:
        yield "code_", rollout.get("prior_logits"), rollout["code_logits"]
    for name in rollout:
        part = name.removesuffix("_prior_logits")
        if part != name and f"{part}_logits" in rollout:
            yield f"{part}_", rollout[name], rollout[f"{part}_logits"]


def _is_real(name: str) -> bool:
    return name.endswith(REAL) and _named(name.removesuffix(REAL))


def _named(prefix: str) -> bool:
    """Whether this stands before the name of a tensor: nothing, or a discriminator's name and "_"."""
    return not prefix or prefix.endswith("_")


def ranked(higher: Tensor, lower: Tensor) -> Tensor:
    """The share of pairs in which a value of the first is above one of the second, ties counting half.

    >>> ranked(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0]))
    tensor(0.6250)
    """
    a, b = (v.detach().float().flatten()[:PAIRS] for v in (higher, lower))
    above = a[:, None] - b[None, :]
    return 0.5 + 0.5 * above.sign().mean()


# What is asked beside training.


class Probes:
    """Questions asked of a model on fixed examples of its data."""

    def __init__(self, data: Data, *, batch_size: int, device: torch.device):
        self.spec, self.device, self.batch_size = data.spec, device, batch_size
        self.train, self.test = data.train, data.test
        reference = _model_values(data.train, self.spec, REFERENCE)
        self.range = (float(reference.min()), float(reference.max())) if self.spec.kind == "image" else None
        self.saturated = float((reference.abs() > EDGE).float().mean())
        order = torch.randperm(len(reference), generator=torch.Generator().manual_seed(0))
        features = flattened(reference)[order]
        count = min(ANCHORS, len(features) // 4)
        self.anchors, self.data = features[:count], features[count : count + SAMPLES]
        self.near = flattened(_model_values(data.train, self.spec, None)) if self._fits(features.shape[1]) else None
        self.held_out = None if self.test is None else flattened(_model_values(self.test, self.spec, SAMPLES))

        self.fair: float | None = None  # distance of held-out examples to the nearest training example

    def _fits(self, values: int) -> bool:
        small = len(self.train) <= (ROWS if values > SIDE else ROWS // 4) and len(self.train) * values <= VALUES
        return self.test is not None and isinstance(self.train.x, Tensor) and small

    def measure(self, model: Model, stage: Stage, *, examples: int = 0, step: int = 0) -> dict[str, float]:
        """Numbers named probe_…, as `health` reads them: samples against data, then what the stage's rollouts say.

        `model` draws the samples (with averages), `stage.game` plays the rollouts (without).
        """
        out = self._of_data() | self._of_samples(model)
        test = self._rollouts(stage, self.test or self.train, examples, step)
        out |= _of_posterior(test) | _of_codes(test, stage.game)
        real = [name for name in test if _is_real(name)]
        if self.test is not None and real:
            train = self._rollouts(stage, self.train, examples, step)
            for name in real:
                knows = float(ranked(train[name], test[name]))
                out[f"probe_{name.removesuffix(REAL)}discriminator_train_over_test"] = knows
        return out

    def _of_data(self) -> dict[str, float]:
        if self.range is None:
            return {}
        low, high = self.range
        return {"probe_data_low": low, "probe_data_high": high, "probe_data_saturated": self.saturated}

    def _of_samples(self, model: Model) -> dict[str, float]:
        if "sample" not in model.abilities:
            return {}
        x = model.sample_tensor(max(len(self.data), 1), seed=1)
        out: dict[str, float] = {}
        if self.range is not None:
            out["probe_sample_saturated"] = float((x.abs() > EDGE).float().mean())
        samples = flattened(x)
        if not samples.isfinite().all():
            return out | {"probe_sample_spread": float("nan")}
        if len(self.anchors) >= 4:
            made, there = (_regions(points, self.anchors) for points in (samples, self.data))
            out["probe_sample_modes"] = made / there
            out["probe_sample_spread"] = _spread(samples) / max(_spread(self.data), 1e-30)
        if self.near is not None and self.held_out is not None:
            if self.fair is None:
                self.fair = float(_nearest(self.held_out, self.near).median())
            if self.fair > 0:  # data that repeat themselves have no distance to be fair
                out["probe_sample_to_train"] = float(_nearest(samples, self.near).median()) / self.fair
        return out

    def _rollouts(self, stage: Stage, split: Split, examples: int, step: int) -> dict[str, Tensor]:
        """The named tensors that `health` reads, over a few batches, as the stage's phases play them in training."""
        size = min(self.batch_size, len(split))
        count = min(BATCHES, len(split) // size) if size > 1 else 0
        chosen = _spaced(len(split), size * count)
        wanted: dict[str, list[Tensor]] = {}
        with _as_played(stage.game, self.device):
            for k in range(count):
                indices = chosen[k::count]
                batch: Any = {"x": to_model(split.x[indices], self.spec).to(self.device)}
                if split.y is not None:
                    batch["y"] = split.y[indices].to(self.device)
                if split.a is not None and self.spec.input is not None:
                    # Two sets without correspondence need not be of one size.
                    batch["a"] = to_model(split.a[indices % len(split.a)], self.spec.input).to(self.device)
                if stage.view is not None:
                    batch = stage.view(stage.game.nets, batch)
                found: dict[str, Tensor] = {}
                for phase in stage.game.phases:
                    generator = torch.Generator(self.device).manual_seed(k)
                    rollout = phase.rollout(State(stage.game.nets, batch, examples, step, generator))
                    read = {k: v for k, v in rollout.items() if k in READ or _is_real(k)}
                    found = read | found
                for name, value in found.items():
                    wanted.setdefault(name, []).append(value.float() if value.is_floating_point() else value)
        return {name: torch.cat(values).cpu() for name, values in wanted.items()}


def _of_posterior(rollout: Mapping[str, Tensor]) -> dict[str, float]:
    if not {"mean", "log_var"} <= rollout.keys():
        return {}
    mean, log_var = rollout["mean"].flatten(1), rollout["log_var"].flatten(1)
    if mean.shape != log_var.shape:
        return {}
    kl = kl_normal_per_dimension(mean, log_var).mean(0)
    return {
        "probe_active_units": float((mean.var(0) > ACTIVE).sum()),
        "probe_code_units": float(mean.shape[1]),
        "probe_kl_nats": float(kl.sum()),
        "probe_kl_largest_nats": float(kl.max()),
    }


def _of_codes(rollout: Mapping[str, Tensor], game: Game) -> dict[str, float]:
    if "indices" not in rollout or "codebook" not in game.nets:
        return {}
    codes = len(cast(Tensor, game.nets["codebook"].weight))
    # No more can be used than there are positions.
    return {
        "probe_codes_used": float(len(rollout["indices"].unique())),
        "probe_codes": float(min(codes, rollout["indices"].numel())),
    }


@contextmanager
def _as_played(game: Game, device: torch.device) -> Iterator[None]:
    """Players in train mode, all else in eval mode, no gradient; afterwards everything is what it was."""
    modes = [(module, module.training) for module in game.nets.modules()]
    # A rollout changes parameters only by what it remembers: dead codes that are restarted.
    changing = [*game.nets.buffers(), *(game.nets.parameters() if game.memory else ())]
    kept = [(tensor, tensor.detach().clone()) for tensor in changing]
    for name, net in game.nets.items():
        net.train(name in game.players)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for tensor, value in kept:
                tensor.copy_(value)


def flattened(x: Tensor) -> Tensor:
    """Examples (n, …) as rows (n, values) to be compared by distance: images averaged down to at most 16 a side."""
    if x.dim() == 4 and max(x.shape[2:]) > SIDE:
        x = F.adaptive_avg_pool2d(x, (min(SIDE, x.shape[2]), min(SIDE, x.shape[3])))
    return x.flatten(1)


def _nearest(points: Tensor, others: Tensor) -> Tensor:
    """The distance of each point to the nearest of the others."""
    # By products of matrices where that is much faster; in few dimensions near points would lose their distance to it.
    mode = "donot_use_mm_for_euclid_dist" if points.shape[1] <= SIDE else "use_mm_for_euclid_dist_if_necessary"
    return torch.cat([torch.cdist(some, others, compute_mode=mode).amin(1) for some in points.split(64)])


def _regions(points: Tensor, anchors: Tensor) -> float:
    """The effective number of anchors whose neighbourhoods `points` lie in: exp of the entropy of their shares."""
    counts = torch.cdist(points, anchors).argmin(1).bincount(minlength=len(anchors)).float()
    shares = counts / counts.sum()
    return float(torch.special.entr(shares).sum().exp())


def _spread(points: Tensor) -> float:
    """The mean distance between two points."""
    return float(F.pdist(points).mean())


def _spaced(n: int, count: int) -> Tensor:
    """`count` indices below `n` at equal distances: files are often sorted by class."""
    return torch.linspace(0, n - 1, min(n, count)).round().long()


def _model_values(split: Split, spec: Spec, most: int | None) -> Tensor:
    return to_model(split.x[_spaced(len(split), most or len(split))], spec)


def probe_run(run: Run, data: Any, data_options: Mapping[str, Any]) -> dict[str, float]:
    """The probes of a run's newest checkpoint on `data`. Raises `InputError` if the data are not of the run's kind."""
    model = load_model(run.path)
    loaded = load(data, **data_options)
    if (loaded.spec.kind, loaded.spec.shape) != (model.spec.kind, model.spec.shape):
        raise InputError(
            f"this run's data are {model.spec.kind}s of {model.spec.shape}; {loaded.name} has {loaded.spec.kind}s of "
            f"{loaded.spec.shape}"
        )
    batch_size = (run.config.get("train") or {}).get("batch_size", 64)
    probes = Probes(loaded, batch_size=batch_size, device=model.device)
    return probes.measure(model, _stage_at(model.recipe, model.examples, run), examples=model.examples)


def _stage_at(recipe: Recipe, examples: int, run: Run) -> Stage:
    """The stage in which the run was after so many examples."""
    planned = (run.config.get("train") or {}).get("examples", 0)
    total, done = sum(stage.share for stage in recipe.stages), 0.0
    for stage in recipe.stages:
        done += stage.share / total * planned
        if examples <= done:
            return stage
    return recipe.stages[-1]
