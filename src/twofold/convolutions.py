"""Gradients of convolutions as matrix products, where torch's own are slow: on the CPU, for small pictures.

On the CPU torch has oneDNN compute a convolution's gradients, by kernels that work along rows of pixels. Where only a
few pixels are left, as at the end of a critic or at the start of a generator, they reach an eighth to a thirtieth of
what the processor does in a matrix product, and with large weights they are most of a step. The gradient of a weight is
one product: of the gradients at the output's pixels and the windows of the input that they look at. Where it is faster
it takes the place of oneDNN's while training runs; docs/performance.md has the measurements that the rules here are
read off, and `bench/speed.py convolutions` repeats them.

Only the kernel that autograd calls is exchanged. What is differentiated, gradients of gradients, other devices and
other types of numbers are as they were, and results are equal up to rounding.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PIXELS = 1
"""In float32: output pixels of one picture up to which products are faster (of the input, if it is transposed)."""
PIXELS_BF16, PIXELS_BF16_STRIDED = 16, 64
"""The same in bfloat16, and there with a stride: oneDNN's kernels are slower at strides."""
LARGE = 2**17
"""Weights from which on it matters in float32. The detour through Python costs every convolution some 8 µs."""
PROCESSOR = Path("/proc/cpuinfo")


@contextmanager
def as_products(nets: nn.Module, device: torch.device, precision: str) -> Iterator[None]:
    """While it is open, convolutions on the CPU have their gradients computed in the faster way, if any of `nets` could
    gain by it in that precision ("float32", "bf16", "fp16")."""
    kernels = [w.numel() for w in nets.parameters() if w.dim() > 2]
    gains = bool(kernels) and fast_bf16() if precision == "bf16" else max(kernels, default=0) >= LARGE
    if device.type != "cpu" or precision == "fp16" or not gains:
        yield
        return
    _Exchange.enter()
    try:
        yield
    finally:
        _Exchange.leave()


@cache
def fast_bf16() -> bool:
    """Whether this processor is of the kind that the rules for bfloat16 were measured on: it multiplies in bfloat16
    (AVX512_BF16), but not by tiles (AMX), for which oneDNN has other kernels. False where Linux does not tell."""
    try:
        flags = next((line for line in PROCESSOR.read_text().splitlines() if line.startswith("flags")), "").split()
    except OSError:
        return False
    return "avx512_bf16" in flags and "amx_bf16" not in flags


class _Exchange:
    """The kernel is the process's: exchanged when the first asks for it, put back when the last is done."""

    lock = threading.Lock()
    users = 0
    library: torch.library.Library | None = None

    @classmethod
    def enter(cls) -> None:
        with cls.lock:
            cls.users += 1
            if cls.library is None:
                cls.library = torch.library.Library("aten", "IMPL")
                cls.library.impl("convolution_backward", _gradients, "CPU")

    @classmethod
    def leave(cls) -> None:
        with cls.lock:
            cls.users -= 1
            if cls.library is not None and not cls.users:
                cls.library._destroy()  # what happens to it at the end of the process, when it is deleted
                cls.library = None


def _gradients(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    biases: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of (input, weight, bias) that are wanted: torch's convolution_backward."""

    def torchs_own(wanted: Sequence[bool]) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        operator = torch.ops.aten.convolution_backward.default
        return operator._op_dk(
            torch._C.DispatchKey.CompositeExplicitAutograd,
            gradient, x, weight, biases, stride, padding, dilation, transposed, output_padding, groups, wanted,
        )  # fmt: skip

    small, large = (x, gradient) if transposed else (gradient, x)
    plain = groups == 1 and all(d == 1 for d in dilation) and small.numel() and small.dtype == weight.dtype
    if not (plain and wanted[1] and pays(small, stride)):
        return torchs_own(wanted)
    if not wanted[0]:
        of_input = None
    elif math.prod(small.shape[2:]) == 1 and not transposed:
        of_input = input_gradient(gradient, x, weight, padding)
    else:
        of_input = torchs_own([True, False, False])[0]
    of_bias = gradient.sum([0, *range(2, gradient.dim())]) if wanted[2] else None
    return of_input, weight_gradient(small, large, weight, stride, padding), of_bias


def pays(small: Tensor, stride: Sequence[int]) -> bool:
    """Whether the product is faster, where `small` (batch, channels, …) is what has a convolution's fewer pixels."""
    if small.dtype == torch.bfloat16 and fast_bf16():
        most = PIXELS_BF16_STRIDED if max(stride) > 1 else PIXELS_BF16
    elif small.dtype == torch.float32:
        most = PIXELS
    else:
        return False
    return math.prod(small.shape[2:]) <= most


def weight_gradient(
    small: Tensor, large: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """The gradient of a convolution's weight (small's channels, large's channels, …kernel), laid out as it is.

    small: the gradient at the convolution's output; of a transposed one, its input. large: the other of the two.
    """
    kernel, rows = weight.shape[2:], small.shape[1]
    by_pixel = weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    if math.prod(small.shape[2:]) == 1 and not by_pixel:
        # One window: it lies as the weight does already.
        window = F.pad(large, _beyond(large, weight, padding))
        return (small.flatten(1).t() @ window.flatten(1)).view(weight.shape)
    windows = large.movedim(1, -1)
    if any(padding):
        windows = F.pad(windows, [0, 0, *(p for size in reversed(padding) for p in (size, size))])
    else:
        windows = windows.contiguous()
    for k, (size, step) in enumerate(zip(kernel, stride, strict=True), 1):
        windows = windows.unfold(k, size, step)
    # (batch, …pixels, channels, …kernel) → (batch · pixels, kernel · channels): channels lie side by side, so that each
    # pixel of a window is copied in one go.
    columns = windows.movedim(len(kernel) + 1, -1).reshape(-1, kernel.numel() * large.shape[1])
    product = small.movedim(1, 0).reshape(rows, -1) @ columns
    gradient = product.view(rows, *kernel, -1).movedim(-1, 1)
    return gradient.contiguous(memory_format=torch.channels_last if by_pixel else torch.contiguous_format)


def input_gradient(gradient: Tensor, x: Tensor, weight: Tensor, padding: Sequence[int]) -> Tensor:
    """The gradient of the input of a convolution whose output is a single pixel: of one window."""
    window = (gradient.flatten(1) @ weight.flatten(1)).view(len(x), *weight.shape[1:])
    return F.pad(window, [-n for n in _beyond(x, weight, padding)])


def _beyond(x: Tensor, weight: Tensor, padding: Sequence[int]) -> list[int]:
    """How far the first window reaches beyond x on each side, in the order that `F.pad` takes."""
    pairs = [(p, k - p - size) for p, size, k in zip(padding, x.shape[2:], weight.shape[2:], strict=True)]
    return [n for pair in reversed(pairs) for n in pair]
