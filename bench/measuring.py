"""Measuring two ways to take a training step, and writing the tables of a run down.

Both sides take turns, a few steps each after one that is not timed, and the ratio is taken turn by turn, of processor
time: on a machine that does other work the median of these holds when single times do not. Unless it is said otherwise
both sides keep freed memory as `twofold train` does. FLOPs are counted by torch (matrix products and
convolutions, forward and backward) and divided by what the same process reaches in a square float32 product.
"""

from __future__ import annotations

import atexit
import copy
import json
import math
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

Step = Callable[[], Any]
Memory = Callable[[], AbstractContextManager[None]]
"""How freed memory is treated: `kept`, or `nullcontext` for glibc's own way."""


def kept() -> AbstractContextManager[None]:
    """Freed memory as training treats it."""
    from twofold.device import keeping_memory

    return keeping_memory(torch.device("cpu"))


class OwnStep:
    """A step as training takes it."""

    def __init__(self, play: Step, nets: nn.Module, precision: str, *, products: bool):
        self.play, self.nets, self.precision, self.products = play, nets, precision, products

    def __call__(self) -> Any:
        return self.play()

    @contextmanager
    def around(self) -> Iterator[None]:
        from twofold.convolutions import as_products

        with kept(), as_products(self.nets, torch.device("cpu"), self.precision) if self.products else nullcontext():
            yield


def around(step: Step) -> AbstractContextManager[None]:
    """What training puts around our steps; for any other freed memory is kept."""
    return step.around() if isinstance(step, OwnStep) else kept()


def seconds_of(step: Step, count: int = 1) -> float:
    start = time.process_time()
    for _ in range(count):
        step()
    return (time.process_time() - start) / count


SECONDS = 20.0
"""About how long a comparison may take: slow steps have fewer of them in a turn, and fewer turns, but …"""
FEWEST = 5
"""… so many turns at least."""


def alternate(
    one: Step, other: Step, *, turns: int, steps: int, around_other: Memory | None = None
) -> tuple[float, float, list[float]]:
    """(median seconds of one, of the other, ratios other / one turn by turn). `turns` and `steps` are the most."""

    def timed(step: Step, memory: Memory | None, count: int) -> float:
        with around(step) if memory is None else memory():
            step()
            return seconds_of(step, count)

    sides: tuple[tuple[Step, Memory | None], ...] = ((one, None), (other, around_other))
    pair = sum(timed(*side, 1) for side in sides)
    steps = min(steps, max(1, round(SECONDS / (turns * pair)) - 1))
    turns = min(turns, max(FEWEST, round(SECONDS / ((1 + steps) * pair))))
    pairs = []
    for turn in range(turns):
        order = (0, 1) if turn % 2 else (1, 0)
        times = {k: timed(*sides[k], steps) for k in order}
        pairs.append((times[0], times[1]))
    ratios = sorted(b / a for a, b in pairs)
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), ratios


