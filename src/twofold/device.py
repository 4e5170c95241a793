"""Which device and which precision a run uses, and what becomes of memory between its steps."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from twofold.errors import InputError, unknown

PRECISIONS = ("float32", "bf16", "fp16")


def choose_device(name: str | None, *, local_rank: int | None = None) -> torch.device:
    """The device called `name`; None: a GPU if there is one, else the CPU.

    local_rank: the number of this process among several on this machine; each takes the GPU of its number.

    Raises `InputError` if that device is not there, or if a launcher started several processes of what is done by one.
    """
    if local_rank is None and os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        raise InputError("this is done by one process and was launched in several; start it without a launcher")
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and local_rank:
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise unknown("device", name, ("cpu", "cuda", "cuda:0", "mps")) from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count <= (device.index or 0):
            raise InputError(f"device {name!r} is not there: {count} CUDA devices are available; use --device cpu")
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise InputError("device 'mps' is not there; use --device cpu")
    elif device.type != "cpu":
        raise unknown("device", name, ("cpu", "cuda", "cuda:0", "mps"))
    return device


def autocast(device: torch.device, precision: str) -> Any:
    """The context a step runs in: nothing for "float32", autocast to that dtype for "bf16" and "fp16"."""
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's names for what `mallopt` sets (malloc.h)."""
OWN_WORDS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")
"""Variables of the environment by which a user sets the same."""


@contextmanager
def keeping_memory(device: torch.device) -> Iterator[None]:
    """While it is open, memory that is freed stays with the process; at the end what lies free is given back.

    A step frees what it allocated, and glibc hands large blocks back to the system, which has to find and clear pages
    for the same blocks in the next step. On the CPU that may take a third of a step. Nothing is done for other
    devices, without glibc, and where the environment already says how it is to be (MALLOC_TRIM_THRESHOLD_ and the
    like, GLIBC_TUNABLES).
    """
    said = any(word in os.environ for word in OWN_WORDS) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if device.type != "cpu" or said or platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 2**30)
    libc.mallopt(M_TRIM_THRESHOLD, -1)  # never
    try:
        yield
    finally:
        # Not the values a process starts with, but those that glibc moves to once large blocks have been freed.
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)
        libc.mallopt(M_TRIM_THRESHOLD, 2**26)
        libc.malloc_trim(0)


def by_pixel(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch with its images, which are the tensors of four dimensions, laid out by pixel."""
    return {k: v.contiguous(memory_format=torch.channels_last) if v.dim() == 4 else v for k, v in batch.items()}


class LossScale:
    """The number that losses are multiplied by so that float16 holds their gradients: halved when a gradient overflows,
    doubled after `patience` steps without (Micikevicius et al. 2018, §3.2). Always 1 for other precisions."""

    START, LARGEST = 2.0**14, 2.0**24

    def __init__(self, precision: str, *, patience: int = 1000):
        self.moves = precision == "fp16"
        self.value = self.START if self.moves else 1.0
        self.good, self.patience = 0, patience

    def restore(self, record: Any) -> None:
        """Take up {"value", "good"} of a checkpoint. Raises `InputError` if that is none."""
        if not self.moves or record is None:
            return
        value, good = (record.get(k) if isinstance(record, dict) else None for k in ("value", "good"))
        if not isinstance(value, float) or not 2 <= value <= self.LARGEST or not isinstance(good, int) or good < 0:
            raise InputError(f"this checkpoint's loss scale is {str(record)[:80]}, which is none; resume from another")
        self.value, self.good = value, good

    def update(self, skipped: bool) -> None:
        """Take note of a step, and whether any of its plays overflowed and was skipped."""
        if not self.moves:
            return
        self.good = 0 if skipped else self.good + 1
        if skipped:
            # Not 1: that would switch the skipping of overflowed plays off.
            self.value = max(self.value / 2, 2.0)
        elif self.good >= self.patience:
            self.value, self.good = min(2 * self.value, self.LARGEST), 0


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory this process has held: of the device on CUDA, resident on the CPU (0 where unknown)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
        import sys
    except ImportError:  # no such count on Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
