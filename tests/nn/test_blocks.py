"""Fused blocks know the code that they stand for, and timm's norms with activations."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet

import lightning_kernels
from lightning_practices.nn import norm_activation
from lightning_practices.nn.blocks import fingerprint, fused_blocks, unknown_method
from lightning_practices.surgery import fuse
from tests.surgery.models import everything, randomise


def test_code_of_the_installed_versions_is_known() -> None:
    """If this fails for a new version: compare its code with ours, then add its fingerprints."""
    blocks = fused_blocks()
    assert resnet.BasicBlock in blocks
    assert {kind: unknown_method(twin) for kind, twin in blocks.items()} == dict.fromkeys(blocks)


def add(x: Any, y: Any) -> Any:
    return x + 2 * y


def written_otherwise() -> Any:
    def add(
        x: Tensor, y: Tensor,
    ) -> Tensor:  # fmt: skip
        """Add the double."""
        # Twice, that is.
        return x + 2*y  # fmt: skip

    return add


def other_code() -> Any:
    def add(x: Any, y: Any) -> Any:
        return x + 3 * y

    return add


def test_fingerprint_is_of_the_code_alone() -> None:
    assert fingerprint(add) == fingerprint(written_otherwise())
    assert fingerprint(add) != fingerprint(other_code())
    wrapped = other_code()
    wrapped.__wrapped__ = add  # which inspect.getsource would follow
    assert fingerprint(wrapped) == fingerprint(other_code())


@pytest.mark.parametrize("thing", [len, nn.ReLU(), eval("lambda x: x")])
def test_what_has_no_source_has_no_fingerprint(thing: Any) -> None:
    assert fingerprint(thing) is None


def test_a_function_that_the_kernels_do_not_know_runs_after_the_norm(device: str) -> None:
    norm, x = nn.BatchNorm1d(3, device=device), torch.randn(5, 3, device=device)
    expected = torch.tanh(copy.deepcopy(norm)(x))
    fuse(norm)
    torch.testing.assert_close(norm_activation(x, norm, "tanh"), expected)


timm = pytest.importorskip("timm")
NORMS = timm.layers.norm_act


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("norm", "folds"),
    [
        (lambda: NORMS.BatchNormAct2d(4, momentum=None), 1),
        (lambda: NORMS.BatchNormAct2d(4, act_layer=nn.SiLU, track_running_stats=False), 1),
        (lambda: NORMS.BatchNormAct2d(4, act_layer=nn.Hardswish), 1),
        (lambda: NORMS.BatchNormAct2d(4, act_layer=nn.ReLU6), 1),
        (lambda: NORMS.BatchNormAct2d(4, act_layer=nn.Hardtanh), 0),
        (lambda: NORMS.BatchNormAct2d(4, apply_act=False), 0),
        (lambda: NORMS.BatchNormAct2d(4, drop_layer=lambda: nn.Dropout(0.5)), 0),
        (lambda: NORMS.GroupNormAct(4, 2, act_layer=nn.LeakyReLU), 1),
        (lambda: NORMS.GroupNormAct(4, 2, apply_act=False), 0),
        (lambda: NORMS.GroupNorm1Act(4), 1),
    ],
)
def test_norms_with_an_activation(
    norm: Any, folds: int, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lightning_kernels, "route", lambda x: "triton")
    plain = norm().double().train(training)
    randomise(plain)
    fused, x = copy.deepcopy(plain), torch.randn(2, 4, 3, 3, dtype=torch.float64)
    report = fuse(fused)
    assert report.replaced[0].names == ("",)
    assert len(report.folded) == folds
    for _ in range(2):
        torch.testing.assert_close(everything(fused, x), everything(plain, x))
