"""A driver of Triton for a GPU that isn't there: kernels are compiled, and launches do nothing.

With it the host's part of a launch can be tested and timed on any machine.
"""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

_TARGET = GPUTarget("cuda", 90, 32)


class StubDriver:
    """Compiles for compute capability 9.0, and counts launches by the function of the kernel.

    Attributes:
        launches: The arguments of each launch: the grid, the kernel's function, and all values.
        kept: Whether to note the launches; without, a launch takes no time.
    """

    def __init__(self, kept: bool = True) -> None:
        self.launches: list[tuple[tuple[int, int, int], Any, tuple[Any, ...]]] = []
        self.kept = kept
        self.launcher_cls = self._launcher
        self.utils = SimpleNamespace(
            load_binary=lambda name, *_: (object(), name, 32, 0, 1024),
            unload_module=lambda module: None,
            get_device_properties=lambda device: {"max_shared_mem": 232448},
        )

    def get_current_target(self) -> GPUTarget:
        """Return the compute capability."""
        return _TARGET

    def get_current_device(self) -> int:
        """Return the index of the only device."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Return the default stream."""
        return 0

    def _launcher(self, src: Any, metadata: Any) -> Any:
        def launch(x: int, y: int, z: int, stream: int, function: Any, *args: Any) -> None:
            if self.kept:
                self.launches.append(((x, y, z), function, args[4:]))

        return launch


@contextlib.contextmanager
def stub_driver(*kernels: Any, kept: bool = True) -> Iterator[StubDriver]:
    """Let Triton use a :class:`StubDriver` for a while.

    Args:
        kernels: The kernels that are launched, which are compiled anew, and anew after that.
        kept: See :class:`StubDriver`.
    """
    driver = StubDriver(kept)
    _forget(kernels)
    before = triton.runtime.driver._active
    stream = torch._C._cuda_getCurrentRawStream
    triton.runtime.driver.set_active(driver)
    torch._C._cuda_getCurrentRawStream = lambda device: 0
    try:
        yield driver
    finally:
        triton.runtime.driver._active = before
        torch._C._cuda_getCurrentRawStream = stream
        _forget(kernels)


def _forget(kernels: tuple[Any, ...]) -> None:
    for kernel in kernels:
        for compiled, *_ in kernel.device_caches.values():
            for one in compiled.values():
                one.module = None  # else it would be unloaded by a driver that isn't there
        kernel.device_caches.clear()
