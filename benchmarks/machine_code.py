"""The machine code of kernel launches, compiled and read without a GPU.

:func:`record_launches` runs public functions on fake tensors, as if there were a GPU, and records
their kernel launches with the real heuristics and arguments. :func:`compile_launch` compiles such a
launch for a target with Triton's own compiler, and reads registers, spills and the width of memory
accesses.
"""

import contextlib
import dataclasses
import functools
import math
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from packaging.version import Version
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction, MockTensor

from benchmarks.sass.instructions import Instruction, parse
from lightning_kernels._clip_grad import tensor_table as _tensor_table
from lightning_kernels._core import compiled as _compiled
from lightning_kernels._core import crossover as _crossover
from lightning_kernels._core import dispatch as _dispatch
from lightning_kernels._core import launch as _launch

TARGETS = (80, 90, 100)  # compute capabilities: A100, H100 and H200, B200

# The largest number of bytes that a thread of a kernel may spill, by release of Triton, since each
# release has its own ptxas. Kernels that are not listed may not spill. For a newer Triton the last
# release here applies.
# - Backward of add_norm, with a limit of registers: a value or two in a tile of rows.
# - Backward of group norm in float32: a few values in tiles of 16 warps, with 64 registers per
#   thread, so that a multiprocessor holds two programs.
# - The other kernels have no limit of registers. ptxas itself spills a value or two so that a
#   multiprocessor holds one more program. A higher register limit would remove this program again.
MOST_SPILLS: dict[str, dict[str, int]] = {
    "3.6": {
        "_add_norm_backward_kernel": 16,
        "_add_norm_forward_kernel": 8,
        "_group_norm_backward_kernel": 16,
    },
    "3.7": {
        "_group_norm_backward_kernel": 16,
    },
    "3.8": {
        "_add_norm_backward_kernel": 8,
        "_add_norm_forward_kernel": 8,
        "_group_norm_backward_kernel": 16,
        "_row_norm_forward_kernel": 8,
    },
    "3.9": {},
}

_DEFAULT_WARPS = 4  # Triton's default
MULTIPROCESSORS = 132  # an H200's; it determines grids, which don't affect the machine code
_UNCOUNTED = (
    (r"\bscf\.(for|while)\b", "it loops: how often depends on its arguments"),
    (r"\b(scf\.if|cf\.cond_br|cf\.switch)\b", "it branches: which way depends on its arguments"),
    (r"\btt\.(atomic_\w+|descriptor_\w+|call)\b", "it has atomics, descriptors or calls"),
)
# A load or store: its address, and for a type such as tensor<2x128x!tt.ptr<bf16>> the dimensions
# "2x128x" and the item type "bf16".
_ACCESS = r"\btt\.(?:load|store) (%[\w.-]+).*?: (?:tensor<)?((?:\d+x)*)!tt\.ptr<(\w+)>"
_ITEM_BYTES = {
    "i1": 1, "i8": 1, "i16": 2, "i32": 4, "i64": 8, "f16": 2, "bf16": 2, "f32": 4, "f64": 8,
    "f8E4M3FN": 1, "f8E5M2": 1,
}  # fmt: skip
_BITS = {"b8": 8, "b16": 16, "b32": 32, "b64": 64, "b128": 128}


@dataclasses.dataclass(frozen=True)
class Launch:
    """One kernel launch, with dtypes in place of its tensors.

    Attributes:
        kernel: The kernel.
        grid: Number of programs along each axis.
        args: The arguments in order, with dtypes in place of tensors.
        constants: ``constexpr`` arguments and compiler options.
        numels: Number of elements of each tensor among the arguments, in order.
        backward: Whether it belongs to a backward pass.
        repeated: Which of these tensors are passed before in the same launch.
    """

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    constants: dict[str, Any]
    numels: tuple[int, ...] = ()
    backward: bool = False
    repeated: frozenset[int] = frozenset()

    @property
    def num_warps(self) -> int:
        """Number of warps of a program."""
        return int(self.constants.get("num_warps", _DEFAULT_WARPS))

    @property
    def elements(self) -> int:
        """Number of elements of the largest tensor."""
        return max(self.numels, default=0)

    @property
    def floor_bytes(self) -> int:
        """Bytes of all tensors: the launch reads or writes each of them at least once."""
        dtypes = [arg for arg in self.args if isinstance(arg, torch.dtype)]
        sizes = [n * d.itemsize for n, d in zip(self.numels, dtypes, strict=True)]
        return sum(size for i, size in enumerate(sizes) if i not in self.repeated)

    @property
    def name(self) -> str:
        """Name of the kernel function."""
        return str(self.kernel.fn.__name__)


