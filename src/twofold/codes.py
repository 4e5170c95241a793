"""What models of discrete codes share: a codebook in a game, with what keeps its codes alive and what is logged of its
health; the abilities of a model whose codes are maps of codebook entries; and a prior over such a map, as a player with
a stage of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twofold.decode import Sampler, SequenceModel, generate, row_seeds
from twofold.game import Batch, Game, Nets, Phase, Player, Stage, State, Term
from twofold.latents import code_counts, nearest_code, perplexity_of_counts, straight_through
from twofold.nets.codebook import AveragedCodebook, Codebook, CodeUsage
from twofold.nets.labels import drop_labels
from twofold.recipe import require
from twofold.terms.matching import single_precision, squared_error

RECENT_EXAMPLES = 2_000
"""Over how many examples the share of codes in use is measured where no code is ever moved."""


def quantise(z: Tensor, codebook: nn.Module) -> tuple[Tensor, Tensor]:
    """Each vector of z (batch, latent, …) by its nearest code, (batch, latent, …), and that code's index (batch, …)."""
    indices = nearest_code(z.movedim(1, -1), cast(Tensor, codebook.weight))
    return vectors_of(indices, codebook), indices


def vectors_of(indices: Tensor, codebook: nn.Module) -> Tensor:
    """Indices (batch, …) as the vectors that they stand for, (batch, latent, …)."""
    return cast(Tensor, codebook(indices)).movedim(-1, 1)


