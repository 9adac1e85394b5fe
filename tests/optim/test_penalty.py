"""Penalties on weights, in plain training loops."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softshrink

from lightning_practices.optim import (
    add_penalty_gradients_,
    decayed_weights,
    penalty,
    soft_threshold_,
)

STRENGTHS: list[dict[str, Any]] = [
    {"l1": 0.3}, {"l2": 0.7}, {"l1": 0.3, "l2": 0.7}, {"l1": 0.0, "l2": 0.0},
]  # fmt: skip


def weights(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(2)
    made = [torch.randn(shape, generator=generator) for shape in ((5, 3), (4,), (), (0, 2))]
    made[0][1] = 0.0
    made.append(torch.zeros(3))
    return [nn.Parameter(w.to(dtype)) for w in made]


def by_formula(tensors: list[Any], l1: float = 0.0, l2: float = 0.0) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for w in tensors:
        total = total + l1 * w.double().abs().sum() + l2 / 2 * w.double().pow(2).sum()
    return total


# The value.


@pytest.mark.parametrize("strengths", STRENGTHS, ids=str)
def test_the_value_and_its_gradient(strengths: dict[str, Any]) -> None:
    tensors = weights()
    value, right = penalty(tensors, **strengths), by_formula(tensors, **strengths)
    torch.testing.assert_close(value.double(), right, rtol=1e-12, atol=0)
    assert value.shape == ()
    if any(strengths.values()):
        grads = torch.autograd.grad(value, tensors)
        for grad, expected in zip(grads, torch.autograd.grad(right, tensors), strict=True):
            torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_it_is_summed_in_float32(dtype: torch.dtype) -> None:
    many = [torch.full((300, 300), 0.75, dtype=dtype), torch.full((3,), -2.0, dtype=dtype)]
    value = penalty(many, l1=1.0, l2=2.0)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), by_formula(many, 1.0, 2.0), rtol=1e-6, atol=0)


def test_tensors_of_several_types_and_none_at_all() -> None:
    mixed = [torch.ones(2, dtype=torch.bfloat16), torch.ones(3, dtype=torch.float64), torch.ones(4)]
    value = penalty(mixed, l1=2.0, l2=4.0)
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(2 * 9 + 2 * 9, rel=1e-6)  # of which most in float32
    assert penalty([], l1=1.0, l2=1.0).item() == 0.0
    assert penalty(torch.full((2,), -3.0), l1=1.0).item() == 6.0


# Its gradient.


@pytest.mark.parametrize("strengths", STRENGTHS, ids=str)
def test_it_is_as_if_in_the_loss(strengths: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 1)).double()
    batches = torch.randn(3, 8, 3, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        value: Tensor = model(x).square().mean() / len(batches)
        return value

    penalised = [model[0].weight, model[3].weight]
    (sum(loss(x) for x in batches) + by_formula(penalised, **strengths)).backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    for x in batches:
        loss(x).backward()
    add_penalty_gradients_(decayed_weights(model).values(), **strengths)
    for p, right in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, right, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_each_gradient_is_that_of_the_formula(dtype: torch.dtype) -> None:
    tensors = weights(dtype)
    for w in tensors:
        w.grad = torch.full_like(w, 2.0)
    tensors[1].grad = None
    grads = [w.grad for w in tensors]
    add_penalty_gradients_(tensors, l1=0.5, l2=0.25)
    for w, grad in zip(tensors, grads, strict=True):
        assert w.grad is grad
        if grad is not None:
            once = (2 + 0.25 * w.detach().double()).to(dtype)
            right = (once.double() + 0.5 * w.detach().sign().double()).to(dtype)
            torch.testing.assert_close(grad, right, rtol=torch.finfo(dtype).eps, atol=0)
            assert grad[w.detach() == 0].eq(2.0).all()


def test_scaled_gradients() -> None:
    tensors, others = weights(), weights()
    for w, other in zip(tensors, others, strict=True):
        w.grad, other.grad = torch.ones_like(w), torch.full_like(w, 1024.0)
    add_penalty_gradients_(tensors, l1=0.3, l2=0.7)
    add_penalty_gradients_(others, l1=0.3, l2=0.7, scale=torch.tensor(1024.0))
    for w, other in zip(tensors, others, strict=True):
        assert w.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(other.grad / 1024, w.grad, rtol=1e-12, atol=0)


def test_without_any_gradient() -> None:
    add_penalty_gradients_(tensors := weights(), l1=1.0, l2=1.0)
    add_penalty_gradients_([], l1=1.0)
    assert all(w.grad is None for w in tensors)


# Exact zeros.


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_soft_thresholds(dtype: torch.dtype, as_tensor: bool) -> None:
    tensors = weights(dtype)
    with torch.no_grad():
        tensors[1].copy_(torch.tensor([0.5, -0.5, 0.25, -0.25]))
    expected = [softshrink(w.detach(), 0.5) for w in tensors]
    soft_threshold_(tensors, torch.tensor(0.5) if as_tensor else 0.5)
    for w, right in zip(tensors, expected, strict=True):
        assert torch.equal(w, right)
        assert w.requires_grad
    assert torch.equal(tensors[1].signbit(), torch.zeros(4, dtype=torch.bool))
    assert (tensors[0] == 0).sum() > 3


def test_thresholds_of_nothing_and_nan() -> None:
    tensors = weights()
    before = [w.detach().clone() for w in tensors]
    soft_threshold_(tensors, 0.0)
    soft_threshold_(tensors, torch.tensor(0.0))
    soft_threshold_([], 1.0)
    assert all(torch.equal(w, right) for w, right in zip(tensors, before, strict=True))
    broken = torch.tensor([math.nan, 1.0])
    soft_threshold_(broken, 0.5)
    assert broken[0].isnan()
    assert broken[1] == 0.5
    soft_threshold_(broken, math.inf)
    assert broken[1] == 0.0


def test_the_lasso_is_solved_exactly() -> None:
    # Of an orthonormal design the solution is known: the correlations, soft-thresholded.
    design, _ = torch.linalg.qr(torch.randn(20, 5, dtype=torch.float64))
    target = design @ torch.tensor([2.0, -0.1, 0.05, -1.0, 0.0], dtype=torch.float64)
    w = nn.Parameter(torch.zeros(5, dtype=torch.float64))
    optimizer = torch.optim.SGD([w], lr=0.5)
    for _ in range(100):
        optimizer.zero_grad()
        ((design @ w - target).square().sum() / 2).backward()
        optimizer.step()
        soft_threshold_(w, 0.5 * 0.2)
    right = softshrink(design.T @ target, 0.2)
    torch.testing.assert_close(w.detach(), right, rtol=1e-12, atol=1e-12)
    assert (w == 0).tolist() == [False, True, True, False, True]


# What is refused.


@pytest.mark.parametrize("function", [penalty, add_penalty_gradients_])
@pytest.mark.parametrize("name", ["l1", "l2"])
@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan, "1", True])
def test_bad_strengths(function: Any, name: str, value: Any) -> None:
    with pytest.raises(
        (TypeError, ValueError), match=f"{name} has to be a finite number, at least 0, but got"
    ):
        function(weights(), **{name: value})


def test_a_bad_threshold() -> None:
    for value in (-1.0, math.nan):
        with pytest.raises(ValueError, match="threshold has to be a number, at least 0, but got"):
            soft_threshold_(weights(), value)


def test_an_iterator_without_weights_warns_where_it_is_given() -> None:
    used = iter([torch.ones(2)])
    assert len([*used]) == 1
    calls = (
        lambda: penalty(used, l1=1.0),
        lambda: add_penalty_gradients_(used, l1=1.0),
        lambda: soft_threshold_(used, 0.1),
    )
    for call in calls:
        with pytest.warns(UserWarning, match="empty generator, so nothing is penalised") as caught:
            call()
        assert caught[0].filename == __file__
