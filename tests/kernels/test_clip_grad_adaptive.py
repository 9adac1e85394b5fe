"""Adaptive gradient clipping on whichever route this run has."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_kernels import clip_grad_adaptive_
from lightning_kernels._core.launch import launch
from tests.kernels.reference import replace_launch

SHAPES: list[tuple[int, ...]] = [
    (7, 5),
    (3,),
    (),
    (16, 8, 3, 3),
    (2, 3000),
    (1, 64),
    (0, 4),
    (5, 1),
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def parameters(device: str, dtypes: Sequence[torch.dtype] = (torch.float32,)) -> list[Tensor]:
    """Return weights and gradients of which some units are to be clipped, and some are not."""
    made: list[Tensor] = []
    for i, shape in enumerate(SHAPES):
        p = torch.randn(shape, device=device).to(dtypes[i % len(dtypes)]).requires_grad_()
        spread = torch.logspace(-3, 0, max(shape[0], 1) if shape else 1, device=device)
        size = spread.reshape(-1, *[1] * (len(shape) - 1)) if len(shape) > 1 else spread[-1]
        p.grad = (torch.randn(shape, device=device) * size).to(p.dtype)
        made.append(p)
    return [*made, torch.randn(4, device=device, requires_grad=True)]


def exact(p: Tensor, factor: float, eps: float, order: float) -> tuple[Tensor, Tensor]:
    """Return the clipped gradient by the paper's formula in float64, and which units were."""
    assert p.grad is not None
    weight, grad = p.detach().double(), p.grad.double()
    rows = [t.flatten(1) if t.dim() > 1 else t.reshape(1, -1) for t in (weight, grad)]
    weight_norm, grad_norm = (t.norm(order, dim=1, keepdim=True) for t in rows)
    limit = factor * weight_norm.clamp(min=eps)
    clipped = grad_norm > limit
    return torch.where(clipped, rows[1] * limit / grad_norm, rows[1]).reshape(grad.shape), clipped


@pytest.mark.parametrize(
    ("dtype", "order"),
    [
        *((torch.float32, order) for order in (0.5, 1, 2, math.inf)),
        (torch.bfloat16, 2),
        (torch.float16, math.inf),
        (torch.float64, 0.5),
        (torch.float64, 2),
    ],
    ids=str,
)
def test_as_the_paper_in_float64(dtype: torch.dtype, order: float, device: str) -> None:
    params = parameters(device, [dtype])
    seen: list[Tensor] = []
    expected = [exact(p, 0.1, 1e-3, order) for p in params[:-1]]
    before = [p.grad.clone() for p in params if p.grad is not None]
    clip_grad_adaptive_(params, 0.1, norm_type=order)
    for p, (right, clipped), old in zip(params, expected, before, strict=False):
        assert p.grad is not None
        rounding = right.abs() * torch.finfo(dtype).eps / 2 * 1.01
        slack = {torch.float64: 1e-12}.get(dtype, 1e-5 if order == 0.5 else 3e-6)
        smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        assert ((p.grad.double() - right).abs() <= rounding + slack * right.abs() + smallest).all()
        if p.dim() > 1:
            kept = ~clipped.flatten()
            assert torch.equal(p.grad[kept], old[kept])
        seen.append(clipped.flatten())
    assert 0 < torch.cat(seen).double().mean() < 1


def test_mixed_types_in_one_call(device: str) -> None:
    params = parameters(device, DTYPES)
    expected = [exact(p, 0.05, 1e-3, 2)[0] for p in params[:-1]]
    clip_grad_adaptive_(params, 0.05)
    for p, right in zip(params, expected, strict=False):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, right.to(p.dtype))


def test_layouts(device: str) -> None:
    base = torch.randn(8, 4, 3, 3, device=device)
    for weight, grad in (
        (base.to(memory_format=torch.channels_last), base * 0.5),
        (base, (base * 0.5).to(memory_format=torch.channels_last)),
        (base.transpose(0, 1), torch.randn(4, 8, 3, 3, device=device)),
        (torch.randn(289, device=device)[1:].view(8, 4, 3, 3), base * 0.3),
        (base, torch.randn(8, 8, 3, 3, device=device)[:, ::2]),
    ):
        p = weight.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        p.grad = grad.detach()
        right, clipped = exact(p, 0.05, 1e-3, 2)
        assert clipped.any()
        clip_grad_adaptive_(p, 0.05)
        torch.testing.assert_close(p.grad, right.float())


def test_a_zero_weight_counts_as_eps(device: str) -> None:
    p = torch.zeros(2, 2, device=device, requires_grad=True)
    p.grad = torch.tensor([[3.0, 4.0], [0.0, 0.0]], device=device)
    clip_grad_adaptive_(p, 0.1, eps=0.5)
    torch.testing.assert_close(p.grad, torch.tensor([[0.03, 0.04], [0, 0]], device=device))


def test_what_is_excluded_is_left(device: str) -> None:
    params = parameters(device)
    before = [None if p.grad is None else p.grad.clone() for p in params]
    clip_grad_adaptive_(iter(params), 1e-4, exclude=params[:1])
    assert params[0].grad is not None
    assert before[0] is not None
    assert torch.equal(params[0].grad, before[0])
    assert params[3].grad is not None
    assert before[3] is not None
    assert not torch.equal(params[3].grad, before[3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_nan_stays_in_its_unit(dtype: torch.dtype, device: str) -> None:
    p = torch.ones(3, 4, device=device, dtype=dtype, requires_grad=True)
    p.grad = torch.ones_like(p)
    p.grad[1, 2] = math.nan
    clip_grad_adaptive_(p, 0.1)
    assert p.grad[1].isnan().all()
    torch.testing.assert_close(p.grad[::2], torch.full_like(p.grad[::2], 0.1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_factor": -0.1}, "clip_factor as a number of 0 or more, but got -0.1"),
        ({"eps": math.nan}, "eps as a number of 0 or more, but got nan"),
        ({"norm_type": 0}, "positive norm_type, but got 0.0"),
    ],
)
def test_bad_numbers(options: dict[str, Any], message: str, device: str) -> None:
    with pytest.raises(ValueError, match=message):
        clip_grad_adaptive_(parameters(device), **options)


def test_nothing_is_written_on_the_cpu_where_nothing_is_clipped() -> None:
    p = torch.ones(3, 3, dtype=torch.float64, requires_grad=True)
    p.grad = torch.full_like(p, 1e-6)
    version = p.grad._version
    clip_grad_adaptive_(p)
    assert p.grad._version == version


@pytest.mark.kernel
def test_one_launch_whatever_the_number(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    launches: list[Any] = []

    def counted(*args: Any, **constants: Any) -> None:
        launches.append(args[0])
        launch(*args, **constants)

    replace_launch(monkeypatch, counted)
    clip_grad_adaptive_(parameters(device, DTYPES[:3]) + parameters(device))
    assert len(launches) == 1


@pytest.mark.gpu
def test_no_wait_for_the_device() -> None:
    params = parameters("cuda", DTYPES[:3])
    clip_grad_adaptive_(params)
    torch.cuda.set_sync_debug_mode("error")
    try:
        clip_grad_adaptive_(params)
    finally:
        torch.cuda.set_sync_debug_mode("default")
