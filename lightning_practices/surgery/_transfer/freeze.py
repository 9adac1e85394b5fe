"""Freeze parts of a model for good, batch norms and dropout included, and unfreeze them."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from lightning_practices.surgery._blocks import Block, found

# Both in the ``__dict__`` of a module, which deepcopy and pickle carry and ``state_dict`` doesn't.
_HOLD = "train"  # in the place of the method
_MARK = "_frozen_parameters"  # names of its own parameters that were trainable before


def freeze(
    model: nn.Module, where: Iterable[str | Block], *, dropout: bool = False
) -> tuple[str, ...]:
    """Freeze parts of ``model``, in place, until :func:`unfreeze`.

    Their parameters get ``requires_grad=False`` and lose their gradients, which an optimizer would
    apply once more. Their modules are in eval mode and stay so whatever ``train()`` is called later
    on them or on the model: batch norms keep their statistics, dropout is off, so outputs are those
    of evaluation, and no checkpoint, key or class changes. Copies and pickles are frozen too.
    Lightning warns of modules in eval mode when a fit starts: here they are meant to be.

    A parameter that is also elsewhere in the model is frozen there as well. :func:`blocks` puts
    those into the block nearest to the head, so a block is frozen without the tied head.

    FSDP2 reads ``requires_grad`` when it gathers parameters for the first time: freeze before the
    first forward, and after ``fully_shard`` change it only while nothing is gathered.

    Source: "Transfer learning", lecture S2: the pretrained layers are frozen.

    Args:
        model: The model to change.
        where: Names of modules and parameters, or blocks of :func:`blocks`.
        dropout: Whether dropout stays on in them: then only modules that have floating-point
            buffers of their own, such as running statistics, are kept in eval mode, and all others
            follow ``train()``.

    Returns:
        The names of the parameters that were trainable before.

    Raises:
        TypeError: If ``model`` is not a module or ``where`` not a sequence.
        ValueError: If the model has no module or parameter of such a name.
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

    What it has frozen is trainable again, and nothing else: a parameter that was not trainable
    before stays so. The modules then are in the mode of the model and follow ``train()`` again, but
    for those that were in eval mode, in a model in train mode, before they were frozen: these are
    so again.

    Args:
        model: The model to change.
        where: Names of modules and parameters, or blocks of :func:`blocks`: also parts of what was
            frozen at once. What is not frozen stays as it is.

    Returns:
        The names of the parameters that are trainable again.

    Raises:
        TypeError: If ``model`` is not a module or ``where`` not a sequence.
        ValueError: If the model has no module or parameter of such a name.
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
    """Return the modules in ``where``, and the ids of parameters: theirs, and those named."""
    modules, parameters = found(model, where)
    inside = [p for module in modules for p in module.parameters()]
    return modules, [id(p) for p in (*inside, *parameters)]


class _StaysInEval:
    """What is called in the place of a module's ``train``.

    In the instance and not in its class, which others assign (parametrizations, ``fully_shard``,
    :func:`fuse`) or compare.

    Attributes:
        module: The module.
        before: What the instance had in this place, if anything.
        is_apart: Whether the module was in eval mode in a model that wasn't.
        asked: The mode last asked for.
    """

    def __init__(self, module: nn.Module, in_training: bool) -> None:
        self.module = module
        self.before: Any = module.__dict__.get(_HOLD)
        self.is_apart = in_training and not module.training
        self.asked = module.training

    def __call__(self, mode: bool = True) -> nn.Module:
        _train(self.module, self.before, mode)  # the modules in it may not be frozen
        self.asked = mode
        self.module.training = False
        return self.module


def _owners(model: nn.Module) -> dict[int, list[tuple[nn.Module, str, nn.Parameter]]]:
    """Return each place of each parameter, by the parameter's id."""
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
    """Call the module's ``train``, or what the instance has in its place."""
    if instead is not None:
        instead(mode)
    else:
        type(module).train(module, mode)


def _hold(root: nn.Module, in_training: bool, dropout: bool) -> None:
    """Keep ``root`` and all below in eval mode."""
    inside = list(root.modules())
    kept = {module for module in inside if not dropout or _has_statistics(module)}
    free = [module for module in inside if module not in kept]
    for module in free:  # held before, without dropout
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
    """Let ``root`` and all below follow ``train`` again."""
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
    """Give the module its own ``train`` back; return what was in its place, if it was held."""
    hold = _held(module)
    if hold is not None:
        del module.__dict__[_HOLD]
        if hold.before is not None:
            module.__dict__[_HOLD] = hold.before
    return hold


def _has_statistics(module: nn.Module) -> bool:
    return any(buffer.is_floating_point() for buffer in module.buffers(recurse=False))