_backward: ContextVar[bool] = ContextVar("_backward", default=False)


@contextlib.contextmanager
def backward_launches() -> Iterator[None]:
    """Mark the launches that are recorded in this context as those of a backward pass."""
    token = _backward.set(True)
    try:
        yield
    finally:
        _backward.reset(token)


class Traffic(NamedTuple):
    """Global memory accesses of a program without loops, counted in its intermediate code.

    Masked lanes at the edge of a tensor count both as bytes and as elements.

    Attributes:
        bytes_per_element: Bytes of the accesses to the program's whole tile, divided by the number
            of elements of the tile. A floor counts these bytes, since they pass through memory
            once.
        other_bytes_per_element: Bytes of all other accesses, divided by the same number:
            parameters, which programs share and caches hold, and statistics, which are small.
        uncounted: Why both numbers are ``None``; ``None`` if they are counted.
    """

    bytes_per_element: float | None
    other_bytes_per_element: float | None
    uncounted: str | None


@dataclasses.dataclass(frozen=True)
class MachineCode:
    """The compiler's output for a launch.

    Attributes:
        kernel: Name of the kernel.
        target: Compute capability times ten.
        registers: Number of 32-bit registers per thread.
        spills: Bytes per thread that are spilled from registers to memory.
        shared: Bytes of shared memory per program.
        load_bits: Width in bits of each instruction that loads from global memory.
        store_bits: Width in bits of each instruction that stores to global memory.
        traffic: Bytes of global memory accesses, counted in the code.
        types: Triton's types of the arguments, with ``"constexpr"`` for those that are not passed.
        cubin: The compiled file.
    """

    kernel: str
    target: int
    registers: int
    spills: int
    shared: int
    load_bits: tuple[int, ...]
    store_bits: tuple[int, ...]
    traffic: Traffic
    types: tuple[str, ...] = ()
    cubin: bytes = dataclasses.field(default=b"", repr=False)

    @functools.cached_property
    def sass(self) -> tuple[Instruction, ...]:
        """The instructions; disassembled when asked for, since that takes as long as compiling."""
        return parse(_cuobjdump(self.cubin, "-sass")) if self.cubin else ()

    @property
    def vector_bits(self) -> int:
        """The smaller of the widest load and the widest store in bits; 0 without accesses."""
        return min((max(bits) for bits in (self.load_bits, self.store_bits) if bits), default=0)


def most_spills(kernel: str, version: str = triton.__version__) -> int:
    """Return how many bytes a thread of ``kernel`` may spill, see :data:`MOST_SPILLS`."""
    listed = max((v for v in MOST_SPILLS if Version(v) <= Version(version)), key=Version)
    return MOST_SPILLS[listed].get(kernel, 0)


