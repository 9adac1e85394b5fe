"""Ends of episodes that the targets of a value function don't use."""

from collections.abc import Iterator

import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path

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
    found = next(iter(_unmasked(seen)), None)
    if found is None or any(is_overridden(hook, seen.module) for hook in _HOOKS):
        return
    loss, value = found
    for name, share in _flags(seen):
        yield Evidence(
            f"{name} is 0 or 1, and 1 for {share:.0%} of the samples, and no step reads it, while"
            f" the target of {loss.call} adds the discounted value of {value.call} for each sample:"
            " if it marks the ends of episodes, their last states get the value of states that"
            " never follow",
            "target = reward + discount * (1 - done) * next_value",
            tuple(filter(None, [layer_of(loss.prediction)])),
            {"share": share},
        )
        return


def _unmasked(seen: Observation) -> Iterator[tuple[Loss, NextValue]]:
    """Yield losses whose targets have the value of a next state for each sample."""
    for _, loss in losses_seen(seen, REGRESSION):
        found = next_value(loss.target, lambda x: bool(x.depth))
        if found is None or not loss.prediction.requires_grad or found.is_masked:
            continue
        layer = next((one for one in found.call.output.before() if one.is_layer), None)
        if all(one is not layer for one in loss.prediction.before()):
            yield loss, found


def _flags(seen: Observation) -> Iterator[tuple[str, float]]:
    """Yield the members of the batch that are 0 or 1, and that no step reads."""
    steps = [*seen.steps, *([seen.validation_step] if seen.validation_step else [])]
    read = {x.source for step in steps for call in step.calls for x in call.inputs}
    read |= {source for step in steps for source in step.read}
    columns: dict[str, list[Tensor]] = {}
    for batch in seen.train.batches:
        for path, x in tree_flatten_with_path(batch.received)[0]:
            if isinstance(x, Tensor):
                columns.setdefault(keystr(path), []).append(x)
    for name, parts in columns.items():
        if f"batch{name}" in read or not all(_is_column(x) for x in parts):
            continue
        values = torch.cat([x.reshape(-1).float() for x in parts])
        share = float(values.mean())
        if bool(((values == 0) | (values == 1)).all()) and 0 < share < 1 and _may_end(name):
            yield f"batch{name}", share


def _is_column(x: Tensor) -> bool:
    """Return whether a tensor has one element for each sample."""
    return x.dim() > 0 and x.numel() == len(x) and not x.is_complex() and not x.is_sparse


def _may_end(path: str) -> bool:
    """Return whether the name of a member, if it has one, may be that of an episode's end."""
    name = path.lower()
    has_name = any(letter.isalpha() for letter in name)
    is_end = any(part in name for part in _ENDS)
    return not has_name or (is_end and not any(part in name for part in _CUTS))
