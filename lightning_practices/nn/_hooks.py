"""Checks whether a call of a module runs anything besides the forward of its class."""

from collections.abc import Callable
from typing import Any

from torch.nn.modules.module import _has_any_global_hook

# Returns whether a global hook is registered, which runs in the calls of all modules. It is torch's
# own function and not a wrapper, for speed: every fused call runs it.
any_hook_on_all: Callable[[], bool] = _has_any_global_hook


def is_touched(state: dict[str, Any]) -> bool:
    """Return whether a call of a module runs its own hooks, or a ``forward`` set on the instance.

    Args:
        state: The module's ``__dict__``.
    """
    if (
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
    ):
        return True
    return "forward" in state
