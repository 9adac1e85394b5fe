"""Which class of a module takes which argument: the mixins, the classes before and after them."""

import inspect
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from lightning.pytorch import LightningModule

from lightning_practices._arguments import shown
from lightning_practices._packages import either, packages_of
from lightning_practices.mixins._hyperparameters import holds_object
from lightning_practices.optim import Optimizer

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)


def keywords(base: type) -> dict[str, inspect.Parameter]:
    """Return the parameters that a class's own ``__init__`` takes by keyword."""
    return {p.name: p for p in _parameters(base) if p.kind not in _BY_POSITION}


def named(base: type) -> list[str]:
    """Return the names of the arguments that a class's own ``__init__`` takes by keyword."""
    return [name for name, p in keywords(base).items() if p.kind is not p.VAR_KEYWORD]


def next_classes(module: type, mixin: type) -> list[type]:
    """Return the classes between a mixin and ``LightningModule`` that have an ``__init__``."""
    order = module.__mro__
    between = order[order.index(mixin) + 1 : order.index(lightning_module(module))]
    return [base for base in between if "__init__" in vars(base)]


def arguments_until(module: type, mixin: type) -> dict[str, type]:
    """Return the arguments of the classes before a mixin, each with the class that gets it."""
    order = module.__mro__
    # If several classes take an argument, the first in the method resolution order gets it.
    return {key: base for base in reversed(order[: order.index(mixin)]) for key in named(base)}


