"""The numbers of the static report against those of the executed code: traffic and loops."""

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import lightning_kernels as lk
from benchmarks.launches.inputs import backward
from benchmarks.machine_code import Launch, MachineCode, compile_launch, record_launches
from benchmarks.prediction import path_of
from benchmarks.ptx import Counters, compiled_on_cpu

pytestmark = pytest.mark.plain

MULTIPROCESSORS = 2
SECTOR = 32


def _ones(device: str, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return ones that require a gradient, images in channels last."""
    x = torch.ones(shape, dtype=dtype, device=device)
    if len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    return x.requires_grad_()


def _parameters(device: str, size: int) -> tuple[Tensor, Tensor]:
    """Return a weight and a bias, or a mean and a variance."""
    first, second = (_ones(device, size, dtype=torch.float32) for _ in range(2))
    return first, second


def _layer_norm(device: str) -> None:
    weight, bias = _parameters(device, 768)
    y = lk.layer_norm(_ones(device, 96, 768), (768,), weight, bias)
    backward(y, torch.ones_like(y), None)


def _add_norm(device: str) -> None:
    x, residual = (_ones(device, 64, 256) for _ in range(2))
    weight, bias = _parameters(device, 256)
    y, z = lk.add_dropout_layer_norm(x, residual, (256,), weight, bias, p=0.1)
    backward(y, torch.ones_like(y), torch.ones_like(z), None)


def _batch_norm(device: str) -> None:
    mean, var = (t.detach() for t in _parameters(device, 64))
    weight, bias = _parameters(device, 64)
    x = _ones(device, 8, 64, 8, 8)
    y = lk.batch_norm(x, mean, var, weight, bias, training=True, activation="relu")
    backward(y, torch.ones_like(y), None, None)


def _group_norm(device: str) -> None:
    x = _ones(device, 2, 64, 32, 32)
    weight, bias = _parameters(device, 64)
    y = lk.group_norm(x, 2, weight, bias, activation="silu")
    backward(y, torch.ones_like(y), None)


def _dropout(device: str) -> None:
    y = lk.dropout(_ones(device, 16384), 0.3, training=True)
    backward(y, torch.ones_like(y))


# Functions whose programs share the tiles evenly, since a path is that of the first program, and
# whose tiles have no masked elements, since the report counts these too.
CALLS: dict[str, Callable[[str], None]] = {
    "layer_norm": _layer_norm,
    "add_norm": _add_norm,
    "batch_norm": _batch_norm,
    "group_norm": _group_norm,
    "dropout": _dropout,
}
FEW = [("layer_norm", 90), ("group_norm", 90), ("dropout", 90)]
MANY = [(name, target) for name in CALLS for target in (80, 90, 100) if (name, target) not in FEW]


def of_path(launch: Launch, code: MachineCode) -> dict[str, int]:
    """Return the instructions of all warps by the static report, by their names in the record."""
    path = path_of(launch, code)
    count = Counter(path.code[position].name for position in path)
    programs = math.prod(launch.grid)
    warps = programs * launch.num_warps
    return {
        "ld.global": count["LDG"] * warps,
        "copy": count["LDGSTS"] * warps,
        "st.global": count["STG"] * warps,
        "barrier": count["BAR"] * programs,
    }


def largest_bytes(launch: Launch) -> list[int]:
    """Return the bytes of each of the tensors with most elements."""
    dtypes = [arg for arg in launch.args if isinstance(arg, torch.dtype)]
    return [
        numel * dtype.itemsize
        for place, (numel, dtype) in enumerate(zip(launch.numels, dtypes, strict=True))
        if numel == launch.elements and place not in launch.repeated
    ]


def executed(counters: Counters) -> dict[str, int]:
    """Return the same instructions, executed."""
    names = ("ld.global", "copy", "st.global")
    return {n: counters.instructions[n] for n in names} | {"barrier": counters.barriers}


@pytest.mark.parametrize(
    ("name", "target"), [*FEW, *(pytest.param(*one, marks=pytest.mark.full) for one in MANY)]
)
def test_the_static_report_counts_what_is_executed(name: str, target: int) -> None:
    with record_launches(MULTIPROCESSORS) as launches:
        CALLS[name]("cuda")
    with compiled_on_cpu(target, multiprocessors=MULTIPROCESSORS) as record:
        CALLS[name]("cpu")
    for launch, counters in zip(launches, record.launches, strict=True):
        assert (launch.name, math.prod(launch.grid)) == (counters.kernel, counters.ctas)
        code = compile_launch(launch, target)
        # Loads, stores and barriers, those in loops as often as the loops run.
        assert of_path(launch, code) == executed(counters), launch.name
        # The floor: each large tensor is moved once, as a whole. Of statistics and parameters no
        # more than the whole is moved, in sectors; running averages are read and written.
        sizes = largest_bytes(launch)
        large = [t for t in counters.traffic if t.size >= min(sizes)]
        moved_large = sum(t.read_bytes + t.written_bytes for t in large)
        assert moved_large == sum(sizes), launch.name
        moved = sum(max(t.read_bytes, t.written_bytes) for t in counters.traffic)
        assert moved - launch.floor_bytes < SECTOR * len(launch.numels), launch.name
        # The bytes of whole tiles, which are counted in code without loops.
        if (per_element := code.traffic.bytes_per_element) is not None:
            assert per_element * launch.elements == moved_large, launch.name
