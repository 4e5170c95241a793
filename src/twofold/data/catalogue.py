"""The built-in sources, as a list that imports nothing heavy: the command line prints it in `--help`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """One built-in source."""

    name: str
    """What to give to `load` and to `--data`."""
    description: str
    """One line: what an example is, and what is known about it."""
    kind: str
    """"image" or "vector"."""
    shape: tuple[int, ...]
    """(channels, height, width) or (features,), as models see one example."""
    examples: int
    """Number of examples, all splits together."""
    input_shape: tuple[int, ...] | None = None
    """Of pairs: the input's shape; `shape` is the target's."""


HUB = "hub:"
"""What stands before the name of a set of the Hugging Face hub."""

_SOURCES = (
    Source("digits", "handwritten digits, grey levels 0 to 16, labelled (scikit-learn)", "image", (1, 8, 8), 1797),
    Source("color-digits", "the digits, each tinted with a random hue; label and hue known", "image", (3, 8, 8), 1797),
    Source("shapes", "dSprites-like sprites on the full grid of six known factors", "image", (1, 64, 64), 737_280),
    Source("shapes-32", "the same sprites drawn at 32 x 32", "image", (1, 32, 32), 737_280),
    Source("gaussians-8", "a ring of 8 narrow Gaussians; label = mode", "vector", (2,), 100_000),
    Source("gaussians-25", "a 5 x 5 grid of narrow Gaussians; label = mode", "vector", (2,), 100_000),
    Source(
        "edges-shapes",
        "pairs: a sprite's outline, the sprite in a random colour",
        "image",
        (3, 32, 32),
        4500,
        (1, 32, 32),
    ),
    Source("digits-color-digits", "pairs: a digit, the digit in a random colour", "image", (3, 8, 8), 1797, (1, 8, 8)),
    Source("affine-2d", "no pairs: four blobs, and the same stretched and moved", "vector", (2,), 20_000, (2,)),
    Source("two-modes", "pairs: a number, the number plus or minus 1", "vector", (1,), 20_000, (1,)),
)


def sources() -> list[Source]:
    """The built-in sources, none of which needs a download.

    >>> [source.name for source in sources()][:2]
    ['digits', 'color-digits']
    """
    return list(_SOURCES)


def is_name(source: str) -> bool:
    """Whether `load` takes this for a name, of a built-in source or of a set of the hub, and not for a path."""
    return is_built_in(source) or source.startswith(HUB)


def is_built_in(source: str) -> bool:
    """Whether `load` takes this name for a built-in source, not for a path."""
    return source in {known.name for known in sources()}
