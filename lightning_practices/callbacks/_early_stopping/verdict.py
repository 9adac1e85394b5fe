"""The verdict of early stopping on one or several monitored values."""

from collections.abc import Sequence

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor


def judge(
    watched: Sequence[LightningEarlyStopping], values: Sequence[Tensor]
) -> tuple[bool, str | None]:
    """Return whether to stop, and the reason; the first of ``watched`` gets ``stopping_reason``.

    Args:
        watched: Callbacks that each check one value, and hold its best value and count.
        values: The new value of each.
    """
    pairs = zip(watched, values, strict=True)
    verdicts = [one._evaluate_stopping_criteria(value) for one, value in pairs]
    stopping = [one for one, (stop, _) in zip(watched, verdicts, strict=True) if stop]
    exhausted = EarlyStoppingReason.PATIENCE_EXHAUSTED
    # Patience has to be exhausted for all values; a threshold or nan of one value is enough.
    alone = [one.stopping_reason for one in stopping if one.stopping_reason is not exhausted]
    should_stop = bool(alone) or len(stopping) == len(watched)
    not_stopped = EarlyStoppingReason.NOT_STOPPED
    watched[0].stopping_reason = [*alone, exhausted][0] if should_stop else not_stopped
    kept = [reason for stop, reason in verdicts if reason and stop <= should_stop]
    return should_stop, " ".join(kept) or None


def warn_if_not_finite(
    trainer: Trainer, watched: Sequence[LightningEarlyStopping], values: Sequence[Tensor]
) -> None:
    """Warn of a value that ends the fit because it is infinite or nan.

    Args:
        trainer: The Trainer of the fit.
        watched: The callbacks that each checked one value.
        values: The values.
    """
    for one, value in zip(watched, values, strict=True):
        if one.check_finite and not value.isfinite():
            rank_zero_warn(
                f"EarlyStopping ends this fit at step {trainer.global_step}, in epoch"
                f" {trainer.current_epoch}, as {one.monitor} is {value.item()}: look for such"
                " values in the data and in the loss, or for weights that training has made so,"
                " which SkipNonFinite or a lower learning rate prevents. With check_finite=False"
                " such a value is only a check without improvement"
            )


def forget_values(one: LightningEarlyStopping) -> None:
    """Forget the best value and the count, and the verdict."""
    one.best_score = torch.tensor(torch.inf if one.mode == "min" else -torch.inf)
    one.wait_count = 0
    forget_verdict(one)


def forget_verdict(one: LightningEarlyStopping) -> None:
    """Forget that training was stopped, and why."""
    one.stopped_epoch, one.stopping_reason_message = 0, None
    one.stopping_reason = EarlyStoppingReason.NOT_STOPPED
