"""A progress bar for a training run: examples, examples/s, time left, and the terms' latest values by name."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twofold.training import Plan

NOT_TERMS = ("examples", "seconds", "examples_per_second")


class Bar:
    """A `Watch` for terminals; where the output is not a terminal it prints a line at each tenth of the run."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)
        self.live = self.console.is_terminal
        self.total = 0
        self.tenth = 0
        self.progress: Any = None
        self.task: Any = None

    def start(self, plan: Plan) -> None:
        self.total = plan.settings.examples
        if not self.live:
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} examples"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("\n{task.fields[terms]}"),
            console=self.console,
        )
        self.task = self.progress.add_task(f"{plan.name} on {plan.data.name}", total=self.total, rate="", terms="")
        self.progress.start()

    def update(self, examples: int, record: Mapping[str, float]) -> None:
        terms = "  ".join(f"{k} {v:.4g}" for k, v in record.items() if k not in NOT_TERMS and v is not None)
        rate = f"{record['examples_per_second']:,.0f}/s" if "examples_per_second" in record else ""
        if self.progress is not None:
            self.progress.update(self.task, completed=min(examples, self.total), rate=rate, terms=terms)
        elif 10 * examples // self.total > self.tenth:
            self.tenth = 10 * examples // self.total
            print(f"{examples:>12,}/{self.total:,} examples  {rate}  {terms}", file=sys.stderr, flush=True)

    def note(self, line: str) -> None:
        self.console.print(line, highlight=False)

    def stop(self) -> None:
        if self.progress is not None:
            self.progress.stop()
