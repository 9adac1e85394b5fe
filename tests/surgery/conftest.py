"""What tests of folded norms share."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch import Tensor
from torch.nn.modules import module as hooks

import lightning_kernels
from lightning_practices.nn._batch_norm import FusedBatchNorm

Calls = list[tuple[str, bool]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Return the list of the calls with an activation, and whether each also adds."""
    calls: Calls = []
    normalise = FusedBatchNorm.normalise

    def counted(
        self: FusedBatchNorm, input: Tensor, residual: Any, activation: Any, parameter: Any
    ) -> Tensor:
        if activation is not None:
            calls.append((activation, residual is not None))
        return normalise(self, input, residual, activation, parameter)

    monkeypatch.setattr(FusedBatchNorm, "normalise", counted)
    return calls


@pytest.fixture
def fused_calls(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Return ``calls``, where blocks run their fused forwards also in float64 on the CPU.

    The norms themselves are then torch's functions: so float64 shows that a forward is right.
    """
    monkeypatch.setattr(lightning_kernels, "route", lambda x: "triton")
    return calls


@pytest.fixture
def sum_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of the fused calls of an addition and a norm."""
    calls: list[str] = []

    def count(name: str) -> None:
        function = getattr(lightning_kernels, name)

        def counted(*args: Any, **options: Any) -> Any:
            calls.append(name)
            return function(*args, **options)

        monkeypatch.setattr(lightning_kernels, name, counted)

    count("add_dropout_layer_norm")
    count("add_dropout_rms_norm")
    return calls


@pytest.fixture
def fused_sum_calls(sum_calls: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return ``sum_calls``, where fused forwards run also in float64 and where no kernels run.

    torch's functions then compute the calls, and float64 shows that the forwards are right.
    """
    monkeypatch.setattr(lightning_kernels, "route", lambda x: "triton")
    return sum_calls


@pytest.fixture
def global_hook() -> Iterator[Callable[[], None]]:
    """Return a function that registers a hook on all modules. The test removes it at its end."""
    handles: list[Any] = []

    def register() -> None:
        handles.append(hooks.register_module_forward_hook(lambda *_: None))

    yield register
    for handle in handles:
        handle.remove()
