"""Shared memory of a program that checks every access and counts what it costs."""

import numpy as np

from benchmarks.ptx.memory import NOBODY, Access, mark_reader, note_conflict
from benchmarks.ptx.registers import WARP, Array
from benchmarks.ptx.report import Counters, Findings

_BANKS = 32


class SharedMemory:
    """The shared memory of a CTA.

    Args:
        size: Number of bytes.
        counters: Counters of the launch.
        findings: List to which errors are added.
        warp_synchronous: Whether the threads of a warp run in step, so that only different warps
            race. A GPU does not promise it, but Triton omits barriers as if it did.
    """

    def __init__(
        self, size: int, counters: Counters, findings: Findings, warp_synchronous: bool
    ) -> None:
        self._data = np.zeros(size, np.uint8)
        self._known = np.zeros(size, np.bool_)
        self._copied = np.zeros(size, np.int16)  # number of copies in flight to each byte
        self._writer, self._reader = np.full((2, size), NOBODY, np.int16)
        self._counters = counters
        self._findings = findings
        self._unit = WARP if warp_synchronous else 1

    def begin_cta(self) -> None:
        """Forget everything: a CTA finds noise."""
        self._data[:] = 0xCD
        self._known[:] = False
        self._copied[:] = 0
        self.barrier()

    def barrier(self) -> None:
        """Order the accesses before the barrier against those after it."""
        self._writer[:] = NOBODY
        self._reader[:] = NOBODY

    def load(self, access: Access) -> Array:
        """Return the bytes of each thread, ``(threads, width)``."""
        self._count_wavefronts(access)
        places, inside, owner = self._places(access)
        result = np.full((len(access.threads), access.width), 0xAB, np.uint8)
        result[inside] = self._data[places]
        if not self._known[places].all():
            self._note("uninitialised", access, "a byte of shared memory never written")
        if _by_others(self._writer[places], owner).any():
            self._note("race", access, "reads what another thread wrote since the last barrier")
        if self._copied[places].any():
            self._note("race", access, "reads what an asynchronous copy in flight writes")
        mark_reader(self._reader, places, owner)
        return result

    def store(self, access: Access, values: Array) -> None:
        """Write the bytes of each thread, ``(threads, width)``."""
        self._count_wavefronts(access)
        places, inside, owner = self._places(access)
        accessed = _by_others(self._reader[places], owner) | _by_others(self._writer[places], owner)
        if (accessed & (self._data[places] != values[inside])).any():
            self._note("race", access, "another thread accessed this since the last barrier")
        if self._copied[places].any():
            self._note("race", access, "writes what an asynchronous copy in flight writes")
        self._data[places] = values[inside]
        note_conflict(
            self._findings, self._counters.kernel, access, self._data[places], values[inside]
        )
        self._writer[places] = owner
        self._known[places] = True

    def begin_copy(self, access: Access) -> None:
        """Note that a copy may write these bytes from now on."""
        places, _, owner = self._places(access)
        if _by_others(self._reader[places], owner).any():
            self._note("race", access, "another thread read this since the last barrier")
        np.add.at(self._copied, places, 1)

    def end_copy(self, access: Access, values: Array) -> None:
        """Write the bytes of a copy, ``(threads, width)``."""
        places, _, _ = self._places(access)
        np.subtract.at(self._copied, places, 1)
        self.store(access, values)

    def _places(self, access: Access) -> tuple[Array, Array, Array]:
        """Return the bytes of the accesses within bounds, which these are, and their owners."""
        addresses = access.addresses.astype(np.int64)
        if (addresses % access.width).any():
            self._note("alignment", access, f"not a multiple of {access.width} bytes")
        inside = addresses + access.width <= len(self._data)
        if not inside.all():
            self._note("bounds", access, f"{addresses.max()} of {len(self._data)}")
        owner = (access.threads[inside, None] // self._unit).astype(np.int16)
        return addresses[inside, None] + np.arange(access.width), inside, owner

    def _count_wavefronts(self, access: Access) -> None:
        """Count wavefronts, which serve at most 128 bytes and one word of each bank."""
        lanes = min(WARP, 4 * _BANKS // access.width)  # that one wavefront can serve
        group = access.threads // lanes
        words = np.arange(max(1, access.width // 4))
        word = (access.addresses.astype(np.int64)[:, None] // 4 + words).ravel()
        group_of_word = np.repeat(group, len(words)).astype(np.int64)
        single = np.unique(group_of_word << 32 | word)
        bank = single >> 32 << 5 | single & (_BANKS - 1)
        banks, per_bank = np.unique(bank, return_counts=True)
        _, first = np.unique(banks >> 5, return_index=True)
        self._counters.shared_wavefronts += int(np.maximum.reduceat(per_bank, first).sum())
        self._counters.shared_ideal += len(first)

    def _note(self, kind: str, access: Access, detail: str) -> None:
        self._findings.note(kind, self._counters.kernel, access.instruction, f"shared: {detail}")


def _by_others(accessed_by: Array, owner: Array) -> Array:
    """Return which bytes were accessed by others than their owner."""
    return np.asarray((accessed_by != NOBODY) & (accessed_by != owner))
