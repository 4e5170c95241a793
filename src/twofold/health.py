"""What goes wrong with a run, in plain words, with the numbers that show it and what to try.

Each alarm is a function of the run's metrics: what the step returns at each log (terms, gradient norms, how well each
discriminator tells its two sides apart) and what is measured at each picture (`probing.py`: samples against data,
codes, the critic on training and on held-out examples). So training, `twofold doctor` and a test ask the same question
of the same numbers, and a resumed run comes to the same answers.

An alarm about quality needs its cause to last: over a tenth of the planned run at the logs, at two pictures in a row,
and not before `WARM_UP` examples or a tenth of the run. Every threshold is a constant of this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from twofold.errors import InputError, unknown
from twofold.run import Run

WARM_UP = 1_000
"""Examples before which a model that makes nothing sensible is untrained, not ill."""
SUSTAINED = 0.1
"""Part of the planned run over which a reading of the logs must last."""
LEAST_LOGS = 5
"""Logs that this part must hold."""

TELLS_APART = 0.98
"""A discriminator that ranks more real-generated pairs right than this is too strong, if also …"""
LITTLE_SIGNAL = 0.1
"""… less than this part of the adversarial gradient gets through its certainty, or …"""
VANISHED = 0.02
"""… the generator's gradient norm is below this part of what it was in the first fifth of the run."""
FEW_MODES = 0.35
"""Effective number of regions of the data that samples reach, relative to as many data."""
RISING = 1.15
"""Growth over two pictures that says that diversity is still on its way."""
NARROW = 0.25
"""Mean distance between samples, relative to that between data."""
ACTIVE_PART = 0.1
"""Part of the code's units (at most as many as the data has values) that a healthy posterior uses."""
LITTLE_RATE_NATS = 0.1
"""A code whose whole KL is below this says nothing."""
CODES_PART = 0.2
"""Part of the codebook that a healthy encoder uses."""
SWING = 0.15
"""How far an oscillating discriminator's accuracy goes to either side of its mean."""
SWINGS = 8
"""Changes of side within the last half of the run that make an oscillation: four whole cycles."""
COPIES = 0.35
"""Median distance of samples to the nearest training example, relative to that of held-out examples."""
KNOWS_TRAINING = 0.75
"""Share of pairs in which a critic scores a training example above a held-out one; 0.5 for one that generalises."""
BOUND_LOST = 0.1
"""Part of all that the test bound gained which an overfitting model has lost again."""
RANGE_USED = 0.1
"""Part of the model's range that data must fill."""
SATURATED = 0.5
"""Share of values at the edge of the output's range beyond what the data have there."""
SKIPPED = 0.01
"""Share of moves left out because a gradient was not finite."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    name: str
    """The alarm, e.g. "mode-collapse"."""
    says: str
    """In plain words."""
    evidence: str
    """The numbers."""
    remedy: str
    """What to try."""

    @property
    def line(self) -> str:
        """On one line: "mode-collapse: … (…). Try: …"."""
        return f"{self.name}: {self.says} ({self.evidence}). Try: {self.remedy}"


@dataclass
class History:
    """The numbers of a run by name, in the order of its examples."""

    planned: int
    """Examples that the run was planned for."""
    size: int
    """Values in one example of the data."""
    training_examples: int = 0
    """Examples in the training set."""
    trains: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The players that each term trains."""
    rows: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    broken: dict[str, int] = field(default_factory=dict)
    """Quantities whose latest value is not finite, and since how many examples."""
    examples: int = 0

    def add(self, record: Mapping[str, Any]) -> None:
        """Take in one record of metrics.jsonl."""
        self.examples = max(self.examples, record["examples"])
        for name, value in record.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if math.isfinite(value):
                self.rows.setdefault(name, []).append((record["examples"], float(value)))
                self.broken.pop(name, None)
            else:
                self.broken.setdefault(name, record["examples"])

    @property
    def warm(self) -> bool:
        """Whether there has been enough training to judge by."""
        return self.examples >= max(WARM_UP, SUSTAINED * self.planned)

    def recent(self, name: str) -> list[float]:
        """The values logged in the last tenth of the planned run; none if they are too few, or it is too early."""
        since = self.examples - SUSTAINED * self.planned
        values = [value for examples, value in self.rows.get(name, ()) if examples > since]
        return values if self.warm and len(values) >= LEAST_LOGS else []

    def early(self, name: str) -> list[float]:
        """The values logged in the first fifth of the planned run."""
        return [value for examples, value in self.rows.get(name, ()) if examples <= 2 * SUSTAINED * self.planned]

    def probes(self, name: str) -> list[float]:
        """The values at the last two pictures; none before there are two of a model that is no longer new."""
        found = {examples: value for examples, value in self.rows.get(name, ()) if examples > 0}
        return list(found.values())[-2:] if self.warm and len(found) >= 2 else []

    def last(self, name: str) -> float | None:
        """The latest value."""
        return self.rows[name][-1][1] if name in self.rows else None

    def named(self, ending: str) -> list[str]:
        """The quantities whose names end so."""
        return [name for name in self.rows if name.endswith(ending)]


