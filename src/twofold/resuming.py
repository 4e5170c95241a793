"""Put back what a checkpoint says about a game in play, believing nothing of it that does not fit the game."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from twofold.errors import InputError
from twofold.game import Game, Progress
from twofold.sharding import divided


def saved_stage(state: Mapping[str, Any], stages: int) -> int:
    """The stage that the checkpoint's record names. Raises `InputError` if there is no such stage."""
    stage = state.get("stage")
    if not isinstance(stage, int) or not 0 <= stage < stages:
        raise _unfit(f"it is of stage {str(stage)[:40]} of {stages}")
    return stage


def saved_seconds(state: Mapping[str, Any]) -> float:
    """Seconds of training in all sessions before. Raises `InputError` if that is no duration."""
    seconds = state.get("seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        raise _unfit(f"it was saved after {str(seconds)[:40]} seconds")
    return float(seconds)


def restore_progress(game: Game, progress: Progress, counts: Any, changing: Any) -> None:
    """Counts of steps, examples and plays, optimizers, the generator and the record of non-finite steps.

    `counts` is JSON, `changing` what `unflatten_state` gave. Raises `InputError` if anything is not as `train` saves
    it for this game.
    """
    _restore_counts(progress, counts)
    if not isinstance(changing, Mapping):
        raise _unfit("it has no state of optimizers")
    optimizers, first_bad = changing.get("optimizers"), changing.get("first_bad")
    if not isinstance(optimizers, Mapping) or set(optimizers) != set(progress.optimizers):
        raise _unfit(f"its optimizers are not those of {', '.join(progress.optimizers)}")
    for name, optimizer in progress.optimizers.items():
        saved = optimizers[name]
        _check_optimizer(name, saved, optimizer, game)
        pairs = zip(saved["param_groups"], optimizer.param_groups, strict=True)
        saved = {**saved, "param_groups": [{**group, **_kernels(own)} for group, own in pairs]}
        optimizer.load_state_dict(divided(saved, optimizer))
    if not isinstance(first_bad, Mapping) or set(first_bad) != set(progress.first_bad):
        raise _unfit("its record of non-finite steps is of other phases")
    for name, own in progress.first_bad.items():
        value = first_bad[name]
        if not isinstance(value, Tensor) or value.shape != own.shape or value.dtype != own.dtype:
            raise _unfit(f"its record of non-finite steps is not that of phase {name}")
        own.copy_(value)
    restore_random(progress.generator.set_state, changing.get("generator"))


def restore_random(set_state: Any, state: Any) -> None:
    """Give a random state to what takes it. Raises `InputError` if it is none."""
    try:
        set_state(state)
    except (TypeError, RuntimeError) as error:
        raise _unfit(f"a random state is none ({str(error)[:80]})") from None


def _restore_counts(progress: Progress, counts: Any) -> None:
    names = ("step", "examples", "skipped")
    if not isinstance(counts, Mapping) or not all(_is_count(counts.get(name)) for name in names):
        raise _unfit("it does not count steps and examples")
    plays = counts.get("plays")
    if not isinstance(plays, Mapping) or set(plays) != set(progress.plays) or not all(map(_is_count, plays.values())):
        raise _unfit("it counts plays of other phases")
    for name in names:
        setattr(progress, name, counts[name])
    progress.plays = dict(plays)


KERNELS = ("fused", "foreach")
"""What an optimizer's settings say of the device they were for, and nothing of how it moves."""


def _kernels(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: group[name] for name in KERNELS if name in group}


def _check_optimizer(name: str, saved: Any, optimizer: torch.optim.Optimizer, game: Game) -> None:
    """Settings must be the player's own but for the learning rate, which a schedule moves, and each parameter must have
    the tensors that this kind of optimizer keeps, in the parameter's shape."""
    what = f"the state of {name}'s optimizer"
    own = optimizer.state_dict()
    if not isinstance(saved, Mapping) or set(saved) != set(own):
        raise _unfit(f"{what} is none")
    groups, states = saved["param_groups"], saved["state"]
    if not isinstance(groups, list) or len(groups) != len(own["param_groups"]) or not isinstance(states, Mapping):
        raise _unfit(f"{what} is of other parameters")
    for group, known in zip(groups, own["param_groups"], strict=True):
        if not isinstance(group, Mapping) or not isinstance(group.get("lr"), float) or not math.isfinite(group["lr"]):
            raise _unfit(f"{what} has no learning rate")
        if not _same({**group, "lr": known["lr"], **_kernels(known)}, known):
            raise _unfit(f"{what} has other settings")
    parameters = [w for group in optimizer.param_groups for w in group["params"]]
    kept = _kept_by(game.players[name].optimizer)
    for key, state in states.items():
        if not _is_count(key) or key >= len(parameters) or not isinstance(state, Mapping) or set(state) != set(kept):
            raise _unfit(f"{what} is of other parameters")
        for slot, example in kept.items():
            if not _fits(state[slot], example, parameters[key]):
                raise _unfit(f"{what} has another {slot} than {name} needs")


def _kept_by(make: Any) -> Mapping[str, Any]:
    """What an optimizer made so keeps for a parameter, read off a parameter of 1 × 2 values after one step."""
    probe = nn.Parameter(torch.zeros(1, 2))
    probe.grad = torch.zeros(1, 2)
    optimizer = make([probe])
    optimizer.step()
    return dict(optimizer.state[probe])


def _fits(value: Any, example: Any, parameter: Tensor) -> bool:
    if not isinstance(example, Tensor):
        return type(value) is type(example) or (example is None and _fits(value, torch.zeros(1, 2), parameter))
    shape = parameter.shape if example.shape == (1, 2) else example.shape
    return isinstance(value, Tensor) and value.shape == shape and value.is_floating_point()


def _same(a: Any, b: Any) -> bool:
    try:
        return bool(type(a) is type(b) and a == b)
    except (RuntimeError, ValueError):  # tensors among the settings
        return False


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def _unfit(why: str) -> InputError:
    return InputError(f"this checkpoint was not saved by this recipe: {why}; resume from another")
