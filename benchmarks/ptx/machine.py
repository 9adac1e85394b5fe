"""A multiprocessor: runs the threads of one CTA after another through a program."""

import dataclasses
import math
import random
from collections.abc import Sequence

import numpy as np

from benchmarks.ptx import flow, warp
from benchmarks.ptx.floats import Approximation
from benchmarks.ptx.memory import GlobalMemory
from benchmarks.ptx.parser import Instruction, Program
from benchmarks.ptx.registers import WARP, Array
from benchmarks.ptx.report import Counters
from benchmarks.ptx.shared import SharedMemory
from benchmarks.ptx.steps import CONTROL, Mask, Steps, class_of

_LIMIT = 10_000_000  # instructions after which a CTA counts as stuck


@dataclasses.dataclass(frozen=True)
class Options:
    """How to run.

    Attributes:
        seed: Seed of the order of CTAs and of the noise in registers.
        approximate_ulps: See :class:`benchmarks.ptx.floats.Approximation`.
        warp_synchronous: See :class:`benchmarks.ptx.shared.SharedMemory`.
    """

    seed: int = 0
    approximate_ulps: float | None = None
    warp_synchronous: bool = True


class StuckError(RuntimeError):
    """Threads wait for others that never come, or a loop does not end."""


def run(
    program: Program, grid: Sequence[int], params: Sequence[int | float], memory: GlobalMemory,
    dynamic_shared: int = 0, options: Options | None = None,
) -> Counters:  # fmt: skip
    """Run a kernel.

    Args:
        program: What :func:`benchmarks.ptx.parser.parse` returned.
        grid: CTAs along up to three axes.
        params: Its parameters, addresses as integers.
        memory: What the addresses are of; its findings say what went wrong.
        dynamic_shared: Bytes of shared memory beside the program's own.
        options: How.

    Returns:
        What it did.

    Raises:
        StuckError: If a CTA does not end.
        UnsupportedPtxError: If the program has an instruction that is not modelled.
    """
    options = options or Options()
    memory.begin_launch(program.name)
    machine = _Machine(program, params, memory, dynamic_shared, options)
    axes = (*grid, 1, 1)[:3]
    order = list(range(math.prod(axes)))
    random.Random(options.seed).shuffle(order)
    with np.errstate(all="ignore"):
        for number in order:
            machine.run_cta(number, axes)
    return machine.finish()


class _Machine:
    def __init__(
        self, program: Program, params: Sequence[int | float], memory: GlobalMemory,
        dynamic_shared: int, options: Options,
    ) -> None:  # fmt: skip
        self._program = program
        self._memory = memory
        self._counters = memory.counters
        self._counters.threads = program.threads
        size = program.static_shared + dynamic_shared
        self._shared = SharedMemory(
            size, memory.counters, memory.findings, options.warp_synchronous
        )
        self._steps = Steps(
            program, params, memory, self._shared,
            Approximation(options.approximate_ulps, options.seed), options.seed,
        )  # fmt: skip
        self._registers = self._steps.registers
        self._warps = program.threads // WARP
        self._functions = [self._steps.of(i) for i in program.instructions]
        names = [i.opcode.split(".")[0] for i in program.instructions]
        self._is_control = [name in CONTROL for name in names]
        self._is_warp_wide = [name in warp.NAMES for name in names]
        self._blocks = flow.blocks(program, CONTROL)
        self._ranks = flow.ranks(self._blocks)
        self._issued = np.zeros(len(names), np.int64)

    def finish(self) -> Counters:
        """Return what the launch did."""
        for instruction, count in zip(self._program.instructions, self._issued, strict=True):
            if count:
                self._counters.instructions[class_of(instruction.opcode)] += int(count)
        return self._memory.end_launch()

    def run_cta(self, number: int, axes: tuple[int, ...]) -> None:
        """Run one CTA to its end."""
        self._steps.cta = number
        self._counters.ctas += 1
        self._registers.scramble()
        self._shared.begin_cta()
        place = number
        for axis, count in zip("xyz", axes, strict=True):
            self._registers.special[f"%ctaid.{axis}"][:] = place % count
            self._registers.special[f"%nctaid.{axis}"][:] = count
            place //= count
        _Schedule(self).run()
        self._steps.finish_copies()


