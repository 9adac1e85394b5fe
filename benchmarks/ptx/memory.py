"""Global memory that checks every access and counts what it costs."""

import bisect
import dataclasses

import numpy as np

from benchmarks.ptx.parser import Instruction
from benchmarks.ptx.registers import WARP, Array
from benchmarks.ptx.report import Counters, Findings, Traffic

SECTOR = 32
_PAGE = 512  # bytes that the first byte of a buffer is a multiple of, as torch's allocator has it
_RED_ZONE = 1 << 16
NOBODY, MANY = -1, -2  # in place of the number of a thread, warp or CTA


@dataclasses.dataclass
class Access:
    """A load or store of some threads.

    Attributes:
        instruction: Which.
        threads: Those that take part.
        addresses: Of each, in bytes.
        width: Bytes that each accesses.
        cta: Number of the CTA.
    """

    instruction: Instruction
    threads: Array
    addresses: Array
    width: int
    cta: int


@dataclasses.dataclass(eq=False)
class Buffer:
    """A stretch of global memory.

    Attributes:
        base: Address of its first byte.
        data: Its bytes, shared with whoever made it.
        known: Which bytes have been written.
        name: For messages.
    """

    base: int
    data: Array
    known: Array
    name: str

    def __post_init__(self) -> None:
        self.begin_launch()

    def begin_launch(self) -> None:
        """Forget who accessed what."""
        self.writer = np.full(len(self.data), NOBODY, np.int32)
        self.reader = np.full(len(self.data), NOBODY, np.int32)
        sectors = len(self.data) // SECTOR + 2
        self.read, self.written = np.zeros((2, sectors), np.bool_)


