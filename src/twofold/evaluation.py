"""Measure a trained model: `evaluate`, and the list of metrics it knows.

Read from `METRICS`: each entry says what it measures, what model and data it needs, and how. What they have in common
(which examples, how many, which seeds, which extractor) is in `study.py`; the mathematics is in `metrics/`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twofold import recipes
from twofold.data import from_model, shapes
from twofold.errors import InputError, unknown
from twofold.metrics import perceptual, sliced, structure
from twofold.metrics.bits import bits_per_dimension, dequantised, parzen_log_likelihood, parzen_sigma
from twofold.metrics.clusters import clustering_accuracy, purity
from twofold.metrics.critic import critic_scores
from twofold.metrics.disentangle import (
    beta_vae_score,
    dci,
    difference_features,
    factor_vae_score,
    mutual_information_gap,
    separated_predictability,
)
from twofold.metrics.frechet import frechet_distance
from twofold.metrics.inception_score import inception_score
from twofold.metrics.kernel import kernel_distance
from twofold.metrics.manifold import manifold_figures, nearest_neighbour_accuracy
from twofold.metrics.modes import mode_coverage
from twofold.metrics.probes import discriminator_features, few_label_curve, linear_probe
from twofold.metrics.record import Result, standard_error
from twofold.metrics.spectrum import high_frequency_power_ratio
from twofold.model import Model, evaluating, load, record_of
from twofold.run import write_json
from twofold.study import Study, count_for
from twofold.translation_figures import (
    couple_agreement,
    cycle_errors,
    identity_errors,
    l1_to_target,
    labels_of_photos,
    no_couples,
    no_cycle,
    no_identity,
    no_labels_of_photos,
    no_photos_of_labels,
    no_target,
    no_translation,
    photos_of_labels,
    variant_distance,
)
from twofold.using import data_for

STORED = "evaluation.json"
"""The file of a run that keeps what was measured."""

K_MANIFOLD, K_DENSITY = 3, 5
DIRECTIONS = 512
PAIRS = 1_000
CRITIC_STEPS = 500
IW_DRAWS, IW_EXAMPLES = 50, 500
PARZEN_SAMPLES = 10_000
MODE_SAMPLES = 2_500
FEW_LABELS, FEW_LABEL_DRAWS = (1, 5, 10, 50), 5
PAIRS_PER_VOTE, VOTES, TRAIN_VOTES = 16, 2_800, 2_000
VARIED = (2, 3, 4, 5)
"""The factors of sprites that the β-VAE metric holds fixed: scale, orientation and both positions, not the shape."""
COMPONENTS, FITTED_PICTURES = 10, 10_000
"""PCA and ICA baselines: their number of components, and of the pictures they are fitted on."""


@dataclass(frozen=True)
class Metric:
    """One entry of `--metrics list`."""

    name: str
    help: str
    measure: Callable[[Study], list[Result]]
    lacks: Callable[[Study], str | None]
    """Why this model and data cannot be measured so, or None. Looks at nothing expensive."""
    on_request: bool = False
    """Measured only when named: it takes minutes, or is kept for the record."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found."""

    results: tuple[Result, ...]
    left_out: Mapping[str, str]
    """Metrics that were tried and could not be measured, and why."""

    def __getitem__(self, name: str) -> Result:
        """The result whose name is `name` or begins with it. Raises `KeyError` unless there is exactly one."""
        exact = [r for r in self.results if r.name == name]
        found = exact or [r for r in self.results if r.name.startswith(f"{name}_")]
        if len(found) != 1:
            raise KeyError(f"{name!r} stands for {[r.name for r in found]}; there are {[r.name for r in self.results]}")
        return found[0]


