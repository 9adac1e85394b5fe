"""Group and instance normalisation with activation: a pass each way where a group fits on chip."""

from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from lightning_kernels._batch_norm.batch_norm import _merge
from lightning_kernels._batch_norm.layout import dense, is_channels_last, like
from lightning_kernels._core.activation import aten_activate, resolve_parameter
from lightning_kernels._core.dispatch import (
    _is_transformed,
    cdiv,
    launch,
    multiprocessor_count,
    next_power_of_2,
    norm_runs_triton,
    without_autocast,
)
from lightning_kernels._core.operator import Operator
from lightning_kernels._core.parameters import check_parameter
from lightning_kernels._group_norm.kernels import (
    _group_norm_apply_backward_kernel,
    _group_norm_apply_kernel,
    _group_norm_backward_kernel,
    _group_norm_forward_kernel,
    _group_norm_reduce_kernel,
    _group_norm_statistics_kernel,
    _group_norm_sum_kernel,
)
from lightning_kernels._group_norm.layout import HELD_BACKWARD, HELD_FORWARD, Plan, plan_of
from lightning_kernels._row_norm.kernels import _sum_partials_kernel
from lightning_kernels._row_norm.layer_norm import Autocast, autocast_dtype

_REGISTERS = 128  # of a thread; without a word the compiler spills some for one program more


