"""Calls of the functions that clip gradients."""

import math

import torch
from torch import Tensor

import lightning_kernels
from benchmarks.launches.inputs import (
    DTYPE_NAMES,
    Call,
    call,
)


def _clip_grad_norm_(norm_type: float) -> None:
    lightning_kernels.clip_grad_norm_(_weights(), 0.1, norm_type)


def _clip_grad_scale(norm_type: float) -> None:
    lightning_kernels.clip_grad_scale(_weights(), 0.1, norm_type)


def _clip_grad_scale_of_losses() -> None:
    limit, scale = torch.empty(2, device="cuda").unbind()
    lightning_kernels.clip_grad_scale(_weights(), limit, loss_scale=scale)


def _clip_grads_with_norm_() -> None:
    limit, norm = torch.empty(2, device="cuda").unbind()
    lightning_kernels.clip_grads_with_norm_(_weights(), limit, norm)


def _clip_grad_value_() -> None:
    lightning_kernels.clip_grad_value_(_weights(), 0.1)


def _clip_grad_adaptive_() -> None:
    lightning_kernels.clip_grad_adaptive_(_weights(), 0.1)


def _weights() -> list[Tensor]:
    """Return a parameter with a gradient per dtype: one launch handles a table of all dtypes."""
    weights = [torch.empty(64, 64, device="cuda", dtype=dtype) for dtype in DTYPE_NAMES]
    for weight in weights:
        weight.grad = torch.empty_like(weight)
    return weights


CALLS: dict[str, Call] = dict(
    [
        # One table holds gradients of any number, size and dtype.
        call(_clip_grad_norm_, 1.0),
        call(_clip_grad_norm_, 2.0),
        call(_clip_grad_norm_, 3.0),
        call(_clip_grad_norm_, math.inf),
        call(_clip_grad_scale, 2.0),
        call(_clip_grad_scale, 3.0),
        call(_clip_grad_scale, math.inf),
        call(_clip_grad_scale_of_losses),
        call(_clip_grads_with_norm_),
        call(_clip_grad_value_),
        call(_clip_grad_adaptive_),
    ]
)
