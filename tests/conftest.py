"""Which tests this run can make, and the device they use."""

import gc
import os
import signal
from typing import Any

import pytest
import torch

import lightning_kernels

# These tensors are small: on a busy machine more threads only wait for each other.
torch.set_num_threads(1)
os.environ["COLUMNS"] = "100"  # of tables, whatever the terminal
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes that tests start, too

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
# Tests are of the kernels, also where torch would be faster on such small tensors.
lightning_kernels.set_kernel_policy("always")
RUNS_KERNELS = lightning_kernels.route(torch.ones(1, device=DEVICE)) != "aten"
IS_INTERPRETED = lightning_kernels.route(torch.ones(1)) == "interpreter"


def _sum_in_a_tree(self: Any, input: Any) -> Any:
    """Sum as a GPU's threads do, in a tree, as NumPy does along a last axis that is contiguous.

    Along others it adds one row after the other, whose error grows faster than a GPU's would.
    """
    data = input.handle.data
    axes = tuple(range(data.ndim)) if self.axis is None else (self.axis,)
    kept = [axis for axis in range(data.ndim) if axis not in axes]
    total = data.transpose(*kept, *axes).reshape(*(data.shape[axis] for axis in kept), -1).copy()
    total = total.sum(-1)
    if self.keep_dims:
        total = total.reshape([1 if axis in axes else n for axis, n in enumerate(data.shape)])
    return self.to_tensor(total, input.dtype)


if IS_INTERPRETED:
    from triton.runtime import interpreter

    interpreter.ReduceOps.sum = _sum_in_a_tree


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also make the tests marked full")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip ``gpu`` tests where there is no GPU, and leave out what another run makes."""
    if not HAS_GPU:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    of_other_runs = set()
    if not RUNS_KERNELS:
        of_other_runs.add("kernel")
    if IS_INTERPRETED:
        of_other_runs.add("plain")
    if not config.getoption("full"):
        of_other_runs.add("full")
    left = {item for item in items if any(map(item.get_closest_marker, of_other_runs))}
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many GPU tests this machine could not run, so that nobody takes them for passed."""
    reports = terminalreporter.stats.get("skipped", [])  # a skipped file has no keywords
    skipped = [r for r in reports if "gpu" in getattr(r, "keywords", ())]
    if skipped:
        terminalreporter.write_line(f"gpu tests not run here: {len(skipped)}", yellow=True)


@pytest.fixture(autouse=True, scope="module")
def _frozen() -> None:
    """Keep what is loaded by now out of garbage collections: they would look through it each time.

    The modules and tests of the whole suite take a collection about a second, and Lightning's
    Tuner and torch.compile ask for dozens.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _interrupts() -> None:
    """Raise KeyboardInterrupt at an interrupt, in this process and in those that a test starts.

    Jobs that a shell runs in the background ignore interrupts, and so does Lightning after one.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def device() -> str:
    """Return the device on which this machine runs kernels."""
    return DEVICE
