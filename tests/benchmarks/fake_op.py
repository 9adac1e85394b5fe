"""An op that doubles, and providers of it whose time or fault is known. Also a process to kill.

``python -m tests.benchmarks.fake_op ARGUMENTS`` runs ``kernels`` on it.
"""

import argparse
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks import kernels, report
from benchmarks.providers import EAGER, OURS, PROVIDERS, Function, Provider
from benchmarks.results import Results
from benchmarks.shapes import OPS, Op, Shape
from benchmarks.timing import CpuTimer

NAME = "double"
OP = Op(
    shapes=tuple(Shape(f"s{i}", (i, 8), quick=i < 4) for i in range(1, 7)),
    forward_bytes=lambda itemsize: 2 * itemsize,
    backward_bytes=lambda itemsize: 2 * itemsize,
)
CASES = 6 * len(OP.directions)  # of all shapes, in one type


def double(x: Tensor) -> Tensor:
    return x * 2


def taking(seconds: float, wait: Callable[[float], None] = time.sleep) -> Callable[[], Function]:
    """Return a factory of a function that doubles and takes as long as said."""

    def wait_and_double(x: Tensor) -> Tensor:
        wait(seconds)
        return double(x)

    return lambda: wait_and_double


def provider(name: str, make: Callable[[], Function], **more: Any) -> Provider:
    return Provider(name, NAME, make, **more)


class FragileTimer(CpuTimer):
    """Stands for a GPU that a provider can break."""

    broken = False

    def synchronize(self) -> None:
        if FragileTimer.broken:
            raise RuntimeError("an illegal memory access was encountered")


def write_nothing(results: Results, out: Path) -> list[Path]:
    """Stand in for the report, which takes long to draw."""
    return []


def main() -> int:
    """Run ``kernels`` with providers slow enough to be killed in the middle."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the parent ignores
    OPS[NAME] = OP
    PROVIDERS.extend(provider(name, taking(2e-3)) for name in (OURS, EAGER))
    report.write = write_nothing
    parser = argparse.ArgumentParser()
    kernels.add_arguments(parser)
    common = ["--ops", NAME, "--shapes", "full", "--dtypes", "fp32", "--seconds", "0.001"]
    return kernels.main(parser.parse_args([*common, *sys.argv[1:]]))


if __name__ == "__main__":
    raise SystemExit(main())
