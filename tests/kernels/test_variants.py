"""How often kernels are compiled: the tensors of a stream of shapes share a few variants."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

import lightning_kernels
from benchmarks.machine_code import Launch, record_launches

pytestmark = pytest.mark.plain  # interpreted kernels are not compiled

MOST = 4
SIZES = [(n, n) for n in range(1, 33)] + [(n, n + 12) for n in range(40, 120, 10)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def variant(launch: Launch) -> tuple[object, ...]:
    """Return what Triton compiles anew for: constants, and properties of numbers."""
    assert isinstance(launch.kernel, JITFunction)
    key: list[object] = [*sorted(launch.constants.items())]
    for parameter, value in zip(launch.kernel.params, launch.args, strict=False):
        if not isinstance(value, int):
            key.append(None if isinstance(value, float) else value)
            continue
        is_free = parameter.do_not_specialize
        is_unaligned = is_free or parameter.do_not_specialize_on_alignment
        is_wide = not -(2**31) <= value < 2**31
        key.append((is_wide, value == 1 and not is_free, value % 16 == 0 and not is_unaligned))
    return tuple(key)


def count_variants(
    call: Callable[[Tensor], Tensor], shapes: Iterable[tuple[int, ...]],
    layout: torch.memory_format, dtype: torch.dtype,
) -> dict[str, int]:  # fmt: skip
    """Return the number of variants of each kernel, forward and backward."""
    with record_launches() as launches:
        for shape in shapes:
            x = torch.empty(shape, device="cuda", dtype=dtype).to(memory_format=layout)
            y = call(x.requires_grad_())
            with torch.no_grad():
                _backward(y)
    found: dict[str, set[tuple[object, ...]]] = defaultdict(set)
    for launch in launches:
        found[launch.name].add(variant(launch))
    return {name: len(keys) for name, keys in found.items()}


def _backward(y: Tensor) -> None:
    """Run only the backward of ``y``'s own node, since autograd's engine needs a real device."""
    node: Any = y.grad_fn
    others = len(node._input_metadata) - 1
    node.apply(torch.empty_like(y), *[None] * others)


def batch_norm(x: Tensor) -> Tensor:
    mean, var, weight, bias = (torch.empty(x.shape[1], device="cuda") for _ in range(4))
    return lightning_kernels.batch_norm(
        x, mean, var, weight, bias, True, activation="relu", residual=torch.empty_like(x)
    )


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("samples", [2, 32])
def test_sizes_of_images(samples: int, dtype: torch.dtype, layout: torch.memory_format) -> None:
    shapes = [(samples, 64, *size) for size in SIZES[1:]]  # one pixel is channels last
    counts = count_variants(batch_norm, shapes, layout, dtype)
    assert len(counts) == 6
    assert max(counts.values()) <= MOST, counts


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_samples_and_sizes_of_batch_norm(layout: torch.memory_format) -> None:
    """Batches of any number of samples, channels and pixels."""
    shapes = [
        (samples, channels, *size)
        for samples in (1, 3, 8, 31, 256)
        for channels in (16, 72, 512)
        for size in SIZES[1::6]
    ]
    counts = count_variants(batch_norm, shapes, layout, torch.bfloat16)
    assert len(counts) == 6
    assert max(counts.values()) <= MOST, counts


GROUPS = {16: 1, 24: 24, 64: 8, 72: 8, 320: 32, 512: 32, 640: 32, 1280: 32, 2048: 32}


def group_norm(x: Tensor) -> Tensor:
    weight, bias = (torch.empty(x.shape[1], device="cuda", requires_grad=True) for _ in range(2))
    return lightning_kernels.group_norm(x, GROUPS[x.shape[1]], weight, bias, activation="silu")


def instance_norm(x: Tensor) -> Tensor:
    return lightning_kernels.instance_norm(x, activation="relu")


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("samples", [2, 32])
@pytest.mark.parametrize("call", [group_norm, instance_norm])
def test_sizes_of_images_of_group_norm(
    call: Callable[[Tensor], Tensor], samples: int, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    shapes = [(samples, 64, *size) for size in SIZES[1:]]
    counts = count_variants(call, shapes, layout, dtype)
    assert {"_group_norm_forward_kernel", "_group_norm_backward_kernel"} <= set(counts)
    assert max(counts.values()) <= MOST, counts


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("call", [group_norm, instance_norm])
def test_samples_channels_groups_and_sizes(
    call: Callable[[Tensor], Tensor], dtype: torch.dtype, layout: torch.memory_format
) -> None:
    shapes = [
        (samples, channels, *size)
        for samples in (1, 3, 8, 31, 256)
        for channels in GROUPS
        for size in [*SIZES[1::6], (128, 128)]
    ]
    counts = count_variants(call, shapes, layout, dtype)
    assert len(counts) >= 8
    assert max(counts.values()) <= MOST, counts
