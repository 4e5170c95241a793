"""Pictures, pixel by pixel where a pixel has one right value, by what they contain where it has not."""

from __future__ import annotations

import io
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from twofold import pictures
from twofold.errors import InputError
from twofold.pictures import (
    MAX_SIDE,
    NOT_A_NUMBER,
    curves,
    image_grid,
    interpolation_grid,
    pair_grid,
    png_bytes,
    reconstruction_grid,
    running_mean,
    samples_picture,
    scatter,
    vector_strip,
)
from twofold.spec import Spec

GROUND = 200


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def uint8(x: torch.Tensor) -> np.ndarray:
    """The same conversion by another road: float64 and explicit rounding."""
    return np.floor((x.double().numpy() + 1) / 2 * 255 + 0.5).astype(np.uint8)


# Grids -----------------------------------------------------------------------------------------------------------


def test_every_tile_stands_in_its_place() -> None:
    x = noise(5, 1, 4, 6)
    grid = np.asarray(image_grid(x, columns=3, padding=2, scale=2))
    assert grid.shape == (2 * (8 + 2) + 2, 3 * (12 + 2) + 2)
    covered = np.zeros(grid.shape, bool)
    for index, tile in enumerate(uint8(x[:, 0])):
        top, left = 2 + (index // 3) * 10, 2 + (index % 3) * 14
        np.testing.assert_array_equal(grid[top : top + 8, left : left + 12], np.kron(tile, np.ones((2, 2), np.uint8)))
        covered[top : top + 8, left : left + 12] = True
    assert (grid[~covered] == GROUND).all()


def test_range_and_rounding() -> None:
    values = [-1.0, 1.0, 0.0, -7.0, 7.0, 2 * 100.4 / 255 - 1, 2 * 100.6 / 255 - 1, -0.999]
    grid = image_grid(torch.tensor(values).reshape(1, 1, 1, 8), padding=0, scale=1)
    assert np.asarray(grid).tolist() == [[0, 255, 128, 0, 255, 100, 101, 0]]


def test_every_uint8_value_survives_the_range_of_models() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    x = torch.tensor(values[:, None] / 127.5 - 1, dtype=torch.float32)
    for stack in (x, x.half(), x.double(), values):
        got = np.asarray(image_grid(stack, padding=0, scale=1))
        if getattr(stack, "dtype", None) != torch.float16:
            np.testing.assert_array_equal(got, values[0])
        assert np.abs(got.astype(int) - values[0]).max() <= 1


def test_arrays_and_tensors_give_the_same_grid() -> None:
    x = noise(4, 3, 5, 7)
    array = uint8(x).transpose(0, 2, 3, 1)
    assert png_bytes(image_grid(x)) == png_bytes(image_grid(array))
    grey = noise(4, 1, 5, 7)
    assert png_bytes(image_grid(grey)) == png_bytes(image_grid(uint8(grey[:, 0])))
    assert image_grid(x).mode == "RGB"
    assert image_grid(grey).mode == "L"


def test_two_channels_are_two_tiles() -> None:
    x = noise(1, 2, 3, 4)
    grid = np.asarray(image_grid(x, padding=0, scale=1))
    np.testing.assert_array_equal(grid, np.concatenate([uint8(x[0, 0]), uint8(x[0, 1])], axis=1))


def test_alpha_is_seen_on_a_checkerboard() -> None:
    red = torch.tensor([1.0, -1, -1, 1]).reshape(1, 4, 1, 1).expand(1, 4, 8, 8).clone()
    assert np.asarray(image_grid(red, padding=0, scale=1)).reshape(-1, 3).tolist() == [[255, 0, 0]] * 64
    red[:, 3] = -1  # transparent
    board = np.asarray(image_grid(red, padding=0, scale=1))
    assert {tuple(pixel) for pixel in board.reshape(-1, 3).tolist()} == {(255, 255, 255), (204, 204, 204)}
    red[:, 3] = 0.0  # half: 128 / 255
    half = np.asarray(image_grid(red, padding=0, scale=1)).reshape(-1, 3)
    assert {tuple(pixel) for pixel in half.tolist()} == {(255, 127, 127), (230, 102, 102)}


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_is_magenta_and_alone(channels: int, value: float) -> None:
    x = noise(2, channels, 4, 4)
    x[1, channels - 1, 2, 3] = value
    grid = np.asarray(image_grid(x, columns=2, padding=0, scale=1))
    width = 8 if channels == 2 else 4
    magenta = np.argwhere((grid == NOT_A_NUMBER).all(axis=-1))
    assert magenta.tolist() == [[2, 2 * width - 1]]
    clean = np.asarray(image_grid(x.nan_to_num(0, 0, 0), columns=2, padding=0, scale=1).convert("RGB"))
    rest = np.ones(grid.shape[:2], bool)
    rest[2, 2 * width - 1] = False
    np.testing.assert_array_equal(grid[rest], clean[rest])


@pytest.mark.parametrize(
    ("count", "height", "width"), [(1, 8, 8), (64, 8, 8), (64, 28, 28), (7, 3, 50), (9, 64, 16), (4, 300, 400)]
)
def test_a_grid_is_wide_enough_and_about_square(count: int, height: int, width: int) -> None:
    grid = image_grid(noise(count, 1, height, width))
    assert grid.width >= 512
    assert max(grid.size) <= MAX_SIDE
    if count >= 7:
        assert 0.4 < grid.width / grid.height < 2.5


def test_enlarging_stops_before_a_grid_is_gigantic() -> None:
    assert image_grid(noise(1, 1, 512, 2)).size == (2 * 8 + 4, 512 * 8 + 4)
    assert image_grid(noise(1, 1, 8, 6000)).size == (6004, 12)


def test_no_hole_in_the_last_row_where_that_is_possible() -> None:
    assert pictures._columns(64, 64) == 8
    assert pictures._columns(24, 24) == 6
    assert pictures._columns(24, 48) == 8
    assert pictures._columns(7, 7) == 3
    assert pictures._columns(1, 1) == 1
    assert pictures._columns(5, 500) == 5


def test_reconstructions_stand_below_their_originals() -> None:
    x, x_rec = noise(5, 1, 4, 4), noise(5, 1, 4, 4, seed=1)
    grid = np.asarray(pair_grid(x, x_rec, columns=3, padding=1, scale=1))
    assert grid.shape == (4 * 5 + 1 + 4, 3 * 5 + 1)
    for stack, offset in ((uint8(x[:, 0]), 0), (uint8(x_rec[:, 0]), 5)):
        for index, tile in enumerate(stack):
            top, left = 1 + (index // 3) * 14 + offset, 1 + (index % 3) * 5
            np.testing.assert_array_equal(grid[top : top + 4, left : left + 4], tile)
    assert png_bytes(reconstruction_grid(x, x_rec, columns=3)) == png_bytes(pair_grid(x, x_rec, columns=3))
    assert (grid[11:15] == GROUND).all()


def test_grey_beside_colour() -> None:
    grid = pair_grid(noise(2, 1, 4, 4), noise(2, 3, 4, 4), columns=2, padding=0, scale=1)
    assert grid.mode == "RGB"
    top = np.asarray(grid)[:4]
    assert (top[..., 0] == top[..., 1]).all() and (top[..., 0] == top[..., 2]).all()


def test_interpolations_are_one_path_a_row() -> None:
    rows = noise(3, 5, 1, 4, 4)
    grid = np.asarray(interpolation_grid(rows, padding=0, scale=1))
    for row in range(3):
        for step in range(5):
            np.testing.assert_array_equal(
                grid[row * 4 : row * 4 + 4, step * 4 : step * 4 + 4], uint8(rows[row, step, 0])
            )
    assert png_bytes(interpolation_grid(list(rows))) == png_bytes(interpolation_grid(rows))


def test_png_is_a_png_and_repeats() -> None:
    image = image_grid(noise(4, 3, 8, 8))
    data = png_bytes(image)
    assert data == png_bytes(image)
    again = Image.open(io.BytesIO(data))
    assert again.format == "PNG"
    np.testing.assert_array_equal(np.asarray(again), np.asarray(image))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (noise(3, 8, 8), r"torch.float32 tensor of shape \(3, 8, 8\) is not a batch of images; give a float one"),
        (noise(1, 5, 8, 8), r"\(1, 5, 8, 8\) is not a batch of images"),
        (noise(1, 0, 8, 8), "is not a batch of images"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), r"torch.uint8 tensor .* is not a batch of images"),
        (np.zeros((2, 8, 8)), r"a float64 array of shape \(2, 8, 8\) is not a batch of images; give uint8"),
        (np.zeros((8, 8), np.uint8), "uint8 array of shape"),
        (np.zeros((2, 8, 8, 5), np.uint8), "uint8 array of shape"),
        ([[1, 2]], "int64 array of shape"),
        (noise(0, 1, 8, 8), r"images of shape \(0, 8, 8, 1\) cannot be shown; give at least one"),
        (np.zeros((2, 0, 8), np.uint8), "cannot be shown"),
    ],
)
def test_grids_refuse_what_is_no_batch_of_images(images, message: str) -> None:
    for show in (image_grid, pair_grid, lambda x: interpolation_grid([x])):
        with pytest.raises(InputError, match=message):
            show(images)


