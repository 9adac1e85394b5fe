"""Tensors without data: each function works on the device meta and under FakeTensorMode."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import lightning_kernels as lk

CALLS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "batch_norm": lambda x, w: lk.batch_norm(x, None, None, w, w, True, activation="relu"),
    "batch_norm in evaluation": lambda x, w: lk.batch_norm(x, w.detach(), w.detach(), w, w),
    "layer_norm": lambda x, w: lk.layer_norm(x, (4,), w, w),
    "rms_norm": lambda x, w: lk.rms_norm(x, (4,), w),
    "group_norm": lambda x, w: lk.group_norm(x, 2, w, w, activation="silu"),
    "instance_norm": lambda x, w: lk.instance_norm(x, None, None, w, w),
    "dropout": lambda x, w: lk.dropout(x, 0.5),
    "dropout1d": lambda x, w: lk.dropout1d(x.flatten(2), 0.5),
    "dropout2d": lambda x, w: lk.dropout2d(x, 0.5),
    "dropout3d": lambda x, w: lk.dropout3d(x.unsqueeze(2), 0.5),
    "alpha_dropout": lambda x, w: lk.alpha_dropout(x, 0.5, True),
    "feature_alpha_dropout": lambda x, w: lk.feature_alpha_dropout(x, 0.5, True),
    "dropout_activation": lambda x, w: lk.dropout_activation(x, "gelu", 0.5, bias=w),
    "drop_block2d": lambda x, w: lk.drop_block2d(x, 0.2, 2),
    "drop_block3d": lambda x, w: lk.drop_block3d(x.unsqueeze(2), 0.2, 2),
    "stochastic_depth": lambda x, w: lk.stochastic_depth(x, 0.5, "row", residual=x),
    "add_dropout_layer_norm": lambda x, w: sum(
        lk.add_dropout_layer_norm(x, x, (4,), w, w, p=0.1, drop_path=0.1, layer_scale=w)
    ),
    "add_dropout_rms_norm": lambda x, w: sum(
        lk.add_dropout_rms_norm(x, x, (4,), w, p=0.1, drop_path=0.1, layer_scale=w)
    ),
    "clip_grad_norm_": lambda x, w: _clipped(lk.clip_grad_norm_, x, w),
    "clip_grad_value_": lambda x, w: _clipped(lk.clip_grad_value_, x, w),
    "clip_grad_adaptive_": lambda x, w: _clipped(lk.clip_grad_adaptive_, x, w),
    "clip_grad_scale": lambda x, w: _clipped(lk.clip_grad_scale, x, w),
    "clip_grads_with_norm_": lambda x, w: _clipped(
        lambda given, limit: lk.clip_grads_with_norm_(given, limit, w.detach().norm()), x, w
    ),
}


def _clipped(clip: Callable[..., Any], x: Tensor, w: Tensor) -> Tensor:
    """Clip the gradient of a copy of ``w``. Return a tensor that depends on ``x`` and ``w``."""
    copy = w.detach().clone().requires_grad_()
    copy.grad = torch.ones_like(copy)
    clip([copy], 0.5)
    return x + w


def _results(call: Callable[[Tensor, Tensor], Any], device: str, dtype: torch.dtype) -> list[Any]:
    """Return the shape, dtype and strides of the output and of the gradients."""
    x = torch.ones(2, 4, 4, 4, device=device, dtype=dtype, requires_grad=True)
    w = torch.ones(4, device=device, dtype=dtype, requires_grad=True)
    y = call(x, w)
    y.sum().backward()
    found = [y.detach(), x.grad, w.grad]
    assert y.device.type == torch.device(device).type
    return [t if t is None else (t.shape, t.dtype, t.stride()) for t in found]


def test_every_function_is_called() -> None:
    functions = {name for name in lk.__all__ if name[0].islower()}
    called = {name.split()[0] for name in CALLS}
    settings = {"compiled_norms", "kernel_policy"}
    no_ops = {"keep_kernels", "route", "run_all_kernels"}
    no_ops |= {f"{verb}_{name}" for name in settings for verb in ("get", "set")}
    assert called == functions - no_ops


@pytest.mark.parametrize("name", CALLS)
def test_tensors_on_meta(name: str, device: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        expected = _results(CALLS[name], device, dtype)
        assert _results(CALLS[name], "meta", dtype) == expected
        with torch.autocast("cpu", torch.bfloat16):
            _results(CALLS[name], "meta", dtype)


@pytest.mark.parametrize("name", CALLS)
def test_fake_tensors(name: str, device: str) -> None:
    expected = _results(CALLS[name], device, torch.float32)
    with FakeTensorMode():
        assert _results(CALLS[name], device, torch.float32) == expected
    assert lk.route(torch.ones(1, device="meta")) == "aten"


def test_a_fake_tensor_of_a_device_that_is_not_there() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with FakeTensorMode():
        x = torch.empty(2, 4, device="cuda:0")
        assert lk.route(x) == "aten"
        assert lk.layer_norm(x, (4,)).device == x.device
