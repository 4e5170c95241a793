"""report.html: one run on one self-contained page, with its pictures inside and nothing loaded from anywhere."""

from __future__ import annotations

import base64
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from twofold.errors import InputError
from twofold.run import Run

PROGRESS = 4
"""The largest number of sample pictures that show the course of training."""

_PNG = b"\x89PNG\r\n\x1a\n"
_SAMPLE_FILE = re.compile(r"samples/(?:(?P<kind>[^/]+)-)?(?P<examples>[0-9]{1,12})\.png")


@dataclass(frozen=True)
class _Picture:
    caption: str
    uri: str
    width: int
    height: int


def write_report(
    run: Run,
    *,
    routing: str,
    phases: str,
    networks: Sequence[Mapping[str, Any]],
    cost: Mapping[str, Any],
    pictures: Mapping[str, bytes],
    command: str,
    health: Sequence[Mapping[str, Any]] | None = None,
) -> Path:
    """Writes report.html into `run` and returns its path.

    routing, phases: the routing table and what is played when, as text; shown as they are.
    networks: one record for each network, with "name", "parameters" and any further columns.
    cost: {what: value}; "seconds" and names that end in `_seconds` or `_bytes` are written in readable units;
    "examples", "seconds" and "device" are also named at the top.
    pictures: {name: PNG}; "samples", "reconstructions" and "curves" have their places, others follow under their names.
    command: how to do it again.
    health: the alarms of the run as health.json has them; None: nobody watched.

    What `pictures` lacks is taken from the run: "samples" and "reconstructions" from the latest of samples/EXAMPLES.png
    and samples/reconstructions-EXAMPLES.png, "curves" drawn from the metrics. The first, some and the last of
    samples/EXAMPLES.png show the course of training.

    All text is escaped. Raises `InputError` for a picture that is no PNG and for a damaged metrics.jsonl, `SaveError`
    if the page cannot be written.
    """
    stored = _stored_pictures(run)
    shown = {name: embedded(name, data) for name, data in pictures.items()}
    for kind in ("samples", "reconstructions"):
        if kind not in shown and stored.get(kind):
            shown[kind] = _read_picture(run, *stored[kind][-1])
    if "curves" not in shown:
        shown["curves"] = embedded("curves", _draw_curves(run))
    config = run.config
    page = page_template("report.html").render(
        recipe=_short(config.get("recipe", "a model")),
        data=_short(config.get("data", "data")),
        summary=_summary(cost),
        samples=shown.pop("samples", None),
        reconstructions=shown.pop("reconstructions", None),
        curves=shown.pop("curves"),
        others=list(shown.values()),
        progress=[_read_picture(run, *entry) for entry in _spread(stored.get("samples", []), PROGRESS)],
        routing=routing,
        phases=phases,
        networks=_network_table(networks),
        cost=[(_words(name), quantity(name, value)) for name, value in cost.items()],
        config=list(_flat(_public(config))),
        command=command,
        health=health,
        run_name=run.path.name,
    )
    return run.write_text("report.html", page)


