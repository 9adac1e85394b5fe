"""The compiler's output for every kernel and class of shapes, built without a GPU."""

import inspect
import math
import pkgutil
import signal
from importlib import import_module
from typing import Any

import pytest
from triton.runtime.jit import JITFunction

import lightning_kernels
from benchmarks.gpus import GPUS
from benchmarks.launches import CALLS, launches_of
from benchmarks.machine_code import (
    MOST_SPILLS,
    TARGETS,
    compile_kernel,
    compile_launch,
    most_spills,
)
from benchmarks.prediction import occupancy

# Each of their programs stores a few sums, a thread or so each: nothing to widen.
REDUCTIONS = {
    "_norm_kernel",
    "_sum_partials_kernel",
    "_batch_norm_statistics_kernel",
    "_batch_norm_reduce_kernel",
    "_batch_norm_sum_kernel",
    "_group_norm_statistics_kernel",
    "_group_norm_reduce_kernel",
    "_merge_statistics_kernel",
}

# DropBlock's mask loads nothing and stores a bit for each element; the other kernels load a few
# numbers from each program that ran before.
NARROW = {"_drop_block_mask_kernel", "_grad_scale_kernel", "_group_norm_sum_kernel"}

# Calls of an operation differ in shapes and types, so `make test` compiles every fourth of them.
OPERATIONS = {name.split()[0] for name in CALLS}
ONLY_IN_FULL = {
    name
    for operation in OPERATIONS
    for place, name in enumerate(name for name in CALLS if name.split()[0] == operation)
    if place % 4
}


@pytest.mark.parametrize(
    "target", [90, *(pytest.param(n, marks=pytest.mark.full) for n in TARGETS if n != 90)]
)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.full) if name in ONLY_IN_FULL else name
        for name in CALLS
    ],
)
def test_few_spills_and_wide_accesses(name: str, target: int) -> None:
    launches = launches_of(name)
    assert launches
    for launch in launches:
        code = compile_launch(launch, target)
        assert code.spills <= most_spills(launch.name), code
        if launch.name in NARROW:
            continue
        assert max(code.load_bits) >= CALLS[name].bits, code
        if launch.name not in REDUCTIONS:
            assert max(code.store_bits) >= CALLS[name].bits, code


@pytest.mark.parametrize(
    "gpu", ["H200", *(pytest.param(name, marks=pytest.mark.full) for name in ("A100", "B200"))]
)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.full) if name in ONLY_IN_FULL else name
        for name in CALLS
    ],
)
def test_persistent_programs_run_at_the_same_time(name: str, gpu: str) -> None:
    """A kernel whose grid grows with the GPU is persistent: its grid must fit on the GPU."""
    device = GPUS[gpu]
    larger = launches_of(name, 2 * device.multiprocessors)
    for launch, other in zip(launches_of(name, device.multiprocessors), larger, strict=True):
        if launch.grid == other.grid:
            continue
        code = compile_launch(launch, device.target)
        held = occupancy(launch, code, device) * device.multiprocessors
        assert math.prod(launch.grid) <= held, code


def test_every_kernel_is_compiled() -> None:
    modules = [
        import_module(module.name)
        for module in pkgutil.walk_packages(lightning_kernels.__path__, "lightning_kernels.")
    ]
    kernels = {
        name
        for module in modules
        for name, _ in inspect.getmembers(module, lambda member: isinstance(member, JITFunction))
        if name.endswith("_kernel")
    }
    assert kernels
    assert kernels == {launch.name for name in CALLS for launch in launches_of(name)}
    assert kernels >= {kernel for limits in MOST_SPILLS.values() for kernel in limits}


def test_an_interrupt_waits_until_the_kernel_is_compiled() -> None:
    class Interrupted:
        is_compiled = False

        def warmup(self, *_: Any, **__: Any) -> None:
            signal.raise_signal(signal.SIGINT)
            self.is_compiled = True

    kernel = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        compile_kernel(kernel, (1,), (), {}, 90)
    assert kernel.is_compiled


@pytest.mark.parametrize(
    ("version", "listed"), [("3.6.0", "3.6"), ("3.7.1", "3.7"), ("3.8.0", "3.8"), ("4.0.0", "3.9")]
)
def test_a_version_is_held_to_the_newest_limits_up_to_it(version: str, listed: str) -> None:
    kernel = "_group_norm_backward_kernel"
    assert most_spills(kernel, version) == MOST_SPILLS[listed].get(kernel, 0)
    assert most_spills("_dropout_kernel", version) == 0
