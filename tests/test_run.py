"""The run directory under every fault we can inject: nothing readable is ever lost, nothing damaged is ever used."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import stat
import struct
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from twofold import run as run_module
from twofold.errors import InputError
from twofold.run import (
    BusyError,
    Run,
    SaveError,
    flatten_state,
    json_bytes,
    read_json,
    unflatten_state,
    write_json,
)

CONFIG = {"recipe": "vae-gan", "config": {"gamma": 1e-2, "sizes": [1, 2]}, "data": "digits"}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", CONFIG)


def tensors(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {
        "weights": {"encoder/w": torch.full((3, 4), value), "decoder/b": torch.arange(5) + int(value)},
        "optimisers": {"exp_avg": torch.full((2,), value, dtype=torch.float64)},
    }


def save(run: Run, examples: int, **options: int) -> None:
    run.save_checkpoint(examples, tensors(examples), {"step": examples, "note": "é"}, **options)


def assert_is(run: Run, examples: int, number: int | None = None) -> None:
    """The checkpoint holds exactly what `save` gave for `examples`."""
    checkpoint = run.load_checkpoint(number)
    assert checkpoint.examples == examples
    assert checkpoint.state == {"step": examples, "note": "é"}
    want = tensors(examples)
    assert {stem: set(named) for stem, named in checkpoint.tensors.items()} == {s: set(n) for s, n in want.items()}
    for stem, named in want.items():
        for name, tensor in named.items():
            got = checkpoint.tensors[stem][name]
            assert got.dtype == tensor.dtype
            assert torch.equal(got, tensor)


def tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def rewrite_state(folder: Path, change) -> None:
    """Tampers with state.json and mends its checksum, as someone who means harm would."""
    path = folder / "state.json"
    record = json.loads(path.read_text())
    change(record)
    record.pop("sha256", None)
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    record["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(record))


def replace_tensors(folder: Path, data: bytes) -> None:
    """Puts `data` in place of weights.safetensors with a matching size and checksum."""
    (folder / "weights.safetensors").write_bytes(data)
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    rewrite_state(folder, lambda record: record["files"].update({"weights.safetensors": entry}))


# Creating and opening --------------------------------------------------------------------------------------------


def test_create_then_open_gives_the_config(tmp_path: Path) -> None:
    created = Run.create(tmp_path / "a" / "b", CONFIG)
    opened = Run.open(tmp_path / "a" / "b")
    assert created.config == opened.config == CONFIG
    assert opened.path == tmp_path / "a" / "b"
    assert tree(opened.path).keys() == {"config.json"}


def test_the_config_is_a_copy(run: Run) -> None:
    run.config["config"]["gamma"] = 7
    assert run.config == CONFIG


def test_a_relative_path_survives_chdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Run.create("here", CONFIG)
    monkeypatch.chdir("/")
    save(run, 1)
    assert_is(Run.open(tmp_path / "here"), 1)


def test_a_moved_run_opens(run: Run, tmp_path: Path) -> None:
    save(run, 5)
    shutil.move(run.path, tmp_path / "elsewhere")
    assert_is(Run.open(tmp_path / "elsewhere"), 5)


def test_create_refuses_an_existing_run(run: Run) -> None:
    before = tree(run.path)
    with pytest.raises(InputError, match=r"there is a run at .*run already; continue it with --resume or .* --out"):
        Run.create(run.path, {"recipe": "other"})
    assert tree(run.path) == before


def test_create_refuses_a_full_directory_and_a_file(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match=r"full is not empty and not a run \(it holds 'thesis.tex'\).*--out"):
        Run.create(tmp_path / "full", CONFIG)
    assert tree(tmp_path / "full") == {"thesis.tex": b"precious"}
    with pytest.raises(InputError, match="is not a directory; choose another --out"):
        Run.create(tmp_path / "full" / "thesis.tex", CONFIG)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is not a directory"):
        Run.create(tmp_path / "dangling", CONFIG)
    with pytest.raises(SaveError, match="cannot write"):
        Run.create(tmp_path / "full" / "thesis.tex" / "run", CONFIG)


def test_create_accepts_an_empty_directory_and_what_a_killed_create_left(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / ".config.json.4711.tmp").write_text('{"run_fo')
    assert Run.create(folder, CONFIG).config == CONFIG
    assert tree(folder).keys() == {"config.json"}


def test_create_leaves_nothing_behind_on_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match=r"record.data is a set; allowed: dict"):
        Run.create(tmp_path / "a" / "b", {"data": {1, 2}})
    with pytest.raises(ValueError, match="cannot have the key 'run_format'"):
        Run.create(tmp_path / "a" / "b", {"run_format": 1})
    assert not list(tmp_path.iterdir())

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "given").mkdir()
    monkeypatch.setattr(os, "fsync", full)
    for path in (tmp_path / "a" / "b", tmp_path / "given"):
        with pytest.raises(SaveError, match=r"config.json: No space left on device"):
            Run.create(path, CONFIG)
    assert [p.name for p in tmp_path.rglob("*")] == ["given"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a run directory: it has no config.json"),
        (b"", "is not readable JSON"),
        (b'{"run_format": 1', "is not readable JSON"),
        (b"\xff\xfe\x00", "is not readable JSON"),
        (b'{"run_format": 1, "lr": NaN}', "NaN is not JSON"),
        (b"[" * 200_000, "is not readable JSON"),
        (b'{"n": ' + b"9" * 10_000 + b"}", "is not readable JSON"),
        (b"[1]", "its config.json has no run_format"),
        (b'{"recipe": "vae"}', "its config.json has no run_format"),
        (b'{"run_format": true}', "its config.json has no run_format"),
        (b'{"run_format": "1"}', "its config.json has no run_format"),
        (b'{"run_format": 2}', r"newer Twofold \(run format 2; this one reads up to 1\); upgrade twofold"),
    ],
)
def test_open_refuses_what_is_no_run(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        Run.open(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_open_refuses_missing_file_link_pipe_and_giant(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no run at .*nothing; give the directory"):
        Run.open(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file, not a run directory"):
        Run.open(tmp_path / "file")
    real = Run.create(tmp_path / "real", CONFIG)

    (tmp_path / "config.json").symlink_to(real.path / "config.json")
    with pytest.raises(InputError, match="not a regular file"):
        Run.open(tmp_path)
    (tmp_path / "config.json").unlink()
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(InputError, match="not a regular file"):
        Run.open(tmp_path)
    (tmp_path / "config.json").unlink()
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate(run_module.JSON_LIMIT + 1)
    with pytest.raises(InputError, match="67,108,865 bytes; at most 67,108,864 are read"):
        Run.open(tmp_path)


# JSON and plain files --------------------------------------------------------------------------------------------


def test_json_is_deterministic_and_readable(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": (1, 2.5), "a": {"é": None}})
    assert (tmp_path / "a.json").read_bytes() == (
        b'{\n  "b": [\n    1,\n    2.5\n  ],\n  "a": {\n    "\\u00e9": null\n  }\n}\n'
    )
    assert read_json(tmp_path / "a.json") == {"b": [1, 2.5], "a": {"é": None}}


def test_json_refuses_what_it_cannot_say_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="record.a has the key 1; keys must be text"):
        json_bytes({"a": {1: 2}})
    with pytest.raises(ValueError, match=r"record.lr\[1\] is nan; JSON has finite numbers only"):
        json_bytes({"lr": [0.1, math.nan]})
    with pytest.raises(TypeError, match="record.path is a PosixPath"):
        json_bytes({"path": Path("/")})
    monkeypatch.setattr(run_module, "JSON_LIMIT", 10)
    with pytest.raises(ValueError, match="the limit is 10"):
        json_bytes("0123456789")


def test_write_and_read_files(run: Run) -> None:
    assert run.write_bytes("samples/000000000010.png", b"png") == run.path / "samples" / "000000000010.png"
    run.write_bytes("samples/000000000002.png", b"old")
    run.write_bytes("samples/000000000002.png", b"new")
    run.write_text("samples/note.txt", "é")
    run.write_json("evaluation.json", {"fid_10k": 1.5})
    assert run.read_bytes("samples/000000000002.png") == b"new"
    assert run.read_bytes("samples/note.txt") == "é".encode()
    assert run.read_json("evaluation.json") == {"fid_10k": 1.5}
    (run.path / "samples" / "link.png").symlink_to(run.path / "config.json")
    (run.path / "samples" / ".x.png.1.tmp").touch()
    assert run.files("samples", ".png") == ["samples/000000000002.png", "samples/000000000010.png"]
    assert run.files("nothing") == []
    with pytest.raises(InputError, match=r"cannot read .*absent.png: No such file"):
        run.read_bytes("samples/absent.png")


@pytest.mark.parametrize("path", ["../out", "a/../../out", "/etc/out", "", ".", "a\\b", "a\0b"])
def test_no_path_leaves_the_run(run: Run, path: str) -> None:
    with pytest.raises(InputError, match="not a path inside a run"):
        run.write_bytes(path, b"")
    with pytest.raises(InputError, match="not a path inside a run"):
        run.read_bytes(path)


def test_no_link_leaves_the_run(run: Run, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (run.path / "samples").symlink_to(outside)
    for act in (lambda: run.read_bytes("samples/secret"), lambda: run.write_bytes("samples/new", b""),
                lambda: run.files("samples")):  # fmt: skip
        with pytest.raises(InputError, match="samples is a link; links in a run are not followed"):
            act()
    assert tree(outside) == {"secret": b"secret"}


@pytest.mark.parametrize("path", ["config.json", "metrics.jsonl", "checkpoints/000000000001/state.json"])
def test_the_runs_own_files_are_written_by_run_only(run: Run, path: str) -> None:
    with pytest.raises(InputError, match="kept by Run itself"):
        run.write_bytes(path, b"")


def test_a_failed_write_leaves_the_old_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write_text("report.html", "old")
    before = tree(run.path)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(SaveError, match=r"report.html: Permission denied; what was there before is untouched"):
        run.write_text("report.html", "new")
    assert tree(run.path) == before


# Metrics ---------------------------------------------------------------------------------------------------------


def test_metrics_round_trip_with_the_fact_of_not_being_finite(run: Run) -> None:
    assert run.metrics() == []
    records = [
        {"examples": 0, "kl": 1 / 3, "stage": "codes", "ok": True, "none": None},
        {"examples": 64, "kl": math.nan, "nll": math.inf, "gain": -math.inf, "lr": 1e-300},
    ]
    for record in records:
        run.append_metrics(record)
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[1], parse_constant=lambda _: pytest.fail("not JSON"))["kl"] is None
    first, second = run.metrics()
    assert first == records[0]
    assert math.isnan(second.pop("kl"))
    assert second == {"examples": 64, "nll": math.inf, "gain": -math.inf, "lr": 1e-300}


def test_metrics_refuses_wrong_records(run: Run) -> None:
    for record in ({"kl": 1.0}, {"examples": 1.5}, {"examples": -1}, {"examples": True}):
        with pytest.raises(ValueError, match='needs "examples"'):
            run.append_metrics(record)
    with pytest.raises(ValueError, match="cannot have a metric named"):
        run.append_metrics({"examples": 1, "nonfinite": 1})
    with pytest.raises(TypeError, match="the metric 'kl' is a Tensor"):
        run.append_metrics({"examples": 1, "kl": torch.tensor(1.0)})
    with pytest.raises(ValueError, match="the limit is"):
        run.append_metrics({"examples": 1, "text": "x" * run_module.LINE_LIMIT})
    assert run.metrics() == []


@pytest.mark.parametrize("rest", [b'{"examples": 3, "kl', b"\0" * 5000, b'{"examples": 3}', b"x" * 9000])
def test_a_half_written_line_is_ignored_and_then_removed(run: Run, rest: bytes) -> None:
    for examples in (1, 2):
        run.append_metrics({"examples": examples})
    with open(run.path / "metrics.jsonl", "ab") as file:
        file.write(rest)
    assert [record["examples"] for record in run.metrics()] == [1, 2]
    run.append_metrics({"examples": 3, "after": True})
    assert run.metrics() == [{"examples": 1}, {"examples": 2}, {"examples": 3, "after": True}]


def test_a_half_written_first_line(run: Run) -> None:
    (run.path / "metrics.jsonl").write_bytes(b'{"exam' + b"x" * 10_000)
    assert run.metrics() == []
    run.append_metrics({"examples": 1})
    assert run.metrics() == [{"examples": 1}]


def test_a_damaged_line_in_the_middle_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (run.path / "metrics.jsonl").write_text('{"examples": 1}\nrubbish\n{"examples": 2}\n')
    with pytest.raises(InputError, match='line 2 is not a record with "examples"; remove that line'):
        run.metrics()
    (run.path / "metrics.jsonl").write_text('{"examples": 1}\n' + "[" * 100_000 + '\n{"examples": 2}\n')
    with pytest.raises(InputError, match="line 2"):
        run.metrics()
    monkeypatch.setattr(run_module, "METRICS_LIMIT", 100)
    with pytest.raises(InputError, match="at most 100 are read"):
        run.metrics()


def test_a_foreign_nonfinite_record_is_harmless(run: Run) -> None:
    text = '{"examples": 1, "a": null, "nonfinite": {"a": "1e9", "b": "nan", "examples": [2]}}\n'
    (run.path / "metrics.jsonl").write_text(text + '{"examples": 2, "nonfinite": 3}\n')
    assert run.metrics() == [{"examples": 1, "a": None}, {"examples": 2}]


def test_truncate_metrics_drops_what_came_after(run: Run) -> None:
    run.truncate_metrics(0)
    for examples in (10, 20, 30, 30, 40):
        run.append_metrics({"examples": examples, "kl": math.nan})
    kept = (run.path / "metrics.jsonl").read_bytes().splitlines(keepends=True)[:4]
    run.truncate_metrics(30)
    assert (run.path / "metrics.jsonl").read_bytes() == b"".join(kept)
    run.append_metrics({"examples": 50})
    assert [record["examples"] for record in run.metrics()] == [10, 20, 30, 30, 50]


def test_metrics_that_cannot_be_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.append_metrics({"examples": 1})
    (run.path / "metrics.jsonl").rename(run.path / "m")
    (run.path / "metrics.jsonl").mkdir()
    with pytest.raises(SaveError, match=r"cannot write .*metrics.jsonl: Is a directory"):
        run.append_metrics({"examples": 2})


# Checkpoints -----------------------------------------------------------------------------------------------------


def test_save_and_load(run: Run) -> None:
    assert run.checkpoints() == []
    with pytest.raises(InputError, match="has no checkpoint yet; train until the first one is saved"):
        run.load_checkpoint()
    save(run, 1000)
    save(run, 2000)
    assert run.checkpoints() == [1000, 2000]
    assert_is(run, 2000)
    assert_is(run, 1000, 1000)
    with pytest.raises(InputError, match="has no checkpoint 3; there is: 1000, 2000"):
        run.load_checkpoint(3)
    assert {p.name for p in (run.path / "checkpoints").iterdir()} == {"000000001000", "000000002000"}


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_keep_counts_complete_checkpoints(run: Run, keep: int) -> None:
    for examples in range(100, 600, 100):
        save(run, examples, keep=5)
    (run.path / "checkpoints" / "000000000500" / "weights.safetensors").unlink()
    assert run.checkpoints() == [100, 200, 300, 400]
    save(run, 600, keep=keep)
    assert run.checkpoints() == [200, 300, 400, 600][-keep:]
    assert_is(run, 600)


def test_saving_before_an_existing_checkpoint_replaces_that_course(run: Run) -> None:
    for examples in (100, 200, 300):
        save(run, examples, keep=3)
    save(run, 150, keep=3)
    assert run.checkpoints() == [100, 150]
    assert_is(run, 150)


def test_saving_the_same_number_again_replaces_it(run: Run) -> None:
    save(run, 100)
    run.save_checkpoint(100, {"weights": {"w": torch.zeros(1)}}, {"step": -1})
    assert run.load_checkpoint().state == {"step": -1}
    assert [p.name for p in (run.path / "checkpoints").iterdir()] == ["000000000100"]


def test_every_kind_of_tensor_keeps_its_bits(run: Run) -> None:
    base = torch.arange(24.0).reshape(2, 3, 4)
    bits = torch.tensor([0x7FC00001, 0x7F800001, -1, 1], dtype=torch.int32)  # NaNs with payloads, a subnormal
    named = {
        "transposed": base.transpose(0, 2),
        "slice": base[:, 1],
        "tied": base,
        "part": base[0],
        "scalar": torch.tensor(1.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "bool": torch.tensor([True, False]),
        "bf16": torch.tensor([1.0, math.pi], dtype=torch.bfloat16),
        "half": torch.tensor([1.0], dtype=torch.float16),
        "bytes": torch.arange(256).to(torch.uint8),
        "nan": bits.view(torch.float32),
        "parameter": nn.Parameter(torch.ones(2)),
    }
    run.save_checkpoint(0, {"weights": named, "nothing": {}}, {})
    loaded = run.load_checkpoint().tensors
    assert loaded["nothing"] == {}
    for name, tensor in named.items():
        got = loaded["weights"][name]
        assert got.dtype == tensor.dtype and got.shape == tensor.shape, name
        assert not got.requires_grad
        view = torch.int32 if tensor.dtype == torch.float32 else tensor.dtype
        assert torch.equal(got.contiguous().view(view), tensor.detach().contiguous().view(view)), name
    loaded["weights"]["tied"].zero_()
    assert loaded["weights"]["part"].sum() > 0


def test_the_same_checkpoint_has_the_same_bytes(run: Run, tmp_path: Path) -> None:
    other = Run.create(tmp_path / "other", CONFIG)
    save(run, 7)
    save(other, 7)
    assert tree(run.path) == tree(other.path)


def test_save_refuses_impossible_arguments(run: Run) -> None:
    for examples, keep in [(-1, 2), (10**12, 2), (True, 2), (1.0, 2), (1, 0), (1, None)]:
        with pytest.raises(ValueError, match=r"give 0 ≤ examples < 1,000,000,000,000, keep ≥ 1"):
            run.save_checkpoint(examples, {}, {}, keep=keep)
    for stem in ("../x", "a/b", "", ".hidden", "x" * 101, "a\nb"):
        with pytest.raises(ValueError, match="cannot be a file of a checkpoint"):
            run.save_checkpoint(1, {stem: {}}, {})
    with pytest.raises(ValueError, match="__metadata__"):
        run.save_checkpoint(1, {"w": {"__metadata__": torch.ones(1)}}, {})
    with pytest.raises(ValueError, match="differ by capital letters only"):
        run.save_checkpoint(1, {"w": {}, "W": {}}, {})
    with pytest.raises(ValueError, match="1001 files in a checkpoint"):
        run.save_checkpoint(1, {f"w{n}": {} for n in range(1001)}, {})
    with pytest.raises(ValueError, match="state.loss is inf"):
        run.save_checkpoint(1, {}, {"loss": math.inf})
    with pytest.raises(TypeError, match="state.w is a Tensor"):
        run.save_checkpoint(1, {}, {"w": torch.ones(1)})
    assert not run.path.joinpath("checkpoints").exists()


# Damage


def first_bit(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


DAMAGES = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-1]), r"weights.safetensors has [\d,]+ bytes instead of"),
    "longer": (lambda p: p.write_bytes(p.read_bytes() + b"\0"), r"weights.safetensors has [\d,]+ bytes instead of"),
    "emptied": (lambda p: p.write_bytes(b""), "weights.safetensors has 0 bytes instead of"),
    "flipped": (lambda p: p.write_bytes(first_bit(p.read_bytes(), 57)), "weights.safetensors has the wrong checksum"),
    "missing": (lambda p: p.unlink(), "weights.safetensors is missing"),
    "state missing": (lambda p: p.with_name("state.json").unlink(), "state.json is missing"),
    "state cut": (lambda p: p.with_name("state.json").write_text("{"), "state.json cannot be used: .* not readable"),
    "state list": (lambda p: p.with_name("state.json").write_text("[]"), "state.json is not the record"),
    "state older": (lambda p: rewrite_state(p.parent, lambda r: r.update(checkpoint_format=0)), "not the record"),
    "state keys": (lambda p: rewrite_state(p.parent, lambda r: r.update(more=0)), "not the record"),
    "state no files": (lambda p: rewrite_state(p.parent, lambda r: r.update(files=3)), "does not list its files"),
    "state no size": (lambda p: rewrite_state(p.parent, lambda r: r.update(files={"a.safetensors": 1})), "no size"),
    "other number": (lambda p: rewrite_state(p.parent, lambda r: r.update(examples=9)), r"of another checkpoint \(9\)"),
    "state text": (
        lambda p: p.with_name("state.json").write_text(p.with_name("state.json").read_text().replace("5000", "5001")),
        "state.json has the wrong checksum",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_named_with_the_newest_good_checkpoint(run: Run, kind: str) -> None:
    damage, message = DAMAGES[kind]
    for examples in (3000, 4000, 5000):
        save(run, examples, keep=3)
    damage(run.path / "checkpoints" / "000000005000" / "weights.safetensors")
    want = (
        f"checkpoint 000000005000 is damaged: .*{message}.*; the newest good one is 000000004000: use --checkpoint 4000"
    )
    for number in (None, 5000):
        with pytest.raises(InputError, match=want) as caught:
            run.load_checkpoint(number)
        assert "\n" not in str(caught.value)
    assert_is(run, 4000, 4000)


def test_the_newest_good_one_is_really_good(run: Run) -> None:
    for examples in (3000, 4000, 5000):
        save(run, examples, keep=3)
    for examples in (4000, 5000):
        path = run.path / "checkpoints" / f"{examples:012d}" / "optimisers.safetensors"
        path.write_bytes(first_bit(path.read_bytes(), path.stat().st_size - 1))
    assert run.checkpoints() == [3000, 4000, 5000]  # sizes are right
    with pytest.raises(
        InputError, match="checkpoint 000000005000 .*optimisers.* wrong checksum.* use --checkpoint 3000"
    ):
        run.load_checkpoint()
    shutil.rmtree(run.path / "checkpoints" / "000000003000")
    with pytest.raises(InputError, match="there is no other good one: train again"):
        run.load_checkpoint()


def test_a_newer_checkpoint_format_is_not_called_damage(run: Run) -> None:
    save(run, 5)
    rewrite_state(run.path / "checkpoints" / "000000000005", lambda record: record.update(checkpoint_format=2))
    with pytest.raises(InputError, match=r"newer Twofold \(checkpoint format 2; this one reads up to 1\)"):
        run.load_checkpoint()
    assert run.checkpoints() == []


def test_extra_things_are_ignored_but_links_are_not_followed(run: Run, tmp_path: Path) -> None:
    save(run, 5)
    folder = run.path / "checkpoints" / "000000000005"
    secret = tmp_path / "secret.safetensors"
    (folder / "extra.safetensors").symlink_to(secret)
    (run.path / "checkpoints" / "notes.txt").touch()
    (run.path / "checkpoints" / ".x.replaced").touch()
    assert_is(run, 5)

    (folder / "weights.safetensors").rename(secret)
    (folder / "weights.safetensors").symlink_to(secret)
    with pytest.raises(InputError, match="weights.safetensors is not a regular file; links in a run are not followed"):
        run.load_checkpoint()

    folder.rename(tmp_path / "folder")
    folder.symlink_to(tmp_path / "folder")
    assert run.checkpoints() == []
    with pytest.raises(InputError, match="it is not a folder; links in a run are not followed"):
        run.load_checkpoint()
    (run.path / "checkpoints").rename(tmp_path / "checkpoints")
    (run.path / "checkpoints").symlink_to(tmp_path / "checkpoints")
    for act in (run.checkpoints, run.load_checkpoint, lambda: save(run, 6)):
        with pytest.raises(InputError, match="checkpoints is a link"):
            act()


@pytest.mark.parametrize("name", ["../../x.safetensors", "/etc/passwd", "a/b.safetensors", "x.pt", ".safetensors", ""])
def test_hostile_file_names_are_refused(run: Run, name: str) -> None:
    save(run, 5)
    entry = {"bytes": 1, "sha256": ""}
    rewrite_state(run.path / "checkpoints" / "000000000005", lambda record: record["files"].update({name: entry}))
    with pytest.raises(InputError, match="state.json names the file .* which is not allowed"):
        run.load_checkpoint()


def header(record: dict, body: bytes = b"", *, length: int | None = None) -> bytes:
    text = json.dumps(record).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has a header of 0 bytes|not possible"),
        (b"\x80\x04pickle", "which is not possible"),
        (header({}, length=2**63), "has a header of 9,223,372,036,854,775,808 bytes, which is not possible"),
        (header({}, length=2**40), "which is not possible"),
        (
            header({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}, b"\0" * 4),
            "not a safetensors file",
        ),
        (
            header({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 2**60]}}, b"\0" * 8),
            "not a safetensors file",
        ),
        (header({"w": {"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8), "not a safetensors file"),
        (header({"w": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}), "not a safetensors file"),
        (struct.pack("<Q", 9000) + b"[" * 9000, "not a safetensors file"),
    ],
)
def test_a_dishonest_file_with_the_right_checksum_is_refused(run: Run, data: bytes, message: str) -> None:
    save(run, 4)
    save(run, 5)
    replace_tensors(run.path / "checkpoints" / "000000000005", data)
    with pytest.raises(InputError, match=f"weights.safetensors.*({message}).*use --checkpoint 4"):
        run.load_checkpoint()


def test_a_giant_header_is_not_parsed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    save(run, 5)
    monkeypatch.setattr(run_module, "HEADER_LIMIT", 50)
    with pytest.raises(InputError, match="weights.safetensors has a header of .* bytes, which is not possible"):
        run.load_checkpoint()


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, bytes]]:
    run = Run.create(tmp_path_factory.mktemp("fuzz") / "run", CONFIG)
    save(run, 4)
    save(run, 5)
    return run, tree(run.path / "checkpoints" / "000000000005")


def refusal(act) -> str:
    """The line of the `InputError` that `act` raises, "" if it raises none. Any other exception is a failure."""
    try:
        act()
    except InputError as error:
        return str(error)
    return ""


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_byte_change_is_noticed_or_harmless(fuzzed: tuple[Run, dict[str, bytes]], data: st.DataObject) -> None:
    run, files = fuzzed
    name = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name])
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, max(len(content) - 1, 0)))
        match data.draw(st.sampled_from(["set", "delete", "insert", "cut"])):
            case "set" if content:
                content[position] = data.draw(st.integers(0, 255))
            case "delete":
                del content[position : position + data.draw(st.integers(1, 8))]
            case "insert":
                content[position:position] = data.draw(st.binary(min_size=1, max_size=8))
            case "cut":
                del content[position:]
    path = run.path / "checkpoints" / "000000000005" / name
    path.write_bytes(bytes(content))
    try:
        # The same checkpoint, or one line that offers the good one.
        line = refusal(lambda: assert_is(run, 5))
        assert "\n" not in line
        assert not line or "use --checkpoint 4" in line
    finally:
        path.write_bytes(files[name])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


UNCHANGED = [("checkpoint_format", 1), ("examples", 5)]


@settings(max_examples=100, deadline=None)
@given(key=st.sampled_from(["checkpoint_format", "examples", "files", "state", "new"]), value=JSON)
def test_any_value_in_state_json_with_a_right_checksum(fuzzed: tuple[Run, dict[str, bytes]], key: str, value) -> None:
    run, files = fuzzed
    folder = run.path / "checkpoints" / "000000000005"
    rewrite_state(folder, lambda record: record.update({key: value}))
    allowed = (key in ("files", "state") and isinstance(value, dict)) or (key, value) in UNCHANGED
    try:
        line = refusal(run.load_checkpoint)
        assert allowed or "use --checkpoint 4" in line or "newer Twofold" in line
    finally:
        (folder / "state.json").write_bytes(files["state.json"])


@settings(max_examples=300, deadline=None)
@given(
    entry=st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F64", "BOOL", "U8", "BF16", "F8_E4M3", "C64", "F4", "?"]) | st.integers(),
            "shape": st.lists(st.integers(-2, 4) | st.integers(2**31, 2**64), max_size=3) | st.none(),
            "data_offsets": st.lists(st.integers(-1, 40) | st.integers(0, 2**64), max_size=3),
        }
    ),
    body=st.binary(max_size=32),
)
def test_fuzzed_safetensors_headers(fuzzed: tuple[Run, dict[str, bytes]], entry: dict, body: bytes) -> None:
    run, files = fuzzed
    folder = run.path / "checkpoints" / "000000000005"
    replace_tensors(folder, header({"w": entry}, body))

    def load() -> None:
        loaded = run.load_checkpoint().tensors["weights"]["w"]
        assert loaded.numel() * loaded.element_size() == len(body)

    try:
        line = refusal(load)
        assert not line or ("weights.safetensors" in line and "use --checkpoint 4" in line)
    finally:
        for name, content in files.items():
            (folder / name).write_bytes(content)


# Faults while saving


class Faults:
    """Lets `count` calls of the file system pass and then fails: once ("error"), or for ever after ("dead").

    "dead" is what a power cut or kill -9 looks like from inside: no clean-up gets to run either.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int, mode: str) -> None:
        import safetensors.torch

        self.count, self.mode, self.failed, self.calls = count, mode, False, 0
        for owner, name in [
            (os, "replace"), (os, "fsync"), (os, "mkdir"), (os, "unlink"), (os, "rmdir"), (os, "open"),
            (shutil, "rmtree"), (safetensors.torch, "save_file"), (run_module, "open"),
        ]:  # fmt: skip
            real = getattr(owner, name, open)
            monkeypatch.setattr(owner, name, self.wrap(real), raising=False)

    def wrap(self, real):
        def call(*args, **kwargs):
            if self.failed and self.mode == "dead":
                raise OSError(5, "dead")
            if self.calls == self.count and not self.failed:
                self.failed = True
                raise OSError(28, "No space left on device")
            self.calls += 1
            return real(*args, **kwargs)

        return call


