"""Pairs: what belongs together stays together, whatever it comes from, and what does not is drawn apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from twofold.data import Batches, describe, from_model, load, ordered, pair, to_model
from twofold.errors import InputError
from twofold.spec import Spec

PALETTE = [(10, 20, 30), (200, 0, 0), (0, 200, 0)]


def numbered(n: int, height: int = 6, width: int = 8) -> np.ndarray:
    """Grey images that show their own number, and where left is."""
    x = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None], (n, height, width)).copy()
    x[:, :, 0] += 100
    return x


def save(path: Path, pixels: np.ndarray, palette: list | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette is not None:
        image = Image.fromarray(pixels, mode=None).convert("P")
        image.putdata(pixels.flatten().tolist())
        image.putpalette([v for color in palette for v in color])
    image.save(path)


def write_pairs(root: Path, layout: str, n: int = 6) -> None:
    for split, first in (("train", 0), ("test", n)):
        for k in range(first, first + n):
            at = f"{split}/{{}}/{k:02}" if layout == "inside" else f"{split}{{}}/{k:02}"
            labels = np.full((6, 8), k % 3, np.uint8)
            labels[:, 4:] = (k + 1) % 3
            save(root / f"{at.format('A')}.png", labels, PALETTE)
            save(root / f"{at.format('B')}.png", np.repeat(numbered(20)[k][..., None], 3, 2))


# Batches.


@pytest.mark.parametrize("options", [{}, {"flip": True, "crop": 2}])
def test_pairs_are_drawn_flipped_and_moved_together(options):
    data = pair(numbered(40), np.repeat(numbered(40)[..., None], 3, 3), holdout=0.0)
    assert data.spec.shape == (3, 6, 8) and data.spec.input.shape == (1, 6, 8) and data.test is None
    batches = Batches(data.train, data.spec, batch_size=16, seed=3, **options)
    flips = set()
    for position in (0, 16, 36):
        batch = batches.draw(position)
        assert torch.equal(batch["x"], batch["a"].expand(-1, 3, -1, -1))
        flips |= set((batch["a"][:, 0, 0, 0] > batch["a"][:, 0, 0, 4]).tolist())
    assert flips == ({True, False} if options else {True})
    shares = [Batches(data.train, data.spec, batch_size=16, seed=3, rank=r, world_size=2, **options) for r in (0, 1)]
    together = torch.cat([share.draw(32)["a"] for share in shares])
    assert torch.equal(together, batches.draw(32)["a"])


def test_unpaired_sides_are_drawn_apart_each_once_a_pass():
    a, x = numbered(10), numbered(30)
    data = pair(a, x, paired=False, holdout=0.0)
    batches = Batches(data.train, data.spec, batch_size=10, seed=0, flip=True)
    for position in (0, 10, 20):
        batch = batches.draw(position)
        seen = from_model(batch["a"], data.spec.input)[:, 3, 4]
        assert sorted(seen.tolist()) == list(range(10)), "one pass over the smaller side"
    drawn = np.concatenate([from_model(batches.draw(p)["x"], data.spec)[:, 3, 4] for p in (0, 10, 20)])
    assert sorted(drawn.tolist()) == list(range(30))
    first = batches.draw(0)
    assert not torch.equal(first["a"], first["x"])
    again = Batches(data.train, data.spec, batch_size=10, seed=0, flip=True).draw(0)
    assert torch.equal(first["a"], again["a"])
    with pytest.raises(InputError, match="larger than the 10"):
        Batches(data.train, data.spec, batch_size=11, seed=0)


def test_x_is_drawn_as_it_is_without_the_other_side():
    """Adding the other side changes no run on the targets alone."""
    x = numbered(40)
    both, alone = pair(x, x, holdout=0.0), load(x, holdout=0.0)
    for data in (both, replace(both, spec=replace(both.spec, paired=False))):
        drawn = Batches(data.train, data.spec, batch_size=8, seed=5, flip=True).draw(24)["x"]
        assert torch.equal(drawn, Batches(alone.train, alone.spec, batch_size=8, seed=5, flip=True).draw(24)["x"])
    assert "input" not in alone.spec.to_json() and "paired" not in alone.spec.to_json()


def test_ordered_keeps_pairs_and_leaves_out_what_has_no_partner():
    data = pair(numbered(10), numbered(10), holdout=0.0)
    parts = list(ordered(data.train, data.spec, 4))
    assert [len(p["a"]) for p in parts] == [4, 4, 2] and all(torch.equal(p["a"], p["x"]) for p in parts)
    assert "a" not in next(iter(ordered(data.train, replace(data.spec, paired=False), 4)))


# Specs.


def test_a_spec_of_pairs_is_written_and_read():
    spec = Spec("image", (3, 4, 4), layout="HWC", input=Spec("image", (3, 4, 4), palette=((0, 0, 0), (9, 9, 9))))
    assert Spec.from_json(spec.to_json()) == spec and spec.data_kind == "image-pair"
    assert Spec.from_json(replace(spec, paired=False).to_json()).paired is False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": Spec("vector", (2,), layout="D")}, "same kind"),
        ({"input": Spec("image", (1, 4, 5))}, "have .4, 5. and .4, 4. pixels"),
        ({"paired": False}, "no other side"),
        ({"palette": ((0, 0, 300),)}, "0 to 255"),
        ({"shape": (1, 4, 4), "palette": ((0, 0, 0),)}, "RGB"),
    ],
)
def test_specs_that_contradict_themselves_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        Spec(**({"kind": "image", "shape": (3, 4, 4)} | changes))


# Sources.


@pytest.mark.parametrize("layout", ["inside", "beside"])
def test_two_folders_matched_by_name(tmp_path, layout):
    write_pairs(tmp_path, layout)
    data = load(tmp_path, pairs=("A", "B"))
    assert data.spec.paired and len(data.train) == len(data.test) == 6
    assert data.spec.input.palette == tuple(PALETTE) and data.spec.palette is None
    for split, first in ((data.train, 0), (data.test, 6)):
        assert split.x[:, 0, 2, 3].tolist() == list(range(first, first + 6))
        for k in range(6):
            assert tuple(split.a[k, :, 0, 0].tolist()) == PALETTE[(first + k) % 3]
    assert "label maps with 3 colours" in " ".join(describe(data))
    swapped = load(tmp_path, pairs=("A", "B"), swap=True)
    assert torch.equal(swapped.train.x, data.train.a) and swapped.spec.palette == tuple(PALETTE)
    assert swapped.fingerprint != data.fingerprint
    access = load(tmp_path, pairs=("A", "B"), memory_limit_bytes=100)
    assert torch.equal(access.train.a[torch.tensor([4, 1])], data.train.a[[4, 1]])


def test_label_maps_keep_their_colours_when_resized(tmp_path):
    write_pairs(tmp_path, "inside")
    data = load(tmp_path, pairs=("A", "B"), size=(9, 13))
    colours = {tuple(c) for c in data.train.a.permute(0, 2, 3, 1).reshape(-1, 3).tolist()}
    assert colours == set(PALETTE) and data.spec.shape == (3, 9, 13)


def test_files_without_a_partner_and_broken_ones_are_left_out_on_both_sides(tmp_path):
    write_pairs(tmp_path, "inside")
    (tmp_path / "train/A/03.png").unlink()
    (tmp_path / "train/B/01.png").write_bytes(b"no picture")
    data = load(tmp_path, pairs=("A", "B"))
    assert data.train.x[:, 0, 2, 3].tolist() == [0, 2, 4, 5]
    assert [tuple(c) for c in data.train.a[:, :, 0, 0].tolist()] == [PALETTE[k % 3] for k in (0, 2, 4, 5)]
    assert any("1 file without a partner left out: train/B/03.png" in note for note in data.notes)
    with pytest.raises(InputError, match=r"1 files have no partner of their name, such as train/B/03\.png"):
        load(tmp_path, pairs=("A", "B"), strict=True)
    unpaired = load(tmp_path, pairs=("A", "B"), unpaired=True)
    assert len(unpaired.train.a) == 5 and len(unpaired.train.x) == 5 and not unpaired.spec.paired


def test_side_by_side(tmp_path):
    left, right = np.repeat(numbered(5)[..., None], 3, 3), np.repeat(numbered(5)[..., None] + 50, 3, 3)
    for k in range(5):
        save(tmp_path / f"{k}.png", np.concatenate([left[k], right[k]], axis=1))
    data = load(tmp_path, side_by_side=True, holdout=0.2)
    assert data.spec.shape == data.spec.input.shape == (3, 6, 8)
    assert torch.equal(data.train.x[:, 0, 2, 3], data.train.a[:, 0, 2, 3] + 50)
    assert len(data.train) == 4 and len(data.test) == 1
    resized = load(tmp_path, side_by_side=True, size=(6, 4))
    # Each half is cut to its own middle: column 0, which is brighter, is gone from both.
    assert all(resized.train.a[:, 0, :, 0].unique().numel() <= 5 and side[:, 0].max() < 60 + 50
               for side in (resized.train.a, resized.train.x))  # fmt: skip
    save(tmp_path / "9.png", np.zeros((6, 15, 3), np.uint8))
    with pytest.raises(InputError, match=r"9\.png"):
        load(tmp_path, side_by_side=True, size=6)


def test_sixteen_bit_grey_and_arrays(tmp_path):
    deep = (numbered(5).astype(np.uint16) * 257) + 3
    for k in range(5):
        save(tmp_path / f"in/{k}.png", deep[k])
        save(tmp_path / f"out/{k}.png", numbered(5)[k])
    data = load(tmp_path, pairs=("in", "out"), holdout=0.0)
    assert data.spec.input.dtype == "uint16" and data.spec.dtype == "uint8"
    assert torch.equal(data.train.a[:, 0].int(), torch.from_numpy(deep.astype(np.int32)))
    assert to_model(data.train.a, data.spec.input).abs().max() <= 1
    np.savez(tmp_path / "p.npz", grey=numbered(8), colour=np.repeat(numbered(8)[..., None], 3, 3))
    arrays = load(tmp_path / "p.npz", pairs=("grey", "colour"), holdout=0.25)
    assert len(arrays.train) == 6 and torch.equal(arrays.test.x[:, :1], arrays.test.a)
    vectors = pair(np.random.randn(20, 3), np.random.randn(20, 2))
    assert vectors.spec.data_kind == "vector-pair" and len(vectors.spec.input.mean) == 3


def test_built_in_pairs_are_what_they_say():
    data = load("edges-shapes")
    edges, shapes = data.train.a[:200, 0] > 0, data.train.x[:200].amax(1) > 0
    assert (edges & ~shapes).sum() == 0 and 0.05 < edges.sum() / shapes.sum() < 0.9
    digits = load("digits-color-digits")
    assert torch.equal((digits.train.a[:, 0] * 255.0 / 16).round().byte(), digits.train.x.amax(1))
    affine = load("affine-2d")
    spec = affine.spec
    assert not spec.paired and np.allclose(np.divide(spec.std, spec.input.std), (2, 0.5), atol=0.02)
    modes = load("two-modes")
    s = (modes.train.x - modes.train.a).flatten()
    assert abs(s.median()) < 0.2 and ((s.abs() - 1).abs() < 1e-4).float().mean() == pytest.approx(0.9, abs=0.01)
    assert abs(float(np.corrcoef(load("two-modes", unpaired=True).train.a[:, 0], s)[0, 1])) < 0.05


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("digits", {"pairs": ("a", "b")}, "pairs cannot be used here: digits"),
        ("digits", {"unpaired": True}, "unpaired cannot be used here: digits is not pairs"),
        ("digits", {"swap": True}, "swap cannot be used here"),
        ("two-modes", {"pairs": ("a", "a")}, "two different sides"),
        ("two-modes", {"pairs": ("a", "b"), "side_by_side": True}, "give one of them"),
        ("affine-2d", {"size": 4}, "size cannot be used here"),
        ("edges-shapes", {"size": 8}, "--size from 16 to 256"),
    ],
)
def test_options_that_do_not_fit_are_refused(source, options, message):
    with pytest.raises(InputError, match=message):
        load(source, **options)


def test_folders_that_are_no_pairs_are_refused(tmp_path):
    write_pairs(tmp_path, "inside")
    with pytest.raises(InputError, match="no two folders 'A' and 'C'"):
        load(tmp_path, pairs=("A", "C"))
    with pytest.raises(InputError, match="labels cannot be used here"):
        load(tmp_path, pairs=("A", "B"), labels="x.csv")
    other = tmp_path / "other"
    save(other / "A/1.png", numbered(3)[0])
    save(other / "B/2.png", numbered(3, 6, 9)[0])
    with pytest.raises(InputError, match="no two files have one name"):
        load(other, pairs=("A", "B"))
    save(other / "A/2.png", numbered(3)[0])
    with pytest.raises(InputError, match="inputs are 6×8 and targets 6×9"):
        load(other, pairs=("A", "B"))
    with pytest.raises(InputError, match="10 inputs and 9 targets"):
        pair(numbered(10), numbered(9))
