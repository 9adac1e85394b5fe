"""The code of a class's methods, and the names that it uses."""

import dis
from collections import Counter
from collections.abc import Callable, Iterator
from types import CodeType

_CHANGES = ("append", "extend", "insert", "clear", "pop", "appendleft", "popleft", "update")


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


def read_by(code: CodeType) -> set[str]:
    """Return the attributes whose contents a function reads.

    A length, the truth of a container and a method that changes it don't count, and neither does
    a value that goes back to the attribute, as in ``self.x = torch.cat([self.x, new])``.
    """
    lines = [one for one in dis.get_instructions(code) if one.opname != "CACHE"]
    reads: Counter[str] = Counter()
    for place, one in enumerate(lines):
        if one.opname == "STORE_ATTR":
            reads[one.argval] -= 1
        elif one.opname == "LOAD_ATTR":
            follows = lines[place + 1] if place + 1 < len(lines) else one
            before = lines[place - 2] if place > 1 else one
            is_changed = follows.opname in _OF_METHODS and follows.argval in _CHANGES
            is_size = before.argval == "len" and follows.opname.startswith(("CALL", "PRECALL"))
            is_truth = follows.opname == "TO_BOOL" or follows.opname.startswith("POP_JUMP")
            reads[one.argval] += not (is_changed or is_size or is_truth)
    return {name for name, count in reads.items() if count > 0}


def unpacked_in(code: CodeType, count: int) -> Iterator[tuple[str, ...]]:
    """Yield the names of the variables to which a function unpacks sequences of ``count``."""
    lines = [one for one in dis.get_instructions(code) if one.opname != "CACHE"]
    for place, one in enumerate(lines):
        if one.opname != "UNPACK_SEQUENCE" or one.argval != count:
            continue
        names: list[str] = []
        for after in lines[place + 1 :]:
            if not after.opname.startswith(("STORE_FAST", "STORE_DEREF")) or len(names) >= count:
                break
            is_pair = after.opname == "STORE_FAST_STORE_FAST"
            stored = after.argval if isinstance(after.argval, tuple) else (after.argval,)
            names += stored if is_pair else stored[:1]
        if len(names) == count:
            yield tuple(names)


_OF_METHODS = ("LOAD_ATTR", "LOAD_METHOD")


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
