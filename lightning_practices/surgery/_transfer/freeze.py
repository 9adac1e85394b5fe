"""Freeze parts of a model, batch norms and dropout included, and unfreeze them."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from lightning_practices.surgery._blocks import Block, found

# Both are in the ``__dict__`` of a module: deepcopy and pickle carry them, ``state_dict`` doesn't.
_HOLD = "train"  # hides the method
_MARK = "_frozen_parameters"  # names of the module's own parameters that were trainable before


def freeze(
    model: nn.Module, where: Iterable[str | Block], *, dropout: bool = False
) -> tuple[str, ...]:
    """Freeze parts of ``model``, in place, until :func:`unfreeze`.

    Their parameters get ``requires_grad=False`` and lose their gradients, which an optimizer would
    apply once more. Their modules go into eval mode and stay in it when ``train()`` is called later
    on them or on the model. So batch norms keep their statistics, dropout is off, and outputs are
    those of evaluation. No key of ``state_dict`` and no class changes. Copies and pickles are
    frozen too. Lightning warns about modules in eval mode when a fit starts: here it is intended.

    A parameter that is shared with another part of the model is frozen there too. :func:`blocks`
    puts shared parameters into the block nearest to the head, so freezing the other blocks doesn't
    freeze a tied head.

    FSDP2 reads ``requires_grad`` when it gathers parameters for the first time. Freeze before the
    first forward. After ``fully_shard`` freeze only while no parameters are gathered.

    Source: "Transfer learning", lecture S2: the pretrained layers are frozen.

    Args:
        model: The model to change.
        where: Names of modules and parameters, or blocks of :func:`blocks`.
        dropout: Whether dropout stays on in the frozen parts. Then only modules with floating-point
            buffers of their own, such as running statistics, stay in eval mode, and all other
            modules follow ``train()``.

    Returns:
        The names of the parameters that were trainable before.

    Raises:
        TypeError: If ``model`` is not a module or ``where`` not a sequence.
        ValueError: If the model has no module or parameter of a name.
    """
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

    Parameters that :func:`freeze` has frozen are trainable again. A parameter that was not
    trainable before stays so. The modules take the mode of the model and follow ``train()`` again.
    Only modules that had been in eval mode in a model in train mode return to eval mode.

    Args:
        model: The model to change.
        where: Names of modules and parameters, or blocks of :func:`blocks`. They may be smaller
            parts than those that were frozen. Parts that are not frozen stay unchanged.

    Returns:
        The names of the parameters that are trainable again.

    Raises:
        TypeError: If ``model`` is not a module or ``where`` not a sequence.
        ValueError: If the model has no module or parameter of a name.
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
    """Return the modules in ``where``, and the ids of their parameters and of named parameters."""
    modules, parameters = found(model, where)
    inside = [p for module in modules for p in module.parameters()]
    return modules, [id(p) for p in (*inside, *parameters)]


class _StaysInEval:
    """Replaces the method ``train`` of one module, to keep it in eval mode.

    It is an attribute of the instance. A change of the class would clash with parametrizations,
    ``fully_shard`` and :func:`fuse`, which assign the class, and with code that compares classes.

    Attributes:
        module: The module.
        before: The instance's own ``train`` before, if it had one.
        is_apart: Whether the module was in eval mode in a model in train mode.
        asked: The last argument of ``train``.
    """

    def __init__(self, module: nn.Module, in_training: bool) -> None:
        self.module = module
        self.before: Any = module.__dict__.get(_HOLD)
        self.is_apart = in_training and not module.training
        self.asked = module.training

    def __call__(self, mode: bool = True) -> nn.Module:
        _train(self.module, self.before, mode)  # modules inside may not be frozen
        self.asked = mode
        self.module.training = False
        return self.module


def _owners(model: nn.Module) -> dict[int, list[tuple[nn.Module, str, nn.Parameter]]]:
    """Return all modules that own a parameter, with its name in them, by the parameter's id."""
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
    """Call ``instead`` if the instance had its own ``train``, else the ``train`` of its class."""
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
    """Let ``root`` and all modules in it follow ``train`` again."""
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
    """Give the module its own ``train`` back, and return what replaced it, if anything."""
    hold = _held(module)
    if hold is not None:
        del module.__dict__[_HOLD]
        if hold.before is not None:
            module.__dict__[_HOLD] = hold.before
    return hold


def _has_statistics(module: nn.Module) -> bool:
    return any(buffer.is_floating_point() for buffer in module.buffers(recurse=False))
