"""What is measured: a trained model's samples, codes and scores beside real data, each made once and kept.

The protocol that all metrics of one evaluation share is here: which examples are the real ones (the test split, or the
training split where there is none), how many, and with which seeds samples are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from twofold.data import Data, Split, to_model
from twofold.data.split import Examples
from twofold.errors import InputError
from twofold.extractors import Extractor, build_extractor, cache_folder
from twofold.metrics.fcn_score import (
    Segmenter,
    Settings,
    classes_of_colors,
    confusion_matrix,
    segmentation_scores,
    trained_segmenter,
)
from twofold.metrics.record import Result, count_text, half_sample_errors, standard_error
from twofold.model import BLOCK, Model, evaluating
from twofold.spec import Spec

EXAMPLES = 2_000
"""Samples and real examples that are compared, unless it is said otherwise or there are fewer real ones."""
PROBE_EXAMPLES = 5_000
"""The largest number of training examples that probes are fitted on."""
SEGMENTER_STEPS = 600
SEGMENTER_PHOTOS = 2_000
"""The largest number of training photos that a segmenter is trained on."""


@dataclass(frozen=True)
class Study:
    """A model, data, and the protocol of measuring."""

    model: Model
    data: Data
    count: int
    seed: int = 0
    features: str | None = None
    download: bool = False
    ignore: tuple[int, ...] = ()
    """Of label maps: the classes whose pixels count nowhere."""
    segmenter_steps: int = field(default_factory=lambda: SEGMENTER_STEPS)
    config: Mapping[str, Any] | None = None
    """The recipe's options; None: those of the model's run."""

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

    @property
    def translates(self) -> bool:
        """Whether what the model makes are translations: then those of the held-out inputs are its samples."""
        return "sample" not in self.model.recipe.abilities

    @cached_property
    def samples(self) -> Tensor:
        """`count` samples in the model's range, clipped to it for images, as anything stored would be."""
        if self.translates:
            return self.translations
        x = self.model.sample_tensor(self.count, seed=self.seed)
        return x.clamp(-1, 1) if self.model.spec.kind == "image" else x

    @cached_property
    def reconstructions(self) -> Tensor:
        """Of the real examples."""
        return self.run("reconstruct", self.real[0], self.real[1])

    @cached_property
    def inputs(self) -> Tensor:
        """The inputs of the real examples; of two sets without correspondence, as many of the held-out inputs."""
        return self.other_side(self.held_out, self.count)

    @cached_property
    def translations(self) -> Tensor:
        """Of the inputs, one each, drawn with the seed of samples."""
        return self.translated(self.inputs)

    def translated(self, x: Tensor, *, back: bool = False) -> Tensor:
        """One translation of each example, forward or back, clipped as samples are."""
        made = self.model.translate_tensor(x, direction="back" if back else "forward", seed=self.seed)[:, 0]
        return made.clamp(-1, 1) if self.model.spec.kind == "image" else made

    def classes(self, maps: Tensor, palette: Sequence[tuple[int, int, int]]) -> Tensor:
        """The classes of label maps, those to be ignored made unknown."""
        return classes_of_colors(maps, palette, ignore=self.ignore)

    @cached_property
    def segmenter(self) -> Segmenter:
        """Trained on the photos of the training split, for inputs that are label maps; kept in the cache."""
        assert self.data.spec.input is not None and self.data.spec.input.palette is not None
        count = min(SEGMENTER_PHOTOS, len(self.data.train))
        photos, true = self.take(self.data.train, count)[0], self.other_side(self.data.train, count)
        order = _drawn(len(self.data.train), count).argsort()  # as they stand in the source
        palette = self.data.spec.input.palette
        settings = Settings(classes=len(palette), steps=self.segmenter_steps)
        return trained_segmenter(photos[order], self.classes(true[order], palette), settings, cache=cache_folder())

    @property
    def segments(self) -> bool:
        """Whether the data is RGB photos with their label maps as inputs, which a segmenter can be trained on."""
        spec = self.data.spec
        return spec.input is not None and spec.paired and spec.input.palette is not None and spec.shape[0] == 3

    @cached_property
    def extractor(self) -> Extractor:
        if self.features is None and self.segments:
            return self._segmenter_features()
        return build_extractor(self.features, self.data, download=self.download)

    def _segmenter_features(self) -> Extractor:
        assert self.data.spec.input is not None and self.data.spec.input.palette is not None
        segmenter, palette = self.segmenter, self.data.spec.input.palette
        count = min(SEGMENTER_PHOTOS, len(self.held_out))
        true = self.classes(self.other_side(self.held_out, count), palette)
        scores = segmentation_scores(
            confusion_matrix(segmenter.classes(self.take(self.held_out, count)[0]), true, len(palette))
        )
        accuracy = 100 * scores["pixel_accuracy"]
        said = {
            "extractor": f"segmenter of {self.data.name}, means of its maps",
            "extractor_accuracy_percent": round(accuracy, 2),
            "segmenter_steps": self.segmenter_steps,
            "ignored": list(self.ignore),
        }
        return Extractor(f"segmenter-acc{accuracy:.1f}", segmenter.features, None, said)

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
        chosen = _drawn(len(split), count)
        x = self._seen(split.x, chosen, self.data.spec, self.model.spec)
        y, factors = (None if values is None else values[chosen] for values in (split.y, split.factors))
        return x, y, factors

    def other_side(self, split: Split, count: int) -> Tensor:
        """The inputs of `take`'s examples as the model sees them; of sets without correspondence as many as there are,
        up to `count`."""
        theirs, own = self.data.spec.input, self.model.spec.input
        if split.a is None or theirs is None or own is None:
            raise InputError(f"{self.data.name} is not pairs, or this model does not take pairs")
        return self._seen(split.a, _drawn(len(split.a), count), theirs, own)

    @staticmethod
    def _seen(values: Tensor | Examples, chosen: Tensor, theirs: Spec, own: Spec) -> Tensor:
        # Vectors are standardised as the model's own data were; images carry their range with them.
        spec = theirs if theirs.kind == "image" else own
        return torch.cat([to_model(values[block], spec) for block in chosen.split(1024)])

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

    def made(self) -> dict[str, Any]:
        """What the protocol of a figure of `samples` says beside."""
        return {"samples": f"translations of {self.split} inputs"} if self.translates else {}

    def name_of_samples(self, metric: str, *notes: str) -> str:
        """The name of a figure of `samples`; of translations it says so."""
        return self.name(metric, "translated" if self.translates else "", *notes)

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
        said = self.protocol(uncertainty="delete-half jackknife, 10 halves", **self.made(), **protocol)
        return [
            Result(self.name_of_samples(metric, *notes), value, better, said, error, of_data)
            for (metric, better), value, error, of_data in zip(metrics.items(), values, errors, beside, strict=True)
        ]


def _drawn(n: int, count: int) -> Tensor:
    """`count` of n examples without replacement, always the same ones."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))[:count]


def count_for(data: Data, examples: int | None, *, default: int = EXAMPLES) -> int:
    """How many examples are compared. Raises `InputError` if there are not so many real ones."""
    available = len(data.test or data.train)
    count = min(default, available) if examples is None else examples
    if not 2 <= count <= available:
        raise InputError(f"examples is {count}; {data.name} has {available} to compare with, and 2 are the least")
    return count
