"""From which inputs on kernels run, where nothing was measured."""

import inspect
from collections.abc import Iterator

import pytest
import torch

import lightning_kernels
from lightning_kernels import get_kernel_policy, set_kernel_policy
from lightning_kernels._core import crossover
from lightning_kernels._core.crossover import TABLE, in_table, pays

pytestmark = pytest.mark.plain


@pytest.fixture(autouse=True)
def auto(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = get_kernel_policy()
    monkeypatch.setattr(crossover, "_kept", set())
    set_kernel_policy("auto")
    yield
    set_kernel_policy(before)


def on_meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize("operation", TABLE)
def test_an_input_pays_from_the_least_bytes_on(operation: str) -> None:
    least = TABLE[operation].least_bytes
    if least == 0:
        assert pays(operation, on_meta(1))
        return
    assert pays(operation, on_meta(8, least // 16))
    assert not pays(operation, on_meta(8, least // 16 - 1))
    assert pays(operation, on_meta(8, least // 32, dtype=torch.float32))


def test_batch_norms_of_odd_planes_and_of_float16_are_torchs() -> None:
    assert in_table("batch_norm", on_meta(256, 64, 56, 56))
    assert not in_table("batch_norm", on_meta(256, 2048, 7, 7))
    assert in_table("batch_norm", on_meta(256, 2048, 7, 7).to(memory_format=torch.channels_last))
    assert in_table("batch_norm", on_meta(100_000, 32))
    assert not in_table("batch_norm", on_meta(256, 64, 56, 56, dtype=torch.float16))


def test_always_runs_kernels_for_all_inputs() -> None:
    assert not pays("layer_norm", on_meta(1, 8))
    set_kernel_policy("always")
    assert get_kernel_policy() == "always"
    assert pays("layer_norm", on_meta(1, 8))


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="expects policy as 'auto' or 'always', but got 'never'"):
        set_kernel_policy("never")  # type: ignore[arg-type]


def test_each_operation_gives_its_reason() -> None:
    assert all(crossover.reason for crossover in TABLE.values())


def test_the_size_is_a_guard_of_a_compiled_function() -> None:
    def serve(x: torch.Tensor) -> bool:
        return pays("layer_norm", x)

    compiled = torch.compile(serve, backend="eager", fullgraph=True, dynamic=True)
    small, large = torch.empty(8, 16), torch.empty(1024, 1024)
    assert [compiled(x) for x in (small, large, small)] == [False, True, False]


def test_functions_ask_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each public function that runs kernels names an operation of the table."""
    from importlib import import_module
    from pkgutil import walk_packages

    asked = set()
    for info in walk_packages(lightning_kernels.__path__, "lightning_kernels."):
        source = inspect.getsource(import_module(info.name))
        asked |= {name for name in TABLE if f'pays("{name}"' in source}
    assert asked == set(TABLE)
