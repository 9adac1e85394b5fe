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
    "_merge_statistics_kernel",
    "_batch_norm_reduce_kernel",
    "_batch_norm_sum_kernel",
    "_group_norm_statistics_kernel",
    "_group_norm_reduce_kernel",
}

# Nothing to widen in these either: the one reads nothing and writes a bit where others write an
# element, the others read a few numbers of each that ran before.
NARROW = {"_drop_block_mask_kernel", "_grad_scale_kernel", "_group_norm_sum_kernel"}

# The most bytes that a thread of a kernel spills, from a Triton version on; other kernels spill
# none. Each version brings its own ptxas. With 64 registers a thread a multiprocessor holds four
# programs of 8 warps, with 72 three: the two instructions of the statistics kernel's spill stand
# outside of its loop and cost less. ptxas chose the other spills by itself, to keep more warps.
MOST_SPILLS = {
    "3.6": dict.fromkeys((*REDUCTIONS, "_row_norm_backward_kernel"), 8),
    "3.8": {
        "_batch_norm_statistics_kernel": 8,
        "_group_norm_forward_kernel": 16,
        "_add_norm_forward_kernel": 8,
    },
}


def most_spills(kernel: str) -> int:
    """Return the limit of ``kernel`` by the newest version that is listed, up to Triton's own."""
    version = Version(triton.__version__)
    listed = max((v for v in MOST_SPILLS if Version(v) <= version), key=Version)
    return MOST_SPILLS[listed].get(kernel, 0)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CALLS)
def test_no_spills_and_wide_accesses(name: str, target: int) -> None:
    launches = launches_of(name)
    assert launches
    for launch in launches:
        code = compile_launch(launch, target)
        assert code.spills <= most_spills(launch.name), code
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