def called_with(
    base: type, args: tuple[Any, ...], kwargs: Mapping[str, Any], others: Iterable[str] = ()
) -> dict[str, Any]:
    """Return the arguments of a call of a class by their names, with the defaults.

    Args:
        base: The class.
        args: The positional arguments.
        kwargs: The keyword arguments.
        others: Names for the positional arguments that ``base`` passes on as ``*args``.
    """
    try:
        bound = inspect.signature(base.__init__).bind(None, *args, **kwargs)  # type: ignore[misc]
    except TypeError:  # a decorator has changed the arguments
        return dict(kwargs)
    bound.apply_defaults()
    parameters = list(bound.signature.parameters.values())[1:]
    called: dict[str, Any] = {}
    for parameter in parameters:
        value = bound.arguments[parameter.name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            called.update(zip(others, value, strict=False))
        elif parameter.kind is parameter.VAR_KEYWORD:
            called.update(value)
        else:
            called[parameter.name] = value
    return called


def positional(base: type) -> list[str]:
    """Return the names of the arguments that a class's own ``__init__`` takes by position."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in _parameters(base) if p.kind in kinds]


def unknown_arguments(module: type, mixin: type, given: Iterable[str]) -> list[str]:
    """Return the arguments for the classes after a mixin that none of these classes takes."""
    follower = next(iter(next_classes(module, mixin)), None)
    taken = keywords(follower) if follower else {}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        return []  # the class takes any argument
    return [name for name in given if name not in taken]


def check_known(module: type, mixin: type, given: Iterable[str]) -> None:
    """Raise if the classes after a mixin don't take one of the arguments.

    Raises:
        TypeError: If they don't. The error names the nearest argument that there is.
    """
    for name in unknown_arguments(module, mixin, given):
        follower = next(iter(next_classes(module, mixin)), None)
        taken = keywords(follower) if follower else {}
        owners = dict.fromkeys(taken, follower or module) | arguments_until(module, mixin)
        raise TypeError(_unknown(module, name, owners))


def mixin_arguments(module: type, mixin: type) -> dict[str, type]:
    """Return the arguments that the mixins of this package get, each with its mixin."""
    owners = arguments_until(module, mixin)
    return {n: base for n, base in owners.items() if base.__module__.startswith(f"{__package__}.")}


def shared_arguments(module: type, mixin: type) -> dict[str, tuple[type, type]]:
    """Return the arguments of mixins that a class after them takes too, with both classes."""
    taken = _taken(next_classes(module, mixin))
    ours = mixin_arguments(module, mixin)
    return {name: (ours[name], taken[name]) for name in ours.keys() & taken}


def arguments_at_default(
    module: type, mixin: type, own: Iterable[str], got: Mapping[str, Any]
) -> frozenset[str]:
    """Return the arguments that a call left at the default of the class that takes them.

    Those of the mixins of this package are not among them.

    Args:
        module: The module's class.
        mixin: The last mixin.
        own: Names of the arguments in the call of the class.
        got: The arguments that the class after the mixins got.
    """
    order = module.__mro__
    before = arguments_until(module, mixin)
    names = {*_taken(order[: order.index(lightning_module(module))])}
    names |= _taken(next_classes(module, mixin)).keys()
    derived = {
        name
        for name, value in got.items()
        if name not in before or keywords(before[name])[name].default is not value
    }
    return frozenset(names - {*own} - derived - mixin_arguments(module, mixin).keys())


def call_takes(module: type, name: str) -> bool:
    """Say whether the call of a class takes an argument by keyword."""
    parameters = inspect.signature(module.__init__).parameters.values()  # type: ignore[misc]
    return any(p.kind is p.VAR_KEYWORD or p.name == name for p in parameters)


def check_shared(module: type, mixin: type, given: Mapping[str, Any]) -> None:
    """Raise if an argument that is given may be for a mixin or for a class after the mixins.

    An object of a practice, ``None`` and the mixin's default are for the mixin without a doubt.

    Raises:
        TypeError: If it may be for either. The error names both classes and the ways out.
    """
    for name, (ours, other) in shared_arguments(module, mixin).items():
        value, default = given.get(name), keywords(ours)[name].default
        is_default = type(value) is type(default) and value == default
        if value is None or is_default or holds_object(value):
            continue
        raise TypeError(
            f"{module.__name__} got {name}={shown(value)}, but {ours.__name__} and"
            f" {other.__name__} both take an argument {name!r}: if it is for {ours.__name__}, give"
            f" an object of lightning_practices, or let the __init__ of {module.__name__} take"
            f" {name!r} and pass it on to super().__init__; if it is for {other.__name__}, put a"
            " class between the two, whose __init__ takes it under another name and passes"
            f" {name}=... on"
        )


def check_is_module(module: type) -> None:
    """Raise unless a class is a LightningModule of either package, which mixins alone are not.

    Raises:
        TypeError: If it is none.
    """
    if not packages_of(module):
        mixins = ", ".join(base.__name__ for base in module.__bases__)
        raise TypeError(
            f"{module.__name__} is no LightningModule: add the class to its bases, as in class"
            f" {module.__name__}({mixins}, LightningModule)"
        )


def check_order(module: type, mixin: type) -> None:
    """Raise if ``LightningModule`` comes before a mixin among the bases of a class.

    It doesn't call ``super()``, so the mixin would do nothing.

    Args:
        module: The class.
        mixin: The base class of all mixins.

    Raises:
        TypeError: If it does. The error says how to list the bases.
    """
    order = module.__mro__
    ends = [order.index(base) for base in order if base in either(LightningModule)]
    late = [base for base in order[min(ends, default=len(order)) :] if issubclass(base, mixin)]
    if late:
        others = [base for base in module.__bases__ if not issubclass(base, mixin)]
        first = next(base for base in others if packages_of(base))
        ours = [base for base in module.__bases__ if base not in others]
        names = ", ".join(base.__name__ for base in [*ours, *others])
        raise TypeError(
            f"{module.__name__} lists {first.__name__} before {late[0].__name__}, which would do"
            f" nothing: list mixins first, as in class {module.__name__}({names})"
        )


def lightning_module(module: type) -> type:
    """Return the ``LightningModule`` among the bases of a class."""
    return next(base for base in module.__mro__ if base in either(LightningModule))


def _taken(bases: Iterable[type]) -> dict[str, type]:
    """Return the arguments that the first of several classes takes, to pass on too, by keyword.

    Each has the first of the classes that names it.
    """
    taken: dict[str, type] = {}
    for base in bases:
        taken = dict.fromkeys(named(base), base) | taken
        passes_on = any(p.kind is p.VAR_KEYWORD for p in keywords(base).values())
        if "__init__" in vars(base) and not passes_on:
            break
    return taken


def _parameters(base: type) -> list[inspect.Parameter]:
    if "__init__" not in vars(base):
        return []
    return list(inspect.signature(base.__init__).parameters.values())[1:]  # type: ignore[misc]


def _unknown(module: type, name: str, owners: dict[str, type]) -> str:
    start = f"{module.__name__} got an unknown argument {shown(name)}"
    option = "lr" if name == "learning_rate" else name
    if option in named(Optimizer)[1:] and "optimizer" in owners:  # the first is its name
        return (
            f"{start}: give it to the optimizer, as in optimizer=Optimizer('adamw', {option}=...)"
        )
    near = get_close_matches(name, owners, n=1)
    if near:
        return f"{start}: {owners[near[0]].__name__} takes {near[0]!r}"
    return f"{start}: there are {', '.join(map(repr, owners))}"
