"""Networks compiled by torch.compile while a step is taken, and as they are everywhere else.

Only calls are compiled: a network keeps its parameters, its names in checkpoints and its copies. Outside of `stepping`
(samples, probes, figures, the model that `train` returns) nothing is compiled, so a run compiles for the batches of its
game alone, and what is measured during training is what a loaded model gives.

Two things that torch's compiled functions cannot do are seen to here. A gradient penalty differentiates twice, so its
own call of the critic is eager (`terms.penalty.differentiating`). And they may throw the tensors of a forward pass away
in the backward pass, where a phase may have several backward passes over one graph: that is switched off.
"""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from twofold.errors import InputError, unknown
from twofold.terms.penalty import differentiating

BACKENDS = ("inductor", "aot_eager")
"""What generates the code: kernels in C++ or Triton, or torch's own kernels called from the traced graph, which is no
faster and needs no compiler (for tests and for finding faults)."""
VARIANTS = 32
"""How often one network with the same parameters learning may be compiled: for other shapes, modes, inputs that want a
gradient. Beyond it calls are eager."""
REASON = 200
"""Characters of what torch says when it cannot compile."""


class CompileError(RuntimeError):
    """A network could not be compiled. The message is one line."""


def check(backend: str, device: torch.device) -> None:
    """Raise `InputError` unless `backend` is known and compiles and differentiates a small function on `device`."""
    if backend not in BACKENDS:
        raise unknown("value for compile", backend, BACKENDS)
    x = torch.ones(4, device=device, requires_grad=True)
    try:
        with _prepared(), torch.random.fork_rng(devices=[]):
            torch.autograd.grad(torch.compile(lambda x: (x.sin() * 2).sum(), backend=backend, dynamic=False)(x), x)
    except Exception as error:  # torch's own, and whatever a missing compiler or a broken cache raises in it
        raise InputError(
            f"torch.compile with {backend} does not work here: {_reason(error)}; it needs a C++ compiler on the CPU "
            "and Triton on a GPU. Leave --compile out"
        ) from None


class Compiled:
    """The compiled calls of some networks; with no `backend`, nothing."""

    def __init__(self, nets: Mapping[str, nn.Module], backend: str | None):
        self._eager: list[str] = []
        """The networks whose call in a penalty was eager, and of these …"""
        self._told = 0
        """… how many were told of."""
        self._calls = {} if backend is None else {net: self._call(name, net, backend) for name, net in nets.items()}

    def _call(self, name: str, net: nn.Module, backend: str) -> Callable[..., Any]:
        parameters = list(net.parameters())
        traced: dict[tuple[bool, ...], Callable[..., Any]] = {}

        def call(*inputs: Any, **named: Any) -> Any:
            if differentiating():
                if name not in self._eager:
                    self._eager.append(name)
                return net._call_impl(*inputs, **named)
            # A function for each set of parameters that learn: torch 2.6 does not look whether they still do when it
            # takes up compiled code, and would leave out their gradients.
            learning = tuple([w.requires_grad for w in parameters])
            if learning not in traced:
                traced[learning] = _traced(name, backend)
            try:
                return traced[learning](net, *inputs, **named)
            except _compiler_errors() as error:
                raise CompileError(f"{name} could not be compiled: {_reason(error)}; leave --compile out") from error

        return call

    def newly_eager(self) -> list[str]:
        """The networks that a penalty has called for the first time since this was last asked."""
        new, self._told = self._eager[self._told :], len(self._eager)
        return new

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Calls of the networks are compiled while this is open."""
        if not self._calls:
            yield
            return
        for net, call in self._calls.items():
            net._compiled_call_impl = call
        try:
            yield
        except _compiler_errors() as error:  # of a backward pass, which is compiled when it first runs
            raise CompileError(
                f"a backward pass could not be compiled: {_reason(error)}; leave --compile out"
            ) from error
        finally:
            for net in self._calls:
                del net._compiled_call_impl


@contextmanager
def compiled(nets: nn.ModuleDict, backend: str | None) -> Iterator[Compiled]:
    """The networks' compiled calls; while this is open torch compiles as the steps of a game need it."""
    with _prepared() if backend is not None else nullcontext():
        yield Compiled({name: net for name, net in nets.items() if any(True for _ in net.parameters())}, backend)


def _traced(name: str, backend: str) -> Callable[..., Any]:
    # torch keeps compiled code with the code of a function, and counts it there: so each function has its own.
    code = _forward.__code__.replace(co_name=f"forward_{name}")
    return torch.compile(types.FunctionType(code, _forward.__globals__), backend=backend, dynamic=False)


def _forward(net: nn.Module, *inputs: Any, **named: Any) -> Any:
    return net._call_impl(*inputs, **named)


@contextmanager
def _prepared() -> Iterator[None]:
    import torch._dynamo
    import torch._functorch.config

    with ExitStack() as settings:
        settings.enter_context(torch._functorch.config.patch(donated_buffer=False))
        settings.enter_context(torch._dynamo.config.patch(cache_size_limit=VARIANTS))
        settings.enter_context(warnings.catch_warnings())
        # Both are torch's own: it reads the attribute of every tensor that traced code is given, and imports with a
        # function that it deprecates.
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        warnings.filterwarnings("ignore", message="`torch.jit.script", category=DeprecationWarning)
        yield


def _compiler_errors() -> tuple[type[Exception], ...]:
    from torch._dynamo.exc import TorchDynamoException

    return (TorchDynamoException,)


def _reason(error: Exception) -> str:
    """The first line of an error that says something; of the backend's own, where it is one."""
    error = getattr(error, "inner_exception", error)
    lines = (line.strip() for line in str(error).splitlines())
    return next((line[:REASON] for line in lines if line), type(error).__name__)
