"""Who computes an op: a provider, and the packages that people would pick instead of ours.

Every adapter imports its package itself, so a package that is missing becomes a row of the results.
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
EPS = 1e-5  # of every norm
DROP_RATE = 0.1
BLOCK_SIZE = 7


def as_they_are(inputs: Inputs) -> Inputs:
    """Return ``inputs``."""
    return inputs


@dataclasses.dataclass(frozen=True)
class Provider:
    """One implementation of one op.

    Attributes:
        name: Who provides it: a package's name in the registry, for packages.
        make: Imports the package and returns the function of the op's inputs.
        prepare: Converts the op's inputs for it, outside the measurement.
        needs_gpu: Whether it runs on a GPU only.
    """

    name: str
    make: Callable[[], Function]
    prepare: Callable[[Inputs], Inputs] = as_they_are
    needs_gpu: bool = False


def compile_function(function: Function, mode: str | None) -> Function:
    """Compile for one shape, in one graph.

    No CUDA graphs of the compiler's own: the timer captures one for every provider alike.
    """
    from torch._functorch import config

    # A donated buffer can't be kept for another backward pass, and the timer runs many of one.
    config.donated_buffer = False
    return torch.compile(function, mode=mode, fullgraph=True, dynamic=False)


def _differentiable(
    forward: Callable[..., tuple[Tensor, ...]], backward: Callable[..., tuple[Tensor, ...]]
) -> Function:
    """Join two passes that a package offers separately, at the cost of a bare autograd function.

    Args:
        forward: Returns the result, then the tensors to save.
        backward: Takes the gradient and the saved tensors, returns the inputs' gradients.
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
    """Give the first input to ``function`` as a matrix."""

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
    # In place it would write into the gradient that the next round is given.
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
    # A mask for each channel, as ours.
    return lambda x: drop_block(x, DROP_RATE, BLOCK_SIZE, couple_channels=False)


# The layer norms and dropouts of timm and torchvision call torch's, so they are no peers.
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