def page_template(name: str) -> Any:
    """The page of that name, with the style that all pages share; all text put into it is escaped."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    def text(file: str) -> str:
        return files("twofold").joinpath(file).read_text(encoding="utf-8")

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals["style"] = Markup(text("report.css"))
    return environment.from_string(text(name))


# Pictures --------------------------------------------------------------------------------------------------------


def embedded(name: str, data: bytes, caption: str | None = None) -> _Picture:
    """A PNG as it stands in a page. Raises `InputError` for anything else."""
    if data[:8] != _PNG or len(data) < 24:
        raise InputError(f"the picture {name!r} is not a PNG file; give the bytes of `png_bytes`")
    width, height = struct.unpack(">II", data[16:24])
    uri = "data:image/png;base64," + base64.b64encode(data).decode("ascii")
    return _Picture(caption if caption is not None else _words(name), uri, width, height)


def _stored_pictures(run: Run) -> dict[str, list[tuple[int, str]]]:
    """{kind: [(examples, file)]}, ascending. samples/000000005000.png has the kind "samples"."""
    found: dict[str, list[tuple[int, str]]] = {}
    for file in run.files("samples", ".png"):
        match = _SAMPLE_FILE.fullmatch(file)
        if match:
            found.setdefault(match["kind"] or "samples", []).append((int(match["examples"]), file))
    return {kind: sorted(entries) for kind, entries in found.items()}


def _read_picture(run: Run, examples: int, file: str) -> _Picture:
    return embedded(file, run.read_bytes(file), f"after {examples:,} examples")


def _spread(entries: Sequence[tuple[int, str]], count: int) -> list[tuple[int, str]]:
    """At most `count` entries: the first, the last, and those between at about equal distances."""
    if len(entries) <= count:
        return list(entries)
    return [entries[round(index * (len(entries) - 1) / (count - 1))] for index in range(count)]


def _draw_curves(run: Run) -> bytes:
    from twofold.pictures import curves, png_bytes

    return png_bytes(curves(run.metrics()))


# Words and numbers -----------------------------------------------------------------------------------------------


def _summary(cost: Mapping[str, Any]) -> str:
    """ "60,000 examples in 3 min 20 s on cpu", of what `cost` knows."""
    parts = []
    if _is_number(cost.get("examples")):
        parts.append(f"{cost['examples']:,} examples")
    if _is_number(cost.get("seconds")):
        parts.append(f"in {_duration(cost['seconds'])}")
    if cost.get("device"):
        parts.append(f"on {cost['device']}")
    return " ".join(parts)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def quantity(name: str, value: Any) -> str:
    """A value as text, in the unit that its name says."""
    if not _is_number(value):
        return _text(value)
    if name == "seconds" or name.endswith("_seconds"):
        return _duration(value)
    if name.endswith("_bytes"):
        return _bytes(value)
    return _number(value)


def _number(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _bytes(count: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:,.0f} bytes"


def _words(name: str) -> str:
    name = str(name)
    return "time" if name == "seconds" else name.removesuffix("_bytes").removesuffix("_seconds").replace("_", " ")


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return repr(value)
    return str(value)


def _short(value: Any) -> str:
    """A recipe or a source of data in a title: its name, if it is a record."""
    if isinstance(value, Mapping):
        value = value.get("name") or value.get("source") or "data"
    return str(value)[:80]


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    """The record without what says where on this machine things lie: reports are passed on."""
    data = config.get("data")
    if not isinstance(data, Mapping):
        return dict(config)
    options = data.get("options")
    shown = {key: value for key, value in data.items() if key != "path_from_run"}
    shown["source"] = _last_name(data.get("source"))
    shown["options"] = {k: _last_name(v) for k, v in options.items()} if isinstance(options, Mapping) else options
    return {**config, "data": shown}


def _last_name(value: Any) -> Any:
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _flat(record: Any, prefix: str = "") -> Sequence[tuple[str, str]]:
    """A nested record as rows (dotted name, text)."""
    if isinstance(record, Mapping) and record:
        return [row for key, value in record.items() for row in _flat(value, f"{prefix}.{key}" if prefix else key)]
    if isinstance(record, list) and record and all(not isinstance(item, Mapping | list) for item in record):
        return [(prefix, ", ".join(map(_text, record)))]
    return [(prefix, _text(record))]


def _network_table(networks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Columns in the order of their first appearance, cells as text, and the sum of the parameters."""
    columns = list(dict.fromkeys(key for network in networks for key in network))
    rows = [[quantity(key, network[key]) if key in network else "" for key in columns] for network in networks]
    counts = [network["parameters"] for network in networks if _is_number(network.get("parameters"))]
    numeric = [all(_is_number(network[key]) for network in networks if key in network) for key in columns]
    return {"columns": [_words(key) for key in columns], "rows": rows, "numeric": numeric, "total": f"{sum(counts):,}"}
