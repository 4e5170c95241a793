"""A trained model: what its recipe can do, asked and answered in the data's own layout, dtype and range."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from twofold import recipes
from twofold.data import from_model, raw, to_model
from twofold.errors import InputError
from twofold.inversion import invert
from twofold.latents import lerp, slerp
from twofold.recipe import PARTS, Recipe
from twofold.run import Run
from twofold.spec import Spec

BLOCK = 64
"""Examples per forward pass, and per draw of noise: the first n of N samples do not depend on N."""


def load(path: str | Path, *, checkpoint: int | str | None = None, device: str = "cpu") -> Model:
    """The model of a run directory, from its newest checkpoint, the one at `checkpoint` examples, or its "best".

    Needs no flags and no data. Raises `InputError` if the directory is not a run or its checkpoint is damaged.
    """
    run = Run.open(path)
    record = record_of(run)
    spec = Spec.from_json(record["spec"])
    saved = run.load_checkpoint(checkpoint)
    weights = saved.tensors.get("weights", {})
    # First without memory: a record may ask for networks of any size, the checkpoint has the size that is true.
    with torch.device("meta"):
        check_fit(recipes.build(record["recipe"], spec, record["config"])[1].nets, weights, "weights")
    with torch.random.fork_rng(devices=[]):
        _, recipe = recipes.build(record["recipe"], spec, record["config"])
    restore(recipe.nets, weights, "weights")
    averages = saved.tensors.get("averages", {})
    averaged = {name.partition(".")[0] for name in averages}
    for name in sorted(averaged):
        if name not in recipe.nets:
            raise InputError(f"the checkpoint's averages do not fit this recipe: it has no network {name!r}")
        own = {k.partition(".")[2]: v for k, v in averages.items() if k.startswith(f"{name}.")}
        restore(recipe.nets[name], own, f"averages of {name}")
    return Model(recipe, recipe.nets.to(torch.device(device)), run=run, examples=saved.examples)


RECORD = {"recipe": str, "config": dict, "spec": dict, "data": dict, "train": dict, "stages": list}
"""What a run's config.json holds, and as what."""


def record_of(run: Run) -> dict[str, Any]:
    """The run's config.json. Raises `InputError` if a part is missing or of another kind than `train` writes."""
    record = run.config
    for part, kind in RECORD.items():
        if not isinstance(record.get(part), kind):
            raise InputError(f"{run.path / 'config.json'} is not as `twofold train` writes it: {part!r} is not there")
    return record


def restore(net: nn.Module, tensors: dict[str, Tensor], what: str) -> None:
    """Load `tensors` into `net`. Raises `InputError` if names or shapes are not the network's."""
    check_fit(net, tensors, what)
    net.load_state_dict(tensors)


def check_fit(net: nn.Module, tensors: dict[str, Tensor], what: str) -> None:
    """Raise `InputError` if names or shapes of `tensors` are not the network's."""
    own = net.state_dict()
    if wrong := sorted(own.keys() ^ tensors.keys()):
        raise InputError(f"the checkpoint's {what} do not fit this recipe: {wrong[0]!r} is on one side only")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise InputError(
                f"the checkpoint's {what} do not fit this recipe: {name!r} has shape {tuple(tensor.shape)}, "
                f"the network {tuple(own[name].shape)}"
            )


@contextmanager
def evaluating(nets: nn.ModuleDict) -> Iterator[None]:
    """Eval mode without gradient; afterwards every module's mode is what it was."""
    modes = [(module, module.training) for module in nets.modules()]
    nets.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


