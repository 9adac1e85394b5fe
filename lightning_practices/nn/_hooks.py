"""Whether a call of a module runs more than the forward of its class."""

from collections.abc import Callable
from typing import Any

from torch.nn.modules.module import _has_any_global_hook

# Whether every module's call runs a hook. Torch's own function: it is asked in every call.
any_hook_on_all: Callable[[], bool] = _has_any_global_hook


def is_touched(state: dict[str, Any]) -> bool:
    """Return whether a call of a module runs more than the forward of its class.

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
