"""What tests of folded norms share."""

from typing import Any

import pytest
from torch import Tensor

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
