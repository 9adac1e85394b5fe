"""Asynchronous copies from global to shared memory (``cp.async``), each done as late as it may be.

A copy happens at the ``wait_group`` or ``wait_all`` of its thread that covers its group, though a
GPU may do it at any time after ``cp.async``. So code with a missing or too weak wait reads the
bytes that were there before.
"""

import dataclasses

import numpy as np

from benchmarks.ptx.memory import Access, GlobalMemory
from benchmarks.ptx.parser import Instruction
from benchmarks.ptx.registers import Array
from benchmarks.ptx.shared import SharedMemory


@dataclasses.dataclass(eq=False)
class _Copy:
    """The copies of one instruction, an element of each array per thread.

    Attributes:
        instruction: The instruction.
        threads: The threads.
        sources: Their addresses in global memory.
        targets: Their addresses in shared memory.
        reads: Whether each thread copies. Otherwise it fills its target with zeros.
        groups: Number of the group of each thread's copy.
        width: Bytes per thread.
    """

    instruction: Instruction
    threads: Array
    sources: Array
    targets: Array
    reads: Array
    groups: Array
    width: int

    def part(self, chosen: Array) -> "_Copy":
        """Return the copies of the chosen threads."""
        return _Copy(
            self.instruction, self.threads[chosen], self.sources[chosen], self.targets[chosen],
            self.reads[chosen], self.groups[chosen], self.width,
        )  # fmt: skip

    def target(self, cta: int) -> Access:
        """Return the access to shared memory."""
        return Access(self.instruction, self.threads, self.targets, self.width, cta)


class Copies:
    """The copies of one CTA that are in flight.

    Args:
        memory: Global memory.
        shared: Shared memory of the CTA.
        threads: Number of threads of the CTA.
    """

    def __init__(self, memory: GlobalMemory, shared: SharedMemory, threads: int) -> None:
        self._memory = memory
        self._shared = shared
        self._group = np.zeros(threads, np.int64)  # the number of each thread's open group
        self._in_flight: list[_Copy] = []

    def begin(self, source: Access, targets: Array, reads: Array) -> None:
        """Begin the copies of an instruction.

        Args:
            source: The accesses to global memory.
            targets: Addresses in shared memory, one per thread.
            reads: Whether each thread copies. Otherwise it fills its target with zeros.
        """
        copy = _Copy(
            source.instruction, source.threads, source.addresses, targets, reads,
            self._group[source.threads], source.width,
        )  # fmt: skip
        self._shared.begin_copy(copy.target(source.cta))
        self._in_flight.append(copy)

    def commit(self, threads: Array) -> None:
        """Close the group of each thread (``commit_group``)."""
        self._group[threads] += 1

    def wait(self, threads: Array, cta: int, pending: int | None) -> None:
        """Do the copies of some threads.

        Args:
            threads: The threads that wait.
            cta: Number of the CTA.
            pending: Number of each thread's latest closed groups that are not waited for
                (``wait_group``). ``None`` for all copies, those of the open group too
                (``wait_all``).
        """
        waits = np.zeros(len(self._group), np.bool_)
        waits[threads] = True
        rest = []
        for copy in self._in_flight:
            done = waits[copy.threads]
            if pending is not None:
                done &= copy.groups < self._group[copy.threads] - pending
            if done.any():
                self._finish(copy.part(done), cta)
            if not done.all():
                rest.append(copy.part(~done))
        self._in_flight = rest

    def _finish(self, copy: _Copy, cta: int) -> None:
        values = np.zeros((len(copy.threads), copy.width), np.uint8)
        if copy.reads.any():
            read = copy.part(copy.reads)
            access = Access(copy.instruction, read.threads, read.sources, copy.width, cta)
            values[copy.reads] = self._memory.load(access)
        self._shared.end_copy(copy.target(cta), values)
