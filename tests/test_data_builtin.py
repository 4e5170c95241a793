"""The built-in sources: what they hold, that they are drawn right, and that they are the same everywhere."""

from __future__ import annotations

import colorsys
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from twofold.data import describe, load, sources
from twofold.data.shapes import factor_sizes, factors_of, index_of, render
from twofold.errors import InputError

torch.set_num_threads(1)


@pytest.mark.parametrize("source", sources(), ids=lambda source: source.name)
def test_catalogue_says_what_load_gives(source):
    data = load(source.name)
    assert (data.name, data.spec.kind, data.spec.shape) == (source.name, source.kind, source.shape)
    assert len(data.train) + len(data.test) == source.examples
    assert tuple(data.train.x.shape) == (len(data.train), *source.shape)
    assert tuple(data.train.x[torch.tensor([3, 1])].shape) == (2, *source.shape)
    assert not data.notes and (source.input_shape is None) == (data.spec.input is None)
    if source.input_shape is not None:
        assert data.spec.input.shape == source.input_shape and data.train.a.shape[1:] == source.input_shape
    assert any(f"{len(data.train):,} to train on" in line for line in describe(data))


def test_listing_the_sources_imports_nothing_heavy():
    code = (
        "import sys, twofold.data as d; names = [s.name for s in d.sources()]; assert 'digits' in names;"
        "print(sorted({'torch', 'numpy', 'sklearn', 'PIL'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_fingerprints_do_not_depend_on_the_process():
    names = ["shapes-32", "gaussians-8", "gaussians-25"]
    code = f"from twofold.data import load\nfor name in {names}: print(load(name).fingerprint)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = [load(name).fingerprint for name in names]
    assert result.stdout.split() == here
    assert len(set(here)) == len(here) and all(len(value) == 64 for value in here)


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    bunch, data = load_digits(), load("digits", holdout=0.5, seed=7)
    assert data.train.x.dtype == torch.uint8
    assert (data.spec.low, data.spec.high, data.spec.dtype, data.spec.layout) == (0, 16, "float64", "HW")
    assert len(data.test) == round(0.2 * 1797), "the test split is fixed, whatever the holdout"
    everything = {
        (image.tobytes(), label)
        for image, label in zip(bunch.images.astype(np.uint8), bunch.target.tolist(), strict=True)
    }
    for split in (data.train, data.test):
        for image, label in zip(split.x.numpy(), split.y.tolist(), strict=True):
            assert (image.tobytes(), label) in everything
    train = {image.tobytes() for image in data.train.x.numpy()}
    assert not train & {image.tobytes() for image in data.test.x.numpy()}


def test_digits_convert_and_refuse():
    data = load("digits", size=12, channels=3)
    assert data.spec.shape == (3, 12, 12) and data.spec.layout == "HWC"
    assert data.train.x.dtype == torch.float32 and data.train.x.min() >= 0 and data.train.x.max() <= 16
    with pytest.raises(InputError, match="value_range cannot be used here: the built-in digits"):
        load("digits", value_range=(0, 1))
    with pytest.raises(InputError, match="channels is 2; allowed: 1, 3 and 4"):
        load("digits", channels=2)


def test_color_digits_are_digits_times_their_hue():
    data, grey = load("color-digits"), load("digits")
    assert torch.equal(data.train.y, grey.train.y)
    for i in range(0, 200, 9):
        rgb = np.array(colorsys.hsv_to_rgb(float(data.train.factors[i, 0]), 1, 1))
        expected = rgb[:, None, None] * grey.train.x[i].numpy() / 16 * 255
        assert np.abs(data.train.x[i].numpy() - expected).max() <= 0.51
    hues = data.train.factors[:, 0]
    assert hues.min() >= 0 and hues.max() < 1 and abs(float(hues.mean()) - 0.5) < 0.03


@pytest.mark.parametrize("name", ["gaussians-8", "gaussians-25"])
def test_gaussians_have_their_modes(name):
    data = load(name)
    count, std = (8, 0.02 / 1.414) if name == "gaussians-8" else (25, 0.05 / 2.828)
    assert data.modes.shape == (count, 2) and data.mode_std == pytest.approx(std)
    assert data.spec.mean is None and data.spec.classes == count
    offsets = data.train.x - data.modes[data.train.y]
    assert float(offsets.std()) == pytest.approx(std, rel=0.01)
    assert float(offsets.mean().abs()) < std / 50
    assert torch.equal(torch.cdist(data.train.x[:2000], data.modes).argmin(1), data.train.y[:2000])
    with pytest.raises(InputError, match=f"size cannot be used here: {name}"):
        load(name, size=3)


def test_gaussian_modes_stand_where_the_paper_puts_them():
    ring, grid = load("gaussians-8").modes.double(), load("gaussians-25").modes.double()
    assert torch.allclose(ring.norm(dim=1), torch.full((8,), 2 / 1.414, dtype=torch.float64), atol=1e-6)
    assert len({tuple(p) for p in (ring * 1e4).round().tolist()}) == 8, "the ring's end is not its start"
    assert {tuple(p) for p in (grid * 2.828).round().tolist()} == {
        (x, y) for x in range(-4, 5, 2) for y in range(-4, 5, 2)
    }


def test_gaussians_hold_out_what_is_asked():
    assert load("gaussians-8", holdout=0).test is None
    assert len(load("gaussians-8", holdout=0.25).test) == 25_000


def test_shape_numbers_are_those_of_dsprites():
    bases = [737_280, 245_760, 40_960, 1024, 32, 1]
    random = np.random.RandomState(0)
    factors = np.stack([random.randint(n, size=500) for n in factor_sizes], 1)
    index = index_of(torch.from_numpy(factors))
    assert index.tolist() == (factors @ np.array(bases)).tolist()
    assert torch.equal(factors_of(index), torch.from_numpy(factors))
    assert factors_of(torch.tensor([0, 737_279])).tolist() == [[0] * 6, [0, 2, 5, 39, 31, 31]]


def reference(shape: int, scale: int, orientation: int, px: int, py: int, size: int) -> np.ndarray:
    """One sprite, pixel by pixel from the outline's definition, in float64 and without any mask."""
    from matplotlib.path import Path

    s, angle = 0.5 + 0.1 * scale, 2 * math.pi * (orientation % 39) / 39
    centre = np.array([16 + 32 * px / 31, 16 + 32 * py / 31])
    at = (np.arange(size) + 0.5) * 64 / size
    right, up = np.meshgrid(at - centre[0], centre[1] - at)
    u = (math.cos(angle) * right + math.sin(angle) * up) / s
    v = (-math.sin(angle) * right + math.cos(angle) * up) / s
    if shape == 0:
        return (np.abs(u) <= 9.6) & (np.abs(v) <= 9.6)
    if shape == 1:
        return (u / 12.8) ** 2 + (v / 7.2) ** 2 <= 1
    t = np.linspace(0, 2 * math.pi, 3001)
    y = 10.6 / 16 * (13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) + 1.4
    outline = Path(np.stack([9.6 * np.sin(t) ** 3, y], 1))
    return outline.contains_points(np.stack([u, v], -1).reshape(-1, 2)).reshape(size, size)


@pytest.mark.parametrize("size", [64, 32, 48])
def test_sprites_agree_with_their_definition(size):
    random = np.random.RandomState(size)
    factors = np.stack([random.randint(n, size=60) for n in factor_sizes], 1)
    factors[:4, 4:] = [[0, 0], [31, 31], [0, 31], [31, 0]]
    factors[:4, 2] = 5
    drawn = render(torch.from_numpy(factors), size=size)
    assert drawn.dtype == torch.uint8 and set(drawn.unique().tolist()) == {0, 255}
    wrong = [
        int(((picture[0].numpy() > 0) != reference(*row[1:], size)).sum())
        for picture, row in zip(drawn, factors.tolist(), strict=True)
    ]
    # The mask's cells are 1/36 pixel: a pixel centre within that of the outline may fall on the other side.
    assert max(wrong) <= 6 and np.mean(wrong) < 1.5


def test_heart_points_down_and_turns_counter_clockwise():
    upright, quarter = render(torch.tensor([[0, 2, 5, 0, 16, 16], [0, 2, 5, 10, 16, 16]]))[:, 0] > 0
    rows, columns = upright.any(1).nonzero(), quarter.any(0).nonzero()
    assert upright[rows.max()].sum() <= 3 < upright[rows.min() + 1].sum(), "the point is at the bottom"
    assert quarter[:, columns.max()].sum() <= 3 < quarter[:, columns.min() + 1].sum(), "and then to the right"


def test_last_orientation_is_the_first():
    factors = factors_of(torch.randint(737_280, (300,), generator=torch.Generator().manual_seed(0)))
    first, last = factors.clone(), factors.clone()
    first[:, 3], last[:, 3] = 0, 39
    assert torch.equal(render(first), render(last))


def test_sprites_do_not_depend_on_their_batch():
    factors = factors_of(torch.arange(0, 737_280, 150))  # more than one chunk
    assert torch.equal(render(factors)[::700], torch.cat([render(row[None]) for row in factors[::700]]))
    assert render(factors[:0]).shape == (0, 1, 64, 64)


def test_shapes_splits_are_the_grid_without_overlap():
    data = load("shapes-32")
    train, test = index_of(data.train.factors), index_of(data.test.factors)
    assert torch.equal(torch.cat([train, test]).sort().values, torch.arange(737_280))
    assert len(test) == round(0.05 * 737_280)
    chosen = torch.tensor([5, 100_000, 7])
    assert torch.equal(data.test.x[chosen[:1]], render(data.test.factors[5:6], size=32))
    assert torch.equal(data.train.x[chosen], render(data.train.factors[chosen], size=32))
    assert load("shapes", size=16).spec.shape == (1, 16, 16)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        (torch.zeros(2, 5), r"shape \(2, 5\); the last axis must be the 6 factors"),
        (torch.zeros(6), r"shape \(6,\); give \(batch, 6\)"),
        (torch.tensor([[0, 3, 0, 0, 0, 0]]), "factor shape must be a whole number from 0 to 2"),
        (torch.tensor([[0, 0, 0, -1, 0, 0]]), "factor orientation must be a whole number from 0 to 39"),
        (torch.tensor([[0, 0, 0.5, 0, 0, 0]]), "factor scale must be a whole number"),
    ],
)
def test_impossible_factors_are_refused(factors, message):
    with pytest.raises(InputError, match=message):
        render(factors)


def test_shapes_refuse_what_they_cannot_be():
    with pytest.raises(InputError, match="picture numbers go from 0 to 737279"):
        factors_of(torch.tensor([737_280]))
    with pytest.raises(InputError, match="drawn at 32×48; give one --size from 8 to 1024"):
        load("shapes", size=(32, 48))
    with pytest.raises(InputError, match="shapes has 1 channel; 3 cannot be given"):
        load("shapes", channels=3)


def test_square_is_the_one_pillow_draws():
    drawn = render(torch.tensor([[0, 0, 5, 0, 0, 0]]))[0, 0].numpy()
    picture = Image.new("L", (64, 64))
    # Centre 16, half side 9.6: pixel centres 6.5 … 25.5 lie inside.
    ImageDraw.Draw(picture).rectangle((6, 6, 25, 25), fill=255)
    assert np.array_equal(drawn, np.asarray(picture))
