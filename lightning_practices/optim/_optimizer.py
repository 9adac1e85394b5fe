"""Torch's optimizers by name, in their fastest form, with groups of parameters."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import SGD, Adagrad, Adam, AdamW, RMSprop
from typing_extensions import override

from lightning_practices._arguments import (
    check_choice,
    check_listed,
    check_names,
    check_number,
    shown,
)
from lightning_practices._calls import as_call
from lightning_practices.optim._parameter_groups import KINDS, check_groups, parameter_groups

OptimizerName = Literal["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw"]
"""Names of optimizers, see :func:`~lightning_practices.optim.make_optimizer`."""


class _Kind(NamedTuple):
    """How to make one of torch's optimizers.

    Attributes:
        make: The optimizer's class.
        options: The arguments that differ from torch's defaults.
        fused: Device types on which every supported version of torch has a fused form.
        fused_shards: Whether the fused form takes sharded parameters (``DTensor``).
    """

    make: Callable[..., torch.optim.Optimizer]
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


class Optimizer:
    """A named optimizer with its options, which can be made for any model.

    Calling it passes the :func:`~lightning_practices.optim.parameter_groups` of the model to
    :func:`make_optimizer`: biases, norms and embeddings are not decayed.

    Source: see :func:`make_optimizer`.

    Args:
        name: ``"sgd"``, ``"momentum"``, ``"nesterov"``, ``"adagrad"``, ``"rmsprop"``, ``"adam"`` or
            ``"adamw"``, see :func:`make_optimizer`; or a function or class that makes an optimizer
            from groups of parameters, such as ``torch.optim.NAdam``.
        lr: Learning rate. Default: the optimizer's own.
        weight_decay: Weight decay. Default: the optimizer's own.
        no_decay: The parameters that are not decayed: ``"norm"``, ``"bias"``, ``"embedding"`` and
            patterns of names, see :func:`~lightning_practices.optim.decayed_weights`.
        layer_decay: Factor between the learning rates of a layer and of the layer after it, see
            :func:`~lightning_practices.optim.parameter_groups`. It needs ``lr``.
        **options: Further arguments of the optimizer, such as ``betas`` or ``momentum``.

    Raises:
        ValueError: If ``name`` is an unknown name, or a number is out of range.
        TypeError: If the optimizer doesn't take one of the options. A function or class with
            ``**kwargs`` says so only when it is called.

    Example:
        >>> from lightning_practices.optim import Optimizer
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
        >>> optimizer = Optimizer("adamw", lr=1e-3, weight_decay=0.05)(model)
        >>> for group in optimizer.param_groups:
        ...     print(group["name"], len(group["params"]), group["lr"], group["weight_decay"])
        decay 2 0.001 0.05
        no_decay 4 0.001 0.0
    """

    def __init__(
        self,
        name: OptimizerName | Callable[..., torch.optim.Optimizer] = "adamw",
        lr: float | None = None,
        weight_decay: float | None = None,
        *,
        no_decay: Sequence[str] = KINDS,
        layer_decay: float | None = None,
        **options: Any,
    ) -> None:
        check_optimizer(name, "name")
        self.name = name
        self.weight_decay, self.layer_decay, self.lr = check_groups(weight_decay, layer_decay, lr)
        self.no_decay = check_names("no_decay", no_decay)
        _check_options(name, [key for key in options if (key, options[key]) != ("fused", None)])
        self.options = options

    @override
    def __repr__(self) -> str:
        return as_call(self)

    def __call__(self, model: nn.Module, **options: Any) -> torch.optim.Optimizer:
        """Return the optimizer of a model or of a submodule.

        Args:
            model: The module whose parameters are optimized.
            **options: Further arguments of the optimizer. The constructor's options override them.

        Raises:
            ValueError: See :func:`~lightning_practices.optim.parameter_groups`.
        """
        # A user's function may not have an argument lr. Each group holds the rate.
        lr = None if callable(self.name) else self.lr
        groups = self.parameter_groups(model)
        return make_optimizer(self.name, groups, lr=lr, **{**options, **self.options})

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return the groups of parameters with which the optimizer of a model is made.

        Args:
            model: The module whose parameters are optimized.

        Raises:
            ValueError: See :func:`~lightning_practices.optim.parameter_groups`.
        """
        return parameter_groups(
            model,
            self.weight_decay,
            no_decay=self.no_decay,
            layer_decay=self.layer_decay,
            lr=self.lr,
        )


