"""Train a recipe on data, into a run directory.

Read from `train`: prepare the plan, open or resume the run, play each stage, finish. What is saved is everything that
changes, so that a resumed run continues bit for bit: networks, optimizers, averages, every random state, the position
in the data (a function of the examples seen) and the schedules (functions of the same).
"""

from __future__ import annotations

import hashlib
import math
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import twofold
from twofold import recipes
from twofold.compiling import Compiled, CompileError, compiled
from twofold.compiling import check as check_compile
from twofold.convolutions import as_products
from twofold.data import Batches, Data, Split, from_model, is_name, load, ordered, to_model
from twofold.device import LossScale, autocast, by_pixel, choose_device, keeping_memory, peak_memory_bytes
from twofold.errors import InputError
from twofold.game import Game, NonFiniteError, Progress, Stage, begin, check_finite, describe, phase_title, step, table
from twofold.health import Monitor, alarm_names, stored_events
from twofold.model import Model, evaluating, record_of, restore
from twofold.probing import Probes, observe
from twofold.processes import ALONE, Processes, joined, synchronise
from twofold.recipe import Recipe, optimizer_text
from twofold.resuming import restore_progress, restore_random, saved_seconds, saved_stage
from twofold.run import Run, flatten_state, unflatten_state
from twofold.sharding import Shard, together
from twofold.sharding import check as check_shard
from twofold.spec import Spec

PICTURES = 9
"""Sample grids written along a run, the first before training and the last after it."""
LOGS = 200
CHECKPOINTS = 10
CURVES_SECONDS = 30.0
"""curves.png is drawn anew with a sample grid if at least this much training lies between: drawing takes a second."""
SHOWN = 64
"""Samples in a grid."""
VIEWED = 256
"""Examples at a time when a stage's view of the whole training split is computed."""
FEW = 256
"""Test examples whose exact log-likelihood is logged with each grid."""


TRANSLATED = 8
VARIANTS = 4
"""Translations in a picture, and how many of each from a recipe with styles."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C: the step in hand was finished and the state saved. The message says how to go on."""


class TrainingError(RuntimeError):
    """Training cannot go on: a term was not finite, or a network could not be compiled. The message names it."""


class AlarmError(RuntimeError):
    """The run ended because of an alarm it was told to stop on. The state is saved; the message says how to go on."""


class Watch(Protocol):
    """Somebody who is told how training goes, e.g. the progress bar of the command line."""

    def start(self, plan: Plan) -> None: ...

    def update(self, examples: int, record: Mapping[str, float]) -> None: ...

    def note(self, line: str) -> None: ...

    def stop(self) -> None: ...


