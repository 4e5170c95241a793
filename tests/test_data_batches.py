"""Batches: every example once a pass, exact resume, the ranks' shares, augmentation, and the values models see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.data import Batches, from_model, load, ordered, raw, take, to_model
from twofold.data.batches import shifted
from twofold.data.split import Split, Subset, held_out
from twofold.errors import InputError
from twofold.spec import Spec

torch.set_num_threads(1)
VECTORS = Spec("vector", (1,), layout="D", dtype="float32")


def numbered(count: int) -> Split:
    return Split(torch.arange(count, dtype=torch.float32)[:, None], torch.arange(count))


def numbers(batch: dict) -> list[int]:
    assert torch.equal(batch["x"][:, 0].long(), batch["y"]), "labels stay with their examples"
    return batch["y"].tolist()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.data())
def test_stream_is_one_permutation_after_the_other(count, data):
    batch_size = data.draw(st.integers(1, count))
    batches = Batches(numbered(count), VECTORS, batch_size=batch_size, seed=3)
    stream: list[int] = []
    while len(stream) < 4 * count:
        drawn = numbers(batches.draw(len(stream)))
        assert len(drawn) == batch_size, "every batch is full"
        stream += drawn
    for start in range(0, 3 * count + 1, count):
        assert sorted(stream[start : start + count]) == list(range(count))


def test_passes_differ_and_seeds_differ():
    batches = Batches(numbered(50), VECTORS, batch_size=50, seed=0)
    orders = [numbers(batches.draw(p)) for p in (0, 50, 100)]
    orders.append(numbers(Batches(numbered(50), VECTORS, batch_size=50, seed=1).draw(0)))
    assert len({tuple(order) for order in orders}) == 4


def test_draw_is_a_function_of_seed_and_position():
    data = load("color-digits")
    kwargs = {"batch_size": 100, "seed": 5, "flip": True, "crop": 2}
    first = Batches(data.train, data.spec, **kwargs)
    positions = [0, 100, 1400, 1500, 14_000, 77]
    drawn = {p: first.draw(p) for p in positions}
    for p in reversed(positions):
        again = Batches(data.train, data.spec, **kwargs).draw(p)
        for batch in (first.draw(p), again):
            assert torch.equal(batch["x"], drawn[p]["x"]) and torch.equal(batch["y"], drawn[p]["y"])


@pytest.mark.parametrize("position", [0, 24, 1430])
def test_ranks_share_the_batch_that_one_process_would_see(position):
    data = load("digits")
    kwargs = {"batch_size": 24, "seed": 2, "flip": True, "crop": 1}
    whole = Batches(data.train, data.spec, **kwargs).draw(position)
    shares = [Batches(data.train, data.spec, **kwargs, rank=r, world_size=4).draw(position) for r in range(4)]
    assert [len(share["x"]) for share in shares] == [6] * 4
    for key in ("x", "y"):
        assert torch.equal(torch.cat([share[key] for share in shares]), whole[key])


def test_ordered_gives_everything_once():
    data = load("digits")
    batches = list(ordered(data.test, data.spec, 100))
    assert [len(batch["x"]) for batch in batches] == [100, 100, 100, 59]
    assert torch.equal(torch.cat([batch["y"] for batch in batches]), data.test.y)
    assert torch.equal(torch.cat([batch["x"] for batch in batches]), to_model(data.test.x, data.spec))
    assert "y" not in next(ordered(Split(data.test.x), data.spec, 3))


def test_examples_made_on_access_are_drawn_like_tensors():
    lazy = load("shapes-32")
    some = take(lazy.train.x, torch.arange(40))
    assert isinstance(some, Subset) and some[:].shape == (40, 1, 32, 32) and len(take(some, torch.arange(7))) == 7
    held = Split(some[torch.arange(40)])
    for position in (0, 30):
        pair = [
            Batches(s, lazy.spec, batch_size=16, seed=0, flip=True).draw(position)["x"] for s in (Split(some), held)
        ]
        assert torch.equal(*pair)


def test_flip_and_crop_agree_with_padding_and_slicing():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (40, 3, 7, 9), generator=generator, dtype=torch.uint8)
    flip = torch.randint(2, (40,), generator=generator).bool()
    down, right = torch.randint(-3, 4, (2, 40), generator=generator)
    moved = shifted(x, flip=flip, down=down, right=right)
    padded = F.pad(x.float(), (3, 3, 3, 3), mode="reflect")
    for i in range(40):
        top, left = 3 - int(down[i]), 3 - int(right[i])
        expected = padded[i, :, top : top + 7, left : left + 9]
        if flip[i]:
            expected = F.pad(x[i : i + 1].flip(3).float(), (3, 3, 3, 3), mode="reflect")[
                0, :, top : top + 7, left : left + 9
            ]
        assert torch.equal(moved[i].float(), expected)
    assert moved.dtype == torch.uint8 and moved.is_contiguous()


def test_where_names_the_examples_that_are_drawn():
    batches = Batches(numbered(30), VECTORS, batch_size=8, seed=3)
    for position in (0, 8, 24, 61):
        assert numbers(batches.draw(position)) == batches.where(position).tolist()
    assert not batches.augmented
    with pytest.raises(InputError, match="position is -1"):
        batches.where(-1)


def test_augmentation_is_uniform():
    picture = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8)
    spec = Spec("image", (1, 8, 8), high=63.0)
    batches = Batches(Split(picture.repeat(2000, 1, 1, 1)), spec, batch_size=2000, seed=0, flip=True, crop=1)
    x = batches.draw(0)["x"]
    kinds, counts = x.reshape(2000, -1).unique(dim=0, return_counts=True)
    assert len(kinds) == 18, "2 flips × 3 × 3 moves"
    expected = 2000 / 18
    assert float(((counts - expected) ** 2 / expected).sum()) < 40.8  # chi-squared, 17 degrees, p = 0.001


def test_without_augmentation_nothing_moves():
    data = load("digits")
    batch = Batches(data.train, data.spec, batch_size=len(data.train), seed=0).draw(0)
    known = {x.numpy().tobytes() for x in to_model(data.train.x, data.spec)}
    assert {x.numpy().tobytes() for x in batch["x"]} == known


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 512}, "batch size 512 is larger than the 300 training examples; use --batch-size 300 or less"),
        ({"batch_size": 0}, "batch size is 0"),
        ({"batch_size": 10, "world_size": 3}, "cannot be shared evenly by 3 processes; use a multiple of 3"),
        ({"batch_size": 10, "world_size": 2, "rank": 2}, "rank 2 of world size 2 does not exist"),
        ({"batch_size": 10, "flip": True}, "flip and crop are for images"),
        ({"batch_size": 10, "seed": -1}, "seed is -1"),
    ],
)
def test_impossible_batches_are_refused(kwargs, message):
    with pytest.raises(InputError, match=message):
        Batches(numbered(300), VECTORS, **{"seed": 0, **kwargs})


def test_impossible_positions_and_crops_are_refused():
    with pytest.raises(InputError, match="position is -1"):
        Batches(numbered(3), VECTORS, batch_size=1, seed=0).draw(-1)
    data = load("digits")
    with pytest.raises(InputError, match="crop is 8; give 0 to 7 pixels for 8×8"):
        Batches(data.train, data.spec, batch_size=1, seed=0, crop=8)
    with pytest.raises(InputError, match="batch size is 0"):
        next(ordered(data.train, data.spec, 0))


# --- Values ---


@pytest.mark.parametrize(("dtype", "count"), [("uint8", 256), ("uint16", 65_536)])
@pytest.mark.parametrize("layout", ["CHW", "HWC", "HW"])
def test_every_value_survives_the_round_trip(dtype, count, layout):
    shape = {"CHW": (-1, 1, 16, 16), "HWC": (-1, 16, 16, 1), "HW": (-1, 16, 16)}[layout]
    source = np.arange(count).astype(dtype).reshape(shape)
    data = load(source, holdout=0)
    x = to_model(data.train.x, data.spec)
    assert x.dtype == torch.float32 and x.min() == -1 and x.max() == 1, "the ends are met exactly"
    back = from_model(x, data.spec)
    assert back.dtype == source.dtype and np.array_equal(back, source)
    assert torch.equal(raw(back, data.spec), data.train.x)
    assert torch.equal(raw(torch.from_numpy(back.astype(np.int32)), data.spec).long(), data.train.x.long())


def test_wide_whole_numbers_keep_their_differences():
    source = (10**9 + np.arange(64)).reshape(1, 8, 8)
    data = load(source, holdout=0, value_range=(10**9, 10**9 + 63))
    assert data.train.x.dtype == torch.int64
    assert np.array_equal(from_model(to_model(data.train.x, data.spec), data.spec), source)


def test_images_go_linearly_to_plus_minus_one():
    spec = Spec("image", (1, 1, 3), dtype="float32", low=-2.0, high=6.0)
    x = to_model(torch.tensor([[[[-2.0, 2.0, 6.0]]]]), spec)
    assert x.flatten().tolist() == [-1, 0, 1]
    assert from_model(x.bfloat16(), spec).tolist() == [[[[-2, 2, 6]]]]
    assert from_model(x * 3, spec).max() == 6, "clipped to the source's range"


def test_vectors_are_standardised_by_the_training_split():
    random = np.random.RandomState(0)
    x = np.column_stack([random.randn(200) * 3 + 5, np.full(200, 7.25), random.rand(200), 1e8 + random.randn(200)])
    data = load(x, holdout=0.5, seed=1)
    kept, held = held_out(200, 0.5, seed=1)
    train = x[kept.numpy()]
    assert np.allclose(data.spec.mean, train.mean(0), rtol=1e-12)
    assert np.allclose(data.spec.std, [*train.std(0)[[0]], 1, *train.std(0)[2:]], rtol=1e-6)
    seen = to_model(data.test.x, data.spec).numpy()
    assert np.allclose(seen, (x[held.numpy()] - train.mean(0)) / data.spec.std, atol=1e-5), "even 1e8 from zero"
    assert np.allclose(from_model(to_model(data.test.x, data.spec), data.spec), x[held.numpy()], rtol=1e-6, atol=1e-6)


def test_ordinary_vectors_are_held_as_float32():
    data = load(np.random.RandomState(0).randn(20, 3))
    assert data.train.x.dtype == torch.float32 and data.spec.dtype == "float64"
    assert from_model(torch.zeros(2, 3), data.spec).dtype == np.float64


def test_whole_number_vectors_are_rounded_and_clipped():
    spec = Spec("vector", (2,), layout="D", dtype="uint8", mean=(10.0, 250.0), std=(4.0, 10.0))
    assert from_model(torch.tensor([[0.1, 3.0], [-9.0, 0.0]]), spec).tolist() == [[10, 255], [0, 250]]
    assert from_model(torch.full((1, 2), 1e30), replace(spec, dtype="int64")).min() > 2**62


def test_bool_images_come_back_as_bool():
    source = np.random.RandomState(0).rand(30, 5, 5) > 0.5
    data = load(source, holdout=0)
    assert data.train.x.dtype == torch.uint8 and (data.spec.low, data.spec.high) == (0, 1)
    back = from_model(to_model(data.train.x, data.spec) * 0.7, data.spec)
    assert back.dtype == bool and np.array_equal(back, source)


def test_from_model_refuses_what_it_cannot_hold():
    spec = Spec("image", (1, 2, 2))
    with pytest.raises(InputError, match=r"x has shape \(3, 2, 2\); the spec's is \(batch, 1, 2, 2\)"):
        from_model(torch.zeros(3, 2, 2), spec)
    bad = torch.tensor([0, float("nan"), float("inf"), 0]).reshape(1, 1, 2, 2)
    with pytest.raises(InputError, match="2 NaN or infinite values, which uint8 data cannot hold"):
        from_model(bad, spec)
    assert np.isnan(from_model(bad, replace(spec, dtype="float32"))).sum() == 1


def test_raw_refuses_guesses():
    spec = Spec("image", (3, 4, 5), layout="HWC")
    assert raw(np.zeros((2, 4, 5, 3), np.uint8), spec).shape == raw(np.zeros((2, 3, 4, 5), np.uint8), spec).shape
    with pytest.raises(InputError, match=r"x has shape \(2, 5, 4, 3\); give \(examples, 4, 5, 3\)"):
        raw(np.zeros((2, 5, 4, 3), np.uint8), spec)
    with pytest.raises(InputError, match=r"x is float32 and the data is uint8 in \[0, 255\]"):
        raw(np.zeros((2, 4, 5, 3), np.float32), spec)
    floats = replace(spec, dtype="float32", low=0.0, high=1.0)
    with pytest.raises(InputError, match=r"images must lie in \[0, 1\], and these float32 values span \[2, 2\]"):
        raw(np.full((2, 4, 5, 3), 2, np.float32), floats)
    with pytest.raises(InputError, match="1 value is NaN or infinite, the first in example 1"):
        raw(np.array([[0.0], [np.nan]]), VECTORS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_draws_what_the_cpu_draws():
    data = load("color-digits")
    kwargs = {"batch_size": 64, "seed": 5, "flip": True, "crop": 2}
    for position in (0, 1400):
        near, far = (Batches(data.train, data.spec, **kwargs, device=d).draw(position) for d in ("cpu", "cuda"))
        assert far["x"].is_cuda and torch.equal(near["x"], far["x"].cpu()) and torch.equal(near["y"], far["y"].cpu())
