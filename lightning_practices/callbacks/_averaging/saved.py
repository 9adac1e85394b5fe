"""The averages and the weights under training in a checkpoint."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.distributed.tensor import DTensor

from lightning_practices._names import plain_name
from lightning_practices.callbacks._averaging.tensors import averaged_tensors, trained_tensors
from lightning_practices.callbacks._trainer.copies import SAME, load_copies
from lightning_practices.callbacks._trainer.kept_state import copy_to_cpu
from lightning_practices.callbacks._trainer.sharding import to_whole

# Each copy of the weights in a checkpoint: its title in messages, and the tensors in it.
_CONTENTS = {
    "averages": ("averages", averaged_tensors),
    "current": ("weights under training", trained_tensors),
}


def to_save(
    pl_module: LightningModule,
    state: Mapping[str, Any],
    averages: Mapping[str, Tensor],
    current: Mapping[str, Tensor],
) -> dict[str, Any]:
    """Return ``"averages"`` and ``"current"`` for a checkpoint; every rank has to call this.

    Each is completed to a whole state of the module, since on loading it passes through the
    module's ``on_load_checkpoint``, which expects all names of a ``state_dict``. Averages that
    equal the checkpoint's ``state_dict`` aren't saved a second time.

    Args:
        pl_module: The module.
        state: The ``state_dict`` of the checkpoint.
        averages: This rank's averages by name.
        current: This rank's weights under training by name.
    """
    live = trained_tensors(pl_module)
    whole = {"averages": to_whole(averages, live), "current": to_whole(current, live)}
    if not whole["current"] or any(isinstance(tensor, DTensor) for tensor in live.values()):
        # Only rank 0 saves. ModelParallelStrategy loads its state_dict without a hook.
        return whole
    saved: dict[str, Any] = {name: _completed(pl_module, state, whole[name]) for name in whole}
    if _equal(saved["averages"], state):
        saved["averages"] = SAME
    return saved


def from_saved(
    pl_module: LightningModule, checkpoint: Mapping[str, Any], kept: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what :func:`to_save` has returned, with the names that the module has now.

    Raises:
        MisconfigurationException: If names or shapes don't fit the module.
    """
    loaded: dict[str, Any] = {}
    for name, (title, tensors) in _CONTENTS.items():
        if name in kept:
            what, one, expected = (
                f"the {title} of WeightAveraging",
                {name: kept[name]},
                tensors(pl_module),
            )
            loaded |= load_copies(pl_module, checkpoint, one, what, expected)
    return loaded


def to_save_again(state: Mapping[str, Any], loaded: Mapping[str, Any]) -> dict[str, Any]:
    """Return what :func:`from_saved` has returned for another checkpoint, before training starts.

    Args:
        state: The ``state_dict`` of the checkpoint.
        loaded: The loaded averages and weights.
    """
    is_whole = not any(isinstance(value, DTensor) for value in state.values())
    same = is_whole and _equal(loaded["averages"], state)
    return {"averages": SAME if same else loaded["averages"], "current": loaded["current"]}


def _completed(
    module: LightningModule, state: Mapping[str, Any], tensors: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a state of ``module`` with given values, under all names of shared tensors.

    If ``state`` has other names, because the module overrides ``state_dict``, the result holds the
    given values alone.
    """
    live: dict[str, Any] = dict(module.named_parameters(remove_duplicate=False))
    live |= module.named_buffers(remove_duplicate=False)
    plain = {name: plain_name(name) for name in trained_tensors(module)}
    values = {id(live[name]): tensors[plain[name]] for name in plain if plain[name] in tensors}
    names = {name: id(tensor) for name, tensor in live.items() if id(tensor) in values}
    if not names.keys() <= state.keys():
        return dict(tensors)
    # Copies, since a hook may change tensors in place.
    others = {name: copy_to_cpu(value) for name, value in state.items() if name not in names}
    return {name: values[names[name]] if name in names else others[name] for name in state}


def _equal(values: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
    """Say whether all tensors in ``values`` are those of ``state``, in the same dtype."""
    return all(
        isinstance(state.get(name), Tensor)
        and state[name].dtype == value.dtype
        and torch.equal(state[name].cpu(), value.cpu())
        for name, value in values.items()
        if isinstance(value, Tensor)
    )
