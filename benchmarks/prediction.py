"""A PREDICTION of a launch's time from its machine code: no GPU has measured any of it.

The model: ``time = max(memory, issue, latency) + launch``, where

- memory is the bytes of all tensors of the launch, once each, at the GPU's copy bandwidth;
- issue is the number of executed warp instructions at 70 % of four per cycle and multiprocessor;
- latency is the time of one program, times the number of waves in which the programs run. A
  program waits for its loads, and for the results of its instructions, in the order of its code. By
  Little's law this is the time in which the loads in flight move all bytes;
- launch is a constant.

The largest of the three bounds the kernel, as if the other two were free. So a percentage is rather
too high where two of them are close. Tensors of less than 1 MiB, such as parameters and statistics,
come from L2; all others come from memory, also those that a launch just wrote. Each tensor moves
once: a second sweep over it within a launch costs no memory time.
"""

import dataclasses
import functools
import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from benchmarks.gpus import Gpu, programs_per_multiprocessor
from benchmarks.machine_code import Launch, MachineCode
from benchmarks.rows import BOUNDS
from benchmarks.sass.instructions import Instruction
from benchmarks.sass.path import Path, follow
from benchmarks.sass.schedule import schedule

LAUNCH_MICROSECONDS = 2.0  # assumed, from one kernel of a stream to the next

ISSUED = 0.7  # assumed share of the four instructions a cycle, since not all units take one each

_LARGE = 2**20  # bytes
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
        ValueError: If the path through the machine code can't be followed, or the launch gets the
            addresses of its tensors in a table, so that their sizes are not known.
    """
    if torch.int64 in launch.args:
        raise ValueError(
            "the addresses of its tensors are in a table, so their sizes are not known"
        )
    path = path_of(launch, code)
    programs = math.prod(launch.grid)
    held = occupancy(launch, code, gpu)
    waves = programs / max(1, held * gpu.multiprocessors)
    seconds, bytes_in_flight = schedule(
        path, launch.num_warps, gpu.gigahertz, large_pointers(launch, code)
    )
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


def predict_pass(predictions: Sequence[Prediction]) -> tuple[float, float, str]:
    """Return the floor and the predicted time of launches that follow each other, and their bound.

    Both times are in microseconds. The bound is that of most of the predicted time.
    """
    times = dict.fromkeys(BOUNDS, 0.0)
    for prediction in predictions:
        launch = LAUNCH_MICROSECONDS if prediction.bound != "launch" else prediction.predicted_us
        times["launch"] += launch
        times[prediction.bound] += prediction.predicted_us - launch
    return (
        sum(p.floor_us for p in predictions),
        sum(times.values()),
        max(BOUNDS, key=lambda bound: times[bound]),
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


def large_pointers(launch: Launch, code: MachineCode) -> frozenset[int]:
    """Return where in constant bank 0 the pointers to tensors of 1 MiB and more are."""
    numels = iter(launch.numels)
    sizes = [
        next(numels) * arg.itemsize if isinstance(arg, torch.dtype) else 0 for arg in launch.args
    ]
    return frozenset(place for i, place, _, _ in _passed(launch, code) if sizes[i] >= _LARGE)


def _constants(launch: Launch, code: MachineCode) -> dict[int, int]:
    """Return the words of constant bank 0: the sizes of program and grid, and the arguments."""
    start = _LAUNCH_SIZES[code.target]
    gap = 16 if code.target >= 100 else 12
    words = {start + 4 * i: size for i, size in enumerate((launch.num_warps * 32, 1, 1))}
    words |= {start + gap + 4 * i: size for i, size in enumerate((*launch.grid, 1, 1)[:3])}
    for i, place, form, value in _passed(launch, code):
        data = struct.pack(form, (i + 1) << 40 if isinstance(value, torch.dtype) else value)
        padded = data.ljust(-(-len(data) // 4) * 4, b"\0")
        for j, word in enumerate(struct.unpack(f"{len(padded) // 4}I", padded)):
            words[place + 4 * j] = word
    return words


def _passed(launch: Launch, code: MachineCode) -> Iterator[tuple[int, int, str, Any]]:
    """Yield the index, the place in constant bank 0, the format and the value of each argument.

    Pointers have numbers of their own in place of addresses.
    """
    place = _PARAMETERS[code.target]
    for i, (kind, value) in enumerate(zip(code.types, launch.args, strict=False)):
        if kind != "constexpr":
            form = "Q" if kind.startswith("*") else _FORMATS[kind]
            place += -place % struct.calcsize(form)
            yield i, place, form, value
            place += struct.calcsize(form)
