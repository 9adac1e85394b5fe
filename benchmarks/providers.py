"""Who computes each op: ours, torch's ways, and the packages that people would pick instead.

A factory imports its package itself, so that one that is missing or fails to import is a row of the
results. The provider called ``eager`` is the op's reference, in float64 too.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torchvision import ops

import lightning_kernels
from benchmarks.gradients import sizes_of, with_gradients
from benchmarks.shapes import OPS

Function = Callable[..., Tensor]
Inputs = tuple[Tensor, ...]

OURS = "ours"
EAGER = "eager"
COMPILED = {"compile": None, "compile-max-autotune": "max-autotune-no-cudagraphs"}
AUTOTUNED = "compile-max-autotune"

_EPS = 1e-5
_GROUPS = 32  # as many, or of a shrunk shape as many as divide its channels
_NEVER, _ALWAYS = 1e6, 0.0  # thresholds: of the latter gradients are scaled again and again
_RARE = 1e-12  # a rate at which nothing is dropped, though all is done that dropping takes


def _as_they_are(inputs: Inputs) -> Inputs:
    return inputs


@dataclasses.dataclass(frozen=True)
class Provider:
    """One implementation of one op.

    Attributes:
        name: Who provides it, a package's name as in the registry.
        op: Key of :data:`benchmarks.shapes.OPS`.
        make: Imports what it needs and returns the function of the op's inputs.
        prepare: What it takes in place of the op's inputs, made outside the measurement.
        needs_gpu: Whether it runs on a GPU only.
    """

    name: str
    op: str
    make: Callable[[], Function]
    prepare: Callable[[Inputs], Inputs] = _as_they_are
    needs_gpu: bool = False


def _torchs(op: str, function: Function) -> list[Provider]:
    """Return torch's own ways of computing ``function``: eager, and compiled."""
    compiled = [
        Provider(name, op, lambda mode=mode: _compile(function, mode))  # type: ignore[misc]
        for name, mode in COMPILED.items()
    ]
    return [Provider(EAGER, op, lambda: function), *compiled]


def _compile(function: Function, mode: str | None) -> Function:
    """Compile for one shape, in one graph; the CUDA graphs are the timer's own, alike for all."""
    from torch._functorch import config

    # A donated buffer can't be kept for another backward pass, and the timer makes many of one.
    config.donated_buffer = False
    return torch.compile(function, mode=mode, fullgraph=True, dynamic=False)


def _eager_layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, _EPS)


def _our_layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return lightning_kernels.layer_norm(x, x.shape[-1:], weight, bias, _EPS)


def _eager_layer_norm2d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _eager_layer_norm(x.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)


def _our_layer_norm2d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _our_layer_norm(x.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)


def _liger_layer_norm() -> Function:
    layer_norm = import_module("liger_kernel.transformers.functional").liger_layer_norm
    return lambda x, weight, bias: layer_norm(x, weight, bias, _EPS)


def _quack_layer_norm() -> Function:
    quack = import_module("quack.rmsnorm")

    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        y, rstd, mean = quack.layernorm_fwd(
            x, weight, bias, _EPS, return_rstd=True, return_mean=True
        )
        return y, x, weight, rstd, mean

    def backward(grad: Tensor, *saved: Tensor) -> tuple[Tensor, ...]:
        x, weight, rstd, mean = saved
        gradients: tuple[Tensor, ...] = quack.layernorm_bwd(x, weight, grad, rstd, mean)
        return gradients

    return _on_rows(_differentiable(forward, backward))


def _float32_parameters(inputs: Inputs) -> Inputs:
    x, *parameters = inputs
    return (x, *(p.detach().float().requires_grad_() for p in parameters))


def _gems_layer_norm() -> Function:
    gems = import_module("flag_gems")

    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        y, mean, rstd = gems.layer_norm(x, x.shape[-1:], weight, bias, _EPS)
        return y, x, mean, rstd, weight, bias

    def backward(grad: Tensor, *saved: Tensor) -> tuple[Tensor, ...]:
        x, mean, rstd, weight, bias = saved
        gradients: tuple[Tensor, ...] = gems.layer_norm_backward(
            grad, x, x.shape[-1:], mean, rstd, weight, bias, (True, True, True)
        )
        return gradients

    return _on_rows(_differentiable(forward, backward))


def _eager_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, _EPS)


def _our_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return lightning_kernels.rms_norm(x, x.shape[-1:], weight, _EPS)


def _liger_rms_norm() -> Function:
    rms_norm = import_module("liger_kernel.transformers.functional").liger_rms_norm
    # In place it would write into the gradient that the next round is given.
    return lambda x, weight: rms_norm(x, weight, _EPS, in_place=False)


def _quack_rms_norm() -> Function:
    rms_norm = import_module("quack.rmsnorm").rmsnorm
    return _on_rows(lambda x, weight: rms_norm(x, weight=weight, eps=_EPS))


