"""The code of a class's methods, and the names that it uses."""

from collections.abc import Callable, Iterator
from types import CodeType


def mentions(kind: type, *names: str, apart_from: tuple[str, ...] = ()) -> bool:
    """Return whether the functions of a class use an attribute, a function or a text by its name.

    Classes of torch and Lightning among its bases don't count.

    Args:
        kind: The class.
        names: The names.
        apart_from: Names of methods that aren't looked at.
    """
    codes = codes_of(kind, lambda method: method not in apart_from)
    return any(name in (*code.co_names, *code.co_consts) for code in codes for name in names)


def codes_of(kind: type, is_chosen: Callable[[str], bool]) -> Iterator[CodeType]:
    """Yield the codes of a class's methods whose names are chosen, and of functions within them.

    Classes of torch and Lightning among its bases don't count.
    """
    own = [base for base in kind.__mro__ if not base.__module__.startswith(_LIBRARIES)]
    for base in own:
        for name, value in vars(base).items():
            if is_chosen(name):
                yield from _codes(getattr(getattr(value, "__func__", value), "__code__", None))


_LIBRARIES = (
    "torch.",
    "lightning.",
    "lightning_practices.mixins.",
    "pytorch_lightning",
    "builtins",
    "abc",
    "typing",
)


def _codes(code: CodeType | None) -> Iterator[CodeType]:
    """Yield a function's code, and that of the functions within it."""
    if code is not None:
        yield code
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                yield from _codes(constant)