def make_optimizer(
    optimizer: OptimizerName | Callable[..., torch.optim.Optimizer],
    params: Iterable[Any],
    lr: float | None = None,
    **options: Any,
) -> torch.optim.Optimizer:
    """Return one of torch's optimizers, or a custom one, for parameters or groups of parameters.

    The lectures recommend, in this order: ``"adam"``, ``"rmsprop"``, ``"momentum"``. Adam and
    RMSprop adapt the rate of each weight; momentum often generalises best once its rate has been
    tuned. ``"adamw"`` is Adam whose weight decay isn't divided by the size of the gradients.

    Arguments that are not given have the defaults of torch's class, weight decay included: 0.01 for
    ``"adamw"`` and 0 for all other names. ``"momentum"`` and ``"nesterov"`` are ``SGD`` with a
    momentum of 0.9.

    **Fused.** Unless ``fused`` or ``foreach`` is given, the optimizer is fused where torch has a
    fused form for these parameters. A fused optimizer is never slower, not even on the CPU. Without
    a fused form torch chooses: ``foreach`` on CUDA. Sharded parameters (``DTensor``) on CUDA get
    ``foreach`` as well, since torch would step them one by one. ``fused=None`` leaves the choice to
    torch. The fused ``SGD`` and ``Adagrad`` take no sparse gradients. A fused optimizer unscales
    gradients in its step, so Lightning's own clipping raises an error for it under mixed precision.

    Source: lectures S0, S3 and S4; Loshchilov and Hutter, 2019, "Decoupled weight decay
    regularization", arXiv:1711.05101.

    Args:
        optimizer: ``"sgd"``, ``"momentum"``, ``"nesterov"``, ``"adagrad"``, ``"rmsprop"``,
            ``"adam"``, ``"adamw"``, or a function or class that makes an optimizer from ``params``,
            ``lr`` (if given) and ``options``.
        params: Parameters, or groups of parameters in the format of torch's optimizers.
        lr: Learning rate. Default: the optimizer's own.
        **options: Arguments of torch's class, by their torch names.

    Raises:
        ValueError: If ``optimizer`` is an unknown name, or a group has a weight decay and the
            optimizer doesn't support one.
        TypeError: If the optimizer doesn't take one of the options, or your function doesn't return
            an optimizer.

    Example:
        >>> from lightning_practices.optim import make_optimizer
        >>> optimizer = make_optimizer("nesterov", nn.Linear(4, 2).parameters(), lr=0.1)
        >>> type(optimizer).__name__, optimizer.defaults["momentum"], optimizer.defaults["nesterov"]
        ('SGD', 0.9, True)
    """
    check_optimizer(optimizer, "optimizer")
    given = list(_listed(params))
    if lr is not None:
        # A tensor is torch's own form of the rate for compiled and capturable optimizers.
        is_tensor = isinstance(lr, Tensor) and lr.numel() == 1
        options["lr"] = lr if is_tensor else check_number("lr", lr, ge=0)
    if callable(optimizer):
        made = optimizer(given, **options)
        if not isinstance(made, torch.optim.Optimizer):
            raise TypeError(f"{shown(optimizer)} has to make an Optimizer, but made {shown(made)}")
        _check_decay(made)
        return made
    kind = _KINDS[optimizer]
    form = {} if "fused" in options or "foreach" in options else _form(kind, list(_tensors(given)))
    if options.get("fused") is None and not kind.fused:
        options.pop("fused", None)  # torch's class has no such argument
    return kind.make(given, **{**kind.options, **form, **options})


