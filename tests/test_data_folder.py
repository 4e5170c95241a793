"""Folders of images: every format and mode, splits and classes, and every kind of damage."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from twofold.data import Batches, from_model, load, picture, to_model
from twofold.data.folder import Pictures
from twofold.data.split import Subset
from twofold.errors import InputError

torch.set_num_threads(1)


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, size=shape).astype(np.uint8)


def save(path: Path, array: np.ndarray, **options) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return array


def refused(source, message: str, **options) -> None:
    with pytest.raises(InputError, match=message) as error:
        load(source, **options)
    assert "\n" not in str(error.value)


def in_layout(data) -> np.ndarray:
    x = data.train.x[torch.arange(len(data.train))]
    return from_model(to_model(x, data.spec), data.spec)


@pytest.mark.parametrize("extension", ["png", "bmp", "tif", "TIFF", "webp", "PNG"])
def test_lossless_formats_give_their_pixels(tmp_path, extension):
    options = {"lossless": True} if extension == "webp" else {}
    expected = [save(tmp_path / f"{i}.{extension}", pixels(6, 7, 3, seed=i), **options) for i in range(4)]
    data = load(tmp_path, holdout=0)
    assert data.spec.shape == (3, 6, 7) and data.spec.layout == "HWC" and not data.notes
    assert np.array_equal(in_layout(data), expected)


def test_jpeg_and_gif(tmp_path):
    x = np.full((8, 8, 3), 100, np.uint8)
    save(tmp_path / "j" / "a.jpg", x)
    save(tmp_path / "j" / "b.JPEG", x)
    assert np.abs(in_layout(load(tmp_path / "j", holdout=0)).astype(int) - 100).max() <= 2
    frames = [Image.fromarray(np.full((8, 8), v, np.uint8)) for v in (10, 200)]
    (tmp_path / "g").mkdir()
    frames[0].save(tmp_path / "g" / "a.gif", save_all=True, append_images=frames[1:])
    assert set(in_layout(load(tmp_path / "g", holdout=0)).flat) == {10}, "the first frame"


def test_grey_bilevel_and_palette(tmp_path):
    x = pixels(5, 6)
    save(tmp_path / "grey" / "a.png", x)
    data = load(tmp_path / "grey", holdout=0)
    assert data.spec.shape == (1, 5, 6) and data.spec.layout == "HW" and np.array_equal(in_layout(data)[0], x)
    (tmp_path / "one").mkdir()
    Image.fromarray(x > 127).save(tmp_path / "one" / "a.png")
    assert np.array_equal(in_layout(load(tmp_path / "one", holdout=0))[0], (x > 127) * np.uint8(255))
    (tmp_path / "palette").mkdir()
    indexed = Image.fromarray(x % 3)
    indexed.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    indexed.save(tmp_path / "palette" / "a.png")
    data = load(tmp_path / "palette", holdout=0)
    assert np.array_equal(in_layout(data)[0], np.eye(3, dtype=np.uint8)[x % 3] * 255)


def test_sixteen_bit_grey(tmp_path):
    x = np.random.RandomState(0).randint(0, 65536, size=(5, 6)).astype(np.uint16)
    for extension in ("png", "tiff"):
        save(tmp_path / extension / f"a.{extension}", x)
        data = load(tmp_path / extension, holdout=0)
        assert data.spec.dtype == "uint16" and data.train.x.dtype == torch.int32
        assert np.array_equal(in_layout(data)[0], x)
    resized = load(tmp_path / "png", holdout=0, size=3).train.x
    assert resized.shape == (1, 1, 3, 3) and resized.max() > 255
    grey = save(tmp_path / "png" / "b.png", pixels(5, 6))
    data = load(tmp_path / "png", holdout=0)
    assert np.array_equal(in_layout(data)[1], grey.astype(np.uint16) * 257)
    assert any("8-bit values are scaled to 16 bits" in note for note in data.notes)
    rgb = load(tmp_path / "png", holdout=0, channels=3)
    assert np.array_equal(in_layout(rgb)[0][..., 0], np.rint(x / 257).astype(np.uint8))
    assert any("16-bit values are rounded to 8 bits" in note for note in rgb.notes)


def test_opacity(tmp_path):
    rgba = pixels(5, 6, 4)
    save(tmp_path / "a.png", rgba)
    data = load(tmp_path, holdout=0)
    assert data.spec.shape == (4, 5, 6) and np.array_equal(in_layout(data)[0], rgba)
    save(tmp_path / "b.png", pixels(5, 6, 3, seed=1))
    mixed = load(tmp_path, holdout=0)
    assert mixed.spec.shape == (3, 5, 6)
    opacity = rgba[..., 3:] / 255
    assert np.abs(in_layout(mixed)[0] - (rgba[..., :3] * opacity + 255 * (1 - opacity))).max() <= 1
    assert "transparent parts are laid on white" in mixed.notes
    assert any("alpha (a.png), color (b.png); all brought to 3 channels" in note for note in mixed.notes)
    (tmp_path / "keyed").mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "keyed" / "a.png", transparency=0)
    assert set(in_layout(load(tmp_path / "keyed", holdout=0, channels=1)).flat) == {255}


@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation, extension):
    x = np.zeros((8, 16), np.uint8)
    x[:4, :4] = 255  # the corner tells all eight apart, with the shape
    x[:2, :] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(x).convert("RGB")
    image.save(tmp_path / f"a.{extension}", exif=exif)
    expected = {
        1: x, 2: x[:, ::-1], 3: x[::-1, ::-1], 4: x[::-1], 5: x.T, 6: x[::-1].T, 7: x[::-1, ::-1].T, 8: x[:, ::-1].T,
    }[orientation]  # fmt: skip
    data = load(tmp_path, holdout=0)
    assert data.spec.shape[1:] == expected.shape
    assert np.array_equal(data.train.x[0, 0].numpy() > 127, expected > 127)


def test_classes_and_order(tmp_path):
    for name in ("b/2.png", "b/10.png", "a/1.png", "a/deep/0.png", ".hidden/x.png", "a/.x.png", "c/0.png"):
        save(tmp_path / name, np.full((4, 4), len(name), np.uint8))
    (tmp_path / "a" / "readme.txt").write_text("hello")
    data = load(tmp_path, holdout=0)
    assert data.spec.class_names == ("a", "b", "c") and data.train.y.tolist() == [0, 0, 1, 1, 2]
    assert data.train.x[:, 0, 0, 0].tolist() == [
        len(n) for n in ("a/1.png", "a/deep/0.png", "b/10.png", "b/2.png", "c/0.png")
    ]
    assert any("1 other file ignored in" in note and "readme.txt" in note for note in data.notes)


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_split_folders(tmp_path, test_name):
    for i, name in enumerate(
        ("train/a/0.png", "train/b/1.png", "train/b/2.png", f"{test_name}/b/3.png", "extra/4.png")
    ):
        save(tmp_path / name, np.full((4, 4), i, np.uint8))
    data = load(tmp_path, holdout=0.9)
    assert data.train.x[:, 0, 0, 0].tolist() == [0, 1, 2] and data.train.y.tolist() == [0, 1, 1]
    assert data.test.x[:, 0, 0, 0].tolist() == [3]
    assert any("not used: extra" in note for note in data.notes)


def test_split_folders_number_their_classes_together(tmp_path):
    for name in ("train/a/0.png", "train/c/1.png", "test/b/2.png", "test/c/3.png"):
        save(tmp_path / name, pixels(4, 4))
    data = load(tmp_path)
    assert (
        data.spec.class_names == ("a", "b", "c") and data.train.y.tolist() == [0, 2] and data.test.y.tolist() == [1, 2]
    )
    for name in ("test/b/2.png", "test/c/3.png"):
        (tmp_path / name).rename(tmp_path / "test" / Path(name).name)
    (tmp_path / "test" / "b").rmdir()
    (tmp_path / "test" / "c").rmdir()
    refused(tmp_path, "one split has class subfolders and the other has not")


def test_one_subfolder_is_no_label(tmp_path):
    for i in range(3):
        save(tmp_path / "images" / f"{i}.png", pixels(4, 4))
    data = load(tmp_path, holdout=0)
    assert data.train.y is None and any("one subfolder (images): not taken as a label" in note for note in data.notes)


def test_links_are_followed_once(tmp_path):
    save(tmp_path / "data" / "a" / "0.png", pixels(4, 4))
    save(tmp_path / "far" / "1.png", pixels(4, 4))
    (tmp_path / "data" / "b").symlink_to(tmp_path / "far")
    (tmp_path / "data" / "a" / "loop").symlink_to(tmp_path / "data")
    assert load(tmp_path / "data", holdout=0).spec.class_names == ("a", "b")


def test_labels_beside_a_folder(tmp_path):
    for name in ("b.png", "a.png", "c.png"):
        save(tmp_path / name, pixels(4, 4))
    (tmp_path / "a.png").write_bytes(b"broken")
    data = load(tmp_path, labels=["x", "y", "x"], holdout=0)
    assert data.train.y.tolist() == [1, 0], "the labels of files left out go with them"
    assert load(tmp_path, labels=[3, 0, 5], holdout=0).spec.classes == 6
    refused(tmp_path, "2 labels for 3 image files", labels=[0, 1])
    refused(tmp_path, "label -1 of example 1 is negative", labels=[0, -1, 2])
    refused(tmp_path, "labels 'nowhere.csv' is not a file", labels="nowhere.csv")


def test_sizes(tmp_path):
    save(tmp_path / "a.png", pixels(6, 8, 3))
    save(tmp_path / "b.png", pixels(9, 4, 3))
    refused(tmp_path, r"a.png is 6×8, b.png is 9×4 \(height×width\); bring them to one with --size")
    data = load(tmp_path, size=(4, 5), holdout=0)
    assert data.spec.shape == (3, 4, 5) and "resized: 2 sizes → 4×5" in data.notes
    grey = load(tmp_path, size=5, channels=1, holdout=0)
    assert grey.spec.shape == (1, 5, 5)


def test_resized_pictures_keep_their_aspect(tmp_path):
    x = np.zeros((40, 80), np.uint8)
    x[:, 20:60] = 255  # the centre square
    save(tmp_path / "a.png", x)
    data = load(tmp_path, size=10, holdout=0)
    assert (data.train.x[0, 0, :, 1:-1] > 200).all(), "what is left of 40×80 is its centre"


def test_large_folders_are_decoded_on_access(tmp_path):
    for i in range(12):
        save(tmp_path / "ab"[i % 2] / f"{i:02}.png", pixels(6, 7, 3, seed=i))
    small, large = load(tmp_path, seed=1), load(tmp_path, seed=1, memory_limit_bytes=100)
    assert isinstance(large.train.x, Subset) and isinstance(large.train.x.examples, Pictures)
    assert "too large to hold in memory: decoded on access" in large.notes
    assert large.spec == small.spec and torch.equal(large.train.y, small.train.y)
    for position in (0, 6):
        a, b = (Batches(d.train, d.spec, batch_size=8, seed=0).draw(position)["x"] for d in (small, large))
        assert torch.equal(a, b)
    assert load(tmp_path, seed=1, memory_limit_bytes=100).fingerprint == large.fingerprint
    os.utime(tmp_path / "a" / "00.png", ns=(0, 10**18))
    assert load(tmp_path, seed=1, memory_limit_bytes=100).fingerprint != large.fingerprint
    assert load(tmp_path, seed=1).fingerprint == small.fingerprint, "in memory, only the content counts"


def truncated(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def test_broken_files_are_left_out_with_a_note(tmp_path):
    expected = [save(tmp_path / f"{i}.png", pixels(20, 20, 3, seed=i)) for i in range(6)]
    (tmp_path / "1.png").write_bytes(b"this is no picture")
    (tmp_path / "2.png").write_bytes(b"")
    truncated(tmp_path / "4.png")  # its header is whole
    data = load(tmp_path, holdout=0)
    assert np.array_equal(in_layout(data), [expected[i] for i in (0, 3, 5)])
    notes = " ".join(data.notes)
    assert "2 of 6 image files left out: 1.png (not an image, or damaged), 2.png" in notes
    assert "1 of 4 image files left out: 4.png" in notes
    refused(tmp_path, "1.png cannot be used", strict=True)
    for name in ("1.png", "2.png"):
        (tmp_path / name).unlink()
    refused(tmp_path, "4.png cannot be used", strict=True)
    large = load(tmp_path, holdout=0, memory_limit_bytes=100)
    with pytest.raises(InputError, match="4.png: .*; remove the file"):
        large.train.x[torch.arange(4)]


def test_a_split_without_a_readable_image(tmp_path):
    save(tmp_path / "train" / "a.png", pixels(4, 4))
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "b.png").write_bytes(b"no")
    refused(tmp_path, "no image in the test split can be read")
    (tmp_path / "train" / "a.png").write_bytes(b"no")
    refused(tmp_path, "none of the 2 image files can be used; train/a.png: not an image")


def test_folders_without_images(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "the folder empty is empty")
    refused(tmp_path, "no images in this folder, but nothing; give .png")
    (tmp_path / "empty" / "a.txt").write_text("hello")
    refused(tmp_path / "empty", "no images in this folder, but 1 other files, such as a.txt")


def test_images_beside_class_folders(tmp_path):
    for name in ("a/0.png", "b/1.png", "2.png"):
        save(tmp_path / name, pixels(4, 4))
    refused(tmp_path, "1 images, such as 2.png, lie beside the subfolders a, b")


def png_declaring(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [8193, 9999, 60_000])
def test_pictures_that_declare_too_much_are_never_decoded(tmp_path, side):
    (tmp_path / "bomb.png").write_bytes(png_declaring(side, side))
    refused(tmp_path, f"bomb.png: .*more than {picture.MAX_PIXELS} pixels")
    save(tmp_path / "good.png", pixels(4, 4))
    data = load(tmp_path, holdout=0)
    assert len(data.train) == 1 and "bomb.png" in data.notes[0]


def test_pixels_of_other_kinds(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "a.tiff")
    refused(tmp_path, "32-bit pixels; save the images as a .npy file")


def test_options_that_do_not_apply(tmp_path):
    save(tmp_path / "a.png", pixels(4, 4))
    refused(tmp_path, "value_range cannot be used here", value_range=(0, 1))
    refused(tmp_path, "channels is 2; allowed for a folder of images: 1, 3 and 4", channels=2)


def test_damage_anywhere_is_never_a_crash(tmp_path):
    """One byte of each file changed at random places: it is read, or left out, or refused in one line."""
    random = np.random.RandomState(0)
    image = Image.fromarray(pixels(16, 16, 3))
    for extension in ("png", "jpg", "gif", "bmp", "tif", "webp"):
        buffer = io.BytesIO()
        image.save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(extension, extension.upper()))
        whole = buffer.getvalue()
        folder = tmp_path / extension
        folder.mkdir()
        (folder / f"good.{extension}").write_bytes(whole)
        for i in range(25):
            damaged = bytearray(whole)
            damaged[random.randint(min(len(whole), 200))] = random.randint(256)
            (folder / f"{i}.{extension}").write_bytes(damaged)
        data = load(folder, size=16, channels=3, holdout=0)
        assert 1 <= len(data.train) <= 26


@pytest.mark.skipif("TWOFOLD_DATA" not in os.environ, reason="TWOFOLD_DATA is not set")
def test_camvid_photos_as_they_are_shared(tmp_path):
    with tarfile.open(Path(os.environ["TWOFOLD_DATA"], "camvid", "camvid_256x192.tar")) as archive:
        members = [m for m in archive.getmembers() if "/photo/" in m.name and m.isfile()]
        archive.extractall(tmp_path, members=members[:40] + members[-40:], filter="data")
    data = load(tmp_path, size=(48, 64))
    assert data.spec.shape == (3, 48, 64) and len(data.train) + len(data.test) <= 80
    assert 40 < float(data.train.x.float().mean()) < 160


# Decoded once


def _cached(folder: Path, cache: Path, **options):
    return load(folder, memory_limit_bytes=1, cache=cache, holdout=0.2, **options)


def test_pictures_are_decoded_once_and_then_read_from_the_cache(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    (tmp_path / "p").mkdir()
    for k in range(10):
        Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)).save(tmp_path / "p" / f"{k}.jpg")
    plain = load(tmp_path / "p", memory_limit_bytes=1, holdout=0.2)
    first = _cached(tmp_path / "p", tmp_path / "cache")
    everything = torch.arange(8)
    assert torch.equal(first.train.x[everything], plain.train.x[everything])
    assert first.fingerprint == plain.fingerprint

    def no_more(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr("twofold.data.folder.decode", no_more)
    again = _cached(tmp_path / "p", tmp_path / "cache")
    assert torch.equal(again.train.x[everything.flip(0)], plain_flipped(first))
    with pytest.raises(AssertionError, match="decoded again"):
        again.test.x[torch.arange(2)]  # these were not asked for before


def plain_flipped(data) -> torch.Tensor:
    return data.train.x[torch.arange(8).flip(0)]


def test_a_damaged_or_full_cache_changes_no_pixel(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    (tmp_path / "p").mkdir()
    for k in range(10):
        Image.fromarray(rng.integers(0, 256, (6, 5), dtype=np.uint8)).save(tmp_path / "p" / f"{k}.png")
    everything = torch.arange(8)
    right = load(tmp_path / "p", memory_limit_bytes=1, holdout=0.2).train.x[everything]
    assert torch.equal(_cached(tmp_path / "p", tmp_path / "cache").train.x[everything], right)
    file = next((tmp_path / "cache").iterdir())
    content = bytearray(file.read_bytes())
    content[10 + 30 * 3 : 10 + 30 * 5] = bytes(60)  # two places that a power cut left empty
    file.write_bytes(content)
    assert torch.equal(_cached(tmp_path / "p", tmp_path / "cache").train.x[everything], right)
    file.write_bytes(content[:50])
    assert torch.equal(_cached(tmp_path / "p", tmp_path / "cache").train.x[everything], right)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    data = _cached(tmp_path / "p", tmp_path / "other")
    assert torch.equal(data.train.x[everything], right) and torch.equal(data.train.x[everything], right)
    with pytest.raises(InputError, match="cannot be written"):
        _cached(tmp_path / "p", tmp_path / "p" / "0.png")


LIMITED = """
import resource, sys
import numpy as np, torch
from pathlib import Path
import twofold
path = Path(sys.argv[1])
limit = int(sys.argv[2])
few = np.zeros((20, 8, 8), np.uint8)
twofold.train("vae", data=few, out=path / "warm", examples=8, batch_size=4, latent=2, width=4)
used = int([l for l in open("/proc/self/status") if l.startswith("VmData")][0].split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + limit, used + limit))
options = {"memory_limit_bytes": limit}
twofold.train("vae", data=str(path / "x.npy"), out=path / "run", examples=256, batch_size=64, latent=2, width=4,
              data_options=options)
try:
    np.load(path / "x.npy")
    print("fits")
except MemoryError:
    print("does not fit")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on memory")
def test_a_set_several_times_the_memory_limit_trains_under_it(tmp_path):
    """1 GiB of pictures, 256 MiB of memory beyond what the process has; reading the set whole would fail."""
    x = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.uint8, shape=(2**18, 64, 64))
    x[::5000] = 200
    del x
    command = [sys.executable, "-W", "ignore", "-c", LIMITED, str(tmp_path), str(2**28)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.splitlines()[-1] == "does not fit"
