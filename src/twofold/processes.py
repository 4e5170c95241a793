"""Several processes that play one game: each sees its share of every batch, and all move alike.

Launched by torchrun or `accelerate launch`, which say in environment variables who each process is. What one process
would compute on the whole batch, the processes compute together:

- gradients of a play are averaged over the processes before the move (`Processes.average`);
- noise is drawn for the whole batch, with the same generator everywhere, and each process takes the rows of its share
  (`Processes.noise`);
- BatchNorm normalises by the whole batch (`synchronise`);
- what lives in a game's memory (moving averages of codes, pools of images) is computed from the whole batch in each
  process, with equal random choices, so that its copies stay equal (`total`, `gathered`, `draw_rows`);
- what decides on the host (a gate, a stop request, a loss that is not finite) is decided together.

Only the main process writes. Losses that are no mean over examples (MMD, batch statistics of codes, permutations) see
the share of their process, as they would see a smaller batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from twofold.errors import InputError
from twofold.game import Peers

_Result = TypeVar("_Result")
TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others: the main one may draw pictures or write a large checkpoint meanwhile."""


@dataclass(frozen=True)
class Processes(Peers):
    """Who this process is among those that train together; alone by default."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    """Its number on this machine: which of the machine's devices it takes."""
    control: Any = None
    """The group in which processes talk on the host."""

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def average(self, tensors: list[Tensor]) -> None:
        """Average the tensors over the processes, in place, in one message for each dtype."""
        if self.count > 1:
            _all_sum(tensors, divided_by=self.count)

    def total(self, tensors: list[Tensor]) -> None:
        """Sum the tensors over the processes, in place, in one message for each dtype."""
        if self.count > 1:
            _all_sum(tensors)

    def gathered(self, x: Tensor) -> Tensor:
        """The rows of all processes, in the order of the whole batch, as plain numbers."""
        x = x.detach().contiguous()
        if self.count == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.count)]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    def draw_rows(self, x: Tensor, n: int, *, generator: torch.Generator) -> Tensor:
        """n rows drawn from those of all processes: the draws of one process that has them all, and a message of n
        rows, not of all."""
        if self.count == 1:
            return super().draw_rows(x, n, generator=generator)
        # With a copy of the generator: inside `noise` its own draws are cut to rows of the batch.
        same = generator.clone_state()
        where = torch.randint(len(x) * self.count, (n,), generator=same, device=x.device)
        generator.set_state(same.get_state())
        here = where // len(x) == self.rank
        drawn = torch.where(here.view(-1, *[1] * (x.dim() - 1)), x[where % len(x)], 0)
        self.total([drawn])
        return drawn

    def any(self, here: bool) -> bool:
        """Whether it is so in any process."""
        if self.count == 1:
            return here
        flag = torch.tensor([float(here)])
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self.control)
        return bool(flag.item())

    def earliest(self, steps: Tensor) -> None:
        """The smallest number that is not negative in any process, -1 where all are; in place."""
        if self.count == 1:
            return
        never = torch.iinfo(steps.dtype).max
        host = torch.where(steps < 0, never, steps).cpu()
        dist.all_reduce(host, op=dist.ReduceOp.MIN, group=self.control)
        steps.copy_(torch.where(host == never, -1, host))

    def means(self, values: Mapping[str, float]) -> dict[str, float]:
        """The values' averages over the processes."""
        if self.count == 1 or not values:
            return dict(values)
        host = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(host, group=self.control)
        return dict(zip(values, (host / self.count).tolist(), strict=True))

    def from_main(self, work: Callable[[], _Result]) -> _Result:
        """What `work` returns in the main process, in all of them; its `InputError` is raised in all of them."""
        if self.count == 1:
            return work()
        told: list[Any] = [None, None]
        error: InputError | None = None
        if self.main:
            try:
                told[0] = work()
            except InputError as refused:
                error, told[1] = refused, str(refused)
        dist.broadcast_object_list(told, group=self.control)
        if error is not None:
            raise error
        if told[1] is not None:
            raise InputError(told[1])
        return cast(_Result, told[0])

    def noise(self, generator: torch.Generator, share: int) -> Any:
        """A context in which draws from `generator` are the whole batch's, cut to this process's rows.

        share: examples of a part of a batch in this process.
        """
        return nullcontext() if self.count == 1 else _WholeBatchNoise(generator, share, self.rank, self.count)

    def seed(self, seed: int, examples: int) -> None:
        """Seed torch's own generator (dropout) for the step at `examples`: another stream in each process, and in each
        step, so that nothing of it has to be saved."""
        if self.count > 1:
            torch.manual_seed(((seed * 1_000_003 + examples) * 65_537 + self.rank) % 2**63)


ALONE = Processes()


@torch.no_grad()
def _all_sum(tensors: list[Tensor], divided_by: int = 1) -> None:
    for dtype in sorted({t.dtype for t in tensors}, key=str):
        own = [t for t in tensors if t.dtype == dtype]
        flat = torch.cat([t.reshape(-1) for t in own])
        dist.all_reduce(flat)
        if divided_by != 1:
            flat /= divided_by
        for tensor, part in zip(own, flat.split([t.numel() for t in own]), strict=True):
            tensor.copy_(part.view_as(tensor))


def launched_count() -> int:
    """How many processes the launcher started (1 without one)."""
    try:
        return max(1, int(os.environ.get("WORLD_SIZE", "1")))
    except ValueError:
        raise InputError(f"the environment's WORLD_SIZE is {os.environ['WORLD_SIZE']!r}; it is a number") from None


