"""The machine code of every kernel launch of a piece of code, made and read without a GPU.

:func:`record_launches` runs public functions on fake tensors, as if a GPU were there, and keeps
what they launch: real heuristics, real arguments. :func:`compile_launch` builds that launch for a
target with Triton's own compiler and reads registers, spills and the width of memory accesses.
"""

import contextlib
import dataclasses
import functools
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction, MockTensor

from lightning_kernels import _dispatch

TARGETS = (80, 90, 100)  # compute capabilities: A100, H100 and H200, B200
_MULTIPROCESSORS = 132  # an H200's: it decides grids, which the machine code does not depend on
_BITS = {"b8": 8, "b16": 16, "b32": 32, "b64": 64, "b128": 128}


@dataclasses.dataclass(frozen=True)
class Launch:
    """One kernel launch, its tensors replaced by their dtypes."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    constants: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the kernel."""
        return str(self.kernel.fn.__name__)


@dataclasses.dataclass(frozen=True)
class MachineCode:
    """What the compiler made of a launch.

    Attributes:
        kernel: Name of the kernel.
        target: Compute capability times ten.
        registers: 32-bit registers per thread.
        spills: Bytes per thread of registers moved to memory.
        shared: Bytes of shared memory per program.
        load_bits: Widths in bits of the global loads in the code, one entry per instruction.
        store_bits: Likewise of the global stores.
    """

    kernel: str
    target: int
    registers: int
    spills: int
    shared: int
    load_bits: tuple[int, ...]
    store_bits: tuple[int, ...]

    @property
    def vector_bits(self) -> int:
        """The narrower of the widest load and the widest store."""
        return min(max(self.load_bits), max(self.store_bits))


@contextlib.contextmanager
def record_launches() -> Iterator[list[Launch]]:
    """Record kernel launches instead of making them, on fake ``cuda`` tensors made inside.

    Yields:
        The list that fills as code inside the context launches kernels.
    """
    launches: list[Launch] = []

    def record(kernel: Any, grid: tuple[int, ...]) -> Any:
        def keep(*args: Any, **constants: Any) -> None:
            dtypes = tuple(a.dtype if isinstance(a, torch.Tensor) else a for a in args)
            launches.append(Launch(kernel, grid, dtypes, constants))

        return keep

    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        _pretend_gpu(stack)
        enter(mock.patch.object(JITFunction, "__getitem__", record))
        # Fake tensors stand for real ones here, so the eager door is the one to take.
        plain = _dispatch._PLAIN_TYPES | {FakeTensor}
        enter(mock.patch.object(_dispatch, "_PLAIN_TYPES", plain))
        enter(FakeTensorMode(allow_non_fake_inputs=True))
        enter(mock.patch.object(torch._C, "_len_torch_dispatch_stack", return_value=0))
        yield launches


def _pretend_gpu(stack: contextlib.ExitStack) -> None:
    """Let the host code ask after a GPU where there is none."""
    generator = SimpleNamespace(
        initial_seed=lambda: 2**63 + 1, get_offset=lambda: 4, set_offset=lambda offset: None
    )
    answers = {
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": lambda device=None: SimpleNamespace(
            multi_processor_count=_MULTIPROCESSORS
        ),
        "current_device": lambda: 0,
        "is_current_stream_capturing": lambda: False,
        "default_generators": (generator,),
    }
    for name, answer in answers.items():
        stack.enter_context(mock.patch.object(torch.cuda, name, answer))
    for cached in (_dispatch._probe_device, _dispatch.multiprocessor_count):
        cached.cache_clear()
        stack.callback(cached.cache_clear)


def compile_launch(launch: Launch, target: int) -> MachineCode:
    """Compile a launch for ``target`` (80, 90, 100) and read its machine code.

    Pointers are taken to be aligned to 16 bytes, as torch's allocator aligns them.
    """
    args = [MockTensor(a) if isinstance(a, torch.dtype) else a for a in launch.args]
    previous = triton.runtime.driver._active
    triton.runtime.driver.set_active(_Driver(target))
    try:
        compiled = launch.kernel.warmup(*args, grid=launch.grid, **launch.constants)
    finally:
        triton.runtime.driver._active = previous
    usage = _resource_usage(compiled.asm["cubin"])
    return MachineCode(
        kernel=launch.name,
        target=target,
        registers=usage["REG"],
        spills=usage["STACK"] + usage["LOCAL"],
        shared=compiled.metadata.shared,
        load_bits=_access_bits(compiled.asm["ptx"], "ld"),
        store_bits=_access_bits(compiled.asm["ptx"], "st"),
    )


class _Driver:
    """Tells Triton which GPU to compile for."""

    def __init__(self, target: int) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._target, 32)

    def get_current_device(self) -> int:
        return self._target  # Triton caches by device: no real one has such a number

    def get_current_stream(self, device: int) -> int:
        return 0


@functools.cache
def _cuobjdump() -> str:
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")


def _resource_usage(cubin: bytes) -> dict[str, int]:
    """Return ``REG``, ``STACK``, ``LOCAL`` and more of the one kernel in ``cubin``."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [_cuobjdump(), "-res-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {key: int(value) for key, value in re.findall(r"\b([A-Z]+):(\d+)", text)}


def _access_bits(ptx: str, kind: str) -> tuple[int, ...]:
    """Return the width of each global ``ld`` or ``st`` in ``ptx``."""
    pattern = rf"\b{kind}\.global[.\w:]*?(?:\.v(\d))?\.(b\d+)\b"
    return tuple(int(count or 1) * _BITS[unit] for count, unit in re.findall(pattern, ptx))
