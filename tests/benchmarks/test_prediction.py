"""Predictions from machine code: planted kernels whose counts and limits are known."""

import math

import pytest
import torch
import triton
import triton.language as tl

from benchmarks.gpus import GPUS, programs_per_multiprocessor
from benchmarks.launches import launches_of
from benchmarks.machine_code import TARGETS, Launch, compile_launch
from benchmarks.prediction import Prediction, occupancy, path_of, predict, predict_pass
from benchmarks.sass.instructions import parse
from benchmarks.sass.path import Path, follow
from benchmarks.sass.schedule import LOAD_NANOSECONDS, schedule

BLOCK = 1024


@triton.jit  # type: ignore[untyped-decorator]
def _copy_kernel(  # type: ignore[no-untyped-def]
    x_ptr, y_ptr, tiles, pieces, BLOCK: tl.constexpr
):
    """Copy ``tiles // pieces`` tiles, each program every ``num_programs``-th of them."""
    for tile in range(tl.program_id(0), tiles // pieces, tl.num_programs(0)):
        at = tl.cast(tile, tl.int64) * BLOCK + tl.arange(0, BLOCK)
        tl.store(y_ptr + at, tl.load(x_ptr + at) + 1.0)


@triton.jit
def _search_kernel(x_ptr, y_ptr):  # type: ignore[no-untyped-def]
    """Loop as often as a number in memory says."""
    for i in range(tl.load(x_ptr)):
        tl.store(y_ptr + i, i)


def copying(tiles: int, programs: int, pieces: int = 1) -> Launch:
    args = (torch.float32, torch.float32, tiles, pieces, BLOCK)
    numel = tiles // pieces * BLOCK
    return Launch(_copy_kernel, (programs,), args, {"num_warps": 4}, (numel, numel))


def bytes_of(path: Path, name: str) -> int:
    """Return the bytes that a thread's executed instructions of this name access."""
    return sum(path.code[i].bytes for i in path if path.code[i].name == name)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("tiles", "programs", "pieces"),
    [(64, 8, 1), (65, 8, 1), (1000, 132, 1), (3, 8, 1), (1000, 7, 3), (4099, 5, 64)],
)
def test_loops_are_followed_with_the_sizes_of_the_launch(
    tiles: int, programs: int, pieces: int, target: int
) -> None:
    launch = copying(tiles, programs, pieces)
    path = path_of(launch, compile_launch(launch, target))
    trips = math.ceil(tiles // pieces / programs)  # of the first program
    per_tile = BLOCK * 4 // 128  # bytes of a thread
    assert bytes_of(path, "LDG") == bytes_of(path, "STG") == trips * per_tile
    assert path.guesses == 0


def test_a_loop_over_data_is_one_guess() -> None:
    launch = Launch(_search_kernel, (1,), (torch.int32, torch.int32), {}, (1, 64))
    path = path_of(launch, compile_launch(launch, 90))
    assert path.guesses >= 1
    assert bytes_of(path, "STG") >= 4


def test_kernels_move_their_tensors_once() -> None:
    """The executed accesses of a real kernel agree with the sizes of its tensors."""
    for launch in launches_of("dropout bf16 256x197x768"):
        path = path_of(launch, compile_launch(launch, 90))
        threads = launch.num_warps * 32 * math.prod(launch.grid)
        assert bytes_of(path, "STG") * threads == launch.elements * 2
        assert launch.floor_bytes == launch.elements * 4


PLANTED = """
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/                   ULDC UR4, c[0x0][0x220] ;
        /*0020*/                   IMAD.MOV.U32 R3, RZ, RZ, RZ ;
        /*0030*/                   IADD3 R3, R3, 0x1, RZ ;
        /*0040*/                   FADD R4, R4, 1 ;
        /*0050*/                   ISETP.GE.AND P0, PT, R3, UR4, PT ;
        /*0060*/              @!P0 BRA 0x30 ;
        /*0070*/              @P1  BRA 0x90 ;
        /*0080*/                   CALL.REL.NOINC 0xb0 ;
        /*0090*/                   EXIT ;
        /*00a0*/                   BRA 0xa0;
        /*00b0*/                   RET.REL.NODEC R6 0x0 ;
"""


def test_a_planted_loop_is_counted() -> None:
    path = follow(parse(PLANTED), {0x220: 10}, {"SR_TID.X": 0})
    assert len(path) == 3 + 10 * 4 + 1 + 1  # the call depends on data, so it is skipped
    assert path.loops == [(4, 10)]
    assert path.guesses == 1


# A loop that is left by a call: so the compiler for compute capability 8.0 ends loops that load
# tiles ahead. The size of a step, also its negative, and the last value are in the constant bank.
LEFT_BY_A_CALL = """
        /*0000*/                   S2R R0, SR_CTAID.X ;
        /*0010*/                   MOV R1, c[0x0][0xc] ;
        /*0020*/                   LEA R2, R1, R0, 0x1 ;
        /*0030*/                   IADD3 R0, R2, -c[0x0][0xc], RZ ;
        /*0040*/                   ISETP.GE.AND P2, PT, R0, c[0x0][0x198], PT ;
        /*0050*/               @P2 CALL.REL.NOINC 0x70 ;
        /*0060*/                   BRA 0x10 ;
        /*0070*/                   EXIT ;
        /*0080*/                   BRA 0x80;
"""


@pytest.mark.parametrize(
    ("size", "iterations", "guesses"), [(100, 10, 0), (101, 11, 0), (None, 1, 1)]
)
def test_a_loop_that_a_call_leaves_is_counted(
    size: int | None, iterations: int, guesses: int
) -> None:
    constants = {0xC: 10} if size is None else {0xC: 10, 0x198: size}
    path = follow(parse(LEFT_BY_A_CALL), constants, {"SR_CTAID.X": 0})
    assert len(path) == 1 + iterations * 5 + (iterations - 1) + 1
    assert path.guesses == guesses
    assert path.loops == ([(6, iterations - 1)] if iterations > 1 else [])


def test_an_endless_path_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.sass.path._MOST_BLOCKS", 100)
    with pytest.raises(ValueError, match="does not end"):
        follow(parse("/*0000*/ BRA 0x0 ;"), {}, {})


def loads(code: str) -> tuple[float, int]:
    """Return the cycles and bytes in flight of code whose R2 points into a large tensor."""
    lines = ["ULDC.64 UR4, c[0x0][0x210]", "IMAD.U32 R2, RZ, RZ, UR4", *code.splitlines(), "EXIT"]
    text = "\n".join(f"/*{16 * i:04x}*/ {line.strip()} ;" for i, line in enumerate(lines))
    path = follow(parse(text), {}, {})
    seconds, in_flight = schedule(path, 4, 1.0, frozenset({0x210}))
    return seconds * 1e9, in_flight


def test_loads_that_are_issued_together_wait_once() -> None:
    load, other = "LDG.E.128 R4, desc[UR6][R2.64]", "LDG.E.128 R8, desc[UR6][R2.64+0x10]"
    use, later = "FADD R12, R4, R4", "FADD R13, R8, R8"
    together, both = loads("\n".join([load, other, use, later]))
    apart, one = loads("\n".join([load, use, other, later]))
    assert (both, one) == (32, 16)
    assert LOAD_NANOSECONDS < together < 1.2 * LOAD_NANOSECONDS
    assert 2 * LOAD_NANOSECONDS < apart < 2.2 * LOAD_NANOSECONDS


def test_asynchronous_copies_are_waited_for_by_group() -> None:
    copy = "LDGSTS.E.BYPASS.128 [R9], desc[UR6][R2.64]\nLDGDEPBAR"
    one, in_flight = loads(f"{copy}\nDEPBAR.LE SB0, 0x0")
    none, _ = loads(f"{copy}\nDEPBAR.LE SB0, 0x1")
    assert in_flight == 16
    assert one > LOAD_NANOSECONDS
    assert none < 0.2 * LOAD_NANOSECONDS


@pytest.mark.parametrize(
    ("registers", "warps", "shared", "programs"),
    [
        (32, 4, 0, 16), (32, 1, 0, 32), (64, 8, 0, 4), (128, 8, 0, 2), (129, 8, 0, 1),
        (88, 1, 0, 20),
        (168, 4, 0, 3), (255, 8, 0, 1), (80, 8, 0, 3), (32, 4, 100 * 1024, 2),
        (32, 4, 227 * 1024, 1),
    ],
)  # fmt: skip
def test_occupancy_is_that_of_the_calculator(
    registers: int, warps: int, shared: int, programs: int
) -> None:
    assert programs_per_multiprocessor(GPUS["H200"], registers, warps, shared) == programs


def test_a_planted_copy_is_bound_by_memory_and_a_small_one_by_its_launch() -> None:
    gpu = GPUS["H200"]
    large = copying(2**19, 132 * 8)
    code = compile_launch(large, 90)
    assert occupancy(large, code, gpu) >= 8
    prediction = predict(large, code, gpu)
    assert prediction.floor_us == pytest.approx(2**19 * BLOCK * 8 / 4.3e6)
    assert prediction.bound in ("memory", "latency")
    assert 50 < prediction.percent_of_floor < 100
    assert prediction.waves == pytest.approx(8 / prediction.programs_per_sm)
    small = copying(4, 4)
    assert predict(small, code, gpu).bound == "launch"
    share = prediction.issue_share
    assert share is not None
    slots = 4 * 132 * 1.755e3  # per microsecond
    warps = 132 * 8 * 4
    assert share * prediction.floor_us == pytest.approx(prediction.instructions * warps / slots)


def test_a_table_of_tensors_is_not_predicted() -> None:
    launch = launches_of("clip_grad_value_")[0]
    with pytest.raises(ValueError, match="in a table"):
        predict(launch, compile_launch(launch, 90), GPUS["H200"])


def test_a_pass_is_bound_by_what_takes_most_of_it() -> None:
    def part(floor: float, predicted: float, bound: str) -> Prediction:
        return Prediction(1, 1.0, 1, 1.0, "", 0, 1.0, 1.0, floor, predicted, bound)

    launches = [part(1, 4, "latency"), part(9, 12, "memory"), part(0, 3, "launch")]
    assert predict_pass(launches) == (10, 19, "memory")
    assert predict_pass([part(0, 3, "launch"), part(1, 4, "latency")])[2] == "launch"