def test_grids_refuse_impossible_layouts() -> None:
    x = noise(4, 1, 8, 8)
    with pytest.raises(InputError, match="columns is 0; give a whole number, 1 or more"):
        image_grid(x, columns=0)
    with pytest.raises(InputError, match="padding is -1; give a whole number, 0 or more"):
        pair_grid(x, padding=-1)
    with pytest.raises(InputError, match="scale is 1.5; give a whole number, 1 or more"):
        interpolation_grid([x], scale=1.5)
    with pytest.raises(InputError, match="at least one stack"):
        pair_grid()
    with pytest.raises(InputError, match=r"the stacks of a grid differ in .*: \(4, 8, 8\), \(3, 8, 8\); give equal"):
        reconstruction_grid(x, x[:3])
    with pytest.raises(InputError, match="at least one row"):
        interpolation_grid([])
    with pytest.raises(InputError, match=r"the rows of a grid differ in .*: \(4, 8, 8\), \(2, 8, 8\); give equal"):
        interpolation_grid([x, x[:2]])


# Vectors ---------------------------------------------------------------------------------------------------------

BLUE, GREY = (15, 108, 189), (154, 165, 177)


def near(image: Image.Image, colour: tuple[int, int, int], tolerance: int = 30) -> np.ndarray:
    """Rows and columns of the pixels that have about this colour, legend and ticks (the lowest tenth) left out."""
    pixels = np.asarray(image.convert("RGB")).astype(int)[: int(image.height * 0.9)]
    return np.argwhere(np.abs(pixels - colour).max(axis=-1) <= tolerance)


