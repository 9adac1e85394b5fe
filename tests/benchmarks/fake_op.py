"""An op that doubles. Also a process to kill: ``python -m tests.benchmarks.fake_op OUT``.

The process runs ``kernels`` on the op, and hangs on its fourth shape.
"""

import signal
import sys
from typing import Any

from torch import Tensor

from benchmarks import report
from benchmarks.__main__ import main
from benchmarks.ops import OPS, Op
from benchmarks.providers import Function, Provider
from benchmarks.shapes import Shape
from benchmarks.timers import CpuTimer

NAME = "double"
SHAPES = tuple(Shape(f"s{i}", (i, 8), quick=i < 4) for i in range(1, 7))
CASES = 6 * 3  # shapes and directions, in one type


def double(x: Tensor) -> Tensor:
    return x * 2


def op(ours: Function = double, eager: Function = double, **makers: Any) -> Op:
    """Return the op; the providers but ours and eager are given by what makes their function."""
    peers = tuple(
        maker if isinstance(maker, Provider) else Provider(name, maker)
        for name, maker in makers.items()
    )
    return OpWithoutCompiler(ours, eager, shapes=SHAPES, moves=(2, 2), peers=peers)


class OpWithoutCompiler(Op):
    """Has the providers that it is given."""

    @property
    def providers(self) -> list[Provider]:
        return [p for p in super().providers if "compile" not in p.name]


class FragileTimer(CpuTimer):
    """Stands for a GPU that a provider can break."""

    broken = False

    def synchronize(self) -> None:
        if FragileTimer.broken:
            raise RuntimeError("an illegal memory access was encountered")


def run_and_hang(out: str) -> int:
    """Run ``kernels`` until it hangs."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the parent ignores

    def hangs(x: Tensor) -> Tensor:
        if x.shape[0] == 4:
            signal.pause()
        return double(x)

    OPS[NAME] = op(ours=hangs)
    report.write = lambda results, out: []
    common = ["--ops", NAME, "--shapes", "full", "--dtypes", "fp32", "--seconds", "1e-9"]
    return main(["kernels", *common, "--out", out])


if __name__ == "__main__":
    raise SystemExit(run_and_hang(sys.argv[1]))
