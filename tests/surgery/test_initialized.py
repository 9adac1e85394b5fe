"""Fused models are initialised and audited as plain ones, where kernels compute their layers."""

from typing import Any

import pytest
import torch
from torchvision.models import resnet18

import lightning_kernels
from lightning_practices.init import audit, initialize
from lightning_practices.surgery import fuse

pytestmark = pytest.mark.kernel


def test_a_trace_sees_what_kernels_compute() -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    plain, fused = (resnet18(num_classes=3).to(device) for _ in range(2))
    assert len(fuse(fused).folded) == 17
    x = torch.randn(2, 3, 32, 32, device=device)
    assert lightning_kernels.route(x) != "aten"
    reports, audits = [], []
    for model in (plain, fused):
        generator: Any = torch.Generator(device).manual_seed(0)
        reports.append(initialize(model, batch=x, generator=generator))
        audits.append(audit(model, x))
    for one, other in zip(reports[0].initialized, reports[1].initialized, strict=True):
        assert (one.names, one.activation, one.why) == (other.names, other.activation, other.why)
    assert reports[0].zeroed == reports[1].zeroed
    for a, b in zip(audits[0].layers, audits[1].layers, strict=True):
        assert (a.name, a.activation) == (b.name, b.activation)
        assert b.std == pytest.approx(a.std, rel=1e-3)
        assert b.gradient_std == pytest.approx(a.gradient_std, rel=1e-3)