@contextlib.contextmanager
def record_launches(multiprocessors: int = MULTIPROCESSORS) -> Iterator[list[Launch]]:
    """Record kernel launches instead of running them, for fake ``cuda`` tensors made inside.

    Args:
        multiprocessors: Number of multiprocessors of the GPU, on which grids depend.

    Yields:
        A list to which each kernel launch inside the context is appended.
    """
    launches: list[Launch] = []

    def record(kernel: Any, grid: tuple[int, ...]) -> Any:
        def keep(*args: Any, **constants: Any) -> None:
            dtypes = tuple(a.dtype if isinstance(a, torch.Tensor) else a for a in args)
            tensors = [a for a in args if isinstance(a, torch.Tensor)]
            first: dict[int, int] = {}
            places = [first.setdefault(id(tensor), i) for i, tensor in enumerate(tensors)]
            repeated = frozenset(i for i, place in enumerate(places) if i != place)
            numels = tuple(tensor.numel() for tensor in tensors)
            of_pass = _backward.get()
            launches.append(Launch(kernel, grid, dtypes, constants, numels, of_pass, repeated))

        return keep

    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        _pretend_gpu(stack, multiprocessors)
        enter(mock.patch.object(JITFunction, "__getitem__", record))
        enter(mock.patch.object(_compiled, "_IS_KNOWN", False))  # launch by __getitem__
        # Treat fake tensors like real tensors, so that operators launch as in eager mode.
        plain = _dispatch._PLAIN_TYPES | {FakeTensor}
        enter(mock.patch.object(_dispatch, "_PLAIN_TYPES", plain))
        enter(FakeTensorMode(allow_non_fake_inputs=True))
        enter(mock.patch.object(torch._C, "_len_torch_dispatch_stack", return_value=0))
        yield launches


def _pretend_gpu(stack: contextlib.ExitStack, multiprocessors: int) -> None:
    """Replace the functions by which the host code queries a GPU."""
    seed, offset, none = (SimpleNamespace(item=lambda n=n: n) for n in (2**63 + 1, 4, 0))
    generator = SimpleNamespace(
        initial_seed=lambda: 2**63 + 1,
        get_offset=lambda: 4,
        set_offset=lambda offset: None,
        philox_state=lambda increment: (seed, offset, none),
    )
    answers = {
        "get_device_properties": lambda device=None: SimpleNamespace(
            multi_processor_count=multiprocessors
        ),
        "current_device": lambda: 0,
        "is_current_stream_capturing": lambda: False,
        "default_generators": (generator,),
    }
    for name, answer in answers.items():
        stack.enter_context(mock.patch.object(torch.cuda, name, answer))
    # They read addresses, and copy to a GPU.
    stack.enter_context(mock.patch.object(_tensor_table, "_key", return_value=()))
    stack.enter_context(mock.patch.object(_tensor_table, "_kept", _table))
    stack.enter_context(mock.patch.object(_dispatch, "_probe_device", return_value=True))
    stack.enter_context(mock.patch.object(_crossover, "_policy", "always"))
    _launch.multiprocessor_count.cache_clear()
    stack.callback(_launch.multiprocessor_count.cache_clear)


def _table(tensors: Sequence[torch.Tensor], *_: Any) -> torch.Tensor:
    return torch.empty(len(tensors), 5, dtype=torch.int64, device="cuda")


def compile_launch(launch: Launch, target: int) -> MachineCode:
    """Compile a launch for ``target`` (80, 90, 100) and read its machine code.

    Pointers are assumed to be aligned to 16 bytes, as torch's allocator aligns them.
    """
    args = [MockTensor(a) if isinstance(a, torch.dtype) else a for a in launch.args]
    compiled = compile_kernel(launch.kernel, launch.grid, args, launch.constants, target)
    return _read(compiled, launch.name, target, launch.constants.get("PIECES", 1))


