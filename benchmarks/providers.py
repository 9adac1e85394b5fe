"""Providers, the implementations of an op: other packages that people might use instead of ours.

Every adapter imports its package itself, so a missing package is reported in a row of the results.
"""

import dataclasses
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Tensor]
Inputs = tuple[Tensor, ...]

COMPILED = {"compile": None, "compile-max-autotune": "max-autotune-no-cudagraphs"}
AUTOTUNED = "compile-max-autotune"
EPS = 1e-5  # epsilon of every norm
DROP_RATE = 0.1
BLOCK_SIZE = 7


def as_they_are(inputs: Inputs) -> Inputs:
    """Return ``inputs`` unchanged."""
    return inputs


@dataclasses.dataclass(frozen=True)
class Provider:
    """One implementation of one op.

    Attributes:
        name: Name of the implementation; for a package, its name in the package registry.
        make: Function that imports the package and returns the implementation.
        prepare: Function that converts the op's inputs, outside of the measurement.
        needs_gpu: Whether the implementation runs only on a GPU.
    """

    name: str
    make: Callable[[], Function]
    prepare: Callable[[Inputs], Inputs] = as_they_are
    needs_gpu: bool = False


def compile_function(function: Function, mode: str | None) -> Function:
    """Compile ``function`` for one shape, as a single graph.

    The compiler makes no CUDA graphs of its own, since the timer captures one for every provider.
    """
    from torch._functorch import config

    # Donated buffers are freed in the backward pass, but the timer repeats it with the same
    # buffers.
    config.donated_buffer = False
    return torch.compile(function, mode=mode, fullgraph=True, dynamic=False)


def _differentiable(
    forward: Callable[..., tuple[Tensor, ...]], backward: Callable[..., tuple[Tensor, ...]]
) -> Function:
    """Join a package's separate forward and backward, with only autograd's basic overhead.

    Args:
        forward: Function that returns the result and the tensors to save.
        backward: Function of the gradient and the saved tensors that returns the inputs' gradients.
    """

    class Joined(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Tensor) -> Tensor:
            y, *saved = forward(*inputs)
            ctx.save_for_backward(*saved)
            return y

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            return backward(grad, *ctx.saved_tensors)

    apply: Function = Joined.apply
    return apply


def _on_rows(function: Function) -> Function:
    """Return ``function`` with its first input reshaped to a matrix."""

    def on_rows(x: Tensor, *parameters: Tensor) -> Tensor:
        return function(x.reshape(-1, x.shape[-1]), *parameters).reshape(x.shape)

    return on_rows


def _float32_parameters(inputs: Inputs) -> Inputs:
    x, *parameters = inputs
    return (x, *(p.detach().float().requires_grad_() for p in parameters))


def _liger_layer_norm() -> Function:
    layer_norm = import_module("liger_kernel.transformers.functional").liger_layer_norm
    return lambda x, weight, bias: layer_norm(x, weight, bias, EPS)


def _liger_rms_norm() -> Function:
    rms_norm = import_module("liger_kernel.transformers.functional").liger_rms_norm
    # In place, it would overwrite the gradient that the next round needs.
    return lambda x, weight: rms_norm(x, weight, EPS, in_place=False)


def _quack_layer_norm() -> Function:
    quack = import_module("quack.rmsnorm")

    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        y, rstd, mean = quack.layernorm_fwd(
            x, weight, bias, EPS, return_rstd=True, return_mean=True
        )
        return y, x, weight, rstd, mean

    def backward(grad: Tensor, *saved: Tensor) -> tuple[Tensor, ...]:
        x, weight, rstd, mean = saved
        gradients: tuple[Tensor, ...] = quack.layernorm_bwd(x, weight, grad, rstd, mean)
        return gradients

    return _on_rows(_differentiable(forward, backward))


def _quack_rms_norm() -> Function:
    rms_norm = import_module("quack.rmsnorm").rmsnorm
    return _on_rows(lambda x, weight: rms_norm(x, weight=weight, eps=EPS))


def _gems_layer_norm() -> Function:
    gems = import_module("flag_gems")

    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        y, mean, rstd = gems.layer_norm(x, x.shape[-1:], weight, bias, EPS)
        return y, x, mean, rstd, weight, bias

    def backward(grad: Tensor, *saved: Tensor) -> tuple[Tensor, ...]:
        x, mean, rstd, weight, bias = saved
        gradients: tuple[Tensor, ...] = gems.layer_norm_backward(
            grad, x, x.shape[-1:], mean, rstd, weight, bias, (True, True, True)
        )
        return gradients

    return _on_rows(_differentiable(forward, backward))


def _gems_dropout() -> Function:
    gems = import_module("flag_gems")

    def forward(x: Tensor) -> tuple[Tensor, ...]:
        y, mask = gems.dropout(x, DROP_RATE, True)
        return y, mask

    def backward(grad: Tensor, *saved: Tensor) -> tuple[Tensor, ...]:
        return (gems.dropout_backward(grad, saved[0], 1 / (1 - DROP_RATE)),)

    return _differentiable(forward, backward)


def _timm_drop_block() -> Function:
    drop_block = import_module("timm.layers").drop_block_2d
    # One mask per channel, as in our function.
    return lambda x: drop_block(x, DROP_RATE, BLOCK_SIZE, couple_channels=False)


# The layer norms and dropouts of timm and torchvision call torch's functions, so they are no peers.
PACKAGES: dict[str, tuple[Provider, ...]] = {
    "layer_norm": (
        Provider("liger-kernel", _liger_layer_norm, needs_gpu=True),
        Provider("quack-kernels", _quack_layer_norm, _float32_parameters, needs_gpu=True),
        Provider("flag-gems", _gems_layer_norm, needs_gpu=True),
    ),
    "rms_norm": (
        Provider("liger-kernel", _liger_rms_norm, needs_gpu=True),
        Provider("quack-kernels", _quack_rms_norm, _float32_parameters, needs_gpu=True),
    ),
    "dropout": (Provider("flag-gems", _gems_dropout, needs_gpu=True),),
    "drop_block2d": (Provider("timm", _timm_drop_block),),
}
