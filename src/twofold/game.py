"""A game: named players, loss terms, and which term's gradient reaches which player, with what coefficient, when.

Read top to bottom: the data (`Player`, `Term`, `Phase`, `Game`, `Stage`), the step (`begin`, `step`), the table
(`table`, `describe`). Gradient is routed here and nowhere else.

Policies, each held by a test:

- A player absent from a term's row receives exactly no gradient from it. A player that does not move in a play keeps
  its bytes, buffers included: in a play that does not move it, a network with BatchNorm still normalises by the
  batch in front of it, but its running statistics (and spectral normalisation's power iteration) are put back.
- `requires_grad` flags are put back after every play, also after an error.
- No gradient is computed that nobody uses: parameters of players that cannot move are frozen during the rollout, a
  backward pass visits the parameters of its row's players only, and rows share a pass where that changes nothing but
  the last digit.
- Nothing here waits for a device that may be behind. Exceptions say so where they stand: gates, and
  `on_nonfinite="skip"`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Nets = nn.ModuleDict
Batch = Mapping[str, Tensor]
Rollout = Mapping[str, Tensor]


class Peers:
    """The processes that share each batch, and what they do together; as it stands here, one on its own.

    Rows of the whole batch lie one process's after the other's, equally many of each.
    """

    rank: int = 0
    count: int = 1

    def average(self, tensors: list[Tensor]) -> None:
        """Average the tensors over the processes, in place."""

    def total(self, tensors: list[Tensor]) -> None:
        """Sum the tensors over the processes, in place."""

    def gathered(self, x: Tensor) -> Tensor:
        """The rows of all processes, as plain numbers."""
        return x.detach()

    def draw_rows(self, x: Tensor, n: int, *, generator: torch.Generator) -> Tensor:
        """n rows drawn from those of all processes, with replacement: the same ones in each."""
        return x[torch.randint(len(x), (n,), generator=generator, device=x.device)]

    def own(self, whole: int) -> range:
        """Which of the whole batch's rows are this process's."""
        share = whole // self.count
        return range(self.rank * share, (self.rank + 1) * share)


ALONE = Peers()


@dataclass(frozen=True)
class State:
    """All that a rollout, a loss, a coefficient or a learning rate may depend on.

    `state["x"]` is short for `state.rollout["x"]`.
    """

    nets: Nets
    """Players, frozen networks and memory by name."""
    batch: Batch
    """The data of this play: "x" (batch, …) and, where the data has labels, "y" (batch,)."""
    examples: int
    """Examples of this stage seen before this step."""
    step: int
    """Steps of this stage taken before this one."""
    generator: torch.Generator
    """The stage's own source of randomness, on the players' device."""
    rollout: Rollout = field(default_factory=dict)
    """The tensors that the phase's rollout returned. Empty while the rollout runs."""
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    """The due terms' losses with their graphs. Empty until all of them are evaluated."""
    memo: dict[Any, Any] = field(default_factory=dict)
    """A place for coefficients to share work within one play."""
    peers: Peers = ALONE
    """The processes that share the batch. What lives in memory is computed from the batch of all."""

    def __getitem__(self, name: str) -> Tensor:
        return self.rollout[name]


Coefficient = float | Callable[[State], "float | Tensor"]
"""A number, or a function of the state. A function that returns the float 0.0 takes the term out of the player's row
for this play; a tensor stays on its device and is never looked at by the step."""


@dataclass(frozen=True)
class Player:
    """A network that learns, and how."""

    net: nn.Module
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    """Makes the optimizer, e.g. `partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999))`."""
    lr_factor: Callable[[State], float] | None = None
    """Multiplies the optimizer's learning rate: a schedule in examples seen."""
    clip_norm: float | None = None
    """Largest norm of the player's whole gradient."""
    weight_limit: float | None = None
    """Each weight is clipped to [-weight_limit, weight_limit] after each move (WGAN)."""
    ema_half_life_examples: float | None = None
    """Keep an exponential moving average of the network; an example's influence halves after this many examples."""


@dataclass(frozen=True)
class Term:
    """One scalar loss and the players it trains.

    `to` maps a player to the coefficient of this loss in the objective that the player minimises; negative: the
    player maximises it. A player that is absent receives no gradient from this term.
    """

    name: str
    loss: Callable[[State], Tensor]
    to: Mapping[str, Coefficient]
    every: int = 1
    """Lazy regularisation: evaluated in every n-th play of its phase, its coefficients multiplied by n."""