def _cut(x: Tensor, groups: int, held: int) -> tuple[Plan, int, tuple[int, ...], float]:
    """Return how ``x`` is cut, the groups of all samples, what kernels know of it, a group's size.

    The elements of a group are counted as a float, for they may be more than 32 bits hold.
    """
    samples, channels = x.shape[:2]
    pixels = x.shape[2:].numel()
    plan = plan_of(
        samples, channels, pixels, groups, is_channels_last(x), held, multiprocessor_count(x.device)
    )
    sizes = (samples * groups, groups, channels, pixels, plan.slabs, plan.width, channels // groups)
    return plan, samples * plan.slabs, sizes, float(channels // groups * pixels)


def _forward(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float,
    activation: str | None, parameter: float, dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the output, and the mean and the biased variance of each group of each sample.

    The output is of ``dtype``, or of the type of ``x``.
    """
    x = dense(x)
    weight, bias = (None if t is None else t.contiguous() for t in (weight, bias))
    y, statistics = _fake(x, groups, weight, bias, eps, activation, parameter, dtype)
    plan, programs, sizes, size = _cut(x, groups, HELD_FORWARD)
    if plan.is_held:
        launch(
            _group_norm_forward_kernel, (programs,), x.device,
            x, weight, bias, y, statistics, *sizes, size, eps, parameter,
            **plan.constants, ACTIVATION=activation,
        )  # fmt: skip
        return y, statistics
    statistics = _measure(x, plan, programs, sizes)
    launch(
        _group_norm_apply_kernel, (programs * plan.blocks * plan.tiles,), x.device,
        x, weight, bias, y, statistics, *sizes, plan.blocks, eps, parameter,
        **plan.constants, ACTIVATION=activation,
    )  # fmt: skip
    return y, statistics


def _measure(x: Tensor, plan: Plan, programs: int, sizes: tuple[int, ...]) -> Tensor:
    """Return the statistics of groups that several programs share."""
    parts, all_groups = plan.blocks * plan.splits, sizes[0]
    partial = x.new_empty((parts, 3, all_groups), dtype=torch.float32)
    launch(
        _group_norm_statistics_kernel, (programs * parts,), x.device,
        x, partial, *sizes, plan.blocks, plan.splits, **plan.constants, maxnreg=_REGISTERS,
    )  # fmt: skip
    statistics = x.new_empty((3, all_groups), dtype=torch.float32)
    _merge(partial, statistics, None)
    return statistics[:2]  # the rest is how many elements a group has


def _fake(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float,
    activation: str | None, parameter: float, dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    x = dense(x)
    # As torch: where sizes of 1 make a tensor both, the output has the strides of a contiguous one.
    layout = torch.contiguous_format if x.is_contiguous() else torch.preserve_format
    statistics = x.new_empty((2, x.shape[0] * groups), dtype=torch.float32)
    return torch.empty_like(x, dtype=dtype, memory_format=layout), statistics


def _forward_of_backward(
    grad: Tensor, x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None,
    statistics: Tensor, eps: float, activation: str | None, parameter: float, needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x, weight and bias, an empty tensor for what is not needed."""
    x = dense(x)
    grad = like(grad, x)
    weight, bias = (None if t is None else t.contiguous() for t in (weight, bias))
    gradients = _fake_of_backward(
        grad, x, groups, weight, bias, statistics, eps, activation, parameter, needs
    )
    grad_x, grad_weight, grad_bias = (
        gradient if need else None for gradient, need in zip(gradients, needs, strict=True)
    )
    plan, programs, sizes, size = _cut(x, groups, HELD_BACKWARD)
    samples, channels = x.shape[:2]
    rows = samples if plan.is_held else samples * plan.splits
    partial = None
    if needs[1] or needs[2] or not plan.is_held:
        partial = x.new_empty((2, rows, channels), dtype=torch.float32)
    tensors = grad, x, weight, bias, statistics
    constants = {**plan.constants, "ACTIVATION": activation}
    if plan.is_held:
        launch(
            _group_norm_backward_kernel, (programs,), x.device,
            *tensors, grad_x, partial, *sizes, size, rows * channels, eps, parameter, **constants,
            maxnreg=_REGISTERS,
        )  # fmt: skip
    else:
        launch(
            _group_norm_reduce_kernel, (programs * plan.blocks * plan.splits,), x.device,
            *tensors, partial, *sizes, plan.blocks, plan.splits, rows * channels, eps, parameter,
            **{**constants, "num_warps": constants["num_warps"] * x.element_size() // 2},
            maxnreg=_REGISTERS,
        )  # fmt: skip
        if grad_x is not None:
            assert partial is not None
            sums = _sums_of_groups(partial, weight, plan, programs, sizes, size)
            launch(
                _group_norm_apply_backward_kernel, (programs * plan.blocks * plan.tiles,), x.device,
                *tensors, sums, grad_x, *sizes, plan.blocks, eps, parameter, **constants,
            )  # fmt: skip
    if needs[1] or needs[2]:
        assert partial is not None
        launch(
            _sum_partials_kernel, (cdiv(channels, 16), 2), x.device,
            *(p if need else None for p, need in zip(partial.unbind(), needs[1:], strict=True)),
            grad_weight, grad_bias, rows, channels, ROWS=128, COLUMNS=16, num_warps=4,
        )  # fmt: skip
    return gradients


def _sums_of_groups(
    partial: Tensor, weight: Tensor | None, plan: Plan, programs: int, sizes: tuple[int, ...],
    size: float,
) -> Tensor:  # fmt: skip
    """Merge what programs have summed of each channel to the two means of each group."""
    sums = partial.new_empty((2, sizes[0]))
    block = {name: plan.constants[name] for name in ("GROUPS", "PADDED", "CHANNELS")}
    launch(
        _group_norm_sum_kernel, (programs,), partial.device,
        partial, weight, sums, *sizes[:3], *sizes[4:], size, plan.splits, partial.stride(0),
        **block, SPLITS=min(128, next_power_of_2(plan.splits)), num_warps=8,
    )  # fmt: skip
    return sums


def _fake_of_backward(
    grad: Tensor, x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None,
    statistics: Tensor, eps: float, activation: str | None, parameter: float, needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    x = dense(x)
    grad_x = torch.empty_like(x) if needs[0] else x.new_empty(0)
    grad_weight, grad_bias = (
        torch.empty_like(tensor, memory_format=torch.contiguous_format)
        if need and tensor is not None
        else x.new_empty(0)
        for tensor, need in zip((weight, bias), needs[1:], strict=True)
    )
    return grad_x, grad_weight, grad_bias


_group_norm_backward = Operator(
    "group_norm_backward",
    "(Tensor grad, Tensor x, SymInt groups, Tensor? weight, Tensor? bias, Tensor statistics,"
    " float eps, str? activation, float parameter, bool[3] needs) -> (Tensor, Tensor, Tensor)",
    forward=_forward_of_backward,
    fake=_fake_of_backward,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, ctx.groups, weight, bias, *ctx.numbers, _ = inputs
    ctx.save_for_backward(x, weight, bias, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 8
    x, weight, bias, statistics = ctx.saved_tensors
    needs = [ctx.needs_input_grad[i] for i in (0, 2, 3)]
    if torch.is_grad_enabled():  # create_graph=True: in terms that autograd can follow
        results = _differentiable_backward(grad, x, ctx.groups, weight, bias, needs, *ctx.numbers)
    else:
        gradients = _group_norm_backward(
            grad, x, ctx.groups, weight, bias, statistics, *ctx.numbers, needs
        )
        results = [g if need else None for g, need in zip(gradients, needs, strict=True)]
    return results[0], None, results[1], results[2], None, None, None, None


def _differentiable_backward(
    grad: Tensor, x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None,
    needs: list[bool], eps: float, activation: str | None, parameter: float,
) -> list[Tensor | None]:  # fmt: skip
    """Return the same gradients through torch's functions, for higher derivatives."""
    # Views, so that a path between two inputs further back does not count here.
    inputs = [None if t is None else t.view_as(t) for t in (x, weight, bias)]
    wide = [None if t is None else t.float() for t in inputs]
    x, weight, bias = wide  # type: ignore[assignment]
    y = _torchs(x, groups, weight, bias, eps)
    y = aten_activate(y, activation, parameter)
    results: list[Tensor | None] = [None] * 3
    wanted = {i: t for i, t in enumerate(inputs) if t is not None and needs[i]}
    gradients = torch.autograd.grad(y, [*wanted.values()], grad.float(), create_graph=True)
    for i, gradient in zip(wanted, gradients, strict=True):
        results[i] = gradient
    return results


_group_norm = Operator(
    "group_norm",
    "(Tensor x, SymInt groups, Tensor? weight, Tensor? bias, float eps, str? activation,"
    " float parameter, ScalarType? dtype) -> (Tensor, Tensor)",
    forward=_forward,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    activation: str | None = None,
    activation_parameter: float | None = None,
    *,
    autocast: Autocast = "input",
) -> Tensor:
    r"""Normalise each group of channels of each sample of ``x``, and activate.

    .. math:: y = a((x - \bar x) / \sqrt{s^2 + \epsilon} \cdot \gamma + \beta)

    with mean and biased variance of each of ``num_groups`` groups of neighbouring channels. The
    first arguments are those of :func:`torch.nn.functional.group_norm`. Where a group fits on chip,
    ``x`` is read once each way (in the backward pass the gradient too), else twice. Statistics and
    sums are float32, merged in a fixed order: a rerun on the same device is bitwise equal.

    The backward pass keeps two numbers per group beside the inputs; what stood before the
    activation is computed again.

    Where the kernels do not run (see :func:`lightning_kernels.route`) this is a composition of
    torch's own functions.

    Under autocast on a GPU torch returns float32; this returns the type of ``x``, unless told to
    match, which halves the memory that the result takes. It is computed in float32 either way.

    Args:
        x: ``(N, C, *)`` of any strides, floating point.
        num_groups: Number of groups, a divisor of ``C``.
        weight: Scale of shape ``(C,)``, in ``x``'s type or float32.
        bias: Shift, likewise.
        eps: Added to the variance.
        activation: ``None``, ``"relu"``, ``"leaky_relu"``, ``"elu"``, ``"selu"``, ``"silu"`` or
            ``"gelu"`` (exact).
        activation_parameter: Slope of leaky_relu (by default 0.01) or alpha of elu (1.0).
        autocast: What decides on the type of the result under autocast: ``"input"``, or as torch
            does (float32 on a GPU) with ``"match"``.

    Returns:
        Tensor of the shape, type (see ``autocast``) and memory format of ``x``: channels last or
        contiguous.

    Raises:
        NotImplementedError: If ``x`` is not floating point.
        RuntimeError: If shapes, types or devices do not go together.
        ValueError: If a group has a single value, or the activation or ``autocast`` is none that
            there can be.

    References:
        Wu and He, 2018, "Group normalization", arXiv:1803.08494.
    """
    parameter = resolve_parameter(activation, activation_parameter)
    check(x, num_groups, weight, bias)
    dtype = autocast_dtype("group_norm", x, autocast)
    if not norm_runs_triton(x):
        y = aten_group_norm(x if dtype is None else x.to(dtype), num_groups, weight, bias, eps)
        return aten_activate(y, activation, parameter)
    return _group_norm(x, num_groups, weight, bias, float(eps), activation, parameter, dtype)[0]


def check(x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None) -> None:
    """Raise what torch raises, saying what was got and what is expected."""
    if not x.is_floating_point():
        raise NotImplementedError(f"group_norm expects a floating-point x, but got {x.dtype}")
    if x.dim() < 2:
        raise RuntimeError(f"group_norm expects x of shape (N, C, *), but got {list(x.shape)}")
    if num_groups < 1 or x.shape[1] % num_groups != 0:
        raise RuntimeError(
            f"group_norm expects num_groups, at least 1, to divide the {x.shape[1]} channels of x,"
            f" but got {num_groups}"
        )
    if x.numel() == num_groups:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {x.shape} in"
            f" {num_groups} groups"
        )
    check_parameters("group_norm", x, weight=weight, bias=bias)


def check_parameters(function: str, x: Tensor, **parameters: Tensor | None) -> None:
    """Raise if what there is one of per channel does not go with ``x``."""
    for name, parameter in parameters.items():
        check_parameter(function, name, parameter, x.shape[1:2], "the channels of x", x)


def aten_group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Call torch's function, and return the input's type and memory format."""
    if not x.is_cpu:  # ATen mixes types on the CPU only, and there not those of the parameters
        weight, bias = (t if t is None else t.to(x.dtype) for t in (weight, bias))
    elif weight is not None and bias is not None and weight.dtype != bias.dtype:
        weight, bias = weight.float(), bias.float()
    y = without_autocast(_torchs, x, num_groups, weight, bias, eps)
    return y if x.is_cpu else laid_out_like(y, x)  # elsewhere ATen returns what is contiguous


def _torchs(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    if weight is None and bias is not None:
        weight = torch.ones_like(bias)  # without one torch 2.11 has no gradients
    return torch.nn.functional.group_norm(x, groups, weight, bias, eps)


def laid_out_like(y: Tensor, x: Tensor) -> Tensor:
    """Return ``y`` in the memory format of ``x``, except in transforms: vmap knows of none."""
    if _is_transformed():
        return y
    return y.contiguous(memory_format=suggest_memory_format(x))
