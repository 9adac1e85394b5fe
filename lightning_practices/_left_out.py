"""What a checkpoint holds, and a fit that is resumed from it leaves out.

Lightning itself only names missing callbacks in a warning. Then it fails on the optimizer's groups,
trains on with averages in place of weights, or keeps the rates as they are.
"""

from collections.abc import Mapping, MutableMapping
from typing import Any

_AVERAGES = "weight_averaging"
_OF_UNFREEZING = {"phase", "layout"}  # keys of its state


def error_of_unfreezing(trainer: Any, checkpoint: Mapping[str, Any]) -> str | None:
    """Return an error if the checkpoint's ``ProgressiveUnfreezing`` is left out."""
    states = checkpoint.get("callbacks", {}).values()
    is_split = any(isinstance(one, Mapping) and one.keys() >= _OF_UNFREEZING for one in states)
    if not is_split or _has(trainer, "ProgressiveUnfreezing"):
        return None
    return (
        "the checkpoint was saved with ProgressiveUnfreezing, which has split the optimizer's"
        " parameter groups by block, and this fit doesn't have it: add ProgressiveUnfreezing, with"
        " the same phases, to the Trainer's callbacks, or give fine_tuning=... of the mixin; or, to"
        " train without it, load the weights into the module and fit without ckpt_path"
    )


def warning_of_averages(trainer: Any, checkpoint: MutableMapping[str, Any]) -> str | None:
    """Return a warning if averages are left out, and remove them from the checkpoint.

    So a second call returns no warning.
    """
    if _AVERAGES not in checkpoint or _has(trainer, "WeightAveraging"):
        return None
    del checkpoint[_AVERAGES]
    return (
        "the checkpoint was saved with WeightAveraging, and this fit doesn't have it: training goes"
        " on from the averages, which are the checkpoint's state_dict, and the weights under"
        " training, to which the optimizer's state belongs, are left out. To go on as before add"
        " WeightAveraging to the Trainer's callbacks, or give weight_averaging=... of the mixin"
    )


def warning_of_schedule(trainer: Any, checkpoint: Mapping[str, Any]) -> str | None:
    """Return a warning if the checkpoint has a schedule of the rate, and the fit has none.

    Call this once all schedulers of the fit are made.
    """
    if not checkpoint.get("lr_schedulers") or trainer.lr_scheduler_configs:
        return None
    return (
        "the checkpoint was saved with a schedule of the learning rate, and this fit has none, so"
        " the rates stay as they were when it was saved. To go on as before give the same schedule,"
        " by schedule=... of the mixin or LearningRateScheduler in the Trainer's callbacks; to"
        " train at other rates load the weights into the module and fit without ckpt_path"
    )


def _has(trainer: Any, name: str) -> bool:
    """Say whether the Trainer has a callback of this package, or of a subclass of it."""
    bases = [
        base for one in trainer.callbacks for base in type(one).__mro__ if base.__name__ == name
    ]
    return any(base.__module__.startswith("lightning_practices.") for base in bases)
