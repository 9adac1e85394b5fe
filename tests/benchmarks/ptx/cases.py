"""Calls of every function whose compiled kernels are executed: shapes, types and layouts."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

import lightning_kernels as lk
from benchmarks.ops import DTYPES, OPS, Op
from benchmarks.ptx import Options, Record, compiled_on_cpu
from benchmarks.shapes import Dims
from tests.kernels.reference import assert_as_right, run

# Tensors of given dimensions, that lie in memory as named.
LAYOUTS: dict[str, Callable[[Dims], Tensor]] = {
    "contiguous": torch.randn,
    "channels last": lambda dims: torch.randn(dims).to(
        memory_format=torch.channels_last if len(dims) == 4 else torch.channels_last_3d
    ),
    "part": lambda dims: torch.randn(dims[0], 3, *dims[1:])[:, 1],
    "padded": lambda dims: torch.randn(*dims[:-1], dims[-1] + 3)[..., 1:-2],
    "off by one": lambda dims: torch.randn(math.prod(dims) + 1)[1:].view(dims),
    "transposed": lambda dims: torch.randn(dims[::-1]).permute(*reversed(range(len(dims)))),
    "repeated": lambda dims: torch.randn(1, *dims[1:]).expand(dims),
}

# Functions whose optional tensors are left out, besides those of `benchmarks.ops`, with torch's.
_BARE: dict[str, Op] = {
    "layer_norm, bare": Op(
        lambda x: lk.layer_norm(x, x.shape[-1:]), lambda x: F.layer_norm(x, x.shape[-1:])
    ),
    "rms_norm, bare": Op(
        lambda x: lk.rms_norm(x, x.shape[-1:], eps=1e-5),
        lambda x: F.rms_norm(x, [*x.shape[-1:]], eps=1e-5),
    ),
    "add_dropout_layer_norm, bare": Op(
        lambda x: lk.add_dropout_layer_norm(x, x, x.shape[-1:])[0],
        lambda x: F.layer_norm(x + x, x.shape[-1:]),
    ),
    "batch_norm, bare": Op(
        lambda x: lk.batch_norm(x, None, None, training=True),
        lambda x: F.batch_norm(x, None, None, training=True),
    ),
    "group_norm, bare": Op(lambda x: lk.group_norm(x, 4), lambda x: F.group_norm(x, 4)),
    "instance_norm, bare": Op(lk.instance_norm, F.instance_norm),
    "dropout_activation, bare": Op(
        lambda x: lk.dropout_activation(x, "silu", training=False), F.silu, activation="silu"
    ),
}
ALL_OPS = OPS | _BARE


class Case(NamedTuple):
    """A function, forward and backward.

    Attributes:
        op: Key of :data:`ALL_OPS`.
        dims: Dimensions of the first input.
        dtype: Key of :data:`benchmarks.ops.DTYPES`.
        layout: Key of :data:`LAYOUTS`, for each input of these dimensions.
        target: Compute capability times ten.
        at_the_floor: Whether the first input and all tensors of its size move as often as the op's
            floor says. That needs inputs that are dense and so large that sums of programs and
            statistics are smaller.
    """

    op: str
    dims: Dims
    dtype: str = "bf16"
    layout: str = "contiguous"
    target: int = 90
    at_the_floor: bool = False

    def __str__(self) -> str:
        size = "x".join(map(str, self.dims))
        return f"{self.op}-{size}-{self.dtype}-{self.layout}-{self.target}"

    def draw(self) -> tuple[Tensor, ...]:
        """Return new inputs."""
        sizes = self.dims, *ALL_OPS[self.op].parameters(self.dims)
        return tuple(
            _in_type(LAYOUTS[self.layout if size == self.dims else "contiguous"](size), self.dtype)
            for size in sizes
        )

    @property
    def input_bytes(self) -> int:
        """Size of the first input."""
        return math.prod(self.dims) * DTYPES[self.dtype].itemsize


def _in_type(x: Tensor, dtype: str) -> Tensor:
    """Return ``x`` in another type, with the same strides and gaps."""
    whole = torch.empty(0).set_(x.untyped_storage()).to(DTYPES[dtype])
    return whole.as_strided(x.shape, x.stride(), x.storage_offset())


@functools.cache
def executed(case: Case, approximation_error: float | None = None) -> Record:
    """Execute the case, check its results against float64, and return the record of its launches.

    The limit of errors is that of :func:`tests.kernels.reference.assert_as_right`, and that on a
    GPU if ``approximation_error`` is given, see :class:`benchmarks.ptx.Options`.
    """
    options = Options(approximation_error=approximation_error)
    op = ALL_OPS[case.op]
    records = []

    def results() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        inputs = case.draw()
        grad = torch.randn(case.dims).to(inputs[0].dtype)
        theirs = run(op.eager, inputs, grad)
        exact = run(op.eager, [t.double() for t in inputs], grad.double())
        leaves = [t.detach().requires_grad_() for t in inputs]  # with the strides of the inputs
        with compiled_on_cpu(case.target, options) as record:
            y = op.ours(*leaves)
            gradients = torch.autograd.grad(y, leaves, grad)
        records.append(record)
        return zip((y.detach(), *gradients), theirs, exact, strict=True)

    on_gpu = approximation_error is not None
    assert_as_right(results, math.prod(case.dims), 4, op.activation, on_gpu)
    return records[0]


# The cases of `make test`: each kernel at least once.
FEW = [
    Case("layer_norm", (48, 768), at_the_floor=True),
    Case("layer_norm", (21, 77), "fp32", "off by one"),
    Case("layer_norm2d", (2, 40, 7, 9)),
    Case("rms_norm", (20, 128), layout="part"),
    Case("rms_norm", (3, 8200), "fp32"),
    Case("add_dropout_layer_norm", (48, 256), at_the_floor=True),
    Case("add_dropout_rms_norm", (15, 100), "fp32", "padded"),
    Case("batch_norm", (8, 16, 7, 7)),
    Case("batch_norm", (300, 20), "fp32"),
    Case("batch_norm_relu", (4, 8, 14, 14), "fp32", "channels last"),
    Case("batch_norm_add_relu", (8, 64, 8, 8), layout="channels last"),
    Case("group_norm", (2, 64, 5, 7), "fp32"),
    Case("group_norm_silu", (2, 64, 12, 12), layout="channels last", at_the_floor=True),
    Case("instance_norm", (1, 2, 136, 140)),
    Case("batch_norm, bare", (4, 8, 5, 5), "fp32"),
    Case("group_norm, bare", (2, 16, 9, 9)),
    Case("stochastic_depth", (8, 24, 14, 14), at_the_floor=True),
    Case("dropout_activation", (40, 384), at_the_floor=True),
    Case("dropout2d", (4, 32, 7, 7), "fp32"),
]

# Cases whose approximate instructions err as far as the PTX manual allows: statistics of rows, of
# channels and of groups, and an activation of each formula.
APPROXIMATE = [
    Case("layer_norm", (16, 100), "fp32"),
    Case("rms_norm", (2, 8200), "fp32"),
    Case("add_dropout_layer_norm", (16, 256), "fp32"),
    Case("batch_norm", (6, 8, 8, 8), "fp32"),
    Case("group_norm", (2, 64, 8, 8), "fp32"),
    Case("group_norm_silu", (2, 64, 8, 8), "fp32"),
    Case("dropout_activation", (12, 384), "fp32"),
    Case("dropout_activation, bare", (12, 384), "fp32"),
]

# Ops with random results, besides those with a drop rate.
_RANDOM = ("dropout1d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "drop_block3d")
_OF_IMAGES = ("batch_norm", "group_norm", "instance_norm", "layer_norm2d", "dropout2d")
_ROWS: list[Dims] = [
    (70, 1), (1, 128), (64, 128), (9, 1000), (5, 1280), (3, 4096), (2, 8200), (33, 127),
]  # fmt: skip
_IMAGES: list[Dims] = [
    (2, 8, 4, 4), (3, 5, 7, 9), (4, 64, 14, 14), (2, 32, 33, 33), (1, 2, 130, 131), (8, 32, 7, 7),
]  # fmt: skip


def _many() -> Iterator[Case]:
    """Yield every op with all dimensions, and for the last of them all types and layouts."""
    for name, op in OPS.items():
        if "clip" in name or op.drop_rate is not None or name in _RANDOM:
            continue
        images = name.startswith(_OF_IMAGES)
        *others, last = _IMAGES if images else _ROWS
        for number, dims in enumerate(others):
            yield Case(name, dims, "fp32" if number % 2 else "bf16")
            if images:
                yield Case(name, dims, "bf16", "channels last")
        for dtype in DTYPES:
            yield Case(name, last, dtype)
        for layout in LAYOUTS:
            if layout != "contiguous" and (layout != "channels last" or images):
                yield Case(name, last, "fp32", layout)
        for target in (80, 100):
            yield Case(name, others[-3], target=target)
    for name in _BARE:
        yield from (Case(name, (4, 16, 9, 12), dtype) for dtype in DTYPES)


MANY = [case for case in _many() if case not in FEW]
