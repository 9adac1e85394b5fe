"""The results of a launch: counters of its work, and findings of its errors."""

import collections
import dataclasses

from benchmarks.ptx.parser import Instruction


@dataclasses.dataclass
class Finding:
    """An error of a kernel.

    Attributes:
        kind: ``"bounds"``: an access outside of all tensors. ``"alignment"``: an address that is
            not a multiple of the access's width. ``"uninitialised"``: a read of bytes that were
            never written, of a tensor from ``torch.empty`` or of shared memory. ``"race"``: an
            access whose result depends on the order of threads or CTAs. ``"conflict"``: one
            instruction that writes different values to the same bytes. ``"barrier"``: threads
            that wait at different barriers.
        kernel: Name of the kernel.
        instruction: Text of the instruction.
        line: Number of its line in the Python source.
        detail: Description of the first occurrence.
        count: Number of executed instructions, of a warp or more, with this error.
        apart: Largest relative difference between the values of a conflict, taken for float32;
            infinite if they can't be float32.
    """

    kind: str
    kernel: str
    instruction: str
    line: int
    detail: str
    count: int = 1
    apart: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.kind} in {self.kernel} (source line {self.line}), {self.count} times: "
            f"{self.instruction}: {self.detail}"
        )


class Findings(list[Finding]):
    """Findings: one of each kind for each instruction."""

    def note(
        self, kind: str, kernel: str, instruction: Instruction, detail: str, apart: float = 0.0
    ) -> None:
        """Add a finding, or count it if it is known."""
        for known in self:
            if (known.kind, known.kernel, known.instruction) == (kind, kernel, instruction.text):
                known.count += 1
                known.apart = max(known.apart, apart)
                return
        line = instruction.line
        self.append(Finding(kind, kernel, instruction.text, line, detail, apart=apart))


@dataclasses.dataclass(frozen=True)
class Traffic:
    """The traffic between a tensor and the chip, for a cache that keeps everything.

    Attributes:
        name: Type and shape of the tensor.
        size: Bytes of its storage.
        read_bytes: 32 times the number of sectors from which anything was loaded.
        written_bytes: 32 times the number of sectors to which anything was stored.
    """

    name: str
    size: int
    read_bytes: int
    written_bytes: int


@dataclasses.dataclass
class Counters:
    """The work of a launch: the sum over all CTAs.

    Attributes:
        kernel: Name of the kernel.
        ctas: Number of CTAs.
        threads: Threads per CTA.
        instructions: Number of instructions that warps issued, by class.
        load_bytes: Bytes that threads loaded from global memory.
        store_bytes: Bytes that threads stored to global memory.
        load_sectors: Number of 32-byte sectors of all loads. An instruction of a warp counts each
            of its sectors once.
        store_sectors: Likewise, of all stores.
        traffic: Each tensor that was accessed.
        shared_wavefronts: Number of wavefronts of shared memory.
        shared_ideal: Their number without bank conflicts.
        barriers: Number of barriers, counted once per CTA.
    """

    kernel: str = ""
    ctas: int = 0
    threads: int = 0
    instructions: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    load_bytes: int = 0
    store_bytes: int = 0
    load_sectors: int = 0
    store_sectors: int = 0
    traffic: list[Traffic] = dataclasses.field(default_factory=list)
    shared_wavefronts: int = 0
    shared_ideal: int = 0
    barriers: int = 0

    @property
    def read_bytes(self) -> int:
        """Bytes read from memory by a launch with a cache that keeps everything."""
        return sum(tensor.read_bytes for tensor in self.traffic)

    @property
    def written_bytes(self) -> int:
        """Bytes written to memory by a launch with a cache that keeps everything."""
        return sum(tensor.written_bytes for tensor in self.traffic)