@dataclass(frozen=True)
class Phase:
    """One rollout shared by all its terms, then one move of every player that its due terms reach.

    All players of a phase move at once, from gradients of the same rollout (simultaneous play); players in different
    phases take turns (alternating play).
    """

    name: str
    rollout: Callable[[State], Rollout]
    terms: Sequence[Term]
    repeats: int | Callable[[State], int] = 1
    """How often the phase is played in a step. The first play takes the batch the step's previous phase ended with;
    each further play draws a fresh one."""
    every: int = 1
    """The phase is due in every n-th step."""
    measures: Mapping[str, Callable[[State], Tensor]] = field(default_factory=dict)
    """Scalars of the rollout that are returned beside the terms' values, without gradient: they train nobody."""


@dataclass(frozen=True)
class Game:
    """Players and the phases they play, in order.

    `frozen` networks are used by rollouts but never learn and stay in eval mode (an earlier stage's players).
    `memory` is state that lives across steps without gradient, as modules that hold buffers only (an image pool, a
    moving baseline); checkpoints contain it.

    Raises `ValueError` if a term names an unknown player, a term name stands twice, a phase has no terms, no term
    reaches a player, or two players share a parameter.
    """

    players: Mapping[str, Player]
    phases: Sequence[Phase]
    frozen: Mapping[str, nn.Module] = field(default_factory=dict)
    memory: Mapping[str, nn.Module] = field(default_factory=dict)
    nets: Nets = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check_names(self)
        _check_routing(self)
        _check_parameters(self)
        modules = {name: player.net for name, player in self.players.items()} | dict(self.frozen) | dict(self.memory)
        object.__setattr__(self, "nets", nn.ModuleDict(modules))


@dataclass(frozen=True)
class Stage:
    """A game, the view of the data it is played on, and its share of the run."""

    name: str
    game: Game
    share: float = 1.0
    """Part of the run's examples, relative to the other stages' shares."""
    view: Callable[[Nets, Batch], Batch] | None = None
    """What the game sees of a batch of data, computed without gradient (a later stage's codes). None: the data."""
    kept: str | None = None
    """A name under which the view of the whole training split may be kept, computed once and shared by the stages that
    give the same name. For a view that treats each example on its own and draws nothing. Whole numbers only."""


def _check_names(game: Game) -> None:
    names = [*game.players, *game.frozen, *game.memory]
    for name in names:
        if not name.isidentifier():
            raise ValueError(f"player name {name!r} is not an identifier; use letters, digits and underscores")
    if repeated := sorted({n for n in names if names.count(n) > 1}):
        raise ValueError(f"{repeated} stand more than once among players, frozen networks and memory")
    if not game.phases:
        raise ValueError("a game needs at least one phase")
    phases = [phase.name for phase in game.phases]
    if repeated := sorted({n for n in phases if phases.count(n) > 1}):
        raise ValueError(f"phase names {repeated} stand more than once; give each phase its own name")
    terms = [term.name for phase in game.phases for term in phase.terms]
    terms += [name for phase in game.phases for name in phase.measures]
    if repeated := sorted({n for n in terms if terms.count(n) > 1}):
        raise ValueError(f"term names {repeated} stand more than once; give each term its own name")


def _check_routing(game: Game) -> None:
    reached: set[str] = set()
    for phase in game.phases:
        if not phase.terms:
            raise ValueError(f"phase {phase.name!r} has no terms; a phase needs at least one")
        if phase.every < 1 or (isinstance(phase.repeats, int) and phase.repeats < 1):
            raise ValueError(f"phase {phase.name!r} has every={phase.every}, repeats={phase.repeats}; both start at 1")
        for term in phase.terms:
            if unknown := sorted(set(term.to) - set(game.players)):
                raise ValueError(f"term {term.name!r} names {unknown}, but the players are {sorted(game.players)}")
            if not term.to:
                raise ValueError(f"term {term.name!r} reaches no player; give it a row such as to={{'encoder': 1.0}}")
            if term.every < 1:
                raise ValueError(f"term {term.name!r} has every={term.every}; it starts at 1")
            for player, coefficient in term.to.items():
                if not callable(coefficient) and not math.isfinite(coefficient):
                    raise ValueError(f"term {term.name!r} reaches {player!r} with coefficient {coefficient}")
            reached |= set(term.to)
    if idle := sorted(set(game.players) - reached):
        raise ValueError(f"no term reaches {idle}; route a term to each player, or declare it frozen")


