"""What a launch did: counters, and findings of what it must not do."""

import collections
import dataclasses
from typing import Any

from benchmarks.ptx.parser import Instruction


@dataclasses.dataclass
class Finding:
    """Something that a kernel must not do.

    Attributes:
        kind: ``"bounds"``, ``"alignment"``, ``"uninitialised"``, ``"race"`` (the order of threads
            or CTAs decides), ``"conflict"`` (one instruction writes different values to one place)
            or ``"barrier"``.
        kernel: Its name.
        instruction: Its text.
        line: Number of its line in the Python source.
        detail: What happened first.
        count: How many times a warp-wide instruction did so.
    """

    kind: str
    kernel: str
    instruction: str
    line: int
    detail: str
    count: int = 1

    def __str__(self) -> str:
        return (
            f"{self.kind} in {self.kernel} (source line {self.line}), {self.count} times: "
            f"{self.instruction}: {self.detail}"
        )


@dataclasses.dataclass
class Counters:
    """What a launch did, all CTAs together.

    Attributes:
        kernel: Its name.
        ctas: How many ran.
        threads: Of a CTA.
        instructions: Issued by warps, by class.
        load_bytes: Asked for from global memory, by active lanes.
        store_bytes: Likewise.
        load_sectors: 32-byte sectors of each warp's loads, each once per instruction.
        store_sectors: Likewise.
        read_bytes: 32 times the sectors that anything was loaded from, once per launch: what a
            cache that keeps everything reads from memory.
        written_bytes: Likewise of stores.
        shared_wavefronts: Passes that shared memory needed.
        shared_ideal: Passes that it needs without bank conflicts.
        barriers: ``bar.sync``, counted once per CTA.
    """

    kernel: str = ""
    ctas: int = 0
    threads: int = 0
    instructions: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    load_bytes: int = 0
    store_bytes: int = 0
    load_sectors: int = 0
    store_sectors: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    shared_wavefronts: int = 0
    shared_ideal: int = 0
    barriers: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return all of it, for a table or JSON."""
        return {**dataclasses.asdict(self), "instructions": dict(self.instructions)}


class Findings(list[Finding]):
    """Findings, one for each kind at each instruction."""

    def note(self, kind: str, kernel: str, instruction: Instruction, detail: str) -> None:
        """Add one, or count it if it is known."""
        for known in self:
            if (known.kind, known.kernel, known.instruction) == (kind, kernel, instruction.text):
                known.count += 1
                return
        self.append(Finding(kind, kernel, instruction.text, instruction.line, detail))
