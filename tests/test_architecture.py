"""The rules of docs/architecture.md that a program can check: who imports whom, what recipes may not contain, what
importing may not do, and that everything public says what it is for."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "twofold"
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
RECIPES = [name for name in FILES if name.startswith("recipes/") and name != "recipes/__init__.py"]

BASE = {"errors", "spec"}
MATHS = {*BASE, "game", "coefficients", "recipe", "terms", "nets", "latents", "decode"}
VERBS = {
    *("training", "using", "translating", "exploring", "scoring", "overview", "model", "evaluation", "comparison"),
    "health",
}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "spec": {"errors"},
    "game": set(),
    "coefficients": {"game"},
    "latents": {"errors"},
    "terms": BASE,
    "nets": BASE,
    "metrics": {*BASE, "game", "nets", "terms", "trained_once"},
    "decode": {"errors"},
    "data": BASE,
    "recipe": {*BASE, "game"},
    "rollouts": MATHS,
    "autoencoders": {*MATHS, "rollouts"},
    "joint_inference": {*MATHS, "rollouts", "autoencoders"},
    "introspection": {*MATHS, "rollouts", "autoencoders"},
    "autoregressive": {*MATHS, "rollouts"},
    "codes": {*MATHS, "rollouts"},
    "patch_game": MATHS,
    "translators": {*MATHS, "rollouts"},
    "recipes": {
        *MATHS,
        *("rollouts", "autoencoders", "joint_inference", "introspection", "autoregressive", "codes", "patch_game"),
        "translators",
    },
    "device": {"errors"},
    "compiling": {"errors", "terms"},
    "convolutions": set(),
    "run": {"errors"},
    "pictures": BASE,
    "report": {"errors", "run", "pictures"},
    "overview": {*BASE, "game", "recipe", "recipes"},
    "inversion": set(),
    "model": {*BASE, "data", "inversion", "latents", "recipe", "recipes", "run"},
    "using": {*BASE, "data", "model", "run", "pictures"},
    "translating": {*BASE, "data", "model", "run"},
    "exploring": {*BASE, "data", "model", "using", "pictures"},
    "scoring": {*BASE, "data", "metrics", "model", "using", "run", "pictures"},
    "trained_once": {"errors", "run"},
    "extractors": {*BASE, "data", "game", "nets", "trained_once"},
    "study": {*BASE, "data", "extractors", "metrics", "model"},
    "translation_figures": {*BASE, "metrics", "study"},
    "evaluation": {
        *BASE,
        *("data", "extractors", "metrics", "model", "recipes", "run", "study", "translation_figures", "using"),
    },
    "comparison_report": {"report", "run"},
    "comparison": {
        *BASE,
        "comparison_report",
        "data",
        "evaluation",
        "game",
        "metrics",
        "model",
        "pictures",
        "recipe",
        "recipes",
        "run",
        "study",
        "training",
    },
    "training": {
        *BASE,
        "compiling",
        "convolutions",
        "data",
        "device",
        "game",
        "health",
        "model",
        "pictures",
        "probing",
        "processes",
        "recipe",
        "recipes",
        "report",
        "resuming",
        "run",
        "sharding",
        "twofold",
    },
    "resuming": {"errors", "game", "sharding"},
    "sharding": {"errors", "game", "processes"},
    "processes": {"errors", "game"},
    "probing": {*BASE, "data", "game", "model", "recipe", "run", "terms"},
    "health": {"errors", "run", "model", "probing"},
    "display": VERBS,
    "cli": {"errors", "recipes", "data", "device", "display", "twofold", *VERBS},
    "sklearn": {*BASE, "data", "recipes", "training"},
    "__main__": {"cli"},
    "twofold": {*BASE, "recipes", *VERBS},
}
"""For each part of the package, the other parts it may import anywhere in it, types included. "twofold" is the package
itself: its version, and the names it hands on. docs/architecture.md has this as a table."""

CATALOGUE = {"errors", "spec", "recipe"}
"""What recipes/__init__.py may import; the recipes' modules it imports by name, when they are built."""

