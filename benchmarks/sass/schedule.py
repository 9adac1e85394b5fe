"""The time of one program by the order of its instructions: a simple scoreboard."""

import functools
import re

from benchmarks.sass.instructions import Instruction, registers_of
from benchmarks.sass.path import Path

# Between 270 ns without other traffic (479 cycles of an H100 in Luo et al., "Benchmarking and
# Dissecting the Nvidia Hopper GPU Architecture", arXiv:2402.13499) and over 1000 ns at the full
# bandwidth. Assumed for all GPUs.
LOAD_NANOSECONDS = 800.0

# Cycles until the result of an instruction can be used: 29 for shared memory and 263 for L2 in the
# same paper, about 4 for arithmetic since Volta. The others are assumed.
_L2_CYCLES, _SHARED_CYCLES, _SLOW_CYCLES, _CYCLES = 263, 29, 20, 4
_SHARED = {"LDS", "LDSM", "SHFL", "ATOMS", "LDC", "LDCU", "ULDC"}
_SLOW = {"MUFU", "F2F", "F2I", "I2F", "S2R", "S2UR", "R2UR", "DADD", "DMUL", "DFMA", "DSETP"}
_GLOBAL = {"LDG", "LDGSTS", "LD", "ATOM", "ATOMG"}
_TIMED = 20_000  # instructions of a program; the rest is assumed to run at the same pace


@functools.lru_cache(maxsize=64)
def schedule(path: Path, warps: int, gigahertz: float, large: frozenset[int]) -> tuple[float, int]:
    """Return the seconds of one program, and the most bytes of loads that a thread waits for.

    The instructions are issued in order, each when its sources are there. The warps of a program
    take turns on the four schedulers of a multiprocessor; other programs are not counted.

    Args:
        path: The instructions that a thread of the program executes.
        warps: Number of warps of the program.
        gigahertz: The clock.
        large: Addresses in constant bank 0 of the pointers to tensors that no cache holds.
    """
    uses, constants = registers_of(path.code), _constants_of(path.code)
    names = [instruction.name for instruction in path.code]
    words = {address + offset for address in large for offset in (0, 4)}
    interval = max(1.0, warps / 4)
    load = LOAD_NANOSECONDS * gigahertz
    ready: dict[str, float] = {}
    pointers: set[str] = set()  # registers with an address in a large tensor
    flying: list[tuple[float, int]] = []
    groups: list[float] = []  # when each group of asynchronous copies to shared memory is complete
    now, copied, most, count = 0.0, 0.0, 0, 0
    for count, position in enumerate(path, 1):
        name, (written, read) = names[position], uses[position]
        start = max((ready[r] for r in read if r in ready), default=0.0)
        if name == "DEPBAR" and groups:
            left = int(path.code[position].operands[-1], 0)
            start = max([start, *(groups[:-left] if left else groups)])
            groups = groups[-left:] if left else []
        if start > now + _L2_CYCLES:  # a wait for loads
            most = max(most, sum(size for end, size in flying if end > now))
            flying = [(end, size) for end, size in flying if end > start]
        now = max(now, start)
        end = now + _cycles(name)
        points = not pointers.isdisjoint(read) or not words.isdisjoint(constants[position])
        if name in _GLOBAL and points:
            end = now + load
            flying.append((end, path.code[position].bytes))
        if name == "LDGSTS":
            copied = max(copied, end)
        if name == "LDGDEPBAR":
            groups.append(copied)
        ready.update(dict.fromkeys(written, end))
        (pointers.update if points and name not in _GLOBAL else pointers.difference_update)(written)
        now += interval + (_SLOW_CYCLES if name == "BAR" else 0)
        if count == _TIMED:
            break
    most = max(most, sum(size for end, size in flying if end > now))
    return now * len(path) / max(count, 1) / (gigahertz * 1e9), most


@functools.lru_cache(maxsize=8)
def _constants_of(code: tuple[Instruction, ...]) -> list[range]:
    """Return the addresses in the constant bank that each instruction reads."""
    return [_constants(instruction) for instruction in code]


def _constants(instruction: Instruction) -> range:
    found = re.search(r"c\[0x0\]\[(0x[0-9a-f]+)\]", " ".join(instruction.operands))
    if found is None:
        return range(0)
    first = int(found[1], 16)
    size = instruction.bytes if instruction.name in ("LDC", "LDCU", "ULDC") else 4
    return range(first, first + size)


def _cycles(name: str) -> int:
    if name in _GLOBAL:
        return _L2_CYCLES
    return _SHARED_CYCLES if name in _SHARED else _SLOW_CYCLES if name in _SLOW else _CYCLES