def history_of(record: Mapping[str, Any], records: Iterable[Mapping[str, Any]] = ()) -> History:
    """The history of a run from its config.json and the records of its metrics.jsonl."""
    trains = {
        term["name"]: tuple(term["to"])
        for stage in record["stages"]
        for phase in stage["phases"]
        for term in phase["terms"]
    }
    known = record["data"]["train_examples"]
    history = History(record["train"]["examples"], math.prod(record["spec"]["shape"]), known, trains)
    for entry in records:
        history.add(entry)
    return history


# The alarms. Each looks at a History and returns what it found, or None.


def _discriminator_too_strong(h: History) -> Finding | None:
    for name in h.named("discriminator_accuracy"):
        accuracy = h.recent(name)
        if not accuracy or median(accuracy) < TELLS_APART:
            continue
        code = "" if name == "discriminator_accuracy" else name.removesuffix("discriminator_accuracy")
        starved = [f"{median(signal):.2g} of its gradient gets through to the generator" for signal in
                   [h.recent(f"{code}adversarial_signal")] if signal and median(signal) < LITTLE_SIGNAL]  # fmt: skip
        for player in _deceivers(h, code):
            norm = f"gradient_norm → {player}"
            now, then = h.recent(norm), h.early(norm)
            if now and then and median(now) < VANISHED * median(then):
                starved.append(f"the gradient norm of {player} fell from {median(then):.2g} to {median(now):.2g}")
        if starved:
            return Finding(
                "discriminator-too-strong",
                f"the {_spoken(code)}discriminator tells real from generated almost without error, and what "
                "it fools has little left to learn from",
                f"it ranks {median(accuracy):.1%} of pairs right; {'; '.join(starved)}",
                "a lower learning rate or fewer plays for the discriminator, a loss that does not saturate, a penalty "
                "(r1, gradient-penalty) or spectral normalisation, one-sided label smoothing",
            )
    return None


def _spoken(prefix: str) -> str:
    return prefix.replace("_", " ")


def _deceivers(h: History, prefix: str) -> list[str]:
    """The players that learn to deceive the discriminator whose quantities start with `prefix`."""
    return sorted({player for term, players in h.trains.items() if _deceives(term, prefix) for player in players})


def _deceives(term: str, prefix: str) -> bool:
    """As "code_adversarial_encoder" does where tensors start with "code_", and "adversarial_x" where with "x_"."""
    own = term.startswith(f"{prefix}adversarial_") or (bool(prefix) and term == f"adversarial_{prefix[:-1]}")
    return own and not term.endswith("_discriminator")


def _mode_collapse(h: History) -> Finding | None:
    modes, spread = h.probes("probe_sample_modes"), h.probes("probe_sample_spread")
    if not modes or not spread or (max(modes) >= FEW_MODES and max(spread) >= NARROW):
        return None
    # Every model starts by making one thing: it has collapsed if it was diverse before, or does not get better.
    fallen = 2 * modes[-1] < max(v for _, v in h.rows["probe_sample_modes"])
    stuck = h.examples > h.planned / 2 and not any(
        _rises([v for _, v in h.rows[name]]) for name in ("probe_sample_modes", "probe_sample_spread")
    )
    if not fallen and not stuck:
        return None
    return Finding(
        "mode-collapse",
        "samples are much less diverse than the data",
        f"they reach {modes[-1]:.0%} of the regions that as many data reach, and lie {spread[-1]:.0%} as far apart",
        "a larger batch, a loss with a penalty (wgan-gp, or --penalty r1), a slower generator, or a hybrid whose "
        "encoder holds on to all of the data (alpha-gan, vae-gan)",
    )


def _rises(values: Sequence[float]) -> bool:
    """Whether the last of `values` is clearly above the one two before it."""
    return len(values) < 3 or values[-1] > RISING * values[-3]