def test_scatter_puts_points_where_they_are() -> None:
    """A square of four data points and samples at its centre: equal axes, and the same centre in pixels."""
    square = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]]).repeat(50, axis=0)
    image = scatter(np.full((50, 2), 0.5), reference=square)
    data, samples = near(image, GREY, 4), near(image, BLUE, 60)
    assert len(data) > 20 and len(samples) > 5
    np.testing.assert_allclose(samples.mean(axis=0), (data.max(axis=0) + data.min(axis=0)) / 2, atol=3)
    height, width = data.max(axis=0) - data.min(axis=0)
    assert abs(height - width) <= 3 and height > 300


def test_scatter_keeps_the_limits_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(0).normal(size=(200, 2))
    seen = {}

    def keep(figure):
        axes = figure.axes[0]
        seen.update(x=axes.get_xlim(), y=axes.get_ylim(), note=axes.get_xlabel())
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(pictures, "_render", keep)
    scatter(data, reference=data)
    usual = dict(seen)
    assert usual["note"] == ""
    bad = data.copy()
    bad[:3] = [[1e9, 0], [math.nan, 0], [0, -math.inf]]
    scatter(bad, reference=data)
    assert (seen["x"], seen["y"]) == (usual["x"], usual["y"])
    assert seen["note"] == "3 samples are outside this picture"
    (left, right), (low, high) = seen["x"], seen["y"]
    assert left < data[:, 0].min() and right > data[:, 0].max() and low < data[:, 1].min() and high > data[:, 1].max()
    assert right - left == pytest.approx(high - low)


def test_scatter_of_degenerate_points() -> None:
    for points in (
        np.zeros((1, 2)),
        np.full((3, 2), math.nan),
        torch.ones(5, 2, requires_grad=True),
        np.ones((2, 2), int),
    ):
        assert scatter(points, title="$ _title_ $").size == (660, 660)


