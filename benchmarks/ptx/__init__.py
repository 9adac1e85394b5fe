"""Executes compiled kernels on the CPU: the PTX that Triton compiles for a GPU, with NumPy.

Triton's interpreter runs the source of a kernel. This package runs the compiled code: layout
conversions, shuffles, shared memory and barriers, vector accesses, asynchronous copies, fused
multiply-adds and approximate instructions. bfloat16 is rounded as on a GPU.

Example:
    In a process without ``TRITON_INTERPRET=1``::

        with compiled_on_cpu(target=90) as record:
            y = lightning_kernels.layer_norm(x, (768,), weight, bias)
            y.backward(grad)
        print(record.findings)
        print(record.launches[0].instructions, record.launches[0].read_bytes)

**Findings** are errors of a kernel: see :class:`Finding`. Registers and shared memory begin as
noise, programs run in random order, and asynchronous copies arrive as late as the code allows. So a
result that depends on any of them is wrong, or changes with ``Options.seed``.

**Conflicts** are mostly Triton's. If a sum follows a product, ``mul`` and the first ``add`` of a
butterfly become one ``fma``, which is not symmetric. Lanes that should hold copies of one sum then
differ in the last digits, and all of them store it to the same address. ``Finding.apart`` says by
how much they differ.

**Modelled**: what Triton 3.6 to 3.8 compile the kernels of this project to, for the compute
capabilities 8.0, 9.0 and 10.0. Every other instruction raises :class:`UnsupportedPtxError` before
the first one is executed. ``fma.rn.f32`` and all roundings are exact. An approximate instruction
returns the rounded exact result, or one that is wrong by the largest error of the PTX manual
(``Options(approximate_ulps=1.0)``).

**Not modelled**: TMA, ``mbarrier``, tensor cores, atomics, clusters, local memory, time, and races
on global memory within one program. The threads of a warp run in step unless they branch
(``Options(warp_synchronous=False)`` finds accesses to shared memory that rely on it).
``fma.rn.f64`` is almost always rounded as once.

An instruction takes about 10 microseconds for a program of 128 threads, a memory access about 100:
use small tensors.

- ``on_cpu``: runs functions of :mod:`lightning_kernels` on tensors of the CPU.
- ``parser``: the text of PTX as data.
- ``registers``: registers and operands, as views of arrays.
- ``arithmetic``, ``floats``: the instructions that compute in one thread.
- ``warp``: shuffles, votes and matrices.
- ``memory``, ``shared``: global and shared memory, with checks and counters of accesses.
- ``copies``: asynchronous copies from global to shared memory.
- ``steps``: each instruction as a function.
- ``machine``, ``flow``: threads, branches and barriers.
- ``report``: findings and counters.
"""

from benchmarks.ptx.machine import Options, StuckError, run
from benchmarks.ptx.memory import GlobalMemory
from benchmarks.ptx.on_cpu import Record, compiled_on_cpu
from benchmarks.ptx.parser import Program, UnsupportedPtxError, parse
from benchmarks.ptx.report import Counters, Finding, Findings, Traffic

__all__ = [
    "Counters",
    "Finding",
    "Findings",
    "GlobalMemory",
    "Options",
    "Program",
    "Record",
    "StuckError",
    "Traffic",
    "UnsupportedPtxError",
    "compiled_on_cpu",
    "parse",
    "run",
]