@dataclass(frozen=True)
class Quantiser:
    """One codebook in a game: its networks, its row, its measures, and the step that a rollout takes through it.

    Raises `InputError` for a setting out of range.
    """

    codes: int
    latent: int
    codebook: str = "loss"
    """How it learns: "loss" (a player) or "ema" (moving averages, in the game's memory)."""
    commitment: float = 0.25
    decay: float = 0.99
    smoothing: float = 1e-5
    restart_examples: int = 0
    """A code that was not chosen for so many examples is moved; 0: never."""
    level: str = ""
    """Distinguishes several codebooks of one game; its names end in `_level`."""

    def __post_init__(self) -> None:
        require(self.codes >= 2, f"codes is {self.codes}; a codebook has at least 2")
        require(self.commitment >= 0, f"commitment is {self.commitment}; it starts at 0")
        require(0 <= self.decay < 1, f"decay is {self.decay}; it lies from 0 to below 1")
        require(self.smoothing > 0, f"smoothing is {self.smoothing}; it must be above 0")
        require(self.restart_examples >= 0, f"restart_examples is {self.restart_examples}; it starts at 0")

    @classmethod
    def of(cls, config: Any, *, level: str = "") -> Quantiser:
        """The codebook that a Config's fields of these names ask for."""
        return cls(
            config.codes,
            config.latent,
            config.codebook,
            config.commitment,
            config.decay,
            config.smoothing,
            config.restart_examples,
            level,
        )

    def named(self, name: str) -> str:
        """`name` with this level's ending."""
        return f"{name}_{self.level}" if self.level else name

    @property
    def averaged(self) -> bool:
        return self.codebook == "ema"

    def build(self) -> nn.Module:
        """A fresh codebook."""
        if self.averaged:
            return AveragedCodebook(self.codes, self.latent, decay=self.decay, epsilon=self.smoothing)
        return Codebook(self.codes, self.latent)

    def players(self, book: nn.Module, optimizer: Any) -> dict[str, Player]:
        """The codebook as a player, if it learns by its loss."""
        return {} if self.averaged else {self.named("codebook"): Player(book, optimizer)}

    def memory(self, book: nn.Module) -> dict[str, nn.Module]:
        """What lives across steps without gradient: the codes' use, and a codebook of averages."""
        usage = {self.named("usage"): CodeUsage(self.codes)}
        return usage | ({self.named("codebook"): book} if self.averaged else {})

    def book(self, nets: Mapping[str, nn.Module] | nn.ModuleDict) -> nn.Module:
        """The codebook among the networks."""
        return nets[self.named("codebook")]

    def learn(self, state: State, z: Tensor) -> dict[str, Tensor]:
        """z (batch, latent, …) through the codebook: {"z", "z_q", "indices", "restarted"} and, for the decoder,
        "codes": z_q with a gradient that goes to z; and "counts", how often each code was chosen. Restarts codes, notes
        their use and, of averages, takes z in: with several processes all of it from the whole batch."""
        z = single_precision(z)
        book = cast("Codebook | AveragedCodebook", self.book(state.nets))
        usage = cast(CodeUsage, state.nets[self.named("usage")])
        # What moves codes by other means than gradient sees their vectors as plain numbers.
        vectors = z.detach().movedim(1, -1).flatten(0, -2)
        restarted = z.new_zeros(())
        peers = state.peers
        if self.restart_examples:
            drawn = peers.draw_rows(vectors, self.codes, generator=state.generator)
            restarted = usage.restart(book, drawn, after=self.restart_examples)
        z_q, indices = quantise(z, book)
        counts = code_counts(indices, self.codes)
        peers.total([counts])
        usage.note(counts, examples=len(z) * peers.count)
        if isinstance(book, AveragedCodebook):
            sums = book.sums_of(vectors, indices.flatten())
            peers.total([sums])
            book.update(counts, sums)
        out = {"z": z, "z_q": z_q, "indices": indices, "restarted": restarted, "codes": straight_through(z, z_q)}
        out["counts"] = counts
        return {self.named(name): tensor for name, tensor in out.items()}

    def term(self) -> Term:
        """‖z - z_q‖², to the encoder as its commitment and to a codebook that learns by its loss."""
        z, z_q = self.named("z"), self.named("z_q")
        to = {"encoder": self.commitment} | ({} if self.averaged else {self.named("codebook"): 1.0})
        return Term(self.named("quantisation"), lambda s: squared_error(s[z], s[z_q]).mean(), to=to)

    def measures(self) -> dict[str, Callable[[State], Tensor]]:
        """The codebook's health: perplexity of the batch's codes, the share of codes that were chosen lately, and how
        many were moved in this play."""
        within = self.restart_examples or RECENT_EXAMPLES

        def share(state: State) -> Tensor:
            return cast(CodeUsage, state.nets[self.named("usage")]).share(within)

        return {
            self.named("perplexity"): lambda s: perplexity_of_counts(s[self.named("counts")]),
            self.named("codes_used"): share,
            self.named("codes_restarted"): lambda s: s[self.named("restarted")],
        }


@dataclass(frozen=True)
class Level:
    """A map of codes: its codebook and its places."""

    quantiser: Quantiser
    places: tuple[int, ...]

    @property
    def positions(self) -> int:
        return prod(self.places)

    @property
    def size(self) -> int:
        """Values of one example's vectors."""
        return self.quantiser.latent * self.positions

    def unflattened(self, values: Tensor) -> Tensor:
        """(batch, size) → (batch, latent, …)."""
        return values.unflatten(1, (self.quantiser.latent, *self.places))


Draw = Callable[..., Sequence[Tensor]]
"""`draw(nets, n, *, y, generator)` → indices (n, …) of each level."""


