"""Throw damaged and hostile files at everything that reads one: `twofold.load` (config.json, state.json, safetensors,
metrics.jsonl), `Spec.from_json`, and `data.load` (.npy, .npz, idx, CSV, labels, folders of images).

    python bench/fuzz.py --inputs 2000 --seed 0

Each input is a valid file with a few mutations (bits, bytes, numbers, cuts, repeats, pieces of other files), or a
record of JSON with a few values exchanged. Checksums are made right again, so that the reader behind them is reached.
Reading must end with a result or with an `InputError` of one line, within seconds and in a bounded amount of memory;
all else is a finding, is printed with its seed, and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import io
import json
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

import twofold
from twofold import recipes
from twofold.data import load
from twofold.errors import InputError
from twofold.run import Run, _canonical_sha256, _file_sha256
from twofold.spec import Spec
from twofold.training import train

SECONDS = 20
"""A reader that needs longer hangs."""
EXTRA_BYTES = 2 * 2**30
"""Address space that reading one small file may take beyond what the process has."""
LIMIT_BYTES = 64 * 2**20
"""`memory_limit_bytes` given to `data.load`."""
NUMBERS = (0, 1, -1, 127, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 1000, 100_000, 2**31, 2**53, 10**30, -(2**63)),
    *(0.0, -0.5, 1e-300, 1e308, -1e308, 0.1),
    *("", "a", "../x", "/etc/passwd", "\0", "\ud800", "x" * 5000, "vae", "cpu", "none", "NaN"),
    *(
        [],
        {},
        [[]],
        [1],
        [-1],
        [10**9] * 3,
        [1, 2**20, 2**20],
        {"~": "tensor", "name": "x"},
        {"a": {}},
        [None],
        ["x"] * 9,
    ),
)


class Slow(BaseException):
    """The time is over."""


# Mutations


def damaged(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """`data` after one to four mutations."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        size = len(out)
        at = rng.randrange(size) if size else 0
        # Headers are where sizes stand.
        at = rng.randrange(min(size, 96)) if size and rng.random() < 0.5 else at
        kind = rng.randrange(9)
        if kind == 0 and size:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and size:
            out[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif kind == 2:
            number = rng.choice(NUMBERS)
            width = rng.choice((1, 2, 4, 8))
            out[at : at + width] = (number % 2 ** (8 * width)).to_bytes(width, rng.choice(("little", "big")))
        elif kind == 3:
            del out[at:]
        elif kind == 4:
            del out[at : at + rng.randrange(1, 64)]
        elif kind == 5:
            out[at:at] = bytes(out[at : at + rng.randrange(1, 256)]) * rng.randrange(1, 4)
        elif kind == 6:
            other = rng.choice(others)
            start = rng.randrange(len(other)) if other else 0
            out[at : at + rng.randrange(64)] = other[start : start + rng.randrange(1, 256)]
        elif kind == 7:
            out[at:at] = rng.randbytes(rng.randrange(1, 32))
        else:
            digits = [i for i in range(min(size, 4000)) if 48 <= out[i] <= 57]
            if digits:
                at = rng.choice(digits)
                out[at : at + 1] = rng.choice((b"", b"0", b"-1", b"99999999999", b"1e999", b"9" * 400, b"nan", b"\x00"))
    return bytes(out)


def exchanged(record: Any, rng: random.Random) -> Any:
    """`record` with one to three values exchanged for hostile ones, removed, or put under another name."""
    record = copy.deepcopy(record)
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(record))
        if not places:
            break
        holder, key = rng.choice(places)
        action = rng.random()
        if action < 0.75:
            holder[key] = copy.deepcopy(rng.choice(HOSTILE))
        elif action < 0.9:
            del holder[key]
        elif isinstance(holder, dict):
            holder[rng.choice(("~", "x", "", "__class__", "width"))] = holder.pop(key)
    return record


def _places(record: Any):
    if isinstance(record, dict | list):
        for key in record if isinstance(record, dict) else range(len(record)):
            yield record, key
            yield from _places(record[key])


# Targets: each makes one hostile input from a generator of randomness and reads it.


