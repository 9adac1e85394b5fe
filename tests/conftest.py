"""Which tests this run can make, and the device they use."""

import pytest
import torch

import lightning_kernels

# These tensors are small: on a busy machine more threads only wait for each other.
torch.set_num_threads(1)

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
RUNS_KERNELS = lightning_kernels.route(torch.ones(1, device=DEVICE)) != "aten"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip ``gpu`` tests where there is no GPU; leave ``kernel`` tests to the interpreted run."""
    if not HAS_GPU:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    if not RUNS_KERNELS:
        left = [item for item in items if item.get_closest_marker("kernel")]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if not item.get_closest_marker("kernel")]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many GPU tests this machine could not run, so that nobody takes them for passed."""
    skipped = [r for r in terminalreporter.stats.get("skipped", []) if "gpu" in r.keywords]
    if skipped:
        terminalreporter.write_line(f"gpu tests not run here: {len(skipped)}", yellow=True)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def device() -> str:
    """Return the device on which this machine runs kernels."""
    return DEVICE