def _check_parameters(game: Game) -> None:
    owner: dict[int, str] = {}
    for name, player in game.players.items():
        if not any(w.requires_grad for w in player.net.parameters()):
            raise ValueError(f"player {name!r} has no parameter that can learn")
        for parameter in player.net.parameters():
            if owner.setdefault(id(parameter), name) != name:
                raise ValueError(
                    f"players {owner[id(parameter)]!r} and {name!r} share a parameter; make the shared part a player"
                )
    for name, module in game.memory.items():
        if any(True for _ in module.parameters()):
            raise ValueError(f"memory {name!r} has parameters; memory holds buffers only")


# The step.


class NonFiniteError(ArithmeticError):
    """A loss term became infinite or not a number."""

    def __init__(self, term: str, players: Sequence[str], step: int):
        self.term, self.players, self.step = term, tuple(players), step
        super().__init__(
            f"term {term!r}, which trains {' and '.join(players)}, was not finite at step {step}; "
            "training stopped. Try a lower learning rate, or clip_norm"
        )


@dataclass(frozen=True)
class _Parts:
    """What a network consists of. A walk through it in every play would cost more than some kernels."""

    parameters: list[nn.Parameter]
    norms: list[_BatchNorm]
    """Those of torch's BatchNorms, which keep no statistics while they are told not to, …"""
    others: list[nn.Module]
    """… and all other modules."""

    @classmethod
    def of(cls, net: nn.Module) -> _Parts:
        own = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        norms = [m for m in net.modules() if isinstance(m, _BatchNorm) and type(m) in own]
        return cls(list(net.parameters()), norms, [m for m in net.modules() if type(m) not in own])


@dataclass
class Progress:
    """Everything that changes while a game is played, besides the networks."""

    generator: torch.Generator
    optimizers: dict[str, torch.optim.Optimizer]
    averages: nn.ModuleDict
    """EMA copies of the players that asked for one."""
    first_bad: dict[str, Tensor]
    """Per phase, per term: the first step whose loss was not finite, -1 if none. On the device."""
    plays: dict[str, int]
    """Plays of each phase so far; lazy terms count these."""
    parts: dict[str, _Parts]
    """Of each network as it was in the beginning: its modules and parameters stay, their numbers do not."""
    step: int = 0
    examples: int = 0
    skipped: int = 0
    """Plays without a move because a gradient was not finite (`on_nonfinite="skip"`)."""


def begin(game: Game, *, seed: int = 0, fused: bool = True) -> Progress:
    """Prepare to play: players in train mode, frozen networks in eval mode, fresh optimizers and averages.

    fused: Adam and AdamW update all of a player's weights in one kernel, on the CPU and on CUDA: equal up to rounding
        to what they do by themselves, which is a kernel for each operation. Nothing changes for other optimizers and
        devices, nor for one that was made with `fused` or `foreach`.
    """
    device = next(game.nets.parameters()).device
    for name, net in game.nets.items():
        net.train(name in game.players)
    averages = {
        name: copy.deepcopy(player.net).requires_grad_(False).eval()
        for name, player in game.players.items()
        if player.ema_half_life_examples is not None
    }
    return Progress(
        generator=torch.Generator(device).manual_seed(seed),
        optimizers={name: _optimizer(player, fused) for name, player in game.players.items()},
        averages=nn.ModuleDict(averages),
        first_bad={p.name: torch.full((len(p.terms),), -1, dtype=torch.int64, device=device) for p in game.phases},
        plays={phase.name: 0 for phase in game.phases},
        parts={name: _Parts.of(net) for name, net in game.nets.items()},
    )


def _optimizer(player: Player, fused: bool) -> torch.optim.Optimizer:
    optimizer = player.optimizer([w for w in player.net.parameters() if w.requires_grad])
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
        known = all(w.device.type in ("cpu", "cuda") and w.is_floating_point() for w in group["params"])
        free = group.get("fused") is None and group.get("foreach") is None
        if fused and known and free and isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
            group["fused"] = True
    return optimizer


