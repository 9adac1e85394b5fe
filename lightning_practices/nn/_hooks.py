"""Whether anyone but its class has a say in what a module's call does."""

from typing import Any

from torch.nn.modules.module import _has_any_global_hook


def is_touched(state: dict[str, Any]) -> bool:
    """Return whether more would run than the forward of its class if a module were called.

    Args:
        state: The module's ``__dict__``.
    """
    return bool(
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or "forward" in state
    )


def any_hook_on_all() -> bool:
    """Return whether every module's call would run a hook."""
    return bool(_has_any_global_hook())  # type: ignore[no-untyped-call]
