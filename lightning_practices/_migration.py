"""Copies of weights in a checkpoint, passed through the module's own ``on_load_checkpoint``."""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any


def migrated(module: Any, checkpoint: Mapping[str, Any], state: Mapping[str, Any]) -> Any:
    """Return what the hook of a LightningModule makes of a copy of its weights.

    A module that has renamed a layer since a checkpoint was saved renames the entries of
    ``checkpoint["state_dict"]`` in ``on_load_checkpoint``. So this calls the hook with the copy
    as the ``"state_dict"``, beside all other entries of the checkpoint, which the hook may read.

    Args:
        module: The module, which the hook may change.
        checkpoint: The checkpoint. All its dicts and lists are copied, so that the hook can change
            them without changing the checkpoint. Tensors are not copied.
        state: The copy of the weights. The dict stays unchanged.

    Returns:
        The ``"state_dict"`` after the hook.
    """
    seen = {key: _containers(value) for key, value in checkpoint.items() if key != "state_dict"}
    seen["state_dict"] = OrderedDict(state)
    try:
        module.on_load_checkpoint(seen)
        return seen["state_dict"]
    except Exception as error:
        error.add_note(
            f"on_load_checkpoint of {type(module).__name__} was called for a copy of the weights:"
            " it is called once for the state_dict of a checkpoint, and once for each further copy"
            " of the weights in the checkpoint (averages, best weights, snapshots, members), which"
            " it gets as checkpoint['state_dict'], with the entries that this copy has. Each call"
            " has copies of all entries as they were saved, so an entry that one call removes or"
            " renames is there again in the next: act only on entries that are there, as in"
            " `if key in checkpoint['state_dict']` or `pop(key, None)`"
        )
        raise


def _containers(value: Any) -> Any:
    """Return a copy of nested dicts and lists. All other values are shared."""
    if isinstance(value, dict):
        copied = copy.copy(value)  # keeps the class, such as OrderedDict
        for key, one in value.items():
            copied[key] = _containers(one)
        return copied
    if isinstance(value, list):
        return [_containers(one) for one in value]
    return value
