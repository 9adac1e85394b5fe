"""What the ``cpu`` benchmark knows of an op: two callables on the same inputs, and shapes."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

SHAPES = ((1, 128), (256, 1024), (8, 197, 768))  # a single row, a small batch, ViT-B's tokens
MAPS = ((2, 8, 4, 4), (8, 64, 56, 56))
DROP_RATE = 0.1

Shape = tuple[int, ...]
Direction = Literal["forward", "both"]


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Two callables on the same inputs, and which of these to differentiate with respect to."""

    ours: Callable[[], Any]
    peer: Callable[[], Any]
    inputs: tuple[Tensor, ...]


@dataclasses.dataclass(frozen=True)
class Op:
    """A public function or layer and what it is measured against.

    Attributes:
        peer: Name of what it replaces.
        make: Makes both for a shape and a type.
        shapes: Input shapes.
        directions: ``"forward"``, recording for the backward pass, or ``"both"`` passes.
    """

    peer: str
    make: Callable[[Shape, torch.dtype], Candidates]
    shapes: tuple[Shape, ...] = SHAPES
    directions: tuple[Direction, ...] = ("forward", "both")


def random(shape: Shape, dtype: torch.dtype) -> Tensor:
    """Return an input, whose gradient is to be taken."""
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def on_x(shape: Shape, dtype: torch.dtype, *, ours: Any, peer: Any) -> Candidates:
    """Apply each to a random tensor; ``ours`` and ``peer`` are functions or layers."""
    x = random(shape, dtype)
    parameters = ours.parameters() if isinstance(ours, torch.nn.Module) else ()
    same = peer.parameters() if isinstance(peer, torch.nn.Module) else ()
    inputs = (x, *parameters, *same)
    return Candidates(lambda: ours(x), lambda: peer(x), inputs)