HEAVY_AT_TOP: dict[str, set[str]] = {
    part: {"torch"}
    for part in (
        "game",
        "coefficients",
        "terms",
        "nets",
        "decode",
        "latents",
        "recipe",
        "rollouts",
        "autoencoders",
        "joint_inference",
        "introspection",
        "autoregressive",
        "codes",
        "patch_game",
        "translators",
        "recipes",
    )
} | {
    "data": {"torch", "numpy"},
    "device": {"torch"},
    "compiling": {"torch"},
    "convolutions": {"torch"},
    "overview": {"torch"},
    "pictures": {"numpy"},
    "model": {"torch", "numpy"},
    "inversion": {"torch"},
    "using": {"torch", "numpy"},
    "exploring": {"torch", "numpy"},
    "scoring": {"torch", "numpy"},
    "translating": {"torch", "numpy"},
    "training": {"torch"},
    "extractors": {"torch"},
    "study": {"torch"},
    "translation_figures": {"torch"},
    "evaluation": {"torch"},
    "comparison": {"torch"},
    "metrics": {"torch", "numpy"},
    "resuming": {"torch"},
    "sharding": {"torch"},
    "processes": {"torch"},
    "probing": {"torch"},
    "sklearn": {"numpy", "sklearn"},
}
"""The packages from outside that a part may import when it is imported itself; every other part none."""

LIGHT = [
    "__init__.py",
    "__main__.py",
    "cli.py",
    "display.py",
    "run.py",
    "errors.py",
    "spec.py",
    "report.py",
    "comparison_report.py",
    "health.py",
]
LIGHT += ["recipes/__init__.py", "data/__init__.py", "data/catalogue.py"]

ROUTING_IN_RECIPES: dict[tuple[str, str], str] = {
    ("codes.py", "detach"): "the codebook's moving averages and restarts see plain numbers: sg[] of the paper",
    ("introspection.py", "detach"): "the encoder judges a reconstruction as given: sg[x_r] of IntroVAE's eq. 11",
}
"""(file, word): why this recipe may contain it: stop-gradients that are part of the objective."""


@dataclass(frozen=True)
class Import:
    """One imported module, e.g. "twofold.data.split"."""

    module: str
    line: int
    at_top: bool
    """Runs when the module is imported: outside functions, and not for types only."""


@cache
def tree(name: str) -> ast.Module:
    return ast.parse((PACKAGE / name).read_text(encoding="utf-8"))


def imports(name: str) -> list[Import]:
    return list(_imports(tree(name), at_top=True, package=["twofold", *name.split("/")[:-1]]))


def _imports(node: ast.AST, *, at_top: bool, package: list[str]) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, at_top) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            parents = package[: len(package) - child.level + 1] if child.level else []
            module = ".".join([*parents, *([child.module] if child.module else [])])
            for alias in child.names:
                inner = f"{module}.{alias.name}"
                yield Import(inner if _is_module(inner) else module, child.lineno, at_top)
        else:
            inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            yield from _imports(child, at_top=at_top and not inside and not for_types, package=package)


def _is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return name.startswith("twofold.") and (path.is_dir() or path.with_suffix(".py").is_file())


def part(module: str) -> str:
    """The part of the package that a module of it belongs to."""
    words = module.split(".")
    return words[1] if len(words) > 1 else "twofold"


def part_of_file(name: str) -> str:
    return part("twofold." + name.removesuffix(".py").replace("/", ".")) if name != "__init__.py" else "twofold"


def ours(name: str) -> list[Import]:
    return [found for found in imports(name) if found.module.split(".")[0] == "twofold"]


# Who imports whom.


