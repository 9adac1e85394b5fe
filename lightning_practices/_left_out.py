"""What a checkpoint holds, and the fit that is resumed from it would leave out."""

from collections.abc import Mapping, MutableMapping
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

_AVERAGES = "weight_averaging"
_OF_UNFREEZING = {"phase", "layout"}  # keys of its state


def check_left_out(trainer: Trainer, checkpoint: MutableMapping[str, Any]) -> None:
    """Check the callbacks of a fit that is resumed against those of the checkpoint.

    Lightning itself only names the missing callbacks in a warning, and then fails on the groups of
    the optimizer, or trains on with averages in place of weights.

    Args:
        trainer: The Trainer of the fit.
        checkpoint: The checkpoint. Averages that are left out are removed, so that a second call
            doesn't warn again.

    Raises:
        MisconfigurationException: If the checkpoint was saved with ``ProgressiveUnfreezing``, which
            the Trainer lacks.
    """
    states = checkpoint.get("callbacks", {}).values()
    is_split = any(isinstance(one, Mapping) and one.keys() >= _OF_UNFREEZING for one in states)
    if is_split and not _has(trainer, "ProgressiveUnfreezing"):
        raise MisconfigurationException(
            "the checkpoint was saved with ProgressiveUnfreezing, which has split the optimizer's"
            " parameter groups by block, and this fit doesn't have it: add ProgressiveUnfreezing,"
            " with the same phases, to the Trainer's callbacks, or give fine_tuning=... of the"
            " mixin; or, to train without it, load the weights into the module and fit without"
            " ckpt_path"
        )
    if _AVERAGES in checkpoint and not _has(trainer, "WeightAveraging"):
        del checkpoint[_AVERAGES]
        rank_zero_warn(
            "the checkpoint was saved with WeightAveraging, and this fit doesn't have it: training"
            " goes on from the averages, which are the checkpoint's state_dict, and the weights"
            " under training, to which the optimizer's state belongs, are left out. To go on as"
            " before add WeightAveraging to the Trainer's callbacks, or give weight_averaging=..."
            " of the mixin"
        )


def warn_of_schedule(trainer: Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Warn if the checkpoint holds the state of a schedule, and the fit has no schedule.

    Call this once all schedulers of the fit are made.
    """
    if checkpoint.get("lr_schedulers") and not trainer.lr_scheduler_configs:
        rank_zero_warn(
            "the checkpoint was saved with a schedule of the learning rate, and this fit has none,"
            " so the rates stay as they were when it was saved. To go on as before give the same"
            " schedule, by schedule=... of the mixin or LearningRateScheduler in the Trainer's"
            " callbacks; to train at other rates load the weights into the module and fit without"
            " ckpt_path"
        )


def _has(trainer: Trainer, name: str) -> bool:
    """Say whether the Trainer has a callback of this package, or of a subclass of it."""
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    bases = [base for one in callbacks for base in type(one).__mro__ if base.__name__ == name]
    return any(base.__module__.startswith("lightning_practices.") for base in bases)
