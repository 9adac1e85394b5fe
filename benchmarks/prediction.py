"""A PREDICTION of a launch's time from its machine code: no GPU has measured any of it.

The model: ``time = max(memory, issue, latency) + launch``, where

- memory is the bytes of all tensors of the launch, once each, at the GPU's copy bandwidth;
- issue is the number of executed warp instructions at 70 % of four per cycle and multiprocessor;
- latency is the time of one program, times the number of waves in which the programs run. A
  program waits for its loads, and for the results of its instructions, in the order of its code. By
  Little's law this is the time in which the loads in flight move all bytes;
- launch is a constant.

The largest of the three bounds the kernel, as if the other two were free. So a percentage is rather
too high where two of them are close. Loads whose address is the same for all programs, such as
those of parameters, come from L2; all others come from memory, also those that a launch just wrote.
Each tensor moves once: a second sweep over it within a launch counts as a hit of L2.
"""

import dataclasses
import functools
import math
import struct

from benchmarks.gpus import Gpu, programs_per_multiprocessor
from benchmarks.machine_code import Launch, MachineCode
from benchmarks.sass.instructions import Instruction, registers
from benchmarks.sass.path import Path, follow

LAUNCH_MICROSECONDS = 2.0  # assumed, from one kernel of a stream to the next

ISSUED = 0.7  # assumed share of the four instructions a cycle, since not all units take one each

# Between 270 ns without other traffic (479 cycles of an H100 in Luo et al., "Benchmarking and
# Dissecting the Nvidia Hopper GPU Architecture", arXiv:2402.13499) and over 1000 ns at the full
# bandwidth. Assumed for all GPUs.
LOAD_NANOSECONDS = 800.0

# Cycles until the result of an instruction can be used: 29 for shared memory and 263
# for L2 in the same paper, about 4 for arithmetic since Volta. The others are assumed.
_L2_CYCLES, _SHARED_CYCLES, _SLOW_CYCLES, _CYCLES = 263, 29, 20, 4
_SHARED = {"LDS", "LDSM", "SHFL", "ATOMS", "LDC", "LDCU", "ULDC"}
_SLOW = {"MUFU", "F2F", "F2I", "I2F", "S2R", "S2UR", "R2UR", "DADD", "DMUL", "DFMA", "DSETP"}
_GLOBAL = {"LDG", "LDGSTS", "LD", "ATOM", "ATOMG"}
_TIMED = 20_000  # instructions of a program; the rest is assumed to run at the same pace

