"""Clipping of gradients that two processes share, against one process that has them whole."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Shard, distribute_tensor

from lightning_kernels import clip_grad_adaptive_, clip_grad_norm_, clip_grad_value_
from tests import processes


class Result(NamedTuple):
    total: Any
    grads: list[Tensor]


def network(dtype: torch.dtype) -> nn.Module:
    """Return a network whose parameters do not split evenly, some of them in one process alone."""
    torch.manual_seed(0)
    layers = nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3), nn.Linear(3, 1)
    return nn.Sequential(*layers).to(dtype)


def backward(model: nn.Module, dtype: torch.dtype, scale: float) -> None:
    torch.manual_seed(1)
    x = torch.randn(8, 5, dtype=dtype)
    (model(x).square().sum() * scale).backward()


def clip(model: nn.Module, algorithm: str, value: float, options: dict[str, Any]) -> Any:
    functions: dict[str, Callable[..., Any]] = {
        "norm": clip_grad_norm_,
        "value": clip_grad_value_,
        "adaptive": clip_grad_adaptive_,
    }
    return functions[algorithm](model.parameters(), value, **options)


def whole(dtype: torch.dtype, scale: float, *how: Any) -> Result:
    model = network(dtype)
    backward(model, dtype, scale)
    total = clip(model, *how)
    return Result(total, [p.grad.clone() for p in model.parameters() if p.grad is not None])


def sharded(dtype: torch.dtype, scale: float, *how: Any) -> Result:
    model = network(dtype)
    mesh = init_device_mesh("cpu", (2,))
    for layer in model:  # type: ignore[attr-defined]
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    backward(model, dtype, scale)
    total = clip(model, *how)
    grads = []
    for p in model.parameters():
        assert isinstance(p.grad, DTensor)
        grads.append(p.grad.full_tensor())
    return Result(total, grads)


CASES: list[tuple[str, float, dict[str, Any]]] = [
    *(("norm", 0.5, {"norm_type": order}) for order in (0.5, 1, 2, 3.0, math.inf)),
    ("norm", 1e9, {}),
    ("value", 0.02, {}),
    *(("adaptive", 0.05, {"norm_type": order}) for order in (1, 2, math.inf)),
]


@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float64, marks=pytest.mark.plain), torch.float32], ids=str
)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_fully_sharded_as_one_process(dtype: torch.dtype, case: Any) -> None:
    expected = whole(dtype, 1.0, *case)
    for result in processes.run(sharded, [(dtype, 1.0, *case)] * 2):
        if expected.total is not None:
            assert type(result.total) is Tensor
            torch.testing.assert_close(result.total.to(dtype), expected.total)
        for mine, right in zip(result.grads, expected.grads, strict=True):
            torch.testing.assert_close(mine, right)


@pytest.mark.parametrize("order", [2.0, math.inf])
def test_nan_reaches_every_process(order: float) -> None:
    arguments = (torch.float32, math.nan, "norm", 1.0, {"norm_type": order})
    for result in processes.run(sharded, [arguments] * 2):
        assert result.total.isnan()
        assert all(grad.isnan().all() for grad in result.grads)


def nonfinite(how: str) -> Any:
    try:
        return sharded(torch.float32, math.inf, "norm", 1.0, {"nonfinite": how})
    except RuntimeError as error:
        return str(error)


def test_all_processes_decide_alike_about_nan() -> None:
    for answer in processes.run(nonfinite, [("error",)] * 2):
        assert "non-finite" in answer
    for result in processes.run(nonfinite, [("zero",)] * 2):
        assert not result.total.isfinite()
        assert not any(grad.any() for grad in result.grads)


def tensor_parallel(placement: Placement, shape: tuple[int, ...], algorithm: str) -> Tensor:
    torch.manual_seed(3)
    weight, grad = torch.randn(shape), torch.randn(shape)
    mesh = init_device_mesh("cpu", (2,))
    p = nn.Parameter(distribute_tensor(weight, mesh, [placement]))
    p.grad = distribute_tensor(grad, mesh, [placement])
    clip(nn.ParameterList([p]), algorithm, 0.3, {})
    full: Tensor = p.grad.full_tensor()
    return full


@pytest.mark.parametrize("algorithm", ["norm", "adaptive"])
@pytest.mark.parametrize("placement", [Shard(0), Shard(1)], ids=str)
@pytest.mark.parametrize("shape", [(5, 3), (4, 1), (2, 3, 4)])
def test_rows_and_columns_shared_out(
    shape: tuple[int, ...], placement: Shard, algorithm: str
) -> None:
    torch.manual_seed(3)
    p = nn.Parameter(torch.randn(shape))
    p.grad = torch.randn(shape)
    clip(nn.ParameterList([p]), algorithm, 0.3, {})
    for grad in processes.run(tensor_parallel, [(placement, shape, algorithm)] * 2):
        torch.testing.assert_close(grad, p.grad)


def partial() -> str:
    mesh = init_device_mesh("cpu", (2,))
    p = nn.Parameter(distribute_tensor(torch.ones(4), mesh))
    p.grad = DTensor.from_local(torch.ones(4), mesh, [Partial()])
    with pytest.raises(RuntimeError) as error:
        clip_grad_norm_(p, 1.0)
    return str(error.value)


def test_gradients_that_are_not_summed_yet_are_refused() -> None:
    for message in processes.run(partial, [()] * 2):
        assert "not summed over its processes yet" in message
