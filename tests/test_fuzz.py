"""The readers of files, given damaged and hostile ones: bench/fuzz.py at the size of a test, and hypothesis."""

from __future__ import annotations

import importlib.util
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twofold.data import load
from twofold.errors import InputError

BENCH = Path(__file__).resolve().parent.parent / "bench" / "fuzz.py"


def _module(path: Path):
    spec = importlib.util.spec_from_file_location("fuzz", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fuzz = _module(BENCH)
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs an alarm")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return fuzz.Corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_damaged_and_hostile_files_are_read_or_refused(target, corpus):
    for seed in range(15 if target in ("state", "tensors", "bombs") else 40):
        assert (found := fuzz.attempt(target, corpus, seed)) is None, f"{target} input {seed}: {found}"


def test_what_the_fuzzer_would_call_a_finding(corpus, monkeypatch):
    """The judge can say no: a traceback, a message of two lines, a reader that never ends."""

    def crash(corpus, rng):
        raise KeyError("x")

    def chatty(corpus, rng):
        raise InputError("two\nlines")

    def endless(corpus, rng):
        while True:
            pass

    monkeypatch.setattr(fuzz, "SECONDS", 0.05)
    for broken, word in ((crash, "KeyError"), (chatty, "not one line"), (endless, "hangs")):
        monkeypatch.setitem(fuzz.TARGETS, "broken", broken)
        assert word in fuzz.attempt("broken", corpus, 0)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["x.npy", "x.npz", "x-idx3-ubyte", "x.csv", "x.tsv", "x.idx.gz"]),
    content=st.binary(max_size=300) | st.text(max_size=200).map(str.encode),
)
def test_any_bytes_under_any_known_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with suppress(InputError):
        load(tmp_path / name)
