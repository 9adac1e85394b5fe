"""Functions of ``lightning_kernels`` on CPU tensors, whose kernels are compiled, not interpreted.

Inside :func:`compiled_on_cpu` each launch compiles its kernel for a GPU with Triton's own compiler,
and executes the PTX on the memory of the CPU tensors.
"""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor

from benchmarks.machine_code import compile_kernel
from benchmarks.ptx.machine import Options, run
from benchmarks.ptx.memory import Buffer, GlobalMemory
from benchmarks.ptx.parser import Program, parse
from benchmarks.ptx.registers import Array
from benchmarks.ptx.report import Counters, Findings
from lightning_kernels._clip_grad import adaptive as _adaptive
from lightning_kernels._clip_grad import passes as _passes
from lightning_kernels._clip_grad import tensor_table as _tensor_table
from lightning_kernels._core import dispatch as _dispatch
from lightning_kernels._core import launch as _launch

_EMPTY = ((torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (Tensor, "new_empty"))
_SENTINEL = 0xFF  # the bytes of a tensor without values: nan in every floating-point type


@dataclasses.dataclass
class Record:
    """The launches inside :func:`compiled_on_cpu`.

    Attributes:
        findings: Errors of the kernels.
        launches: Counters of each launch, in order.
    """

    findings: Findings
    launches: list[Counters]


@contextlib.contextmanager
def compiled_on_cpu(
    target: int = 90, options: Options | None = None, multiprocessors: int = 2
) -> Iterator[Record]:
    """Execute the kernels of CPU tensors as they are compiled for a GPU.

    Args:
        target: Compute capability of the GPU, times ten.
        options: How launches are executed.
        multiprocessors: Number of multiprocessors of the GPU, which determines grids.

    Yields:
        A record to which each launch inside the context is added.

    Raises:
        RuntimeError: If the process was started with ``TRITON_INTERPRET=1``: its kernels can't be
            compiled.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError(
            "compiled_on_cpu needs kernels that can be compiled, but TRITON_INTERPRET is set:"
            " start the process without it"
        )
    record = Record(Findings(), [])
    device = _Device(record, target, options or Options())
    replaced: tuple[tuple[Any, str, Any], ...] = (
        *((module, "INTERPRETED", True) for module in _kernel_modules("INTERPRETED")),
        (_launch, "_INTERPRETED_MULTIPROCESSORS", multiprocessors),
        (_launch, "_interpret", device.launch),
        (_tensor_table, "_tables", type(_tensor_table._tables)()),
        (_tensor_table, "address_of", device.address_of),
        (_adaptive, "address_of", device.address_of),
        (_adaptive, "widened_tensors", contextlib.nullcontext),
        (_passes, "widened", contextlib.nullcontext),
        *((module, name, device.marking(getattr(module, name))) for module, name in _EMPTY),
    )
    with contextlib.ExitStack() as stack:
        for cached in (_dispatch._probe_device, _launch.multiprocessor_count):
            cached.cache_clear()
            stack.callback(cached.cache_clear)
        for module, name, value in replaced:
            stack.enter_context(mock.patch.object(module, name, value))
        yield record


def _kernel_modules(name: str) -> list[Any]:
    """Return the modules of ``lightning_kernels`` that have imported ``name``."""
    modules = [m for key, m in sys.modules.items() if key.startswith("lightning_kernels.")]
    return [module for module in modules if name in vars(module)]


class _Device:
    """Global memory with the CPU tensors in it, and a compiler.

    Args:
        record: Record of the launches.
        target: Compute capability times ten.
        options: How launches are executed.
    """

    def __init__(self, record: Record, target: int, options: Options) -> None:
        self._record = record
        self._target = target
        self._options = options
        self._memory = GlobalMemory(record.findings)
        # By the address of the storage. The storage is kept, so that no other gets its address.
        self._mapped: dict[int, tuple[Buffer, torch.UntypedStorage, int]] = {}
        self._programs: dict[str, Program] = {}

    def marking(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return ``function``, which makes tensors without values, so that they are marked."""

        @functools.wraps(function)
        def marked(*args: Any, **kwargs: Any) -> Tensor:
            tensor = function(*args, **kwargs)
            if tensor.device.type == "cpu" and tensor.numel():
                _bytes_of(tensor)[:] = _SENTINEL
                self._map(tensor, initialised=False)
            return tensor

        return marked

    def address_of(self, tensor: Tensor) -> int:
        """Return the address of the tensor in the device's memory."""
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in self._mapped:
            self._map(tensor, initialised=True)
        return self._mapped[pointer][0].base + int(tensor.storage_offset()) * tensor.element_size()

    def _map(self, tensor: Tensor, initialised: bool) -> None:
        name = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
        buffer = self._memory.add(_bytes_of(tensor), name, initialised)
        storage = tensor.untyped_storage()
        self._mapped[storage.data_ptr()] = buffer, storage, tensor.element_size()

    def _see_what_torch_wrote(self) -> None:
        """Count the elements as written that are no longer marked."""
        for buffer, _, size in self._mapped.values():
            if not buffer.known.all():
                whole = len(buffer.data) // size * size
                written = (buffer.data[:whole].reshape(-1, size) != _SENTINEL).any(1)
                buffer.known[:whole] |= written.repeat(size)

    def launch(
        self, kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], constants: dict[str, Any]
    ) -> None:
        """Execute a launch, in place of Triton's interpreter."""
        passed = [_Pointer(a, self.address_of(a)) if isinstance(a, Tensor) else a for a in args]
        options = {**constants, "enable_fp_fusion": True}  # as a launch on a GPU has it
        compiled = compile_kernel(kernel, grid, passed, options, self._target)
        ptx = compiled.asm["ptx"]
        if ptx not in self._programs:
            self._programs[ptx] = parse(ptx)
        program = self._programs[ptx]
        bound = dict(zip(kernel.arg_names, passed, strict=False)) | constants
        params = [
            value.data_ptr() if isinstance(value := bound[name], _Pointer) else value
            for name, kind in compiled.src.signature.items()
            if kind != "constexpr"
        ]
        params += [0] * (len(program.params) - len(params))  # scratch memory, which is not used
        self._see_what_torch_wrote()
        counters = run(program, grid, params, self._memory, compiled.metadata.shared, self._options)
        self._record.launches.append(counters)


class _Pointer:
    """The facts about a tensor that Triton's compiler asks for: its type and its alignment."""

    def __init__(self, tensor: Tensor, address: int) -> None:
        self.dtype = tensor.dtype
        self._address = address

    def data_ptr(self) -> int:
        return self._address

    def ptr_range(self) -> int:
        return 0


def _bytes_of(tensor: Tensor) -> Array:
    """Return the whole storage of a tensor as an array on the same memory."""
    array: Array = torch.tensor([], dtype=torch.uint8).set_(tensor.untyped_storage()).numpy()
    return array
