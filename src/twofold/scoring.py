"""Verbs that give numbers for single examples: score (likelihood and anomaly scores) and classify."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twofold.data import Data, Split, class_numbers
from twofold.errors import InputError, unknown
from twofold.metrics.detection import RESAMPLES, detection, threshold
from twofold.metrics.novelty import WIDEST, knn_distance, mahalanobis
from twofold.model import Model
from twofold.run import json_bytes, write_file
from twofold.using import chosen, data_for, own_data, refuse_unable, seen, shuffled

EXAMPLES = 10_000
"""The most examples that are scored, and the most normal ones they are compared with, unless more are asked for."""
SHOWN = 16
ANOGAN_WEIGHT = 0.1
"""λ: the features' part of `anogan` (Schlegl et al. 2017)."""


@dataclass(frozen=True)
class Settings:
    """What scores depend on besides the model and the example."""

    draws: int = 50
    """k of the importance-weighted bound."""
    neighbours: int = 5
    """k of the nearest neighbours."""
    steps: int = 300
    """Of inversion, for models without an encoder."""
    seed: int = 0


@dataclass(frozen=True)
class Inputs:
    """Examples in the data's layout with a conditional model's labels, and the normal ones they are compared with."""

    x: np.ndarray
    labels: np.ndarray | None
    normal: np.ndarray
    normal_labels: np.ndarray | None


@dataclass(frozen=True)
class Score:
    """One number per example, larger for the more anomalous."""

    column: Callable[[Settings], str]
    """Its name with its protocol and unit."""
    needs: tuple[str, ...]
    """The abilities it is made of."""
    values: Callable[[Model, Inputs, Settings], np.ndarray]
    compares: bool = False
    """Whether it looks at normal examples."""
    by_default: bool = True


# Scores.


def _negative_elbo(model: Model, given: Inputs, settings: Settings) -> np.ndarray:
    bound = model.elbo(given.x, seed=settings.seed, labels=given.labels)
    return bound["rate_nats"] + bound["distortion_nats"]


def _negative_bound(model: Model, given: Inputs, settings: Settings) -> np.ndarray:
    found = model.log_prob(given.x, k=settings.draws, seed=settings.seed, labels=given.labels)
    return -found["log_prob_nats"]


def _reconstructed(model: Model, given: Inputs, settings: Settings) -> np.ndarray:
    """By the encoder, or by inversion where there is none."""
    if "reconstruct" in model.abilities:
        return model.reconstruct(given.x, labels=given.labels)
    found = model.invert(given.x, steps=settings.steps, seed=settings.seed, labels=given.labels)
    return model.decode(found["z"], labels=given.labels)


def _squared_error(model: Model, given: Inputs, settings: Settings) -> np.ndarray:
    x_rec = _reconstructed(model, given, settings)
    return (seen(model, given.x) - seen(model, x_rec)).square().flatten(1).sum(1).numpy()


def _anogan(model: Model, given: Inputs, settings: Settings) -> np.ndarray:
    x_rec = _reconstructed(model, given, settings)
    residual = (seen(model, given.x) - seen(model, x_rec)).abs().flatten(1).sum(1).numpy()
    features = (model.features(x, labels=given.labels) for x in (given.x, x_rec))
    difference = np.abs(np.subtract(*features)).sum(1)
    return (1 - ANOGAN_WEIGHT) * residual + ANOGAN_WEIGHT * difference


def _distance(ability: str, kind: str) -> Callable[[Model, Inputs, Settings], np.ndarray]:
    """Distance from normal examples in what `ability` makes of them."""

    def values(model: Model, given: Inputs, settings: Settings) -> np.ndarray:
        ask = getattr(model, ability)
        x = torch.from_numpy(ask(given.x, labels=given.labels))
        normal = torch.from_numpy(ask(given.normal, labels=given.normal_labels))
        found = knn_distance(x, normal, k=settings.neighbours) if kind == "knn" else mahalanobis(x, normal)
        return found.numpy()

    return values