def _eager_add_dropout_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    return _eager_layer_norm(residual + F.dropout(x, _RARE), weight, bias)


def _our_add_dropout_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    y, _ = lightning_kernels.add_dropout_layer_norm(
        x, residual, x.shape[-1:], weight, bias, p=_RARE, eps=_EPS
    )
    return y


def _eager_batch_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, weight, bias, True, eps=_EPS)


def _eager_batch_norm_relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.relu(_eager_batch_norm(x, weight, bias))


def _eager_batch_norm_add_relu(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return F.relu(_eager_batch_norm(x, weight, bias) + residual)


def _our_batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None, *,
    activation: str | None = None,
) -> Tensor:  # fmt: skip
    return lightning_kernels.batch_norm(
        x, None, None, weight, bias, True, eps=_EPS, activation=activation, residual=residual
    )


def _our_batch_norm_relu() -> Function:
    return functools.partial(_our_batch_norm, activation="relu")


def _eager_group_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.group_norm(x, math.gcd(_GROUPS, x.shape[1]), weight, bias, _EPS)


def _eager_group_norm_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.silu(_eager_group_norm(x, weight, bias))


def _our_group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, *, activation: str | None = None
) -> Tensor:
    groups = math.gcd(_GROUPS, x.shape[1])
    return lightning_kernels.group_norm(x, groups, weight, bias, _EPS, activation)


def _our_group_norm_silu() -> Function:
    return functools.partial(_our_group_norm, activation="silu")


def _eager_instance_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, None, None, weight, bias, eps=_EPS)


def _our_instance_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return lightning_kernels.instance_norm(x, None, None, weight, bias, eps=_EPS)


def _drop_rate() -> float:
    rate = OPS["dropout"].drop_rate
    assert rate is not None
    return rate


def _eager_dropout(x: Tensor) -> Tensor:
    return F.dropout(x, _drop_rate())


def _our_dropout(x: Tensor) -> Tensor:
    return lightning_kernels.dropout(x, _drop_rate())


def _eager_dropout2d(x: Tensor) -> Tensor:
    return F.dropout2d(x, _RARE)


def _our_dropout2d(x: Tensor) -> Tensor:
    return lightning_kernels.dropout2d(x, _RARE)


def _eager_stochastic_depth(x: Tensor, residual: Tensor, layer_scale: Tensor) -> Tensor:
    """Compute what torchvision's and timm's blocks do, a function at a time."""
    kept = x.new_empty([x.shape[0], *[1] * (x.dim() - 1)]).bernoulli_(1 - _RARE).div_(1 - _RARE)
    return residual + layer_scale * x * kept


def _our_stochastic_depth(x: Tensor, residual: Tensor, layer_scale: Tensor) -> Tensor:
    return lightning_kernels.stochastic_depth(
        x, _RARE, "row", residual=residual, layer_scale=layer_scale
    )


def _eager_dropout_activation(x: Tensor, bias: Tensor) -> Tensor:
    return F.dropout(F.gelu(x + bias), _RARE)


def _our_dropout_activation(x: Tensor, bias: Tensor) -> Tensor:
    return lightning_kernels.dropout_activation(x, "gelu", _RARE, bias=bias)


def _gems_dropout() -> Function:
    gems = import_module("flag_gems")
    rate = _drop_rate()

    def forward(x: Tensor) -> tuple[Tensor, ...]:
        y, mask = gems.dropout(x, rate, True)
        return y, mask

    def backward(grad: Tensor, *saved: Tensor) -> tuple[Tensor, ...]:
        return (gems.dropout_backward(grad, saved[0], 1 / (1 - rate)),)

    return _differentiable(forward, backward)


def _block() -> tuple[float, int]:
    op = OPS["drop_block"]
    assert op.drop_rate is not None
    assert op.block_size is not None
    return op.drop_rate, op.block_size


def _eager_drop_block(x: Tensor) -> Tensor:
    y: Tensor = ops.drop_block2d(x, *_block())
    return y


def _our_drop_block(x: Tensor) -> Tensor:
    return lightning_kernels.drop_block2d(x, *_block())


def _timm_drop_block() -> Function:
    drop_block = import_module("timm.layers").drop_block_2d
    return lambda x: drop_block(x, *_block(), couple_channels=False)  # a mask for each, as ours


def _clip_by_norm(clip: Callable[..., Tensor], max_norm: float) -> Function:
    """Return what clips the gradients of its inputs and returns their norm before."""

    def clip_all(*weights: Tensor) -> Tensor:
        if weights[0].grad is None:  # the reference: all gradients as one
            whole: Tensor = torch.linalg.vector_norm(weights[0])
            return whole
        norm: Tensor = clip(weights, max_norm)
        return norm.to(weights[0].dtype)

    return clip_all