class _Schedule:
    """The threads of a CTA in groups that are at the same instruction.

    The group that is furthest behind, see :mod:`benchmarks.ptx.flow`, goes first.
    """

    def __init__(self, machine: _Machine) -> None:
        self._m = machine
        self._groups: dict[int, Array] = {0: np.ones(machine._program.threads, np.bool_)}
        self._live = self._groups[0].copy()
        self._at_barrier: dict[int, Array] = {}
        self._halved: dict[int, Array] = {}  # warps that wait for the rest of themselves
        self._budget = _LIMIT

    def run(self) -> None:
        """Run until all threads are done."""
        while self._groups:
            place = min(self._groups, key=self._rank)
            group = self._groups.pop(place)
            self._advance(place, group)
            if not self._groups and (self._at_barrier or self._halved):
                waiting = [
                    self._m._program.instructions[i].text
                    for i in (*self._at_barrier, *self._halved)
                ]
                raise StuckError(f"{self._m._program.name}: all threads wait: {waiting}")

    def _rank(self, place: int) -> int:
        return self._m._ranks[place]

    def _end_of_block(self, place: int) -> int:
        return self._m._blocks[place][0]

    def _advance(self, place: int, group: Array) -> None:
        """Run a group to the end of its block."""
        m = self._m
        full = bool(group.all())
        mask: Mask = True if full else group
        warps = m._warps if full else int(group.reshape(-1, WARP).any(1).sum())
        stop = self._end_of_block(place)
        while place < stop:
            self._budget -= 1
            if self._budget < 0:
                raise StuckError(f"{m._program.name}: no end in sight")
            if m._is_control[place]:
                m._issued[place] += warps
                self._control(place, group)
                return
            if m._is_warp_wide[place] and not full:
                group = self._join_warps(place, group)
                if not group.any():
                    return
                mask = group
                warps = int(group.reshape(-1, WARP).any(1).sum())
            m._issued[place] += warps
            m._functions[place](mask)
            place += 1
        self._add(place, group)

    def _add(self, place: int, group: Array) -> None:
        if group.any():
            known = self._groups.get(place)
            self._groups[place] = group if known is None else known | group

    def _join_warps(self, place: int, group: Array) -> Array:
        """Return the warps of which all threads are here; keep the others until they are."""
        waiting = self._halved.pop(place, None)
        if waiting is not None:
            group = group | waiting
        whole = np.repeat(group.reshape(-1, WARP).all(1), WARP)
        rest = group & ~whole
        if rest.any():
            self._halved[place] = rest
        return whole

    def _control(self, place: int, group: Array) -> None:
        instruction = self._m._program.instructions[place]
        name = instruction.opcode.split(".")[0]
        taken = group
        if instruction.guard is not None:
            guard = self._m._registers.register(instruction.guard)
            taken = group & (~guard if instruction.negated else guard)
            self._add(place + 1, group & ~taken)
        if name == "bra":
            self._add(self._m._program.labels[instruction.operands[0]], taken)
        elif name == "brx":
            self._branch_by_table(instruction, taken)
        elif name in {"ret", "exit"}:
            self._live = self._live & ~taken
            self._release()
        else:
            self._at_barrier[place] = self._at_barrier.get(place, np.zeros_like(taken)) | taken
            self._release()

    def _branch_by_table(self, instruction: Instruction, taken: Array) -> None:
        index = self._m._registers.register(instruction.operands[0])
        for number, label in enumerate(self._m._program.tables[instruction.operands[1]]):
            self._add(self._m._program.labels[label], taken & (index == number))

    def _release(self) -> None:
        """Open the barrier if all live threads are there."""
        if not self._at_barrier:
            return
        arrived = np.logical_or.reduce(list(self._at_barrier.values()))
        if not np.array_equal(arrived, self._live):
            return
        if len(self._at_barrier) > 1:
            m = self._m
            m._memory.findings.note(
                "barrier", m._program.name, m._program.instructions[min(self._at_barrier)],
                "threads meet at different barriers in the code",
            )  # fmt: skip
        waiting, self._at_barrier = self._at_barrier, {}
        self._m._counters.barriers += 1
        self._m._shared.barrier()
        for place, group in waiting.items():
            self._add(place + 1, group)
