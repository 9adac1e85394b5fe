"""Gradient clipping inside the step of a fused optimizer, by the optimizer's own kernel."""

from typing import Any

from torch import Tensor
from torch.amp import GradScaler
from torch.amp.grad_scaler import OptState
from torch.optim import Optimizer

from lightning_kernels import clip_grad_scale
from lightning_practices._arguments import check_instance, check_number, shown


def clip_in_step(
    optimizer: Optimizer,
    max_norm: float | Tensor,
    norm_type: float = 2.0,
    *,
    scaler: GradScaler | None = None,
) -> Tensor:
    """Let the next step of a fused optimizer scale its gradients to a norm of at most ``max_norm``.

    The result equals that of :func:`lightning_kernels.clip_grad_norm_` before the step, up to the
    last bit; :func:`lightning_kernels.clip_grad_scale` documents the cost and the savings. After
    the step ``grad`` holds the clipped gradients. If no step follows, the next call replaces the
    scale.

    With an enabled ``scaler``, call this function in place of ``scaler.unscale_(optimizer)``. The
    optimizer then unscales the gradients in its step. The norm shows whether a gradient is nan or
    infinite; if so, ``scaler.step`` skips the step.

    Args:
        optimizer: A torch optimizer, made with ``fused=True``.
        max_norm: Largest norm of all the optimizer's gradients together. A tensor stays on its
            device: the host doesn't wait for it.
        norm_type: Order of the norm.
        scaler: The ``GradScaler`` that has scaled the loss.

    Returns:
        The norm before clipping and without the loss scale, a tensor on the gradients' device.

    Raises:
        ValueError: If the optimizer isn't fused: it would ignore the scale.
        RuntimeError: If the scaler has unscaled the gradients already.

    Example:
        >>> from lightning_practices.optim import clip_in_step
        >>> weight = nn.Parameter(torch.zeros(2))
        >>> optimizer = torch.optim.SGD([weight], lr=1.0, fused=True)
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> clip_in_step(optimizer, max_norm=1.0)
        tensor(5.)
        >>> optimizer.step()
        >>> weight.data
        tensor([-0.6000, -0.8000])
    """
    check_instance("optimizer", optimizer, Optimizer, "a torch optimizer")
    if not isinstance(max_norm, Tensor):
        check_number("max_norm", max_norm, ge=0, finite=False)
    check_number("norm_type", norm_type, finite=False)
    if scaler is not None:
        check_instance("scaler", scaler, GradScaler, "a torch.amp.GradScaler")
    if not clips_in_step(optimizer):
        raise ValueError(
            "clip_in_step needs an optimizer that scales gradients in its step, but"
            f" {type(optimizer).__name__} doesn't: make it with fused=True, which torch's SGD,"
            " Adam and AdamW have, newer ones' Adagrad too, or clip by clip_grad_norm_"
        )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    given: Any = optimizer  # torch reads these attributes, but doesn't declare them
    if scaler is None or not scaler.is_enabled():
        norm, given.grad_scale, _ = clip_grad_scale(parameters, max_norm, norm_type)
        _forget_after_step(optimizer)
        return norm
    state = scaler._per_optimizer_states[id(optimizer)]
    if state["stage"] is not OptState.READY and not hasattr(optimizer, "grad_scale"):
        raise RuntimeError(
            "clip_in_step unscales in the step, but scaler.unscale_(optimizer) has been called, or"
            " scaler.update() not yet: leave out the one, call the other"
        )
    scale = scaler._get_scale_async()
    assert scale is not None, "a loss has been scaled, for there are gradients"
    norm, given.grad_scale, found_inf = clip_grad_scale(
        parameters, max_norm, norm_type, loss_scale=scale
    )
    # The state that unscale_ would leave, but with gradients that are still to be divided by
    # grad_scale in the step. GradScaler.step() deletes grad_scale.
    state["found_inf_per_device"] = {found_inf.device: found_inf}
    state["stage"] = OptState.UNSCALED
    return norm


def clips_in_step(optimizer: Optimizer) -> bool:
    """Return whether the optimizer divides its gradients by an attribute ``grad_scale``.

    Torch's fused ``SGD``, ``Adam``, ``AdamW`` and ``Adagrad`` do. :func:`clip_in_step` needs it.

    Args:
        optimizer: The optimizer.

    Example:
        >>> from lightning_practices.optim import clips_in_step
        >>> weight = nn.Parameter(torch.zeros(2))
        >>> clips_in_step(torch.optim.SGD([weight], lr=1.0, fused=True))
        True
        >>> clips_in_step(torch.optim.SGD([weight], lr=1.0))
        False
    """
    if not hasattr(optimizer, "param_groups"):  # a strategy may have wrapped torch's optimizer
        raise TypeError(f"optimizer has to be a torch optimizer, but got {shown(optimizer)}")
    return getattr(optimizer, "_step_supports_amp_scaling", False)


def _forget_after_step(optimizer: Any) -> None:
    """Remove ``grad_scale`` after the next step, so that it applies to that step only."""
    if getattr(optimizer, "_clips_in_step", False):  # the hook still waits: no step has run
        return
    optimizer._clips_in_step = True

    def forget(*_: Any) -> None:
        handle.remove()
        del optimizer.grad_scale, optimizer._clips_in_step

    handle = optimizer.register_step_post_hook(forget)