def test_histograms_are_densities_over_the_same_bins(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    data, samples = rng.normal(size=(1000, 3)), rng.normal(size=(400, 3)) + np.array([0, 0, 1e6])
    panels = []
    monkeypatch.setattr(pictures, "_render", lambda figure: panels.extend(figure.axes) or Image.new("RGB", (1, 1)))
    vector_strip(samples, reference=data)
    assert len(panels) == 3
    for feature, panel in enumerate(panels):
        behind, front = panel.patches
        np.testing.assert_array_equal(behind.get_data().edges, front.get_data().edges)
        edges = front.get_data().edges
        for drawn, values in ((behind, data[:, feature]), (front, samples[:, feature])):
            inside = ((values >= edges[0]) & (values <= edges[-1])).mean()
            area = (drawn.get_data().values * np.diff(edges)).sum()
            assert area == pytest.approx(inside)
    assert (panels[2].patches[1].get_data().values == 0).all()  # all samples far away: nothing, not a rescaled hump


def test_vector_strip_of_many_and_of_odd_features() -> None:
    many = vector_strip(noise(50, 40))
    assert many.width > 1000
    odd = np.stack([np.zeros(9), np.full(9, math.nan), np.arange(9.0), np.full(9, math.inf)], axis=1)
    vector_strip(odd, reference=odd)
    vector_strip(odd)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scatter(noise(5, 3)), r"vectors of shape \(5, 3\) cannot be shown; give \(batch, 2\), not empty"),
        (lambda: scatter(noise(5, 2), reference=noise(5, 3)), r"\(5, 3\) cannot be shown"),
        (lambda: scatter(noise(0, 2)), r"\(0, 2\) cannot be shown"),
        (lambda: vector_strip(noise(5)), r"\(5,\) cannot be shown; give \(batch, features\)"),
        (lambda: vector_strip(noise(5, 3), reference=noise(5, 4)), r"\(5, 4\) cannot be shown; give \(batch, 3\)"),
        (lambda: samples_picture(noise(5, 3), Spec("vector", (2,), layout="D")), r"give \(batch, 2\)"),
    ],
)
def test_vectors_refuse_other_shapes(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_samples_picture_chooses_by_the_data() -> None:
    x = noise(6, 3, 8, 8)
    assert png_bytes(samples_picture(x, Spec("image", (3, 8, 8)))) == png_bytes(image_grid(x))
    points, data = noise(20, 2), noise(30, 2, seed=1)
    plain = Spec("vector", (2,), layout="D")
    assert png_bytes(samples_picture(points, plain, reference=data)) == png_bytes(scatter(points, reference=data))
    scaled = Spec("vector", (2,), layout="D", mean=(5.0, -1.0), std=(2.0, 0.5))
    source = points.double() * torch.tensor([2.0, 0.5]).double() + torch.tensor([5.0, -1.0]).double()
    assert png_bytes(samples_picture(points, scaled)) == png_bytes(scatter(source))
    wide = noise(20, 5)
    assert png_bytes(samples_picture(wide, Spec("vector", (5,), layout="D"))) == png_bytes(vector_strip(wide))


# Curves ----------------------------------------------------------------------------------------------------------


def drawn(monkeypatch: pytest.MonkeyPatch, records: list[dict], **options) -> list:
    """The panels of `curves`, before they are painted."""
    panels: list = []
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "_render", lambda figure: panels.extend(figure.axes) or Image.new("RGB", (1, 1)))
        curves(records, **options)
    return panels


def titles(panels: list) -> list[str]:
    return [panel.get_title(loc="left") for panel in panels]


def test_one_panel_for_each_metric_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [
        {"examples": 10, "seconds": 1.0, "kl": 2.0, "stage": "codes", "ok": True, "none": None},
        {"examples": 30, "seconds": 2.0, "kl": 1.0, "nll": 5, "$a_b$": 1.0},
        {"examples": 40, "nll": 4, "kl": 3.0},
    ]
    panels = drawn(monkeypatch, records)
    assert titles(panels) == ["kl", "nll", "$a_b$"]
    raw = panels[1].lines[0]
    assert raw.get_xdata().tolist() == [30, 40] and raw.get_ydata().tolist() == [5, 4]
    assert titles(drawn(monkeypatch, records, skip=("examples", "kl", "seconds"))) == ["nll", "$a_b$"]
    assert {panel.get_xlim() for panel in panels} == {(-0.8, 40.8)}


