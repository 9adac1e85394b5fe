"""Freeze parts of a model, including batch norms and dropout, and unfreeze them."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from lightning_practices._arguments import check_flag
from lightning_practices.surgery._blocks import Block, found

# Keys in the ``__dict__`` of a module. Deepcopy and pickle keep them, ``state_dict`` does not.
_HOLD = "train"  # an instance attribute that hides the method `train`
_MARK = "_frozen_parameters"  # names of the module's own parameters that `freeze` has frozen


def freeze(
    model: nn.Module, where: Iterable[str | Block], *, dropout: bool = False
) -> tuple[str, ...]:
    """Freeze parts of ``model``, in place. :func:`unfreeze` undoes this.

    The parameters of these parts get ``requires_grad=False``. Their gradients are removed, since an
    optimizer would apply them in its next step. The modules go into eval mode and stay in it when
    ``train()`` is called later on them or on the model: batch norms keep their statistics, dropout
    is off, and outputs are those of evaluation. The keys of ``state_dict`` and the classes don't
    change. Copies and pickles are frozen too. At the start of a fit Lightning warns about modules
    in eval mode; here this is intended.

    A shared parameter is frozen in all parts of the model that share it. :func:`blocks` puts shared
    parameters into the block nearest to the head, so freezing the other blocks doesn't freeze a
    tied head.

    FSDP2 reads ``requires_grad`` when it gathers parameters for the first time, so freeze before
    the first forward. After ``fully_shard``, freeze only while no parameters are gathered.

    Source: "Transfer learning", lecture S2: the pretrained layers are frozen.

    Args:
        model: The model to change.
        where: Names of modules and parameters, or blocks of :func:`blocks`.
        dropout: Whether dropout stays on in the frozen parts. If so, only modules that own
            floating-point buffers, such as running statistics, stay in eval mode; all other modules
            follow ``train()``.

    Returns:
        The names of the parameters that were trainable before and are frozen now.

    Raises:
        TypeError: If ``model`` is not a module or ``where`` not a sequence.
        ValueError: If the model has no module or parameter with a given name.

    Example:
        >>> from lightning_practices.surgery import blocks, freeze
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        >>> freeze(model, blocks(model)[1:])  # all but the head
        ('0.weight', '0.bias', '1.weight', '1.bias')
        >>> model.train()[1].training  # the batch norm keeps its statistics
        False
    """
    check_flag("dropout", dropout)
    modules, ids = _chosen(model, where)
    owners = _owners(model)
    frozen = {key for key in ids if owners[key][0][2].requires_grad}
    for key in frozen:
        for owner, name, p in owners[key]:
            p.requires_grad_(False)
            p.grad = None
            owner.__dict__[_MARK] = owner.__dict__.get(_MARK, frozenset()) | {name}
    for module in modules:
        _hold(module, model.training, dropout)
    return tuple(name for name, p in model.named_parameters() if id(p) in frozen)


def unfreeze(model: nn.Module, where: Iterable[str | Block]) -> tuple[str, ...]:
    """Undo :func:`freeze` for parts of ``model``, in place.

    Parameters that :func:`freeze` has frozen become trainable again. Parameters that were not
    trainable before :func:`freeze` stay so. The modules take the mode of the model and follow
    ``train()`` again. Modules that were in eval mode before, while the model was in train mode,
    return to eval mode.

    Args:
        model: The model to change.
        where: Names of modules and parameters, or blocks of :func:`blocks`. It may be only a part
            of what was frozen. Parts that are not frozen are not changed.

    Returns:
        The names of the parameters that are trainable again.

    Raises:
        TypeError: If ``model`` is not a module or ``where`` not a sequence.
        ValueError: If the model has no module or parameter with a given name.

    Example:
        >>> from lightning_practices.surgery import freeze, unfreeze
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> freeze(model, ["0"])
        ('0.weight', '0.bias')
        >>> unfreeze(model, ["0"])
        ('0.weight', '0.bias')
    """
    modules, ids = _chosen(model, where)
    owners = _owners(model)
    freed = {
        key
        for key in ids
        if any(name in owner.__dict__.get(_MARK, ()) for owner, name, _ in owners[key])
    }
    for key in freed:
        for owner, name, p in owners[key]:
            p.requires_grad_(True)
            owner.__dict__[_MARK] = owner.__dict__.get(_MARK, frozenset()) - {name}
            if not owner.__dict__[_MARK]:
                del owner.__dict__[_MARK]
    for module in modules:
        own = _held(model)
        _release(module, model.training if own is None else own.asked)
    return tuple(name for name, p in model.named_parameters() if id(p) in freed)


def _chosen(model: nn.Module, where: Iterable[str | Block]) -> tuple[list[nn.Module], list[int]]:
    """Return the modules in ``where``, and the ids of all parameters in ``where``."""
    modules, parameters = found(model, where)
    inside = [p for module in modules for p in module.parameters()]
    return modules, [id(p) for p in (*inside, *parameters)]


class _StaysInEval:
    """Replaces the method ``train`` of one module instance, to keep the module in eval mode.

    It is set as an attribute of the instance. Changing the class instead would conflict with
    parametrizations, ``fully_shard`` and :func:`fuse`, which change the class too, and with code
    that compares classes.

    Attributes:
        module: The module.
        before: The ``train`` that was set on the instance before, or ``None``.
        is_apart: Whether the module was in eval mode while the model was in train mode.
        asked: The mode of the last call of ``train``, or the module's mode if there was none.
    """

    def __init__(self, module: nn.Module, in_training: bool) -> None:
        self.module = module
        self.before: Any = module.__dict__.get(_HOLD)
        self.is_apart = in_training and not module.training
        self.asked = module.training

    def __call__(self, mode: bool = True) -> nn.Module:
        _train(self.module, self.before, mode)  # modules inside this module may not be frozen
        self.asked = mode
        self.module.training = False
        return self.module


def _owners(model: nn.Module) -> dict[int, list[tuple[nn.Module, str, nn.Parameter]]]:
    """Return by each parameter's id all modules that own it, with the parameter's name in them."""
    owners: dict[int, list[tuple[nn.Module, str, nn.Parameter]]] = {}
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                owners.setdefault(id(p), []).append((module, name, p))
    return owners


def _held(module: nn.Module) -> _StaysInEval | None:
    hold = module.__dict__.get(_HOLD)
    return hold if isinstance(hold, _StaysInEval) else None


def _train(module: nn.Module, instead: Any, mode: bool) -> None:
    """Call ``instead``, the instance's own ``train``, or without one the ``train`` of its class."""
    if instead is not None:
        instead(mode)
    else:
        type(module).train(module, mode)


