"""The rules of training, which look at a run. A file here is found by itself.

A file is named for the fault. Identifiers begin with ``LP8``.
"""

from collections.abc import Sequence
from functools import cache

from lightning_practices.advisor._rule import Rule
from lightning_practices.advisor.rules import rules_matching, rules_within


def training_rules(ignore: Sequence[str] = ()) -> tuple[Rule, ...]:
    """Return the rules of training in the order of their identifiers.

    Args:
        ignore: Identifiers of rules to leave out, such as ``"LP816"``, or their beginnings.

    Raises:
        TypeError: If ``ignore`` is not a list of names.
        ValueError: If ``ignore`` names no rule.

    Example:
        >>> from lightning_practices.advisor import training_rules
        >>> len(training_rules()) - len(training_rules(ignore=["LP816"]))
        1
    """
    left_out = rules_matching(_all(), "ignore", ignore)
    return tuple(rule for rule in _all() if rule not in left_out)


@cache
def _all() -> tuple[Rule, ...]:
    return rules_within(__path__, __name__)
