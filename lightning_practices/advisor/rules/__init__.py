"""The rules, one file each. A file here is found by itself: it holds one or more ``Rule``.

A file is named for the fault. See :class:`~lightning_practices.advisor.Rule` for the groups of
identifiers.
"""

import importlib
import pkgutil
from functools import cache

from lightning_practices.advisor._rule import Rule


@cache
def all_rules() -> tuple[Rule, ...]:
    """Return the rules in the order of their identifiers."""
    found = [
        one
        for info in pkgutil.iter_modules(__path__)
        for one in vars(importlib.import_module(f"{__name__}.{info.name}")).values()
        if isinstance(one, Rule)
    ]
    return tuple(sorted(found, key=lambda rule: rule.id))
