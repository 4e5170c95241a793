"""What a recipe is before it is trained: routing table, phases, networks, settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from twofold import recipes
from twofold.game import describe, table
from twofold.recipe import optimizer_text
from twofold.spec import Spec

EXAMPLE = Spec("image", (1, 28, 28), classes=10, layout="HW")
"""What `show` builds a recipe for when no data is named: MNIST's shape."""
PAIRS = Spec("image", (3, 64, 64), layout="HWC", input=Spec("image", (3, 64, 64), layout="HWC"))
"""The same for recipes on pairs."""
PAPER_PAIRS = Spec("image", (3, 256, 256), layout="HWC", input=Spec("image", (3, 256, 256), layout="HWC"))
"""The same for those whose networks are for large images."""


def example(name: str) -> Spec:
    """What `show` builds the recipe of that name for: `EXAMPLE`, or colour images of the one size that the recipe's
    networks are made for, or pairs."""
    entry = recipes.find(name)
    if entry.data_kinds[0].endswith("pair"):
        return PAIRS if "vector-pair" in entry.data_kinds else PAPER_PAIRS
    return EXAMPLE if entry.side is None else Spec("image", (3, entry.side, entry.side), classes=10)


def show(name: str, *, spec: Spec | None = None, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The recipe as plain data: {name, stages: [{name, players: {NAME: parameters}, phases: [{name, repeats, every,
    terms: [{name, every, to: {player: number or text}}]}]}]}.

    Raises `InputError` for an unknown name or option.
    """
    _, recipe = _build(name, spec or example(name), options)
    return {"name": name, "stages": [describe(stage) for stage in recipe.stages]}


def show_text(name: str, *, spec: Spec | None = None, options: Mapping[str, Any] | None = None) -> str:
    """The same for people, with the networks' layers and the resolved Config."""
    entry = recipes.find(name)
    config, recipe = _build(name, spec or example(name), options)
    lines = [f"{name}: {entry.summary}", f"{entry.paper} ({entry.year})", ""]
    for stage in recipe.stages:
        title = f"stage {stage.name}, " if len(recipe.stages) > 1 else ""
        lines += [f"{title}routing (term's coefficient in each player's objective; · is exactly no gradient)"]
        lines += ["  " + line for line in table(stage.game).splitlines()]
        lines += [""]
        for player, parameters in describe(stage)["players"].items():
            optimizer = stage.game.players[player].optimizer
            lines.append(f"  {player:<16}{parameters:>12,} parameters   {optimizer_text(optimizer)}")
        lines += [""]
    shape = "×".join(map(str, recipe.spec.shape))
    if recipe.spec.input is not None:
        shape = "×".join(map(str, recipe.spec.input.shape)) + f" → {shape}"
    lines.append(f"networks for {recipe.spec.data_kind}s of {shape}")
    for player, net in recipe.nets.items():
        lines += [f"  {player}: " + str(net).replace("\n", "\n  ")]
    lines += ["", "options"]
    lines += [f"  --{key.replace('_', '-'):<32}{value_text(value)}" for key, value in asdict(config).items()]
    return "\n".join(lines)


def value_text(value: Any) -> str:
    """An option's value as the command line says it: none, yes and no instead of Python's words."""
    words = {None: "none", True: "yes", False: "no"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def _build(name: str, spec: Spec | None, options: Mapping[str, Any] | None) -> tuple[Any, Any]:
    with torch.random.fork_rng(devices=[]):
        return recipes.build(name, spec or example(name), options)
