"""Instance normalisation: group norm with a group for each channel."""

import torch
from torch import Tensor

from lightning_kernels._batch_norm import batch_norm
from lightning_kernels._core.activation import aten_activate, resolve_parameter
from lightning_kernels._core.crossover import pays
from lightning_kernels._core.dispatch import norm_runs_triton
from lightning_kernels._core.layout import with_format_of
from lightning_kernels._core.parameters import check_channels, check_eps, check_tensor, number_of
from lightning_kernels._core.statistics import update_running
from lightning_kernels._group_norm.aten import aten_group_norm
from lightning_kernels._group_norm.operator import group_norm_operator


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

    With ``use_input_stats``, :math:`\bar x` and :math:`s^2` are the mean and the biased variance of
    each channel of each sample. Without it they are the running statistics, and
    :func:`lightning_kernels.batch_norm` computes the result. The positional arguments are those of
    :func:`torch.nn.functional.instance_norm`. Precision, order of sums and memory are those of
    :func:`lightning_kernels.group_norm`. Under autocast the result has the dtype of ``input``, like
    torch's result.

    Args:
        input: Input of shape ``(N, C, *)``, any strides, floating point. The shape ``(N, C)`` needs
            running statistics and ``use_input_stats=False``.
        running_mean: Running mean of shape ``(C,)``, in the dtype of ``input`` or float32, or
            ``None``. With ``use_input_stats`` it becomes ``(1 - momentum) * running_mean +
            momentum * mean``, in place, where ``mean`` is the mean over the samples.
        running_var: Running variance of shape ``(C,)``, in the dtype of ``input`` or float32, or
            ``None``. With ``use_input_stats`` it is updated in the same way, by the mean of the
            samples' unbiased variances.
        weight: Scale :math:`\gamma` of shape ``(C,)``, in the dtype of ``input`` or float32.
        bias: Shift :math:`\beta`, like ``weight``.
        use_input_stats: Whether to normalise by the statistics of each sample, and to update the
            running statistics.
        momentum: Weight of this batch in the running statistics.
        eps: Number :math:`\epsilon` that is added to the variance.
        activation: Activation :math:`a`: ``None``, ``"relu"``, ``"relu6"``, ``"leaky_relu"``,
            ``"elu"``, ``"selu"``, ``"silu"``, ``"hardswish"`` or ``"gelu"`` (exact, not the tanh
            approximation).
        activation_parameter: Slope of leaky_relu (default 0.01) or alpha of elu (default 1.0).

    Returns:
        Tensor of the shape, dtype and memory format of ``input``: channels last or contiguous.

    Raises:
        NotImplementedError: If ``input`` is not floating point. It is torch's own error, on some
            devices another ``RuntimeError``.
        RuntimeError: If the shape, dtype or device of an argument does not fit ``input``. If
            ``use_input_stats`` is False and running statistics are not given.
        ValueError: If ``input`` has fewer than three dimensions, or fewer than two without
            ``use_input_stats``. If a channel of a sample has a single value (the running statistics
            are not changed). If only one of the two running statistics is given. If ``activation``
            is unknown. If ``activation_parameter`` is given for an activation without parameter.

    Example:
        >>> from lightning_kernels import instance_norm
        >>> x = torch.randn(2, 3, 8, 8)
        >>> y = instance_norm(x, activation="relu")
        >>> torch.allclose(y, nn.functional.instance_norm(x).relu(), atol=1e-6)
        True

    References:
        Ulyanov et al., 2016, "Instance normalization: the missing ingredient for fast
        stylization", arXiv:1607.08022.
    """
    parameter = resolve_parameter(activation, activation_parameter)
    _check(input, running_mean, running_var, weight, bias, use_input_stats)
    check_eps("instance_norm", eps)
    momentum = number_of("instance_norm", "momentum", momentum)
    if not use_input_stats or input.numel() == 0:  # an empty input has no statistics
        return batch_norm(
            input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps,
            activation=activation, activation_parameter=activation_parameter,
        )  # fmt: skip
    channels = input.shape[1]
    if not (norm_runs_triton(input) and pays("instance_norm", input, activation)):
        y = _aten_instance_norm(input, running_mean, running_var, weight, bias, momentum, eps)
        return aten_activate(y, activation, parameter)
    y, statistics = group_norm_operator(
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
    check_tensor("instance_norm", input)
    if input.dim() < (3 if use_input_stats else 2):
        raise ValueError(
            f"instance_norm expects an input of shape (N, C, *), with pixels to take the mean of"
            f" if use_input_stats is True, but got {list(input.shape)}"
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
    is_empty = input.numel() == 0  # torch takes parameters of any shape for an empty input
    running = {"running_mean": running_mean, "running_var": running_var}
    check_channels("instance_norm", input, is_empty and not use_input_stats, **running)
    check_channels("instance_norm", input, is_empty, weight=weight, bias=bias)


def _aten_instance_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None,
    bias: Tensor | None, momentum: float, eps: float,
) -> Tensor:  # fmt: skip
    """Compute instance norm by torch's group norm, on a contiguous copy of ``input``.

    The result has the memory format of ``input``. Torch's instance norm computes wrong gradients
    for one sample in channels last, so it is used only to update the running statistics. Torch's
    group norm is right, and faster on a contiguous input.
    """
    contiguous = input.contiguous()
    if running_mean is not None:
        with torch.no_grad():
            torch.nn.functional.instance_norm(
                contiguous, running_mean, running_var, None, None, True, momentum, eps
            )
    y = aten_group_norm(contiguous, input.shape[1], weight, bias, eps)
    return with_format_of(y, input)