def code_abilities(
    levels: Sequence[Level],
    *,
    encode: Callable[[nn.ModuleDict, Tensor], Sequence[Tensor]],
    picture: Callable[[nn.ModuleDict, Sequence[Tensor]], Tensor],
    draw: Draw,
) -> dict[str, Callable[..., Any]]:
    """prior, encode, decode, reconstruct and sample of a model whose code is one map of codebook entries per level.

    To the user a code is the entries' vectors of all positions, flattened, level after level; `decode` moves each
    position of any other code to the nearest entry.

    Args:
        encode: networks and x → indices of each level.
        picture: networks and vectors (batch, latent, …) of each level → x.
        draw: indices of each level from the prior.
    """

    def flat(nets: nn.ModuleDict, indices: Sequence[Tensor]) -> Tensor:
        vectors = [
            vectors_of(index, level.quantiser.book(nets)).flatten(1)
            for level, index in zip(levels, indices, strict=True)
        ]
        return torch.cat(vectors, dim=1)

    def decode(nets: nn.ModuleDict, z: Tensor, *, y: Tensor | None = None) -> Tensor:
        parts = z.split([level.size for level in levels], dim=1)
        return picture(
            nets,
            [
                quantise(level.unflattened(part), level.quantiser.book(nets))[0]
                for level, part in zip(levels, parts, strict=True)
            ],
        )

    def prior(nets: nn.ModuleDict, n: int, *, y: Tensor | None = None, generator: torch.Generator) -> Tensor:
        return flat(nets, draw(nets, n, y=y, generator=generator))

    return {
        "prior": prior,
        "encode": lambda nets, x, *, y=None: flat(nets, encode(nets, x)),
        "decode": decode,
        "reconstruct": lambda nets, x, *, y=None: decode(nets, flat(nets, encode(nets, x))),
        "sample": lambda nets, n, *, y=None, generator: decode(nets, prior(nets, n, y=y, generator=generator)),
    }


