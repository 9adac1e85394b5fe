"""Asynchronous copies, planted and of a pipelined loop: missing waits and barriers are found."""

from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from benchmarks.machine_code import compile_kernel
from benchmarks.ptx import Counters, Findings, GlobalMemory, UnsupportedPtxError, parse, run
from benchmarks.ptx.registers import Array
from tests.benchmarks.ptx.bodies import execute, kinds

pytestmark = pytest.mark.plain

# Copies the 64 numbers at rd2 to shared memory in two groups of 32 threads each, reads them there
# (r6 is the address that a thread reads), and stores them plus 1.
_THROUGH_SHARED = """
    shl.b32 %r4, %r2, 2;
    setp.lt.u32 %p1, %r2, 32;
    setp.ge.u32 %p2, %r2, 32;
    @%p1 cp.async.ca.shared.global [ %r4 + 0 ], [ %rd2 + 0 ], 0x4, 4;
    cp.async.commit_group;
    @%p2 cp.async.ca.shared.global [ %r4 + 0 ], [ %rd2 + 0 ], 0x4, 4;
    cp.async.commit_group;
    WAIT
    BARRIER
    xor.b32 %r6, %r4, OTHER;
    ld.shared.b32 %r7, [%r6];
    bar.sync 0;
    add.s32 %r7, %r7, 1;
    st.global.b32 [ %rd2 + 0 ], { %r7 };"""


def _through_shared(wait: str, barrier: str = "bar.sync 0;", other: int = 128) -> Any:
    out = np.arange(100, 164, dtype=np.uint32)
    body = _THROUGH_SHARED.replace("WAIT", wait).replace("BARRIER", barrier)
    counters, findings = execute(body.replace("OTHER", str(other)), out)
    return out, counters, findings


@pytest.mark.parametrize("wait", ["cp.async.wait_group \t0;", "cp.async.wait_all;"])
def test_copies_arrive_by_their_wait(wait: str) -> None:
    out, counters, findings = _through_shared(wait)
    np.testing.assert_array_equal(out, (np.arange(64) ^ 32) + 101)
    assert not findings
    assert counters.load_bytes == counters.store_bytes == counters.read_bytes == 256
    assert counters.instructions["copy"] == 4


@pytest.mark.parametrize("wait", ["", "cp.async.wait_group 2;"])
def test_a_missing_wait_is_found(wait: str) -> None:
    out, _, findings = _through_shared(wait)
    assert sorted(kinds(findings)) == ["race", "uninitialised"]
    assert (out == 0xCDCDCDCD + 1).all()


def test_a_wait_for_too_few_groups_is_found() -> None:
    out, _, findings = _through_shared("cp.async.wait_group 1;", other=0)
    assert sorted(kinds(findings)) == ["race", "uninitialised"]
    np.testing.assert_array_equal(out[:32], np.arange(32) + 101)
    assert (out[32:] == 0xCDCDCDCD + 1).all()


def test_a_wait_is_no_barrier() -> None:
    assert kinds(_through_shared("cp.async.wait_all;", barrier="")[2]) == ["race"]
    assert not _through_shared("cp.async.wait_all;", barrier="", other=0)[2]


def test_masked_lanes_are_filled_with_zeros() -> None:
    out = np.arange(100, 164, dtype=np.uint32)
    body = """
    shl.b32 %r4, %r2, 2;
    setp.lt.u32 %p1, %r2, 7;
    selp.b32 %r5, 4, 0, %p1;
    mad.wide.u32 %rd3, %r2, 4096, %rd2;
    cp.async.cg.shared.global [ %r4 + 0 ], [ %rd2 + 0 ], 0x4, %r5;
    cp.async.wait_all;
    ld.shared.b32 %r7, [%r4];
    st.global.b32 [ %rd2 + 0 ], { %r7 };"""
    counters, findings = execute(body, out)
    np.testing.assert_array_equal(out, np.where(np.arange(64) < 7, np.arange(64) + 100, 0))
    assert not findings
    assert counters.load_bytes == 28


_REUSED = """
    shl.b32 %r4, %r2, 2;
    xor.b32 %r6, %r4, 128;
    st.shared.b32 [%r4], %r2;
    bar.sync 0;
    ld.shared.b32 %r7, [%r6];
    BARRIER
    cp.async.ca.shared.global [ %r4 + 0 ], [ %rd2 + 0 ], 0x4, 4;
    MORE
    cp.async.wait_all;"""


def test_a_copy_over_bytes_that_others_still_read_is_a_race() -> None:
    body = _REUSED.replace("MORE", "")
    assert not execute(body.replace("BARRIER", "bar.sync 0;"), np.zeros(64, np.uint32))[1]
    _, findings = execute(body.replace("BARRIER", ""), np.zeros(64, np.uint32))
    assert kinds(findings) == ["race"]


