"""Tell a head from a backbone by names and sizes, where no library declares it."""

import re
from collections.abc import Sequence

from torch import nn

from lightning_practices.surgery._blocks.libraries import library_of
from lightning_practices.surgery._blocks.sizes import count, features_in, features_out, may_feed

_NAME = re.compile(r"(^|_)(head|heads|fc|cls|classifier|classification|predictor|logits)(\d|_|$)")


def doubt(module: nn.Module, children: Sequence[nn.Module]) -> str | None:
    """Return why the last child may not be the head; ``None`` if nothing speaks against it.

    The head takes the features that the backbone puts out, and is smaller than it. So a smaller
    child before the last one may be the head if its input has the size of the last child's output,
    or if it has the name of a head, and if its output does not fit a later child. A last child with
    the name of a head is the head.

    Args:
        module: The parent, whose children are registered in no known order.
        children: The children with weights, in the order of their registration.
    """
    names = {child: name for name, child in module.named_children()}
    if len(children) < 2 or _NAME.search(names[children[-1]]):
        return None
    last = children[-1]
    size, out = count(last), features_out(last)
    for index, child in enumerate(children[:-1]):
        if count(child) >= size:
            continue
        takes, gives = features_in(child), features_out(child)
        feeds = any(may_feed(child, later) for later in children[index + 1 :])
        fits = takes is not None and takes == out and not feeds
        is_named = bool(_NAME.search(names[child])) and (takes == gives or not feeds)
        is_named = is_named and 2 * size > count(module)
        if (fits and library_of(child) is None) or is_named:
            return (
                f"{names[last]!r} is the last child of {type(module).__name__} and holds most of"
                f" its parameters, but {names[child]!r} seems to be the head"
            )
    return None


def side_by_side(module: nn.Module, children: Sequence[nn.Module]) -> list[nn.Module]:
    """Return the last children, if they are several heads of the same features; or no children.

    They are heads side by side if they take as many features as the last child, or have the names
    of heads as it has, and the output of none is the input of the next.
    """
    names = {child: name for name, child in module.named_children()}
    limit = max((count(child) for child in children), default=0)
    heads = [child for child in children[-1:] if _may_be_head(child, limit)]
    for child in reversed(children[:-1] if heads else []):
        last = heads[0]
        takes, gives, last_takes = features_in(child), features_out(child), features_in(last)
        is_named = all(_NAME.search(names[c]) and not names[c][-1].isdigit() for c in (child, last))
        feeds = gives == last_takes if is_named else may_feed(child, last)
        if None in (takes, gives, last_takes) or feeds:
            break
        if not _may_be_head(child, limit) or not (takes == last_takes or is_named):
            break
        heads.insert(0, child)
    return heads if len(heads) > 1 else []


def _may_be_head(child: nn.Module, limit: int) -> bool:
    return library_of(child) is None and count(child) < limit
