"""Sets of the `datasets` library: columns, splits, labels, pictures and arrays, and what memory they take."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from twofold.data import Batches, is_name, load
from twofold.data.split import Subset
from twofold.errors import InputError

datasets = pytest.importorskip("datasets")
Image = pytest.importorskip("PIL.Image")
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (30, 6, 8, 3), dtype=np.uint8)
NAMES = ["cat", "ape", "bee"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()


def pictures(count: int = 30, **more):
    columns = {"picture": [Image.fromarray(x) for x in PIXELS[:count]], "kind": [k % 3 for k in range(count)]}
    features = {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=NAMES)}
    columns["caption"], features["caption"] = ["words"] * count, datasets.Value("string")
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def refused(source, match, **options):
    with pytest.raises(InputError, match=match) as caught:
        load(source, **options)
    assert "\n" not in str(caught.value)


def test_pictures_saved_to_disk_are_what_went_in_in_memory_and_on_access(tmp_path):
    pictures().save_to_disk(tmp_path / "set")
    small, large = (load(tmp_path / "set", memory_limit_bytes=limit) for limit in (2**30, 100))
    assert small.spec == large.spec and small.spec.shape == (3, 6, 8) and small.spec.class_names == tuple(NAMES)
    assert isinstance(small.train.x, torch.Tensor) and isinstance(large.train.x, Subset)
    everything = torch.arange(len(small.train))
    assert torch.equal(large.train.x[everything], small.train.x) and torch.equal(large.train.y, small.train.y)
    both = load(tmp_path / "set", holdout=0)
    assert torch.equal(both.train.x.permute(0, 2, 3, 1), torch.from_numpy(PIXELS))
    assert both.train.y.tolist() == [k % 3 for k in range(30)]
    again = load(tmp_path / "set", memory_limit_bytes=100)
    assert again.fingerprint == large.fingerprint != load(tmp_path / "set", memory_limit_bytes=100, size=4).fingerprint
    cached = load(tmp_path / "set", memory_limit_bytes=100, cache=tmp_path / "pixels")
    assert torch.equal(cached.train.x[everything], small.train.x)
    # Two processes read their own rows of the same batch.
    whole = Batches(large.train, large.spec, batch_size=8, seed=0).draw(24)
    shares = [Batches(large.train, large.spec, batch_size=8, seed=0, rank=r, world_size=2).draw(24) for r in (0, 1)]
    assert torch.equal(torch.cat([share["x"] for share in shares]), whole["x"])


def test_parquet_splits_and_the_options_for_pictures(tmp_path):
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    pictures(20).to_parquet(folder / "train-00000-of-00001.parquet")
    pictures(7).to_parquet(folder / "test-00000-of-00001.parquet")
    data = load(str(tmp_path / "set"), size=4, channels=1)
    assert data.spec.shape == (1, 4, 4) and (len(data.train), len(data.test)) == (20, 7)
    assert torch.equal(data.test.y, data.train.y[:7])
    alone = load(folder / "train-00000-of-00001.parquet", holdout=0)
    assert torch.equal(alone.train.x.permute(0, 2, 3, 1), torch.from_numpy(PIXELS[:20]))


@pytest.mark.parametrize("limit", [2**30, 100])
def test_arrays_and_vectors(tmp_path, limit):
    grey = RNG.random((12, 5, 5), dtype=np.float32)
    features = datasets.Features({"x": datasets.Array2D((5, 5), "float32"), "label": datasets.Value("string")})
    table = datasets.Dataset.from_dict({"x": list(grey), "label": ["b", "a"] * 6}, features=features)
    datasets.DatasetDict({"train": table, "validation": table.select(range(4))}).save_to_disk(tmp_path / "images")
    data = load(tmp_path / "images", memory_limit_bytes=limit)
    assert data.spec.kind == "image" and data.spec.class_names == ("a", "b")
    assert torch.equal(data.train.x[torch.arange(12)][:, 0], torch.from_numpy(grey)) and len(data.test) == 4
    vectors = RNG.normal(size=(12, 3))
    datasets.Dataset.from_dict({"v": vectors.tolist(), "n": list(range(12))}).save_to_disk(tmp_path / "vectors")
    data = load(tmp_path / "vectors", holdout=0, memory_limit_bytes=limit)
    assert data.spec.kind == "vector" and data.train.y is None
    np.testing.assert_allclose(data.train.x[torch.arange(12)].double().numpy(), vectors, rtol=1e-6)
    assert load(tmp_path / "vectors", labels="n", holdout=0, memory_limit_bytes=limit).train.y.tolist() == [*range(12)]


def test_what_is_refused(tmp_path, monkeypatch):
    table = pictures(6)
    table.save_to_disk(tmp_path / "set")
    refused(tmp_path / "set", "unknown column of set 'image'.*picture", column="image")
    refused(tmp_path / "set", "column caption holds text.*picture \\(images\\)", column="caption")
    refused(tmp_path / "set", "unknown column of set 'kinds'; did you mean 'kind'", labels="kinds")
    table.remove_columns("picture").save_to_disk(tmp_path / "text")
    refused(tmp_path / "text", "no column holds images or arrays of numbers; its columns: kind .numbers., caption")
    images = [Image.fromarray(x) for x in PIXELS[:3]]
    both = datasets.Features({"picture": datasets.Image(), "other": datasets.Image()})
    datasets.Dataset.from_dict({"picture": images, "other": images}, features=both).save_to_disk(tmp_path / "two")
    refused(tmp_path / "two", "columns picture, other hold images; say which one with --column")
    assert load(tmp_path / "two", column="other").spec.shape == (3, 6, 8)
    ragged = datasets.Dataset.from_dict({"v": [[1.0, 2.0], [1.0], [1.0, 2.0, 3.0]]})
    ragged.save_to_disk(tmp_path / "ragged")
    refused(tmp_path / "ragged", "the first example is 2 and others are not")
    datasets.Dataset.from_dict({"v": [[1.0], [None], [2.0]]}).save_to_disk(tmp_path / "missing")
    refused(tmp_path / "missing", "1 values are missing")
    cell = datasets.Features({"p": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    linked = datasets.Dataset.from_dict({"p": [{"bytes": None, "path": "/etc/passwd"}] * 3}, features=cell)
    linked.save_to_disk(tmp_path / "linked")  # as an Image it would be read now, and saved with its bytes
    info = tmp_path / "linked" / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"features": {"p": {"_type": "Image"}}}))
    refused(tmp_path / "linked", "only the name of a file")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing more")
    refused(tmp_path / "broken.parquet", "cannot be read by the datasets library")
    refused("digits", "column cannot be used here", column="x")
    refused("hub:", "names no set; write hub:NAME")
    assert is_name("hub:mnist") and not is_name("mnist")
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(tmp_path / "set", r"needs the datasets library; pip install 'twofold\[datasets\]'")


LIMITED = """
import resource, sys
import numpy as np
from pathlib import Path
import datasets, pyarrow.compute
import twofold
path, limit = Path(sys.argv[1]), int(sys.argv[2])
few = np.zeros((20, 8, 8), np.uint8)
twofold.train("vae", data=few, out=path / "warm", examples=8, batch_size=4, latent=2, width=4)
used = int([l for l in open("/proc/self/status") if l.startswith("VmData")][0].split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + limit, used + limit))
twofold.train("vae", data=str(path / "set"), out=path / "run", examples=128, batch_size=64, latent=2, width=4,
              data_options={"memory_limit_bytes": limit})
try:
    np.zeros(3 * limit, np.uint8) + 1
    print("fits")
except MemoryError:
    print("does not fit")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on memory")
def test_a_set_several_times_the_memory_limit_trains_under_it(tmp_path):
    """512 MiB of arrays, 128 MiB of memory beyond what the process has."""
    few = RNG.integers(0, 256, (8192, 32, 32), dtype=np.uint8)
    features = datasets.Features({"x": datasets.Array2D((32, 32), "uint8")})
    table = datasets.Dataset.from_dict({"x": few}, features=features)
    datasets.concatenate_datasets([table] * 65).save_to_disk(tmp_path / "set", max_shard_size="200MB")
    assert sum(file.stat().st_size for file in (tmp_path / "set").glob("*.arrow")) > 4 * 2**27
    command = [sys.executable, "-W", "ignore", "-c", LIMITED, str(tmp_path), str(2**27)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.splitlines()[-1] == "does not fit"