def _posterior_collapse(h: History) -> Finding | None:
    active, rate, largest = (h.probes(f"probe_{n}") for n in ("active_units", "kl_nats", "kl_largest_nats"))
    units = h.last("probe_code_units")
    if not active or not rate or units is None:
        return None
    fewest = ACTIVE_PART * min(units, h.size)
    if max(rate) >= LITTLE_RATE_NATS and max(active) >= fewest:
        return None
    return Finding(
        "posterior-collapse",
        "the code says almost nothing about the example: the posterior is the prior",
        f"{active[-1]:.0f} of {units:.0f} units active; KL {rate[-1]:.2g} nats in all, "
        f"{largest[-1]:.2g} in the largest unit",
        "a smaller weight of the KL or its warm-up, free bits, a weaker decoder, a learned or smaller scale of the "
        "likelihood",
    )


def _dead_codes(h: History) -> Finding | None:
    used, codes = h.probes("probe_codes_used"), h.last("probe_codes")
    if not used or codes is None or max(used) >= CODES_PART * codes:
        return None
    perplexity = h.last("perplexity")
    also = f"; perplexity {perplexity:.1f}" if perplexity is not None else ""
    return Finding(
        "dead-codes",
        "most of the codebook is never chosen",
        f"{used[-1]:.0f} of {codes:.0f} codes used on held-out examples{also}",
        "restarts of dead codes (--restart-examples), codes as moving averages (--codebook ema), fewer codes",
    )


def _oscillation(h: History) -> Finding | None:
    for name in h.named("discriminator_accuracy"):
        values = [v for examples, v in h.rows[name] if examples > h.examples / 2]
        if not h.warm or len(values) < 5 * SWINGS:
            continue
        smooth = [sum(values[k : k + LEAST_LOGS]) / LEAST_LOGS for k in range(len(values) - LEAST_LOGS + 1)]
        if (count := swings(smooth, SWING)) >= SWINGS:
            return Finding(
                "oscillation",
                "discriminator and generator chase each other in circles instead of settling",
                f"{name} changed sides {count} times in the last half of the run, between {min(smooth):.2f} and "
                f"{max(smooth):.2f}",
                "lower learning rates or less momentum (--beta1 0), a penalty on the discriminator (r1, "
                "gradient-penalty), sampling from an average of the generator (--ema-half-life-examples)",
            )
    return None


def swings(values: Sequence[float], margin: float) -> int:
    """How often `values` go from `margin` above their mean to `margin` below it, or back. (The median of values that
    jump between two extremes is one of them.)

    >>> swings([0.9, 0.1, 0.9, 0.5, 0.1], 0.2)
    3
    """
    centre = sum(values) / len(values)
    sides = [1 if v > centre else -1 for v in values if abs(v - centre) >= margin]
    return sum(a != b for a, b in zip(sides[:-1], sides[1:], strict=True))


def _memorisation(h: History) -> Finding | None:
    ratio = h.probes("probe_sample_to_train")
    if not ratio or max(ratio) >= COPIES:
        return None
    return Finding(
        "memorisation",
        "samples are close copies of training examples",
        f"their distance to the nearest training example is {ratio[-1]:.2g} of what it is for held-out examples",
        "more data, augmentation (--flip, --crop), a smaller network, an earlier checkpoint (--keep-best)",
    )


def _critic_overfitting(h: History) -> Finding | None:
    learnt = {name: h.probes(name) for name in h.named("discriminator_train_over_test")}
    found = [(name, knows) for name, knows in learnt.items() if knows and min(knows) >= KNOWS_TRAINING]
    if not found:
        return None
    name, knows = found[0]
    which = _spoken(name.removeprefix("probe_").removesuffix("discriminator_train_over_test"))
    return Finding(
        "critic-overfitting",
        f"the {which}discriminator knows the training examples by heart, so what it teaches is no longer about the "
        "data",
        f"it scores a training example above a held-out one in {knows[-1]:.0%} of pairs; 50 % would be fair",
        "more data or augmentation (--flip, --crop), a smaller discriminator, a penalty (r1), fewer of its plays, an "
        "earlier checkpoint (--keep-best)",
    )


def _overfitting(h: History) -> Finding | None:
    bound = h.rows.get("test_elbo_nats", [])
    if not h.warm or len(bound) < 4 or h.examples < 2 * h.training_examples:
        return None  # nobody knows by heart what they have seen once
    values = [value for _, value in bound]
    best = max(values)
    lost, gained = best - values[-1], best - values[0]
    if max(values[-2:]) == best or min(best - values[-2], lost) <= BOUND_LOST * gained:
        return None
    return Finding(
        "overfitting",
        "the bound on held-out examples gets worse while training goes on",
        f"test ELBO {values[-1]:.4g} nats, {lost:.3g} below its best at {bound[values.index(best)][0]:,} examples",
        "the best checkpoint (--keep-best max:test_elbo_nats), more data, augmentation, a smaller network",
    )