SCORES: dict[str, Score] = {
    "elbo": Score(lambda s: "negative_elbo_nats", ("elbo",), _negative_elbo),
    "iw_bound": Score(lambda s: f"negative_iw{s.draws}_nats", ("iw_bound",), _negative_bound, by_default=False),
    "reconstruction": Score(lambda s: "squared_error", ("reconstruct",), _squared_error),
    "inversion": Score(lambda s: f"inversion{s.steps}_squared_error", ("decode",), _squared_error, by_default=False),
    "discriminator": Score(
        lambda s: "negative_logit", ("judge",), lambda m, given, s: -m.judge(given.x, labels=given.labels)
    ),
    "code_knn": Score(lambda s: f"code_knn{s.neighbours}", ("encode",), _distance("encode", "knn"), compares=True),
    "code_mahalanobis": Score(
        lambda s: "code_mahalanobis", ("encode",), _distance("encode", "mahalanobis"), compares=True
    ),
    "feature_knn": Score(
        lambda s: f"feature_knn{s.neighbours}", ("features",), _distance("features", "knn"), compares=True
    ),
    "feature_mahalanobis": Score(
        lambda s: "feature_mahalanobis", ("features",), _distance("features", "mahalanobis"), compares=True
    ),
    "anogan": Score(lambda s: f"anogan{ANOGAN_WEIGHT:g}", ("features", "decode"), _anogan, by_default=False),
}
"""docs/latent.md says what each is."""


def _chosen_scores(model: Model, names: Sequence[str] | None) -> list[str]:
    """The scores asked for, or by default those that are cheap, if the model can give them."""
    own = [name for name, score in SCORES.items() if set(score.needs) <= model.recipe.abilities.keys()]
    if "reconstruct" in model.abilities and "inversion" in own:
        own.remove("inversion")  # its encoder does that
    if names is None:
        names = [name for name in own if SCORES[name].by_default]
        if not own:
            raise InputError(f"this model gives no score; it can {', '.join(model.abilities)}")
        if not names:
            raise InputError(f"this model gives no score by itself; name one of {', '.join(own)} (--scores)")
    for name in names:
        if name not in SCORES:
            raise unknown("score", name, SCORES)
        if name not in own:
            raise InputError(f"this model cannot give the score {name!r}; it can give {', '.join(own)}")
    return list(dict.fromkeys(names))


# The verb.


@dataclass(frozen=True)
class Scorer:
    """Scores of a model, with the normal examples that some of them compare with."""

    model: Model
    names: tuple[str, ...]
    settings: Settings
    normal: np.ndarray
    normal_labels: np.ndarray | None

    def __call__(self, x: np.ndarray, y: np.ndarray | None) -> dict[str, np.ndarray]:
        """Each score's column, (n,). Raises `InputError` if a score is not finite."""
        conditional = self.model.recipe.conditional
        given = Inputs(x, y if conditional else None, self.normal, self.normal_labels if conditional else None)
        return {self.column(name): self._finite(name, given) for name in self.names}

    def column(self, name: str) -> str:
        """The name of a score's column."""
        return SCORES[name].column(self.settings)

    def _finite(self, name: str, given: Inputs) -> np.ndarray:
        values = np.asarray(SCORES[name].values(self.model, given, self.settings), dtype=np.float64)
        if not np.isfinite(values).all():
            first = int((~np.isfinite(values)).argmax())
            raise InputError(f"the score {name!r} of example {first} is not finite; leave it out with --scores")
        return values


