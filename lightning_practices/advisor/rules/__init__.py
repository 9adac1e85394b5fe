"""The rules, one file each. A file here is found by itself: it holds one or more ``Rule``.

A file is named for the fault. See :class:`~lightning_practices.advisor.Rule` for the groups of
identifiers.
"""

import importlib
import pkgutil
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import cache

from lightning_practices._arguments import check_names
from lightning_practices.advisor._rule import Rule


@cache
def all_rules() -> tuple[Rule, ...]:
    """Return the rules before training in the order of their identifiers.

    Example:
        >>> from lightning_practices.advisor import all_rules
        >>> rules = {rule.id: rule for rule in all_rules()}
        >>> rules["LP201"].practice
        'Cross entropy gets logits, not probabilities'
    """
    return rules_within(__path__, __name__)


def rules_within(path: Iterable[str], package: str) -> tuple[Rule, ...]:
    """Return the rules in the files of a package, in the order of their identifiers."""
    found = [
        one
        for info in pkgutil.iter_modules(path)
        for one in vars(importlib.import_module(f"{package}.{info.name}")).values()
        if isinstance(one, Rule)
    ]
    return tuple(sorted(found, key=lambda rule: rule.id))


def rules_matching(rules: Sequence[Rule], argument: str, ids: Sequence[str]) -> list[Rule]:
    """Return the rules whose identifiers begin with one of ``ids``.

    Args:
        rules: The rules.
        argument: Name of the user's argument, for the error.
        ids: Identifiers, or their beginnings.

    Raises:
        TypeError: If ``ids`` is not a list of names.
        ValueError: If one of them begins no rule.
    """
    ids = check_names(argument, ids)
    for id in ids:
        if not any(rule.id.startswith(id) for rule in rules):
            near = get_close_matches(id.upper(), [rule.id for rule in rules], 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(
                f"{argument} has {id!r}, which begins no rule's identifier{hint}. The command"
                " `lightning-practices check --list` lists the rules"
            )
    return [rule for rule in rules if rule.id.startswith(ids)]