@pytest.mark.parametrize("name", FILES)
def test_imports_within_the_package_point_one_way(name):
    own = part_of_file(name)
    assert own in MAY_IMPORT, f"{name} is new: say in MAY_IMPORT and docs/architecture.md what it may import"
    allowed = (CATALOGUE if name == "recipes/__init__.py" else MAY_IMPORT[own]) | {own}
    for found in ours(name):
        assert part(found.module) in allowed, f"{name}:{found.line} imports {found.module}; allowed: {sorted(allowed)}"


def test_the_rules_have_no_circles():
    done: list[str] = []
    left = {own: set(others) - {"twofold"} for own, others in MAY_IMPORT.items()}
    left["display"] -= VERBS  # for types only, as the next test checks
    while left:
        ready = sorted(own for own, others in left.items() if others <= {*done, own})
        assert ready, f"these import each other: {sorted(left)}"
        done += ready
        left = {own: others for own, others in left.items() if own not in ready}


def test_the_display_knows_verbs_by_their_types_only():
    assert not [found for found in ours("display.py") if found.at_top]


def test_no_rule_is_for_a_part_that_does_not_exist():
    assert set(MAY_IMPORT) == {part_of_file(name) for name in FILES}
    assert set(HEAVY_AT_TOP) <= set(MAY_IMPORT)


@pytest.mark.parametrize("name", FILES)
def test_nobody_imports_a_particular_recipe(name):
    for found in ours(name):
        assert not found.module.startswith("twofold.recipes."), f"{name}:{found.line} imports {found.module}"
    if name not in ("__init__.py", "data/__init__.py", "recipes/__init__.py"):
        words = {node.id for node in ast.walk(tree(name)) if isinstance(node, ast.Name)}
        assert not words & {"import_module", "__import__"}, f"{name} imports by name"


@pytest.mark.parametrize("name", FILES)
def test_packages_from_outside_are_imported_where_they_are_needed(name):
    allowed = set() if name in LIGHT else HEAVY_AT_TOP.get(part_of_file(name), set())
    for found in imports(name):
        outside = found.module.split(".")[0]
        if found.at_top and outside != "twofold" and outside not in sys.stdlib_module_names:
            assert outside in allowed, f"{name}:{found.line} imports {outside} when it is imported; allowed: {allowed}"


@pytest.mark.parametrize(
    "code",
    [
        "import twofold",
        "import twofold; twofold.recipes(); twofold.data.sources()",
        "from twofold.cli import main; assert main(['recipes']) == 0",
        "from twofold.cli import main; assert main(['data']) == 0",
        "from twofold.cli import main; assert main([]) == 0",
        "import twofold.run",
    ],
)
def test_heavy_packages_are_not_imported_before_they_are_needed(code):
    report = "import sys, json; print('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert "twofold" in loaded
    assert not loaded & {
        "torch",
        "numpy",
        "sklearn",
        "matplotlib",
        "PIL",
        "jinja2",
        "rich",
        "safetensors",
        "accelerate",
    }


# Routing.


@pytest.mark.parametrize(
    "name",
    [
        *RECIPES,
        *("rollouts.py", "autoencoders.py", "joint_inference.py", "introspection.py", "codes.py", "patch_game.py"),
    ],
)
@pytest.mark.parametrize("word", ["backward", "zero_grad", "requires_grad_", "requires_grad", "detach", "no_grad"])
def test_recipes_do_not_route_gradient(name, word):
    used = [
        node.lineno
        for node in ast.walk(tree(name))
        if (isinstance(node, ast.Attribute) and node.attr == word) or (isinstance(node, ast.Name) and node.id == word)
    ]
    assert not used or (name, word) in ROUTING_IN_RECIPES, f"{name}, lines {used}: {word} belongs into game.py"


