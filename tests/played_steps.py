"""Steps of a recipe without a run directory, in a precision of choice. In float64 two orders of addition differ by
about 1e-15, so that whatever is more than rounding shows as such."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from twofold.compiling import compiled
from twofold.data import Batches
from twofold.game import begin, step
from twofold.processes import ALONE, Processes
from twofold.sharding import Shard
from twofold.training import Settings, _drawing, _step, batches, prepare


def played(
    name: str,
    data: Any,
    steps: int,
    *,
    processes: Processes = ALONE,
    dtype: str = "float64",
    batch_size: int = 16,
    seed: int = 0,
    compile: str | None = None,
    channels_last: bool = False,
    **options,
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """So many steps of each stage, one stage after the other: all weights, running statistics and memory, and the
    values of each step."""
    settings = Settings(batch_size=batch_size, seed=seed, compile=compile, channels_last=channels_last)
    plan = prepare(name, data=data, settings=settings, device="cpu", processes=processes, **options)
    plan.recipe.nets.to(getattr(torch, dtype))
    stream = _InPrecision(batches(plan), getattr(torch, dtype))
    values = []
    torch.manual_seed(seed)
    with compiled(plan.recipe.nets, compile) as calls:
        for k, stage in enumerate(plan.recipe.stages):
            progress = begin(stage.game, seed=seed + k)
            draw = _drawing(plan, stream, stage, progress, 0, None)
            for _ in range(steps):
                with processes.noise(progress.generator, batch_size // processes.count):
                    play = _step(plan, calls, stage.game, progress, draw, peers=processes)
                values.append({name: float(value) for name, value in play.items()})
    return dict(plan.recipe.nets.state_dict()), values


def held(name: str, data: Any, processes: Processes, *, batch_size: int, device: str, **options) -> tuple[int, int]:
    """Numbers of weights and of optimizer state that this process holds of a sharded player after one step, and
    those of a whole one."""
    plan = prepare(
        name, data=data, settings=Settings(batch_size=batch_size), device=device, processes=processes, **options
    )
    own = list(plan.recipe.nets.parameters())
    shard = Shard.of(plan.recipe.stages[-1], processes, plan.device)
    assert shard is not None and all(w.untyped_storage().nbytes() < 9 for w in own)
    progress = begin(shard.stage.game)
    step(shard.stage.game, progress, lambda: batches(plan).draw(0), peers=processes)
    optimizer = progress.optimizers[shard.name]
    tensors = [*shard.sharded.parameters(), *(t for s in optimizer.state.values() for t in s.values() if t.dim())]
    return sum(t.to_local().numel() for t in tensors), sum(t.numel() for t in tensors)


class _InPrecision:
    def __init__(self, stream: Batches, dtype: torch.dtype):
        self.stream, self.dtype = stream, dtype

    def draw(self, position: int) -> dict[str, Tensor]:
        batch = self.stream.draw(position)
        return {name: x.to(self.dtype) if x.is_floating_point() else x for name, x in batch.items()}


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """‖a - b‖ / ‖a‖ over all weights, running statistics and memory."""
    assert a.keys() == b.keys()
    pairs = [(w.double(), b[name].double()) for name, w in a.items() if w.is_floating_point()]
    between = sum(float((u - v).square().sum()) for u, v in pairs)
    return (between / sum(float(u.square().sum()) for u, _ in pairs)) ** 0.5
