"""Batch normalisation."""

import functools
from typing import Any

import torch
from torch import Tensor

from lightning_kernels._batch_norm.aten import aten_batch_norm, aten_common, check
from lightning_kernels._batch_norm.operator import batch_norm_operator
from lightning_kernels._batch_norm.sync import aten_sync_batch_norm, group_name
from lightning_kernels._core.activation import PIECEWISE_LINEAR, resolve_parameter
from lightning_kernels._core.crossover import pays
from lightning_kernels._core.dispatch import is_traced, norm_runs_triton
from lightning_kernels._core.statistics import update_running


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    activation_parameter: float | None = None,
    residual: Tensor | None = None,
    process_group: Any = None,
) -> Tensor:
    r"""Normalise each channel of ``input``, add ``residual`` and activate, in two passes.

    .. math:: y = a((x - \bar x) / \sqrt{s^2 + \epsilon} \cdot \gamma + \beta + r)

    In training :math:`\bar x` and :math:`s^2` are the mean and the biased variance of each channel
    over the batch. In evaluation they are the running statistics. Statistics and sums are float32,
    merged in a fixed order: a second run on the same device is bitwise equal. The positional
    arguments are those of :func:`torch.nn.functional.batch_norm`.

    For the backward pass the graph keeps the needed inputs and two numbers per channel. With a
    residual and relu or leaky_relu it keeps one bit per element in place of the residual. It never
    keeps the values before the activation, which the backward pass computes again.

    Where the kernels do not run (see :func:`lightning_kernels.route`) the result is composed of
    torch's functions. The result has the dtype of ``input``, also under autocast.

    Args:
        input: Input of shape ``(N, C, *)``, any strides, floating point.
        running_mean: Running mean of shape ``(C,)``, in the dtype of ``input`` or float32, or
            ``None``. In training it becomes ``(1 - momentum) * running_mean + momentum * mean``, in
            place.
        running_var: Running variance of shape ``(C,)``, in the dtype of ``input`` or float32, or
            ``None``. In training it is updated in the same way, by the unbiased variance.
        weight: Scale :math:`\gamma` of shape ``(C,)``, in the dtype of ``input`` or float32.
        bias: Shift :math:`\beta`, like ``weight``.
        training: Whether to normalise by the statistics of the batch, and to update the running
            statistics.
        momentum: Weight of this batch in the running statistics.
        eps: Number :math:`\epsilon` that is added to the variance.
        activation: Activation :math:`a`: ``None``, ``"relu"``, ``"relu6"``, ``"leaky_relu"``,
            ``"elu"``, ``"selu"``, ``"silu"``, ``"hardswish"`` or ``"gelu"`` (exact, not the tanh
            approximation).
        activation_parameter: Slope of leaky_relu (default 0.01) or alpha of elu (default 1.0).
        residual: Tensor :math:`r` of the shape and dtype of ``input``, added before the activation.
        process_group: A ``torch.distributed.ProcessGroup``. In training the statistics are those of
            the batches of all its processes, and gradients flow through them. The batches may
            differ in size and may be empty. The forward and the backward pass take one collective
            each. The gradients of ``weight`` and ``bias`` are those of this process' batch: the
            caller sums them over processes.

    Returns:
        Tensor of the shape, dtype and memory format of ``input``: channels last or contiguous.

    Raises:
        NotImplementedError: If ``input`` is not floating point. It is torch's own error, on some
            devices another ``RuntimeError``.
        RuntimeError: If the shape, dtype or device of an argument does not fit ``input``. If
            running statistics require gradients, or are missing in evaluation. If a second
            derivative is taken with ``process_group``.
        TypeError: If an argument is not a tensor, ``momentum`` is ``None``, or ``process_group`` is
            not a group that this process is in.
        ValueError: In training, if a channel has a single value (the running statistics are not
            changed), or only one of the two running statistics is given. If ``eps`` is negative, or
            0 in training. If ``activation`` is unknown. If ``activation_parameter`` is given for an
            activation without parameter.

    Example:
        >>> from lightning_kernels import batch_norm
        >>> x, residual = torch.randn(2, 8, 3, 4, 4).unbind()
        >>> y = batch_norm(x, None, None, training=True, activation="relu", residual=residual)
        >>> plain = nn.functional.batch_norm(x, None, None, training=True)
        >>> torch.allclose(y, (plain + residual).relu(), atol=1e-6)
        True

    References:
        Ioffe and Szegedy, 2015, "Batch normalization: accelerating deep network training by
        reducing internal covariate shift", arXiv:1502.03167.
    """
    if activation is None is residual is process_group is activation_parameter:
        y = aten_common(input, running_mean, running_var, weight, bias, training, momentum, eps)
        if y is not None:
            return y
    parameter = resolve_parameter(activation, activation_parameter)
    group = group_name(process_group) if training and process_group is not None else None
    check(
        input, running_mean, running_var, weight, bias, residual, training, momentum, eps,
        group is not None,
    )  # fmt: skip
    folded = activation, residual is not None
    if not (norm_runs_triton(input) and pays("batch_norm", input, *folded)):
        normalise = aten_batch_norm
        if group is not None:
            normalise = functools.partial(aten_sync_batch_norm, group)
        return normalise(
            input, running_mean, running_var, weight, bias, training, momentum, eps,
            activation, parameter, residual,
        )  # fmt: skip
    keep_signs = (
        residual is not None
        and activation in PIECEWISE_LINEAR
        and torch.is_grad_enabled()
        and any(t is not None and t.requires_grad for t in (input, residual, weight, bias))
    )
    mean, variance = (None, None) if training else (running_mean, running_var)
    arguments = (
        input, residual, weight, bias, mean, variance, float(eps), activation, parameter,
        keep_signs, group,
    )  # fmt: skip
    if not training or running_mean is None or running_var is None:
        return batch_norm_operator(*arguments)[0]
    if not is_traced(input) and running_mean.is_contiguous() and running_var.is_contiguous():
        # Only eager calls pass the running statistics: a registered operator must not change its
        # arguments.
        return batch_norm_operator(*arguments, (running_mean, running_var, float(momentum)))[0]
    y, statistics, _ = batch_norm_operator(*arguments)
    update_running(running_mean, running_var, statistics, momentum)
    return y