def step(
    game: Game,
    progress: Progress,
    draw: Callable[[], Batch],
    *,
    accumulate: int = 1,
    on_nonfinite: str = "stop",
    peers: Peers = ALONE,
    loss_scale: float = 1.0,
    observe: Callable[[State], Mapping[str, Tensor]] | None = None,
) -> dict[str, Tensor]:
    """Play every due phase once (or its `repeats` times) and return each evaluated term's value.

    Args:
        draw: returns the next batch; called once per step and once more for each further play of a repeated phase.
        accumulate: split each batch into this many parts, one rollout each, and move once on the summed gradient.
            Coefficients, gates included, are evaluated per part. BatchNorm sees the parts.
        on_nonfinite: "stop" notes the term and step on the device (see `check_finite`) and plays on;
            "skip" waits for the device in every play and moves nobody if a gradient is not finite.
        peers: the processes that share each batch: the gradients of a play are averaged over them, and every one of
            them counts the whole batch's examples.
        loss_scale: losses are multiplied by this before the backward passes and gradients divided by it after, so that
            float16 can hold them; with any but 1 a play whose gradient is not finite moves nobody, as with "skip".
        observe: asked in each play, with the losses' graphs still there, for scalars to return; with it the norm of
            each moving player's gradient, before clipping, is returned too. It costs a few small kernels and does not
            change the step.

    Returns:
        A detached scalar on the device for each term that was due (of a repeated phase: its last play's value), for
        each coefficient that is a function, under "term → player", and for each measure of the phases. With `observe`
        also what it returned (of the play's first part) and "gradient_norm → player".
    """
    if on_nonfinite not in ("stop", "skip"):
        raise ValueError(f"on_nonfinite is {on_nonfinite!r}; allowed: 'stop', 'skip'")
    values: dict[str, Tensor] = {}
    batch = draw()
    seen = _length(batch)
    skip = on_nonfinite == "skip" or loss_scale != 1.0
    for phase in game.phases:
        if progress.step % phase.every:
            continue
        repeats = phase.repeats
        if callable(repeats):
            repeats = repeats(
                State(game.nets, batch, progress.examples, progress.step, progress.generator, peers=peers)
            )
        for k in range(repeats):
            if k:
                batch = draw()
                seen += _length(batch)
            values |= _play(game, progress, phase, batch, accumulate, skip, peers, loss_scale, observe)
    progress.step += 1
    progress.examples += seen * peers.count
    return values


def check_finite(game: Game, progress: Progress) -> None:
    """Raise `NonFiniteError` for the term that was the first not to be finite. Waits for the device."""
    bad = [
        (when, term)
        for phase in game.phases
        for term, when in zip(phase.terms, progress.first_bad[phase.name].tolist(), strict=True)
        if when >= 0
    ]
    if bad:
        when, term = min(bad, key=lambda pair: pair[0])
        raise NonFiniteError(term.name, list(term.to), when)


def _length(batch: Batch) -> int:
    return next(iter(batch.values())).shape[0]


def _parts(batch: Batch, count: int) -> list[Batch]:
    if count == 1:
        return [batch]
    if count > _length(batch):
        raise ValueError(f"a batch of {_length(batch)} examples cannot be split into {count} parts")
    chunks = {name: tensor.tensor_split(count) for name, tensor in batch.items()}
    return [{name: chunks[name][k] for name in batch} for k in range(count)]