def _clip_adaptively(clip: Callable[..., object]) -> Function:
    """Return what clips the gradients of its inputs and returns the first, which is no larger."""

    def clip_all(*weights: Tensor) -> Tensor:
        if weights[0].grad is None:
            flat = weights[0].flatten()
            return flat[: math.prod(sizes_of(flat.numel())[0])]
        clip(weights, _NEVER)
        return weights[0].grad.flatten()

    return clip_all


def _timm_adaptive_clip() -> Function:
    return _clip_adaptively(import_module("timm.utils.agc").adaptive_clip_grad)


def _clips(op: str, max_norm: float) -> list[Provider]:
    """Return who clips by norm; torch picks its multi-tensor functions by itself."""
    ours, torchs = (
        functools.partial(Provider, make=functools.partial(_clip_by_norm, clip, max_norm))
        for clip in (lightning_kernels.clip_grad_norm_, torch.nn.utils.clip_grad_norm_)
    )
    return [ours(OURS, op, prepare=with_gradients), torchs(EAGER, op, prepare=with_gradients)]


def _differentiable(
    forward: Callable[..., tuple[Tensor, ...]], backward: Callable[..., tuple[Tensor, ...]]
) -> Function:
    """Join two passes that a package offers apart, at the cost of a bare autograd function.

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


# timm's and torchvision's layer norms and dropouts call torch's: not peers of their own.
PROVIDERS: list[Provider] = [
    Provider(OURS, "layer_norm", lambda: _our_layer_norm),
    *_torchs("layer_norm", _eager_layer_norm),
    Provider("liger-kernel", "layer_norm", _liger_layer_norm, needs_gpu=True),
    Provider("quack-kernels", "layer_norm", _quack_layer_norm, _float32_parameters, needs_gpu=True),
    Provider("flag-gems", "layer_norm", _gems_layer_norm, needs_gpu=True),
    Provider(OURS, "rms_norm", lambda: _our_rms_norm),
    *_torchs("rms_norm", _eager_rms_norm),
    Provider("liger-kernel", "rms_norm", _liger_rms_norm, needs_gpu=True),
    Provider("quack-kernels", "rms_norm", _quack_rms_norm, _float32_parameters, needs_gpu=True),
    Provider(OURS, "layer_norm2d", lambda: _our_layer_norm2d),
    *_torchs("layer_norm2d", _eager_layer_norm2d),
    Provider(OURS, "add_dropout_layer_norm", lambda: _our_add_dropout_layer_norm),
    *_torchs("add_dropout_layer_norm", _eager_add_dropout_layer_norm),
    Provider(OURS, "batch_norm", lambda: _our_batch_norm),
    *_torchs("batch_norm", _eager_batch_norm),
    Provider(OURS, "batch_norm_relu", _our_batch_norm_relu),
    *_torchs("batch_norm_relu", _eager_batch_norm_relu),
    Provider(OURS, "batch_norm_add_relu", _our_batch_norm_relu),
    *_torchs("batch_norm_add_relu", _eager_batch_norm_add_relu),
    Provider(OURS, "group_norm", lambda: _our_group_norm),
    *_torchs("group_norm", _eager_group_norm),
    Provider(OURS, "group_norm_silu", _our_group_norm_silu),
    *_torchs("group_norm_silu", _eager_group_norm_silu),
    Provider(OURS, "instance_norm", lambda: _our_instance_norm),
    *_torchs("instance_norm", _eager_instance_norm),
    Provider(OURS, "dropout", lambda: _our_dropout),
    *_torchs("dropout", _eager_dropout),
    Provider("flag-gems", "dropout", _gems_dropout, needs_gpu=True),
    Provider(OURS, "drop_block", lambda: _our_drop_block),
    *_torchs("drop_block", _eager_drop_block),  # torchvision's
    Provider("timm", "drop_block", _timm_drop_block),
    Provider(OURS, "dropout2d", lambda: _our_dropout2d),
    *_torchs("dropout2d", _eager_dropout2d),
    Provider(OURS, "stochastic_depth", lambda: _our_stochastic_depth),
    *_torchs("stochastic_depth", _eager_stochastic_depth),
    Provider(OURS, "dropout_activation", lambda: _our_dropout_activation),
    *_torchs("dropout_activation", _eager_dropout_activation),
    *_clips("clip_grad_norm", _NEVER),
    *_clips("clip_grad_norm_clipped", _ALWAYS),
    Provider(
        OURS,
        "clip_grad_adaptive",
        functools.partial(_clip_adaptively, lightning_kernels.clip_grad_adaptive_),
        with_gradients,
    ),
    Provider(EAGER, "clip_grad_adaptive", _timm_adaptive_clip, with_gradients),  # torch has none
]


def providers_of(op: str) -> list[Provider]:
    """Return the providers of ``op``, ours first."""
    return [provider for provider in PROVIDERS if provider.op == op]


def reference_of(op: str) -> Provider:
    """Return the provider of ``op`` that is right by definition."""
    (eager,) = (p for p in PROVIDERS if p.op == op and p.name == EAGER)
    return eager