class Corpus:
    """Valid files, made once."""

    def __init__(self, folder: Path) -> None:
        from PIL import Image

        self.folder = folder
        rng = np.random.default_rng(0)
        x, y = rng.integers(0, 256, (12, 6, 5), dtype=np.uint8), np.arange(12) % 3
        self.files: dict[str, bytes] = {}
        for name, array in (("u8", x), ("f4", x.astype(np.float32) / 255), ("f8", rng.normal(size=(12, 3))), ("i4", y)):
            self.files[f"{name}.npy"] = _bytes(lambda f, a=array: np.save(f, a))
        self.files["a.npz"] = _bytes(lambda f: np.savez(f, x=x, y=y))
        self.files["b.npz"] = _bytes(lambda f: np.savez_compressed(f, images=x, labels=y))
        self.files["images-idx3-ubyte"] = struct.pack(">4B3I", 0, 0, 8, 3, 12, 6, 5) + x.tobytes()
        self.files["images-idx3-ubyte.gz"] = gzip.compress(self.files["images-idx3-ubyte"])
        self.files["t.csv"] = b"a,b,label\n" + b"".join(b"%f,%f,%d\n" % (k, k * k, k % 3) for k in range(12))
        self.files["t.tsv"] = b"1\t2\n3\t4\n5\t6\n7\t8\n"
        self.labels = {
            "l.txt": b"cat\ndog\n" * 6,
            "l.csv": b"label\n" + b"0\n1\n2\n" * 4,
            "l.npy": self.files["i4.npy"],
        }
        self.pictures: dict[str, bytes] = {}
        colour = Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8))
        for kind in ("png", "jpeg", "gif", "tiff", "webp", "bmp"):
            self.pictures[f"p.{kind}"] = _bytes(lambda f, k=kind: colour.save(f, k))
        self.pictures["g.png"] = _bytes(lambda f: Image.fromarray(x[0]).save(f, "png"))
        self.pictures["s.png"] = _bytes(lambda f: Image.fromarray(np.full((6, 5), 40_000, np.uint16)).save(f, "png"))
        self.pictures["a.png"] = _bytes(lambda f: colour.convert("RGBA").save(f, "png"))
        self.pictures["x.tiff"] = _bytes(lambda f: colour.save(f, "tiff", compression="tiff_deflate"))
        self.good = self.pictures["p.png"]
        self.runs = []
        for name in ("vae", "vae-gan", "wgan-gp"):
            path = folder / f"run-{name}"
            train(name, data=(x, y), out=path, examples=16, batch_size=4, latent=2, width=4)
            self.runs.append(path)

    def fresh(self, name: str) -> Path:
        """An empty folder of this name."""
        path = self.folder / "now" / name
        shutil.rmtree(path.parent, ignore_errors=True)
        path.mkdir(parents=True)
        return path