def _play(
    game: Game,
    progress: Progress,
    phase: Phase,
    batch: Batch,
    accumulate: int,
    skip_nonfinite: bool,
    peers: Peers,
    loss_scale: float,
    observe: Callable[[State], Mapping[str, Tensor]] | None,
) -> dict[str, Tensor]:
    """One play of one phase: rollout, losses, backward passes, moves."""
    terms = [term for term in phase.terms if progress.plays[phase.name] % term.every == 0]
    progress.plays[phase.name] += 1
    if not terms:
        return {}
    candidates = {player for term in terms for player in term.to}
    certain = {p for term in terms for p, c in term.to.items() if not callable(c) and c and not skip_nonfinite}
    weights = {name: _moved_by(progress.optimizers[name]) for name in sorted(candidates)}
    values: dict[str, Tensor] = {}
    observed: dict[str, Tensor] = {}
    moved: set[str] = set()
    frozen = {name: parts for name, parts in progress.parts.items() if name not in candidates}
    still = [parts for name, parts in frozen.items() if name in game.players]
    doubtful = {name: progress.parts[name] for name in sorted(candidates - certain)}
    with _frozen(frozen.values()), _keeping_buffers(still, doubtful, moved):
        for own in weights.values():
            _forget_gradients(own)
        for part in _parts(batch, accumulate):
            now = partial(
                State, game.nets, part, progress.examples, progress.step, progress.generator, memo={}, peers=peers
            )
            rollout = phase.rollout(now())
            state = now(rollout=rollout)
            losses = {term.name: _scalar(term, state) for term in terms}
            state = now(rollout=rollout, losses=losses)
            weight = 1.0 if accumulate == 1 else _length(part) / _length(batch)
            rows, functions = _rows(terms, state)
            if observe is not None and not observed:
                observed |= observe(state)
            scales = {term.name: loss_scale * weight * term.every for term in terms}
            _backward(rows, losses, scales, weights, factors=loss_scale == 1.0)
            moved |= {player for _, players in rows for player in players}
            measured: dict[str, Tensor] = {}
            if phase.measures:
                with torch.no_grad():
                    measured = {name: measure(state) for name, measure in phase.measures.items()}
            for name, value in ({n: loss.detach() for n, loss in losses.items()} | functions | measured).items():
                share = value if weight == 1.0 else weight * value
                values[name] = values[name] + share if name in values else share
        _note_nonfinite(progress, phase, terms, values)
        if peers.count > 1 or skip_nonfinite:
            gradients = {p: [w.grad for w in weights[p] if w.grad is not None] for p in sorted(moved)}
            for group in gradients.values():
                peers.average([g for g in group if not is_divided(g)])  # the others are averages already
            if loss_scale != 1.0:
                for group in gradients.values():
                    torch._foreach_mul_(group, 1 / loss_scale)
            if skip_nonfinite and not all(
                bool(whole(g.isfinite().all())) for group in gradients.values() for g in group
            ):
                progress.skipped += 1
                moved.clear()
        if observe is not None:
            for player in sorted(moved):
                if gradient := [w.grad for w in weights[player] if w.grad is not None]:
                    norms = torch._foreach_norm(gradient)
                    observed[f"gradient_norm → {player}"] = torch.stack([whole(norm).float() for norm in norms]).norm()
        _move(game, progress, moved, state, _length(batch) * peers.count)
    return values | observed


