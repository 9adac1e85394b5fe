"""Models to operate on, and how to compare what they compute."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


class Tuned(nn.LayerNorm):
    """A subclass that only changes defaults and adds a method, as many models have."""

    def __init__(self, size: int) -> None:
        super().__init__(size, eps=1e-2)
        self.note = ["kept"]

    def gain(self) -> Tensor:
        return self.weight.abs().mean()


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Dropout(0.3), nn.Linear(8, 2))


def encoder() -> Any:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
    return nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(8))


def sequence() -> Tensor:
    return torch.randn(2, 5, 8)


def randomise(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()


def step(model: Any, x: Tensor) -> list[Tensor]:
    """Return the output under one seed, and the gradient of every parameter."""
    torch.manual_seed(7)
    with torch.backends.cudnn.flags(deterministic=True, allow_tf32=False):  # for convolutions
        y = model(x)
        grads = torch.autograd.grad(y.square().sum(), list(model.parameters()))
    return [y.detach(), *grads]


def near(model: Any, plain: Any, x: Tensor) -> None:
    """Check that results and gradients are as right as those of ``plain``, by float64."""
    exact = step(copy.deepcopy(plain).double(), x.double())
    ours, torchs, truth = (
        torch.cat([t.double().flatten() for t in tensors])
        for tensors in (step(model, x), step(plain, x), exact)
    )
    rounding = torch.finfo(x.dtype).eps * truth.norm()
    assert (ours - truth).norm() <= 1.5 * (torchs - truth).norm() + rounding


def assert_equal(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


def everything(model: Any, x: Any) -> list[Tensor]:
    """Return the output, the gradients of input and parameters, the input after, the buffers."""
    torch.manual_seed(7)
    leaf = x.clone().requires_grad_()
    with torch.backends.cudnn.flags(deterministic=True, allow_tf32=False):
        given = leaf.clone()  # which the model may change
        y = model(given)
        gradients = torch.autograd.grad(
            y.square().sum(), [leaf, *model.parameters()], allow_unused=True
        )
    found = [y, given, *(g for g in gradients if g is not None), *model.buffers()]
    return [tensor.detach().clone() for tensor in found]