def evaluate(
    run: str | Path | Model,
    *,
    data: Any = None,
    metrics: str | Sequence[str] | None = None,
    examples: int | None = None,
    seed: int = 0,
    features: str | None = None,
    checkpoint: int | None = None,
    device: str = "cpu",
    data_options: Mapping[str, Any] | None = None,
    download: bool = False,
    json: str | Path | None = None,
    only_possible: bool = False,
    ignore: Sequence[int] = (),
    note: Callable[[str], None] | None = None,
) -> Evaluation:
    """Measure a trained model and keep the results in its run directory.

    Args:
        run: a run directory or a loaded model.
        data: what to compare with; None: the data the run was trained on. Its test split is used where it has one.
        metrics: names of `METRICS`, also as one text with commas. None: all that model and data allow, but those that
            take minutes.
        examples: samples and real examples to compare; None: 2,000, or as many real ones as there are.
        seed: of the samples, and of what the metrics draw.
        features: "classifier", "pixels" or "inception"; None: a classifier for labelled images, else the values.
        download: consent to downloading the Inception weights (95 MB) if they are not here.
        json: also write this call's results to this file.
        only_possible: leave out what is named and this model cannot be measured by, instead of refusing it.
        ignore: of label maps, the classes whose pixels count nowhere, by their number in the palette.
        note: told the name of each metric before it is measured.

    Raises `InputError` for a metric that does not exist or was named and cannot be measured.

    >>> model = twofold.train("vae", data="digits", examples=640, out=tmp / "run")
    >>> found = twofold.evaluate(model, metrics="mse,high_frequency", examples=100)
    >>> [result.name for result in found.results]
    ['mse_100_test', 'high_frequency_ratio_100_test_cutoff0.25']
    """
    named = chosen_metrics(metrics)
    model = run if isinstance(run, Model) else load(run, checkpoint=checkpoint, device=device)
    _refuse_without_samples(model)
    loaded = data_for(model, data, data_options)
    if json is not None and not Path(json).parent.is_dir():
        raise InputError(f"json is {str(json)!r}, but there is no folder {str(Path(json).parent)!r}")
    count = count_for(loaded, examples)
    study = Study(model, loaded, count, seed, features, download, ignore=tuple(ignore))
    found = measure(study, named, only_possible=only_possible, note=note)
    if model.run is not None:
        _store(model, found.results)
    if json is not None:
        write_json(json, {"results": [result.to_json() for result in found.results], "left_out": found.left_out})
    return found


def measure(
    study: Study,
    named: Sequence[Metric] = (),
    *,
    only_possible: bool = False,
    note: Callable[[str], None] | None = None,
) -> Evaluation:
    """The figures of a study: of the metrics `named`, or of all that it allows but those that take minutes. Keeps
    nothing. `only_possible` and `note` as in `evaluate`; raises as it does."""
    chosen = named or [metric for metric in METRICS if not metric.on_request and metric.lacks(study) is None]
    left_out = {metric.name: reason for metric in named if (reason := metric.lacks(study))}
    for name, reason in left_out.items():
        if not only_possible:
            raise InputError(f"{name} cannot be measured: {reason}")
    results: list[Result] = []
    for metric in chosen:
        if metric.name in left_out:
            continue
        if note is not None:
            note(metric.name)
        try:
            results += metric.measure(study)
        except InputError as error:
            # A generator that makes one grey image, say, has no spectrum: that is found, and the others still count.
            if named and not only_possible:
                raise InputError(f"{metric.name}: {error}") from None
            left_out[metric.name] = str(error)
    return Evaluation(tuple(results), left_out)


def stored_results(model: Model) -> list[Result]:
    """What `evaluate` kept in the model's run directory for the checkpoint that is loaded."""
    return [
        Result.from_json({k: v for k, v in record.items() if k != "trained_examples"})
        for record in _records(model)
        if record.get("trained_examples") == model.examples
    ]


def availability(run: str | Path, *, data: Any = None, data_options: Mapping[str, Any] | None = None) -> list[str]:
    """A line for each metric: its name, what it is, and why this run cannot be measured so, if it cannot."""
    model = load(run)
    _refuse_without_samples(model)
    loaded = data_for(model, data, data_options)
    study = Study(model, loaded, count_for(loaded, None))
    lines = []
    for metric in METRICS:
        reason = metric.lacks(study)
        state = f"no: {reason}" if reason else "when named" if metric.on_request else "yes"
        lines.append(f"{metric.name:<22}{metric.help} [{state}]")
    return lines


def results_table(results: Sequence[Result]) -> str:
    """The results as text, one a line: name, value ± one standard error, the real data's value, what is better."""
    rows = [("metric", "value", "", "real data", "better")]
    for r in results:
        error = "" if r.uncertainty is None else f"± {r.uncertainty:.2g}"
        beside = "" if r.reference is None else f"{r.reference:.4g}"
        words = {"higher": "higher", "lower": "lower", "data": "as real data"}
        rows.append((r.name, f"{r.value:.4g}", error, beside, words[r.better]))
    widths = [max(len(row[k]) for row in rows) for k in range(5)]
    return "\n".join(
        f"{name:<{widths[0]}}  {value:>{widths[1]}} {error:<{widths[2]}}  {beside:>{widths[3]}}  {better}".rstrip()
        for name, value, error, beside, better in rows
    )