def test_what_is_not_finite_is_a_gap_a_mark_and_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [1.0, 2.0, math.nan, math.inf, 3.0, -math.inf, 1.0]
    (panel,) = drawn(monkeypatch, [{"examples": n, "kl": value} for n, value in enumerate(values)])
    raw, mean, marks = panel.lines
    gaps = [False, False, True, True, False, True, False]
    assert np.isnan(raw.get_ydata()).tolist() == np.isnan(mean.get_ydata()).tolist() == gaps
    assert marks.get_xdata().tolist() == [2, 3, 5]
    assert titles([panel]) == ["kl (3 not finite)"]


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([500.0, 50.0, 2.0], "log"),
        ([500.0, 50.0, 3.0], "linear"),
        ([500.0, -0.1, 1.0], "linear"),
        ([500.0, 0.0], "linear"),
        ([500.0, math.nan, 1.0], "log"),
        ([math.nan], "linear"),
        ([3.0], "linear"),
    ],
)
def test_the_scale_is_logarithmic_only_for_large_positive_ranges(
    monkeypatch: pytest.MonkeyPatch, values: list[float], scale: str
) -> None:
    (panel,) = drawn(monkeypatch, [{"examples": n, "kl": value} for n, value in enumerate(values)])
    assert panel.get_yscale() == scale


@pytest.mark.parametrize("window", [1, 2, 3, 7, 50])
def test_running_mean_is_the_mean_of_its_window(window: int) -> None:
    rng = np.random.default_rng(window)
    values = rng.normal(size=20)
    values[[3, 4, 11]] = [math.nan, math.inf, -math.inf]
    got = running_mean(values, window)
    for index in range(20):
        part = values[max(index - (window - 1) // 2, 0) : index + window // 2 + 1]
        want = part[np.isfinite(part)].mean() if np.isfinite(values[index]) else math.nan
        np.testing.assert_allclose(got[index], want, rtol=1e-12)
    assert running_mean(np.array([1e30, 1.0, 2.0, 3.0]), 1).tolist() == [1e30, 1.0, 2.0, 3.0]


def test_a_long_run_is_thinned_but_keeps_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    (panel,) = drawn(monkeypatch, [{"examples": n, "kl": float(n)} for n in range(20_001)])
    raw = panel.lines[0]
    assert len(raw.get_xdata()) <= 4001
    assert raw.get_xdata()[0] == 0 and raw.get_xdata()[-1] == 20_000


def test_more_metrics_than_fit_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    notes = []
    monkeypatch.setattr(
        pictures, "_render", lambda figure: notes.append(figure.get_supxlabel()) or Image.new("RGB", (1, 1))
    )
    record = {f"m{n}": 1.0 for n in range(26)}
    curves([{"examples": 1, **record}])
    assert notes == ["examples seen; 2 more metrics in metrics.jsonl"]


@pytest.mark.parametrize("count", [1, 5, 24])
def test_panels_are_painted_at_a_readable_size(count: int) -> None:
    records = [{"examples": n, **{f"metric_{k}": math.sin(n + k) for k in range(count)}} for n in range(50)]
    image = curves(records)
    columns = round(image.width / 462)
    assert image.width / columns > 400 and image.height / math.ceil(count / columns) > 250
    assert len(near(image, BLUE)) > 100 * count
    assert count > 5 or png_bytes(image) == png_bytes(curves(records))


def test_nothing_to_draw_is_said() -> None:
    for records in ([], [{"examples": 1}], [{"examples": 1, "stage": "x", "kl": None}]):
        assert curves(records).size == (440, 165)


def test_a_run_that_never_was_finite_and_one_at_zero() -> None:
    curves([{"examples": 0, "kl": math.nan}])
    curves([{"examples": 0, "kl": 0.0}])
    curves([{"examples": 1, "kl": 1e308}, {"examples": 2, "kl": -1e308}, {"examples": 3, "kl": 1e-308}])
    huge = np.array([[1e308, 0], [-1e308, 1], [0.5, 0.5]])
    scatter(huge, reference=huge)
    vector_strip(huge, reference=huge)


def test_examples_are_written_short() -> None:
    text = [pictures._examples_text(value) for value in (0, 64, 1500, 60_000, 2_500_000, 1e9)]
    assert text == ["0", "64", "1.5k", "60k", "2.5M", "1G"]


def test_pictures_touch_no_global_state() -> None:
    """pyplot keeps every figure for ever and chooses a window system; it is never imported."""
    code = (
        "import sys, torch, twofold.pictures as p\n"
        "assert 'matplotlib' not in sys.modules and 'PIL' not in sys.modules\n"
        "p.curves([{'examples': 1, 'kl': 1.0}]); p.scatter(torch.zeros(3, 2)); p.vector_strip(torch.zeros(3, 3))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
