"""Parameter groups by block, in the optimizers and schedulers of the module."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_practices.callbacks._unfreezing.plan import Share

BLOCK = "block"
"""The key of a parameter group that holds the name of its block."""

# Keys of a parameter group that hold learning rates (OneCycleLR and SWALR add some), and attributes
# of a scheduler that are lists with one item for each group.
_RATES = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")
_LISTS_OF_RATES = ("base_lrs", "_last_lr", "max_lrs", "min_lrs")
_LISTS = ("lr_lambdas", "base_momentums", "max_momentums")

_Part = tuple[dict[str, Any], int, float]  # new group, index of the old group, scale of the rate


def split_groups(
    optimizer: Optimizer, schedulers: Sequence[object], shares: Mapping[int, Share]
) -> None:
    """Split each group by block, in place, and multiply rates by the parameters' scales.

    The new groups keep the options of the old groups, and get a ``name`` and the name of their
    block. The lists in a scheduler get one item for each new group, with scaled rates, as if the
    optimizer had been made with the new groups.

    If each group already lies within one block and the groups have different rates, the decay by
    depth isn't applied. An optimizer whose groups were split before stays unchanged.

    Args:
        optimizer: The optimizer. An ``LBFGS`` or ``ZeroRedundancyOptimizer`` can't be split.
        schedulers: All schedulers of the fit, those of other optimizers too.
        shares: The :class:`Share` of each parameter, by the parameter's id.

    Raises:
        MisconfigurationException: If the optimizer or a scheduler can't be split.
    """
    if _is_fixed(optimizer):
        raise MisconfigurationException(
            "ProgressiveUnfreezing gives each block a parameter group, and the groups of"
            f" {_name(optimizer)} can't change once it is made: use another one, such as AdamW"
        )
    if all(BLOCK in group for group in optimizer.param_groups):
        return
    own_rates = _has_own_rates(optimizer, shares)
    parts = [
        part
        for index, group in enumerate(optimizer.param_groups)
        for part in _split(group, index, shares, own_rates)
    ]
    _name_uniquely([group for group, _, _ in parts])
    count = len(optimizer.param_groups)
    for scheduler in schedulers:
        for one in _nested(scheduler):
            if one.optimizer is optimizer:
                _check_floor(one, parts)
                _extend(one, count, parts)
    optimizer.param_groups[:] = [group for group, _, _ in parts]
    _keep_names(optimizer)


def _keep_names(optimizer: Optimizer) -> None:
    """Let the groups keep their names when a state is loaded.

    Torch would take the names from the state, and the module may have renamed its blocks since.
    """
    names = [{key: group[key] for key in (BLOCK, "name")} for group in optimizer.param_groups]

    def put_back(optimizer: Optimizer) -> None:
        for group, own in zip(optimizer.param_groups, names, strict=True):
            group.update(own)

    optimizer.register_load_state_dict_post_hook(put_back)


def _has_own_rates(optimizer: Optimizer, shares: Mapping[int, Share]) -> bool:
    """Say whether each group is within one block, and the groups have different rates."""
    groups = optimizer.param_groups
    depths = [
        {shares[id(p)].block.depth for p in group["params"] if id(p) in shares} for group in groups
    ]
    rates = {float(group["lr"]) for group in groups}
    return all(len(found) <= 1 for found in depths) and len(rates) > 1


def _split(
    group: dict[str, Any], index: int, shares: Mapping[int, Share], own_rates: bool
) -> Iterator[_Part]:
    """Yield the parts of a group, one for each block and scale, the head first."""
    members: dict[tuple[int, float], list[int]] = {}
    blocks: dict[int, str] = {}
    for place, p in enumerate(group["params"]):
        share = shares.get(id(p))
        if share is None:  # not a parameter of the module
            members.setdefault((-1, 1.0), []).append(place)
            continue
        scale = 1.0 if own_rates and share.is_default else share.scale
        blocks[share.block.depth] = share.block.name
        members.setdefault((share.block.depth, scale), []).append(place)
    for depth, scale in sorted(members):
        places = members[depth, scale]
        part = dict(group)
        for key in ("params", "param_names"):
            if key in group:
                part[key] = [group[key][place] for place in places]
        for key in _RATES:
            if key in group:
                part[key] = _scaled(group[key], scale)
        part[BLOCK] = blocks.get(depth, "others")
        name = group.get("name")
        part["name"] = part[BLOCK] if name in (None, part[BLOCK]) else f"{part[BLOCK]}/{name}"
        yield part, index, scale


def _name_uniquely(groups: list[dict[str, Any]]) -> None:
    names = [group["name"] for group in groups]
    for place, group in enumerate(groups):
        if names.count(name := names[place]) > 1:
            group["name"] = f"{name}-{names[:place].count(name)}"


def _nested(scheduler: Any) -> Iterator[LRScheduler]:
    """Yield a scheduler, and the schedulers inside a ``SequentialLR`` or ``ChainedScheduler``."""
    if not isinstance(scheduler, LRScheduler):
        raise MisconfigurationException(
            "ProgressiveUnfreezing splits the parameter groups, and doesn't know which attributes"
            f" {_name(scheduler)} has for each group: use a scheduler of torch.optim.lr_scheduler"
        )
    yield scheduler
    for inner in getattr(scheduler, "_schedulers", ()):
        yield from _nested(inner)


def _extend(scheduler: LRScheduler, count: int, parts: Sequence[_Part]) -> None:
    """Change each list of a scheduler from one item per old group to one item per new group."""
    for names, change in ((_LISTS_OF_RATES, _scaled), (_LISTS, _same)):
        for name in names:
            items = getattr(scheduler, name, None)
            if isinstance(items, list | tuple) and len(items) == count:
                new = [change(items[index], scale) for _, index, scale in parts]
                setattr(scheduler, name, new)


def _check_floor(scheduler: LRScheduler, parts: Sequence[_Part]) -> None:
    """Warn if the scheduler's least rate, ``eta_min``, is above the rate of a block."""
    floor: float = getattr(scheduler, "eta_min", 0.0)
    below = [
        group[BLOCK]
        for group, _, _ in parts
        if group["initial_lr" if "initial_lr" in group else "lr"] < floor
    ]
    if below:
        rank_zero_warn(
            f"{_name(scheduler)}(eta_min={floor}) is the least rate of all blocks, and the rates of"
            f" {', '.join(dict.fromkeys(below))} would rise to it: give a lower eta_min"
        )


def _scaled(value: Any, scale: float) -> Any:
    return value * scale  # a new tensor, so that groups don't share one


def _same(value: Any, scale: float) -> Any:
    return value


def _is_fixed(optimizer: Optimizer) -> bool:
    """Say whether the optimizer's groups can't be changed."""
    # Not imported here, as torch 2.11 warns on import. Whoever made a ZeroRedundancyOptimizer has
    # imported the module.
    sharded = sys.modules.get("torch.distributed.optim")
    return isinstance(optimizer, LBFGS) or (
        sharded is not None and isinstance(optimizer, sharded.ZeroRedundancyOptimizer)
    )


def _name(item: object) -> str:
    return type(item).__name__
