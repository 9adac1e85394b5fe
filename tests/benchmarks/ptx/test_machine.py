"""Planted PTX: threads, branches, barriers, memory accesses and their checks."""

import numpy as np
import pytest

from benchmarks.ptx import StuckError, UnsupportedPtxError
from tests.benchmarks.ptx.bodies import execute, kinds, numbers


def test_every_thread_stores_its_number_plus_a_parameter() -> None:
    out = numbers()
    counters, findings = execute(
        "add.s32 %r4, %r2, %r1;\n st.global.b32 [ %rd2 + 0 ], { %r4 };", out
    )
    np.testing.assert_array_equal(out, np.arange(64) + 5)
    assert not findings
    assert counters.store_bytes == 256
    assert counters.store_sectors == 8
    assert counters.instructions["st.global"] == 2


def test_a_narrow_integer_fills_its_register_with_its_sign() -> None:
    out = numbers()
    body = """
    add.s32 %r4, %r2, 100;
    cvt.s8.s32 %rs1, %r4;
    shr.u16 %rs2, %rs1, 12;
    cvt.u32.u16 %r5, %rs2;
    st.global.b32 [ %rd2 + 0 ], { %r5 };"""
    execute(body, out)
    np.testing.assert_array_equal(out, np.where(np.arange(64) + 100 < 128, 0, 15))


@pytest.mark.parametrize(("kind", "pair"), [("f16x2", "0x4000bc00"), ("bf16x2", "0x4000bf80")])
def test_packed_numbers_are_compared_each_for_a_predicate(kind: str, pair: str) -> None:
    out = numbers()
    body = f"""
    mov.b32 %r4, {pair};
    mov.b32 %r5, 0;
    setp.gt.{kind} %p1|%p2, %r4, %r5;
    selp.b32 %r6, 1, 0, %p1;
    selp.b32 %r7, 2, 0, %p2;
    add.s32 %r6, %r6, %r7;
    st.global.b32 [ %rd2 + 0 ], {{ %r6 }};"""
    execute(body, out)  # -1 in the low half, 2 in the high half
    np.testing.assert_array_equal(out, np.full(64, 2))


def test_branches_diverge_and_meet_again() -> None:
    out = numbers()
    body = """
    and.b32 %r4, %r2, 1;
    setp.eq.b32 %p1, %r4, 0;
    mov.b32 %r5, 10;
    @%p1 bra $EVEN;
    mov.b32 %r5, 20;
$EVEN:
    shfl.sync.bfly.b32 %r6, %r5, 1, 31, -1;
    st.global.b32 [ %rd2 + 0 ], { %r6 };"""
    _, findings = execute(body, out)
    np.testing.assert_array_equal(out, np.where(np.arange(64) % 2, 10, 20))
    assert not findings


def test_loops_of_different_lengths_end() -> None:
    out = numbers()
    body = """
    mov.b32 %r4, 0;
$LOOP:
    add.s32 %r4, %r4, 1;
    setp.lt.u32 %p1, %r4, %r2;
    @%p1 bra $LOOP;
    st.global.b32 [ %rd2 + 0 ], { %r4 };"""
    execute(body, out)
    np.testing.assert_array_equal(out, np.maximum(np.arange(64), 1))


_THROUGH_SHARED = """
    shl.b32 %r4, %r2, 2;
    mov.b32 %r5, global_smem;
    add.s32 %r6, %r5, %r4;
    st.shared::cta.b32 [ %r6 + 0 ], %r2;
    {barrier}
    xor.b32 %r7, %r4, 128;
    add.s32 %r8, %r5, %r7;
    ld.shared.b32 %r9, [%r8];
    st.global.b32 [ %rd2 + 0 ], {{ %r9 }};"""


def test_shared_memory_moves_between_warps() -> None:
    out = numbers()
    counters, findings = execute(_THROUGH_SHARED.format(barrier="bar.sync 0;"), out)
    np.testing.assert_array_equal(out, np.arange(64) ^ 32)
    assert not findings
    assert counters.barriers == 1
    assert counters.shared_wavefronts == counters.shared_ideal == 4


def test_a_missing_barrier_is_a_race() -> None:
    _, findings = execute(_THROUGH_SHARED.format(barrier=""), numbers())
    assert kinds(findings) == ["race"]