@pytest.mark.parametrize("mode", ["error", "dead"])
@pytest.mark.parametrize("case", ["next", "again", "same", "earlier"])
def test_a_fault_at_any_moment_of_a_save_loses_nothing(tmp_path: Path, mode: str, case: str) -> None:
    number = {"next": 300, "again": 300, "same": 200, "earlier": 100}[case]
    for count in range(100):
        run = Run.create(tmp_path / str(count), CONFIG)
        if case != "same":
            save(run, 150)
        save(run, 200)
        if case == "again":  # what a killed save left
            shutil.copytree(run.path / "checkpoints" / "000000000200", run.path / "checkpoints" / ".000000000300.7.tmp")
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(patch, count, mode)
            line = refusal(partial(save, run, number))
        assert not line or ("\n" not in line and ("No space left on device" in line or mode == "dead"))
        latest = Run.open(run.path).load_checkpoint().examples
        assert latest in (200, number)
        # Only tidying up may fail without a word: the checkpoint is there, or the caller knows that it is not.
        assert line or latest == number
        for kept in run.checkpoints():
            assert_is(run, kept, kept)
        if mode == "error":
            assert not list((run.path / "checkpoints").glob(f".{number:012d}.{os.getpid()}.tmp")), count
        save(run, number)  # and the disk has room again
        assert_is(run, number)
        assert all(len(p.name) == 12 for p in (run.path / "checkpoints").iterdir())
        if not faults.failed:
            break
    else:
        pytest.fail("the faults never ran out")
    assert count > 10


