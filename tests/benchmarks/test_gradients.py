"""The gradients that clipping is measured on."""

import math

import pytest
import torch

from benchmarks.gradients import sizes_of, with_gradients
from benchmarks.shapes import OPS


@pytest.mark.parametrize(
    ("name", "tensors", "first"),
    [
        ("ResNet-50", 161, (64, 3, 7, 7)),
        ("ViT-L", 296, (1, 1, 1024)),
        ("2000 tensors", 2000, (64, 64)),
    ],
)
def test_sizes_are_those_of_the_model(name: str, tensors: int, first: tuple[int, ...]) -> None:
    (shape,) = (shape for shape in OPS["clip_grad_norm"].shapes if shape.name == name)
    sizes = sizes_of(math.prod(shape.dims))
    assert (len(sizes), sizes[0]) == (tensors, first)
    assert sum(map(math.prod, sizes)) == math.prod(shape.dims)


def test_gradients_are_copies_of_all_there_is() -> None:
    x = torch.randn(1037, 8)
    weights = with_gradients([x])
    grads = [w.grad for w in weights if w.grad is not None]
    assert len(grads) == len(weights) > 1
    assert torch.equal(torch.cat([g.flatten() for g in grads]), x.flatten())
    assert all(w.shape == g.shape for w, g in zip(weights, grads, strict=True))
    grads[0].zero_()
    assert x.count_nonzero() == x.numel()