def _moved_by(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """What the optimizer moves. It holds the list; a walk through the network would cost more than some kernels."""
    return [w for group in optimizer.param_groups for w in group["params"] if w.requires_grad]


def _scalar(term: Term, state: State) -> Tensor:
    loss = term.loss(state)
    if loss.dim() > 0:
        raise ValueError(f"term {term.name!r} returned shape {tuple(loss.shape)}; average it over the batch")
    return loss


def held(net: nn.Module) -> Callable[..., Any]:
    """`net` as a function of its input alone: in this call its parameters are constants.

    For a rollout in which a term reaches through a network that it does not train, and other terms train the same
    network in another call: their rows can then share a backward pass. Where gradient goes is still the table's
    business; without `held` the step has the same result and one pass more.
    """
    constants = {name: w.detach() for name, w in net.named_parameters()}
    return lambda *inputs, **named: torch.func.functional_call(net, constants, inputs, named)


@contextmanager
def _frozen(networks: Iterable[_Parts]) -> Iterator[None]:
    """Freeze every parameter of these; afterwards each flag is what it was before."""
    parameters = [w for parts in networks for w in parts.parameters if w.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def _keeping_buffers(still: list[_Parts], doubtful: Mapping[str, _Parts], moved: set[str]) -> Iterator[None]:
    """Put back the buffers of those that are still, and of the doubtful that did not move. `moved` is filled while the
    context is open."""
    idle = [m for parts in still for m in parts.norms if m.training and m.track_running_stats]
    kept = [_Buffers(parts.others) for parts in still]
    perhaps = {name: _Buffers([*parts.norms, *parts.others]) for name, parts in doubtful.items()}
    for norm in idle:
        norm.track_running_stats = False  # it normalises by the batch, as ever in training
    try:
        yield
    finally:
        for norm in idle:
            norm.track_running_stats = True
        for buffers in [*kept, *(buffers for name, buffers in perhaps.items() if name not in moved)]:
            buffers.put_back()


class _Buffers:
    """The buffers of some modules, as they are now."""

    def __init__(self, modules: Iterable[nn.Module]):
        self.places = [
            (m._buffers, name, buffer) for m in modules for name, buffer in m._buffers.items() if buffer is not None
        ]
        self.before = [buffer.detach().clone() for _, _, buffer in self.places]

    def put_back(self) -> None:
        for holder, name, buffer in self.places:
            holder[name] = buffer
        if self.before:
            with torch.no_grad():
                torch._foreach_copy_([buffer for _, _, buffer in self.places], self.before)


Row = list[tuple[str, "float | Tensor"]]
"""One player's objective in one play: (term, coefficient), in the order of the phase's terms."""


def _rows(terms: Sequence[Term], state: State) -> tuple[list[tuple[Row, list[str]]], dict[str, Tensor]]:
    """Each distinct row with the players that share it, and the values of function coefficients.

    A player whose coefficients are all the number zero has no row: it sits this play out.
    """
    results: dict[int, float | Tensor] = {}  # one evaluation, and one tensor, per function: equal rows stay equal
    functions: dict[str, Tensor] = {}
    by_player: dict[str, Row] = {}
    for term in terms:
        for player, coefficient in term.to.items():
            if callable(coefficient):
                if id(coefficient) not in results:
                    value = coefficient(state)
                    results[id(coefficient)] = value.detach() if isinstance(value, Tensor) else float(value)
                value = results[id(coefficient)]
                functions[f"{term.name} → {player}"] = torch.as_tensor(value)
            else:
                value = float(coefficient)
            if isinstance(value, Tensor) or value:
                by_player.setdefault(player, []).append((term.name, value))
    rows: dict[tuple, tuple[Row, list[str]]] = {}
    for player, row in by_player.items():
        rows.setdefault(_key(row), (row, []))[1].append(player)
    return list(rows.values()), functions


def _key(row: Row) -> tuple[tuple[str, float | int], ...]:
    """A row in a form that can be compared without looking into tensors."""
    return tuple((name, id(c) if isinstance(c, Tensor) else c) for name, c in row)


def _backward(
    rows: list[tuple[Row, list[str]]],
    losses: Mapping[str, Tensor],
    scales: Mapping[str, float],
    weights: Mapping[str, list[nn.Parameter]],
    *,
    factors: bool,
) -> None:
    """Add each row's gradient to its players' `.grad`. `scales` multiplies a term in every row it stands in; `factors`
    allows rows to share a pass whose gradient is multiplied afterwards."""
    for row, players in rows:
        if not any(losses[name].requires_grad for name, _ in row):
            raise ValueError(f"terms {[name for name, _ in row]} do not depend on {players}, which their rows name")
    passes = _joined(rows, losses, weights, factors=factors)
    for k, (row, members) in enumerate(passes, 1):
        total = sum_of_products([(coefficient * scales[name], losses[name]) for name, coefficient in row])
        learning = [w for player in members for w in weights[player]]
        earlier = {player: [w.grad for w in weights[player]] for player, factor in members.items() if factor != 1.0}
        for player in earlier:
            _forget_gradients(weights[player])
        if any(map(is_divided, learning)):
            # The graph's leaves are the gathered weights. `Shard` sees to it that nobody else can learn.
            total.backward()
        else:
            total.backward(inputs=learning, retain_graph=k < len(passes))
        for player, gradients in earlier.items():
            for weight, gradient in zip(weights[player], gradients, strict=True):
                if weight.grad is not None:
                    weight.grad.mul_(members[player])
                if gradient is not None:
                    weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)


def is_divided(x: Tensor) -> bool:
    """Whether each process holds a part of it (a DTensor)."""
    return hasattr(x, "full_tensor")


def whole(x: Tensor) -> Tensor:
    """The whole of a tensor that is divided among processes, all of which must ask for it; any other as it is."""
    return x.full_tensor() if is_divided(x) else x  # type: ignore[attr-defined]


LARGEST_FACTOR = 2.0**20
"""Rows whose common terms differ by more have a backward pass each."""


def _joined(
    rows: list[tuple[Row, list[str]]],
    losses: Mapping[str, Tensor],
    weights: Mapping[str, list[nn.Parameter]],
    *,
    factors: bool,
) -> list[tuple[Row, dict[str, float]]]:
    """Fewer rows with the same gradients, and by what each player's is to be multiplied.

    Rows that have a term in common (a VAE's decoder: reconstruction; its encoder: KL and reconstruction. CycleGAN's
    generators: the cycles, and an adversarial term each) may share a backward pass over all their terms, if no term
    that one row lacks depends on its players, and common terms have coefficients in one ratio: mostly 1; otherwise,
    with `factors`, one row's gradient is multiplied by the ratio afterwards (VAE-GAN's γ, where the discriminator sees
    no reconstructions). Whether terms depend on players is read off the autograd graph of this very play, so the result
    is exact whatever the rollout did, up to the rounding of a ratio's product.
    """
    if len(rows) < 2:
        return [(row, dict.fromkeys(players, 1.0)) for row, players in rows]
    owner = {id(w): player for player, own in weights.items() for w in own}
    reached: dict[str, set[str]] = {}

    def reaches(terms: Iterable[str], players: Iterable[str]) -> bool:
        for name in terms:
            if name not in reached:
                reached[name] = _players_in_graph(losses[name], owner)
            if not reached[name].isdisjoint(players):
                return True
        return False

    joined: list[tuple[dict[str, float | Tensor], dict[str, float]]] = []
    for row, players in sorted(rows, key=lambda pair: -len(pair[0])):
        own = dict(row)
        partners = []
        for total, members in joined:
            ratio = _ratio(own, total)
            if ratio is None or (ratio != 1.0 and not factors):
                continue
            if not reaches(total.keys() - own.keys(), players) and not reaches(own.keys() - total.keys(), members):
                partners.append((ratio, total, members))
        if partners:
            ratio, total, members = min(partners, key=lambda partner: partner[0] != 1.0)
            total.update({name: c if ratio == 1.0 else c / ratio for name, c in own.items() if name not in total})
            members.update(dict.fromkeys(players, ratio))
        else:
            joined.append((own, dict.fromkeys(players, 1.0)))
    order = list(losses)
    return [(sorted(total.items(), key=lambda pair: order.index(pair[0])), members) for total, members in joined]


def _ratio(own: Mapping[str, float | Tensor], other: Mapping[str, float | Tensor]) -> float | None:
    """What turns the other row's coefficients of the common terms into one's own, if one number does."""
    ratios = set()
    for name in own.keys() & other.keys():
        a, b = own[name], other[name]
        if isinstance(a, Tensor) or isinstance(b, Tensor):
            ratios.add(1.0 if a is b else math.nan)
        else:
            ratios.add(a / b)
    ratio = ratios.pop() if len(ratios) == 1 else math.nan
    return ratio if 1 / LARGEST_FACTOR <= abs(ratio) <= LARGEST_FACTOR else None


def _players_in_graph(loss: Tensor, owner: Mapping[int, str]) -> set[str]:
    """The players among whose parameters the loss's autograd graph ends."""
    found: set[str] = set()
    stack: list[Any] = [loss.grad_fn]
    seen = {None, *stack}
    while stack:
        node = stack.pop()
        following = node.next_functions if node is not None else ()
        if not following and (leaf := id(getattr(node, "variable", None))) in owner:
            found.add(owner[leaf])
        for parent, _ in following:
            if parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return found


def sum_of_products(pairs: Sequence[tuple[float | Tensor, Tensor]]) -> Tensor:
    """Σ coefficient · loss, without a kernel for a coefficient of 1."""
    products = [loss if isinstance(c, float) and c == 1.0 else c * loss for c, loss in pairs]
    total = products[0]
    for product in products[1:]:
        total = total + product
    return total


def _note_nonfinite(progress: Progress, phase: Phase, terms: Sequence[Term], values: Mapping[str, Tensor]) -> None:
    """Remember on the device, without waiting for it, the first step at which each term was not finite."""
    first_bad = progress.first_bad[phase.name]
    if _never_behind(first_bad.device):  # a look costs less than a kernel
        for term in terms:
            if not math.isfinite(values[term.name].item()):
                k = phase.terms.index(term)
                first_bad[k] = progress.step if first_bad[k] < 0 else first_bad[k]
        return
    finite = torch.stack([values[term.name].float() for term in terms]).isfinite()
    if len(terms) == len(phase.terms):
        first_bad.copy_(torch.where(finite | (first_bad >= 0), first_bad, progress.step))
        return
    due = [k for k, term in enumerate(phase.terms) if term.name in {t.name for t in terms}]
    first_bad[due] = torch.where(finite | (first_bad[due] >= 0), first_bad[due], progress.step)


def _never_behind(device: torch.device) -> bool:
    """Whether looking at a value waits for nothing there."""
    return device.type == "cpu"


def _forget_gradients(weights: Iterable[nn.Parameter]) -> None:
    """What `zero_grad` of an optimizer does, without its hooks and profiling, which cost more than a small kernel."""
    for weight in weights:
        weight.grad = None


def _move(game: Game, progress: Progress, moved: set[str], state: State, examples: int) -> None:
    for name in (name for name in game.players if name in moved):
        player, optimizer = game.players[name], progress.optimizers[name]
        if player.clip_norm is not None:
            nn.utils.clip_grad_norm_(player.net.parameters(), player.clip_norm)
        if player.lr_factor is not None:
            factor = player.lr_factor(state)
            for group in optimizer.param_groups:
                group["lr"] = factor * group["initial_lr"]
        for group in optimizer.param_groups:
            if group.get("fused"):
                _lay_out_gradients(group["params"])
        optimizer.step()
        for group in optimizer.param_groups:
            _forget_gradients(group["params"])
        if player.weight_limit is not None:
            with torch.no_grad():
                for parameter in player.net.parameters():
                    parameter.clamp_(-player.weight_limit, player.weight_limit)
        if player.ema_half_life_examples is not None:
            _average(progress.averages[name], player.net, 0.5 ** (examples / player.ema_half_life_examples))


def _lay_out_gradients(weights: Iterable[nn.Parameter]) -> None:
    """Give each gradient its weight's strides. Autograd does, but a hook may have put another in its place; and torch's
    fused kernel on the CPU takes both as they lie in memory."""
    for weight in weights:
        gradient = weight.grad
        if gradient is not None and gradient.stride() != weight.stride():
            weight.grad = torch.empty_like(weight).copy_(gradient)


@torch.no_grad()
def _average(average: nn.Module, net: nn.Module, keep: float) -> None:
    """average ← keep · average + (1 - keep) · net; buffers (BatchNorm statistics) are copied."""
    torch._foreach_lerp_(list(average.parameters()), [w.detach() for w in net.parameters()], 1 - keep)
    for target, source in zip(average.buffers(), net.buffers(), strict=True):
        target.copy_(source)


# The table.


def coefficient_text(coefficient: Coefficient) -> str:
    """A coefficient as the table prints it: "+1", "-0.5", or a function's own words."""
    if not callable(coefficient):
        return f"{coefficient:+g}"
    return getattr(coefficient, "__name__", None) or str(coefficient)


def table(game: Game) -> str:
    """The routing table: one row per term, one column per player, "·" where exactly no gradient flows."""
    players = list(game.players)
    lines = [["term", *players]]
    for phase in game.phases:
        if len(game.phases) > 1:
            lines.append([phase_title(phase)])
        for term in phase.terms:
            name = term.name + (f" (every {term.every})" if term.every > 1 else "")
            indent = "  " if len(game.phases) > 1 else ""
            cells = [coefficient_text(term.to[p]) if p in term.to else "·" for p in players]
            lines.append([indent + name, *cells])
    widths = [max(len(line[k]) for line in lines if len(line) > 1) for k in range(len(players) + 1)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        if len(line) > 1
        else line[0]
        for line in lines
    )


def phase_title(phase: Phase) -> str:
    """ "phase discriminator (5 plays a step)": the phase's name and when it is played."""
    notes = []
    if callable(phase.repeats) or phase.repeats > 1:
        notes.append(f"{_repeats_text(phase)} plays a step")
    if phase.every > 1:
        notes.append(f"every {phase.every} steps")
    return f"phase {phase.name}" + (f" ({', '.join(notes)})" if notes else "")


def _repeats_text(phase: Phase) -> str | int:
    repeats = phase.repeats
    return coefficient_text(repeats) if callable(repeats) else repeats


def describe(stage: Stage) -> dict[str, Any]:
    """The stage as plain data: {name, players: {name: parameters}, phases: [{name, repeats, every, terms}]}."""
    game = stage.game
    return {
        "name": stage.name,
        "players": {name: sum(w.numel() for w in player.net.parameters()) for name, player in game.players.items()},
        "phases": [
            {
                "name": phase.name,
                "repeats": _repeats_text(phase),
                "every": phase.every,
                "terms": [
                    {
                        "name": term.name,
                        "every": term.every,
                        "to": {p: coefficient_text(c) if callable(c) else c for p, c in term.to.items()},
                    }
                    for term in phase.terms
                ],
            }
            for phase in game.phases
        ],
    }
