"""A player's weights, gradients and optimizer state divided among the processes (torch's `fully_shard`, FSDP).

Its hooks gather a module's weights before its forward and backward, and divide the gradients after the backward, of one
loss by one backward pass. So a player can be sharded where it plays alone: a stage whose game has this player only (a
PixelCNN, the Transformer of `vqgan`'s codes). In every other stage a phase may have a pass for each row, over one
graph, and the processes keep whole copies.

While a player is sharded the recipe's own network holds no numbers; `Shard.fill` puts them back, in the main process to
save or to draw, in all of them at the stage's end. Checkpoints are the same as without sharding.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from twofold.errors import InputError
from twofold.game import Game, Stage, is_divided, whole
from twofold.processes import Processes


def check(stages: tuple[Stage, ...], processes: Processes, device: torch.device) -> None:
    """Raise `InputError` if there is nothing that can be sharded, nobody to share with, or torch cannot do it here."""
    if processes.count == 1:
        raise InputError("shard divides networks among processes, and there is one; launch several, or leave it out")
    if not any(_lonely(stage.game) for stage in stages):
        players = ", ".join(stages[0].game.players)
        raise InputError(
            f"shard needs a stage in which one network learns (as in pixelcnn, or vqgan's prior), not several "
            f"({players}); leave it out"
        )
    for stage in filter(lambda stage: _lonely(stage.game), stages):
        for module in next(iter(stage.game.players.values())).net.modules():
            if why := getattr(module, "unshardable", None):
                raise InputError(f"shard cannot divide this network: {why}; leave it out")
        averaged = [name for name, player in stage.game.players.items() if player.ema_half_life_examples is not None]
        if averaged:
            raise InputError(f"shard keeps no moving average of {averaged[0]}; leave ema_half_life_examples out")
    if not possible(device):
        raise InputError(
            f"shard does not work on the CPU with torch {torch.__version__}; use a newer one, or leave shard out"
        )


def possible(device: torch.device) -> bool:
    """Whether this torch shards on that device: 2.6 fails on the CPU, for want of this method."""
    return device.type != "cpu" or hasattr(torch.cpu.Stream, "record_event")


def _lonely(game: Game) -> bool:
    return len(game.players) == 1


@dataclass
class Shard:
    """One stage's player, sharded."""

    stage: Stage
    """The stage with the sharded network in the place of the whole one."""
    name: str
    own: nn.Module
    """The recipe's network."""
    sharded: nn.Module

    @classmethod
    def of(cls, stage: Stage, processes: Processes, device: torch.device) -> Shard | None:
        """The stage sharded, or None where several play. Empties the recipe's network."""
        if not _lonely(stage.game):
            return None
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        (name, player), *_ = stage.game.players.items()
        own = player.net
        # A copy of the structure over the very same numbers: sharding then takes its part of them.
        same = {id(w): nn.Parameter(w.data, requires_grad=w.requires_grad) for w in own.parameters()}
        sharded = copy.deepcopy(own, same)
        mesh = init_device_mesh(device.type, (processes.count,))
        for module in sharded.modules():
            if isinstance(module, nn.ModuleList):  # blocks, gathered one after the other
                for block in module:
                    fully_shard(block, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        game = stage.game
        changed = Game({name: replace(player, net=sharded)}, game.phases, game.frozen, game.memory)
        shard = cls(replace(stage, game=changed), name, own, sharded)
        shard.empty()
        return shard

    @torch.no_grad()
    def fill(self, *, here: bool) -> None:
        """Gather the numbers into the recipe's network where `here`; every process must take part."""
        for mine, theirs in zip(self.own.parameters(), self.sharded.parameters(), strict=True):
            full = whole(theirs.detach())
            if here:
                mine.data = full
        for kept, newer in zip(self.own.buffers(), self.sharded.buffers(), strict=True):
            kept.copy_(newer)

    def empty(self) -> None:
        """Let go of the numbers of the recipe's network."""
        for weight in self.own.parameters():
            weight.data = weight.data.new_zeros(()).expand(weight.shape)

    @contextmanager
    def filled(self, *, here: bool) -> Iterator[None]:
        """The recipe's network with its numbers, where `here`, as long as the context is open."""
        self.fill(here=here)
        try:
            yield
        finally:
            self.empty()


def divided(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's saved state, with each tensor that has its parameter's shape divided as the parameter is."""
    parameters: list[Any] = [w for group in optimizer.param_groups for w in group["params"]]
    if not any(map(is_divided, parameters)):
        return dict(saved)
    from torch.distributed.tensor import distribute_tensor

    states = {}
    for k, slots in saved["state"].items():
        like = parameters[k]
        states[k] = {
            slot: distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
            if isinstance(value, Tensor) and value.shape == like.shape
            else value
            for slot, value in slots.items()
        }
    return {**saved, "state": states}


def together(state: Any) -> Any:
    """A nested state with every divided tensor whole; every process must take part."""
    if isinstance(state, Mapping):
        return {key: together(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(together(value) for value in state)
    return whole(state) if isinstance(state, Tensor) else state