def chosen_metrics(metrics: str | Sequence[str] | None) -> list[Metric]:
    """The entries of `METRICS` that are named, none for None. Raises `InputError` for a name that is not there."""
    if metrics is None:
        return []
    by_name = {metric.name: metric for metric in METRICS}
    words = [word.strip() for word in metrics.split(",")] if isinstance(metrics, str) else list(metrics)
    for word in words:
        if word not in by_name:
            raise unknown("metric", word, by_name)
    if not words:
        raise InputError("no metric is named; leave metrics out to measure what there is")
    return [by_name[word] for word in dict.fromkeys(words)]


def _records(model: Model) -> list[dict[str, Any]]:
    if model.run is None or not (model.run.path / STORED).exists():
        return []
    record = model.run.read_json(STORED)
    kept = record.get("results") if isinstance(record, dict) else None
    if not isinstance(kept, list) or not all(isinstance(r, dict) for r in kept):
        raise InputError(f"{model.run.path / STORED} is not as `twofold evaluate` writes it; remove it")
    return kept


def _store(model: Model, results: Sequence[Result]) -> None:
    """Keep `results`, in the place of older ones of the same name, checkpoint and seed."""
    assert model.run is not None
    new = [{**result.to_json(), "trained_examples": model.examples} for result in results]

    def key(record: Mapping[str, Any]) -> tuple[Any, ...]:
        said = record.get("protocol", {})
        return record.get("name"), record.get("trained_examples"), said.get("seed"), said.get("data_sha256")

    replaced = {key(record) for record in new}
    kept = [record for record in _records(model) if key(record) not in replaced]
    model.run.write_json(STORED, {"results": kept + new})


# What a metric needs.


def _refuse_without_samples(model: Model) -> None:
    if not {"sample", "translate"} & set(model.abilities):
        raise InputError(
            f"evaluate measures models that sample or translate; this one can {', '.join(model.abilities)}"
        )


def _samples(study: Study) -> str | None:
    """Translations of held-out inputs are the samples of a model that only translates."""
    return no_translation(study) if study.translates else None


def _images(study: Study, least: int = 4) -> str | None:
    shape = study.model.spec.shape
    if study.model.spec.kind != "image":
        return "it is for images"
    return f"it is for images of {least} pixels or more" if min(shape[1:]) < least else None


def _patches(study: Study) -> str | None:
    return _images(study, sliced.LEAST_SIDE) or _samples(study)


def _pictured(study: Study) -> str | None:
    return _images(study) or _samples(study)


def _can(*abilities: str) -> Callable[[Study], str | None]:
    def lacks(study: Study) -> str | None:
        absent = [a for a in abilities if a not in study.model.recipe.abilities]
        return f"this model cannot {absent[0]}" if absent else None

    return lacks


def _classified(study: Study) -> str | None:
    """Probabilities of classes, from the extractor that is chosen."""
    from twofold.extractors import unlabelled

    if study.features == "pixels":
        return "the values themselves give no classes"
    return _samples(study) or (None if study.features == "inception" else unlabelled(study.data))


def _labelled(*abilities: str) -> Callable[[Study], str | None]:
    def lacks(study: Study) -> str | None:
        if study.data.train.y is None or (study.data.spec.classes or 0) < 2:
            return f"{study.data.name} has no labels"
        if not study.data.test:
            return f"{study.data.name} has no test split"
        return _can(*abilities)(study)

    return lacks


def _discriminated(study: Study) -> str | None:
    pairs = study.model.spec.input is not None
    if "discriminator" not in study.model.recipe.nets or study.model.recipe.conditional or pairs:
        return "this model has no discriminator of data alone"
    return _labelled()(study) or _images(study)


def _dequantisable(study: Study) -> str | None:
    if "elbo" not in study.model.recipe.abilities:
        return "this model has no likelihood"
    if study.data.train.x.dtype.is_floating_point:
        return f"{study.data.name} is not stored in whole grey levels"
    if study.model.spec.kind != "image":
        return "it is for images of whole grey levels"
    likelihood = _likelihood(study)
    return None if likelihood in DENSITIES + PROBABILITIES else f"the likelihood {likelihood} of grey values is none"


def _mixture(study: Study) -> str | None:
    return None if study.data.modes is not None else f"the modes of {study.data.name} are not known"


def _rendered(study: Study) -> str | None:
    if study.data.name not in ("shapes", "shapes-32"):
        return f"it draws pictures with chosen factors, which it cannot for {study.data.name} (it can for shapes)"
    if study.model.recipe.conditional:
        return "this model is conditional"
    return _can("encode")(study)


def _factored(study: Study) -> str | None:
    factors = study.held_out.factors
    if factors is None or len(_discrete(factors)) < 2:
        return f"{study.data.name} has no two known factors of few values"
    return _can("encode")(study)


