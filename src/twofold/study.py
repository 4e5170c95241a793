"""What is measured: a trained model's samples, codes and scores beside real data, each made once and kept.

The protocol that all metrics of one evaluation share is here: which examples are the real ones (the test split, or the
training split where there is none), how many, and with which seeds samples are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from twofold.data import Data, Split, to_model
from twofold.errors import InputError
from twofold.extractors import Extractor, build_extractor
from twofold.metrics.record import Result, count_text, half_sample_errors, standard_error
from twofold.model import BLOCK, Model, evaluating

EXAMPLES = 2_000
"""Samples and real examples that are compared, unless it is said otherwise or there are fewer real ones."""
PROBE_EXAMPLES = 5_000
"""The largest number of training examples that probes are fitted on."""


@dataclass(frozen=True)
class Study:
    """A model, data, and the protocol of measuring."""

    model: Model
    data: Data
    count: int
    seed: int = 0
    features: str | None = None
    download: bool = False

    @property
    def split(self) -> str:
        """The name of the split that real examples come from."""
        return "test" if self.data.test else "train"

    @property
    def held_out(self) -> Split:
        return self.data.test or self.data.train

    @cached_property
    def real(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """`count` real examples, their labels and their factors, drawn without replacement with the seed 0: which
        examples are looked at does not depend on the seed of the samples."""
        return self.take(self.held_out, self.count)

    @cached_property
    def train(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """As many training examples as probes are fitted on."""
        return self.take(self.data.train, min(PROBE_EXAMPLES, len(self.data.train)))

    @cached_property
    def reference(self) -> Tensor | None:
        """Training examples in the place of samples, as many: what a perfect generator would give. None where
        there is no test split to compare them with, or there are too few."""
        if not self.data.test or len(self.data.train) < self.count:
            return None
        return self.take(self.data.train, self.count)[0]

    @cached_property
    def samples(self) -> Tensor:
        """`count` samples in the model's range, clipped to it for images, as anything stored would be."""
        x = self.model.sample_tensor(self.count, seed=self.seed)
        return x.clamp(-1, 1) if self.model.spec.kind == "image" else x

    @cached_property
    def reconstructions(self) -> Tensor:
        """Of the real examples."""
        return self.run("reconstruct", self.real[0], self.real[1])

    @cached_property
    def extractor(self) -> Extractor:
        return build_extractor(self.features, self.data, download=self.download)

    @cached_property
    def feature_sets(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Features of samples, of real examples, and of the reference."""
        extract = self.extractor.features
        reference = None if self.reference is None else extract(self.reference)
        return extract(self.samples), extract(self.real[0]), reference

    @cached_property
    def codes(self) -> tuple[Tensor, Tensor]:
        """Codes of the training examples that probes use, and of the real examples."""
        return self.run("encode", *self.train[:2]).flatten(1), self.run("encode", *self.real[:2]).flatten(1)

    def generator(self) -> torch.Generator:
        """A fresh source of randomness for directions, pairs and halves."""
        return torch.Generator().manual_seed(self.seed)

    def take(self, split: Split, count: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """`count` examples of a split as the model sees them, with labels and factors."""
        chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:count]
        # Vectors are standardised as the model's own data were; images carry their range with them.
        spec = self.data.spec if self.data.spec.kind == "image" else self.model.spec
        x = torch.cat([to_model(split.x[block], spec) for block in chosen.split(1024)])
        y, factors = (None if values is None else values[chosen] for values in (split.y, split.factors))
        return x, y, factors

    def run(self, ability: str, x: Tensor, y: Tensor | None = None, **options: Any) -> Any:
        """An ability on examples or codes in the model's range, block by block; labels for conditional models only."""
        function, parts = self.model.recipe.abilities[ability], []
        labels = y if self.model.recipe.conditional else None
        with evaluating(self.model.nets):
            for start in range(0, len(x), BLOCK):
                rows = slice(start, start + BLOCK)
                given = None if labels is None else labels[rows].to(self.model.device)
                parts.append(function(self.model.nets, x[rows].to(self.model.device), y=given, **options))
        if isinstance(parts[0], Mapping):
            return {key: torch.cat([part[key] for part in parts]).float().cpu() for key in parts[0]}
        return torch.cat(parts).float().cpu()

    def score(self, ability: str, x: Tensor, **options: Any) -> dict[str, Tensor]:
        """An ability that draws: {name: (n,)}."""
        generator = torch.Generator(self.model.device).manual_seed(self.seed)
        return self.run(ability, x, self.real[1], generator=generator, **options)

    # Results.

    def protocol(self, **more: Any) -> dict[str, Any]:
        """The fields that every result has."""
        return {
            "data": self.data.name,
            "data_sha256": self.data.fingerprint[:16],
            "split": self.split,
            "count": self.count,
            "seed": self.seed,
            **more,
        }

    def name(self, metric: str, *notes: str, count: int | None = None) -> str:
        """ "fd_2k_test_classifier_acc98.1": metric, count, split, then what else decides the figure."""
        return "_".join([metric, count_text(count or self.count), self.split, *(note for note in notes if note)])

    def mean(self, metric: str, values: Tensor, better: str, *notes: str, **protocol: Any) -> Result:
        """The mean of independent values, with its standard error."""
        said = self.protocol(**{"uncertainty": "standard error over examples", "count": len(values), **protocol})
        name = self.name(metric, *notes, count=len(values))
        return Result(name, float(values.double().mean()), better, said, standard_error(values))

    def between_sets(
        self,
        metrics: Mapping[str, str],
        statistic: Callable[[Tensor, Tensor], Sequence[float]],
        sets: tuple[Tensor, Tensor, Tensor | None],
        *notes: str,
        **protocol: Any,
    ) -> list[Result]:
        """The figures `statistic(samples, real)`, called and better as `metrics` says, each with its error over random
        halves of both sets and the same of (training examples, real) beside it."""
        samples, real, reference = sets
        values = statistic(samples, real)
        errors = half_sample_errors(statistic, samples, real, generator=self.generator())
        beside: Sequence[float | None] = [None] * len(values)
        if reference is not None:
            beside = statistic(reference, real)
        said = self.protocol(uncertainty="delete-half jackknife, 10 halves", **protocol)
        return [
            Result(self.name(metric, *notes), value, better, said, error, of_data)
            for (metric, better), value, error, of_data in zip(metrics.items(), values, errors, beside, strict=True)
        ]


def count_for(data: Data, examples: int | None, *, default: int = EXAMPLES) -> int:
    """How many examples are compared. Raises `InputError` if there are not so many real ones."""
    available = len(data.test or data.train)
    count = min(default, available) if examples is None else examples
    if not 2 <= count <= available:
        raise InputError(f"examples is {count}; {data.name} has {available} to compare with, and 2 are the least")
    return count