_PARAMETERS = {80: 0x160, 90: 0x210, 100: 0x380}  # where arguments start in constant bank 0
_LAUNCH_SIZES = {80: 0x0, 90: 0x0, 100: 0x360}  # where the sizes of program and grid are
_FORMATS = {"i1": "B", "i8": "b", "i16": "h", "i32": "i", "i64": "q", "fp32": "f", "fp64": "d",
            "u8": "B", "u16": "H", "u32": "I", "u64": "Q"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the machine code of a launch predicts on a GPU. Nothing of it was measured.

    Attributes:
        programs_per_sm: Programs that a multiprocessor holds at a time.
        waves: Programs of the grid over the programs that the GPU holds at a time.
        instructions: Instructions of one thread.
        instructions_per_element: Instructions of all threads, per element of the largest tensor.
        loops: Instructions per iteration x iterations of each loop, see :attr:`Path.loops`.
        guesses: Number of branches on data in memory, which had to be guessed.
        kib_in_flight: Most KiB of loads that a multiprocessor waits for at a time.
        issue_share: Time to issue the instructions over the memory time; above about 0.7 the
            instructions bound the kernel.
        floor_us: Microseconds to move every tensor of the launch once.
        predicted_us: Predicted microseconds.
        bound: The largest part of the predicted time: memory, issue, latency or launch.
    """

    programs_per_sm: int
    waves: float
    instructions: int
    instructions_per_element: float | None
    loops: str
    guesses: int
    kib_in_flight: float
    issue_share: float | None
    floor_us: float
    predicted_us: float
    bound: str

    @property
    def percent_of_floor(self) -> float:
        """The floor in percent of the predicted time."""
        return 100 * self.floor_us / self.predicted_us


def predict(launch: Launch, code: MachineCode, gpu: Gpu) -> Prediction:
    """Predict the time of a launch from its machine code, see the module's docstring.

    Raises:
        ValueError: If the path through the machine code can't be followed.
    """
    path = path_of(launch, code)
    programs = math.prod(launch.grid)
    held = occupancy(launch, code, gpu)
    waves = programs / max(1, held * gpu.multiprocessors)
    seconds, bytes_in_flight = _run(path, launch.num_warps, gpu)
    floor = launch.floor_bytes / gpu.copy_bytes_per_s
    issue = programs * launch.num_warps * len(path) / gpu.issues_per_s
    parts = {
        "memory": floor,
        "issue": issue / ISSUED,
        "latency": math.ceil(waves) * seconds,
        "launch": LAUNCH_MICROSECONDS * 1e-6,
    }
    threads = launch.num_warps * 32
    everywhere = programs * threads * len(path)
    resident = min(held, math.ceil(programs / gpu.multiprocessors))
    return Prediction(
        programs_per_sm=held,
        waves=waves,
        instructions=len(path),
        instructions_per_element=everywhere / launch.elements if launch.elements else None,
        loops=" ".join(f"{size}x{count}" for size, count in path.loops),
        guesses=path.guesses,
        kib_in_flight=bytes_in_flight * threads * resident / 1024,
        issue_share=issue / floor if floor else None,
        floor_us=floor * 1e6,
        predicted_us=1e6 * (max(p for n, p in parts.items() if n != "launch") + parts["launch"]),
        bound=max(parts, key=lambda name: parts[name]),
    )


def occupancy(launch: Launch, code: MachineCode, gpu: Gpu) -> int:
    """Return how many programs of a launch a multiprocessor holds at a time."""
    return programs_per_multiprocessor(gpu, code.registers, launch.num_warps, code.shared)


def path_of(launch: Launch, code: MachineCode) -> Path:
    """Return the path of the first thread of the first program.

    Where programs share the tiles unevenly, the first one has the most.
    """
    special = {f"SR_{name}.{axis}": 0 for name in ("TID", "CTAID") for axis in "XYZ"}
    return _path(code.sass, tuple(sorted(_constants(launch, code).items())), tuple(special))


@functools.lru_cache(maxsize=64)
def _path(
    code: tuple[Instruction, ...], constants: tuple[tuple[int, int], ...], zeros: tuple[str, ...]
) -> Path:
    return follow(code, dict(constants), dict.fromkeys(zeros, 0))


def _constants(launch: Launch, code: MachineCode) -> dict[int, int]:
    """Return the words of constant bank 0: the sizes of program and grid, and the arguments."""
    start = _LAUNCH_SIZES[code.target]
    grid = (*launch.grid, 1, 1)[:3]
    sizes = (launch.num_warps * 32, 1, 1)
    gap = 16 if code.target >= 100 else 12
    words = {start + 4 * i: size for i, size in enumerate(sizes)}
    words |= {start + gap + 4 * i: size for i, size in enumerate(grid)}
    data = bytearray()
    for i, (kind, value) in enumerate(zip(code.types, launch.args, strict=False)):
        if kind == "constexpr":
            continue
        pointer = kind.startswith("*")
        form = "Q" if pointer else _FORMATS[kind]
        data += b"\0" * (-len(data) % struct.calcsize(form))
        data += struct.pack(form, (i + 1) << 40 if pointer else value)
    data += b"\0" * (-len(data) % 4)
    base = _PARAMETERS[code.target]
    found = struct.unpack(f"{len(data) // 4}I", data)
    return words | {base + 4 * i: word for i, word in enumerate(found)}


def _run(path: Path, warps: int, gpu: Gpu) -> tuple[float, int]:
    """Return the seconds of one program, and the most bytes of loads that a thread waits for.

    The instructions are issued in order, each when its sources are there. The warps of a program
    take turns on the four schedulers of a multiprocessor; other programs are not counted.
    """
    uses = _uses(path.code)
    interval = max(1.0, warps / 4)
    load = LOAD_NANOSECONDS * gpu.gigahertz
    ready: dict[str, float] = {}
    moving: set[str] = set()  # registers that depend on the program's id
    flying: list[tuple[float, int]] = []
    groups: list[float] = []  # when each group of asynchronous copies to shared memory is complete
    now, copied, most, count = 0.0, 0.0, 0, 0
    for count, position in enumerate(path, 1):
        instruction, (written, read) = path.code[position], uses[position]
        name = instruction.name
        start = max((ready[r] for r in read if r in ready), default=0.0)
        if name == "DEPBAR" and groups:
            left = int(instruction.operands[-1], 0)
            start = max([start, *(groups[:-left] if left else groups)])
            groups = groups[-left:] if left else []
        if start > now + _L2_CYCLES:  # a wait for loads
            most = max(most, sum(size for end, size in flying if end > now))
            flying = [(end, size) for end, size in flying if end > start]
        now = max(now, start)
        end = now + _cycles(name)
        moves = not moving.isdisjoint(read) or any("CTAID" in o for o in instruction.operands)
        if name in _GLOBAL and moves:
            end = copied = now + load
            flying.append((end, instruction.bytes))
        if name == "LDGDEPBAR":
            groups.append(copied)
        ready.update(dict.fromkeys(written, end))
        (moving.update if moves else moving.difference_update)(written)
        now += interval + (_SLOW_CYCLES if name == "BAR" else 0)
        if count == _TIMED:
            break
    most = max(most, sum(size for end, size in flying if end > now))
    return now * len(path) / max(count, 1) / (gpu.gigahertz * 1e9), most


@functools.lru_cache(maxsize=8)
def _uses(code: tuple[Instruction, ...]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    return [registers(instruction) for instruction in code]


def _cycles(name: str) -> int:
    if name in _GLOBAL:
        return _L2_CYCLES
    return _SHARED_CYCLES if name in _SHARED else _SLOW_CYCLES if name in _SLOW else _CYCLES