def check_optimizer(optimizer: object, name: str) -> None:
    """Raise unless the argument ``name`` is a known optimizer's name or callable.

    Raises:
        TypeError: If it is neither a string nor callable.
        ValueError: If it is an unknown name.
    """
    if callable(optimizer):
        return
    own = getattr(torch.optim, optimizer, None) if isinstance(optimizer, str) else None
    example = f"torch.optim.{optimizer if isinstance(own, type) else 'NAdam'}"
    instead = f"a class or function that makes one, as in Optimizer({example})"
    check_choice(name, optimizer, get_args(OptimizerName), instead)


def _check_options(
    optimizer: OptimizerName | Callable[..., torch.optim.Optimizer], options: Iterable[str]
) -> None:
    """Raise ``TypeError`` if an optimizer doesn't take one of the options."""
    make = optimizer if callable(optimizer) else _KINDS[optimizer].make
    try:
        _, *parameters = inspect.signature(make).parameters.values()  # the first are the weights
    except ValueError:  # a function without a signature
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    taken = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for name in options:
        if name not in taken:
            near = get_close_matches(name, taken, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(taken)}"
            of = (
                shown(optimizer)
                if isinstance(optimizer, str)
                else getattr(make, "__name__", shown(make))
            )
            raise TypeError(f"the optimizer {of} takes no option {name!r}: {hint}")


def _form(kind: _Kind, tensors: list[Tensor]) -> dict[str, bool]:
    """Return the arguments that choose the fastest form of an optimizer for these parameters."""
    is_shard = {isinstance(p, DTensor) for p in tensors}
    devices = {p.device.type for p in tensors}
    if len(is_shard) != 1 or len(devices) != 1 or not all(map(torch.is_floating_point, tensors)):
        return {}
    (sharded,), (device,) = is_shard, devices
    if device in kind.fused and (kind.fused_shards or not sharded):
        return {"fused": True}
    return {"foreach": True} if sharded and device == "cuda" else {}


def _listed(params: Iterable[Any]) -> Iterator[Any]:
    """Yield parameters or groups. Iterators become lists, which can be read more than once."""
    expected = "parameters, or groups of parameters"
    entries: list[Any] = (
        [params] if isinstance(params, Tensor) else check_listed("params", params, expected)
    )
    for entry in entries:
        if not isinstance(entry, dict):
            yield _parameter(entry)
            continue
        if "params" not in entry:
            raise ValueError(f"each group of params has to have a key 'params', got {shown(entry)}")
        within = entry["params"]
        if not isinstance(within, Tensor):
            within = [_parameter(p) for p in check_listed("params", within, expected)]
        yield {**entry, "params": within}


def _parameter(given: Any) -> Any:
    """Return a parameter, or a pair of a name and a parameter.

    Raises:
        TypeError: If it is neither.
    """
    is_named = isinstance(given, tuple) and len(given) == 2
    if not isinstance(given[1] if is_named else given, Tensor):
        raise TypeError(f"params has to hold parameters or groups of them, but got {shown(given)}")
    return given


def _tensors(listed: list[Any]) -> Iterator[Tensor]:
    for entry in listed:
        within = entry["params"] if isinstance(entry, dict) else [entry]
        for p in [within] if isinstance(within, Tensor) else within:
            yield p[1] if isinstance(p, tuple) else p  # named


def _check_decay(optimizer: torch.optim.Optimizer) -> None:
    if "weight_decay" in optimizer.defaults:
        return
    decays = {group.get("weight_decay", 0.0) for group in optimizer.param_groups}
    if any(decays):
        raise ValueError(
            f"{type(optimizer).__name__} takes no weight_decay, but a group has {max(decays)}: give"
            " weight_decay=0, or another optimizer"
        )
