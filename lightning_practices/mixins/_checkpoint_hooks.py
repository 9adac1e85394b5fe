"""What mixins write to checkpoints, whether or not a class's own hooks call ``super()``."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Literal

Hook = Literal["on_save_checkpoint", "on_load_checkpoint"]
_Function = Callable[[Any, dict[str, Any]], None]


def run_after(cls: type, mixin: type, functions: Mapping[Hook, _Function]) -> None:
    """Make the checkpoint hooks of a class run a function after the class's own code.

    The function may run several times, once for each subclass.

    Args:
        cls: The class, in its ``__init_subclass__``.
        mixin: The base class of all mixins, whose own hooks call ``super()``.
        functions: The functions of the module and the checkpoint, by hook.
    """
    for hook, function in functions.items():
        owner = next(base for base in cls.__mro__ if hook in vars(base))
        if owner is cls or not issubclass(owner, mixin):
            setattr(cls, hook, _followed(getattr(cls, hook), function))


def _followed(own: _Function, function: _Function) -> _Function:
    @wraps(own)
    def run(self: Any, checkpoint: dict[str, Any]) -> None:
        own(self, checkpoint)
        function(self, checkpoint)

    return run
