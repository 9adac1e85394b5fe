"""Clipping by a number that the optimizer divides by, and by a norm that is known already."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lightning_kernels import clip_grad_norm_, clip_grad_scale, clip_grads_with_norm_
from tests.kernels.test_clip_grad import NORMS, assert_norm, exact_norm, grads_of, parameters

SHARES = [0.1, 1.001]  # of the norm: the largest that is allowed


def numbers(result: Sequence[Tensor]) -> list[float]:
    return [value.item() for value in result]


@pytest.mark.parametrize("order", NORMS)
@pytest.mark.parametrize(
    ("share", "loss_scale"), [(SHARES[0], torch.tensor(3.0)), (SHARES[1], 1.0)]
)
def test_quotient_has_the_norm(
    order: float, share: float, loss_scale: float | Tensor, device: str
) -> None:
    params = parameters(device)
    before = grads_of(params)
    norm = exact_norm(before, order) / float(loss_scale)
    result = clip_grad_scale(params, share * norm, order, loss_scale=loss_scale)
    assert all(torch.equal(a, b) for a, b in zip(grads_of(params), before, strict=True))
    assert all(value.device.type == device and value.shape == () for value in result)
    assert_norm(result.norm * float(loss_scale), before, order)
    assert result.grad_scale.dtype == result.found_inf.dtype == torch.float32
    assert result.found_inf.item() == 0
    if share > 1:
        assert result.grad_scale.item() == float(loss_scale)
    else:
        expected = (result.norm.double().item() + 1e-6) / (share * norm) * float(loss_scale)
        assert result.grad_scale.item() == pytest.approx(expected, rel=4e-7)


@pytest.mark.parametrize("order", [1, 2, math.inf])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_found(bad: float, order: float, device: str) -> None:
    params = parameters(device)
    assert params[3].grad is not None
    params[3].grad[-1] = bad
    norm, grad_scale, found_inf = numbers(clip_grad_scale(params, 1.0, order))
    assert found_inf == 1
    assert math.isnan(norm) == math.isnan(grad_scale) == math.isnan(bad)
    assert math.isnan(bad) or norm == grad_scale == math.inf


def test_mixed_types(device: str) -> None:
    params = parameters(device, (torch.float32, torch.bfloat16, torch.float16))
    grads = grads_of(params)
    result = clip_grad_scale(params, 0.5)
    assert_norm(result.norm, grads, 2.0)
    assert result.grad_scale.item() == pytest.approx(2 * (exact_norm(grads, 2.0) + 1e-6), rel=3e-6)


def test_double_has_its_norm_in_double(device: str) -> None:
    params = parameters(device, (torch.float64,))
    result = clip_grad_scale(params, 0.5)
    assert result.norm.dtype == torch.float64
    assert result.grad_scale.dtype == torch.float32
    assert result.norm.item() == pytest.approx(exact_norm(grads_of(params), 2.0), rel=1e-12)


def test_the_norm_of_scaled_gradients_is_a_float32(device: str) -> None:
    p = torch.zeros(2, device=device, requires_grad=True)
    p.grad = torch.full_like(p, 1e18)  # the squares of what is scaled by 16 are above 3e38
    found = clip_grad_scale([p], 1.0, loss_scale=torch.tensor(16.0)).found_inf.item()
    p.grad *= 16
    assert (found, clip_grad_scale([p], 1.0, loss_scale=16.0).found_inf.item()) == (0, 1)


def test_without_gradients() -> None:
    p = torch.zeros(3, requires_grad=True)
    assert numbers(clip_grad_scale([p], 1.0, loss_scale=torch.tensor(8.0))) == [0, 8, 0]
    clip_grads_with_norm_([p], 1.0, torch.tensor(2.0))
    assert p.grad is None


@pytest.mark.parametrize("share", SHARES)
def test_a_threshold_in_memory(share: float, device: str) -> None:
    """A tensor does what the same number does."""
    params = parameters(device)
    before = grads_of(params)
    limit = torch.tensor(share * exact_norm(before, 2.0), device=device)
    by_tensor = clip_grad_norm_(params, limit)
    after = grads_of(params)
    scale = clip_grad_scale(params, limit)
    for p, grad in zip([p for p in params if p.grad is not None], before, strict=True):
        p.grad = grad
    assert torch.equal(by_tensor, clip_grad_norm_(params, limit.item()))
    assert all(torch.equal(a, b) for a, b in zip(grads_of(params), after, strict=True))
    assert torch.equal(scale.grad_scale, clip_grad_scale(params, limit.item()).grad_scale)


@pytest.mark.parametrize("known", [0.5, 3.0, math.inf, math.nan])
def test_a_norm_that_is_known(known: float, device: str) -> None:
    """As torch's own, also with a norm that isn't the gradients' at all."""
    params = [p for p in parameters(device) if p.numel()]
    theirs = [torch.zeros_like(p, requires_grad=True) for p in params]
    for p, copy in zip(params, theirs, strict=True):
        copy.grad = None if p.grad is None else p.grad.clone()
    total = torch.tensor(known, device=device)
    clip_grads_with_norm_(params, 1.5, total)
    torch.nn.utils.clip_grads_with_norm_(theirs, 1.5, total)
    for a, b in zip(grads_of(params), grads_of(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0, equal_nan=True)


def test_several_numbers_are_no_threshold(device: str) -> None:
    params = parameters(device)
    with pytest.raises(ValueError, match=r"max_norm has to be .* one element, but got .* \[2\]"):
        clip_grad_norm_(params, torch.ones(2, device=device))