class GlobalMemory:
    """Buffers at addresses of their own, with nothing between them.

    Args:
        findings: Where what is wrong is noted.
    """

    def __init__(self, findings: Findings) -> None:
        self.findings = findings
        self.counters = Counters()
        self.buffers: list[Buffer] = []
        self._bases: list[int] = []

    def add(self, data: Array, name: str, initialised: bool = True) -> Buffer:
        """Give bytes an address."""
        end = self.buffers[-1].base + len(self.buffers[-1].data) if self.buffers else 1 << 36
        base = (end + _RED_ZONE) // _PAGE * _PAGE + _PAGE
        buffer = Buffer(base, data, np.full(len(data), initialised), name)
        self.buffers.append(buffer)
        self._bases.append(base)
        return buffer

    def begin_launch(self, kernel: str) -> None:
        """Count from zero."""
        self.counters = Counters(kernel)
        for buffer in self.buffers:
            buffer.begin_launch()

    def end_launch(self) -> Counters:
        """Return what was counted."""
        self.counters.traffic = [
            Traffic(buffer.name, len(buffer.data), SECTOR * read, SECTOR * written)
            for buffer in self.buffers
            if (read := int(buffer.read.sum())) + (written := int(buffer.written.sum()))
        ]
        return self.counters

    def load(self, access: Access) -> Array:
        """Return the bytes of each thread, ``(threads, width)``; noise from where nothing is."""
        self._check_alignment(access)
        self.counters.load_bytes += access.width * len(access.threads)
        self.counters.load_sectors += _sectors(access)
        result = np.full((len(access.threads), access.width), 0xAB, np.uint8)
        for buffer, chosen, places in self._places(access):
            result[chosen] = buffer.data[places]
            if not buffer.known[places].all():
                self._note("uninitialised", access, f"a byte of {buffer.name} never written")
            writer = buffer.writer[places]
            if ((writer != NOBODY) & (writer != access.cta)).any():
                self._note("race", access, f"reads what another CTA writes in {buffer.name}")
            mark_reader(buffer.reader, places, np.full((len(places), 1), access.cta, np.int32))
            buffer.read[_touched(places)] = True
        return result

    def store(self, access: Access, values: Array) -> None:
        """Write the bytes of each thread, ``(threads, width)``."""
        self._check_alignment(access)
        self.counters.store_bytes += access.width * len(access.threads)
        self.counters.store_sectors += _sectors(access)
        for buffer, chosen, places in self._places(access):
            owners = buffer.reader[places], buffer.writer[places]
            others = [(o != NOBODY) & (o != access.cta) for o in owners]
            differs = buffer.data[places] != values[chosen]
            if ((others[0] | others[1]) & differs).any():
                self._note("race", access, f"another CTA accesses the same bytes of {buffer.name}")
            buffer.data[places] = values[chosen]
            note_conflict(self.findings, self.counters.kernel, access, buffer.data[places],
                           values[chosen])  # fmt: skip
            buffer.writer[places] = access.cta
            buffer.known[places] = True
            buffer.written[_touched(places)] = True

    def _places(self, access: Access) -> list[tuple[Buffer, Array | slice, Array]]:
        """Return for each buffer that is accessed by which threads and where in it."""
        first, last = int(access.addresses.min()), int(access.addresses.max())
        number = bisect.bisect_right(self._bases, first) - 1
        span = np.arange(access.width)
        if number >= 0:
            buffer = self.buffers[number]
            if last + access.width <= buffer.base + len(buffer.data):
                offsets = (access.addresses - np.uint64(buffer.base)).astype(np.int64)
                return [(buffer, slice(None), offsets[:, None] + span)]
        return self._scattered_places(access, span)

    def _scattered_places(
        self, access: Access, span: Array
    ) -> list[tuple[Buffer, Array | slice, Array]]:
        numbers = np.searchsorted(np.array(self._bases, np.uint64), access.addresses, "right") - 1
        found: list[tuple[Buffer, Array | slice, Array]] = []
        for number in np.unique(numbers):
            chosen = np.flatnonzero(numbers == number)
            base = self._bases[max(number, 0)]
            offsets = access.addresses[chosen].astype(np.int64) - base
            buffer = self.buffers[max(number, 0)]
            inside = (offsets >= 0) & (offsets + access.width <= len(buffer.data))
            if not inside.all():
                worst = int(offsets[~inside][-1])
                self._note("bounds", access, f"{worst} in {buffer.name} of {len(buffer.data)}")
            if inside.any():
                found.append((buffer, chosen[inside], offsets[inside, None] + span))
        return found

    def _check_alignment(self, access: Access) -> None:
        if (access.addresses % np.uint64(access.width)).any():
            self._note("alignment", access, f"not a multiple of {access.width} bytes")

    def _note(self, kind: str, access: Access, detail: str) -> None:
        self.findings.note(kind, self.counters.kernel, access.instruction, detail)


def note_conflict(
    findings: Findings, kernel: str, access: Access, there: Array, values: Array
) -> None:
    """Note a store after which the bytes ``there`` differ from the ``values`` of some threads."""
    differ = (there != values).any(1)
    if not differ.any():
        return
    apart = float("inf")
    if access.width % 4 == 0:
        a, b = (np.ascontiguousarray(v[differ]).view(np.float32) for v in (there, values))
        apart = np.nanmax(np.abs(a - b) / np.maximum(np.abs(a), np.float32(1e-30)), initial=0)
    detail = "threads write different values at once"
    findings.note("conflict", kernel, access.instruction, detail, float(apart))


def mark_reader(readers: Array, places: Array, owner: Array) -> None:
    """Add owners, one per access, to the readers of bytes: one owner, or :data:`MANY`."""
    before = readers[places]
    mark = np.where((before == NOBODY) | (before == owner), owner, MANY)
    readers[places] = mark
    shared = readers[places] != mark  # by several owners at once
    if shared.any():
        readers[places[shared]] = MANY


def _sectors(access: Access) -> int:
    """Return how many sectors the warps touch."""
    warp = (access.threads // WARP).astype(np.uint64) << np.uint64(48)
    first = access.addresses // np.uint64(SECTOR)
    last = (access.addresses + np.uint64(access.width - 1)) // np.uint64(SECTOR)
    return len(np.unique(np.concatenate((warp | first, warp | last))))


def _touched(places: Array) -> Array:
    """Return the sectors of a buffer, whose first byte begins one."""
    return np.asarray(places[:, [0, -1]] // SECTOR)
