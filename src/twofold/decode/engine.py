"""The decoding loop: one token a row and step, whatever a token stands for.

The engine knows tokens, rows, windows and prompts. What a token means, how positions are laid out and what is kept
between steps is the model's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from twofold.decode.noise import uniforms_from
from twofold.decode.sampler import Sampler
from twofold.errors import InputError

Condition = Mapping[str, Tensor]
"""What rows are conditioned on, by name; the first axis of every tensor is the rows."""

LOOK_EVERY = 16
"""Tokens between two looks at whether every row has stopped, on devices where looking waits."""


class SequenceModel(Protocol):
    """A model of sequences of tokens, each row's next token given its earlier ones.

    Calling it is the pass that trains: tokens (rows, n) int64 → logits (rows, n, vocabulary), where the logits at a
    place depend on the tokens before that place only. `start` and `step` compute the same numbers token by token.
    """

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""

    @property
    def window(self) -> int | None:
        """The most tokens whose logits follow from one start; None: any number."""

    @property
    def slides(self) -> bool:
        """Whether a full window may be left: the last tokens begin a new one. False where tokens have fixed places."""

    def __call__(self, tokens: Tensor, condition: Condition | None = None) -> Tensor:
        """Logits (rows, n, vocabulary) of all places at once."""

    def start(self, rows: int, condition: Condition | None = None) -> Any:
        """An empty cache for `rows` sequences, on the model's device, with its memory allocated."""

    def step(self, tokens: Tensor, cache: Any) -> Tensor:
        """Take the next tokens (rows, k) into the cache and return the logits (rows, vocabulary) of the one after
        them. The first call after `start` may bring none (k = 0)."""

    def null(self, condition: Condition | None) -> Condition:
        """The condition with its label replaced by the one that stands for none. Raises `InputError` if the model
        has no such label."""


def generate(model: SequenceModel, length: int, **options: Any) -> Tensor:
    """Tokens (rows, length) int64, each row's prompt included. Options as in `stream`.

    With `stop`, a row that has drawn it holds it to the end; the result is as long as the longest row needs, rounded
    up to the engine's next look.
    """
    for place, tokens in _loop(model, length, **options):
        filled, drawn = place, tokens
    return drawn[:, :filled]


def stream(model: SequenceModel, length: int, **options: Any) -> Iterator[Tensor]:
    """The tokens of `generate` one place at a time, (rows,) each, as soon as they are there; prompts first.

    Args:
        length: tokens of each row, prompt included.
        seeds: (rows,) int64 on the model's device, one a row; see `row_seeds`. They fix the number of rows.
        condition: what the model is conditioned on.
        prompts: tokens to begin with: (rows, k), or one tensor (kᵢ,) for each row, of any lengths from 0.
        sampler: how a token is drawn; default: from the model's own probabilities.
        guidance: scale s of classifier-free guidance (Ho & Salimans 2022): logits of no label + s · (logits of the
            label - logits of no label). 1 is the plain conditional model and 0 the unconditional one, each at its
            plain cost; any other scale evaluates both in a batch of twice the rows.
        stop: a token after which a row holds still.
        hop: tokens by which a full window moves on; the rest of it is fed to a fresh cache. 1 keeps the longest memory
            and costs a window's pass each token; default: half the window.

    Raises `InputError` for a length, prompt, token or hop that does not fit.
    """
    given = 0
    for place, tokens in _loop(model, length, **options):
        for k in range(given, place):
            yield tokens[:, k]
        given = place


