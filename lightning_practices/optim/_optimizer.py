"""Torch's optimizers by name, in their fastest form."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

OptimizerName = Literal["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw"]


class _Kind(NamedTuple):
    """An optimizer of torch.

    Attributes:
        make: Its class.
        options: What makes it this one; all else is torch's.
        fused: Device types on which it has a fused form, in each supported version of torch.
        fused_shards: Whether that takes sharded parameters.
    """

    make: Callable[..., Optimizer]
    options: dict[str, Any]
    fused: tuple[str, ...]
    fused_shards: bool = False


_MOMENTUM = {"momentum": 0.9}
_EVERYWHERE = ("cpu", "cuda")
_KINDS: dict[str, _Kind] = {
    "sgd": _Kind(SGD, {}, _EVERYWHERE),
    "momentum": _Kind(SGD, _MOMENTUM, _EVERYWHERE),
    "nesterov": _Kind(SGD, {**_MOMENTUM, "nesterov": True}, _EVERYWHERE),
    "adagrad": _Kind(Adagrad, {}, ("cpu",)),
    "rmsprop": _Kind(RMSprop, {}, ()),
    "adam": _Kind(Adam, {}, _EVERYWHERE, fused_shards=True),
    "adamw": _Kind(AdamW, {}, _EVERYWHERE, fused_shards=True),
}


def make_optimizer(
    optimizer: OptimizerName | Callable[..., Optimizer],
    params: Iterable[Any],
    lr: float | None = None,
    **options: Any,
) -> Optimizer:
    """Return one of torch's optimizers, or your own, for parameters or groups of them.

    ::

        optimizer = make_optimizer("adamw", parameter_groups(model, 0.05), lr=1e-3)

    The lectures recommend, in this order: ``"adam"``, ``"rmsprop"``, ``"momentum"``. The first two
    find a rate for each weight by themselves; the last one often generalises best once its rate has
    been tuned. ``"adamw"`` is Adam whose weight decay isn't divided by the size of the gradients.

    Whatever isn't given is the default of torch's class of that name, weight decay included: 0.01
    of ``"adamw"`` and 0 of all others. ``"momentum"`` and ``"nesterov"`` are ``SGD`` with a
    momentum of 0.9.

    Unless ``fused`` or ``foreach`` is given it is fused where torch has that for these parameters,
    which on the CPU too is no slower for any of them; else torch's choice, which on CUDA is
    ``foreach``; that for sharded parameters (``DTensor``) too, which torch would step one by one.
    Give ``fused=None`` for torch's choice. The fused ``SGD`` and ``Adagrad`` take no sparse
    gradients; and a fused optimizer unscales gradients itself, so under mixed precision Lightning's
    own clipping refuses it.

    Source: lectures S0, S3 and S4; Loshchilov and Hutter, 2019, "Decoupled weight decay
    regularization", arXiv:1711.05101.

    Args:
        optimizer: ``"sgd"``, ``"momentum"``, ``"nesterov"``, ``"adagrad"``, ``"rmsprop"``,
            ``"adam"``, ``"adamw"``, or what makes one from ``params`` and whatever else is given.
        params: Parameters, or groups of them, as torch takes them.
        lr: Learning rate.
        **options: Passed on, by the names of torch's class.

    Raises:
        ValueError: If there is no such optimizer, or a group has a weight decay and it takes none.
        TypeError: If it doesn't take one of the options, or what you gave makes something else.
    """
    check_optimizer(optimizer)
    given = list(_listed(params))
    if lr is not None:
        options["lr"] = lr
    if callable(optimizer):
        made = optimizer(given, **options)
        if not isinstance(made, Optimizer):
            raise TypeError(f"{optimizer!r} has to make an Optimizer, but made {made!r}")
        _check_decay(made)
        return made
    kind = _KINDS[optimizer]
    form = {} if "fused" in options or "foreach" in options else _form(kind, list(_tensors(given)))
    return kind.make(given, **{**kind.options, **form, **options})


def check_optimizer(optimizer: object) -> None:
    """Refuse what is neither a name of an optimizer nor makes one.

    Raises:
        ValueError: If it is such.
    """
    if not callable(optimizer) and optimizer not in get_args(OptimizerName):
        known = ", ".join(map(repr, get_args(OptimizerName)))
        raise ValueError(
            f"optimizer has to be one of {known}, or what makes one, but got {optimizer!r}"
        )


def _form(kind: _Kind, tensors: list[Tensor]) -> dict[str, bool]:
    """Return which form of the optimizer suits the parameters."""
    is_shard = {isinstance(p, DTensor) for p in tensors}
    devices = {p.device.type for p in tensors}
    if len(is_shard) != 1 or len(devices) != 1 or not all(map(torch.is_floating_point, tensors)):
        return {}
    (sharded,), (device,) = is_shard, devices
    if device in kind.fused and (kind.fused_shards or not sharded):
        return {"fused": True}
    return {"foreach": True} if sharded and device == "cuda" else {}


def _listed(params: Iterable[Any]) -> Iterator[Any]:
    """Yield parameters or groups so that they can be looked at twice."""
    entries: Iterable[Any] = [params] if isinstance(params, Tensor) else params
    for entry in entries:
        is_open = isinstance(entry, dict) and not isinstance(entry["params"], Tensor)
        yield {**entry, "params": list(entry["params"])} if is_open else entry


def _tensors(listed: list[Any]) -> Iterator[Tensor]:
    for entry in listed:
        within = entry["params"] if isinstance(entry, dict) else [entry]
        for p in [within] if isinstance(within, Tensor) else within:
            yield p[1] if isinstance(p, tuple) else p  # named


def _check_decay(optimizer: Optimizer) -> None:
    if "weight_decay" in optimizer.defaults:
        return
    decays = {group.get("weight_decay", 0.0) for group in optimizer.param_groups}
    if any(decays):
        raise ValueError(
            f"{type(optimizer).__name__} takes no weight_decay, but a group has {max(decays)}: give"
            " weight_decay=0, or another optimizer"
        )