def _perceived(study: Study) -> str | None:
    return _images(study, 64) or _can("reconstruct")(study) or perceptual.missing()


def _both(*checks: Callable[[Study], str | None]) -> Callable[[Study], str | None]:
    return lambda study: next((reason for check in checks if (reason := check(study))), None)


# Samples against data.


def _extracted(study: Study, inception: str, own: str) -> tuple[str, str]:
    """The metric's name under this extractor: published names are for the published extractor only."""
    label = study.extractor.label
    return (own, label) if label else (inception, "")


def _frechet(study: Study) -> list[Result]:
    name, label = _extracted(study, "fid", "fd")
    sets = study.feature_sets
    return study.between_sets(
        {name: "lower"}, lambda a, b: [frechet_distance(a, b)], sets, label,
        dimensions=sets[0].shape[1], **study.extractor.protocol,
    )  # fmt: skip


def _kernel(study: Study) -> list[Result]:
    name, label = _extracted(study, "kid", "kd")
    return study.between_sets(
        {name: "lower"}, lambda a, b: [kernel_distance(a, b)], study.feature_sets, label,
        kernel="(x·y / d + 1)^3, all pairs", **study.extractor.protocol,
    )  # fmt: skip


def _inception_score(study: Study) -> list[Result]:
    name, label = _extracted(study, "inception_score", "classifier_score")
    probabilities = study.extractor.probabilities
    if probabilities is None:
        raise InputError("the values themselves give no classes; use --features classifier or inception")
    splits = 10 if study.count >= 1000 else max(1, study.count // 100)
    value, spread = inception_score(probabilities(study.samples), splits=splits)
    beside = None if study.reference is None else inception_score(probabilities(study.reference), splits=splits)[0]
    said = study.protocol(
        splits=splits, uncertainty="deviation over splits", **study.made(), **study.extractor.protocol
    )
    full = study.name_of_samples(name, f"{splits}splits", label)
    return [Result(full, value, "higher", said, spread if splits > 1 else None, beside)]


def _manifold(study: Study) -> list[Result]:
    better = {
        f"precision_k{K_MANIFOLD}": "higher",
        f"recall_k{K_MANIFOLD}": "higher",
        f"density_k{K_DENSITY}": "data",
        f"coverage_k{K_DENSITY}": "higher",
    }
    label = study.extractor.label or "inception"

    def figures(a: Tensor, b: Tensor) -> Sequence[float]:
        return manifold_figures(a, b, k=K_MANIFOLD, k_density=K_DENSITY)

    return study.between_sets(better, figures, study.feature_sets, label, **study.extractor.protocol)


def _values(study: Study) -> tuple[Tensor, Tensor, Tensor | None]:
    return study.samples, study.real[0], study.reference


def _sliced(study: Study) -> list[Result]:
    def distance(a: Tensor, b: Tensor) -> Sequence[float]:
        return [sliced.sliced_wasserstein(a, b, projections=DIRECTIONS, generator=study.generator())]

    flat = tuple(None if x is None else x.flatten(1) for x in _values(study))
    note = f"w1_{DIRECTIONS}directions"
    return study.between_sets({"swd": "lower"}, distance, flat, note, order=1, directions=DIRECTIONS)  # type: ignore[arg-type]


def _sliced_patches(study: Study) -> list[Result]:
    def distances(a: Tensor, b: Tensor) -> Sequence[float]:
        return list(sliced.patch_distances(a, b, projections=DIRECTIONS, generator=study.generator()).values())

    levels = [level.shape[2] for level in sliced.laplacian_pyramid(study.real[0][:1])]
    names = {f"swd_patches{side}px_x1000": "lower" for side in levels}
    said = {"order": 1, "directions": DIRECTIONS, "patches": "128 of 7×7 a picture and level"}
    return study.between_sets(names, distances, _values(study), **said)


def _diversity(study: Study) -> list[Result]:
    size = study.model.spec.shape[1:]
    window, scales = structure.window_for(size), structure.scales_for(size)

    def values(x: Tensor) -> Tensor:
        return 1 - structure.mean_similarity(x, pairs=PAIRS, generator=study.generator())

    found = values(study.samples)
    said = study.protocol(
        pairs=PAIRS, window=window, scales=scales, uncertainty="standard error over pairs", **study.made()
    )
    name = study.name_of_samples("ms_ssim_diversity", f"{PAIRS}pairs_w{window}_s{scales}")
    beside = float(values(study.real[0]).mean())
    return [Result(name, float(found.mean()), "data", said, standard_error(found), beside)]


def _high_frequency(study: Study) -> list[Result]:
    return study.between_sets(
        {"high_frequency_ratio": "data"}, lambda a, b: [high_frequency_power_ratio(a, b)], _values(study),
        "cutoff0.25", cutoff_cycles_per_pixel=0.25,
    )  # fmt: skip


def _critic(study: Study) -> list[Result]:
    """Half of the real examples train the critic, the other half are scored; the samples likewise."""

    def distance(fake: Tensor) -> tuple[Tensor, Tensor]:
        half = study.count // 2
        real = study.real[0]
        return critic_scores(
            study.model.spec, fake[:half], real[:half], fake[half:], real[half:], steps=CRITIC_STEPS, seed=study.seed
        )

    on_real, on_fake = distance(study.samples)
    value = float(on_real.mean() - on_fake.mean())
    errors = (standard_error(on_real), standard_error(on_fake))
    spread = None if None in errors else sum(e**2 for e in errors if e is not None) ** 0.5
    beside = None
    if study.reference is not None:
        scores = distance(study.reference)
        beside = float(scores[0].mean() - scores[1].mean())
    said = study.protocol(
        steps=CRITIC_STEPS, penalty="gradient penalty, weight 10", trained_on=f"half of the {study.split} split",
        uncertainty="standard error over examples, of this one critic", **study.made(),
    )  # fmt: skip
    return [
        Result(
            study.name_of_samples("wasserstein_critic", f"{CRITIC_STEPS}steps"), value, "lower", said, spread, beside
        )
    ]


def _modes(study: Study) -> list[Result]:
    modes, std = study.data.modes, study.data.mode_std
    assert modes is not None and std is not None

    def figures(x: Tensor) -> Sequence[float]:
        return mode_coverage(torch.from_numpy(from_model(x, study.model.spec)), modes, std)

    found = figures(study.model.sample_tensor(MODE_SAMPLES, seed=study.seed))
    beside = figures(study.take(study.data.train, MODE_SAMPLES)[0])
    share = found[1]
    errors = (None, (share * (1 - share) / MODE_SAMPLES) ** 0.5, None)
    said = study.protocol(count=MODE_SAMPLES, sigmas=3, uncertainty="binomial, of the share")
    names = {f"modes_of_{len(modes)}": "higher", "high_quality_share": "higher", "reverse_kl_nats": "lower"}
    return [
        Result(study.name(name, "3sigma", count=MODE_SAMPLES), float(value), better, said, error, of_data)
        for (name, better), value, error, of_data in zip(names.items(), found, errors, map(float, beside), strict=True)
    ]


# Likelihood.

DENSITIES = ("normal", "laplace")
PROBABILITIES = ("categorical", "logistic-mixture")


def _likelihood(study: Study) -> str:
    run, config = study.model.run, study.config
    if config is None:
        config = run.config.get("config", {}) if run else {}
    return str(config.get("likelihood", "unknown"))


def _kind(study: Study) -> str:
    return f"{_likelihood(study)}, in the model's range"


def _elbo(study: Study) -> list[Result]:
    bound = study.score("elbo", study.real[0])
    return [
        study.mean("elbo_nats", -(bound["rate_nats"] + bound["distortion_nats"]), "higher", likelihood=_kind(study)),
        study.mean("rate_nats", bound["rate_nats"], "lower", likelihood=_kind(study)),
        study.mean("distortion_nats", bound["distortion_nats"], "lower", likelihood=_kind(study)),
    ]


def _iw_bound(study: Study) -> list[Result]:
    values = study.score("iw_bound", study.real[0][:IW_EXAMPLES], k=IW_DRAWS)["log_prob_nats"]
    return [study.mean(f"iw{IW_DRAWS}_bound_nats", values, "higher", likelihood=_kind(study), k=IW_DRAWS)]


def _bits(study: Study) -> list[Result]:
    spec, x = study.data.spec, study.real[0][:IW_EXAMPLES]
    # One grey level of the source, in the model's range of length 2.
    width = 2 / (spec.high - spec.low) if _likelihood(study) in DENSITIES else None
    if width is not None:
        x = dequantised(x, width, generator=study.generator())
    draws = IW_DRAWS if "iw_bound" in study.model.recipe.abilities else 1
    if draws > 1:
        nats = study.score("iw_bound", x, k=draws)["log_prob_nats"]
    else:
        bound = study.score("elbo", x)
        nats = -(bound["rate_nats"] + bound["distortion_nats"])
    said = {"k": draws, "likelihood": _kind(study), "dequantised": width is not None}
    return [
        study.mean(f"bits_per_dim_iw{draws}", bits_per_dimension(nats, spec.size, bin_width=width), "lower", **said)
    ]


def _parzen(study: Study) -> list[Result]:
    """In [0, 1] for images, as the tables have it."""
    spec = study.model.spec

    def scaled(x: Tensor) -> Tensor:
        return (x.flatten(1).double() + 1) / 2 if spec.kind == "image" else x.flatten(1).double()

    samples = scaled(study.model.sample_tensor(PARZEN_SAMPLES, seed=study.seed))
    validation = scaled(study.take(study.data.train, min(1000, len(study.data.train)))[0])
    sigma = parzen_sigma(samples, validation)
    values = parzen_log_likelihood(samples, scaled(study.real[0]), sigma=sigma)
    said = {"sigma": sigma, "samples": PARZEN_SAMPLES, "historical": True, "sigma_from": "1,000 training examples"}
    return [study.mean("historical_parzen_nats", values, "higher", "10k_samples", **said)]


# Reconstruction.


def _mse(study: Study) -> list[Result]:
    return [study.mean("mse", structure.mse(study.reconstructions, study.real[0]), "lower", range="-1 to 1, mean")]


def _structure(study: Study) -> list[Result]:
    x, rec, size = study.real[0], study.reconstructions, study.model.spec.shape[1:]
    window, scales = structure.window_for(size), structure.scales_for(size)
    found = [
        study.mean("psnr_db", structure.psnr(rec, x), "higher"),
        study.mean("ssim", structure.ssim(rec, x), "higher", f"w{window}", window=window),
    ]
    if scales > 1:
        values = structure.ms_ssim(rec, x)
        found += [study.mean("ms_ssim", values, "higher", f"w{window}_s{scales}", window=window, scales=scales)]
    return found


def _lpips(study: Study) -> list[Result]:
    return [study.mean("lpips_alex_v0.1", perceptual.lpips(study.reconstructions, study.real[0]), "lower")]


# Representations.


def _known(study: Study, x: Tensor, y: Tensor | None) -> Tensor:
    if y is None:
        raise InputError(f"{study.data.name} has no labels")
    return y


def _probed(study: Study, name: str, train: Tensor, test: Tensor) -> list[Result]:
    y_train, y_test = _known(study, *study.train[:2]), _known(study, *study.real[:2])
    said = {"features": name, "train": len(train), "dimensions": train.shape[1]}
    return [
        study.mean("linear_probe", linear_probe(train, y_train, test, y_test, seed=0), "higher", name, **said),
        study.mean("1nn", nearest_neighbour_accuracy(train, y_train, test, y_test), "higher", name, **said),
    ]


def _probes(study: Study) -> list[Result]:
    codes = _probed(study, "codes", *study.codes)
    raw = _probed(study, "values", study.train[0].flatten(1), study.real[0].flatten(1))
    return [replace(result, reference=of_raw.value) for result, of_raw in zip(codes, raw, strict=True)]


def _discriminator(study: Study) -> tuple[Tensor, Tensor]:
    net, device = study.model.nets["discriminator"], study.model.device
    with evaluating(study.model.nets):
        train, test = (
            torch.cat([discriminator_features(net, block.to(device)).cpu() for block in x.split(256)])
            for x in (study.train[0], study.real[0])
        )
    return train, test


def _discriminator_probes(study: Study) -> list[Result]:
    return _probed(study, "discriminator", *_discriminator(study))


def _few_labels(study: Study) -> list[Result]:
    y_train, y_test = _known(study, *study.train[:2]), _known(study, *study.real[:2])
    sets = {"values": (study.train[0].flatten(1), study.real[0].flatten(1))}
    if "encode" in study.model.recipe.abilities:
        sets["codes"] = study.codes
    if _discriminated(study) is None:
        sets["discriminator"] = _discriminator(study)
    found = []
    for name, (train, test) in sets.items():
        curve = few_label_curve(train, y_train, test, y_test, labels=FEW_LABELS, draws=FEW_LABEL_DRAWS)
        for labels, (value, spread) in curve.items():
            said = study.protocol(
                features=name, labels_per_class=labels, draws=FEW_LABEL_DRAWS, uncertainty="deviation over draws"
            )
            full = study.name("linear_probe", f"{labels}labels_per_class", name)
            found.append(Result(full, value, "higher", said, spread))
    return found


def _clusters(study: Study) -> list[Result]:
    labels = _known(study, *study.real[:2])
    probabilities = study.run("classify", study.real[0], study.real[1])
    clusters = probabilities.argmax(1)
    note, said = f"{probabilities.shape[1]}clusters", {"clusters": probabilities.shape[1]}
    return [
        study.mean("purity", purity(clusters, labels), "higher", note, **said),
        study.mean("clustering_accuracy", clustering_accuracy(clusters, labels), "higher", note, **said),
    ]


# Disentanglement.


def _encoder(study: Study) -> Callable[[Tensor], Tensor]:
    """Factor indices → codes of this model."""
    return lambda factors: study.run("encode", _pictures(study, factors)).flatten(1)


def _pictures(study: Study, factors: Tensor) -> Tensor:
    return shapes.render(factors, size=study.model.spec.shape[1]).float() / 127.5 - 1


def _beta_protocol() -> dict[str, Any]:
    return {
        "pairs_per_vote": PAIRS_PER_VOTE,
        "train_votes": TRAIN_VOTES,
        "factors": [shapes.factor_names[k] for k in VARIED],
        "count": VOTES - TRAIN_VOTES,
        "classifier": "standardised multinomial logistic regression",
        "uncertainty": "standard error over test votes",
    }


def _beta_votes(study: Study, encoders: Mapping[str, Callable[[Tensor], Tensor]]) -> list[Result]:
    features, fixed = difference_features(
        list(encoders.values()), shapes.factor_sizes, VARIED, pairs=PAIRS_PER_VOTE, votes=VOTES, seed=study.seed
    )
    found = []
    for name, x in zip(encoders, features, strict=True):
        note = f"L{PAIRS_PER_VOTE}_{len(VARIED)}factors"
        right = beta_vae_score(x, fixed, train=TRAIN_VOTES)
        found.append(study.mean("beta_vae_score", right, "higher", note, name, **_beta_protocol()))
    return found


def _beta_vae(study: Study) -> list[Result]:
    return _beta_votes(study, {"codes": _encoder(study)})


def _beta_vae_baselines(study: Study) -> list[Result]:
    """Ground truth, raw pixels, PCA, ICA and the model's own networks untrained."""
    from twofold.metrics.linear_codes import ica, pca

    drawn = study.take(study.data.train, FITTED_PICTURES)[0].flatten(1)
    principal, independent = pca(drawn, COMPONENTS), ica(drawn, COMPONENTS, seed=0)
    untrained = replace(study, model=_untrained(study.model))

    def flat(factors: Tensor) -> Tensor:
        return _pictures(study, factors).flatten(1)

    encoders: dict[str, Callable[[Tensor], Tensor]] = {
        "ground_truth": lambda factors: factors.double(),
        "raw_pixels": flat,
        f"pca{COMPONENTS}": lambda factors: principal(flat(factors)),
        f"ica{COMPONENTS}": lambda factors: independent(flat(factors)),
        "untrained": _encoder(untrained),
    }
    return _beta_votes(study, encoders)


def _untrained(model: Model) -> Model:
    if model.run is None:
        raise InputError("the model belongs to no run, so its networks cannot be made anew")
    record = record_of(model.run)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, recipe = recipes.build(record["recipe"], model.spec, record["config"])
    return Model(recipe, recipe.nets)


def _factor_vae(study: Study) -> list[Result]:
    varied = [k for k, size in enumerate(shapes.factor_sizes) if size > 1]
    right = factor_vae_score(_encoder(study), shapes.factor_sizes, varied, seed=study.seed)
    note = f"B64_{len(varied)}factors"
    said = {"batch": 64, "train_votes": 800, "factors": [shapes.factor_names[k] for k in varied]}
    return [study.mean("factor_vae_score", right, "higher", note, uncertainty="standard error over test votes", **said)]


def _discrete(factors: Tensor) -> list[int]:
    """Columns with at least 2 and at most 64 values."""
    return [k for k in range(factors.shape[1]) if 2 <= len(factors[:, k].unique()) <= 64]


def _coded(study: Study) -> tuple[Tensor, Tensor, dict[str, Any]]:
    x, y, factors = study.take(study.held_out, min(len(study.held_out), 10_000))
    assert factors is not None
    kept = _discrete(factors)
    return study.run("encode", x, y).flatten(1), factors[:, kept], {"factors": kept, "examples": len(x)}


def _over_factors(study: Study, metric: str, values: Tensor, note: str, said: Mapping[str, Any]) -> Result:
    protocol = study.protocol(**said, count=said["examples"])
    return Result(study.name(metric, note, count=said["examples"]), float(values.mean()), "higher", protocol)


def _mig(study: Study) -> list[Result]:
    codes, factors, said = _coded(study)
    gaps = mutual_information_gap(codes, factors, bins=20)
    return [_over_factors(study, "mig", gaps, f"20bins_{factors.shape[1]}factors", {**said, "bins": 20})]


def _sap(study: Study) -> list[Result]:
    codes, factors, said = _coded(study)
    gaps = separated_predictability(codes[:5000], factors[:5000], train=min(5000, len(codes)) * 4 // 5)
    return [_over_factors(study, "sap", gaps, f"{factors.shape[1]}factors", {**said, "classifier": "linear SVM"})]


def _dci(study: Study) -> list[Result]:
    codes, factors, said = _coded(study)
    figures = dci(codes[:5000], factors[:5000], train=min(5000, len(codes)) * 4 // 5)
    note, said = f"{factors.shape[1]}factors", {**said, "predictor": "boosted trees"}
    return [
        _over_factors(study, f"dci_{name}", torch.tensor(value), note, said)
        for name, value in figures._asdict().items()
    ]


METRICS = (
    Metric("frechet", "Fréchet distance of features (FID with Inception)", _frechet, _samples),
    Metric("kernel", "kernel distance of features (KID with Inception)", _kernel, _samples),
    Metric(
        "inception_score", "sure and varied answers of a classifier", _inception_score, _both(_samples, _classified)
    ),
    Metric("manifold", "precision, recall, density and coverage", _manifold, _samples),
    Metric("sliced", "sliced Wasserstein distance of the values", _sliced, _samples),
    Metric(
        "sliced_patches",
        "the same of patches, at each scale",
        _sliced_patches,
        _both(_patches, _samples),
        on_request=True,
    ),
    Metric("diversity", "1 - mean MS-SSIM of pairs of samples", _diversity, _pictured),
    Metric(
        "high_frequency",
        "power above 0.25 cycles per pixel, relative to the data's",
        _high_frequency,
        _both(_images, _samples),
    ),
    Metric("critic", "an independent Wasserstein critic", _critic, _samples),
    Metric("modes", "modes hit, share of good samples, reverse KL", _modes, _both(_can("sample"), _mixture)),
    Metric("elbo", "evidence lower bound, rate and distortion", _elbo, _can("elbo")),
    Metric("iw_bound", f"importance-weighted bound, k = {IW_DRAWS}", _iw_bound, _can("iw_bound")),
    Metric("bits", "bits per dimension, from the tightest bound there is", _bits, _dequantisable),
    Metric("parzen", "Parzen-window log-likelihood, for historical tables", _parzen, _can("sample"), on_request=True),
    Metric("mse", "mean squared error of reconstructions", _mse, _can("reconstruct")),
    Metric("structure", "PSNR, SSIM, MS-SSIM of reconstructions", _structure, _both(_images, _can("reconstruct"))),
    Metric("lpips", "LPIPS of reconstructions, if its weights are here", _lpips, _perceived),
    Metric("probes", "linear SVM and 1-NN on codes (beside raw values)", _probes, _labelled("encode")),
    Metric("discriminator_probes", "the same on the discriminator's blocks", _discriminator_probes, _discriminated),
    Metric("few_labels", "linear probes with 1 to 50 labels a class", _few_labels, _labelled(), on_request=True),
    Metric("clusters", "purity and accuracy of predicted clusters", _clusters, _labelled("classify")),
    Metric("mig", "mutual information gap", _mig, _factored),
    Metric("sap", "separated attribute predictability", _sap, _factored, on_request=True),
    Metric("dci", "disentanglement, completeness, informativeness", _dci, _factored, on_request=True),
    Metric("beta_vae", "the β-VAE metric: which factor was fixed", _beta_vae, _rendered),
    Metric("beta_vae_baselines", "the same of known encoders", _beta_vae_baselines, _rendered, on_request=True),
    Metric("factor_vae", "the FactorVAE score", _factor_vae, _rendered, on_request=True),
    Metric("fcn_score", "photos made of label maps, segmented", photos_of_labels, no_photos_of_labels),
    Metric("label_score", "label maps made of photos, by the nearest colour", labels_of_photos, no_labels_of_photos),
    Metric("l1_to_target", "distance of translations to their targets", l1_to_target, no_target),
    Metric("variant_distance", "how different the variants of one input are", variant_distance, no_translation),
    Metric("cycle_errors", "there and back again, both ways", cycle_errors, no_cycle),
    Metric("identity_errors", "what a map changes on its own side", identity_errors, no_identity),
    Metric("couple_agreement", "pixel agreement of pairs from one code", couple_agreement, no_couples),
)