def test_an_interrupt_while_saving_leaves_the_old_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    save(run, 100)
    before = tree(run.path)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save(run, 200)
    assert tree(run.path) == before


def test_a_checkpoint_that_was_being_replaced_is_found(run: Run) -> None:
    save(run, 100)
    parent = run.path / "checkpoints"
    (parent / "000000000100").rename(parent / ".000000000100.replaced")
    assert run.checkpoints() == [100]
    assert_is(run, 100)
    save(run, 200)
    assert sorted(p.name for p in parent.iterdir()) == ["000000000100", "000000000200"]
    shutil.copytree(parent / "000000000200", parent / ".000000000200.replaced")
    assert run.checkpoints() == [100, 200]
    save(run, 300)
    assert sorted(p.name for p in parent.iterdir()) == ["000000000200", "000000000300"]


FULL_DISK = """
import resource, sys, torch
from twofold.run import Run, SaveError
run = Run.create(sys.argv[1], {})
run.save_checkpoint(1, {"weights": {"w": torch.ones(10)}}, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    run.save_checkpoint(2, {"weights": {"w": torch.ones(100_000)}}, {})
except SaveError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file size")
def test_a_limit_of_the_operating_system_on_real_writes(tmp_path: Path) -> None:
    """Not a fake: the kernel refuses the write in the middle of the file, inside safetensors' own writer."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "run")]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "cannot write" in result.stdout and "File too large" in result.stdout
    run = Run.open(tmp_path / "run")
    assert [p.name for p in (run.path / "checkpoints").iterdir()] == ["000000000001"]
    assert torch.equal(run.load_checkpoint().tensors["weights"]["w"], torch.ones(10))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_run_can_be_read_but_not_written(run: Run) -> None:
    save(run, 1)
    os.chmod(run.path / "checkpoints", stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert_is(run, 1)
        with pytest.raises(SaveError, match="Permission denied"):
            save(run, 2)
    finally:
        os.chmod(run.path / "checkpoints", stat.S_IRWXU)


def test_importing_run_imports_nothing_heavy() -> None:
    code = "import sys, twofold.run; print([m for m in ('torch', 'numpy', 'safetensors', 'PIL') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"


# States ----------------------------------------------------------------------------------------------------------


def same(a, b) -> bool:
    """Equal types, bits, order of keys and signs of zero."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, dict):
        return same(list(a), list(b)) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return math.isnan(b) if math.isnan(a) else (a, math.copysign(1, a)) == (b, math.copysign(1, b))
    return a == b


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
SHAPES = st.lists(st.integers(0, 3), max_size=3)
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool, torch.float16])
TENSORS = st.builds(
    lambda shape, dtype, seed: torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(9).to(dtype),
    SHAPES, DTYPES, st.integers(0, 99),
)  # fmt: skip
KEYS = SCALARS | st.tuples(st.integers(), st.text(max_size=3)) | st.sampled_from(["~", "items", "a/b", "__metadata__"])
KEYS = KEYS.filter(lambda key: key == key)
STATES = st.recursive(
    SCALARS | TENSORS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.dictionaries(st.text("~ab/", max_size=3), inner, max_size=4)
    ),
    max_leaves=16,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(state=STATES)
def test_any_state_comes_back_through_json_and_safetensors(state) -> None:
    from safetensors.torch import load
    from safetensors.torch import save as dump

    named, record = flatten_state(state)
    named = load(dump(named)) if named else {}
    assert same(unflatten_state(named, json.loads(json.dumps(record, allow_nan=False))), state)


def test_colliding_paths_stay_apart() -> None:
    one, two, three = (torch.full((1,), float(n)) for n in range(3))
    state = {"a/b": one, "a": {"b": two}, "__metadata__": three, 1: one, "1": two}
    named, record = flatten_state(state)
    assert len(named) == 5 and "__metadata__" not in named
    assert same(unflatten_state(named, record), state)


OPTIMISERS = {
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-2, betas=(0.5, 0.999), weight_decay=0.1, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, momentum=0.9, centered=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
    "plain SGD": lambda p: torch.optim.SGD(p, lr=1e-2),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2, lr_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_resumed_optimiser_continues_bit_for_bit(run: Run, name: str) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 1)).double()
        model[0].to(memory_format=torch.channels_last)
        return model, OPTIMISERS[name](model.parameters())

    def steps(model: nn.Module, optimiser: torch.optim.Optimizer, seeds: range) -> None:
        for seed in seeds:
            x = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            optimiser.zero_grad()
            model(x).square().sum().backward()
            optimiser.step()

    model, optimiser = build()
    steps(model, optimiser, range(3))
    named, record = flatten_state({"optimiser": optimiser.state_dict(), "random": torch.get_rng_state()})
    run.save_checkpoint(3, {"weights": model.state_dict(), "states": named}, {"states": record})
    steps(model, optimiser, range(3, 6))

    resumed, other = build()
    checkpoint = run.load_checkpoint()
    resumed.load_state_dict(checkpoint.tensors["weights"])
    state = unflatten_state(checkpoint.tensors["states"], checkpoint.state["states"])
    other.load_state_dict(state["optimiser"])
    assert torch.equal(state["random"], torch.get_rng_state())
    steps(resumed, other, range(3, 6))
    assert same(list(resumed.state_dict().values()), list(model.state_dict().values()))
    assert same(other.state_dict(), optimiser.state_dict())


def test_channels_last_is_kept() -> None:
    for shape, order in [((2, 3, 4, 5), torch.channels_last), ((2, 3, 4, 5, 6), torch.channels_last_3d)]:
        tensor = torch.randn(shape).to(memory_format=order)
        named, record = flatten_state([tensor, tensor.contiguous()])
        stored = {name: value.contiguous() for name, value in named.items()}
        first, second = unflatten_state(stored, record)
        assert first.stride() == tensor.stride() and torch.equal(first, tensor)
        assert second.is_contiguous() and torch.equal(second, tensor)


def test_flatten_refuses_other_types() -> None:
    import numpy as np

    for value, kind in [
        ({1}, "set"),
        (b"", "bytes"),
        (np.float64(1), "float64"),
        (np.zeros(2), "ndarray"),
        (1j, "complex"),
    ]:
        with pytest.raises(TypeError, match=f"state a/0 is a {kind}; allowed: dict, list"):
            flatten_state({"a": [value]})
    with pytest.raises(TypeError, match=r"state itself is a set"):
        flatten_state(set())
    with pytest.raises(TypeError, match=r"state a/\(key\) is a bytes"):
        flatten_state({"a": {b"": 1}})


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"~": "tensor", "name": "v"}, "the tensor 'v' is missing"),
        ({"~": "tensor"}, "the tensor 'None' is missing"),
        ({"~": "tensor", "name": ["w"]}, "is missing"),
        ({"~": "eval", "items": []}, "unknown part"),
        ({"~": "tuple", "items": 3}, "unknown part"),
        ({"~": "dict", "items": [[1]]}, "unknown part"),
        ({"~": "dict", "items": [[[], 1]]}, "cannot be a key"),
        ({"~": "float", "value": "1e5"}, "unknown part"),
        ({"~": ["dict"]}, "unknown part"),
    ],
)
def test_unflatten_refuses_what_flatten_never_wrote(record: dict, message: str) -> None:
    with pytest.raises(InputError, match=f"not a saved state: .*{message}"):
        unflatten_state({"w": torch.ones(1)}, record)


def test_unflatten_refuses_deep_nesting() -> None:
    record: list = []
    for _ in range(100_000):
        record = [record]
    with pytest.raises(InputError, match="nested too deeply"):
        unflatten_state({}, record)
    while record:  # taken apart by hand: freeing it in one go would recurse as well
        record = record[0]


# The lock ----------------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from twofold.run import Run
with Run.open(sys.argv[1]).writing():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_and_kill_9_frees_the_run(run: Run) -> None:
    """The lock is the operating system's: what a killed process leaves behind stops nobody."""
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        refused = rf"another process \(process {holder.pid}\) is writing .*; wait for it, or choose another --out"
        with pytest.raises(BusyError, match=refused), run.writing():
            pass
        assert Run.open(run.path).checkpoints() == []  # reading is free
    finally:
        holder.kill()
        holder.communicate()
    assert (run.path / ".lock").exists()
    with run.writing() as mine:
        save(mine, 1)
        with pytest.raises(BusyError, match=f"process {os.getpid()}"), run.writing():  # also within one process
            pass
    assert not (run.path / ".lock").exists()


def test_writing_gives_the_run_as_it_is_now(run: Run) -> None:
    other = Run.open(run.path)
    other.replace_config({"recipe": "changed"})
    with run.writing() as now:
        assert now.config == {"recipe": "changed"}


def test_a_lock_file_that_was_removed_meanwhile_locks_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened before its holder removed it, locked after: the lock of a file without a name must not count."""
    take, calls = run_module._take, []

    def late(handle: int, path: Path) -> None:
        if not calls:
            os.unlink(path / ".lock")
        calls.append(handle)
        take(handle, path)

    monkeypatch.setattr(run_module, "_take", late)
    with run.writing():
        assert len(calls) == 2
        with pytest.raises(BusyError), run.writing():
            pass


@pytest.mark.skipif(sys.platform == "win32", reason="links")
def test_a_link_in_the_place_of_the_lock_is_not_followed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (run.path / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(SaveError, match="cannot write"), run.writing():
        pass
    assert (tmp_path / "precious").read_text() == "mine"


# What can be computed again -----------------------------------------------------------------------------------------


def test_kept_tensors_come_back_under_their_key_only(run: Run) -> None:
    codes = {"codes": torch.arange(6, dtype=torch.int32).reshape(2, 3), "y": torch.tensor([1, 0])}
    assert run.kept("codes", "a") is None
    run.keep("codes", codes, "a")
    found = run.kept("codes", "a")
    assert found is not None and found.keys() == codes.keys()
    assert all(torch.equal(found[k], codes[k]) and found[k].dtype == codes[k].dtype for k in codes)
    assert run.kept("codes", "b") is None and run.kept("other", "a") is None
    run.keep("codes", {"codes": torch.zeros(1)}, "b")
    assert run.kept("codes", "a") is None and run.kept("codes", "b") is not None


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "codes.safetensors").unlink(),
        lambda folder: (folder / "codes.safetensors").write_bytes(b"short"),
        lambda folder: (folder / "codes.json").write_text("{"),
        lambda folder: (folder / "codes.json").write_text('{"key": "a"}'),
        lambda folder: (folder / "codes.json").write_text('["a"]'),
        lambda folder: (folder / "codes.json").unlink(),
        lambda folder: (folder / "codes.safetensors").rename(folder / "x") or (folder / "codes.safetensors").mkdir(),
    ],
)
def test_damaged_kept_tensors_are_none(run: Run, damage) -> None:
    run.keep("codes", {"codes": torch.arange(1000)}, "a")
    damage(run.path / "kept")
    assert run.kept("codes", "a") is None


def test_changed_bytes_of_kept_tensors_are_noticed(run: Run) -> None:
    run.keep("codes", {"codes": torch.arange(1000)}, "a")
    path = run.path / "kept" / "codes.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert run.kept("codes", "a") is None


def test_keeping_refuses_names_and_leaves_nothing_half_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("../codes", "", "a/b"):
        with pytest.raises(ValueError, match="cannot be a file"):
            run.keep(name, {}, "a")
        with pytest.raises(ValueError, match="cannot be a file"):
            run.kept(name, "a")
    monkeypatch.setattr(run_module, "_file_sha256", lambda path: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(SaveError):
        run.keep("codes", {"codes": torch.zeros(1)}, "a")
    assert list((run.path / "kept").iterdir()) == []
    with pytest.raises(InputError, match="kept by Run itself"):
        run.write_bytes("kept/codes.safetensors", b"")
