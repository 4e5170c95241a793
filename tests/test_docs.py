"""The documentation is true: its commands and Python blocks run, its outputs are real, its links lead somewhere.

Every ```console line that starts with "$ twofold" is run through the command line's own `main`, in a fresh folder that
holds the files which the pages speak of (`photos`, `streets`, `arrays.npz`, `table.csv`). The only thing changed is the
length of training: `--examples N` becomes N / 1000 and at least 128 (`shortened`), and so does `examples=` in Python;
the networks that measure (classifier, critic) train for less long too.
Lines below a command are its output and must stand in the real one, in one piece; a line "..." stands for anything.
"""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch

import twofold
from twofold import evaluation, extractors, recipes
from twofold.cli import main
from twofold.data import sources
from twofold.errors import InputError
from twofold.spec import Spec

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
PAGE_IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]
LEAST_EXAMPLES = 128


# Reading the pages.


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    line: int


def blocks(text: str) -> list[Block]:
    found, opened, kept, start = [], None, [], 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            if opened is None:
                opened, kept, start = line[3:].strip(), [], number
            else:
                found.append(Block(opened, "\n".join(kept) + "\n", start))
                opened = None
        elif opened is not None:
            kept.append(line)
    assert opened is None, f"the block at line {start} is not closed"
    return found


