"""The report page: complete, escaped, and loading nothing from anywhere."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twofold import report as report_module
from twofold.errors import InputError
from twofold.pictures import png_bytes
from twofold.report import write_report
from twofold.run import Run

CONFIG = {
    "recipe": "vae-gan",
    "data": {"name": "digits", "train": 1500},
    "config": {"gamma": 1e-2, "widths": [32, 64], "equilibrium": None, "share": True, "nested": [[1, 2]], "empty": {}},
}


class Page(HTMLParser):
    """Tags, attributes and visible text of a page; fails on a tag that is never closed."""

    VOID = ("meta", "img", "link", "br", "hr", "input")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "title"):
            self.text.append(data)

    def images(self) -> dict[str, bytes]:
        """{alternative text: PNG}."""
        found = {}
        for tag, attributes in self.tags:
            if tag == "img":
                head, _, body = (attributes["src"] or "").partition(",")
                assert head == "data:image/png;base64"
                found[attributes["alt"] or ""] = base64.b64decode(body, validate=True)
        return found

    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def png(level: int) -> bytes:
    return png_bytes(Image.fromarray(np.full((3, 5), level, np.uint8)))


def level(data: bytes) -> int:
    return int(np.asarray(Image.open(io.BytesIO(data)))[0, 0])


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.create(tmp_path / "my-run", CONFIG)
    for examples in (100, 200, 300):
        run.append_metrics({"examples": examples, "kl": 1.0 / examples})
    return run


def write(run: Run, **changes) -> tuple[str, Page]:
    arguments = {
        "routing": "term   encoder\nkl          +1\n",
        "phases": "one phase, all terms",
        "networks": [{"name": "encoder", "parameters": 1234}, {"name": "decoder", "parameters": 5000, "output": "x"}],
        "cost": {"examples": 60000, "seconds": 203.2, "device": "cpu", "peak_memory_bytes": 3 * 2**29},
        "pictures": {},
        "command": "twofold train vae-gan --data digits",
    }
    path = write_report(run, **{**arguments, **changes})
    assert path == run.path / "report.html"
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_the_page_says_everything(run: Run) -> None:
    text, page = write(run)
    words = page.words()
    assert "<title>vae-gan on digits · Twofold</title>" in text
    assert "A report of one training run: 60,000 examples in 3 min 23 s on cpu." in words
    assert "encoder 1,234 decoder 5,000 x 6,234 parameters in all" in words
    assert "peak memory 1.5 GiB" in words
    assert "twofold train vae-gan --data digits" in words
    assert "term   encoder\nkl          +1" in "".join(page.text)  # spaces kept
    assert "one phase, all terms" in words
    for row in ("data.name digits", "data.train 1500", "config.gamma 0.01", "config.widths 32, 64", "config.share yes",
                "config.equilibrium none", "config.nested [[1, 2]]", "config.empty {}", "recipe vae-gan"):  # fmt: skip
        assert row in words
    assert "my-run" in words


def test_the_page_loads_nothing(run: Run) -> None:
    run.write_bytes("samples/000000000100.png", png(1))
    text, page = write(run, pictures={"samples": png(9), "reconstructions": png(8), "traversal": png(7)})
    assert not re.search(r"https?://|//cdn|@import|url\(|javascript:", text)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "form", "base"}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    policy = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_given_pictures_have_their_places(run: Run) -> None:
    given = {"samples": png(1), "reconstructions": png(2), "curves": png(3), "latent_traversal": png(4)}
    _, page = write(run, pictures=given)
    assert page.images() == {
        "Samples of the trained model": png(1),
        "Data and their reconstructions": png(2),
        "Each metric over the examples seen": png(3),
        "latent traversal": png(4),
    }
    assert "Latent traversal" in page.words()
    sizes = {(a["width"], a["height"]) for tag, a in page.tags if tag == "img"}
    assert sizes == {("5", "3")}


def test_missing_pictures_come_from_the_run(run: Run) -> None:
    for number, examples in enumerate((0, 5, 20, 100, 1000, 5000, 20000)):
        run.write_bytes(f"samples/{examples:012d}.png", png(number))
        run.write_bytes(f"samples/reconstructions-{examples:012d}.png", png(100 + number))
    run.write_bytes("samples/not-a-number.png", png(200))
    run.write_bytes("samples/notes.txt", b"")
    _, page = write(run)
    images = page.images()
    assert level(images["Samples of the trained model"]) == 6
    assert level(images["Data and their reconstructions"]) == 106
    progress = {name: level(data) for name, data in images.items() if name.startswith("Samples after")}
    assert list(progress.items()) == [
        ("Samples after 0 examples", 0),
        ("Samples after 20 examples", 2),
        ("Samples after 1,000 examples", 4),
        ("Samples after 20,000 examples", 6),
    ]
    curves = Image.open(io.BytesIO(images["Each metric over the examples seen"]))
    assert curves.width > 400


def test_a_run_without_pictures_metrics_and_cost_still_has_a_page(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "bare", {})
    _, page = write(run, networks=[], cost={}, phases="", command="")
    assert list(page.images()) == ["Each metric over the examples seen"]
    words = page.words()
    assert "a model on data" in words and "0 parameters in all" in words and "of one training run. It" in words
    for absent in ("Samples", "Reconstructions"):
        assert absent not in words


HOSTILE = "</pre></title><script>alert(1)</script><img src=x onerror=alert(1)>\"'&{{ 7*7 }}"


def test_everything_is_escaped(tmp_path: Path) -> None:
    config = {"recipe": HOSTILE, "data": HOSTILE, HOSTILE: HOSTILE, "list": [HOSTILE]}
    run = Run.create(tmp_path / "<b>run</b>", config)
    text, page = write(
        run,
        routing=HOSTILE, phases=HOSTILE, command=HOSTILE, cost={HOSTILE: HOSTILE, "device": HOSTILE},
        networks=[{"name": HOSTILE, "parameters": HOSTILE, HOSTILE: HOSTILE}], pictures={HOSTILE: png(1)},
    )  # fmt: skip
    assert "<script" not in text and "onerror=alert(1)>" not in text and "<b>" not in text
    assert not [tag for tag, _ in page.tags if tag in ("script", "b")]
    assert all(set(a) == {"class", "src", "width", "height", "alt"} for tag, a in page.tags if tag == "img")
    assert page.words().count("{{ 7*7 }}") >= 10  # shown, not evaluated


def test_refusals_leave_the_old_page(run: Run) -> None:
    text, _ = write(run)
    with pytest.raises(InputError, match="the picture 'samples' is not a PNG file; give the bytes of `png_bytes`"):
        write(run, pictures={"samples": b"GIF89a" + bytes(40)})
    with pytest.raises(InputError, match="the picture 'x' is not a PNG file"):
        write(run, pictures={"x": png(1)[:20]})
    (run.path / "metrics.jsonl").write_text('rubbish\n{"examples": 1}\n')
    with pytest.raises(InputError, match="line 1 is not a record"):
        write(run)
    assert (run.path / "report.html").read_text(encoding="utf-8") == text


def test_writing_again_replaces_the_page_and_repeats(run: Run) -> None:
    first, _ = write(run)
    again, _ = write(run)
    other, _ = write(run, command="another")
    assert first == again != other
    assert [path.name for path in run.path.glob("*.html")] == ["report.html"]


def test_quantities_in_words() -> None:
    quantity = report_module.quantity
    assert [quantity("seconds", value) for value in (0.1234, 59.9, 60, 3599.6, 3661, 360000)] == [
        "0.123 s", "59.9 s", "1 min 00 s", "1 h 00 min", "1 h 01 min", "100 h 00 min",
    ]  # fmt: skip
    assert [quantity("peak_memory_bytes", value) for value in (0, 1023, 2**20, 5.5 * 2**30)] == [
        "0 bytes", "1,023 bytes", "1 MiB", "5.5 GiB",
    ]  # fmt: skip
    assert [quantity("x", value) for value in (1234567, 0.123456, 12345.6, 1e20, True, None, float("nan"), "cpu")] == [
        "1,234,567", "0.1235", "12,346", "1e+20", "yes", "none", "nan", "cpu",
    ]  # fmt: skip


def test_progress_takes_first_some_and_last() -> None:
    spread = report_module._spread
    for count in range(12):
        entries = [(number, "") for number in range(count)]
        chosen = [number for number, _ in spread(entries, 4)]
        assert len(chosen) == min(count, 4) and len(set(chosen)) == len(chosen) and chosen == sorted(chosen)
        if count:
            assert chosen[0] == 0 and chosen[-1] == count - 1
