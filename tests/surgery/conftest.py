"""What tests of folded batch norms share."""

from typing import Any

import pytest
from torch import Tensor

from lightning_practices.nn._batch_norm import FusedBatchNorm


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Return the list in which each call with an activation will be, and whether it also adds."""
    calls: list[tuple[str, bool]] = []
    normalise = FusedBatchNorm.normalise

    def counted(
        self: FusedBatchNorm, input: Tensor, residual: Any, activation: Any, parameter: Any
    ) -> Tensor:
        if activation is not None:
            calls.append((activation, residual is not None))
        return normalise(self, input, residual, activation, parameter)

    monkeypatch.setattr(FusedBatchNorm, "normalise", counted)
    return calls