def _bytes(write: Callable[[Any], Any]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def fuzz_data(corpus: Corpus, rng: random.Random) -> None:
    name = rng.choice(list(corpus.files))
    path = corpus.fresh("data") / name
    path.write_bytes(damaged(corpus.files[name], list(corpus.files.values()), rng))
    read(load(path, memory_limit_bytes=rng.choice((LIMIT_BYTES, 200)), size=rng.choice((None, None, 4))))


def fuzz_labels(corpus: Corpus, rng: random.Random) -> None:
    name = rng.choice(list(corpus.labels))
    path = corpus.fresh("labels") / name
    path.write_bytes(damaged(corpus.labels[name], list(corpus.labels.values()), rng))
    read(load(np.zeros((12, 4, 4), np.uint8), labels=path))


def fuzz_images(corpus: Corpus, rng: random.Random) -> None:
    name = rng.choice(list(corpus.pictures))
    folder = corpus.fresh("images")
    (folder / f"bad-{name}").write_bytes(damaged(corpus.pictures[name], list(corpus.pictures.values()), rng))
    (folder / "good.png").write_bytes(corpus.good)
    (folder / "also.png").write_bytes(corpus.good)
    read(load(folder, size=rng.choice((None, 8)), memory_limit_bytes=rng.choice((LIMIT_BYTES, 10)), holdout=0))


def fuzz_bombs(corpus: Corpus, rng: random.Random) -> None:
    """Small files that declare much: pictures, arrays and archives of many gigabytes."""
    import zipfile
    import zlib

    folder, kind = corpus.fresh("bombs"), rng.randrange(5)
    size = rng.choice((2**14, 2**16, 2**20, 2**28, 2**31 - 1))
    if kind == 0:
        header = struct.pack(">IIBBBBB", size, rng.choice((1, size)), 8, rng.choice((0, 2, 6)), 0, 0, 0)
        chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(2**22))), (b"IEND", b"")]
        body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
        (folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
        path = folder
    elif kind == 1:
        path = folder / "bomb.npy"
        header = {"descr": rng.choice(("<f8", "|u1", "<U4000")), "fortran_order": False, "shape": (size, 8)}
        np.lib.format.write_array_header_1_0(file := io.BytesIO(), header)
        path.write_bytes(b"\x93NUMPY\x01\x00" + file.getvalue()[8:] + bytes(64))
    elif kind == 2:
        path = folder / "bomb.npz"
        content = _bytes(lambda f: np.save(f, np.zeros((rng.choice((1000, 20_000)), 64, 64), np.uint8)))
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", content)
    elif kind == 3:
        path = folder / "train-images-idx3-ubyte.gz"
        head = struct.pack(">4B3I", 0, 0, 8, 3, size, 28, 28)
        path.write_bytes(gzip.compress(head + bytes(rng.choice((0, 2**26)))))
    else:
        path = folder / "bomb.csv"
        path.write_bytes(b"1" * rng.choice((10, 200_000)) + b"," * rng.choice((1, 500_000)) + b"\n")
    read(load(path, memory_limit_bytes=LIMIT_BYTES))


def fuzz_config(corpus: Corpus, rng: random.Random) -> None:
    run = _copied_run(corpus, rng)
    record = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(exchanged(record, rng)))
    use(run)


def fuzz_config_bytes(corpus: Corpus, rng: random.Random) -> None:
    run = _copied_run(corpus, rng)
    file = run / rng.choice(("config.json", "metrics.jsonl"))
    file.write_bytes(damaged(file.read_bytes(), [file.read_bytes()], rng))
    use(run)


def fuzz_state(corpus: Corpus, rng: random.Random) -> None:
    """state.json with the right checksum, also resumed from."""
    run = _copied_run(corpus, rng)
    file = sorted(run.glob("checkpoints/*/state.json"))[-1]
    record = exchanged(json.loads(file.read_text()), rng)
    _signed(file, record)
    use(run)
    resume(run)


def fuzz_tensors(corpus: Corpus, rng: random.Random) -> None:
    """Damaged safetensors with the right checksum."""
    run = _copied_run(corpus, rng)
    folder = sorted(run.glob("checkpoints/0*"))[-1]
    file = rng.choice(sorted(folder.glob("*.safetensors")))
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    if rng.random() < 0.5:
        header = json.dumps(exchanged(json.loads(content[8 : 8 + length]), rng)).encode()
        content = len(header).to_bytes(8, "little") + header + content[8 + length :]
    else:
        content = damaged(content[: 8 + length], [content], rng) + content[8 + length :]
    file.write_bytes(content)
    record = json.loads((folder / "state.json").read_text())
    record["files"][file.name] = {"bytes": file.stat().st_size, "sha256": _file_sha256(file)}
    _signed(folder / "state.json", record)
    use(run)
    resume(run)


def fuzz_checkpoint_bytes(corpus: Corpus, rng: random.Random) -> None:
    """Bits flipped and ends cut off, checksums as they were: must be refused or be harmless."""
    run = _copied_run(corpus, rng)
    file = rng.choice(sorted(sorted(run.glob("checkpoints/0*"))[-1].iterdir()))
    before = file.read_bytes()
    file.write_bytes(damaged(before, [before], rng))
    try:
        loaded = twofold.load(run)
    except InputError as error:
        _check_message(error)
        return
    good = twofold.load(next(path for path in corpus.runs if path.name == run.name))
    for name, tensor in good.nets.state_dict().items():
        assert torch.equal(tensor, loaded.nets.state_dict()[name]), f"{file.name} was changed and nobody noticed"


