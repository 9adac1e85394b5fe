"""Bodies of PTX kernels, and a function that executes them."""

from typing import Any

import numpy as np

from benchmarks.ptx import Counters, Findings, GlobalMemory, Options, parse, run
from benchmarks.ptx.registers import Array

_HEAD = """.version 8.8
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry k(
    .param .u64 .ptr .global .align 1 k_param_0,
    .param .u32 k_param_1
)
.reqntid 64
{
    .reg .pred %p<9>;
    .reg .b32 %r<99>;
    .reg .b64 %rd<9>;
    ld.param.b64 %rd1, [k_param_0];
    ld.param.b32 %r1, [k_param_1];
    mov.u32 %r2, %tid.x;
    mov.u32 %r3, %ctaid.x;
    mad.wide.u32 %rd2, %r2, 4, %rd1;
"""


def execute(
    body: str, out: Array, grid: tuple[int, ...] = (1,), shared: int = 1024,
    initialised: bool = True, **options: Any,
) -> tuple[Counters, Findings]:  # fmt: skip
    """Execute ``body`` with 64 threads per CTA.

    The body finds the address of ``out`` in ``%rd1``, the number 5 in ``%r1``, the number of the
    thread in ``%r2``, that of the CTA in ``%r3``, and ``%rd1`` plus four times ``%r2`` in ``%rd2``.
    """
    findings = Findings()
    memory = GlobalMemory(findings)
    buffer = memory.add(out.view(np.uint8).reshape(-1), "out", initialised)
    program = parse(_HEAD + body + "\n    ret;\n}\n")
    counters = run(program, grid, (buffer.base, 5), memory, shared, Options(**options))
    return counters, findings


def kinds(findings: Findings) -> list[str]:
    """Return the kind of each finding."""
    return [finding.kind for finding in findings]


def numbers() -> Array:
    """Return 64 zeros, one per thread."""
    return np.zeros(64, np.uint32)
