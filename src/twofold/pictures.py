"""Pictures of samples and of training: arrays in, a PIL image out. No mathematics of models.

Images come in two forms: float tensors in the range of models, (batch, channels, height, width) in [-1, 1], and NumPy
uint8, (batch, height, width) or (batch, height, width, channels). One channel is grey, three are RGB, four are RGBA
shown on a checkerboard, two are shown as two grey tiles side by side.
"""

from __future__ import annotations

import io
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twofold.errors import InputError
from twofold.spec import Spec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image
    from torch import Tensor

    Pixels = Tensor | NDArray[np.uint8]
    Values = Tensor | NDArray[Any]

MIN_WIDTH = 512
"""Pixels: small images are enlarged until a grid is at least this wide."""
MAX_SIDE = 4096
"""Pixels: enlarging stops before a grid is larger than this."""
STRIP_FEATURES = 16
CURVES = 24
"""The largest number of panels in `curves`."""

LARGEST = 1e100
"""Charts count larger values as not finite: their differences and sums would overflow."""
NOT_A_NUMBER = (255, 0, 255)
"""Magenta: the colour of a pixel that is not a finite number."""
_GAP = 200
_INK, _FAINT, _DATA, _SAMPLES, _ALARM = "#1f2933", "#cbd2d9", "#9aa5b1", "#0f6cbd", "#c62828"

# Grids of images -------------------------------------------------------------------------------------------------


def image_grid(
    images: Pixels, *, columns: int | None = None, padding: int = 2, scale: int | None = None
) -> Image.Image:
    """`images` side by side, row by row from the top left.

    columns: images in a row; by default the grid is about square. padding: pixels between images. scale: each pixel
    becomes scale × scale pixels; by default the smallest whole number that makes the grid 512 pixels wide.

    Values outside [-1, 1] are shown as the nearest one inside, values that are not finite in magenta.
    Raises `InputError` for no images, another type or shape, and impossible columns, padding or scale.

    >>> import torch
    >>> image_grid(torch.zeros(6, 1, 8, 8), columns=3).size
    (512, 342)
    """
    tiles = _tiles(images)
    count, height, width, _ = tiles.shape
    if columns is None:
        columns = _columns(count, count * height / width)
    _check_layout(columns, padding, scale)
    rows = [tiles[start : start + columns] for start in range(0, count, columns)]
    return _paste(rows, columns, padding, scale)


def pair_grid(*stacks: Pixels, columns: int | None = None, padding: int = 2, scale: int | None = None) -> Image.Image:
    """Equally long stacks of images, one under the other: a row of the first, under it the same row of the second ….

    `columns` is by default as many as make the grid about square. A wider gap stands between the bands. Otherwise as
    `image_grid`.
    """
    if not stacks:
        raise InputError("a grid of pairs needs at least one stack of images; none was given")
    tiles = [_tiles(stack) for stack in stacks]
    if len({stack.shape[:3] for stack in tiles}) > 1:
        shapes = ", ".join(str(tuple(stack.shape[:3])) for stack in tiles)
        raise InputError(f"the stacks of a grid differ in (count, height, width): {shapes}; give equal ones")
    count, height, width, _ = tiles[0].shape
    if columns is None:
        columns = _columns(count, len(tiles) * count * height / width)
    _check_layout(columns, padding, scale)
    tiles = _same_colours(tiles)
    rows = [stack[start : start + columns] for start in range(0, count, columns) for stack in tiles]
    return _paste(rows, columns, padding, scale, band=len(tiles))


def reconstruction_grid(x: Pixels, x_rec: Pixels, *, columns: int | None = None) -> Image.Image:
    """Originals above, their reconstructions below, band by band."""
    return pair_grid(x, x_rec, columns=columns)


