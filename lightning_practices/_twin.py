"""The guard against ``pytorch_lightning``, Lightning's other distribution."""

_TWIN = "pytorch_lightning"


def reject_twin(*objects: object) -> None:
    """Raise ``TypeError`` for objects of ``pytorch_lightning``, whose classes don't mix with ours.

    Args:
        *objects: Instances or classes: trainers, modules, callbacks.

    Raises:
        TypeError: If a class of one of them, or a base of it, is from ``pytorch_lightning``.
    """
    for item in objects:
        got = item if isinstance(item, type) else type(item)
        for base in got.__mro__:
            if base.__module__.partition(".")[0] == _TWIN:
                raise TypeError(
                    f"got {got.__module__}.{got.__qualname__}, built on {base.__qualname__} of the"
                    f" package `{_TWIN}`: import {base.__qualname__} from `lightning.pytorch`"
                    " instead, the two packages don't mix"
                )