def score(
    model: Model,
    *,
    data: Any = None,
    data_options: Mapping[str, Any] | None = None,
    scores: Sequence[str] | None = None,
    split: str = "test",
    n: int = EXAMPLES,
    normal: Sequence[str | int] | None = None,
    false_alarm: float | None = None,
    by: str | None = None,
    draws: int = Settings.draws,
    neighbours: int = Settings.neighbours,
    steps: int = Settings.steps,
    seed: int = 0,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Score examples, larger meaning more anomalous, and write scores.csv (a row per example), scores.json (what is
    returned) and, for images, most-anomalous.png into the folder `out` (default: `scores` in the run).

    Args:
        data: where the examples are from; None: the source the run was trained on, with the classes it left out.
        scores: names from `SCORES`; None: all that this model gives cheaply.
        split: "test", "train" or "all" of that data; at most `n` examples of it, drawn with `seed`.
        normal: the classes that are not anomalies; None: those the run was trained on, if it left some out.
            With them AUROC and AUPR are reported, with standard errors.
        false_alarm: also set a threshold for this rate of false alarms, on normal examples that serve nothing else:
            half of the scored ones; without known normal classes the run's own test split, or half of all that is
            scored where that is the run's own data.
        by: the score by which the picture is sorted; None: the first.
        draws, neighbours, steps: see `Settings`.

    Returns {"out", "data", "split", "examples", "normal", "seed", "bootstrap", "calibration", "scores": {column:
    {"mean", "std", "auroc", "auroc_se", "aupr", "aupr_se", "anomalies", "threshold", "false_alarm_rate",
    "detection_rate" or "alarm_rate"}}}; parts that do not apply are None or absent.
    """
    settings = Settings(draws, neighbours, steps, seed)
    _refuse_numbers(settings, split, n, false_alarm)
    names = _chosen_scores(model, scores)
    if by is not None and by not in names:
        raise unknown("score to sort by", by, names)
    folder = Path(out) if out is not None else (model.run.path if model.run else Path()) / "scores"
    loaded = data_for(model, data, data_options, every_class=True)
    numbers = _normal_classes(model, loaded, normal)
    part, index = _scored(loaded, split, n, seed)
    x, y = chosen(model, loaded, part, index)
    scorer, left_out = _scorer(
        model, names, settings, partial(_normal_split, model, loaded, data, numbers), scores is None
    )
    values = scorer(x, y)
    is_normal = None if numbers is None or y is None else np.isin(y, numbers)
    record: dict[str, Any] = {
        "out": str(folder), "data": loaded.name, "split": split, "examples": len(x),
        "normal": None if numbers is None else list(numbers), "seed": seed, "bootstrap": RESAMPLES, **left_out,
    }  # fmt: skip
    held: dict[str, np.ndarray] = {}
    aside = np.zeros(len(x), dtype=bool)
    if false_alarm is not None:
        held, aside, where = _calibration(
            scorer, loaded, data, values, is_normal, _never_trained_on(loaded, split, index)
        )
        count = len(next(iter(held.values())))
        record["calibration"] = {"false_alarm": false_alarm, "on": where, "examples": count}
    record["scores"] = {
        column: _summary(one[~aside], None if is_normal is None else is_normal[~aside], seed)
        | _alarms(one[~aside], None if is_normal is None else is_normal[~aside], held.get(column), false_alarm)
        for column, one in values.items()
    }
    picture = _most_anomalous(scorer, x, y, values[scorer.column(by or names[0])], aside, loaded)
    table = _table(index, y, is_normal, aside, values, {k: v.get("threshold") for k, v in record["scores"].items()})
    _write(folder, record, table, picture)
    return record


def _refuse_numbers(settings: Settings, split: str, n: int, false_alarm: float | None) -> None:
    if split not in ("test", "train", "all"):
        raise unknown("split", split, ("test", "train", "all"))
    for name, value in (("n", n), ("neighbours", settings.neighbours), ("steps", settings.steps)):
        if value < 1:
            raise InputError(f"{name} is {value}; it starts at 1")
    if false_alarm is not None and not 0 < false_alarm < 1:
        raise InputError(f"the rate of false alarms is {false_alarm}; give a number between 0 and 1")


def _normal_classes(model: Model, loaded: Data, normal: Sequence[str | int] | None) -> tuple[int, ...] | None:
    """The numbers of the normal classes; None if nothing says which they are."""
    if normal is not None:
        return class_numbers(normal, loaded.spec, where=loaded.name)
    trained = model.run.config["data"].get("options", {}).get("classes") if model.run else None
    if not trained or loaded.spec.classes is None:
        return None
    return class_numbers(trained, loaded.spec, where=loaded.name)


def _scored(loaded: Data, split: str, n: int, seed: int) -> tuple[Split, torch.Tensor]:
    """The split that is scored, and which of its examples, in order."""
    part = {"test": loaded.test, "train": loaded.train, "all": _both(loaded)}[split]
    if part is None:
        raise InputError(f"{loaded.name} has no test split; use --split train or all")
    return part, shuffled(len(part), seed)[:n].sort().values


def _never_trained_on(loaded: Data, split: str, index: torch.Tensor) -> np.ndarray:
    """Which of the scored examples are of the test split, (n,) bool."""
    first = {"test": 0, "train": len(loaded.train), "all": len(loaded.train)}[split]
    return (index >= first).numpy()


def _both(loaded: Data) -> Split:
    """Training examples, then test examples."""
    train, test = loaded.train, loaded.test
    if test is None:
        return train
    if not isinstance(train.x, torch.Tensor) or not isinstance(test.x, torch.Tensor):
        raise InputError(f"{loaded.name} is read on access, one split at a time; use --split train or test")
    y = None if train.y is None or test.y is None else torch.cat([train.y, test.y])
    return Split(torch.cat([train.x, test.x]), y)


def _normal_split(model: Model, loaded: Data, data: Any, numbers: tuple[int, ...] | None) -> tuple[Data, torch.Tensor]:
    """Data, and which of its training examples are normal: by their labels, or all that the run was trained on."""
    if numbers is not None:
        assert loaded.train.y is not None
        own = torch.isin(loaded.train.y, torch.tensor(numbers)).nonzero().squeeze(1)
        if not len(own):
            raise InputError(f"{loaded.name} has no training example of the normal classes to compare with")
        return loaded, own
    if data is not None and _named(model):
        loaded = own_data(model)
    return loaded, torch.arange(len(loaded.train))


def _named(model: Model) -> bool:
    return model.run is not None and model.run.config["data"].get("source") is not None


def _scorer(
    model: Model,
    names: list[str],
    settings: Settings,
    normal: Callable[[], tuple[Data, torch.Tensor]],
    may_leave_out: bool,
) -> tuple[Scorer, dict[str, Any]]:
    """The scorer, and {"left_out": …} if a score that was not asked for by name is beyond reach. `normal` gives data
    and which of its training examples are normal, and is called if they are needed."""
    if not any(SCORES[name].compares for name in names):
        return Scorer(model, tuple(names), settings, np.empty(0), None), {}
    loaded, own = normal()
    picked = own[shuffled(len(own), settings.seed)[:EXAMPLES]]
    x, y = chosen(model, loaded, loaded.train, picked)
    left_out: dict[str, Any] = {}
    if may_leave_out and "feature_mahalanobis" in names:
        one = model.features(x[:1], labels=None if not model.recipe.conditional or y is None else y[:1])
        if one.shape[1] > WIDEST:
            names.remove("feature_mahalanobis")
            left_out = {"left_out": {"feature_mahalanobis": f"{one.shape[1]:,} features are more than {WIDEST:,}"}}
    return Scorer(model, tuple(names), settings, x, y), left_out


def _calibration(
    scorer: Scorer,
    loaded: Data,
    data: Any,
    values: Mapping[str, np.ndarray],
    is_normal: np.ndarray | None,
    held_out: np.ndarray,
) -> tuple[dict[str, np.ndarray], np.ndarray, str]:
    """Scores of normal examples for thresholds, which of the scored examples were set aside for them, and a word on
    where they are from."""
    count, seed = len(next(iter(values.values()))), scorer.settings.seed
    aside = np.zeros(count, dtype=bool)
    if is_normal is None and data is not None and _named(scorer.model):
        own = own_data(scorer.model)
        if own.fingerprint != loaded.fingerprint:
            if own.test is None:
                raise InputError("a threshold needs normal examples that were not trained on, and this run has none")
            x, y = chosen(scorer.model, own, own.test, shuffled(len(own.test), seed)[:EXAMPLES])
            return scorer(x, y), aside, f"test split of {own.name}"
    candidates = (held_out if is_normal is None else held_out & is_normal).nonzero()[0]
    if not len(candidates):
        raise InputError("a threshold needs normal examples that were not trained on: score the test split, or all")
    half = shuffled(len(candidates), seed).numpy()[: len(candidates) // 2]
    aside[candidates[half]] = True
    what = "all" if is_normal is None else "the normal"
    return {k: v[aside] for k, v in values.items()}, aside, f"half of {what} examples scored"


def _summary(values: np.ndarray, is_normal: np.ndarray | None, seed: int) -> dict[str, Any]:
    """What a column says of the examples that were not set aside."""
    found: dict[str, Any] = {"mean": float(values.mean()), "std": float(values.std())} if len(values) else {}
    if is_normal is not None and is_normal.any() and not is_normal.all():
        areas = detection(torch.from_numpy(values), torch.from_numpy(~is_normal), seed=seed)
        found |= areas | {"anomalies": int((~is_normal).sum()), "normal": int(is_normal.sum())}
    return found


def _alarms(
    values: np.ndarray, is_normal: np.ndarray | None, held: np.ndarray | None, false_alarm: float | None
) -> dict[str, Any]:
    """The threshold, and how many of the examples that were not set aside lie above it."""
    if held is None or false_alarm is None:
        return {}
    limit = threshold(torch.from_numpy(held), false_alarm)
    alarm = values > limit
    if is_normal is None:
        return {"threshold": limit, "alarm_rate": float(alarm.mean())}
    rates = {"false_alarm_rate": alarm[is_normal], "detection_rate": alarm[~is_normal]}
    return {"threshold": limit} | {name: float(of.mean()) for name, of in rates.items() if len(of)}


def _most_anomalous(
    scorer: Scorer, x: np.ndarray, y: np.ndarray | None, values: np.ndarray, aside: np.ndarray, loaded: Data
) -> Any:
    """The examples with the largest values, below each its reconstruction and where the two differ."""
    from twofold.pictures import error_maps, labelled_grid

    model = scorer.model
    if model.spec.kind != "image":
        return None
    worst = np.argsort(-np.where(aside, -np.inf, values), kind="stable")[: min(SHOWN, int((~aside).sum()))]
    if not len(worst):
        return None
    names = loaded.spec.class_names or ()
    words = [f"{values[k]:.3g}" for k in worst]
    if y is not None:
        words = [f"{names[y[k]] if names else y[k]}: {word}" for k, word in zip(worst, words, strict=True)]
    shown = seen(model, x[worst])
    rows: list[tuple[str, Any]] = [("x", shown)]
    if "reconstruct" in model.abilities:
        labels = y[worst] if model.recipe.conditional and y is not None else None
        x_rec = seen(model, model.reconstruct(x[worst], labels=labels))
        rows += [("rec", x_rec), ("error", error_maps(shown, x_rec))]
    return labelled_grid(rows, columns=words)


def _table(
    index: torch.Tensor,
    y: np.ndarray | None,
    is_normal: np.ndarray | None,
    aside: np.ndarray,
    values: Mapping[str, np.ndarray],
    thresholds: Mapping[str, float | None],
) -> dict[str, Sequence[Any]]:
    """The columns of scores.csv."""
    columns: dict[str, Sequence[Any]] = {"index": index.tolist()}
    if y is not None:
        columns["label"] = y.tolist()
    if is_normal is not None:
        columns["normal"] = is_normal.astype(int).tolist()
    if aside.any():
        columns["calibration"] = aside.astype(int).tolist()
    for name, one in values.items():
        columns[name] = [f"{value:.7g}" for value in one]
        limit = thresholds[name]
        if limit is not None:
            columns[f"{name}_alarm"] = (one > limit).astype(int).tolist()
    return columns


def _write(folder: Path, record: dict[str, Any], table: Mapping[str, Sequence[Any]], picture: Any) -> None:
    from twofold.pictures import png_bytes

    write_file(folder / "scores.csv", csv_bytes(table))
    write_file(folder / "scores.json", json_bytes(record))
    if picture is not None:
        write_file(folder / "most-anomalous.png", png_bytes(picture))


def csv_bytes(columns: Mapping[str, Sequence[Any]]) -> bytes:
    """Columns of equal length as a CSV file with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue().encode()


# Classes.


def classify(
    model: Model,
    *,
    data: Any = None,
    data_options: Mapping[str, Any] | None = None,
    split: str = "test",
    n: int = EXAMPLES,
    seed: int = 0,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """The model's probability of each class, or cluster, for examples of `data` (None: the run's own): a .csv with a
    row per example (index, label if there is one, the most probable class, all probabilities), or a .json of the same
    beside what is returned.

    Returns {"file", "data", "split", "examples", "classes"} and, where the data has labels, "accuracy" (the most
    probable class has the label's number: for models that were shown labels) and "cluster_accuracy" (the same after
    each class is named by the most frequent label of the training examples in it, at most 10,000 of them: for
    clusters), each with its standard error "…_se".
    """
    refuse_unable(model, "classify")
    _refuse_numbers(Settings(seed=seed), split, n, None)
    path = Path(out) if out is not None else (model.run.path if model.run else Path()) / "classes.csv"
    if path.suffix not in (".csv", ".json"):
        raise InputError(f"out is {str(path)!r}; give a .csv or a .json")
    loaded = data_for(model, data, data_options)
    part, index = _scored(loaded, split, n, seed)
    x, y = chosen(model, loaded, part, index)
    probabilities = model.classify(x)
    most = probabilities.argmax(1)
    record: dict[str, Any] = {
        "file": str(path), "data": loaded.name, "split": split, "examples": len(x), "classes": probabilities.shape[1],
    }  # fmt: skip
    if y is not None:
        few, known = chosen(model, loaded, loaded.train, shuffled(len(loaded.train), seed)[:EXAMPLES])
        assert known is not None
        names = _majority(model.classify(few).argmax(1), known, probabilities.shape[1])
        for name, right in (("accuracy", most == y), ("cluster_accuracy", names[most] == y)):
            share = float(right.mean())
            record |= {name: share, f"{name}_se": float(np.sqrt(share * (1 - share) / len(y)))}
    columns: dict[str, Sequence[Any]] = {"index": index.tolist()}
    columns |= {} if y is None else {"label": y.tolist()}
    columns["class"] = most.tolist()
    columns |= {f"p{k}": [float(f"{p:.7g}") for p in probabilities[:, k]] for k in range(probabilities.shape[1])}
    write_file(path, csv_bytes(columns) if path.suffix == ".csv" else json_bytes(record | {"columns": columns}))
    return record


def _majority(found: np.ndarray, labels: np.ndarray, clusters: int) -> np.ndarray:
    """The most frequent label in each cluster, (clusters,); -1 for an empty one, which is never right."""
    return np.array([np.bincount(labels[found == k]).argmax() if (found == k).any() else -1 for k in range(clusters)])
