"""What races: the cases, the providers that take part in one, and the calls that are timed."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.correctness import Verdict
from benchmarks.providers import Function, Inputs, Provider
from benchmarks.results import Row
from benchmarks.shapes import DTYPES, OPS, Op, Shape
from benchmarks.timing import Call, Prepared, Timer


@dataclasses.dataclass(frozen=True)
class Case:
    """One set of inputs of one op."""

    name: str
    shape: Shape
    dtype: str
    layout: str

    @property
    def op(self) -> Op:
        """The op."""
        return OPS[self.name]

    def key(self, **more: str) -> Row:
        """Return what tells its rows from the others'."""
        key = {"op": self.name, "shape": self.shape.name, "dtype": self.dtype}
        return {**key, "layout": self.layout, **more}

    def floor_bytes(self, direction: str) -> int:
        """Return the fewest bytes that must move."""
        return self.op.floor_bytes(self.shape.dims, DTYPES[self.dtype].itemsize, direction)

    def draw(self, device: torch.device) -> Inputs:
        """Return fresh random inputs."""
        return self.op.draw(self.shape.dims, self.layout, DTYPES[self.dtype], device)


@dataclasses.dataclass
class Contender:
    """A provider on a case: its function if it is right, else why there is none.

    Attributes:
        sets: Its inputs, one tuple for each call of a lap.
        timed: What times it in one direction.
    """

    provider: Provider
    status: str = "ok"
    reason: str | None = None
    function: Function | None = None
    sets: Sequence[Inputs] = ()
    verdict: Verdict = dataclasses.field(default_factory=Verdict)
    saved_bytes: int | None = None
    timed: Prepared | None = None
    host_seconds: float | None = None
    peak_bytes: int | None = None

    def fail(self, status: str, reason: str) -> None:
        """Take it out of the race."""
        self.status, self.reason, self.function, self.timed = status, reason, None, None


def make_calls(
    function: Function, sets: Sequence[Inputs], grads: Sequence[Tensor], direction: str
) -> list[Call]:
    """Return one call for each set; the forward passes of backward passes are made here."""
    if direction == "forward":
        return [functools.partial(function, *inputs) for inputs in sets]

    def both(inputs: Inputs, grad: Tensor) -> object:
        return torch.autograd.grad(function(*inputs), inputs, grad)

    if direction == "both":
        return [functools.partial(both, *pair) for pair in zip(sets, grads, strict=True)]
    return [
        functools.partial(torch.autograd.grad, function(*inputs), inputs, grad, retain_graph=True)
        for inputs, grad in zip(sets, grads, strict=True)
    ]


def saved_bytes(function: Function, inputs: Inputs) -> int:
    """Return the bytes that the backward pass keeps and that are no input's."""
    given = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        y = function(*inputs)  # alive until counted, so that no address is used again
    total = sum(size for address, size in kept.items() if address not in given)
    del y
    return total


class _Empty(torch.autograd.Function):
    """Autograd's own cost on the host."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def empty_host_seconds(timer: Timer) -> dict[str, float | None]:
    """Return the host's time for an autograd function that does nothing, by direction."""
    with timer.context():
        x = torch.randn(8, device=timer.device, requires_grad=True)
        grad = torch.randn_like(x)
    hosts = {}
    for direction in ("forward", "backward", "both"):
        with timer.context():
            (call,) = make_calls(_Empty.apply, [(x,)], [grad], direction)
        hosts[direction] = timer.host_seconds(call)
    return hosts
