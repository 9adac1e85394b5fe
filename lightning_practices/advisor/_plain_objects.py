"""What lists, dicts and objects of plain classes hold."""

from collections import deque
from collections.abc import Iterator, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

_LAST = 1000  # elements of a list that are looked at
_LIBRARIES = (
    "torch.", "torchmetrics.", "lightning.", "pytorch_lightning.", "lightning_practices.",
    "builtins.", "numpy.", "pandas.", "threading.", "logging.", "collections.", "_thread.",
)  # fmt: skip
_TYPES = (Tensor, nn.Module, type, FunctionType, MethodType, ModuleType)


def held_by(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a container or an object of a plain class holds, each with its place.

    A place is such as ``"[0]"``, ``"['a']"`` or ``".state"``. No code of the object runs.

    Args:
        value: Any value. Tensors, modules, and objects of libraries hold nothing.
    """
    if isinstance(value, Mapping):
        for key, inner in list(value.items())[-_LAST:]:
            yield f"[{key!r}]", inner
    elif isinstance(value, list | tuple | deque):
        first = max(len(value) - _LAST, 0)
        for place in range(first, len(value)):
            yield f"[{place}]", value[place]
    elif is_plain(value):
        for name, inner in list(vars(value).items()):
            yield f".{name}", inner


def is_plain(value: Any) -> bool:
    """Return whether an object's class is the user's own and holds attributes, as a dataclass."""
    if isinstance(value, _TYPES) or type(value).__dictoffset__ == 0:
        return False
    bases = {f"{base.__module__}." for base in type(value).__mro__ if base is not object}
    return not any(base.startswith(_LIBRARIES) for base in bases)
