"""Instance normalisation: group normalisation with a group for each channel."""

import torch
from torch import Tensor

from lightning_kernels._batch_norm.aten import update_running
from lightning_kernels._batch_norm.batch_norm import batch_norm
from lightning_kernels._core.activation import aten_activate, resolve_parameter
from lightning_kernels._core.dispatch import norm_runs_triton
from lightning_kernels._group_norm.group_norm import (
    _group_norm,
    aten_group_norm,
    check_parameters,
    laid_out_like,
)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    activation_parameter: float | None = None,
) -> Tensor:
    r"""Normalise each channel of each sample of ``input``, and activate.

    .. math:: y = a((x - \bar x) / \sqrt{s^2 + \epsilon} \cdot \gamma + \beta)

    with mean and biased variance of each channel of each sample if ``use_input_stats``, else the
    running ones of each channel. The first arguments are those of
    :func:`torch.nn.functional.instance_norm`. What is said of :func:`lightning_kernels.group_norm`
    holds here, but that torch's too returns the type of ``input`` under autocast. Normalising by
    running statistics is the work of :func:`lightning_kernels.batch_norm`.

    Args:
        input: ``(N, C, *)`` of any strides, floating point.
        running_mean: Shape ``(C,)``, in ``input``'s type or float32, or ``None``. If
            ``use_input_stats``, updated in place: ``(1 - momentum) * running_mean + momentum *``
            the mean of the samples' means.
        running_var: Likewise, with the unbiased variances.
        weight: Scale of shape ``(C,)``, in ``input``'s type or float32.
        bias: Shift, likewise.
        use_input_stats: Whether to use, and record, the statistics of each sample.
        momentum: Share of these samples in the running statistics.
        eps: Added to the variance.
        activation: ``None``, ``"relu"``, ``"leaky_relu"``, ``"elu"``, ``"selu"``, ``"silu"`` or
            ``"gelu"`` (exact).
        activation_parameter: Slope of leaky_relu (by default 0.01) or alpha of elu (1.0).

    Returns:
        Tensor of the shape, type and memory format of ``input``: channels last or contiguous.

    Raises:
        NotImplementedError: If ``input`` is not floating point.
        RuntimeError: If shapes, types or devices do not go together, or running statistics are
            missing without ``use_input_stats``.
        ValueError: If a channel has a single value, before anything is changed; if there is one of
            the running statistics alone; if the activation is none that there can be.

    References:
        Ulyanov et al., 2016, "Instance normalization: the missing ingredient for fast
        stylization", arXiv:1607.08022.
    """
    parameter = resolve_parameter(activation, activation_parameter)
    _check(input, running_mean, running_var, weight, bias, use_input_stats)
    if not use_input_stats or input.numel() == 0:  # what is empty has no statistics
        return batch_norm(
            input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps,
            activation=activation, activation_parameter=activation_parameter,
        )  # fmt: skip
    channels = input.shape[1]
    if not norm_runs_triton(input):
        y = _aten_instance_norm(input, running_mean, running_var, weight, bias, momentum, eps)
        return aten_activate(y, activation, parameter)
    y, statistics = _group_norm(
        input, channels, weight, bias, float(eps), activation, parameter, None
    )
    if running_mean is not None and running_var is not None:
        mean, variance = statistics.view(2, -1, channels).mean(1)
        count = torch.full_like(mean, input.shape[2:].numel())
        update_running(running_mean, running_var, torch.stack([mean, variance, count]), momentum)
    return y


def _check(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None,
    bias: Tensor | None, use_input_stats: bool,
) -> None:  # fmt: skip
    if not input.is_floating_point():
        raise NotImplementedError(
            f"instance_norm expects a floating-point input, but got {input.dtype}"
        )
    if input.dim() < 3:
        raise ValueError(
            f"instance_norm expects an input of shape (N, C, *), with pixels to take the mean of,"
            f" but got {list(input.shape)}"
        )
    if use_input_stats and input.shape[2:].numel() == 1:
        raise ValueError(
            f"Expected more than 1 spatial element when training, got input size {input.shape}"
        )
    if (running_mean is None) != (running_var is None):
        raise ValueError("instance_norm expects both running_mean and running_var or neither")
    if running_mean is None and not use_input_stats:
        raise RuntimeError(
            "instance_norm expects running_mean and running_var, or use_input_stats=True"
        )
    check_parameters(
        "instance_norm", input,
        running_mean=running_mean, running_var=running_var, weight=weight, bias=bias,
    )  # fmt: skip


def _aten_instance_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None,
    bias: Tensor | None, momentum: float, eps: float,
) -> Tensor:  # fmt: skip
    """Call torch's functions, contiguous, and keep the memory format.

    Torch's instance norm only updates the running statistics: channels last, a batch of one sample
    gets wrong gradients from it. Its group norm is right, and contiguous quicker.
    """
    contiguous = input.contiguous()
    if running_mean is not None:
        with torch.no_grad():
            torch.nn.functional.instance_norm(
                contiguous, running_mean, running_var, None, None, True, momentum, eps
            )
    y = aten_group_norm(contiguous, input.shape[1], weight, bias, eps)
    return laid_out_like(y, input)
