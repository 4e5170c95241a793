"""Networks that are trained once and kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from twofold.errors import InputError
from twofold.run import write_file


def train_once(net: Any, train: Callable[[], None], path: Path | None, *, what: str) -> None:
    """Give `net` the weights kept at `path`, or `train` it and keep them there; with no path, train it.

    Raises `InputError`, naming it as the cached `what`, if the file is there and cannot be read.
    """
    from safetensors.torch import load_file, save

    if path is not None and path.is_file():
        try:
            net.load_state_dict(load_file(path))
        except Exception as error:
            raise InputError(f"the cached {what} {path} cannot be read ({type(error).__name__}); remove it") from None
        return
    train()
    if path is not None:
        write_file(path, save({name: w.contiguous() for name, w in net.state_dict().items()}))