@torch.inference_mode()
def _loop(
    model: SequenceModel,
    length: int,
    *,
    seeds: Tensor,
    condition: Condition | None = None,
    prompts: Tensor | Sequence[Tensor] | None = None,
    sampler: Sampler | None = None,
    guidance: float = 1.0,
    stop: int | None = None,
    hop: int | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """After each new token: how many places are filled, and the tokens (rows, length), the same tensor each time."""
    hop = _checked(model, length, seeds, condition, stop, hop)
    rows, device = len(seeds), seeds.device
    sampler = sampler or Sampler()
    with torch.inference_mode(False):  # what is handed out may be trained on
        tokens = torch.zeros(rows, length, dtype=torch.int64, device=device)
    given, lengths = _laid_out(prompts, rows, length, model.vocabulary, device)
    tokens[:, : given.shape[1]] = given
    shortest, longest = (min(lengths), max(lengths)) if lengths else (0, 0)
    ends = torch.tensor(lengths, device=device) if shortest < longest else None
    guided = _Guided(model, rows, condition, guidance)
    done = torch.zeros(rows, dtype=torch.bool, device=device)
    look = 1 if device.type == "cpu" else LOOK_EVERY
    begin, fed = -1, 0
    if shortest == length:
        yield length, tokens
    numbers = uniforms_from(seeds, shortest)
    for place in range(shortest, length):
        start = _window_start(place, model.window, hop)
        if start != begin:
            guided.start()
            begin = fed = start
        logits = guided.step(tokens[:, fed:place])
        fed = place
        drawn = sampler.draw(logits, next(numbers))
        if stop is not None:
            drawn = torch.where(done, stop, drawn)
        if ends is not None and place < longest:
            drawn = torch.where(place < ends, tokens[:, place], drawn)
        tokens[:, place] = drawn
        yield place + 1, tokens
        if stop is not None:
            done |= (drawn == stop) if ends is None else (drawn == stop) & (place >= ends)
            if place % look == 0 and bool(done.all()):
                return


def _window_start(place: int, window: int | None, hop: int) -> int:
    """Where the window in which `place` is predicted begins: a function of the place alone, so that a row's tokens do
    not depend on the prompts beside it."""
    if window is None or place < window:
        return 0
    return -(-(place - window + 1) // hop) * hop


class _Guided:
    """A model and its cache, with or without guidance, as one thing that is started and stepped."""

    def __init__(self, model: SequenceModel, rows: int, condition: Condition | None, scale: float):
        self.model, self.rows, self.scale = model, rows, scale
        self.both = scale not in (0.0, 1.0)
        self.condition = condition
        if scale != 1:
            null = model.null(condition)
            own = condition or {}
            self.condition = {k: torch.cat([own[k], null[k]]) for k in null} if self.both else null
        self.cache: Any = None

    def start(self) -> None:
        self.cache = self.model.start(2 * self.rows if self.both else self.rows, self.condition)

    def step(self, tokens: Tensor) -> Tensor:
        if not self.both:
            return self.model.step(tokens, self.cache)
        with_label, without = self.model.step(tokens.repeat(2, 1), self.cache).float().chunk(2)
        return without + self.scale * (with_label - without)


@dataclass
class _Tokens:
    """The cache of a model that keeps none: the tokens themselves."""

    tokens: Tensor
    condition: Condition | None


class Uncached:
    """The same model without its cache: each step is a whole pass over all tokens so far, through the code that trains.

    What a cached model is tested and timed against. Not for use: its time grows with the square of the length, or
    faster.
    """

    def __init__(self, model: SequenceModel):
        self.model = model
        self.vocabulary, self.window, self.slides = model.vocabulary, model.window, model.slides

    def __call__(self, tokens: Tensor, condition: Condition | None = None) -> Tensor:
        return self.model(tokens, condition)

    def start(self, rows: int, condition: Condition | None = None) -> _Tokens:
        """No tokens yet."""
        return _Tokens(torch.zeros(rows, 0, dtype=torch.int64), condition)

    def step(self, tokens: Tensor, cache: _Tokens) -> Tensor:
        """The last logits of a pass over all tokens and one more, whose value cannot matter."""
        cache.tokens = torch.cat([cache.tokens.to(tokens.device), tokens], dim=1)
        return self.model(torch.nn.functional.pad(cache.tokens, (0, 1)), cache.condition)[:, -1]

    def null(self, condition: Condition | None) -> Condition:
        """The model's own."""
        return self.model.null(condition)


def _checked(
    model: SequenceModel, length: int, seeds: Tensor, condition: Condition | None, stop: int | None, hop: int | None
) -> int:
    window = model.window
    if seeds.dtype != torch.int64 or seeds.ndim != 1 or not len(seeds):
        raise InputError(f"seeds are {seeds.dtype} of shape {tuple(seeds.shape)}; give int64 of shape (rows,)")
    if length < 1:
        raise InputError(f"length is {length}; ask for at least 1 token")
    if window is not None and length > window and not model.slides:
        raise InputError(f"length is {length}; this model's places end at {window}")
    for name, value in (condition or {}).items():
        if len(value) != len(seeds):
            raise InputError(f"condition {name!r} has {len(value)} rows and seeds {len(seeds)}; give one each")
    if stop is not None and not 0 <= stop < model.vocabulary:
        raise InputError(f"stop is {stop}; tokens are 0 to {model.vocabulary - 1}")
    if hop is None:
        return max(1, (window or 1) // 2)
    if window is None or not 1 <= hop <= window:
        raise InputError(f"hop is {hop}; give 1 to {window}" if window else f"hop is {hop}, but there is no window")
    return hop


def _laid_out(
    prompts: Tensor | Sequence[Tensor] | None, rows: int, length: int, vocabulary: int, device: torch.device
) -> tuple[Tensor, list[int]]:
    """Prompts as (rows, longest), padded with zeros that are never fed, and their lengths."""
    if prompts is None:
        return torch.zeros(rows, 0, dtype=torch.int64, device=device), []
    if len(prompts) != rows:
        raise InputError(f"there are {len(prompts)} prompts and {rows} seeds; give one prompt a row")
    lengths = [len(prompt) for prompt in prompts]
    if max(lengths) > length:
        raise InputError(f"a prompt has {max(lengths)} tokens; length is {length}, its prompt included")
    laid = torch.zeros(rows, max(lengths), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        if prompt.is_floating_point() or prompt.dtype == torch.bool or prompt.ndim != 1:
            raise InputError(f"a prompt is {prompt.dtype} of shape {tuple(prompt.shape)}; give whole numbers (k,)")
        laid[row, : len(prompt)] = prompt
    if laid.numel() and not (int(laid.min()) >= 0 and int(laid.max()) < vocabulary):
        raise InputError(f"a prompt holds a token outside 0 to {vocabulary - 1}")
    return laid.to(device), lengths