def interpolation_grid(rows: Tensor | Sequence[Pixels], *, padding: int = 2, scale: int | None = None) -> Image.Image:
    """One path in each row, from its start on the left to its end on the right.

    rows: (paths, steps, channels, height, width), or a sequence of stacks of equal length.
    """
    if len(rows) == 0:
        raise InputError("a grid of interpolations needs at least one row; none was given")
    tiles = _same_colours([_tiles(row) for row in rows])
    if len({row.shape for row in tiles}) > 1:
        shapes = ", ".join(str(tuple(row.shape[:3])) for row in tiles)
        raise InputError(f"the rows of a grid differ in (steps, height, width): {shapes}; give equal ones")
    _check_layout(len(tiles[0]), padding, scale)
    return _paste(tiles, len(tiles[0]), padding, scale)


def labelled_grid(
    rows: Sequence[tuple[str, Pixels]], *, columns: Sequence[str] = (), padding: int = 2, scale: int | None = None
) -> Image.Image:
    """Rows of images, which may differ in length, with words to the left of each row and above the columns.

    Images are enlarged until the words above fit. Otherwise as `image_grid`.
    """
    from PIL import Image, ImageDraw

    if not rows:
        raise InputError("a labelled grid needs at least one row; none was given")
    tiles = _same_colours([_tiles(images) for _, images in rows])
    if len({row.shape[1:3] for row in tiles}) > 1:
        shapes = ", ".join(str(tuple(row.shape[1:3])) for row in tiles)
        raise InputError(f"the rows of a grid differ in (height, width): {shapes}; give equal ones")
    count, width = max(len(row) for row in tiles), tiles[0].shape[2]
    _check_layout(count, padding, scale)
    font = _font(13)
    if scale is None:
        widest = max((font.getlength(word) for word in columns), default=0)
        fits = max(1, min(MAX_SIDE // (count * width), MAX_SIDE // (len(rows) * tiles[0].shape[1])))
        wanted = max(MIN_WIDTH / (count * width), (widest + 6) / width)
        scale = max(1, min(math.ceil(wanted), fits))
    grid = _paste(tiles, count, padding, scale).convert("RGB")
    left = math.ceil(max(font.getlength(word) for word, _ in rows)) + (12 if any(word for word, _ in rows) else 0)
    top = 22 if columns else 0
    canvas = Image.new("RGB", (left + grid.width, top + grid.height), "white")
    canvas.paste(grid, (left, top))
    draw = ImageDraw.Draw(canvas)
    step_y, step_x = (grid.height - padding) / len(rows), (grid.width - padding) / count
    for k, (word, _) in enumerate(rows):
        draw.text((left - 6, top + padding / 2 + (k + 0.5) * step_y), word, fill=_INK, font=font, anchor="rm")
    for k, word in enumerate(columns):
        draw.text((left + padding / 2 + (k + 0.5) * step_x, top / 2), word, fill=_INK, font=font, anchor="mm")
    return canvas


def error_maps(x: Tensor, x_rec: Tensor) -> NDArray[np.uint8]:
    """Where images and their reconstructions differ, (batch, height, width, 3): the absolute difference in the range
    of models, mean over channels, from black at 0 to light yellow at the largest of the whole batch."""
    from matplotlib import colormaps

    error = (x.double() - x_rec.double()).abs().mean(dim=1).cpu().numpy()
    return np.asarray(colormaps["inferno"](error / max(float(error.max()), 1e-12), bytes=True))[..., :3]


def _font(size: int) -> Any:
    """matplotlib's own sans serif, which has Greek and Σ; Pillow's default has not."""
    from pathlib import Path

    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def png_bytes(image: Image.Image) -> bytes:
    """`image` as a PNG file; equal pictures give equal bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _check_layout(columns: int, padding: int, scale: int | None) -> None:
    for name, value, low in (("columns", columns, 1), ("padding", padding, 0), ("scale", scale, 1)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < low):
            raise InputError(f"{name} is {value!r}; give a whole number, {low} or more")


def _columns(count: int, square: float) -> int:
    """About √square columns; somewhat more if that leaves no hole in the last row."""
    columns = min(count, math.ceil(math.sqrt(square)))
    full = (more for more in range(columns, columns + columns // 3 + 1) if count % more == 0)
    return next(full, columns)


def _tiles(images: Pixels) -> NDArray[np.uint8]:
    """(batch, height, width, 1 or 3) uint8, ready to be shown."""
    import torch

    if isinstance(images, torch.Tensor):
        pixels, broken = _from_model(images)
    else:
        pixels, broken = _from_uint8(images), None
    if 0 in pixels.shape:
        raise InputError(f"images of shape {tuple(pixels.shape)} cannot be shown; give at least one, not empty")
    tiles = _as_grey_or_rgb(pixels)
    if broken is not None and broken.any():
        tiles = np.repeat(tiles, 3 // tiles.shape[-1], axis=-1)
        tiles[broken] = NOT_A_NUMBER
    return tiles


def _from_model(images: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The pixels, and which of the tiles' pixels were not finite."""
    if images.dim() != 4 or not images.is_floating_point() or not 1 <= images.shape[1] <= 4:
        raise InputError(
            f"a {images.dtype} tensor of shape {tuple(images.shape)} is not a batch of images; give a float one in "
            "[-1, 1] of shape (batch, 1 to 4 channels, height, width)"
        )
    values = images.detach().float().cpu().movedim(1, -1)
    broken = ~values.isfinite().numpy()
    pixels = ((values.nan_to_num(0.0, 0.0, 0.0).clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
    if broken.shape[-1] == 2:
        return pixels, np.concatenate([broken[..., 0], broken[..., 1]], axis=2)
    return pixels, np.asarray(broken.any(axis=-1))


def _from_uint8(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    images = np.asarray(images)
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and 1 <= images.shape[3] <= 4)):
        raise InputError(
            f"a {images.dtype} array of shape {images.shape} is not a batch of images; give uint8 of shape (batch, "
            "height, width) or (batch, height, width, 1 to 4 channels), or a float tensor in [-1, 1]"
        )
    return images if images.ndim == 4 else images[..., None]


def _as_grey_or_rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    channels = pixels.shape[-1]
    if channels == 2:
        return np.concatenate([pixels[..., :1], pixels[..., 1:]], axis=2)
    if channels == 4:
        return _over_checkerboard(pixels)
    return pixels


def _over_checkerboard(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    _, height, width, _ = pixels.shape
    cell = max(2, min(height, width) // 8)
    rows, columns = np.arange(height)[:, None] // cell, np.arange(width)[None, :] // cell
    board = np.where((rows + columns) % 2 == 0, 255.0, 204.0)[None, :, :, None]
    alpha = pixels[..., 3:] / 255.0
    return np.rint(pixels[..., :3] * alpha + board * (1 - alpha)).astype(np.uint8)


def _same_colours(stacks: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """All grey or all RGB."""
    channels = max(stack.shape[-1] for stack in stacks)
    return [np.repeat(stack, channels // stack.shape[-1], axis=-1) for stack in stacks]


def _paste(
    rows: Sequence[NDArray[np.uint8]], columns: int, padding: int, scale: int | None, *, band: int = 1
) -> Image.Image:
    """Rows of tiles on a grey ground; after every `band` rows, when there are several in a band, a wider gap."""
    from PIL import Image

    _, height, width, channels = rows[0].shape
    if scale is None:
        most = min(MAX_SIDE // (columns * width), MAX_SIDE // (len(rows) * height))
        wanted = math.ceil((MIN_WIDTH - padding * (columns + 1)) / (columns * width))
        scale = max(1, min(wanted, most))
    gap = 4 * padding if band > 1 else 0
    step_y, step_x = height * scale + padding, width * scale + padding
    size_y = len(rows) * step_y + padding + (len(rows) // band - 1) * gap
    canvas = np.full((size_y, columns * step_x + padding, channels), _GAP, np.uint8)
    for index, row in enumerate(rows):
        top = padding + index * step_y + (index // band) * gap
        for column, tile in enumerate(row):
            left = padding + column * step_x
            large = tile.repeat(scale, axis=0).repeat(scale, axis=1)
            canvas[top : top + height * scale, left : left + width * scale] = large
    return Image.fromarray(canvas[..., 0] if channels == 1 else canvas)


# Vectors ---------------------------------------------------------------------------------------------------------


def samples_picture(x: Values, spec: Spec, *, reference: Values | None = None) -> Image.Image:
    """The picture that suits the data: a grid of images, a scatter of points in the plane, histograms of vectors.

    x, reference: in the range of models. Vectors are drawn in the units of the source (`spec.mean`, `spec.std`).
    reference: data to draw behind vectors; images need none.
    """
    if spec.kind == "image":
        return image_grid(x)
    x, reference = _in_source_units(x, spec), None if reference is None else _in_source_units(reference, spec)
    return scatter(x, reference=reference) if spec.shape == (2,) else vector_strip(x, reference=reference)


def scatter(points: Values, *, reference: Values | None = None, title: str | None = None) -> Image.Image:
    """Points in the plane, (batch, 2): `reference` in grey behind, `points` in front, equal axes.

    The limits are those of `reference` with a margin, if it is given, so that pictures of one run can be compared;
    points beyond them and points that are not finite are counted below the picture.
    Raises `InputError` for another shape.
    """
    front = _vectors(points, features=2)
    behind = None if reference is None else _vectors(reference, features=2)
    figure = _figure(6.0, 6.0)
    axes = figure.subplots()
    shown, note = front, ""
    ground = _finite_rows(front if behind is None else behind)
    if len(ground):
        (left, right), (low, high) = _limits(ground[:, 0]), _limits(ground[:, 1])
        half = max(right - left, high - low) / 2
        axes.set_xlim((left + right) / 2 - half, (left + right) / 2 + half)
        axes.set_ylim((low + high) / 2 - half, (low + high) / 2 + half)
        shown = front[_inside_limits(front, axes.get_xlim(), axes.get_ylim())]
        note = _left_out(len(front) - len(shown))
    if behind is not None:
        _dots(axes, behind, size=_dot_size(len(behind)), color=_DATA, label="data")
    _dots(axes, shown, size=_dot_size(len(front)), color=_SAMPLES, alpha=0.6, label="samples")
    axes.set_aspect("equal")
    axes.set_xlabel(note)
    if title is not None:
        axes.set_title(title, parse_math=False)
    if behind is not None:
        legend = figure.legend(loc="outside lower right", ncols=2, frameon=False, markerscale=2)
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_alpha(1)
    return _render(figure)


def vector_strip(vectors: Values, *, reference: Values | None = None) -> Image.Image:
    """One histogram for each of the first 16 features of (batch, features): samples as a line, data filled behind.

    Both are densities over the same bins, which span the middle 99 % of the data (of the samples, without data).
    Raises `InputError` for another shape, and if `reference` has another number of features.
    """
    front = _vectors(vectors)
    behind = None if reference is None else _vectors(reference, features=front.shape[1])
    count = min(front.shape[1], STRIP_FEATURES)
    figure, axes = _panels(count, width=3.0, height=2.1)
    for feature, panel in enumerate(axes):
        data = None if behind is None else behind[:, feature]
        _histogram(panel, front[:, feature], data)
        panel.set_title(f"feature {feature}", fontsize=9)
    if front.shape[1] > count:
        figure.supxlabel(f"the first {count} of {front.shape[1]} features", fontsize=9)
    if behind is not None:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    return _render(figure)


def _in_source_units(x: Values, spec: Spec) -> NDArray[np.float64]:
    values = _vectors(x, features=spec.shape[0])
    std = np.asarray(spec.std if spec.std is not None else 1.0)
    mean = np.asarray(spec.mean if spec.mean is not None else 0.0)
    return values * std + mean


def _vectors(values: Values, *, features: int | None = None) -> NDArray[np.float64]:
    import torch

    if isinstance(values, torch.Tensor):
        values = values.detach().double().cpu().numpy()
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape or (features is not None and array.shape[1] != features):
        wanted = "features" if features is None else str(features)
        raise InputError(f"vectors of shape {array.shape} cannot be shown; give (batch, {wanted}), not empty")
    return array


def _drawable(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.abs(values) < LARGEST  # false for NaN


def _finite_rows(array: NDArray[np.float64]) -> NDArray[np.float64]:
    return array[_drawable(array).all(axis=1)]


def _limits(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = 0.08 * (high - low) or max(abs(low), 1.0) * 0.5
    return low - margin, high + margin


def _inside_limits(array: NDArray[np.float64], xs: tuple[float, float], ys: tuple[float, float]) -> NDArray[np.bool_]:
    x, y = array[:, 0], array[:, 1]
    return (x >= xs[0]) & (x <= xs[1]) & (y >= ys[0]) & (y <= ys[1])


def _left_out(count: int) -> str:
    return f"{count:,} samples are outside this picture" if count else ""


def _dots(axes: Axes, points: NDArray[np.float64], *, size: float, **style: Any) -> None:
    points = _finite_rows(points)
    axes.scatter(points[:, 0], points[:, 1], s=size, linewidths=0, **style)


def _dot_size(count: int) -> float:
    return min(40.0, max(3.0, 6000.0 / count))


def _histogram(panel: Axes, front: NDArray[np.float64], behind: NDArray[np.float64] | None) -> None:
    ground = front if behind is None else behind
    ground = ground[_drawable(ground)]
    if len(ground):
        low, high = np.quantile(ground, [0.005, 0.995])
        margin = 0.1 * (high - low) or max(abs(low), 1.0) * 0.5
        edges = np.linspace(low - margin, high + margin, 41)
        if behind is not None:
            panel.stairs(_density(behind, edges), edges, fill=True, color=_FAINT, label="data")
        panel.stairs(_density(front, edges), edges, color=_SAMPLES, linewidth=1.4, label="samples")
    panel.set_yticks([])
    panel.tick_params(labelsize=8)


def _density(values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of all values, those beyond the edges included, so that a mass outside is seen to be missing."""
    counts, _ = np.histogram(values[_drawable(values)], bins=edges)
    return counts / (len(values) * np.diff(edges))


# Curves ----------------------------------------------------------------------------------------------------------


def curves(
    records: Sequence[Mapping[str, Any]],
    *,
    skip: Iterable[str] = ("examples", "seconds", "examples_per_second", "step", "stage", "epoch"),
    skip_starting: tuple[str, ...] = ("probe_", "gradient_norm"),
) -> Image.Image:
    """The metrics of a run, one panel for each, over the examples seen.

    records: as `Run.metrics` gives them. A faint line joins the recorded values, a bold one is their running mean
    over a twentieth of the run. Values that are not finite leave a gap and a red mark on the axis. The scale is
    logarithmic when all values are positive and span a factor of 200 or more. At most 24 metrics are shown; a line says
    how many are not. Values that are not numbers are left out, and so are metrics named in `skip` or that start with
    one of `skip_starting`.
    """
    series = _series(records, frozenset(skip), skip_starting)
    names = list(series)[:CURVES]
    if not names:
        return _empty("no metrics yet")
    figure, axes = _panels(len(names), width=4.2, height=2.5)
    end = max(float(examples.max()) for examples, _ in series.values())
    for name, panel in zip(names, axes, strict=True):
        _curve(panel, name, *series[name])
        panel.set_xlim(-0.02 * end, 1.02 * end or 1.0)
    note = f"; {len(series) - CURVES} more metrics in metrics.jsonl" if len(series) > CURVES else ""
    figure.supxlabel(f"examples seen{note}", fontsize=10, color=_INK)
    return _render(figure)


def _series(
    records: Sequence[Mapping[str, Any]], skip: frozenset[str], skip_starting: tuple[str, ...]
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """{metric: (examples, values)} in the order in which the metrics first appear."""
    found: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        for name, value in record.items():
            if name in skip or name.startswith(skip_starting):
                continue
            if isinstance(value, numbers.Real) and not isinstance(value, bool):
                found.setdefault(name, []).append((float(record["examples"]), float(value)))
    return {name: (np.array(pairs)[:, 0], np.array(pairs)[:, 1]) for name, pairs in found.items()}


def running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Mean of the `window` values around each (fewer at the ends), of those that are finite; NaN where it is not.

    Centred, because a mean of the past lies visibly beside a curve that falls fast.
    """
    finite = _drawable(values)
    # Each window is added up by itself: a difference of cumulative sums loses all digits after one huge value.
    centre, size = np.arange(len(values)), len(values)
    starts, ends = np.maximum(centre - (window - 1) // 2, 0), np.minimum(centre + window // 2 + 1, size)
    pairs = np.stack([starts, ends], axis=1).ravel()
    sums = np.add.reduceat(np.append(np.where(finite, values, 0.0), 0.0), pairs)[::2]
    counts = np.add.reduceat(np.append(finite, False).astype(np.int64), pairs)[::2]
    return np.where(finite, sums / np.maximum(counts, 1), np.nan)


def _curve(panel: Axes, name: str, examples: NDArray[np.float64], values: NDArray[np.float64]) -> None:
    finite = _drawable(values)
    raw = np.where(finite, values, np.nan)
    mean = running_mean(values, max(1, round(len(values) / 20)))
    few = len(values) <= 40
    panel.plot(*_thinned(examples, raw), color=_SAMPLES, alpha=0.35, linewidth=0.9, marker="." if few else None)
    panel.plot(*_thinned(examples, mean), color=_SAMPLES, linewidth=1.8)
    if not finite.all():
        ground = panel.get_xaxis_transform()
        at = examples[~finite]
        panel.plot(at, np.zeros_like(at), "|", color=_ALARM, markersize=9, transform=ground, clip_on=False)
    if _wants_log(values[finite]):
        panel.set_yscale("log")
    title = name if finite.all() else f"{name} ({int((~finite).sum()):,} not finite)"
    panel.set_title(title, fontsize=10, loc="left", color=_INK if finite.all() else _ALARM, parse_math=False)
    last = f"{mean[finite][-1]:.4g}" if finite.any() else ""
    panel.set_title(last, fontsize=9, loc="right", color=_SAMPLES)
    panel.grid(color=_FAINT, alpha=0.5, linewidth=0.6)
    panel.tick_params(labelsize=8, colors=_INK)
    panel.xaxis.set_major_formatter(_examples_text)
    panel.locator_params(axis="x", nbins=5)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _thinned(x: NDArray[np.float64], y: NDArray[np.float64], limit: int = 4000) -> tuple[Any, Any]:
    """At most about `limit` points, of which the last is one; a panel has some 400 pixels."""
    step = max(1, math.ceil(len(x) / limit))
    kept = np.unique(np.append(np.arange(0, len(x), step), len(x) - 1))
    return x[kept], y[kept]


def _wants_log(values: NDArray[np.float64]) -> bool:
    return len(values) > 1 and bool(values.min() > 0) and bool(values.max() / values.min() >= 200)


def _examples_text(value: float, _position: float = 0) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


# Figures ---------------------------------------------------------------------------------------------------------


def _figure(width: float, height: float) -> Figure:
    """A figure of its own, in inches: pyplot would keep it in global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained", facecolor="white")


def _panels(count: int, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    columns = min(count, 2 if count <= 4 else 3 if count <= 12 else 4)
    rows = math.ceil(count / columns)
    figure = _figure(max(columns * width, 4.0), rows * height + 0.3)
    figure.set_layout_engine("constrained", h_pad=0.09, w_pad=0.09)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in axes[count:]:
        panel.remove()
    return figure, list(axes[:count])


def _render(figure: Figure) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _empty(text: str) -> Image.Image:
    figure = _figure(4.0, 1.5)
    figure.text(0.5, 0.5, text, ha="center", va="center", color=_INK)
    return _render(figure)