@contextmanager
def joined(device: str | None) -> Iterator[Processes]:
    """Meet the processes that were launched with this one; nothing happens if there are none.

    Raises `InputError` if the launcher did not say where to meet.
    """
    count = launched_count()
    if count == 1:
        yield ALONE
        return
    names = ("RANK", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in names if name not in os.environ]:
        raise InputError(f"WORLD_SIZE is {count}, but {missing[0]} is not set; launch with torchrun or accelerate")
    cuda = torch.cuda.is_available() if device is None else device.startswith("cuda")
    made = not dist.is_initialized()
    if made:
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT)
    control = dist.new_group(backend="gloo", timeout=TIMEOUT)
    try:
        yield Processes(dist.get_rank(), count, int(os.environ.get("LOCAL_RANK", "0")), control)
    finally:
        if made:
            dist.destroy_process_group()


# Noise.


class _WholeBatchNoise(TorchFunctionMode):
    """Draws from one generator as one process would make them for the batch of all, cut to the rows of this process.

    A draw belongs to the batch if its first dimension is a multiple of the share. k·share rows are k draws for each
    example, one example's after the other's (as `repeat_interleave` lays them). Other draws with the generator, and
    those whose parameters are tensors (a Bernoulli's probabilities), take a stream of their own in each process, whose
    seed is drawn from the generator: so its state stays the same everywhere.
    """

    def __init__(self, generator: torch.Generator, share: int, rank: int, count: int):
        super().__init__()
        self.generator, self.share, self.rank, self.count = generator, share, rank, count

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("generator") is not self.generator:
            return func(*args, **kwargs)
        if func in (torch.randn, torch.rand, torch.randint):
            size, rest, keywords = _size_of(func, args, kwargs)
            if size and size[0] % self.share == 0 and size[0]:
                return func(*rest, (size[0] * self.count, *size[1:]), **keywords)[self._rows(size[0])]
            return func(*args, **kwargs)
        if func in (Tensor.exponential_, Tensor.uniform_, Tensor.normal_) and args[0].dim():
            target: Tensor = args[0]
            if len(target) % self.share == 0 and len(target):
                whole = target.new_empty(len(target) * self.count, *target.shape[1:])
                return target.copy_(func(whole, *args[1:], **kwargs)[self._rows(len(target))])
        seed = int(torch.randint(2**62, (1,), generator=self.generator, device=self.generator.device))
        kwargs["generator"] = torch.Generator(self.generator.device).manual_seed(seed + self.rank)
        return func(*args, **kwargs)

    def _rows(self, own: int) -> slice:
        return slice(self.rank * own, (self.rank + 1) * own)


def _size_of(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[tuple[int, ...], tuple, dict[str, Any]]:
    """(size, the positional arguments before it, the other keywords) of a call of randn, rand or randint."""
    keywords = {key: value for key, value in kwargs.items() if key != "size"}
    if "size" in kwargs:
        return tuple(kwargs["size"]), tuple(args), keywords
    if func is torch.randint:
        return tuple(args[-1]), tuple(args[:-1]), keywords
    size = args[0] if len(args) == 1 and not isinstance(args[0], int) else args
    return tuple(size), (), keywords


# BatchNorm.


class _WholeBatchNorm(_BatchNorm):
    """BatchNorm whose batch is that of all processes; torch's own knows GPUs only. Elsewhere than in training, and for
    the gradient with respect to what it normalises, it is BatchNorm."""

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"BatchNorm takes (batch, channels, …), not {tuple(x.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and self.running_mean is not None:
            return super().forward(x)
        self._check_input_dim(x)
        count = dist.get_world_size()
        over = [0, *range(2, x.dim())]
        values = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        # Means of equal shares: the mean of the means is the mean. The second pass is about the common mean, which
        # keeps what E[x²] - E[x]² would cancel.
        mean = _all_mean(values.mean(over), count)
        shape = (1, -1, *[1] * (x.dim() - 2))
        centred = values - mean.view(shape)
        var = _all_mean(centred.square().mean(over), count)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            self._track(mean.detach(), var.detach(), count * values.numel() // values.shape[1])
        out = centred * (var + self.eps).rsqrt().view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, values: int) -> None:
        assert self.running_mean is not None and self.running_var is not None
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        weight = 1 / float(self.num_batches_tracked or 1) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        self.running_var.lerp_((var * (values / max(values - 1, 1))).to(self.running_var.dtype), weight)


class _AllMean(torch.autograd.Function):
    """The mean over processes; backward, too, since each process's loss is a share of the mean of losses.

    The processes' losses are averaged, so the gradient that reaches a common mean is the mean of what each sends.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int) -> Tensor:
        ctx.count = count
        out = x.detach().clone()
        dist.all_reduce(out)
        return out / count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return cast(Tensor, _AllMean.apply(gradients[0], ctx.count)), None  # may be differentiated again, too


def _all_mean(x: Tensor, count: int) -> Tensor:
    return cast(Tensor, _AllMean.apply(x, count))


def synchronise(nets: nn.Module) -> None:
    """Put a BatchNorm over all processes in the place of each BatchNorm, with the same parameters and buffers."""
    for module in nets.modules():
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm) and not isinstance(child, _WholeBatchNorm):
                whole = _WholeBatchNorm(
                    child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
                )
                whole.__dict__.update(child.__dict__)  # the very parameters, buffers, hooks and mode
                setattr(module, name, whole)