def completion(
    levels: Sequence[Level],
    *,
    encode: Callable[[nn.ModuleDict, Tensor], Sequence[Tensor]],
    picture: Callable[[nn.ModuleDict, Sequence[Tensor]], Tensor],
    draw: Draw,
) -> Callable[..., Tensor]:
    """The ability `complete` of images: the rows of codes that lie within the known rows of pixels are kept, the others
    drawn after them, and the known pixels stand in the result as they were. The encoder sees the unknown pixels as 0.
    `draw` takes the codes to keep as `prompts`, (n, k) of each level.
    """

    def complete(
        nets: nn.ModuleDict, x: Tensor, *, known: float, y: Tensor | None = None, generator: torch.Generator
    ) -> Tensor:
        height = x.shape[2]
        given = round(known * height)
        seen = torch.cat([x[:, :, :given], torch.zeros_like(x[:, :, given:])], dim=2)
        prompts = []
        for level, index in zip(levels, encode(nets, seen), strict=True):
            rows, columns = level.places
            prompts.append(index.flatten(1)[:, : given * rows // height * columns])
        indices = draw(nets, len(x), y=y, generator=generator, prompts=prompts)
        vectors = [vectors_of(index, level.quantiser.book(nets)) for level, index in zip(levels, indices, strict=True)]
        return torch.cat([x[:, :, :given], picture(nets, vectors)[:, :, given:]], dim=2)

    return complete


def uniform_draw(levels: Sequence[Level]) -> Draw:
    """Every position of every level drawn on its own, all codes equally likely: the prior before one is trained."""

    def draw(nets: nn.ModuleDict, n: int, *, y: Tensor | None = None, generator: torch.Generator) -> list[Tensor]:
        one = partial(torch.randint, generator=generator, device=generator.device)
        return [one(level.quantiser.codes, (n, *level.places)) for level in levels]

    return draw


# Priors.


def token_nats(logits: Tensor, tokens: Tensor) -> Tensor:
    """-log p of each token in nats: logits (batch, n, codes) and tokens (batch, n) int64 → (batch, n).

    >>> token_nats(torch.zeros(1, 2, 4), torch.tensor([[0, 3]]))
    tensor([[1.3863, 1.3863]])
    """
    return F.cross_entropy(single_precision(logits).movedim(-1, 1), tokens, reduction="none")


def code_view(
    levels: Sequence[Level], encode: Callable[[nn.ModuleDict, Tensor], Sequence[Tensor]], *, conditional: bool
) -> Callable[[Nets, Batch], Batch]:
    """What the stage of a prior sees of a batch of data: each level's codes in raster order, and the labels."""

    def view(nets: Nets, batch: Batch) -> Batch:
        indices = encode(nets, batch["x"])
        codes = {level.quantiser.named("codes"): index.flatten(1) for level, index in zip(levels, indices, strict=True)}
        return codes | ({"y": batch["y"]} if conditional else {})

    return view


@dataclass(frozen=True)
class CodePrior:
    """A distribution of one level's codes in raster order, given a label and, if wanted, another level's codes: which
    network it is, how it is trained and how it is drawn from."""

    player: str
    level: Level
    classes: int | None = None
    label_dropout: float = 0.0
    """Share of the labels that are left out in training, without which there is nothing to guide by."""
    given: Level | None = None
    """The level whose codes the network reads as its condition of that level's name."""
    sampler: Sampler = field(default_factory=Sampler)
    guidance: float = 1.0

    def __post_init__(self) -> None:
        require(0 <= self.label_dropout < 1, f"label_dropout is {self.label_dropout}; it lies from 0 to below 1")
        guided = self.guidance == 1 or (self.classes is not None and self.label_dropout > 0)
        require(guided, f"guidance is {self.guidance}; it needs a conditional prior with label_dropout above 0")

    @property
    def codes(self) -> str:
        """The name of its codes in a stage's view."""
        return self.level.quantiser.named("codes")

    def condition(self, y: Tensor | None, given: Tensor | None = None) -> dict[str, Tensor] | None:
        """What the network is conditioned on."""
        condition = {} if self.classes is None or y is None else {"y": y}
        if self.given is not None and given is not None:
            condition[self.given.quantiser.level] = given
        return condition or None

    def labels(self, n: int, y: Tensor | None, generator: torch.Generator) -> Tensor | None:
        """The labels given; without them, labels drawn for a conditional prior, and None for another."""
        if self.classes is None or y is not None:
            return y
        return torch.randint(self.classes, (n,), generator=generator, device=generator.device)

    def nats(self, nets: nn.ModuleDict, tokens: Tensor, condition: Mapping[str, Tensor] | None) -> Tensor:
        """-log p of each code, (batch, positions)."""
        return token_nats(nets[self.player](tokens, condition), tokens)

    def draw(
        self,
        nets: nn.ModuleDict,
        n: int,
        *,
        y: Tensor | None = None,
        given: Tensor | None = None,
        prompts: Tensor | None = None,
        generator: torch.Generator,
    ) -> Tensor:
        """Codes (n, …) drawn with the network's cache, after `prompts` (n, k) if there are any."""
        seeds = row_seeds(n, generator=generator)
        tokens = generate(
            cast(SequenceModel, nets[self.player]),
            self.level.positions,
            seeds=seeds,
            condition=self.condition(y, given),
            prompts=prompts,
            sampler=self.sampler,
            guidance=self.guidance,
        )
        return tokens.unflatten(1, self.level.places)

    def stage(
        self,
        name: str,
        player: Player,
        *,
        frozen: Mapping[str, nn.Module],
        view: Callable[[Nets, Batch], Batch],
        share: float,
    ) -> Stage:
        """Training on the codes that `view` gives: one row, the codes' negative log-likelihood."""
        nll = self.level.quantiser.named("nll")

        def rollout(state: State) -> dict[str, Tensor]:
            y = state.batch.get("y")
            if self.classes is not None and y is not None:
                y = drop_labels(y, self.classes, self.label_dropout, generator=state.generator)
            given = None if self.given is None else state.batch[self.given.quantiser.named("codes")]
            return {"nats": self.nats(state.nets, state.batch[self.codes], self.condition(y, given))}

        phase = Phase(
            "prior" if not self.level.quantiser.level else f"prior_{self.level.quantiser.level}",
            rollout,
            (Term(nll, lambda s: s["nats"].sum(1).mean(), to={self.player: 1.0}),),
            measures={self.level.quantiser.named("nats_per_code"): lambda s: s["nats"].mean()},
        )
        game = Game(players={self.player: player}, phases=(phase,), frozen=frozen)
        return Stage(name, game, share, view, kept="codes")