class Model:
    """A recipe with its networks, used through `sample`, `encode`, `decode`, `reconstruct`, `interpolate`,
    `traverse`, `attribute_vectors`, `invert`, `complete`, `classify`, `judge`, `features`, `elbo`, `rate`, `log_prob`.

    Arrays go in and come out as numpy arrays in the data's own layout, dtype and range (an MNIST model returns
    (n, 28, 28) uint8). Codes are float32 arrays (n, latent). A verb the recipe cannot do raises `InputError`.
    """

    def __init__(self, recipe: Recipe, nets: nn.ModuleDict, *, run: Run | None = None, examples: int = 0):
        self.recipe = recipe
        self.nets = nets
        self.run = run
        self.examples = examples

    def __repr__(self) -> str:
        where = f" from {self.run.path}" if self.run else ""
        return f"<twofold model{where}, {self.examples:,} examples seen, can {', '.join(self.abilities)}>"

    @property
    def spec(self) -> Spec:
        return self.recipe.spec

    @property
    def abilities(self) -> tuple[str, ...]:
        """What this model can do."""
        own = self.recipe.abilities
        interpolate = ("interpolate",) if {"prior", "decode"} <= own.keys() else ()
        return (*(name for name in own if name not in PARTS), *interpolate)

    def sample(self, n: int, *, seed: int = 0, labels: Any = None) -> np.ndarray:
        """`n` samples in the data's layout and range; the same for the same seed.

        `labels`: one label for all or one per sample (conditional models; drawn uniformly if None).
        """
        return from_model(self.sample_tensor(n, seed=seed, labels=labels), self.spec)

    def sample_tensor(self, n: int, *, seed: int = 0, labels: Any = None) -> Tensor:
        """`sample` as a float tensor (n, …) in the model's range, on the CPU."""
        ability = self._ability("sample")
        if n < 1:
            raise InputError(f"n is {n}; ask for at least 1 sample")
        generator = self._generator(seed)
        y = self._labels(n, labels, generator)
        with evaluating(self.nets):
            out = []
            for k in range(0, n, BLOCK):
                x = ability(self.nets, BLOCK, y=_block(y, k), generator=generator)
                out.append(x[: n - k].float().cpu())
        return torch.cat(out)

    def draw_codes(self, n: int, *, seed: int = 0) -> np.ndarray:
        """`n` codes from the prior, (n, latent)."""
        prior, generator = self._ability("prior"), self._generator(seed)
        with evaluating(self.nets):
            draws = [prior(self.nets, BLOCK, generator=generator).cpu() for _ in range(0, n, BLOCK)]
        return torch.cat(draws)[:n].numpy()

    def encode(self, x: Any, *, labels: Any = None) -> np.ndarray:
        """Codes (n, latent) of examples in the data's layout: the posterior's mean where there is a posterior."""
        return self._map("encode", self._examples(x), labels).numpy()

    def classify(self, x: Any) -> np.ndarray:
        """Probabilities (n, classes) of examples in the data's layout; of clusters where no labels were used."""
        return self._map("classify", self._examples(x), None).numpy()

    def judge(self, x: Any, *, labels: Any = None) -> np.ndarray:
        """The discriminator's output for each example, (n,): larger for what it takes for data."""
        return self._map("judge", self._examples(x), labels).numpy()

    def features(self, x: Any, *, labels: Any = None) -> np.ndarray:
        """The discriminator's last hidden layer before its norm, (n, features)."""
        return self._map("features", self._examples(x), labels).numpy()

    def code_rates(self, x: Any, *, labels: Any = None) -> np.ndarray:
        """KL of each code dimension's posterior to the prior in nats, (n, latent), in closed form."""
        return self._map("code_rates", self._examples(x), labels).numpy()

    def decode(self, z: Any, *, labels: Any = None) -> np.ndarray:
        """Examples in the data's layout from codes (n, latent)."""
        return from_model(self._map("decode", self._codes(z), labels), self.spec)

    def reconstruct(self, x: Any, *, labels: Any = None) -> np.ndarray:
        """Examples in the data's layout, encoded and decoded."""
        return from_model(self._map("reconstruct", self._examples(x), labels), self.spec)

    def complete(self, x: Any, *, known: float = 0.5, seed: int = 0, labels: Any = None) -> np.ndarray:
        """Examples in the data's layout with their beginning kept (`known`, a part of 1: an image's first rows) and the
        rest drawn; every seed draws another one."""
        ability, generator = self._ability("complete"), self._generator(seed)
        if not 0 <= known <= 1:
            raise InputError(f"known is {known}; give the part that is kept, from 0 to 1")
        examples = self._examples(x)
        y = self._labels(len(examples), labels, generator, required=True)
        with evaluating(self.nets):
            out = [
                ability(
                    self.nets,
                    block.to(self.device),
                    known=known,
                    y=_block(y, k * BLOCK, len(block)),
                    generator=generator,
                ).cpu()
                for k, block in enumerate(examples.split(BLOCK))
            ]
        return from_model(torch.cat(out), self.spec)

    def interpolate(self, a: Any, b: Any, *, steps: int = 8, path: str = "slerp", labels: Any = None) -> np.ndarray:
        """Decoded codes on the way from codes `a` to codes `b`, both (n, latent): (n, steps, …) in the data's layout.

        `path`: "slerp" (great circles, for Normal priors) or "lerp" (straight lines).
        """
        if path not in ("slerp", "lerp"):
            raise InputError(f"path is {path!r}; allowed: slerp, lerp")
        if steps < 2:
            raise InputError(f"steps is {steps}; an interpolation has at least 2")
        start, end = (torch.as_tensor(np.asarray(v), dtype=torch.float32) for v in (a, b))
        way = slerp if path == "slerp" else lerp
        codes = torch.stack([way(start, end, k / (steps - 1)) for k in range(steps)], dim=1)
        if labels is not None:
            labels = np.repeat(np.broadcast_to(np.asarray(labels), (len(start),)), steps)
        x = self.decode(codes.flatten(0, 1).numpy(), labels=labels)
        return x.reshape(len(start), steps, *x.shape[1:])

    def traverse(
        self,
        z: Any,
        *,
        dimensions: Sequence[int] | None = None,
        values: Sequence[float] | None = None,
        labels: Any = None,
    ) -> np.ndarray:
        """One code `z` (latent,) decoded with one dimension after the other set to each of `values`, the rest kept:
        (dimensions, values, …) in the data's layout. All dimensions by default, and seven values from -3 to 3."""
        start = self._codes(np.asarray(z)[None])[0]
        rows = range(len(start)) if dimensions is None else dimensions
        for d in rows:
            if not 0 <= d < len(start):
                raise InputError(f"dimension {d} does not exist; this model's codes have 0 to {len(start) - 1}")
        columns = np.linspace(-3, 3, 7) if values is None else np.asarray(values, dtype=np.float64)
        if not len(rows) or columns.ndim != 1 or not len(columns) or not np.isfinite(columns).all():
            raise InputError("give at least one dimension, and at least one finite value to set it to")
        codes = start.repeat(len(rows), len(columns), 1)
        for row, d in enumerate(rows):
            codes[row, :, d] = torch.as_tensor(columns, dtype=torch.float32)
        x = self.decode(codes.flatten(0, 1).numpy(), labels=labels)
        return x.reshape(len(rows), len(columns), *x.shape[1:])

    def code_effects(self, *, reach: float = 3.0, draws: int = 16, seed: int = 0, labels: Any = None) -> np.ndarray:
        """How much each code dimension changes what is decoded, (latent,): the squared distance in the model's range
        between the examples with it at `reach` and at -`reach`, mean over `draws` codes of the prior."""
        z = self.draw_codes(draws, seed=seed)
        low_high = np.repeat(np.repeat(z[None, None], z.shape[1], 0), 2, 1)
        for d in range(z.shape[1]):
            low_high[d, 0, :, d], low_high[d, 1, :, d] = -reach, reach
        x = self._map("decode", torch.from_numpy(low_high.reshape(-1, z.shape[1])), labels)
        low, high = x.flatten(1).unflatten(0, (z.shape[1], 2, draws)).unbind(1)
        return (high - low).square().sum(-1).mean(-1).numpy()

    def attribute_vectors(self, x: Any, y: Any, *, labels: Any = None) -> dict[int, np.ndarray]:
        """For each value of the attribute `y` (n,): the mean code of the examples that have it minus the mean code of
        those that have not (Larsen et al. 2016, section 4.2). `labels` are a conditional model's."""
        codes, attribute = self.encode(x, labels=labels).astype(np.float64), np.asarray(y)
        if attribute.shape != (len(codes),):
            raise InputError(f"the attribute has shape {attribute.shape}; give one value for each of {len(codes)}")
        values = np.unique(attribute)
        if len(values) < 2:
            raise InputError("every example has the same value of the attribute; a direction needs two")
        return {
            value.item(): (codes[attribute == value].mean(0) - codes[attribute != value].mean(0)).astype(np.float32)
            for value in values
        }

    def invert(
        self,
        x: Any,
        *,
        steps: int = 300,
        restarts: int = 4,
        seed: int = 0,
        labels: Any = None,
        learning_rate: float = 0.1,
        feature_weight: float = 0.0,
    ) -> dict[str, np.ndarray]:
        """Codes of examples by optimisation, for generators without an encoder: {"z": (n, latent), "squared_error":
        (n,)}, the error summed over dimensions in the model's range.

        Adam from `restarts` draws of the prior, the best of them kept; with a `feature_weight` the distance between
        the discriminator's features counts beside that of the values. See `twofold.inversion.invert`.
        """
        _check_inversion(steps, restarts, learning_rate, feature_weight)
        decode, examples = self._ability("decode"), self._examples(x)
        features = self._ability("features") if feature_weight else None
        y = self._labels(len(examples), labels, self._generator(0), required=True)
        starts = torch.from_numpy(self.draw_codes(restarts * len(examples), seed=seed)).unflatten(0, (restarts, -1))
        found: list[tuple[Tensor, Tensor]] = []
        with evaluating(self.nets):
            for k in range(0, len(examples), BLOCK):
                block, start = examples[k : k + BLOCK].to(self.device), starts[:, k : k + BLOCK].to(self.device)
                own = _block(y, k, len(block))
                found.append(self._inverted(decode, features, block, start, own, steps, learning_rate, feature_weight))
        z, error = (torch.cat([part[k] for part in found]).float().cpu().numpy() for k in (0, 1))
        return {"z": z, "squared_error": error}

    def _inverted(
        self,
        decode: Any,
        features: Any,
        x: Tensor,
        starts: Tensor,
        y: Tensor | None,
        steps: int,
        learning_rate: float,
        feature_weight: float,
    ) -> tuple[Tensor, Tensor]:
        def seen(x: Tensor) -> Tensor:
            return features(self.nets, x, y=labels_of(x))

        def labels_of(batch: Tensor) -> Tensor | None:
            return None if y is None else y.repeat(len(batch) // len(y))

        try:
            return invert(
                lambda z: decode(self.nets, z, y=labels_of(z)),
                x,
                starts,
                steps=steps,
                learning_rate=learning_rate,
                features=seen if features else None,
                feature_weight=feature_weight,
            )
        except ValueError:
            raise InputError(
                "this model cannot be inverted: its codes are chosen from a codebook; encode instead"
            ) from None

    def translate(
        self, a: Any, *, direction: str = "forward", variants: int = 1, style: Any = None, seed: int = 0
    ) -> np.ndarray:
        """Targets (n, …) made of inputs `a` (n, …), both in the data's own layouts, dtypes and ranges.

        direction: "forward" makes targets of inputs; "back" inputs of targets, where the recipe learned that too.
        variants: how many of each, (n, variants, …); they differ by their style or, in recipes without styles, by the
            noise of the network, of which there may be little or none.
        style: (latent,) or (1, latent) for all, or (n, latent); what `style` returns. It takes the place of drawn ones.
        """
        source, target = self.translated_specs(direction)
        x = self.translate_tensor(
            to_model(raw(a, source), source), direction=direction, variants=variants, style=style, seed=seed
        )
        arrays = from_model(x.flatten(0, 1), target)
        arrays = arrays.reshape(*x.shape[:2], *arrays.shape[1:])
        return arrays[:, 0] if variants == 1 else arrays

    def translated_specs(self, direction: str) -> tuple[Spec, Spec]:
        """What `translate` in this direction starts from and what it makes."""
        if direction not in ("forward", "back"):
            raise InputError(f"direction is {direction!r}; allowed: forward, back")
        self._ability("translate" if direction == "forward" else "translate_back")
        assert self.spec.input is not None
        return (self.spec.input, self.spec) if direction == "forward" else (self.spec, self.spec.input)

    def translate_tensor(
        self, a: Tensor, *, direction: str = "forward", variants: int = 1, style: Any = None, seed: int = 0
    ) -> Tensor:
        """`translate` of a float tensor in the model's range, images of any size: (n, variants, …) on the CPU."""
        ability = self._ability("translate" if direction == "forward" else "translate_back")
        if isinstance(variants, bool) or not isinstance(variants, int) or variants < 1:
            raise InputError(f"variants is {variants!r}; give a whole number of at least 1")
        styles = self._styles(len(a), variants, style, seed)
        made = []
        with evaluating(self.nets):
            for k in range(variants):
                # A style per variant, not per example: tiles of one image, and rows of a grid, share it.
                z = None if styles is None else styles[:, k].to(self.device)
                generator = self._generator((seed + k) % 2**63)
                parts = []
                for start in range(0, len(a), BLOCK):
                    block = a[start : start + BLOCK].to(self.device)
                    own = None if z is None else z[start : start + BLOCK]
                    parts.append(ability(self.nets, block, z=own, generator=generator).float().cpu())
                made.append(torch.cat(parts))
        return torch.stack(made, dim=1)

    def _styles(self, n: int, variants: int, style: Any, seed: int) -> Tensor | None:
        """(n, variants, latent), or None for a recipe without styles."""
        if "style_prior" not in self.recipe.abilities:
            if style is not None:
                raise InputError(f"this model has no styles; it can {', '.join(self.abilities)}")
            return None
        z = self.draw_styles(variants, seed=seed)
        if style is None:
            return z.expand(n, *z.shape)
        if variants != 1:
            raise InputError("give a style, or a number of variants, whose styles are drawn")
        given = torch.as_tensor(np.asarray(style), dtype=torch.float32)
        given = given[None] if given.dim() == 1 else given
        if given.dim() != 2 or given.shape[1] != z.shape[1] or len(given) not in (1, n):
            raise InputError(f"style has shape {tuple(given.shape)}; give ({z.shape[1]},) or ({n}, {z.shape[1]})")
        return given.expand(n, -1)[:, None]

    def draw_styles(self, n: int, *, seed: int = 0) -> Tensor:
        """`n` styles from their prior, (n, latent)."""
        draw = self._ability("style_prior")
        with evaluating(self.nets):
            return draw(self.nets, n, generator=self._generator(seed)).cpu()

    def style(self, x: Any) -> np.ndarray:
        """Styles (n, latent) of targets in the data's layout."""
        function = self._ability("style")
        examples = self._examples(x)
        with evaluating(self.nets):
            parts = [function(self.nets, block.to(self.device)).float().cpu() for block in examples.split(BLOCK)]
        return torch.cat(parts).numpy()

    def couple(self, n: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """`n` pairs (inputs, targets), each made of one code, in the data's layouts."""
        a, x = self.couple_tensor(n, seed=seed)
        assert self.spec.input is not None
        return from_model(a, self.spec.input), from_model(x, self.spec)

    def couple_tensor(self, n: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
        """`couple` as float tensors in the model's range, on the CPU."""
        function = self._ability("couple")
        codes = torch.from_numpy(self.draw_codes(n, seed=seed))
        with evaluating(self.nets):
            parts = [function(self.nets, z.to(self.device)) for z in codes.split(BLOCK)]
        a, x = (torch.cat([part[k].float().cpu() for part in parts]) for k in (0, 1))
        return a, x

    def elbo(self, x: Any, *, seed: int = 0, labels: Any = None) -> dict[str, np.ndarray]:
        """Rate and distortion of each example, in nats of the model's range; ELBO = -(rate + distortion)."""
        return self._score("elbo", x, seed, labels)

    def rate(self, x: Any, *, seed: int = 0, labels: Any = None) -> dict[str, np.ndarray]:
        """The negative log-likelihood of each example's discrete codes under the trained prior, exact, in nats:
        {"rate_nats": (n,)}, and per code "nats_per_code" (n,), or one such number for each level of codes."""
        return self._score("rate", x, seed, labels)

    def log_prob(self, x: Any, *, k: int | None = None, seed: int = 0, labels: Any = None) -> dict[str, np.ndarray]:
        """Each example's log p(x), in nats of the model's range: {"log_prob_nats": (n,)}.

        Exact for a model with the ability `log_prob`, which gives "bits_per_dim" (n,) too and takes no `k`. For one
        with the ability `iw_bound`, a lower bound: the importance-weighted one from `k` draws of the posterior
        (default 50; Burda et al. 2016): on average the ELBO at k = 1, closer to log p(x) with every draw. Publications
        use k = 5000; its time grows with k.
        """
        if "log_prob" in self.recipe.abilities:
            if k is not None:
                raise InputError(f"k is {k!r}, but this model's log p(x) is exact; leave k out")
            return self._score("log_prob", x, seed, labels)
        k = 50 if k is None else k
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise InputError(f"k is {k!r}; it is a whole number of draws, at least 1")
        return self._score("iw_bound", x, seed, labels, k=k)

    def _score(self, name: str, x: Any, seed: int, labels: Any, **options: Any) -> dict[str, np.ndarray]:
        """The named numbers that an ability gives for each example."""
        ability, generator = self._ability(name), self._generator(seed)
        examples = self._examples(x)
        y = self._labels(len(examples), labels, generator, required=True)
        parts: list[dict[str, Tensor]] = []
        with evaluating(self.nets):
            for start in range(0, len(examples), BLOCK):
                block = examples[start : start + BLOCK].to(self.device)
                out = ability(self.nets, block, y=_block(y, start, len(block)), generator=generator, **options)
                parts.append({key: value.float().cpu() for key, value in out.items()})
        return {key: torch.cat([part[key] for part in parts]).numpy() for key in parts[0]}

    @property
    def device(self) -> torch.device:
        return next(self.nets.parameters()).device

    def _ability(self, name: str) -> Any:
        if name not in self.recipe.abilities:
            raise InputError(f"this model cannot {PARTS.get(name, name)}; it can {', '.join(self.abilities)}")
        return self.recipe.abilities[name]

    def _generator(self, seed: int) -> torch.Generator:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise InputError(f"seed is {seed!r}; it is a whole number from 0 to 2^63 - 1")
        return torch.Generator(self.device).manual_seed(seed)

    def _codes(self, z: Any) -> Tensor:
        """The user's codes as a float32 tensor (n, latent)."""
        codes = torch.as_tensor(np.asarray(z), dtype=torch.float32)
        size = self.draw_codes(1).shape[1]
        if codes.dim() != 2 or codes.shape[1] != size:
            raise InputError(f"codes have shape {tuple(codes.shape)}; this model decodes (n, {size})")
        return codes

    def _examples(self, x: Any) -> Tensor:
        """The user's arrays as the model sees them."""
        return to_model(raw(x, self.spec), self.spec)

    def _map(self, ability: str, inputs: Tensor, labels: Any) -> Tensor:
        function = self._ability(ability)
        y = self._labels(len(inputs), labels, self._generator(0), required=True)
        out = []
        with evaluating(self.nets):
            for k in range(0, len(inputs), BLOCK):
                block = inputs[k : k + BLOCK].to(self.device)
                out.append(function(self.nets, block, y=_block(y, k, len(block))).float().cpu())
        return torch.cat(out)

    def _labels(self, n: int, labels: Any, generator: torch.Generator, required: bool = False) -> Tensor | None:
        """Labels of `n` examples for a conditional model, padded to whole blocks; None for an unconditional one."""
        if not self.recipe.conditional:
            if labels is not None:
                raise InputError("this model is not conditional, so it takes no labels")
            return None
        classes = self.spec.classes or 0
        if labels is None:
            if required:
                raise InputError("this model is conditional: give labels, one for all examples or one for each")
            blocks = -(-n // BLOCK) * BLOCK
            return torch.randint(classes, (blocks,), generator=generator, device=generator.device)
        y = torch.as_tensor(np.asarray(labels), dtype=torch.int64).to(generator.device)
        if y.dim() > 1 or (y.dim() == 1 and len(y) != n) or y.min() < 0 or y.max() >= classes:
            raise InputError(f"labels do not fit: give 1 or {n} whole numbers from 0 to {classes - 1}")
        y = y.expand(n)
        return torch.cat([y, y[-1:].expand(-n % BLOCK)])


def _check_inversion(steps: int, restarts: int, learning_rate: float, feature_weight: float) -> None:
    for name, value in (("steps", steps), ("restarts", restarts)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} is {value!r}; it is a whole number, at least 1")
    if not 0 < learning_rate < math.inf or not 0 <= feature_weight < math.inf:
        raise InputError(
            f"learning_rate is {learning_rate} and feature_weight {feature_weight}; give finite numbers, "
            "the rate above 0 and the weight from 0"
        )


def _block(y: Tensor | None, start: int, length: int = BLOCK) -> Tensor | None:
    return None if y is None else y[start : start + length]