def _data_range(h: History) -> Finding | None:
    low, high = h.last("probe_data_low"), h.last("probe_data_high")
    if low is None or high is None:
        return None
    says = ""
    if low < -1.01 or high > 1.01:
        says, remedy = "data go beyond what the output's activation can reach", "--range LOW HIGH as the data are"
    elif high - low < RANGE_USED * 2:
        says, remedy = "data fill a small part of the range that the output covers", "--range LOW HIGH as the data are"
    made, there = h.probes("probe_sample_saturated"), h.last("probe_data_saturated")
    if not says and made and there is not None and min(made) - there > SATURATED:
        says = (
            f"{made[-1]:.0%} of the samples' values stand at the edge of the output's range, {there:.0%} of the data's"
        )
        remedy = "a lower learning rate, clip_norm, normalisation in the decoder"
    if not says:
        return None
    return Finding("data-range", says, f"data lie in [{low:.3g}, {high:.3g}]; images are seen in [-1, 1]", remedy)


def _non_finite(h: History) -> Finding | None:
    skipped = h.last("skipped_share") or 0.0
    if not h.broken and skipped <= SKIPPED:
        return None
    broken = "; ".join(f"{name} since {examples:,} examples" for name, examples in h.broken.items())
    return Finding(
        "non-finite",
        "values became infinite or not a number",
        broken or f"{skipped:.1%} of moves were skipped because a gradient was not finite",
        "a lower learning rate, --clip-norm, --precision float32, data without extreme values",
    )


ALARMS: dict[str, Callable[[History], Finding | None]] = {
    "non-finite": _non_finite,
    "data-range": _data_range,
    "discriminator-too-strong": _discriminator_too_strong,
    "mode-collapse": _mode_collapse,
    "posterior-collapse": _posterior_collapse,
    "dead-codes": _dead_codes,
    "oscillation": _oscillation,
    "memorisation": _memorisation,
    "critic-overfitting": _critic_overfitting,
    "overfitting": _overfitting,
}
"""Every alarm by name. docs/health.md says what each means."""


def diagnose(history: History) -> list[Finding]:
    """All that is wrong now."""
    return [finding for alarm in ALARMS.values() if (finding := alarm(history)) is not None]


def alarm_names(text: str) -> tuple[str, ...]:
    """ "mode-collapse,non-finite" as a tuple. Raises `InputError` for a name that is no alarm."""
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in ALARMS:
            raise unknown("alarm", name, ALARMS)
    return names


# While training.


@dataclass
class Event:
    """One alarm's course in a run."""

    name: str
    began_examples: int
    ended_examples: int | None
    """None while it lasts."""
    says: str
    evidence: str
    """At its last sight."""
    remedy: str


class Monitor:
    """Follows a run and tells of each alarm once, when it first starts."""

    def __init__(self, record: Mapping[str, Any], records: Iterable[Mapping[str, Any]] = (), events: Any = ()):
        """`record` is the run's config.json; a resumed run gives its metrics and the events of its health.json."""
        self.history = history_of(record, records)
        self.events: list[Event] = []
        for entry in events if isinstance(events, list) else ():
            event = _event(entry)
            if event is None or event.began_examples > self.history.examples:
                continue  # of a course of training that was left by resuming before it
            if event.ended_examples is not None and event.ended_examples > self.history.examples:
                event.ended_examples = None
            self.events.append(event)

    @property
    def active(self) -> list[Event]:
        """The alarms that last."""
        return [event for event in self.events if event.ended_examples is None]

    def note(self, record: Mapping[str, Any]) -> list[Finding]:
        """Take in one record of the metrics; returns the alarms that start with it and never did before."""
        self.history.add(record)
        found = {finding.name: finding for finding in diagnose(self.history)}
        known = {event.name: event for event in self.events}
        for event in self.events:
            finding = found.get(event.name)
            if finding is None:
                if event.ended_examples is None:
                    event.ended_examples = self.history.examples
            else:
                event.ended_examples, event.says, event.evidence = None, finding.says, finding.evidence
                event.remedy = finding.remedy
        new = [finding for name, finding in found.items() if name not in known]
        self.events += [Event(f.name, self.history.examples, None, f.says, f.evidence, f.remedy) for f in new]
        return new

    def to_json(self) -> dict[str, Any]:
        """health.json."""
        return {"examples": self.history.examples, "alarms": [asdict(event) for event in self.events]}


def _event(entry: Any) -> Event | None:
    """The event of a record in health.json; None for anything else."""
    try:
        event = Event(**entry)
    except TypeError:
        return None
    counts = (event.began_examples, event.ended_examples or 0)
    texts = (event.name, event.says, event.evidence, event.remedy)
    return event if all(type(c) is int for c in counts) and all(isinstance(t, str) for t in texts) else None


