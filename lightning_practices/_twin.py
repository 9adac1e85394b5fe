"""Guard against objects of ``pytorch_lightning``, Lightning's second distribution."""

_TWIN = "pytorch_lightning"


def reject_twin(*objects: object) -> None:
    """Raise ``TypeError`` for objects of ``pytorch_lightning``, which Lightning can't use.

    Args:
        *objects: Trainers, modules or callbacks, as instances or classes.

    Raises:
        TypeError: If an object's class, or a base of that class, is from ``pytorch_lightning``.
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