def commands(block: Block) -> list[tuple[list[str], list[str]]]:
    """(words, lines of output shown) of each "$ …" line."""
    found: list[tuple[list[str], list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((shlex.split(line[2:], comments=True), []))
        else:
            assert found, f"output before any command: {line!r}"
            found[-1][1].append(line)
    return found


def all_commands(page: Path) -> list[tuple[list[str], list[str]]]:
    return [found for block in blocks(page.read_text()) if block.language == "console" for found in commands(block)]


def shortened(words: list[str]) -> list[str]:
    """A training command at a thousandth of its length, a comparison with one seed. Nothing else is changed."""
    if words[0] not in ("train", "compare") or "--help" in words:
        return words
    if "--examples" not in words:
        return [*words, "--examples", str(LEAST_EXAMPLES)]
    words = (
        [*words[: words.index("--seeds") + 1], "1", *words[words.index("--seeds") + 2 :]]
        if "--seeds" in words
        else words
    )
    k = words.index("--examples") + 1
    return [*words[:k], str(fewer(words[k])), *words[k + 1 :]]


def fewer(examples: str) -> int:
    return max(LEAST_EXAMPLES, int(examples) // 1000)


def matches(shown: list[str], real: str) -> bool:
    """Whether the output shown stands in the real one, "..." standing for any number of lines."""
    pieces: list[list[str]] = [[]]
    for line in shown:
        if line.strip() == "...":
            pieces.append([])
        else:
            pieces[-1].append(line.rstrip())
    lines, at = [line.rstrip() for line in real.splitlines()], 0
    for k, piece in enumerate(pieces):
        starts = [0] if k == 0 else range(at, len(lines) - len(piece) + 1)
        if k and k == len(pieces) - 1 and piece:
            starts = [len(lines) - len(piece)]
        found = next((s for s in starts if s >= at and lines[s : s + len(piece)] == piece), None)
        if found is None:
            return False
        at = found + len(piece)
    return len(pieces) > 1 or not shown or at == len(lines)


# Running them.


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working folder with the files of which the pages speak."""
    from PIL import Image

    monkeypatch.setenv("TWOFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(extractors, "LEAST_EXAMPLES", 3_000)
    monkeypatch.setattr(extractors, "PASSES", 2)
    monkeypatch.setattr(evaluation, "CRITIC_STEPS", 10)
    random = np.random.RandomState(0)
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for k in range(40):
            pixels = random.randint(0, 256, (40 + k % 3, 36, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{k:02}.png")
    for side in ("labels", "pictures"):
        (tmp_path / "streets" / side).mkdir(parents=True)
        for k in range(40):
            Image.fromarray(random.randint(0, 256, (24, 32, 3), dtype=np.uint8)).save(
                tmp_path / "streets" / side / f"{k:02}.png"
            )
    images = random.randint(0, 256, (100, 12, 12), dtype=np.uint8)
    np.savez(tmp_path / "arrays.npz", x=images, y=np.arange(100) % 5)
    rows = [f"{a:.3f},{b:.3f},{c:.3f},{'ab'[k % 2]}" for k, (a, b, c) in enumerate(random.randn(120, 3))]
    (tmp_path / "table.csv").write_text("\n".join(["length,width,mass,species", *rows]) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def wae_mmd(tmp_path, monkeypatch) -> None:
    """The recipe that docs/adding-a-recipe.md adds, added as the page says."""
    page = (ROOT / "docs" / "adding-a-recipe.md").read_text()
    python = [block.text for block in blocks(page) if block.language == "python"]
    file = next(text for text in python if text.startswith("# src/twofold/recipes/wae_mmd.py\n"))
    entry = next(text for text in python if text.startswith("Entry("))
    (tmp_path / "wae_mmd.py").write_text(file)
    monkeypatch.setattr(recipes, "__path__", [*recipes.__path__, str(tmp_path)])
    monkeypatch.setattr(recipes, "ENTRIES", (*recipes.ENTRIES, eval(entry, vars(recipes))))
    monkeypatch.delitem(sys.modules, "twofold.recipes.wae_mmd", raising=False)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(words: list[str], shown: list[str], capsys) -> None:
    capsys.readouterr()
    code = main(shortened(words[1:]))
    captured = capsys.readouterr()
    assert code == 0, f"{shlex.join(words)}: {captured.err}"
    assert not shown or matches(shown, captured.out), f"{shlex.join(words)} prints\n{captured.out}"


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_every_command_runs_and_prints_what_is_shown(page, folder, wae_mmd, capsys):
    for words, shown in all_commands(page):
        if words[0] == "twofold":
            run(words, shown, capsys)
        else:
            assert words[0] == "make", f"{page.name}: a command that no test runs: {shlex.join(words)}"


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_every_python_block_runs(page, folder, wae_mmd):
    names: dict[str, object] = {}
    for block in blocks(page.read_text()):
        # Parts of the package are added by the fixture and used by the tests below.
        if block.language == "python" and not block.text.startswith(("# src/", "Entry(")):
            text = re.sub(r"(?<=examples=)[\d_]+", lambda found: str(fewer(found[0])), block.text)
            exec(compile(text, f"{page.name}:{block.line}", "exec"), names)
    if page.name == "README.md":
        check_the_readmes_session(names)


def check_the_readmes_session(names: dict) -> None:
    """What the comments of the README's Python session say."""
    x, z, x_rec = names["x"], names["z"], names["x_rec"]
    assert x.shape == (16, 8, 8) and x.dtype == np.float64 and 0 <= x.min() <= x.max() <= 16
    assert z.shape == (16, 32) and z.dtype == np.float32
    assert x_rec.shape == (16, 8, 8)
    assert np.array_equal(names["model"].sample(16, seed=0), x)


# The worked example.


BATTERY = (
    "test_each_players_gradient_is_that_of_its_own_row",
    "test_terms_reach_only_the_players_in_their_row",
    "test_each_players_objective_falls_on_eight_examples",
    "test_samples_obey_the_spec_and_repeat_under_a_seed",
)
BATTERY_BY_NAME = (
    "test_the_docstring_holds_the_table_that_is_printed",
    "test_players_that_are_not_due_keep_their_bytes",
    "test_claimed_abilities_are_those_of_the_model_and_work",
    "test_every_option_has_help_and_a_default_of_its_type",
)


def test_the_worked_recipe_passes_the_common_tests(wae_mmd):
    battery = importlib.import_module("test_recipes")
    for name in BATTERY:
        for spec in (battery.IMAGE, battery.VECTOR):
            getattr(battery, name)("wae-mmd", spec)
    for name in BATTERY_BY_NAME:
        getattr(battery, name)("wae-mmd")


def test_the_worked_recipes_own_check(wae_mmd):
    """Codes approach the prior, and do not without the term: the page's suggestion for a test."""
    from twofold.game import begin, step
    from twofold.latents import prior
    from twofold.terms.divergence import mmd

    spec = Spec("vector", (4,), layout="D", dtype="float32")
    x = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))

    def distance(weight: float) -> tuple[float, float]:
        torch.manual_seed(0)
        _, recipe = recipes.build("wae-mmd", spec, {"latent": 2, "width": 16, "mmd_weight": weight})
        game = recipe.stages[0].game
        progress = begin(game)
        z_p = prior(256, 2, like=x, generator=torch.Generator().manual_seed(1))

        def now() -> float:
            with torch.no_grad():
                return float(mmd(game.nets["encoder"](x), z_p, kernel="imq"))

        before = now()
        for _ in range(80):
            step(game, progress, lambda: {"x": x})
        return before, now()

    before, after = distance(10.0)
    _, without = distance(0.0)
    assert after < 0.2 * before and after < 0.2 * without
    with pytest.raises(InputError, match="mmd_weight is -1"):
        recipes.build("wae-mmd", spec, {"mmd_weight": -1.0})


# Make.


def makefile() -> dict[str, list[str]]:
    """The recipe lines of each target."""
    rules: dict[str, list[str]] = {}
    target = None
    for line in (ROOT / "Makefile").read_text().splitlines():
        if found := re.match(r"([A-Za-z][\w-]*):(?!=)", line):
            target = rules.setdefault(found[1], [])
        elif line.startswith("\t") and target is not None:
            target.append(line.strip())
        elif not line.startswith("\t"):
            target = None
    return rules


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_every_make_target_that_is_named_exists(page):
    text = page.read_text()
    named = {words[1] for words, _ in all_commands(page) if words[0] == "make"}
    named |= set(re.findall(r"`make ([a-z-]+)", text))
    assert named <= makefile().keys()
    assert page.name != "README.md" or {"demo", "test"} <= named


def test_the_demos_commands_run_and_leave_what_they_promise(folder, capsys):
    lines = [line.removeprefix("@") for line in makefile()["demo"]]
    for line in lines:
        if line.startswith("$(BIN)/twofold "):
            run(["twofold", *shlex.split(line)[1:]], [], capsys)
    promised = re.findall(r"runs/[\w./-]+\.(?:html|png)", lines[-1])
    assert len(promised) == 3 and all(Path(name).is_file() for name in promised)


def test_the_commands_in_ci_are_the_readmes():
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert any("pytest" in line for line in makefile()["test"])
    assert {"ruff", "mypy"} <= {word for line in makefile()["lint"] for word in re.findall(r"\w+", line)}


# What the pages list.


def table_names(text: str) -> list[str]:
    """The names in backquotes that start the rows of tables."""
    return re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)