def stored_events(run: Run) -> list[Any]:
    """The records of the run's health.json; none if it has none that can be read."""
    if not (run.path / "health.json").exists():
        return []
    record = run.read_json("health.json")
    alarms = record.get("alarms") if isinstance(record, dict) else None
    return alarms if isinstance(alarms, list) else []


# Afterwards.


@dataclass(frozen=True)
class Diagnosis:
    """What `doctor` found out about a run."""

    run: str
    examples: int
    planned_examples: int
    findings: tuple[Finding, ...]
    """What is wrong at the end of what was trained."""
    passed: tuple[Event, ...]
    """Alarms that were raised and ended."""
    not_checked: tuple[str, ...]
    """Alarms for which this run has no numbers, with the reason."""

    def to_json(self) -> dict[str, Any]:
        """The record of `twofold doctor --json`."""
        return asdict(self)

    @property
    def text(self) -> str:
        """For people, one line for each matter."""
        lines = [f"{self.run}: {self.examples:,} of {self.planned_examples:,} examples"]
        for finding in self.findings:
            lines += ["", f"{finding.name}: {finding.says}", f"  evidence: {finding.evidence}"]
            lines += [f"  try:      {finding.remedy}"]
        if not self.findings:
            lines += ["", f"nothing is wrong that these look for: {', '.join(self.checked)}"]
        for event in self.passed:
            until = self.examples if event.ended_examples is None else event.ended_examples
            lines += ["", f"passed: {event.name} from {event.began_examples:,} to {until:,} examples"]
            lines += [f"  evidence: {event.evidence}"]
        return "\n".join([*lines, *(["", f"not checked: {'; '.join(self.not_checked)}"] if self.not_checked else [])])

    @property
    def checked(self) -> tuple[str, ...]:
        """The alarms that could be judged."""
        missing = {line.partition(" ")[0] for line in self.not_checked}
        return tuple(name for name in ALARMS if name not in missing)


NEEDS: dict[str, tuple[str, str]] = {
    "data-range": ("probe_data_low", "the data are not images"),
    "discriminator-too-strong": ("discriminator_accuracy", "there is no discriminator"),
    "mode-collapse": ("probe_sample_modes", "no samples, or too few examples to compare with"),
    "posterior-collapse": ("probe_active_units", "there is no Normal posterior"),
    "dead-codes": ("probe_codes_used", "there is no codebook"),
    "oscillation": ("discriminator_accuracy", "there is no discriminator"),
    "memorisation": ("probe_sample_to_train", "no samples, nothing was held out, or the training set is not in memory"),
    "critic-overfitting": ("discriminator_train_over_test", "no discriminator of data, or nothing was held out"),
    "overfitting": ("test_elbo_nats", "the recipe has no bound"),
}
"""The quantity that an alarm cannot be judged without, and why a run may lack it."""


def doctor(run: str | Path, *, data: Any = None, data_options: Mapping[str, Any] | None = None) -> Diagnosis:
    """What went wrong with a run, and what to try. Reads its files; with `data`, also asks its newest checkpoint.

    With `data` (read with `data_options`, see `twofold.data.load`) the samples, the codes and the discriminator are
    measured anew, which a run without those numbers needs; the whole of `data`'s training split counts as trained on.

    Raises `InputError` if there is no run, or the data are not of its kind.
    """
    from twofold.model import record_of

    opened = Run.open(run)
    record = record_of(opened)
    records = opened.metrics()
    if not records and data is None:
        raise InputError(f"{opened.path} has no metrics yet; train first")
    try:
        monitor = Monitor(record, records, stored_events(opened))
        if data is not None:
            from twofold.probing import probe_run

            measured = probe_run(opened, data, data_options or {})
            # A single look must count: it stands for the last three pictures.
            for back in (2, 1, 0):
                monitor.history.add({"examples": max(monitor.history.examples, 1) + 1 - back, **measured})
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{opened.path / 'config.json'} is not as `twofold train` writes it ({error!r})") from None
    history = monitor.history
    findings = tuple(diagnose(history))
    names = {finding.name for finding in findings}
    return Diagnosis(
        str(run),
        max((entry["examples"] for entry in records), default=0),
        history.planned,
        findings,
        tuple(event for event in monitor.events if event.name not in names),
        tuple(
            f"{name} ({why})"
            for name, (quantity, why) in NEEDS.items()
            if not any(known.endswith(quantity) for known in history.rows)
        ),
    )
