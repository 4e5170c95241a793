"""Arrays, tensors, pairs and torch datasets: how they are read, and every reason to refuse them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from twofold.data import describe, from_model, load, to_model
from twofold.data.images import covering, resized, with_channels
from twofold.errors import InputError

torch.set_num_threads(1)


def pixels(*shape: int, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, size=shape).astype(dtype)


@pytest.mark.parametrize(
    ("shape", "layout", "seen"),
    [
        ((10, 6, 7), "HW", (1, 6, 7)),
        ((10, 1, 6, 7), "CHW", (1, 6, 7)),
        ((10, 3, 6, 7), "CHW", (3, 6, 7)),
        ((10, 6, 7, 3), "HWC", (3, 6, 7)),
        ((10, 6, 7, 4), "HWC", (4, 6, 7)),
        ((10, 6, 3), "HW", (1, 6, 3)),
    ],
)
def test_layout_is_found_and_given_back(shape, layout, seen):
    x = pixels(*shape)
    data = load(x, holdout=0)
    assert (data.spec.layout, data.spec.shape) == (layout, seen)
    assert np.array_equal(from_model(to_model(data.train.x, data.spec), data.spec), x)


def test_values_land_in_the_right_place():
    x = pixels(4, 5, 6, 3)
    raw = load(x, holdout=0).train.x
    assert raw[2, 1, 3, 4] == x[2, 3, 4, 1]


def test_ambiguous_layout_names_both_readings():
    with pytest.raises(
        InputError, match=r"channels first \(3 channels, 8×1\) or channels last \(1 channels, 3×8\); say"
    ):
        load(pixels(9, 3, 8, 1))
    assert load(pixels(9, 3, 8, 1), channels=3).spec.shape == (3, 8, 1)
    assert load(pixels(9, 3, 8, 1), channels=1).spec.shape == (1, 3, 8)
    assert load(pixels(9, 3, 8, 3), size=(8, 3)).spec.layout == "CHW"
    assert load(pixels(9, 3, 8, 3), size=(3, 8)).spec.layout == "HWC"
    with pytest.raises(InputError, match="or pass a torch tensor"):
        load(pixels(9, 3, 3, 3), channels=3, size=3)
    assert load(torch.from_numpy(pixels(9, 3, 8, 3))).spec.layout == "CHW"


def test_unusual_channel_counts_must_be_said():
    with pytest.raises(
        InputError, match=r"shape \(9, 2, 8, 8\) has 1, 3 or 4 channels neither at axis 1 nor at axis 3"
    ):
        load(pixels(9, 2, 8, 8))
    assert load(pixels(9, 2, 8, 8), channels=2).spec.shape == (2, 8, 8)
    with pytest.raises(InputError, match="3 channels cannot become 2; allowed: 1, 3 and 4"):
        load(pixels(9, 3, 8, 8), channels=2)


def test_fixed_seed_split_keeps_pairs_together():
    x = pixels(50, 4, 4)
    y = x[:, 0, 0].astype(int)
    data = load((x, y), holdout=0.2, seed=3)
    assert len(data.test) == 10 and data.spec.classes == y.max() + 1
    for split in (data.train, data.test):
        assert torch.equal(split.x[:, 0, 0, 0].long(), split.y)
    everything = torch.cat([data.train.x, data.test.x]).flatten(1).tolist()
    assert sorted(everything) == sorted(x.reshape(50, -1).tolist())
    assert not torch.equal(load((x, y), holdout=0.2, seed=4).test.y, data.test.y)
    assert len(load(x, holdout=0.001).test) == 1
    assert load(x, holdout=0).test is None


def test_data_is_given_back_as_it_is():
    data = load(pixels(5, 4, 4))
    assert load(data) is data
    with pytest.raises(InputError, match="size cannot be used here: the data is loaded already"):
        load(data, size=8)


def test_loaded_data_is_a_copy():
    x = pixels(5, 4, 4)
    data = load(x, holdout=0)
    before = data.train.x.clone()
    x[:] = 0
    assert torch.equal(data.train.x, before)
    x.flags.writeable = False
    load(x)


def test_fingerprint_follows_content_and_spec():
    x, y = pixels(20, 5, 5), np.arange(20) % 3
    changed = x.copy()
    changed[7, 1, 1] ^= 1
    prints = [
        load(x).fingerprint,
        load(changed).fingerprint,
        load((x, y)).fingerprint,
        load((x, (y + 1) % 3)).fingerprint,
        load(x[:, None]).fingerprint,
        load(x, seed=1).fingerprint,
        load(x, value_range=(0, 300)).fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert load(x.copy()).fingerprint == prints[0]


def test_float_images_lie_in_the_unit_interval_or_say_otherwise():
    x = pixels(9, 4, 4, dtype="float32")
    span = rf"\[{x.min():g}, {x.max():g}\]"
    with pytest.raises(
        InputError, match=rf"must lie in \[0, 1\], and these float32 values span {span}; .* --range LOW HIGH"
    ):
        load(x)
    data = load(x, value_range=(0, 255))
    assert (data.spec.low, data.spec.high, data.spec.dtype) == (0, 255, "float32")
    assert np.array_equal(from_model(to_model(data.train.x, data.spec), data.spec).round(), data.train.x[:, 0].numpy())
    with pytest.raises(InputError, match=r"must lie in \[0, 100\]"):
        load(x, value_range=(0, 100))
    tenths = np.full((4, 3, 3), 0.1, np.float32)
    assert load(tenths, value_range=(0, 0.1)).spec.high == 0.1, "float32(0.1) > 0.1, and is meant"


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_whole_numbers_without_a_natural_range_need_one(dtype):
    x = pixels(9, 4, 4, dtype=dtype)
    with pytest.raises(InputError, match=rf"{dtype} images have no natural range, and these span .* --range LOW HIGH"):
        load(x)
    assert load(x, value_range=(0, 255)).spec.dtype == dtype


@pytest.mark.parametrize(
    ("dtype", "kept"), [("int8", "int32"), ("int16", "int32"), ("uint32", "int64"), (">i2", "int32")]
)
def test_odd_whole_numbers_are_widened_with_a_note(dtype, kept):
    x = (pixels(9, 4, 4) // 2).astype(dtype)
    data = load(x, value_range=(0, 127), holdout=0)
    assert data.spec.dtype == kept and f"values are kept as {kept}" in data.notes[0]
    assert np.array_equal(from_model(to_model(data.train.x, data.spec), data.spec), x)


def test_sixteen_bit_images_use_the_whole_range():
    data = load(np.array([[[0, 65535]]], np.uint16), holdout=0)
    assert data.train.x.dtype == torch.int32
    assert to_model(data.train.x, data.spec).flatten().tolist() == [-1, 1]


def test_torch_tensors_of_every_kind():
    x = torch.rand(6, 3, 4, 4, requires_grad=True)
    assert torch.equal(load(x, holdout=0).train.x, x.detach())
    assert load(x.detach().bfloat16()).spec.dtype == "float32"
    data = load((x.half(), torch.arange(6)), holdout=0)
    assert data.spec.dtype == "float16" and data.train.y.tolist() == list(range(6))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_counted_and_placed(bad):
    x = np.zeros((9, 4, 4), np.float32)
    x[5, 1, 2], x[7, 0, 0] = bad, bad
    with pytest.raises(InputError, match="2 values are NaN or infinite, the first in example 5"):
        load(x)
    with pytest.raises(InputError, match="2 values are NaN or infinite, the first in example 5"):
        load(x.reshape(9, 16))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((0, 4, 4), np.uint8), r"the array is empty, shape \(0, 4, 4\)"),
        (np.zeros((4, 0)), "the array is empty"),
        (np.zeros(4), r"shape \(4,\) is neither vectors"),
        (np.zeros((2, 3, 4, 5, 6)), "is neither vectors"),
        (np.array([[1, 2], [3, None]], dtype=object), "arrays of type object cannot be used; allowed: bool, uint8"),
        (np.zeros((3, 3), complex), "arrays of type complex128"),
        (np.array([["a", "b"]]), "arrays of type <U1"),
        (np.full((3, 3), 1e300), "beyond what float32 can hold"),
        ([1, 2, 3], "data from a list cannot be loaded; give"),
        (None, "data from a NoneType cannot be loaded"),
        ((np.zeros((2, 2)),), r"a tuple of data must be \(x, y\)"),
    ],
)
def test_arrays_that_cannot_be_used(x, message):
    with pytest.raises(InputError, match=message) as error:
        load(x)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.arange(8), "8 labels for 9 examples; give one per example"),
        (np.arange(9) - 2, "label -2 of example 0 is negative; labels count from 0"),
        (np.arange(9) / 2, "label 0.5 of example 1 is not a whole number"),
        (np.full(9, np.nan), "label nan of example 0 is not a whole number"),
        (np.eye(9), r"labels have shape \(9, 9\); give one label per example, not one-hot rows"),
        (np.array([None] * 9), "labels of type object cannot be used"),
        (np.full(9, 2**40), "too large"),
    ],
)
def test_labels_that_cannot_be_used(y, message):
    with pytest.raises(InputError, match=message):
        load((pixels(9, 4, 4), y))
    with pytest.raises(InputError, match=message):
        load(pixels(9, 4, 4), labels=y)


def test_labels_of_every_good_kind():
    x = pixels(4, 3, 3)
    names = load((x, ["cat", "ant", "cat", "bee"]), holdout=0)
    assert names.spec.class_names == ("ant", "bee", "cat") and names.train.y.tolist() == [2, 0, 2, 1]
    assert load((x, np.array([b"b", b"a", b"b", b"b"])), holdout=0).spec.class_names == ("a", "b")
    assert load((x, np.array(["b", "a", "b", "b"], dtype=object)), holdout=0).train.y.tolist() == [1, 0, 1, 1]
    for y in (
        [[0], [4], [1], [1]],
        np.array([0.0, 4, 1, 1]),
        torch.tensor([0, 4, 1, 1]),
        np.array([0, 4, 1, 1], np.uint8),
    ):
        data = load((x, np.asarray(y)), holdout=0)
        assert data.train.y.tolist() == [0, 4, 1, 1] and data.spec.classes == 5 and data.train.y.dtype == torch.int64
    assert load((x, np.array([True, False, True, True])), holdout=0).train.y.tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"size": 0}, "size is 0; give one whole number or"),
        ({"size": (4, 5, 6)}, "size is"),
        ({"channels": 0}, "channels is 0"),
        ({"value_range": (1, 1)}, "low < high"),
        ({"value_range": (0, float("inf"))}, "two finite numbers"),
        ({"holdout": 1.0}, "holdout is 1.0"),
        ({"holdout": -0.1}, "holdout is -0.1"),
        ({"seed": -1}, "seed is -1"),
        ({"labels": "nowhere.txt"}, "labels 'nowhere.txt' is not a file"),
    ],
)
def test_options_outside_their_range(kwargs, message):
    with pytest.raises(InputError, match=message):
        load(pixels(9, 4, 4), **kwargs)


def test_too_few_examples_to_hold_out():
    with pytest.raises(InputError, match="holding out 0.1 of 1 example leaves nothing to train on; use holdout 0"):
        load(pixels(1, 4, 4))
    assert len(load(pixels(1, 4, 4), holdout=0).train) == 1


def test_vectors_refuse_what_is_for_images():
    for kwargs in ({"size": 4}, {"channels": 3}, {"value_range": (0, 1)}):
        with pytest.raises(InputError, match="holds vectors, not images"):
            load(np.random.RandomState(0).rand(9, 4), **kwargs)


# --- Conversions ---


def test_channel_conversions_mean_what_they_say():
    x = torch.from_numpy(pixels(5, 4, 3, 3)).double()
    rgb, opacity = x[:, :3], x[:, 3:] / 255
    white = rgb * opacity + 255 * (1 - opacity)
    grey = (white * torch.tensor([0.299, 0.587, 0.114]).double()[:, None, None]).sum(1, keepdim=True)
    assert torch.allclose(with_channels(x, 3, low=0, high=255), white)
    assert torch.allclose(with_channels(x, 1, low=0, high=255), grey)
    assert torch.equal(with_channels(grey, 3, low=0, high=255), grey.repeat(1, 3, 1, 1))
    assert torch.equal(with_channels(rgb, 4, low=0, high=255)[:, 3], torch.full((5, 3, 3), 255.0).double())
    as_bytes = with_channels(x.to(torch.uint8), 3, low=0, high=255)
    assert torch.equal(as_bytes, white.round().to(torch.uint8))
    with pytest.raises(InputError, match="images with 2 channels cannot be given 3"):
        with_channels(x[:, :2], 3, low=0, high=255)


@pytest.mark.parametrize(
    ("height", "width", "size"), [(20, 30, (10, 10)), (12, 7, (5, 9)), (6, 6, (13, 11)), (9, 9, (3, 3))]
)
def test_resizing_agrees_with_pillow(height, width, size):
    from PIL import Image

    x = np.random.RandomState(0).rand(height, width).astype(np.float32) * 255
    tall, wide = covering(height, width, size)
    assert tall >= size[0] and wide >= size[1] and (tall == size[0] or wide == size[1])
    top, left = (tall - size[0]) // 2, (wide - size[1]) // 2
    expected = np.asarray(Image.fromarray(x).resize((wide, tall), Image.Resampling.BICUBIC))
    expected = expected[top : top + size[0], left : left + size[1]].clip(0, 255)
    mine = resized(torch.from_numpy(x)[None, None], size, low=0, high=255)[0, 0].numpy()
    assert np.abs(mine - expected).max() < 0.05


def test_resizing_keeps_dtype_and_range_and_says_so():
    x = (np.random.RandomState(0).rand(9, 12, 20, 3) > 0.5).astype(np.uint8) * 255
    data = load(x, size=6)
    assert data.spec.shape == (3, 6, 6) and data.train.x.dtype == torch.uint8
    assert data.notes == ("resized: 12×20 → 6×6",)
    assert load(x, size=(6, 10), channels=1).notes == ("channels converted: 3 → 1", "resized: 12×20 → 6×10")
    assert load(x[..., 0], channels=3).spec.layout == "HWC"
    sharp = load((x / 255).astype(np.float32), size=18).train.x
    assert sharp.min() == 0 and sharp.max() == 1, "overshoot is clipped"


# --- torch datasets ---


class Items(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def test_torch_datasets_are_read():
    x, y = torch.rand(12, 3, 5, 3), torch.arange(12) % 4
    data = load(TensorDataset(x, y), holdout=0)
    assert data.name == "TensorDataset" and torch.equal(data.train.x, x) and torch.equal(data.train.y, y)
    assert load(TensorDataset(x), holdout=0).train.y is None
    from PIL import Image

    pictures = pixels(6, 5, 7, 3)
    data = load(Items([(Image.fromarray(p), i % 2) for i, p in enumerate(pictures)]), holdout=0)
    assert data.spec.layout == "HWC" and np.array_equal(data.train.x.permute(0, 2, 3, 1).numpy(), pictures)
    assert load(Items([(p, "ab"[i % 2]) for i, p in enumerate(pictures)])).spec.class_names == ("a", "b")


class Endless(IterableDataset):
    def __iter__(self):
        yield torch.zeros(3)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Endless(), "Endless: only map-style datasets"),
        (Items([]), "Items: the dataset is empty"),
        (Items([np.zeros((3, 4)), np.zeros((3, 5))]), r"item 0 is float64 \(3, 4\) and item 1 is float64 \(3, 5\)"),
        (Items([np.zeros((3, 4)), (np.zeros((3, 4)), 1)]), "some items have labels and some do not"),
        (Items([{"image": 1}]), "item 0 is a dict; give a tensor, an array or a PIL image"),
        (Items([(np.zeros(3), 1, 2)]), r"item 0 has 3 parts; give x or \(x, y\)"),
        (Items([(np.zeros(3), np.zeros(2))]), r"the label of item 0 has shape \(2,\)"),
    ],
)
def test_datasets_that_cannot_be_used(dataset, message):
    with pytest.raises(InputError, match=message):
        load(dataset)


def test_dataset_larger_than_memory_is_refused_before_it_is_read():
    with pytest.raises(InputError, match="100 items of 800 bytes need .* more than the limit"):
        load(Items([np.zeros((10, 10))] * 100), memory_limit_bytes=10_000)


# --- Description ---


def test_description_counts_and_suggests():
    x = (pixels(30, 5, 5) % 17).astype(np.uint8)
    lines = describe(load((x, ["a", "b", "c"] * 10), holdout=0))
    text = "\n".join(lines)
    assert "30 to train on" in text and "labels: 3 classes: a (10), b (10), c (10)" in text
    assert f"values seen {x.min()} to {x.max()}" in text and "say --range 0 16" in text
    assert "30 examples are few" in text and f"memory: {x.nbytes / 2**20:,.1f} MiB" in text
    flat = "\n".join(describe(load(np.random.RandomState(0).rand(200, 784))))
    assert "784 features = 28 × 28" in flat and "labels: none" in flat and "few" not in flat
    many = "\n".join(describe(load((np.random.RandomState(0).rand(200, 3), np.arange(200) % 50 * 2))))
    assert "and 79 more" in many and "of the 99 classes have no training example" in many
    full = "\n".join(describe(load(pixels(200, 9, 9))))
    assert "suggestion" not in full


def test_test_split_is_described(tmp_path):
    data = load(pixels(200, 9, 9))
    assert "180 to train on, 20 to test on" in describe(data)[1]
    assert "to test on" not in describe(replace(data, test=None))[1]