def _hold(root: nn.Module, in_training: bool, dropout: bool) -> None:
    """Keep ``root`` and all modules in it in eval mode."""
    inside = list(root.modules())
    kept = {module for module in inside if not dropout or _has_statistics(module)}
    free = [module for module in inside if module not in kept]
    for module in free:  # frozen by an earlier call with dropout=False
        if (hold := _let_go(module)) is not None:
            module.training = in_training and not hold.is_apart
    modes = {module: module.training for module in free}
    asked = {}
    for module in inside:
        if module in kept:
            hold = _held(module) or _StaysInEval(module, in_training)
            module.__dict__[_HOLD] = hold
            asked[hold] = hold.asked
    for hold in asked:
        hold(False)
    for hold, mode in asked.items():
        hold.asked = mode
    for module, mode in modes.items():
        module.training = mode


def _release(root: nn.Module, mode: bool) -> None:
    """Make ``root`` and all modules in it follow ``train`` again."""
    modes = {module: module.training for module in root.modules()}
    holds = {module: hold for module in modes if (hold := _let_go(module)) is not None}
    if not holds:
        return
    root.train(mode)
    for module, before in modes.items():
        if module not in holds:
            module.training = before
        elif holds[module].is_apart:
            module.train(False)


def _let_go(module: nn.Module) -> _StaysInEval | None:
    """Restore the module's own ``train``. Return the object that replaced it, or ``None``."""
    hold = _held(module)
    if hold is not None:
        del module.__dict__[_HOLD]
        if hold.before is not None:
            module.__dict__[_HOLD] = hold.before
    return hold


def _has_statistics(module: nn.Module) -> bool:
    return any(buffer.is_floating_point() for buffer in module.buffers(recurse=False))
