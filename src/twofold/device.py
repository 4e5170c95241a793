"""Which device and which precision a run uses."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any

import torch

from twofold.errors import InputError, unknown

PRECISIONS = ("float32", "bf16")


def choose_device(name: str | None) -> torch.device:
    """The device called `name`; None: a GPU if there is one, else the CPU.

    Raises `InputError` if that device is not there.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("this version trains in one process and was launched in several; start it without a launcher")
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
    """The context a step runs in: nothing for "float32", bfloat16 autocast for "bf16"."""
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


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