def compile_kernel(
    kernel: Any, grid: tuple[int, ...], args: Sequence[Any], constants: dict[str, Any], target: int
) -> Any:
    """Return Triton's compiled kernel for a launch on a GPU that need not be there.

    An interrupt of this thread waits until the kernel is compiled.

    Args:
        kernel: A function decorated with ``triton.jit``.
        grid: Number of programs along each axis.
        args: The arguments in order. A tensor is an object with a ``dtype`` and a ``data_ptr()``.
        constants: The ``constexpr`` arguments and compiler options.
        target: Compute capability times ten.
    """
    previous = triton.runtime.driver._active
    triton.runtime.driver.set_active(_Driver(target))
    # The first compile replaces the handlers of signals by LLVM's. A signal amid that would end
    # the process without an exception, and an interrupted ptxas looks like one that fails.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return kernel.warmup(*args, grid=grid, **constants)
    finally:
        triton.runtime.driver._active = previous
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@functools.cache  # Triton returns the same object for launches with the same specialisation
def _read(compiled: Any, name: str, target: int, pieces: int) -> MachineCode:
    cubin = compiled.asm["cubin"]
    text = _cuobjdump(cubin, "-res-usage")
    usage = {key: int(value) for key, value in re.findall(r"\b([A-Z]+):(\d+)", text)}
    return MachineCode(
        kernel=name,
        target=target,
        registers=usage["REG"],
        spills=usage["STACK"] + usage["LOCAL"],
        shared=compiled.metadata.shared,
        load_bits=_access_bits(compiled.asm["ptx"], "ld"),
        store_bits=_access_bits(compiled.asm["ptx"], "st"),
        traffic=count_traffic(compiled.asm["ttir"], pieces),
        types=tuple(compiled.src.signature.values()),
        cubin=cubin,
    )


class _Driver:
    """A Triton driver that names the GPU to compile for."""

    def __init__(self, target: int) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._target, 32)

    def get_current_device(self) -> int:
        return self._target  # the key of Triton's cache; no real device has such a number

    def get_current_stream(self, device: int) -> int:
        return 0


def _cuobjdump(cubin: bytes, *options: str) -> str:
    """Return what ``cuobjdump`` prints about the only kernel in ``cubin``."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), *options, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _access_bits(ptx: str, kind: str) -> tuple[int, ...]:
    """Return the width in bits of each global ``ld`` or ``st`` in ``ptx``.

    Loads include copies to shared memory, by which a loop loads tiles ahead.
    """
    pattern = rf"\b{kind}\.global[.\w:]*?(?:\.v(\d))?\.(b\d+)\b"
    bits = [int(count or 1) * _BITS[unit] for count, unit in re.findall(pattern, ptx)]
    if kind == "ld":  # a pipelined loop copies to shared memory
        pattern = r"\bcp\.async\.c[ag]\.shared\.global[^;]*\], (0x[\da-f]+|\d+)"
        bits += [int(size, 0) * 8 for size in re.findall(pattern, ptx)]
    return tuple(bits)


def count_traffic(ttir: str, pieces: int = 1) -> Traffic:
    """Count the bytes of a program's global memory accesses in Triton's intermediate code.

    Triton's code lists each access once, with its whole tile. Machine code is unsuitable: where a
    tile is smaller than the program, threads repeat its loads.

    Args:
        ttir: The intermediate code.
        pieces: Number of tensors of equal size that hold a tile.
    """
    for pattern, reason in _UNCOUNTED:
        if re.search(pattern, ttir):
            return Traffic(None, None, reason)
    moving = _names_that_depend_on_the_program(ttir)
    tile: list[tuple[int, int]] = []
    rest: list[tuple[int, int]] = []
    for address, dimensions, item in re.findall(_ACCESS, ttir):
        access = math.prod(map(int, dimensions.split("x")[:-1])), _ITEM_BYTES[item]
        (tile if address in moving else rest).append(access)
    if not tile:
        return Traffic(None, None, "all its programs access the same memory, or none")
    largest = max(size for size, _ in tile)
    elements = largest * pieces
    whole = sum(size * item for size, item in tile if size == largest)
    total = sum(size * item for size, item in (*tile, *rest))
    return Traffic(whole / elements, (total - whole) / elements, None)


def _names_that_depend_on_the_program(ttir: str) -> set[str]:
    """Return the values that depend on the program's id, in code without loops."""
    moving: set[str] = set()
    for name, expression in re.findall(r"^\s*(%[\w.-]+)(?::\d+)? = (.*)$", ttir, re.MULTILINE):
        operands = re.findall(r"%[\w.-]+", expression)
        if "tt.get_program_id" in expression or not moving.isdisjoint(operands):
            moving.add(name)
    return moving
