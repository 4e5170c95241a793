"""A progress bar for a training run: examples, examples/s, time left, and the terms' latest values by name."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twofold.training import Plan

NOT_TERMS = ("examples", "seconds", "examples_per_second")
FOR_HEALTH = ("gradient_norm", "probe_", "skipped_share")
"""Starts of the names of quantities that `health` reads, and reports if they are wrong."""


class Bar:
    """A `Watch` for terminals; where the output is not a terminal it prints a line at each tenth of the run."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)
        self.live: Any = None
        self.progress: Any = None
        self.task: Any = None
        self.total = 0
        self.tenth = 0
        self.first: tuple[int, float] | None = None
        """Examples and seconds at this session's first update: a resumed run does not start at 0."""

    def start(self, plan: Plan) -> None:
        self.total = plan.settings.examples
        size = "×".join(map(str, plan.recipe.spec.shape))
        parameters = sum(w.numel() for w in plan.recipe.nets.parameters())
        self.note(f"{plan.name} on {plan.data.name}: {len(plan.data.train):,} {plan.recipe.spec.kind}s of {size}")
        self.note(f"{parameters:,} parameters on {plan.device}")
        for line in plan.data.notes:
            self.note(f"note: {line}")
        if self.console.is_interactive:
            self._start_bar()

    def _start_bar(self) -> None:
        from rich.live import Live
        from rich.progress import BarColumn, Progress, TextColumn

        self.progress = Progress(
            BarColumn(bar_width=None),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} examples"),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[left]}"),
            console=self.console,
            expand=True,
        )
        self.task = self.progress.add_task("", total=self.total, rate="", left="")
        self.live = Live(self.progress, console=self.console, refresh_per_second=4)
        self.live.start()

    def update(self, examples: int, record: Mapping[str, float]) -> None:
        terms = [
            f"{k} {v:.4g}"
            for k, v in record.items()
            if k not in NOT_TERMS and v is not None and not k.startswith(FOR_HEALTH)
        ]
        rate = f"{record['examples_per_second']:,.0f} examples/s" if "examples_per_second" in record else ""
        if self.live is not None:
            self._draw(examples, rate, terms)
        elif 10 * examples // self.total > self.tenth:
            self.tenth = 10 * examples // self.total
            self.note("  ".join([f"{examples:>12,}/{self.total:,} examples", rate, self._left(examples), *terms]))
        if self.first is None:
            self.first = examples, time.monotonic()

    def _draw(self, examples: int, rate: str, terms: list[str]) -> None:
        from rich.columns import Columns
        from rich.console import Group
        from rich.text import Text

        # The last record of a run has no rate: the one before stays.
        fields = {"rate": rate} if rate else {}
        self.progress.update(self.task, completed=min(examples, self.total), left=self._left(examples), **fields)
        self.live.update(Group(self.progress, Columns([Text(term) for term in terms], padding=(0, 3))))

    def _left(self, examples: int) -> str:
        """ "0:04:10 left", by this session's average, pictures and checkpoints included."""
        if self.first is None or examples <= self.first[0]:
            return ""
        pace = (time.monotonic() - self.first[1]) / (examples - self.first[0])
        minutes, seconds = divmod(round(max(0, self.total - examples) * pace), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left"

    def note(self, line: str) -> None:
        shown = "".join(c if c.isprintable() else "?" for c in line)
        try:
            if self.live is not None:
                self.console.print(shown, highlight=False, markup=False, soft_wrap=True)
            elif sys.stderr is not None:  # closed by the caller; print would take stdout instead
                print(shown, file=sys.stderr, flush=True)
        except OSError:
            # Nobody reads stderr any more (`2>&1 | head`). The run is worth more than its progress lines.
            self.tenth = 10

    def stop(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None