def quartiles(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.3f} ({ratios[len(ratios) // 4]:.3f}–{ratios[3 * len(ratios) // 4]:.3f})"


class _NoModules(nullcontext):
    """In place of torch's tracker of modules, whose hooks refuse a gradient penalty's inner gradient."""

    parents = frozenset({"Global"})


def flops_of(step: Step) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()
    with counter:
        step()
    return counter.get_total_flops()


def matmul_flops_per_second() -> float:
    a = torch.randn(1024, 1024)
    return 2 * 1024**3 / statistics.median(seconds_of(lambda: a @ a, 3) for _ in range(7))


def calls_of(step: Step, nets: Sequence[nn.Module]) -> int:
    """Forward calls of the networks in one step, also those that go around hooks."""
    with ExitStack() as patched:
        spies = [patched.enter_context(mock.patch.object(net, "forward", wraps=net.forward)) for net in nets]
        step()
    return sum(spy.call_count for spy in spies)


def memory_of(make: Callable[[], Step], memory: Memory | None = None) -> float:
    """MiB that building a step and taking it three times add to the peak of a child of this process: weights,
    gradients, optimizer states and what a step keeps. NaN if the child hangs, as forks of a process with thread pools
    may.

    Memory that the parent has freed is given back first; what it keeps for itself (kernels' caches) is not counted.
    """
    with kept():  # at its end what lies free is given back
        pass

    def peak(work: Callable[[], None]) -> float:
        child = os.fork()
        if child == 0:
            signal.alarm(180)
            try:
                work()
            except BaseException:
                os._exit(1)
            os._exit(0)
        _, status, used = os.wait4(child, 0)
        return used.ru_maxrss if status == 0 else math.nan

    def play() -> None:
        step = make()
        with around(step) if memory is None else memory():
            for _ in range(3):
                step()

    net = nn.Conv2d(1, 1, 3)  # what libraries take on their first use is no side's
    net(torch.zeros(1, 1, 4, 4)).sum().backward()
    torch.optim.Adam(net.parameters()).step()
    return (peak(play) - peak(lambda: None)) / 1024


@dataclass(frozen=True)
class Setting:
    """How our step is taken: the default, or with what may make it faster."""

    precision: str = "float32"
    unfused: bool = False
    """A kernel for each operation of an optimizer's update, as torch does it by itself on the CPU."""
    channels_last: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        words = [self.precision] + [w for w in ("unfused", "channels_last", "compiled") if getattr(self, w)]
        return ", ".join(words).replace("_", " ")


COMPILING = ExitStack()
"""Open as long as the process measures: a step compiles when it is first taken."""
atexit.register(COMPILING.close)


def game_step(
    name: str,
    batch: Mapping[str, Tensor],
    spec: Any,
    options: Mapping[str, Any],
    setting: Setting = Setting(),  # noqa: B008
) -> tuple[nn.ModuleDict, Step]:
    """(a copy of the networks before training, step) of a recipe, on one batch that is there already."""
    from twofold import recipes
    from twofold.compiling import compiled
    from twofold.device import autocast, by_pixel
    from twofold.game import begin, step

    torch.manual_seed(0)
    recipe = recipes.build(name, spec, dict(options))[1]
    start = copy.deepcopy(recipe.nets)
    game = recipe.stages[0].game
    if setting.channels_last:
        game.nets.to(memory_format=torch.channels_last)
        batch = by_pixel(batch)
    calls = COMPILING.enter_context(compiled(recipe.nets, "inductor" if setting.compiled else None))
    progress = begin(game, fused=not setting.unfused)

    def play() -> None:
        with autocast(torch.device("cpu"), setting.precision), calls.stepping():
            step(game, progress, lambda: batch)

    return start, OwnStep(play, recipe.nets, setting.precision, products=not setting.compiled)


class Report:
    """Tables, printed row by row and written to a Markdown and a JSON file as they grow."""

    def __init__(self, out: Path | None) -> None:
        self.out = out
        self.tables: list[dict[str, Any]] = []

    def table(self, title: str, columns: Sequence[str], note: str = "") -> Callable[..., None]:
        """Begin a table; the result adds a row of cells to it."""
        command = "python " + " ".join([os.path.relpath(sys.argv[0]), *sys.argv[1:]])
        table: dict[str, Any] = {"title": title, "command": command, "note": note, "columns": list(columns), "rows": []}
        self.tables.append(table)
        print(_heading(table), flush=True)

        def row(*cells: object) -> None:
            assert len(cells) == len(columns), (cells, columns)
            table["rows"].append([str(cell) for cell in cells])
            print(_line(cells), flush=True)
            self.write()

        return row

    def write(self) -> None:
        if self.out is None:
            return
        self.out.parent.mkdir(parents=True, exist_ok=True)
        pages = [_heading(t) + "\n" + "\n".join(_line(r) for r in t["rows"]) for t in self.tables]
        self.out.with_suffix(".md").write_text("\n".join(pages) + "\n")
        self.out.with_suffix(".json").write_text(json.dumps(self.tables, indent=1, ensure_ascii=False) + "\n")


def _heading(table: Mapping[str, Any]) -> str:
    lines = [f"\n## {table['title']}\n", f"`{table['command']}`\n"]
    if table["note"]:
        lines.append(table["note"] + "\n")
    return "\n".join([*lines, _line(table["columns"]), "|" + "---|" * len(table["columns"])])


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
