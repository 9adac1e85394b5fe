"""Launches by a key of our own find the kernel that Triton's own path finds, for a GPU or none."""

import itertools
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from benchmarks.stub_driver import StubDriver, stub_driver
from lightning_kernels._core import compiled
from lightning_kernels._core.compiled import describe, launch_compiled

pytestmark = pytest.mark.plain

MEMORY = torch.zeros(64)
# Everything that kernels get: Triton tells some of them apart and compiles a kernel for each.
VALUES: list[Any] = [
    None, True, False, 0.0, 1.0, 2.5, 16.0,
    0, 1, 2, 3, 15, 16, 17, 32, -1, -2, -16, -17, 2**31 - 1, 2**31, 2**31 + 16, -(2**31),
    -(2**31) - 1, 2**32, 2**40 + 1, 2**63 - 1, 2**63, 2**63 + 16, 2**64 - 1,
    MEMORY, MEMORY[1:], MEMORY[4:], MEMORY.half(), MEMORY.half()[1:], MEMORY.bfloat16(),
    MEMORY.to(torch.uint8), MEMORY.to(torch.int64), MEMORY.double(),
]  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _one_argument_kernel(value, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    pass


@triton.jit  # type: ignore[untyped-decorator]
def _scale_kernel(  # type: ignore[no-untyped-def]
    x_ptr, weight_ptr, bias_ptr, y_ptr, rows, size, factor, BLOCK_SIZE: tl.constexpr
):
    column = tl.arange(0, BLOCK_SIZE)
    x = tl.load(x_ptr + column, mask=column < rows * size, other=0.0)
    tl.store(y_ptr + column, x * factor, mask=column < rows * size)


def specialization(value: Any) -> Any:
    *_, binder = _one_argument_kernel.device_caches[0]
    return str(binder(value, BLOCK=8)[1])


def test_equal_keys_are_equal_kernels() -> None:
    with stub_driver(_one_argument_kernel):
        for first, second in itertools.combinations(VALUES, 2):
            (ours, _), (other, _) = describe((first,)), describe((second,))
            if ours == other:
                assert specialization(first) == specialization(second), (first, second)


def arguments(
    rows: int = 8, offset: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Any, ...]:
    x = torch.zeros(rows * 256 + offset, dtype=dtype)[offset:].view(rows, 256)
    weight, y = torch.ones(256), torch.empty_like(x)
    return x, weight, None, y, rows, 256, 0.5


def constants(**changed: Any) -> dict[str, Any]:
    return {"BLOCK_SIZE": 256, "num_warps": 4, **changed}


def functions(driver: StubDriver) -> list[Any]:
    return [function for _, function, _ in driver.launches]


@pytest.fixture(autouse=True)
def _no_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_launchers", {})


def test_a_second_launch_gets_the_same_values() -> None:
    with stub_driver(_scale_kernel) as driver:
        args = arguments()
        for _ in range(3):
            launch_compiled(_scale_kernel, (2, 3), 0, args, constants())
    first, second, third = driver.launches
    assert first[:2] == second[:2] == ((2, 3, 1), "_scale_kernel")
    assert third == second
    by_triton = [x.data_ptr() if isinstance(x, torch.Tensor) else x for x in first[2]]
    assert by_triton == list(second[2])
    assert len(compiled._launchers) == 1


def test_what_differs_is_compiled_apart() -> None:
    variants: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        (arguments(), constants()),
        (arguments(rows=1), constants()),
        (arguments(rows=16), constants()),
        (arguments(rows=9), constants()),  # as the first
        (arguments(offset=1), constants()),
        (arguments(dtype=torch.bfloat16), constants()),
        (arguments(), constants(BLOCK_SIZE=128)),
        (arguments(), constants(num_warps=8)),
    ]
    with stub_driver(_scale_kernel) as driver:
        for args, options in variants:
            launch_compiled(_scale_kernel, (1,), 0, args, options)
        # Triton finds the same kernels, and compiles no other.
        kernels = _scale_kernel.device_caches[0][0]
        compiled_by_now = len(kernels)
        for args, options in variants:
            _scale_kernel[(1,)](*args, **options)
        assert len(kernels) == compiled_by_now
    assert len(compiled._launchers) == len(variants) - 1
    assert len(driver.launches) == 2 * len(variants)


def test_a_hook_sees_each_launch() -> None:
    seen = []
    hook = triton.knobs.runtime.launch_enter_hook

    def look(metadata: Any) -> None:
        seen.append(metadata.get()["name"])

    with stub_driver(_scale_kernel) as driver:
        launch_compiled(_scale_kernel, (1,), 0, arguments(), constants())
        hook.add(look)
        try:
            launch_compiled(_scale_kernel, (1,), 0, arguments(), constants())
        finally:
            hook.remove(look)
        launch_compiled(_scale_kernel, (1,), 0, arguments(), constants())
    tensors = [isinstance(values[0], torch.Tensor) for _, _, values in driver.launches]
    assert tensors == [True, True, False]  # by Triton's path, by it again, and by ours


def test_an_unknown_release_takes_tritons_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_IS_KNOWN", False)
    with stub_driver(_scale_kernel) as driver:
        for _ in range(2):
            launch_compiled(_scale_kernel, (1,), 0, arguments(), constants())
    assert all(isinstance(values[0], torch.Tensor) for _, _, values in driver.launches)
    assert not compiled._launchers


def test_devices_have_kernels_of_their_own() -> None:
    with stub_driver(_scale_kernel):
        for device in (0, 1):
            launch_compiled(_scale_kernel, (1,), device, arguments(), constants())
    assert len(compiled._launchers) == 2
