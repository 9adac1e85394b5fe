"""The GPUs that ``static`` predicts for: sizes and limits, and how many programs they hold."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One GPU. The limits per multiprocessor are those of its compute capability.

    Sources: NVIDIA's data sheets of the A100 80 GB SXM, H100 SXM, H200 SXM and B200; the table
    "Technical Specifications per Compute Capability" of the CUDA C++ Programming Guide.

    Attributes:
        name: Its name.
        target: Compute capability times ten.
        multiprocessors: Number of multiprocessors (SMs).
        gigahertz: Clock of the multiprocessors under load.
        terabytes_per_s: Bandwidth of the memory by the data sheet.
        shared: Bytes of shared memory of a multiprocessor.
        registers: 32-bit registers of a multiprocessor.
        warps: Most warps of a multiprocessor.
        programs: Most programs (thread blocks) of a multiprocessor.
    """

    name: str
    target: int
    multiprocessors: int
    gigahertz: float
    terabytes_per_s: float
    shared: int
    registers: int = 65536
    warps: int = 64
    programs: int = 32

    @property
    def copy_bytes_per_s(self) -> float:
        """Bytes read plus bytes written per second by a large copy.

        An H200 was measured: 4.3 TB/s, which is 90 % of its data sheet. The same share is assumed
        of the other GPUs.
        """
        return _COPY_SHARE * self.terabytes_per_s * 1e12

    @property
    def issues_per_s(self) -> float:
        """Warp instructions that all multiprocessors issue per second: 4 a cycle each."""
        return 4 * self.multiprocessors * self.gigahertz * 1e9


_COPY_SHARE = 4.3 / 4.8

GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100", 80, 108, 1.41, 2.039, 164 * 1024),
        Gpu("H100", 90, 132, 1.755, 3.35, 228 * 1024),
        Gpu("H200", 90, 132, 1.755, 4.8, 228 * 1024),
        Gpu("B200", 100, 148, 1.965, 8.0, 228 * 1024),
    )
}

_WARP_REGISTERS = 256  # a warp's registers are allocated in multiples of this number
_WARP_GROUPS = 4  # the registers are split into four parts, and a warp's are in one part
_RESERVED_SHARED = 1024  # bytes that each program takes in addition
_SHARED_UNIT = 128


def programs_per_multiprocessor(gpu: Gpu, registers: int, warps: int, shared: int) -> int:
    """Return how many programs a multiprocessor holds at a time, as the occupancy calculator does.

    Args:
        gpu: The GPU.
        registers: Registers per thread.
        warps: Warps of a program.
        shared: Bytes of shared memory of a program.
    """
    per_warp = _round_up(registers * 32, _WARP_REGISTERS)
    resident_warps = gpu.registers // _WARP_GROUPS // per_warp * _WARP_GROUPS
    program_shared = _round_up(shared + _RESERVED_SHARED, _SHARED_UNIT)
    return min(
        gpu.programs, gpu.warps // warps, resident_warps // warps, gpu.shared // program_shared
    )


def _round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit
