"""What becomes of memory between the steps of a run."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from twofold import device as device_module
from twofold.device import OWN_WORDS, keeping_memory

CPU = torch.device("cpu")
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc here")


def faults() -> int:
    """Pages that the system had to find for steps that each use and free 64 MiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(2**24).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch):
    for word in (*OWN_WORDS, "GLIBC_TUNABLES"):
        monkeypatch.delenv(word, raising=False)


KEEPING = """
from pathlib import Path
from test_device import CPU, faults, keeping_memory
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])
outside, before = faults(), resident()
with keeping_memory(CPU):
    faults()
    inside, kept = faults(), resident()
print(outside, inside, before, kept, resident())
"""


@glibc
@pytest.mark.skipif(sys.platform != "linux", reason="no /proc here")
def test_a_steps_memory_is_used_again_by_the_next_and_given_back_at_the_end():
    """In pages, and in a process of its own: what others have left lying keeps some of it from going back."""
    here = Path(__file__).parent
    said = subprocess.run([sys.executable, "-c", KEEPING], cwd=here, capture_output=True, text=True)
    outside, inside, before, kept, after = map(int, said.stdout.split())
    step = 2**26 // resource.getpagesize()
    assert inside * 8 < outside, "pages that the system had to find"
    assert kept - before > 0.9 * step, "the freed step was kept"
    assert after - before < 0.1 * step, "and given back"


@glibc
@pytest.mark.parametrize("word", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_environment_says_holds(monkeypatch, word):
    monkeypatch.setenv(word, "glibc.malloc.trim_threshold=131072" if word == "GLIBC_TUNABLES" else "131072")
    monkeypatch.setattr(device_module.ctypes, "CDLL", lambda _: pytest.fail("glibc was told something else"))
    with keeping_memory(CPU):
        pass


def test_other_devices_and_other_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(device_module.ctypes, "CDLL", lambda _: pytest.fail("the allocator was touched"))
    with keeping_memory(torch.device("meta")):
        pass
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    with keeping_memory(CPU):
        pass


@glibc
def test_memory_goes_back_also_after_an_error():
    with pytest.raises(RuntimeError, match="broken"), keeping_memory(CPU):
        raise RuntimeError("broken step")
    assert faults() > 8
