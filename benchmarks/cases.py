"""A case is an op with one shape, dtype and layout. This module makes the calls to time."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.ops import DTYPES, OPS, Op
from benchmarks.providers import Function, Inputs
from benchmarks.rows import Row
from benchmarks.shapes import Shape
from benchmarks.timers import Call, Timer


@dataclasses.dataclass(frozen=True)
class Case:
    """One set of inputs of one op."""

    name: str
    shape: Shape
    dtype: str
    layout: str

    @property
    def op(self) -> Op:
        """The op of this case."""
        return OPS[self.name]

    def key(self, **more: str) -> Row:
        """Return the fields that identify the case's rows."""
        key = {"op": self.name, "shape": self.shape.name, "dtype": self.dtype}
        return {**key, "layout": self.layout, **more}

    def floor_bytes(self, direction: str) -> int:
        """Return the smallest number of bytes that the op has to read and write."""
        return self.op.floor_bytes(self.shape.dims, DTYPES[self.dtype].itemsize, direction)

    def draw(self, device: torch.device) -> Inputs:
        """Return fresh random inputs."""
        return self.op.draw(self.shape.dims, self.layout, DTYPES[self.dtype], device)


def make_calls(
    function: Function, sets: Sequence[Inputs], grads: Sequence[Tensor], direction: str
) -> list[Call]:
    """Return one call for each set of inputs.

    A backward pass computes the gradients of the inputs, and also of the parameters if ``function``
    is a layer. The forward passes that precede backward passes run here, outside of the
    measurement.
    """
    if direction == "forward":
        return [functools.partial(function, *inputs) for inputs in sets]
    parameters = tuple(function.parameters()) if isinstance(function, torch.nn.Module) else ()

    def both(inputs: Inputs, grad: Tensor) -> object:
        return torch.autograd.grad(function(*inputs), (*inputs, *parameters), grad)

    pairs = list(zip(sets, grads, strict=True))
    if direction == "both":
        return [functools.partial(both, *pair) for pair in pairs]
    backward = functools.partial(torch.autograd.grad, retain_graph=True)
    return [
        functools.partial(backward, function(*inputs), (*inputs, *parameters), grad)
        for inputs, grad in pairs
    ]


def saved_bytes(function: Function, inputs: Inputs) -> int:
    """Return the bytes that are saved for the backward pass, apart from the inputs."""
    given = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        y = function(*inputs)  # keep it alive until the count, so that no address is used twice
    total = sum(size for address, size in kept.items() if address not in given)
    del y
    return total


class _Empty(torch.autograd.Function):
    """An operation that does nothing: its time is the overhead of autograd."""

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