def test_the_readme_lists_every_recipe():
    """A row names a system and its presets, and the family; a preset of another family is named with it."""
    text = (ROOT / "README.md").read_text()
    rows = [line.split("|")[1:3] for line in text.splitlines() if re.match(r"\| `[^|]+` \| \w+", line)]
    listed = {}
    for names, families in rows:
        family, *others = families.split(",")
        own = dict(re.findall(r"`([^`]+)` (\w+)", " ".join(others)))
        listed |= {name: own.get(name, family.strip()) for name in re.findall(r"`([^`]+)`", names)}
    assert listed == {entry.name: entry.family for entry in recipes.ENTRIES}
    assert len(text.splitlines()) < 200


def test_the_data_page_lists_every_built_in_source_with_its_facts():
    text = (ROOT / "docs" / "data.md").read_text()
    for source in sources():
        shape = "×".join(map(str, source.shape))
        if source.input_shape is not None:
            shape = "×".join(map(str, source.input_shape)) + f" → {shape}"
        assert f"| `{source.name}` | {source.kind} {shape} | {source.examples:,} |" in text
    built_in = {source.name for source in sources()}
    assert built_in <= set(table_names(text))


def test_the_changelog_begins_with_this_version():
    heading = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heading is not None and heading[1].rstrip(",") == twofold.__version__
    assert f'version = "{twofold.__version__}"' in (ROOT / "pyproject.toml").read_text()


# Links.