@pytest.mark.parametrize("access", ["ld.shared.b32 %r8, [%r4];", "st.shared.b32 [%r4], %r2;"])
def test_an_access_while_the_copy_is_in_flight_is_a_race(access: str) -> None:
    body = _REUSED.replace("BARRIER", "bar.sync 0;").replace("MORE", access)
    assert "race" in kinds(execute(body, np.zeros(64, np.uint32))[1])


def test_a_copy_out_of_bounds_or_off_its_alignment_is_found() -> None:
    body = "cp.async.ca.shared.global [ %r2 + 2 ], [ %rd2 + 4 ], 0x4, 4;"
    _, findings = execute(body, np.zeros(64, np.uint32))  # nothing waits: done at the end
    assert {"alignment", "bounds"} <= set(kinds(findings))


@pytest.mark.parametrize(
    "copy",
    [
        "cp.async.bulk.commit_group;",
        "cp.async.mbarrier.arrive.shared.b64 [%r4];",
        "cp.async.ca.global.shared [ %rd2 + 0 ], [ %r4 + 0 ], 4;",
        "cp.async.ca.shared.global [ %r4 + 0 ], [ %rd2 + 0 ], 4, 2;",
    ],
)
def test_other_copies_are_refused(copy: str) -> None:
    with pytest.raises(UnsupportedPtxError, match=r"cp\.async"):
        execute(copy, np.zeros(64, np.uint32))


@triton.jit  # type: ignore[untyped-decorator]
def _row_sums_kernel(  # type: ignore[no-untyped-def]
    x_ptr, y_ptr, size, BLOCK_SIZE: tl.constexpr, STAGES: tl.constexpr
):
    """Add up the rows of a matrix of ``BLOCK_SIZE`` columns in a pipelined loop."""
    column = tl.arange(0, BLOCK_SIZE)
    total = tl.zeros((BLOCK_SIZE,), tl.float32)
    for row in tl.range(tl.program_id(0), size, tl.num_programs(0), num_stages=STAGES):
        total += tl.load(x_ptr + row * BLOCK_SIZE + column).to(tl.float32)
    tl.store(y_ptr + tl.program_id(0) * BLOCK_SIZE + column, total)


class _Pointer:
    """A tensor in the executed memory, as Triton's compiler sees it."""

    def __init__(self, memory: GlobalMemory, tensor: Tensor) -> None:
        self.dtype = tensor.dtype
        self.address = memory.add(tensor.flatten().view(torch.uint8).numpy(), "tensor").base

    def data_ptr(self) -> int:
        return self.address


def _row_sums(
    x: Tensor, target: int, left_out: str | None = None
) -> tuple[Tensor, Counters, Findings]:
    """Return the sums of every second row, without the PTX statements that begin so."""
    memory = GlobalMemory(Findings())
    y = torch.zeros(2, x.shape[1])
    pointers = [_Pointer(memory, t) for t in (x, y)]
    constants = {"BLOCK_SIZE": x.shape[1], "STAGES": 3, "num_warps": 4}
    compiled = compile_kernel(_row_sums_kernel, (2,), [*pointers, x.shape[0]], constants, target)
    lines = [
        line for line in compiled.asm["ptx"].splitlines()
        if left_out is None or not line.strip().startswith(left_out)
    ]  # fmt: skip
    program = parse("\n".join(lines))
    params = [p.address for p in pointers] + [x.shape[0]]
    params += [0] * (len(program.params) - len(params))
    counters = run(program, (2,), params, memory, compiled.metadata.shared)
    return y, counters, memory.findings


def _expected(x: Tensor) -> Array:
    return torch.stack((x[::2].float().sum(0), x[1::2].float().sum(0))).numpy()


@pytest.mark.parametrize("target", [80, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_pipelined_loop(dtype: torch.dtype, target: int) -> None:
    x = torch.randint(-9, 9, (11, 512)).to(dtype)
    y, counters, findings = _row_sums(x, target)
    np.testing.assert_array_equal(y.numpy(), _expected(x))
    assert not findings
    assert counters.instructions["copy"] >= 4 * 11
    assert counters.read_bytes == x.numel() * x.element_size()


@pytest.mark.parametrize("target", [80, 90])
def test_a_pipelined_loop_without_its_waits_is_wrong(target: int) -> None:
    x = torch.randint(-9, 9, (11, 512)).float()
    y, _, findings = _row_sums(x, target, left_out="cp.async.wait_group")
    assert {"uninitialised", "race"} <= set(kinds(findings))
    assert not np.array_equal(y.numpy(), _expected(x))
