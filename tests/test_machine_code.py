"""The compiler's output for every kernel in its main configurations, built without a GPU."""

import inspect
import pkgutil
from importlib import import_module

import pytest
import triton
from packaging.version import Version
from triton.runtime.jit import JITFunction

import lightning_kernels
from benchmarks.launches import CALLS, launches_of
from benchmarks.machine_code import TARGETS, compile_launch

# These write a few sums per program, spread over its threads: nothing to widen.
REDUCTIONS = {
    "_norm_kernel",
    "_sum_partials_kernel",
    "_batch_norm_statistics_kernel",
    "_batch_norm_merge_kernel",
    "_batch_norm_reduce_kernel",
    "_batch_norm_sum_kernel",
    "_group_norm_statistics_kernel",
    "_group_norm_reduce_kernel",
}

# Nothing to widen in these either: the one reads nothing and writes a bit where others write an
# element, the others read a few numbers of each that ran before.
NARROW = {"_drop_block_mask_kernel", "_grad_scale_kernel", "_group_norm_sum_kernel"}

# Bytes a thread. Triton 3.6's ptxas leaves a pair of registers behind in three of some hundred
# cases, where more registers would cost more warps than the spill costs time.
MOST_SPILLS = 0 if Version(triton.__version__) >= Version("3.7") else 8


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CALLS)
def test_no_spills_and_wide_accesses(name: str, target: int) -> None:
    launches = launches_of(name)
    assert launches
    for launch in launches:
        code = compile_launch(launch, target)
        assert code.spills <= MOST_SPILLS, code
        if launch.name in NARROW:
            continue
        assert max(code.load_bits) == 128, code
        if launch.name not in REDUCTIONS:
            assert max(code.store_bits) == 128, code


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