def anchors(text: str) -> set[str]:
    """The anchors that a page's headings get where Markdown is shown."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text())):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / unquote(name)) if name else page
        assert file.exists(), f"{page.name} links to {target}, which is not there"
        assert not anchor or anchor in anchors(file.read_text()), f"{page.name} links to {target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_files_that_are_named_exist(page):
    """Names in backquotes that look like files of this repository."""
    for name in re.findall(r"`((?:src|tests|docs|bench|recipes|terms|data)/[\w/.-]*\w\.(?:py|md))`", page.read_text()):
        places = [ROOT / name, ROOT / "src" / "twofold" / name]
        assert any(place.exists() for place in places) or "wae_mmd" in name, f"{page.name} names {name}"


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "CHANGELOG.md"], ids=lambda p: p.name)
def test_pictures_have_words_for_those_who_do_not_see_them(page):
    for words in re.findall(r"!\[([^\]]*)\]", page.read_text()):
        assert len(words.split()) >= 5


# The package's own examples.


def modules() -> list[str]:
    names = [m.name for m in pkgutil.walk_packages(twofold.__path__, "twofold.") if m.name != "twofold.__main__"]
    return ["twofold", *names]


@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings(name, tmp_path):
    module = importlib.import_module(name)
    results = doctest.testmod(module, extraglobs={"twofold": twofold, "torch": torch, "np": np, "tmp": tmp_path})
    assert results.failed == 0


def test_there_are_examples_in_docstrings():
    """Finding none would mean that the test above looks in the wrong place."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test for name in modules() for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(found) > 20


# What must not be there.


def texts() -> list[Path]:
    """Every text file of the repository, but this one, which names what it looks for."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode == 0:
        files = [ROOT / name for name in listed.stdout.splitlines()]
    else:  # an unpacked archive
        files = [path for top in ("src", "tests", "docs", "bench") for path in (ROOT / top).rglob("*")]
    kept = {".py", ".md", ".toml", ".txt", ".html", ".cfg", ".yml", ".yaml", ""}
    return [path for path in files if path.is_file() and path.suffix in kept and path != Path(__file__).resolve()]


def test_no_text_names_a_machines_paths_or_a_registrys_host():
    path = re.compile(r"(?<![\w.\-/<])/(?:work|root|home|tmp|opt|mnt|Users)/")
    hosts = re.compile(
        r"pypi|pythonhosted|conda\.anaconda|download\.pytorch|(?:https?|file)://[\w.]*index", re.IGNORECASE
    )
    files = texts()
    assert len(files) > 50
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert not hosts.search(text), f"{file.relative_to(ROOT)}: {hosts.search(text)}"
        if file.parent != ROOT / "tests":
            assert not path.search(text), f"{file.relative_to(ROOT)}: {path.search(text)}"


# The tools of this file.


def test_the_reader_of_blocks_and_outputs():
    page = "a\n```console\n$ twofold show x  # why\nout\n...\nend\n$ make test\n```\n"
    (block,) = blocks(page)
    assert (block.language, block.line) == ("console", 2)
    assert commands(block) == [(["twofold", "show", "x"], ["out", "...", "end"]), (["make", "test"], [])]
    assert matches(["out", "...", "end"], "out\nmiddle\nend\n") and matches(["..."], "anything")
    assert matches(["...", "middle", "..."], "out\nmiddle\nend\n")
    assert not matches(["out"], "out\nmore\n") and not matches(["other", "..."], "out\n")
    assert not matches(["...", "out"], "out\nend\n") and not matches(["...", "end", "...", "out"], "out\nend\n")
    assert not matches(["...", "middle", "other", "..."], "out\nmiddle\nend\n")
    with pytest.raises(AssertionError, match="not closed"):
        blocks("```python\n")


def test_only_the_length_of_training_is_changed():
    assert shortened(["show", "vae"]) == ["show", "vae"]
    assert shortened(["train", "vae", "--examples", "200000", "--resume"]) == [
        "train", "vae", "--examples", "200", "--resume",
    ]  # fmt: skip
    assert shortened(["train", "vae"])[-2:] == ["--examples", "128"]
