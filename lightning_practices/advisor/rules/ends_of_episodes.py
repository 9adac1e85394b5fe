"""Ends of episodes that the targets of a value function don't use."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path

from lightning_practices._codes import codes_of, unpacked_in
from lightning_practices.advisor._bootstrapped import NextValue, next_value
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import layer_of, losses_seen
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import REGRESSION, Loss

_HOOKS = (
    "on_before_batch_transfer", "on_after_batch_transfer", "transfer_batch_to_device",
    "on_train_batch_start",
)  # fmt: skip
_ENDS = ("done", "term", "end", "over", "final", "last", "dead", "absorb", "mask", "cont")
_CUTS = ("trunc", "time", "limit")  # episodes that are cut have a next value


@rule(
    "LP137", "warning",
    practice="The target of a final state is the reward alone",
    measures="a target of a reward plus a discounted next value that no flag ends, beside a member"
    " of the batch that is 0 or 1 and that nothing reads",
    healthy="reward + discount * (1 - done) * next_value; no flags, where no episode ends; flags of"
    " episodes that are cut, by their names",
    source="Mnih et al., 2015, Human-level control through deep reinforcement learning, algorithm"
    " 1; Pardo et al., 2018, arXiv:1712.00378",
)  # fmt: skip
def ends_are_unread(seen: Observation) -> Iterator[Evidence]:
    yield from _unread(seen, is_named=True)


@rule(
    "LP138", "hint",
    practice="The target of a final state is the reward alone",
    measures="as LP137, beside a member of the batch without a name",
    healthy="as for LP137; a flag of episodes that are cut may have no name",
    source="Pardo et al., 2018, arXiv:1712.00378",
)  # fmt: skip
def unnamed_flags_are_unread(seen: Observation) -> Iterator[Evidence]:
    yield from _unread(seen, is_named=False)


def _unread(seen: Observation, is_named: bool) -> Iterator[Evidence]:
    found = next(iter(_unmasked(seen)), None)
    if found is None or any(is_overridden(hook, seen.module) for hook in _HOOKS):
        return
    loss, value = found
    flags = [one for one in _flags(seen) if one.may_end]
    if any(one.is_named for one in flags) != is_named:
        return
    flags = [one for one in flags if one.is_named == is_named]
    for path, name, share in flags:
        title = f"{path} ({name})" if is_named and name not in path else path
        yield Evidence(
            f"{title} is 0 or 1, and 1 for {share:.0%} of the samples, and no step reads it, while"
            f" the target of {loss.call} adds the discounted value of {value.call} for each sample:"
            " if it marks the ends of episodes, their last states get the value of states that"
            " never follow",
            "target = reward + discount * (1 - done) * next_value",
            tuple(filter(None, [layer_of(loss.prediction)])),
            {"share": share},
        )
        return


class _Flag(NamedTuple):
    """A member of the batch that is 0 or 1 for each sample, and that no step reads.

    Attributes:
        path: Its place in the batch.
        name: Its key, or the variable to which the module unpacks it; empty if it has none.
        share: The share of samples for which it is 1.
    """

    path: str
    name: str
    share: float

    @property
    def is_named(self) -> bool:
        """Whether it has a name of more than a letter."""
        return sum(letter.isalpha() for letter in self.name) > 1

    @property
    def may_end(self) -> bool:
        """Whether it may mark the ends of episodes, as far as its name says."""
        name = self.name.lower()
        is_end = any(part in name for part in _ENDS)
        return not self.is_named or (is_end and not any(part in name for part in _CUTS))


def _unmasked(seen: Observation) -> Iterator[tuple[Loss, NextValue]]:
    """Yield losses whose targets have the value of a next state for each sample."""
    for _, loss in losses_seen(seen, REGRESSION):
        found = next_value(loss.target, lambda x: bool(x.depth))
        if found is None or not loss.prediction.requires_grad or found.is_masked:
            continue
        layer = next((one for one in found.call.output.before() if one.is_layer), None)
        if all(one is not layer for one in loss.prediction.before()):
            yield loss, found


def _flags(seen: Observation) -> Iterator[_Flag]:
    steps = [*seen.steps, *([seen.validation_step] if seen.validation_step else [])]
    read = {x.source for step in steps for call in step.calls for x in call.inputs}
    read |= {source for step in steps for source in step.read}
    columns: dict[str, list[Tensor]] = {}
    for batch in seen.train.batches:
        for keys, x in tree_flatten_with_path(batch.received)[0]:
            if isinstance(x, Tensor):
                columns.setdefault(keystr(keys), []).append(x)
    for path, parts in columns.items():
        if f"batch{path}" in read or not all(_is_column(x) for x in parts):
            continue
        values = torch.cat([x.reshape(-1).float() for x in parts])
        share = float(values.mean())
        if bool(((values == 0) | (values == 1)).all()) and 0 < share < 1:
            yield _Flag(f"batch{path}", _name_of(seen, path), share)


def _is_column(x: Tensor) -> bool:
    """Return whether a tensor has one element for each sample."""
    return x.dim() > 0 and x.numel() == len(x) and not x.is_complex() and not x.is_sparse


def _name_of(seen: Observation, path: str) -> str:
    """Return the key of a member, or the variable to which the module's code unpacks it."""
    batch, place = seen.step.batch, path.strip("[]")
    if not (isinstance(batch, tuple | list) and place.isdigit()):
        return path
    kind = type(seen.module)
    names = {
        found[int(place)]
        for code in codes_of(kind, lambda name: True)
        for found in unpacked_in(code, len(batch))
    }
    return " ".join(sorted(names))