@dataclass(frozen=True)
class Settings:
    """How a run trains, besides its recipe and its data."""

    examples: int = 100_000
    """Length of the run in examples seen; it ends with the step that reaches it."""
    batch_size: int = 64
    seed: int = 0
    precision: str = "float32"
    fused: bool = True
    """One kernel for each whole update by Adam or AdamW, on the CPU and on CUDA: faster, equal up to rounding."""
    compile: str | None = None
    """The backend by which torch.compile makes code of each network's calls in a step; equal up to rounding."""
    channels_last: bool = False
    """Lay the channels of images and of convolutions' weights side by side in memory; equal up to rounding."""
    flip: bool = False
    """Mirror images at random."""
    crop: int = 0
    """Pad images by this many pixels and crop back at random."""
    accumulate: int = 1
    """Parts in which a batch is computed before a move."""
    on_nonfinite: str = "stop"
    stop_on: str | None = None
    """Alarms that end the run, "mode-collapse,non-finite"; see `twofold.health.ALARMS`."""
    keep_best: str | None = None
    """Keep the checkpoint at which a quantity of metrics.jsonl is best: "max:test_elbo_nats", "min:kl"."""

    def __post_init__(self) -> None:
        for name in ("examples", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it starts at 1")
        if self.crop < 0:
            raise InputError(f"crop is {self.crop}; it starts at 0")
        if self.accumulate > self.batch_size:
            raise InputError(
                f"accumulate is {self.accumulate}; a batch of {self.batch_size} has no more parts than examples"
            )
        if not -(2**63) <= self.seed < 2**63:
            raise InputError(f"seed is {self.seed}; it is a 64-bit whole number")
        if self.on_nonfinite not in ("stop", "skip"):
            raise InputError(f"on_nonfinite is {self.on_nonfinite!r}; allowed: stop, skip")
        if self.stop_on is not None:
            alarm_names(self.stop_on)
        if self.keep_best is not None:
            way, colon, metric = self.keep_best.partition(":")
            if way not in ("min", "max") or not colon or not metric:
                raise InputError(f"keep_best is {self.keep_best!r}; say which way is better: max:{self.keep_best}")


@dataclass(frozen=True)
class Plan:
    """A run before it starts: everything decided, nothing written."""

    name: str
    config: Any
    recipe: Recipe
    data: Data
    data_record: dict[str, Any]
    settings: Settings
    device: torch.device
    processes: Processes = ALONE
    shard: bool = False
    """Whether a network that learns alone in its stage is divided among the processes."""

    @property
    def lengths(self) -> list[int]:
        """Examples of each stage."""
        shares = [stage.share for stage in self.recipe.stages]
        bounds = [round(self.settings.examples * sum(shares[:k]) / sum(shares)) for k in range(len(shares) + 1)]
        return [end - start for start, end in zip(bounds[:-1], bounds[1:], strict=True)]

    @property
    def record(self) -> dict[str, Any]:
        """config.json: what `load` and `--resume` need, and what a reader wants to know."""
        return {
            "recipe": self.name,
            "config": asdict(self.config),
            "spec": self.recipe.spec.to_json(),
            "data": self.data_record,
            "train": asdict(self.settings),
            "stages": [describe(stage) for stage in self.recipe.stages],
            "versions": {"twofold": twofold.__version__, "torch": torch.__version__.split("+")[0]},
        }


def train(
    name: str,
    *,
    data: Any,
    out: str | Path | None = None,
    examples: int = Settings.examples,
    batch_size: int = Settings.batch_size,
    seed: int = 0,
    device: str | None = None,
    precision: str = "float32",
    fused: bool = True,
    compile: bool | str = False,
    channels_last: bool = False,
    flip: bool = False,
    crop: int = 0,
    accumulate: int = 1,
    on_nonfinite: str = "stop",
    stop_on: str | None = None,
    keep_best: str | None = None,
    resume: bool = False,
    shard: bool = False,
    tensorboard: bool = False,
    data_options: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
    **options: Any,
) -> Model:
    """Train recipe `name` on `data` and return the trained model.

    Args:
        data: a built-in source ("digits"), a path, a numpy array, a tensor, a pair (x, y) or a map-style Dataset.
        out: the run directory; None: a fresh one under runs/.
        examples, batch_size, …: see `Settings`.
        device: "cpu", "cuda", "cuda:1", "mps"; None: a GPU if there is one.
        resume: continue the run in `out` bit for bit, or start it if it has not begun. Only `examples`, `stop_on` and
            `keep_best` may change.
        shard: divide weights, gradients and optimizer state of a network that learns alone in its stage among the
            processes (FSDP). Neither the result nor the checkpoints depend on it.
        compile: True for torch.compile with "inductor", or the name of a backend.
        tensorboard: also write TensorBoard events into the run directory.
        data_options: `size`, `channels`, `value_range`, `labels`, `strict`, `holdout`, `classes`; see
            `twofold.data.load`.
        options: fields of the recipe's Config.

    Raises:
        InputError: something given cannot be used; nothing was written.
        Interrupted: Ctrl-C; the state is saved and the message says how to go on.
        TrainingError: a loss was not finite; the last good checkpoint is kept.
        AlarmError: an alarm of `stop_on` started; the state is saved and pictures and report are written.

    >>> model = twofold.train("vae", data="digits", examples=640, out=tmp / "run")
    >>> model.sample(2, seed=0).shape
    (2, 8, 8)
    """
    settings = Settings(
        examples=examples,
        batch_size=batch_size,
        seed=seed,
        precision=precision,
        fused=fused,
        compile=("inductor" if compile is True else compile) or None,
        channels_last=channels_last,
        flip=flip,
        crop=crop,
        accumulate=accumulate,
        on_nonfinite=on_nonfinite,
        stop_on=stop_on,
        keep_best=keep_best,
    )
    with joined(device) as processes:
        plan = prepare(
            name,
            data=data,
            settings=settings,
            device=device,
            data_options=data_options,
            processes=processes,
            shard=shard,
            **options,
        )
        # Refused before anything is written: a batch larger than the data, a tracker that is not there.
        batches(plan)
        writer = _tensorboard() if tensorboard and processes.main else None
        return _trained(plan, out, resume, watch if watch and processes.main else Silent(), writer)


def _trained(plan: Plan, out: str | Path | None, resume: bool, watch: Watch, writer: Any) -> Model:
    with (
        _opened(plan, out, resume) as run,
        _surroundings(plan),
        compiled(plan.recipe.nets, plan.settings.compile) as calls,
        _stop_requests() as requests,
    ):
        session = _Session(plan, run, watch, requests, writer, calls)
        resumed = session.restore()
        watch.start(plan)
        try:
            session.play(resumed)
        finally:
            watch.stop()
    return _usual_layout(session.model())


def prepare(
    name: str,
    *,
    data: Any,
    settings: Settings,
    device: str | None = None,
    data_options: Mapping[str, Any] | None = None,
    processes: Processes = ALONE,
    shard: bool = False,
    **options: Any,
) -> Plan:
    """Everything `train` decides before it writes: data read, networks built on the device from the seed."""
    recipes.find(name)
    where = choose_device(device, local_rank=None if processes is ALONE else processes.local_rank)
    autocast(where, settings.precision)
    loaded = load(data, seed=0, **(data_options or {}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        config, recipe = recipes.build(name, loaded.spec, options)
    if settings.channels_last and not any(w.dim() == 4 for w in recipe.nets.parameters()):
        raise InputError(
            f"channels_last is a layout of images and convolutions, and {name} has none here; leave it out"
        )
    if settings.compile is not None:
        check_compile(settings.compile, where)
        if shard:
            raise InputError("compile cannot be used with shard, which cuts the weights up; leave one of them out")
    if shard:
        check_shard(recipe.stages, processes, where)
    if processes.count > 1:
        _refuse_uneven(recipe, settings, processes)
        synchronise(recipe.nets)
    recipe.nets.to(where)
    if settings.channels_last:
        recipe.nets.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    record = {
        "source": str(data) if isinstance(data, (str, Path)) else None,
        "name": loaded.name,
        "options": {k: _plain(v) for k, v in (data_options or {}).items()},
        "train_examples": len(loaded.train),
        "test_examples": len(loaded.test) if loaded.test else 0,
        "fingerprint": loaded.fingerprint,
        "notes": list(loaded.notes),
    }
    return Plan(name, config, recipe, loaded, record, settings, where, processes, shard)


def _refuse_uneven(recipe: Recipe, settings: Settings, processes: Processes) -> None:
    """What several processes cannot compute together: BatchNorm over calls whose lengths differ between them, and a
    batch that has no equal shares."""
    for stage in recipe.stages:
        pools = [name for name, memory in stage.game.memory.items() if getattr(memory, "uneven", False)]
        if pools and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in stage.game.nets.modules()):
            raise InputError(
                f"several processes cannot share BatchNorm beside a pool of images ({', '.join(pools)}), which each of "
                "them shows another number of; use another norm or pool 0"
            )
    if settings.batch_size % (processes.count * settings.accumulate):
        raise InputError(
            f"batch_size {settings.batch_size} cannot be shared evenly by {processes.count} processes in "
            f"{settings.accumulate} parts each; use a multiple of {processes.count * settings.accumulate}"
        )


def _plain(value: Any) -> Any:
    return (
        list(value)
        if isinstance(value, (tuple, list))
        else value
        if isinstance(value, (int, float, type(None)))
        else str(value)
    )


def batches(plan: Plan) -> Batches:
    """The run's endless stream of training batches. Raises `InputError` if a batch is larger than the data."""
    s = plan.settings
    return Batches(
        plan.data.train,
        plan.data.spec,
        batch_size=s.batch_size,
        seed=s.seed,
        flip=s.flip,
        crop=s.crop,
        device=plan.device,
        rank=plan.processes.rank,
        world_size=plan.processes.count,
    )


# The run directory.


@contextmanager
def _opened(plan: Plan, out: str | Path | None, resume: bool) -> Iterator[Run]:
    """The run, new or to be gone on with, held for this process until the context ends. Of several processes the main
    one holds it; the others read."""
    with ExitStack() as held:

        def hold() -> str:
            return str(held.enter_context(_held(plan, out, resume)).path)

        yield Run.open(plan.processes.from_main(hold))


@contextmanager
def _held(plan: Plan, out: str | Path | None, resume: bool) -> Iterator[Run]:
    if resume and out is None:
        raise InputError("resume needs the run to go on with: give out (--out DIR)")
    path = Path(out) if out is not None else _fresh_directory(plan)
    record = {
        **plan.record,
        "data": {**plan.data_record, "path_from_run": _path_from(path, plan.data_record["source"])},
    }
    if not (resume and (path / "config.json").exists()):
        with Run.create(path, record).writing() as run:
            yield run
        return
    _refuse_changes(record_of(Run.open(path)), record)  # before the lock, which may have to be made
    with Run.open(path).writing() as run:
        before = record_of(run)
        _refuse_changes(before, record)
        if any(before["train"].get(name) != record["train"][name] for name in MAY_CHANGE):
            run.replace_config(record)
        yield run


def _path_from(run: Path, source: str | None) -> str | None:
    """The way from the run directory to the data, by which another folder's process finds it, or None: built in."""
    if source is None or is_name(source):
        return None
    try:
        return os.path.relpath(os.path.realpath(os.path.expanduser(source)), os.path.realpath(run))
    except ValueError:  # another drive of Windows
        return None


def _fresh_directory(plan: Plan) -> Path:
    stem = Path("runs") / f"{plan.name}-{plan.data.name}"
    k = 1
    while (path := stem if k == 1 else stem.with_name(f"{stem.name}-{k}")).exists():
        k += 1
    return path


MAY_CHANGE = ("examples", "stop_on", "keep_best")
"""Settings that a resumed run may change: they do not reach into the course of training."""


LATER = {"fused": False, "channels_last": False}
"""Settings that older records do not name, and what they stood at."""


def _refuse_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise `InputError` naming the first thing that differs between the run's record and the one asked for."""
    if old.get("recipe") != new["recipe"]:
        raise InputError(f"this run trains {old.get('recipe')}, not {new['recipe']}; use another --out")
    for part in ("config", "train"):
        for key, value in new[part].items():
            before = old[part].get(key, LATER.get(key))
            if before != value and not (part == "train" and key in MAY_CHANGE):
                said = f"this run was started with {key} = {before}, now it is {value}"
                raise InputError(f"{said}; give what it had, or use another --out")
    if old["data"].get("fingerprint") != new["data"]["fingerprint"] or old["spec"] != new["spec"]:
        raise InputError(f"this run was started on other data ({old['data'].get('name')}); use another --out")
    if not isinstance(old["train"].get("examples"), int):
        raise InputError("this run's config.json does not say how many examples it was planned for")
    if old["train"]["examples"] > new["train"]["examples"]:
        raise InputError(
            f"this run was planned for {old['train']['examples']} examples; resume may raise that, not lower it"
        )
    if len(old["stages"]) > 1 and old["train"]["examples"] != new["train"]["examples"]:
        raise InputError("a run of several stages divides its examples among them, so resume cannot change --examples")


# Randomness, memory and interruption.


@contextmanager
def _surroundings(plan: Plan) -> Iterator[None]:
    """Dropout and the like draw from torch's global state: seed it for the run, put the caller's back afterwards. And
    keep memory from step to step, and compute convolutions' gradients in the faster way."""
    devices = [plan.device] if plan.device.type == "cuda" else []
    with ExitStack() as around:
        around.enter_context(torch.random.fork_rng(devices=devices))
        around.enter_context(keeping_memory(plan.device))
        if plan.settings.compile is None:  # compiled code lays gradients out as torch's own kernels do
            around.enter_context(as_products(plan.recipe.nets, plan.device, plan.settings.precision))
        torch.manual_seed(plan.settings.seed)
        yield


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event set by the first Ctrl-C or termination signal; a second Ctrl-C interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def request(number: int, frame: Any) -> None:
        if event.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# Playing.


class Silent:
    """A watch that says nothing."""

    def start(self, plan: Plan) -> None: ...

    def update(self, examples: int, record: Mapping[str, float]) -> None: ...

    def note(self, line: str) -> None: ...

    def stop(self) -> None: ...


def _drawing(
    plan: Plan, stream: Batches, stage: Stage, progress: Progress, start: int, view: Mapping[str, Tensor] | None
) -> Callable[[], Mapping[str, Tensor]]:
    """The batches of one stage that begins after `start` examples of the run, from where its progress stands. `view`:
    what the stage sees of the whole training split, if that was computed once and for all."""
    drawn = progress.examples

    def draw() -> Mapping[str, Tensor]:
        nonlocal drawn
        position, drawn = start + drawn, drawn + plan.settings.batch_size
        if view is not None:
            where = stream.where(position)
            return {name: tensor[where].long() for name, tensor in view.items()}
        batch: Mapping[str, Tensor] = stream.draw(position)
        if plan.settings.channels_last:
            batch = by_pixel(batch)
        if stage.view is None:
            return batch
        with torch.no_grad():
            return stage.view(stage.game.nets, batch)

    return draw


def _step(
    plan: Plan, calls: Compiled, game: Game, progress: Progress, draw: Callable[[], Mapping[str, Tensor]], **more: Any
) -> dict[str, Tensor]:
    """A step in the plan's precision and parts, compiled if it is to be.

    Raises `TrainingError` for a network that torch cannot compile.
    """
    try:
        with autocast(plan.device, plan.settings.precision), calls.stepping():
            return step(game, progress, draw, accumulate=plan.settings.accumulate, **more)
    except CompileError as error:
        raise TrainingError(str(error)) from error


def _usual_layout(model: Model) -> Model:
    """The model with its weights as they lie without `channels_last`, as `load` gives them."""
    model.nets.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return model


@dataclass
class _Meter:
    """Means of the terms' values since the last reading, accumulated on the device."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
            self.counts[name] = self.counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        if not self.sums:
            return {}
        host = torch.stack([s.float() for s in self.sums.values()]).tolist()
        means = {name: value / self.counts[name] for name, value in zip(self.sums, host, strict=True)}
        self.sums, self.counts = {}, {}
        return means


class _Session:
    """One call of `train`: the mutable state of a run while it plays."""

    def __init__(self, plan: Plan, run: Run, watch: Watch, requests: threading.Event, writer: Any, calls: Compiled):
        self.plan, self.run, self.watch, self.requests, self.calls = plan, run, watch, requests, calls
        self.batches = batches(plan)
        self.averages = nn.ModuleDict()  # of every stage begun so far
        self.stage = 0
        self.shard: Shard | None = None  # of the stage at hand
        self.progress: Progress | None = None
        self.seconds = 0.0  # of training, in all sessions of the run
        self.tensorboard = writer(str(run.path / "tensorboard")) if writer else None
        self.meter = _Meter()
        self.views: dict[str, dict[str, Tensor]] = {}  # of the whole training split, by the name they are kept under
        self.drawn_at = 0.0  # seconds of training when curves.png was last drawn
        self.loss_scale = LossScale(plan.settings.precision)
        self.monitor = Monitor(plan.record)
        self.probes: Probes | None = None
        self.readings: dict[str, list[float]] = {}  # of the quantity that decides which checkpoint is best

    @property
    def examples(self) -> int:
        """Examples seen in the whole run."""
        return sum(self.plan.lengths[: self.stage]) + (self.progress.examples if self.progress else 0)

    def play(self, resumed: bool) -> None:
        if resumed:
            self.watch.note(f"going on from {self.examples:,} examples")
        else:
            self._enter(0)
            self._pictures()
            self._save()
            self._keep_best(saved=True)
        for k in range(self.stage, len(self.plan.recipe.stages)):
            if k > self.stage:
                self._enter(k)
            self._play_stage(self._playing)
        self._unshard()
        self._finish()

    def _enter(self, stage: int) -> None:
        self._unshard()
        self.stage = stage
        plan, settings = self.plan, self.plan.settings
        self.shard = Shard.of(plan.recipe.stages[stage], plan.processes, plan.device) if plan.shard else None
        self.progress = begin(self._playing.game, seed=settings.seed + stage, fused=settings.fused)
        self.averages.update(dict(self.progress.averages))

    def _unshard(self) -> None:
        """Give the recipe's networks their numbers, in every process."""
        if self.shard is not None:
            self.shard.fill(here=True)
            self.shard = None

    @property
    def _playing(self) -> Stage:
        """The stage at hand, sharded or not."""
        return self.plan.recipe.stages[self.stage] if self.shard is None else self.shard.stage

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """In the main process the recipe's networks have their numbers; all processes must take part."""
        with nullcontext() if self.shard is None else self.shard.filled(here=self.plan.processes.main):
            yield

    def _play_stage(self, stage: Stage) -> None:
        assert self.progress is not None
        settings, progress, game = self.plan.settings, self.progress, stage.game
        length = self.plan.lengths[self.stage]
        start = sum(self.plan.lengths[: self.stage])
        draw = _drawing(self.plan, self.batches, stage, progress, start, self._kept_view(stage))
        logs, saves, shows = (_Every(settings.examples, n) for n in (LOGS, CHECKPOINTS, PICTURES - 1))
        for due in (logs, saves, shows):
            due.start(self.examples)
        last = time.perf_counter()
        window = self.examples, self.seconds
        processes = self.plan.processes
        share = settings.batch_size // (processes.count * settings.accumulate)
        while progress.examples < length:
            # Once for each record: what is observed costs little, and its noise is judged over many records.
            look = None if self.meter.sums else observe
            processes.seed(settings.seed, self.examples)
            skipped = progress.skipped
            with processes.noise(progress.generator, share):
                values = _step(
                    self.plan,
                    self.calls,
                    game,
                    progress,
                    draw,
                    on_nonfinite=settings.on_nonfinite,
                    peers=processes,
                    loss_scale=self.loss_scale.value,
                    observe=look,
                )
            for name in self.calls.newly_eager():
                self.watch.note(f"compile: {name} is not compiled where its gradient is differentiated, in a penalty")
            self.loss_scale.update(progress.skipped > skipped)
            self.meter.add(values)
            now = time.perf_counter()
            self.seconds, last = self.seconds + now - last, now
            log = logs.due(self.examples)
            # The CPU is never behind, so looking costs nothing there; elsewhere looking waits for the device.
            # Of several processes all must stop in the same step, and only messages tell them: when they log.
            if settings.on_nonfinite == "stop" and (log or (self.plan.device.type == "cpu" and processes.count == 1)):
                self._check(game)
            if log:
                rate = (self.examples - window[0]) / max(self.seconds - window[1], 1e-9)
                window = self.examples, self.seconds
                self._log(rate)
            ended = progress.examples >= length
            if shows.due(self.examples) and not ended:
                self._pictures()
                if self.seconds - self.drawn_at > CURVES_SECONDS:
                    self._curves()
                self._keep_best()
            if saves.due(self.examples) and not ended:
                self._save()
            if (log or ended) and (alarm := processes.from_main(self._fatal)) is not None:
                self._log(None)
                self._save()
                self._finish()
                raise AlarmError(alarm)
            if processes.any(self.requests.is_set()) and not ended:
                self._save()
                self._stop()
            last = time.perf_counter()
        self._log(None)
        self._save()
        if self.requests.is_set() and self.stage + 1 < len(self.plan.recipe.stages):
            self._stop()

    def _stop(self) -> None:
        """Raise `Interrupted`; the state was saved."""
        self._curves()
        raise Interrupted(
            f"stopped at {self.examples:,} of {self.plan.settings.examples:,} examples; the state is saved. "
            f"Go on with: {command(self.plan, self.run.path)} --resume"
        )

    def _kept_view(self, stage: Stage) -> dict[str, Tensor] | None:
        """The stage's view of the whole training split, on the device: from the run if it holds one of these networks
        and data, otherwise computed and kept there. None where each batch must be viewed on its own."""
        if stage.view is None or stage.kept is None or self.batches.augmented:
            return None
        if stage.kept not in self.views:
            key = self._view_key(stage)
            views = self.run.kept(stage.kept, key)
            if views is None:
                views = self._view_of_all(stage)
                if self.plan.processes.main:
                    self.run.keep(stage.kept, views, key)
            self.views[stage.kept] = {k: v.to(self.plan.device) for k, v in views.items()}
        return self.views[stage.kept]

    def _view_of_all(self, stage: Stage) -> dict[str, Tensor]:
        parts: list[Mapping[str, Tensor]] = []
        assert stage.view is not None
        with torch.no_grad(), autocast(self.plan.device, self.plan.settings.precision):
            for batch in ordered(self.plan.data.train, self.plan.data.spec, VIEWED, self.plan.device):
                parts.append({k: v.to(torch.int32).cpu() for k, v in stage.view(stage.game.nets, batch).items()})
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _view_key(self, stage: Stage) -> str:
        """Changes with the frozen networks' weights, the data and the precision: all that a view depends on."""
        digest = hashlib.sha256(f"{self.plan.data.fingerprint} {self.plan.settings.precision}".encode())
        for name in stage.game.frozen:
            for key, tensor in stage.game.nets[name].state_dict().items():
                digest.update(f"{name}.{key}".encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _check(self, game: Any) -> None:
        assert self.progress is not None
        for steps in self.progress.first_bad.values():
            self.plan.processes.earliest(steps)
        try:
            check_finite(game, self.progress)
        except NonFiniteError as error:
            good = self.run.checkpoints()
            kept = f"the last good checkpoint, at {good[-1]:,} examples, is kept in {self.run.path}" if good else ""
            if self.plan.processes.main:
                self._append({"examples": self.examples, error.term: float("nan")})
            raise TrainingError(f"{error}; {kept}") from None

    def _log(self, examples_per_second: float | None) -> None:
        means = self.plan.processes.means(self.meter.read())
        if not means or not self.plan.processes.main:
            return
        record: dict[str, Any] = {"examples": self.examples, "seconds": round(self.seconds, 3), **means}
        if examples_per_second is not None:
            record["examples_per_second"] = round(examples_per_second, 1)
        if self.progress is not None and self.progress.skipped:
            record["skipped_share"] = self.progress.skipped / sum(self.progress.plays.values())
        self._append(record)
        self.watch.update(self.examples, record)
        if self.tensorboard is not None:
            for name, value in means.items():
                self.tensorboard.add_scalar(name, value, self.examples)

    def _append(self, record: Mapping[str, Any]) -> None:
        """Write a record of the metrics, and tell of the alarms that start with it."""
        self.run.append_metrics(record)
        before = self.monitor.to_json()["alarms"]
        for finding in self.monitor.note(record):
            self.watch.note(f"health: {finding.line}")
        if (now := self.monitor.to_json())["alarms"] != before:
            self.run.write_json("health.json", now)
        if self.plan.settings.keep_best is not None:
            metric = self.plan.settings.keep_best.partition(":")[2]
            if isinstance(value := record.get(metric), int | float):
                self.readings.setdefault(metric, []).append(value)

    def _fatal(self) -> str | None:
        """Why the run ends here, if one of the alarms it is to stop on lasts."""
        if self.plan.settings.stop_on is None:
            return None
        names = alarm_names(self.plan.settings.stop_on)
        for event in self.monitor.active:
            if event.name in names:
                return (
                    f"stopped at {self.examples:,} of {self.plan.settings.examples:,} examples by the alarm "
                    f"{event.name}: {event.says} ({event.evidence}). Try: {event.remedy}. The state is saved in "
                    f"{self.run.path}"
                )
        return None

    def _keep_best(self, *, saved: bool = False) -> None:
        """Save and mark this point of the run if its quantity, averaged since the last picture, is the best so far.

        `saved`: a checkpoint of this very point has been written.
        """
        if self.plan.settings.keep_best is None:
            return
        best = self.plan.processes.from_main(self._new_best)
        if best is None:
            return
        if not saved:
            self._save()
        if self.plan.processes.main:
            self.run.mark_best(self.examples, *best)

    def _new_best(self) -> tuple[str, float] | None:
        """The quantity that decides which checkpoint is best, and its mean since the last picture, if it is the best so
        far."""
        assert self.plan.settings.keep_best is not None
        way, _, metric = self.plan.settings.keep_best.partition(":")
        readings = self.readings.pop(metric, [])
        value = sum(readings) / len(readings) if readings else math.nan
        if not math.isfinite(value):
            return None
        best = self.run.best()
        if best is not None and best.get("metric") == metric:
            before = best.get("value")
            if isinstance(before, int | float) and (value <= before if way == "max" else value >= before):
                return None
        return metric, value

    def model(self) -> Model:
        """The model as it stands, averages in place of the networks that have one."""
        nets = nn.ModuleDict({**self.plan.recipe.nets, **self.averages})
        return Model(self.plan.recipe, nets, run=self.run, examples=self.examples)

    def _pictures(self) -> None:
        """Pictures of this point of the run, and the test bound where there is one."""
        with self._whole():
            if self.plan.processes.main:
                self._draw()

    def _draw(self) -> None:
        from twofold.pictures import png_bytes, reconstruction_grid, samples_picture

        model, spec = self.model(), self.plan.recipe.spec
        held_out = self.plan.data.test or self.plan.data.train
        few = to_model(held_out.x[torch.arange(min(len(held_out), 1024))], spec)
        if "sample" in model.abilities:
            count = SHOWN if spec.kind == "image" else 1024
            x = model.sample_tensor(count, seed=0)
            picture = samples_picture(x, spec, reference=few)
            self.run.write_bytes(f"samples/{self.examples:012d}.png", png_bytes(picture))
        if "translate" in model.abilities:
            self._translations(model, held_out, few)
        if "reconstruct" in model.abilities and spec.kind == "image":
            y = None if held_out.y is None or not model.recipe.conditional else held_out.y[:8]
            with evaluating(model.nets):
                rec = model.recipe.abilities["reconstruct"](
                    model.nets, few[:8].to(self.plan.device), y=None if y is None else y.to(self.plan.device)
                )
            grid = reconstruction_grid(few[:8], rec.float().cpu())
            self.run.write_bytes(f"samples/reconstructions-{self.examples:012d}.png", png_bytes(grid))
        record: dict[str, Any] = {"examples": self.examples, **self._probe(model)}
        if "elbo" in model.abilities:
            record |= self._test_means(
                model.elbo(from_model(few, spec), labels=self._labels(model, held_out, len(few)))
            )
            record["test_elbo_nats"] = -record["test_rate_nats"] - record["test_distortion_nats"]
        if "log_prob" in model.abilities:
            few = few[:FEW]
            record |= self._test_means(
                model.log_prob(from_model(few, spec), labels=self._labels(model, held_out, len(few)))
            )
        self._append(record)

    def _probe(self, model: Model) -> dict[str, float]:
        """What `probing` measures at this point. Of several processes none measures: in a rollout that one process
        plays alone, BatchNorm over the whole batch would wait for the others."""
        assert self.progress is not None
        if self.plan.processes.count > 1:
            return {}
        if self.probes is None:
            plan = self.plan
            self.probes = Probes(plan.data, batch_size=plan.settings.batch_size, device=plan.device)
        stage = self.plan.recipe.stages[self.stage]
        with autocast(self.plan.device, self.plan.settings.precision):
            return self.probes.measure(model, stage, examples=self.progress.examples, step=self.progress.step)

    def _labels(self, model: Model, held_out: Any, n: int) -> Any:
        """Labels of the first `n` test examples for a conditional model."""
        return None if held_out.y is None or not model.recipe.conditional else held_out.y[:n].numpy()

    def _test_means(self, values: Mapping[str, Any]) -> dict[str, float]:
        return {f"test_{name}": float(value.mean()) for name, value in values.items()}

    def _translations(self, model: Model, held_out: Split, few: Tensor) -> None:
        """A picture of inputs and what is made of them: for images rows of input, target where it is known, and
        translations; for vectors the translations over targets."""
        from twofold.pictures import pair_grid, png_bytes, samples_picture

        spec = self.plan.recipe.spec
        assert held_out.a is not None and spec.input is not None
        count = min(len(held_out.a), TRANSLATED if spec.kind == "image" else 1024)
        a = to_model(held_out.a[torch.arange(count)], spec.input)
        variants = VARIANTS if "style" in model.abilities and spec.kind == "image" else 1
        x = model.translate_tensor(a, variants=variants)
        if spec.kind == "image":
            rows = [a, *([few[:count]] if spec.paired and len(few) >= count else []), *x.unbind(1)]
            picture = pair_grid(*rows, columns=count)
        else:
            picture = samples_picture(x[:, 0], spec, reference=few)
        self.run.write_bytes(f"samples/{self.examples:012d}.png", png_bytes(picture))
        if "translate_back" in model.abilities and spec.kind == "image":
            back = model.translate_tensor(few[:TRANSLATED], direction="back")[:, 0]
            grid = pair_grid(few[:TRANSLATED], back, columns=len(back))
            self.run.write_bytes(f"samples/back-{self.examples:012d}.png", png_bytes(grid))

    # Saving and restoring.

    def _save(self) -> None:
        assert self.progress is not None
        progress = self.progress
        changing = {
            "optimizers": together({name: one.state_dict() for name, one in progress.optimizers.items()}),
            "generator": progress.generator.get_state(),
            "first_bad": dict(progress.first_bad),
            "random": torch.get_rng_state(),
            "device_random": torch.cuda.get_rng_state(self.plan.device) if self.plan.device.type == "cuda" else None,
        }
        tensors, record = flatten_state(changing)
        state = {
            "stage": self.stage,
            "progress": {k: getattr(progress, k) for k in ("step", "examples", "skipped", "plays")},
            "seconds": self.seconds,
            "records": len(self.run.metrics()) if self.plan.processes.main else 0,
            "loss_scale": {"value": self.loss_scale.value, "good": self.loss_scale.good},
            "training": record,
        }
        with self._whole():
            self._write_checkpoint(tensors, state)

    def _write_checkpoint(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        weights = self.plan.recipe.nets.state_dict()
        if bad := next((name for name, w in weights.items() if w.is_floating_point() and not w.isfinite().all()), None):
            raise TrainingError(f"{bad} holds values that are not finite; {self.run.path} keeps its last checkpoint")
        if not self.plan.processes.main:
            return
        self.run.save_checkpoint(
            self.examples,
            {"weights": weights, "averages": self.averages.state_dict(), "training": tensors},
            state,
        )

    def restore(self) -> bool:
        """Take up the run's newest checkpoint; False if it has none.

        Raises `InputError` if it is damaged: going on from an older one would forget the newer in silence.
        """
        if not self.run.checkpoints():
            if self.plan.processes.main:
                self.run.truncate_metrics(-1)  # of a beginning that was killed before it saved anything
            return False
        try:
            saved = self.run.load_checkpoint()
        except InputError as error:
            raise InputError(f"{error}. To resume from an older checkpoint, remove the damaged one's folder") from None
        restore(self.plan.recipe.nets, saved.tensors.get("weights", {}), "weights")
        for k in range(saved_stage(saved.state, len(self.plan.recipe.stages)) + 1):
            self._enter(k)
        assert self.progress is not None
        restore(self.averages, saved.tensors.get("averages", {}), "averages")
        changing = unflatten_state(saved.tensors.get("training", {}), saved.state.get("training"))
        restore_progress(self._playing.game, self.progress, saved.state.get("progress"), changing)
        restore_random(torch.set_rng_state, changing.get("random"))
        if self.plan.device.type == "cuda" and changing.get("device_random") is not None:
            restore_random(partial(torch.cuda.set_rng_state, device=self.plan.device), changing["device_random"])
        self.seconds = saved_seconds(saved.state)
        if self.examples != saved.examples:
            raise InputError(f"the checkpoint at {saved.examples} examples says it is at {self.examples}; use another")
        self.loss_scale.restore(saved.state.get("loss_scale"))
        if not self.plan.processes.main:
            return True
        records = saved.state.get("records")
        self.run.truncate_metrics(saved.examples, records if isinstance(records, int) and records >= 0 else None)
        self.monitor = Monitor(self.plan.record, self.run.metrics(), stored_events(self.run))
        return True

    def _curves(self) -> None:
        from twofold.pictures import curves, png_bytes

        if not self.plan.processes.main:
            return
        self.run.write_bytes("curves.png", png_bytes(curves(self.run.metrics())))
        self.drawn_at = self.seconds

    def _finish(self) -> None:
        from twofold.report import write_report

        self._pictures()
        self._keep_best(saved=True)
        if not self.plan.processes.main:
            return
        self._curves()
        self.run.write_json("health.json", self.monitor.to_json())
        write_report(
            self.run,
            health=[asdict(event) for event in self.monitor.events],
            routing="\n\n".join(table(stage.game) for stage in self.plan.recipe.stages),
            phases="\n".join(_phases(stage) for stage in self.plan.recipe.stages),
            networks=networks(self.plan.recipe),
            cost={
                "seconds": round(self.seconds, 1),
                "examples": self.examples,
                "examples_per_second": round(self.examples / max(self.seconds, 1e-9), 1),
                "device": str(self.plan.device),
                "parameters": sum(w.numel() for w in self.plan.recipe.nets.parameters()),
                "peak_memory_bytes": peak_memory_bytes(self.plan.device),
            },
            pictures={},
            command=command(self.plan, self.run.path, private=True),
        )
        if self.tensorboard is not None:
            self.tensorboard.close()


class _Every:
    """Due `times` times along a run, at the same numbers of examples however the run is divided into sessions."""

    def __init__(self, examples: int, times: int):
        self.interval = max(examples / times, 1e-9)
        self.passed = 0

    def start(self, examples: int) -> None:
        self.passed = int(examples / self.interval)

    def due(self, examples: int) -> bool:
        passed = int(examples / self.interval)
        due, self.passed = passed > self.passed, passed
        return due


# Without a run directory.


def fit(plan: Plan, *, progress: Progress | None = None) -> tuple[Model, Progress]:
    """Train in memory: the plan from its start, or for its number of examples on from `progress`; nothing is written.

    From the start it gives the same weights as `train`.

    Raises `InputError` for a batch larger than the data, or a recipe of several stages that is to go on;
    `TrainingError` if a loss was not finite.
    """
    stages, settings, stream = plan.recipe.stages, plan.settings, batches(plan)
    if progress is not None and len(stages) > 1:
        raise InputError(
            f"{plan.name} trains in {len(stages)} stages, so it cannot go on with more data; fit it at once"
        )
    averages: dict[str, nn.Module] = {}
    with _surroundings(plan), compiled(plan.recipe.nets, settings.compile) as calls:
        for k, stage in enumerate(stages):
            start, going_on = sum(plan.lengths[:k]), progress is not None
            if progress is None or k:
                progress = begin(stage.game, seed=settings.seed + k, fused=settings.fused)
            averages.update(dict(progress.averages))
            draw = _drawing(plan, stream, stage, progress, start, None)
            until = plan.lengths[k] + (progress.examples if going_on else 0)
            while progress.examples < until:
                _step(plan, calls, stage.game, progress, draw, on_nonfinite=settings.on_nonfinite)
            try:
                check_finite(stage.game, progress)
            except NonFiniteError as error:
                raise TrainingError(str(error)) from None
    assert progress is not None
    nets = nn.ModuleDict({**plan.recipe.nets, **averages})
    return _usual_layout(Model(plan.recipe, nets, examples=progress.examples)), progress


def revived(
    name: str, spec: Spec, config: Mapping[str, Any], weights: Mapping[str, Any], device: str
) -> tuple[tuple[Any, Recipe], Model]:
    """((Config, Recipe), Model) of a recipe from its settings and the arrays of its networks' state."""
    with torch.random.fork_rng(devices=[]):
        made = recipes.build(name, spec, config)
    restore(made[1].nets, {key: torch.as_tensor(value) for key, value in weights.items()}, "weights")
    where = device if device == "cpu" or torch.cuda.is_available() else "cpu"
    return made, Model(made[1], made[1].nets.to(torch.device(where)))


def networks(recipe: Recipe) -> list[dict[str, Any]]:
    """[{name, parameters, optimizer}] of every network of the recipe."""
    optimizers = {name: p.optimizer for stage in recipe.stages for name, p in stage.game.players.items()}
    return [
        {
            "name": name,
            "parameters": sum(w.numel() for w in net.parameters()),
            "optimizer": optimizer_text(optimizers[name]) if name in optimizers else "not trained",
        }
        for name, net in recipe.nets.items()
    ]


def _phases(stage: Stage) -> str:
    return "\n".join(f"stage {stage.name}: {phase_title(phase)}" for phase in stage.game.phases)


def command(plan: Plan, out: Path, *, private: bool = False) -> str:
    """The command line that repeats this run (data given as arrays has no name: YOUR_DATA stands for it).

    private: paths that lead out of the current folder are cut to their last name: reports are passed on.
    """
    shown = _public if private else str
    source = plan.data_record["source"]
    data = source if source is None or is_name(source) else shown(Path(source))
    words = ["twofold", "train", plan.name, "--data", data or "YOUR_DATA", "--out", shown(out)]
    defaults = {**asdict(recipes.default_config(recipes.find(plan.name))), **asdict(Settings())}
    always = ("examples", "batch_size", "seed")
    for name, value in {**asdict(plan.config), **asdict(plan.settings)}.items():
        if value != defaults[name] or name in always:
            words += _flag(name, value)
    for name, value in plan.data_record["options"].items():
        if value is not None and value is not False:
            words += _flag("range" if name == "value_range" else name, value)
    return shlex.join(words)


def _public(path: Path) -> str:
    """`path` relative to the current folder, or its last name alone where it lies elsewhere."""
    try:
        return str(Path(os.path.abspath(path)).relative_to(os.getcwd()))
    except ValueError:
        return path.name


def _flag(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if name == "size" and isinstance(value, list):
        return ["--size", "x".join(map(str, value))]
    if name == "classes":
        return ["--classes", ",".join(map(str, value))]
    values = value if isinstance(value, list) else ["none" if value is None else value]
    return [f"--{flag}", *map(str, values)]


def _tensorboard() -> Any:
    """TensorBoard's writer class. Raises `InputError` if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("TensorBoard is not installed; pip install 'twofold[tensorboard]'") from None
    return SummaryWriter


def estimate(plan: Plan, *, seconds: float = 2.0) -> dict[str, Any]:
    """What the run will cost, measured on a few steps that are thrown away: nothing is written.

    Returns parameters, bytes of weights + gradients + optimizer state, peak memory of this process, examples/s and
    the run's seconds.
    """
    stream, settings = batches(plan), plan.settings
    game = plan.recipe.stages[0].game
    with _surroundings(plan), compiled(plan.recipe.nets, settings.compile) as calls:
        progress = begin(game, seed=settings.seed, fused=settings.fused)
        draw = _drawing(plan, stream, plan.recipe.stages[0], progress, 0, None)

        def play() -> None:
            _step(plan, calls, game, progress, draw)
            if plan.device.type == "cuda":
                torch.cuda.synchronize(plan.device)

        play()
        play()
        start, before, steps = time.perf_counter(), progress.examples, 0
        while steps < 3 or time.perf_counter() - start < seconds:
            play()
            steps += 1
        elapsed = time.perf_counter() - start
    weights = [w for net in plan.recipe.nets.values() for w in net.parameters()]
    state = [
        value
        for optimizer in progress.optimizers.values()
        for slots in optimizer.state.values()
        for value in slots.values()
        if isinstance(value, Tensor)
    ]
    rate = (progress.examples - before) / elapsed
    return {
        "parameters": sum(w.numel() for w in weights),
        "state_bytes": sum(2 * w.nbytes for w in weights) + sum(t.nbytes for t in state),
        "peak_memory_bytes": peak_memory_bytes(plan.device),
        "examples_per_second": rate,
        "seconds": settings.examples / rate,
        "device": str(plan.device),
    }