def fuzz_spec(corpus: Corpus, rng: random.Random) -> None:
    images = Spec("image", (3, 8, 8), 3, ("a", "b", "c"), "HWC")
    vectors = Spec("vector", (4,), layout="D", dtype="float32", mean=(0.0,) * 4, std=(1.0,) * 4)
    spec = Spec.from_json(exchanged(rng.choice((images, vectors)).to_json(), rng))
    if spec.size <= 4096 and (spec.classes or 0) <= 1000:
        recipes.build("vae", spec, {"width": 4, "latent": 2, "hidden": 5})


def fuzz_options(corpus: Corpus, rng: random.Random) -> None:
    name = rng.choice([entry.name for entry in recipes.ENTRIES])
    default = recipes.default_config(recipes.find(name))
    options = exchanged(dict(vars(default)), rng)
    with torch.device("meta"):
        recipes.build(name, Spec("image", (1, 8, 8), 3, layout="HW"), options)


def _copied_run(corpus: Corpus, rng: random.Random) -> Path:
    source = rng.choice(corpus.runs)
    path = corpus.fresh("runs") / source.name
    shutil.copytree(source, path)
    return path


def _signed(file: Path, record: Any) -> None:
    if isinstance(record, dict):
        record.pop("sha256", None)
        record["sha256"] = _canonical_sha256(record)
    file.write_text(json.dumps(record))


def read(data: Any) -> None:
    for split in (data.train, data.test):
        if split is not None:
            split.x[torch.arange(min(3, len(split)))]


def use(path: Path) -> None:
    try:
        run = Run.open(path)
        run.metrics()
        model = twofold.load(path)
        model.sample(2)
    except InputError as error:
        _check_message(error)


def resume(path: Path) -> None:
    x, y = np.random.default_rng(0).integers(0, 256, (12, 6, 5), dtype=np.uint8), np.arange(12) % 3
    name = path.name.removeprefix("run-")
    train(name, data=(x, y), out=path, examples=24, batch_size=4, latent=2, width=4, resume=True)


def _check_message(error: InputError) -> None:
    message = str(error)
    assert message and "\n" not in message and len(message) < 10_000, f"not one line: {message[:200]!r}"


TARGETS: dict[str, Callable[[Corpus, random.Random], None]] = {
    name.removeprefix("fuzz_"): function for name, function in globals().items() if name.startswith("fuzz_")
}


def attempt(target: str, corpus: Corpus, seed: int) -> str | None:
    """One input; None if it was read or refused as it should be, else what happened."""
    rng = random.Random(f"{target} {seed}")
    try:
        with _within(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            TARGETS[target](corpus, rng)
    except InputError as error:
        try:
            _check_message(error)
        except AssertionError as wrong:
            return str(wrong)
    except Slow:
        return f"hangs for more than {SECONDS} s\n{traceback.format_exc(limit=-6)}"
    except BaseException as error:
        return f"{type(error).__name__}\n{traceback.format_exc(limit=-6)}"
    return None


@contextmanager
def _within(seconds: float):
    def over(number: int, frame: Any) -> None:
        raise Slow

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def limit_memory(extra: int = EXTRA_BYTES) -> None:
    """From here on, this process gets no more address space than `extra` beyond what it has."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + extra
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=2000, help="inputs for each target")
    parser.add_argument("--targets", nargs="+", choices=tuple(TARGETS), default=list(TARGETS))
    parser.add_argument("--seed", type=int, default=0, help="number of the first input")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        corpus = Corpus(Path(folder))
        limit_memory()
        findings = 0
        for target in arguments.targets:
            seen: dict[str, int] = {}
            for seed in range(arguments.seed, arguments.seed + arguments.inputs):
                found = attempt(target, corpus, seed)
                if found is not None:
                    place = found.strip().splitlines()[-1][:200] + " " + "".join(found.strip().splitlines()[-3:-2])
                    seen[place] = seen.get(place, 0) + 1
                    if seen[place] == 1:
                        print(f"--- {target} input {seed}: {found}", flush=True)
            findings += sum(seen.values())
            print(
                f"{target}: {arguments.inputs} inputs, {sum(seen.values())} findings of {len(seen)} kinds", flush=True
            )
    return int(findings > 0)


if __name__ == "__main__":
    sys.exit(main())
