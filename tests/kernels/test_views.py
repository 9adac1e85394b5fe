"""Every function on bfloat16 views that are not dense: parts, transposed and repeated."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

import lightning_kernels as lk
from tests.kernels.reference import assert_as_right_as_torch

pytestmark = pytest.mark.kernel

BASE = (4, 6, 10, 16)

# Views of a tensor of shape BASE.
VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "part": lambda x: x[:, :, 1:6],
    "transposed part": lambda x: x[1:, :, 2:].transpose(0, 3),
    "channels last part": lambda x: x.permute(0, 3, 1, 2)[:, :, 1:],
    "repeated": lambda x: x[:, :, :1].expand(-1, -1, 5, -1),
    "repeated samples": lambda x: x[1:2].expand(4, -1, -1, -1),
}

Function = Callable[[Tensor], Tensor]


def _batch_norm(x: Tensor) -> Tensor:
    return lk.batch_norm(x, None, None, training=True)


# Ours and torch's, as functions of the input alone.
NORMS: dict[str, tuple[Function, Function]] = {
    "layer_norm": (
        lambda x: lk.layer_norm(x, x.shape[-1:]),
        lambda x: F.layer_norm(x, x.shape[-1:]),
    ),
    "layer_norm of channels": (
        lambda x: lk.layer_norm(x.movedim(1, -1), x.shape[1:2]),
        lambda x: F.layer_norm(x.movedim(1, -1), x.shape[1:2]),
    ),
    "rms_norm": (
        lambda x: lk.rms_norm(x, x.shape[-1:], None, 1e-6),
        lambda x: F.rms_norm(x, [*x.shape[-1:]], None, 1e-6),
    ),
    "batch_norm": (_batch_norm, lambda x: F.batch_norm(x, None, None, training=True)),
    "group_norm": (lambda x: lk.group_norm(x, 2), lambda x: F.group_norm(x, 2)),
    "instance_norm": (lk.instance_norm, F.instance_norm),
    "dropout_activation": (
        lambda x: lk.dropout_activation(x, "gelu", training=False),
        F.gelu,
    ),
}

DROPOUTS: dict[str, Function] = {
    "dropout": lambda x: lk.dropout(x, 0.5),
    "alpha_dropout": lambda x: lk.alpha_dropout(x, 0.5, training=True),
    "dropout1d": lambda x: lk.dropout1d(x[0], 0.5),
    "dropout2d": lambda x: lk.dropout2d(x, 0.5),
    "feature_alpha_dropout": lambda x: lk.feature_alpha_dropout(x, 0.5, training=True),
    "dropout_activation": lambda x: lk.dropout_activation(x, "gelu", 0.5),
    "stochastic_depth": lambda x: lk.stochastic_depth(x, 0.5, "row"),
    "stochastic_depth, residual": lambda x: lk.stochastic_depth(x, 0.5, "row", residual=x),
    "drop_block2d": lambda x: lk.drop_block2d(x, 0.2, 3),
    "add_dropout_layer_norm": lambda x: torch.stack(
        lk.add_dropout_layer_norm(x, x.flip(0), x.shape[-1:], p=0.5)
    ),
    "add_dropout_rms_norm": lambda x: torch.stack(
        lk.add_dropout_rms_norm(x, x.flip(0), x.shape[-1:], p=0.5)
    ),
}


def of(view: str, function: Function) -> Function:
    """Return ``function`` of the view of a tensor."""
    return lambda base: function(VIEWS[view](base))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("norm", NORMS)
def test_norms_are_as_right_as_torchs(norm: str, view: str, device: str) -> None:
    ours, torchs = (of(view, function) for function in NORMS[norm])

    def draw() -> tuple[list[Tensor | None], Tensor]:
        x = torch.randn(BASE, device=device).bfloat16()
        return [x], torch.randn_like(torchs(x))

    assert_as_right_as_torch(ours, torchs, draw)


def seeded(function: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the result of ``function`` for a seed, and the gradient of its weighted sum."""
    x = x.detach().requires_grad_()
    torch.manual_seed(3)
    y = function(x)
    weights = torch.linspace(-1, 1, y.numel(), device=x.device).view(y.shape).to(y.dtype)
    return y.detach(), torch.autograd.grad(y, x, weights)[0]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dropout", DROPOUTS)
def test_dropouts_are_those_of_a_copy(dropout: str, view: str, device: str) -> None:
    x = VIEWS[view](torch.randn(BASE, device=device).bfloat16())
    copy = torch.empty_like(x).copy_(x)  # dense, in the order of memory that x has
    for mine, expected in zip(
        seeded(DROPOUTS[dropout], x), seeded(DROPOUTS[dropout], copy), strict=True
    ):
        torch.testing.assert_close(mine, expected, rtol=0, atol=0)