def test_threads_of_a_warp_race_unless_they_run_in_step() -> None:
    body = _THROUGH_SHARED.format(barrier="").replace("128", "4")
    out = numbers()
    assert not execute(body, out)[1]
    assert kinds(execute(body, out, warp_synchronous=False)[1]) == ["race"]


def test_bank_conflicts_are_counted() -> None:
    body = """
    shl.b32 %r4, %r2, 7;
    st.shared.b32 [%r4], %r2;"""
    counters, _ = execute(body, numbers(), shared=64 * 128)
    assert (counters.shared_wavefronts, counters.shared_ideal) == (64, 2)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("ld.global.b32 { %r4 }, [ %rd2 + 4 ];", "bounds"),
        ("ld.global.b32 { %r4 }, [ %rd2 + -4 ];", "bounds"),
        ("ld.global.b32 { %r4 }, [ %rd1 + 2 ];", "alignment"),
        ("ld.global.v4.b32 { %r4, %r5, %r6, %r7 }, [ %rd1 + 4 ];", "alignment"),
        ("ld.shared.b32 %r4, [global_smem];", "uninitialised"),
        ("ld.shared.b32 %r4, [global_smem+1024];", "bounds"),
        ("st.global.b32 [ %rd1 + 0 ], { %r2 };", "conflict"),
    ],
)
def test_an_error_is_found(body: str, kind: str) -> None:
    _, findings = execute(body, numbers())
    assert kind in kinds(findings)


def test_reading_what_nobody_wrote_is_found() -> None:
    body = "ld.global.b32 { %r4 }, [ %rd2 + 0 ];"
    assert kinds(execute(body, numbers(), initialised=False)[1]) == ["uninitialised"]


@pytest.mark.parametrize("seed", range(2))
def test_what_another_cta_wrote_is_a_race(seed: int) -> None:
    body = """
    ld.global.b32 { %r4 }, [ %rd2 + 0 ];
    add.s32 %r4, %r4, 1;
    st.global.b32 [ %rd2 + 0 ], { %r4 };"""
    _, findings = execute(body, numbers(), grid=(2,), seed=seed)
    assert set(kinds(findings)) == {"race"}


def test_predicates_turn_threads_off() -> None:
    out = numbers()
    body = """
    setp.lt.u32 %p1, %r2, 7;
    @%p1 st.global.b32 [ %rd2 + 0 ], { %r2 };"""
    counters, _ = execute(body, out)
    np.testing.assert_array_equal(out, np.where(np.arange(64) < 7, np.arange(64), 0))
    assert counters.store_bytes == 28


def test_a_barrier_in_one_branch_gets_stuck() -> None:
    body = """
    setp.lt.u32 %p1, %r2, 32;
    @%p1 bra $SKIP;
    shfl.sync.bfly.b32 %r4, %r2, 1, 31, -1;
    bar.sync 0;
    bra $SKIP;
$SKIP:
    setp.eq.u32 %p2, %r2, 0;
    @%p2 bra $END;
    shfl.sync.bfly.b32 %r4, %r2, 1, 31, -1;
$END:"""
    with pytest.raises(StuckError):
        execute(body, numbers())


def test_an_unknown_instruction_is_refused() -> None:
    with pytest.raises(UnsupportedPtxError, match="wgmma"):
        execute("wgmma.fence.sync.aligned.f32 %r4, %r5;", numbers())


def test_paths_of_a_loop_meet_in_every_round() -> None:
    body = """
    mov.b32 %r4, 0;
    mov.b32 %r5, 0;
$LOOP:
    add.s32 %r6, %r2, %r4;
    and.b32 %r6, %r6, 1;
    setp.eq.b32 %p1, %r6, 0;
    @%p1 bra $EVEN;
$JOIN:
    ld.global.b32 { %r7 }, [ %rd2 + 0 ];
    add.s32 %r4, %r4, 1;
    setp.lt.u32 %p2, %r4, 10;
    @%p2 bra $LOOP;
    bra $END;
$EVEN:
    add.s32 %r5, %r5, 1;
    bra $JOIN;
$END:
    st.global.b32 [ %rd2 + 0 ], { %r5 };"""
    out = numbers()
    counters, _ = execute(body, out)
    np.testing.assert_array_equal(out, 5)
    assert counters.instructions["ld.global"] == 20
