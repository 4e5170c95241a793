"""`torch.utils.data.Dataset` → `Data`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from twofold.data.arrays import Options, data_from_arrays
from twofold.data.split import Data
from twofold.errors import InputError


def load_items(dataset: Dataset[Any], options: Options) -> Data:
    """A map-style dataset with items x or (x, y), x a tensor, an array or a PIL image.

    Every item is read once and kept. Raises `InputError` if the items differ in shape or are of another form, or if
    the whole would not fit in memory.
    """
    name = type(dataset).__name__
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise InputError(f"{name}: only map-style datasets can be used, with a length and items by number")
    length = len(dataset)
    if length == 0:
        raise InputError(f"{name}: the dataset is empty")
    store, labels = None, []
    for i in range(length):
        x, y = _item(dataset[i], name, i)
        if store is None:
            store = _storage(x, length, name, options)
        if x.shape != store.shape[1:] or x.dtype != store.dtype:
            raise InputError(
                f"{name}: item 0 is {store.dtype} {store.shape[1:]} and item {i} is {x.dtype} {x.shape}; "
                "make them alike with the dataset's transform"
            )
        store[i] = x
        labels.append(y)
    if any(y is None for y in labels) != all(y is None for y in labels):
        raise InputError(f"{name}: some items have labels and some do not")
    first = dataset[0]
    is_tensor = isinstance(first[0] if isinstance(first, tuple | list) else first, Tensor)
    examples = torch.from_numpy(store) if is_tensor else store
    return data_from_arrays(name, examples, None if labels[0] is None else labels, options=options)


def _item(item: Any, name: str, index: int) -> tuple[np.ndarray, Any]:
    x, y = item, None
    if isinstance(item, tuple | list):
        if not 1 <= len(item) <= 2:
            raise InputError(f"{name}: item {index} has {len(item)} parts; give x or (x, y)")
        x, y = item[0], item[1] if len(item) == 2 else None
    if isinstance(y, Tensor | np.ndarray | np.generic):
        if y.ndim:
            raise InputError(f"{name}: the label of item {index} has shape {tuple(y.shape)}; give one number")
        y = y.item()
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        return (x.float() if x.dtype == torch.bfloat16 else x).numpy(), y
    if isinstance(x, np.ndarray | np.generic) or hasattr(x, "__array_interface__"):
        return np.asarray(x), y
    raise InputError(f"{name}: item {index} is a {type(x).__name__}; give a tensor, an array or a PIL image")


def _storage(x: np.ndarray, length: int, name: str, options: Options) -> np.ndarray:
    if x.nbytes * length > options.memory_limit_bytes:
        raise InputError(
            f"{name}: {length} items of {x.nbytes} bytes need {x.nbytes * length / 2**30:.1f} GiB, more than the limit "
            f"of {options.memory_limit_bytes / 2**30:.1f} GiB for data held in memory; give a folder or a .npy file, "
            "which are read on access"
        )
    return np.empty((length, *x.shape), x.dtype)
