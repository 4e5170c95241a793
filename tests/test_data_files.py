"""Files of numbers: .npy, .npz, idx, CSV and label files, whole, damaged and hostile."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from twofold.data import Batches, from_model, load, to_model
from twofold.data.arrays import Mapped
from twofold.data.split import Subset
from twofold.errors import InputError

torch.set_num_threads(1)


def pixels(*shape: int, dtype: str = "uint8") -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, size=shape).astype(dtype)


def refused(source, message: str, **options) -> None:
    with pytest.raises(InputError, match=message) as error:
        load(source, **options)
    assert "\n" not in str(error.value)


# --- What names nothing, or nothing readable ---


def test_unknown_names_offer_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(
        "digit", "unknown data source 'digit'; did you mean 'digits'.*; and there is no file or folder of that name"
    )
    refused("", "unknown data source ''")
    refused(tmp_path / "nowhere", "there is no file or folder '.*nowhere'")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.zip", "a.zip is an archive; unpack it and give the folder"),
        ("a.tar.xz", "is an archive; unpack it"),
        ("a.csv.gz", "is an archive; unpack it"),
        ("a.pt", "pickled files are never loaded"),
        ("a.png", "a.png is one image; give the folder it is in"),
        ("a.feather", "cannot read .feather; give a folder of images, .npz, .npy, idx, .csv"),
        ("plain", "cannot read a file without an extension"),
    ],
)
def test_files_of_other_kinds(tmp_path, name, message):
    (tmp_path / name).write_bytes(b"x")
    refused(tmp_path / name, message)
    refused(str(tmp_path / name), message)


# --- .npy ---


def test_npy_is_the_array(tmp_path):
    x = pixels(20, 6, 7, 3)
    np.save(tmp_path / "faces.npy", x)
    data = load(tmp_path / "faces.npy", holdout=0)
    assert data.name == "faces" and data.spec.layout == "HWC"
    assert np.array_equal(from_model(to_model(data.train.x, data.spec), data.spec), x)


@pytest.mark.parametrize("order", ["C", "F"])
def test_large_npy_stays_on_disk(tmp_path, order):
    x = np.asarray(pixels(40, 6, 8, 3), order=order)
    np.save(tmp_path / "x.npy", x)
    small = load(tmp_path / "x.npy", size=4, channels=1, seed=2)
    large = load(tmp_path / "x.npy", size=4, channels=1, seed=2, memory_limit_bytes=100)
    assert isinstance(large.train.x, Subset) and isinstance(large.train.x.examples, Mapped)
    assert "stay on disk and are read on access" in large.notes[0]
    assert large.spec == small.spec and large.train.x.shape == tuple(small.train.x.shape)
    assert large.train.x.dtype == torch.uint8
    for position in (0, 30):
        a, b = (Batches(d.train, d.spec, batch_size=16, seed=0).draw(position)["x"] for d in (small, large))
        assert torch.equal(a, b)
    again = load(tmp_path / "x.npy", size=4, channels=1, seed=2, memory_limit_bytes=100)
    assert again.fingerprint == large.fingerprint != small.fingerprint
    os.utime(tmp_path / "x.npy", ns=(0, 10**18))
    assert load(tmp_path / "x.npy", size=4, channels=1, seed=2, memory_limit_bytes=100).fingerprint != large.fingerprint


def test_large_vectors_are_standardised_from_disk(tmp_path):
    x = np.random.RandomState(0).randn(50, 3) * [1, 5, 1e-3] + [0, 3, 1e5]
    np.save(tmp_path / "x.npy", x)
    small, large = load(tmp_path / "x.npy"), load(tmp_path / "x.npy", memory_limit_bytes=100)
    assert small.spec == large.spec
    rows = torch.arange(len(small.train))
    assert torch.equal(to_model(small.train.x[rows], small.spec), to_model(large.train.x[rows], large.spec))


def test_large_npy_is_checked_too(tmp_path):
    x = np.zeros((40, 6, 8), np.float32)
    x[33, 1, 1] = np.nan
    np.save(tmp_path / "x.npy", x)
    refused(tmp_path / "x.npy", "1 value is NaN or infinite, the first in example 33", memory_limit_bytes=100)


def npy_header(declared: str) -> bytes:
    text = declared.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a numpy array file"),
        (b"hello world, this is text", "not a numpy array file"),
        (npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (9, 4, 4), }"), "cut short: 0 bytes for .* 144"),
        (npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (-9, 4), }"), "impossible shape"),
        (npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (1" + "0" * 30 + ",)}"), "cut short"),
        (
            npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"),
            "Python objects, which are never loaded",
        ),
        (npy_header("{'descr': '|u1'"), "not a numpy array file"),
        (npy_header("{'descr': 'zebra', 'fortran_order': False, 'shape': (1,), }"), "not a numpy array file"),
    ],
)
def test_damaged_and_hostile_npy(tmp_path, content, message):
    (tmp_path / "x.npy").write_bytes(content)
    refused(tmp_path / "x.npy", message)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", content)
    with pytest.raises(InputError):
        load(tmp_path / "x.npz")


class Trap:
    def __reduce__(self):
        return (os.mkdir, ("trap-was-run",))


def test_pickles_are_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    array = np.array([Trap()], dtype=object)
    np.save("x.npy", array, allow_pickle=True)
    np.savez("x.npz", x=array)
    np.savez("y.npz", x=pixels(5, 4, 4), y=array)
    Path("x.pkl").write_bytes(pickle.dumps(Trap()))
    for name in ("x.npy", "x.npz", "y.npz"):
        refused(name, "Python objects, which are never loaded")
    refused("x.pkl", "pickled files are never loaded")
    np.save("good.npy", pixels(5, 4, 4))
    refused("good.npy", "Python objects, which are never loaded", labels="x.npy")
    assert not Path("trap-was-run").exists()


# --- .npz ---


@pytest.mark.parametrize(
    "keys",
    [("train_images", "train_labels", "test_images", "test_labels"), ("x_train", "y_train", "x_test", "y_test")],
)
def test_npz_with_its_own_test_split(tmp_path, keys):
    x, y = pixels(30, 5, 6), np.arange(30) % 4
    np.savez(tmp_path / "set.npz", **dict(zip(keys, (x[:20], y[:20], x[20:], y[20:]), strict=True)))
    data = load(tmp_path / "set.npz", holdout=0.5)
    assert torch.equal(data.train.x[:, 0], torch.from_numpy(x[:20])) and data.train.y.tolist() == y[:20].tolist()
    assert torch.equal(data.test.x[:, 0], torch.from_numpy(x[20:])) and data.test.y.tolist() == y[20:].tolist()
    replaced = load(tmp_path / "set.npz", labels=(y + 1))
    assert replaced.test.y.tolist() == (y[20:] + 1).tolist() and "replaced" in replaced.notes[0]


def test_classes_are_numbered_across_the_splits(tmp_path):
    np.savez(
        tmp_path / "s.npz",
        x_train=pixels(3, 5, 5), y_train=["b", "c", "b"], x_test=pixels(2, 5, 5), y_test=["a", "b"],
    )  # fmt: skip
    data = load(tmp_path / "s.npz")
    assert data.spec.class_names == ("a", "b", "c")
    assert data.train.y.tolist() == [1, 2, 1] and data.test.y.tolist() == [0, 1]


@pytest.mark.parametrize("keys", [("images", "labels"), ("x", "y"), ("X", "Y"), ("data", "target")])
def test_npz_pairs(tmp_path, keys):
    np.savez_compressed(tmp_path / "s.npz", **{keys[0]: pixels(9, 5, 5), keys[1]: np.arange(9), "other": np.zeros(1)})
    data = load(tmp_path / "s.npz", holdout=0)
    assert data.train.y.tolist() == list(range(9)) and data.notes == ("keys not used: other",)


def test_npz_with_one_array_or_a_named_label_key(tmp_path):
    np.savez(tmp_path / "a.npz", whatever=pixels(9, 5, 5))
    assert len(load(tmp_path / "a.npz", holdout=0).train) == 9
    np.savez(tmp_path / "b.npz", pictures=pixels(9, 5, 5), kind=np.arange(9))
    assert load(tmp_path / "b.npz", holdout=0, labels="kind").train.y.tolist() == list(range(9))
    refused(tmp_path / "b.npz", "keys pictures, kind are not understood; name them as one of: train_images/")
    refused(
        tmp_path / "b.npz", r"labels 'sort' is neither a key of the file \(pictures, kind\) nor a file", labels="sort"
    )
    np.savez(tmp_path / "c.npz", x=pixels(9, 5, 5), images=pixels(9, 5, 5))
    refused(tmp_path / "c.npz", "keys images and x could both be the examples")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"x_train": pixels(9, 5, 5), "x_test": pixels(9, 5, 6)},
            "test examples are uint8 .5, 6.; give both in the same form",
        ),
        ({"x_train": pixels(9, 5, 5), "x_test": np.zeros((9, 5, 5))}, "test examples are float64"),
        (
            {"x_train": pixels(9, 5, 5), "x_test": pixels(3, 5, 5), "y_train": np.arange(9)},
            "only one of the two splits",
        ),
        ({"x": pixels(9, 5, 5), "y": np.arange(4)}, "4 labels for 9 examples"),
        ({"x": np.zeros((0, 5, 5))}, "the array is empty"),
        ({"x": np.float32(3)}, r"shape \(\) is neither"),
    ],
)
def test_npz_that_disagrees_with_itself(tmp_path, arrays, message):
    np.savez(tmp_path / "s.npz", **arrays)
    refused(tmp_path / "s.npz", message)


def test_npz_that_is_damaged(tmp_path):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=pixels(50, 9, 9))
    content = buffer.getvalue()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    refused(tmp_path / "cut.npz", "cut.npz: cannot be read as an .npz file")
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    (tmp_path / "flipped.npz").write_bytes(flipped)
    refused(tmp_path / "flipped.npz", "flipped.npz.*cannot be read")
    with zipfile.ZipFile(tmp_path / "none.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(tmp_path / "none.npz", "the file holds no array of examples")


def test_npz_that_declares_too_much_is_refused_before_it_is_read(tmp_path):
    header = npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000, 1000), }")
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        archive.writestr("x.npy", header)
    refused(tmp_path / "bomb.npz", "the arrays declare 7450.6 GiB, more than the limit of 2.0 GiB")
    np.savez(tmp_path / "s.npz", x=pixels(9, 5, 5))
    refused(tmp_path / "s.npz", "more than the limit", memory_limit_bytes=100)


# --- idx ---


def idx_bytes(x: np.ndarray) -> bytes:
    codes = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}
    head = struct.pack(f">HBB{x.ndim}I", 0, codes[x.dtype.name], x.ndim, *x.shape)
    return head + x.astype(x.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("test_name", ["t10k", "test"])
def test_idx_folder(tmp_path, suffix, test_name):
    x, y = pixels(30, 5, 6), np.arange(30, dtype=np.uint8) % 10
    parts = {"train": slice(0, 20), test_name: slice(20, 30)}
    for name, part in parts.items():
        for kind, values, number in (("images", x, 3), ("labels", y, 1)):
            content = idx_bytes(values[part])
            content = gzip.compress(content) if suffix else content
            (tmp_path / f"{name}-{kind}-idx{number}-ubyte{suffix}").write_bytes(content)
    data = load(tmp_path)
    assert torch.equal(data.train.x[:, 0], torch.from_numpy(x[:20])) and data.train.y.tolist() == y[:20].tolist()
    assert torch.equal(data.test.x[:, 0], torch.from_numpy(x[20:])) and data.test.y.tolist() == y[20:].tolist()
    assert data.spec.layout == "HW" and data.spec.classes == 10
    one = load(tmp_path / f"train-images-idx3-ubyte{suffix}", labels=y[:20], holdout=0)
    assert torch.equal(one.train.x, data.train.x) and one.train.y.tolist() == y[:20].tolist()


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "float32", "float64"])
def test_idx_of_every_type(tmp_path, dtype):
    x = (np.random.RandomState(0).rand(6, 5, 5) * 100).astype(dtype)
    (tmp_path / "x.idx").write_bytes(idx_bytes(x))
    data = load(tmp_path / "x.idx", value_range=(0, 100), holdout=0)
    assert np.allclose(data.train.x[:, 0].numpy(), x)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an idx file"),
        (b"\1\2\3\4 not this", "not an idx file"),
        (b"\0\0\7\1" + b"\0" * 8, "not an idx file"),
        (b"\0\0\x08\3\0\0", "ends inside its header"),
        (idx_bytes(pixels(4, 3, 3))[:-1], r"declares 36 bytes of data \(shape \(4, 3, 3\)\) and holds 35"),
        (idx_bytes(pixels(4, 3, 3)) + b"!", "and holds more"),
        (b"\0\0\x0e\3" + b"\xff" * 12, "more than the limit"),
    ],
)
def test_damaged_and_hostile_idx(tmp_path, content, message):
    (tmp_path / "x-idx3-ubyte").write_bytes(content)
    refused(tmp_path / "x-idx3-ubyte", message)
    (tmp_path / "x-idx3-ubyte.gz").write_bytes(gzip.compress(content))
    refused(tmp_path / "x-idx3-ubyte.gz", message)


def test_damaged_gzip(tmp_path):
    (tmp_path / "x-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(pixels(400, 9, 9)))[:-2000])
    refused(tmp_path / "x-idx3-ubyte.gz", "cannot be read")
    (tmp_path / "x-idx3-ubyte.gz").write_bytes(b"plain")
    refused(tmp_path / "x-idx3-ubyte.gz", "cannot be read")


# --- CSV ---


def table(tmp_path, text: str, name: str = "t.csv") -> Path:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("header", [True, False])
def test_csv_with_every_separator(tmp_path, mark, header):
    rows = [[0.5, -1, 3e4], [2, 7, 1], [1, 1, 1], [0, 0, 5]]
    text = (mark.join(["a", "b", "c"]) + "\n") * header + "\n".join(mark.join(map(str, row)) for row in rows) + "\n\n"
    data = load(table(tmp_path, text), holdout=0)
    assert np.allclose(data.train.x.numpy(), rows) and data.train.y is None
    assert np.allclose(data.spec.mean, np.mean(rows, 0)) and np.allclose(data.spec.std, np.std(rows, 0))


def test_csv_labels(tmp_path):
    path = table(tmp_path, "\ufeffx,Class,z\n1,ham,2\n3,spam,4\n5,ham,6\n")
    data = load(path, holdout=0)
    assert data.train.x.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert data.train.y.tolist() == [0, 1, 0] and data.spec.class_names == ("ham", "spam")
    assert data.notes == ("labels: column Class",)
    path = table(tmp_path, "x,kind,z\n1,2.0,2\n3,0.0,4\n5,1.0,6\n")
    assert load(path, holdout=0, labels="kind").train.y.tolist() == [2, 0, 1]
    assert load(path, holdout=0).spec.shape == (3,)
    assert load(path, holdout=0, labels=[1, 0, 1]).train.y.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "the file is empty"),
        ("a,b\n", {}, "there is a header and no row of numbers"),
        ("a,b\n1,2\n3\n", {}, "row 3 has 1 cells, the first row has 2"),
        ("a,b\n1,2\n3,x\n", {}, "row 3, 'b' holds 'x', which is no number; if it holds the labels, say --labels b"),
        ("a,b\n1,2\n,4\n", {}, "row 3, 'a' is empty, which is no number"),
        ("a,b\n1,2\nnan,4\n", {}, "1 value is NaN or infinite, the first in example 1"),
        ("a,b\n1,2\n", {"labels": "c"}, r"labels 'c' is neither a column \(a, b\) nor a file"),
        ("1,2\n1,2\n", {"labels": "c"}, r"neither a column \(the file has no header\) nor a file"),
        ("label,class,x\n1,2,3\n", {}, "columns label and class could both be the labels; say which with --labels"),
        ("label\n1\n2\n", {}, "no column of numbers beside the labels"),
        ("x,target\n1,0.5\n2,0.25\n", {}, "label 0.5 of example 0 is not a whole number"),
        ("a,b\n1,2\n", {"size": 3}, "holds vectors, not images"),
    ],
)
def test_csv_that_cannot_be_used(tmp_path, text, options, message):
    refused(table(tmp_path, text), message, **options)


def test_csv_that_is_no_text(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00\x80")
    refused(tmp_path / "t.csv", "this is not a text file")


# --- Label files ---


def test_label_files(tmp_path):
    x = pixels(3, 5, 5)
    np.save(tmp_path / "y.npy", np.array([2, 0, 1]))
    table(tmp_path, "2\n0\n1\n", "y.txt")
    table(tmp_path, "2\n0\n1\n", "plain.csv")
    table(tmp_path, "label\n2\n0\n1\n", "header.csv")
    table(tmp_path, "name,label\na,2\nb,0\nc,1\n", "wide.csv")
    for name in ("y.npy", "y.txt", "plain.csv", "header.csv", "wide.csv"):
        assert load(x, labels=tmp_path / name, holdout=0).train.y.tolist() == [2, 0, 1]
    named = load(x, labels=str(table(tmp_path, "red fox\nbear\nred fox\n", "n.txt")), holdout=0)
    assert named.spec.class_names == ("bear", "red fox")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("y.txt", "", "the file is empty"),
        ("y.csv", "a,b\n1,2\n", "2 columns; keep one, or call one of them label"),
        ("y.csv", "a,label\n1,2\n3\n", "row 3 has 1 cells, row 1 has 2"),
        ("y.json", "[]", "cannot read .json; give .npy, .csv or .txt"),
        ("y.txt", "1\n2\n", "2 labels for 3 examples"),
        ("y.txt", "1\n-2\n1\n", "label -2 of example 1 is negative"),
    ],
)
def test_label_files_that_cannot_be_used(tmp_path, name, text, message):
    refused(pixels(3, 5, 5), message, labels=table(tmp_path, text, name))


# --- Real data ---


@pytest.mark.skipif("TWOFOLD_DATA" not in os.environ, reason="TWOFOLD_DATA is not set")
def test_mnist_as_it_is_shared():
    data = load(Path(os.environ["TWOFOLD_DATA"], "mnist.npz"))
    assert len(data.train) == 60_000 and len(data.test) == 10_000 and data.spec.shape == (1, 28, 28)
    assert torch.bincount(data.train.y).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert float(data.train.x.double().mean()) / 255 == pytest.approx(0.1306604762738429)