@pytest.mark.parametrize("name", FILES)
def test_only_the_game_calls_backward_and_steps_optimizers(name):
    called = {
        node.func.attr
        for node in ast.walk(tree(name))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    if name == "game.py":
        assert "backward" in called
    else:
        assert not called & {"backward", "zero_grad"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_docstring_has_its_parts(name):
    text = ast.get_docstring(tree(name)) or ""
    assert re.search(r"\((?:\w|[&.,;’' -])+ \d{4}|et al\. \d{4}", text), f"{name} names no paper"
    assert "\nRouting:\n" in text, f"{name} has no routing table"
    found = re.search(r"^Deviations: (.+)", text, re.MULTILINE | re.DOTALL)
    assert found and len(found[1].split()) >= 4, f"{name} does not say where it deviates from its paper"


# What everything public has.


@pytest.mark.parametrize("name", FILES)
def test_modules_public_classes_and_functions_say_what_they_are_for(name):
    assert ast.get_docstring(tree(name)), f"{name} has no docstring"
    for node in tree(name).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
            # A recipe's Config is described by its module; its fields say what they mean (tests/test_recipes.py).
            config = name in RECIPES and node.name == "Config"
            assert config or ast.get_docstring(node), f"{name}:{node.lineno} {node.name} has no docstring"


@pytest.mark.parametrize("name", FILES)
def test_names_say_what_things_do(name):
    defined = [
        node.name
        for node in ast.walk(tree(name))
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    for given in [*name.removesuffix(".py").split("/"), *defined]:
        words = set(re.findall(r"[a-z]+|[A-Z][a-z]*", given))
        empty = {"util", "utils", "misc", "helper", "helpers", "manager", "Util", "Utils", "Misc", "Helper", "Manager"}
        assert not words & empty, f"{name}: {given}"


@pytest.mark.parametrize("name", FILES)
def test_importing_a_module_does_nothing(name):
    """Definitions and constants at the top of a module, no calls for their effect."""
    for node in tree(name).body:
        allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.AugAssign)
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        entry = name == "__main__.py" and isinstance(node, ast.Expr)
        assert isinstance(node, allowed) or docstring or for_types or entry, f"{name}:{node.lineno}"


@pytest.mark.parametrize("name", FILES)
def test_no_state_is_shared_between_callers(name):
    """No `global`, and no seeding or threads set for the whole process outside a fork of torch's random state."""
    for node in ast.walk(tree(name)):
        assert not isinstance(node, ast.Global), f"{name}:{node.lineno}: global"
        if isinstance(node, ast.Attribute) and node.attr in (
            "set_num_threads",
            "set_default_dtype",
            "set_default_device",
        ):
            raise AssertionError(f"{name}:{node.lineno}: {node.attr}")
        if isinstance(node, ast.Attribute) and ast.unparse(node) in (
            "np.random.seed",
            "numpy.random.seed",
            "random.seed",
        ):
            raise AssertionError(f"{name}:{node.lineno}: seeds numpy for everyone")
    seeded = [node for node in ast.walk(tree(name)) if isinstance(node, ast.Attribute) and node.attr == "manual_seed"]
    if name == "processes.py":
        return  # its one seed is given inside training's fork, step by step
    if any(ast.unparse(node) == "torch.manual_seed" for node in seeded):
        assert "fork_rng" in ast.unparse(tree(name)), f"{name} seeds torch for everyone"


# The tools of this file.


def test_the_walk_sees_every_kind_of_import(monkeypatch):
    code = """
import torch.nn as nn
from twofold import recipes, __version__
from .split import Data
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import numpy
class A:
    import rich
    def f(self):
        from twofold.data import load
"""
    monkeypatch.setattr(sys.modules[__name__], "tree", lambda name: ast.parse(code))
    found = {(i.module, i.at_top) for i in imports("data/x.py")}
    assert found >= {("torch.nn", True), ("twofold.recipes", True), ("twofold", True), ("twofold.data.split", True)}
    assert found >= {("numpy", False), ("rich", True), ("twofold.data", False)}
    assert part("twofold.data.split") == "data" and part("twofold") == "twofold"
    assert part_of_file("recipes/vae.py") == "recipes" and part_of_file("__init__.py") == "twofold"
