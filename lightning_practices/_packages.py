"""Lightning's two packages, ``lightning.pytorch`` and ``pytorch_lightning``, for users of either.

Both packages hold the same classes, but a class of one is not a class of the other. So a Trainer of
one takes no module of the other, and ``isinstance`` with a class of one fails for objects of the
other. ``lightning_practices`` imports the first package alone. It serves objects of the second, the
twin, where the user has imported it:

- :func:`either` gives ``isinstance`` the classes of both packages.
- :func:`own_kind` tells which of the two an object is of.
- :class:`OfBothPackages` makes objects that are instances of both packages' classes.
- :func:`check_one_package` raises where objects of both packages meet.
"""

import functools
import sys
from collections.abc import Callable
from inspect import getattr_static
from typing import Any, Self, TypeVar

_Kind = TypeVar("_Kind")

_TWINS = {"lightning.pytorch": "pytorch_lightning", "lightning.fabric": "lightning_fabric"}
_MODULES = ("lightning.pytorch", "pytorch_lightning")  # Fabric's are bases of both


def either(*kinds: type[_Kind]) -> tuple[type[_Kind], ...]:
    """Return classes of ``lightning`` and the same classes of the twin, for ``isinstance``.

    For type checkers the twin's classes are those of ``lightning``.

    The twin's are found among the imported modules: without an import there is no object of them.
    """
    twins = (twin_of(kind) for kind in kinds)
    return (*kinds, *(twin for twin in twins if twin is not None))


def twin_of(kind: type[_Kind]) -> type[_Kind] | None:
    """Return the twin's class for a class of ``lightning``; ``None`` if it isn't imported."""
    for package, twin in _TWINS.items():
        if f"{kind.__module__}.".startswith(f"{package}."):
            module = sys.modules.get(kind.__module__.replace(package, twin, 1))
            return getattr(module, kind.__name__, None)
    return None


def own_kind(item: object, kind: type) -> type:
    """Return the class of which ``item`` is an instance: ``kind``, or the twin's same class."""
    kinds: tuple[type, ...] = either(kind)
    return next(one for one in kinds if isinstance(item, one))


class OfBothPackages:
    """Base of subclasses of Lightning's classes: the instances are also of the twin's class.

    If the twin is imported when an instance is made, its class is :func:`of_both` of the class. So
    the Trainers of both packages find the instance with ``isinstance``.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Make an instance of the class with both packages' bases."""
        made: Self = super().__new__(of_both(cls))
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        return reduced(super().__reduce_ex__(max(protocol, 2)), of_both)


def of_both(cls: Any) -> Any:
    """Return a subclass of ``cls`` with the twin's class as a further base, after all others.

    A module's methods are the twin's where ``cls`` overrides none. If the twin isn't imported, it
    is ``cls`` itself.
    """
    kind = next(base for base in cls.__mro__ if _package_of(base))
    twin: type | None = twin_of(kind)
    return cls if twin is None or issubclass(cls, twin) else _with_base(cls, kind, twin)


def reduced(reduction: Any, again: Callable[[type], type]) -> Any:
    """Return how to pickle or copy an object of such a class, from what Python says of it.

    The pickle names the public class, from which ``again`` makes the class of the copy.
    """
    _, (kind, *arguments), *state = reduction
    return _new, (again, getattr(kind, "_public", kind), *arguments), *state


def _new(again: Callable[[type], Any], kind: type, *arguments: Any) -> Any:
    kind = again(kind)
    return kind.__new__(kind, *arguments)


class _End:
    """Ends a chain of ``super().__init__()``, before it reaches the twin's class."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass


@functools.cache
def _with_base(cls: type, kind: type, twin: type) -> Any:
    """Make the class of :func:`of_both`; ``cls`` is a subclass of ``kind``."""
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "_public": cls}
    bases: tuple[type, ...] = (cls, _End, twin)
    if hasattr(twin, "named_parameters"):  # a LightningModule
        bases = (cls, twin)  # its constructor has to reach that of torch's Module
        # A Trainer runs each hook that isn't the one of its own LightningModule.
        names |= {
            name: getattr_static(twin, name)
            for name in dir(twin)
            if not name.startswith("__")
            and getattr_static(cls, name, None) is getattr_static(kind, name, None)
        }
    return type(cls)(cls.__name__, bases, names | {"__doc__": cls.__doc__})


def packages_of(item: object) -> set[str]:
    """Return the packages on whose classes an object or a class is built."""
    got = item if isinstance(item, type) else type(item)
    return {package for base in got.__mro__ if (package := _package_of(base)) is not None}


def check_one_package(*objects: object) -> None:
    """Raise unless all objects are of the same package. An object of neither doesn't count.

    Raises:
        TypeError: If they aren't.
    """
    found = [(item, packages) for item in objects if (packages := packages_of(item))]
    if found and not set.intersection(*(packages for _, packages in found)):
        names = ", ".join(f"{type(one).__name__} of {' and '.join(of)}" for one, of in found)
        raise TypeError(
            f"got {names}: a Trainer takes the objects of its own package of Lightning, so import"
            " LightningModule and Trainer, or a library that is built on them, from one package,"
            " before callbacks are made"
        )


def check_bases(kind: type) -> None:
    """Raise ``TypeError`` if the bases of a class are of both packages."""
    if len(packages_of(kind)) > 1:
        modules = [
            f"{base.__module__}.{base.__name__}"
            for base in kind.__mro__
            if base.__name__ in ("LightningModule", "LightningDataModule")
        ]
        raise TypeError(
            f"{kind.__name__} has bases of both packages of Lightning, {' and '.join(modules)}:"
            " import the class from one of them"
        )


def _package_of(kind: type) -> str | None:
    return next((name for name in _MODULES if f"{kind.__module__}.".startswith(f"{name}.")), None)
