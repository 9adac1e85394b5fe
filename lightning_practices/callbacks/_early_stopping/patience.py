"""The patience and the minimum of early stopping, compared with the length of the fit."""

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_practices.callbacks._trainer.horizon import (
    checks_of_fit,
    epochs_of_fit,
    too_short,
)

PATIENCE = 10
"""The default of ``EarlyStopping``, of which no message is shown: it is no choice of the user's."""


def tell_of_patience(trainer: Trainer, patience: int, by_epoch: bool) -> None:
    """Show a message if a patience that the user has chosen is longer than the fit.

    It is no warning, since nothing is lost: the best weights are restored all the same.

    Args:
        trainer: The Trainer of the fit.
        patience: The patience, in checks.
        by_epoch: Whether each training epoch is a check, rather than each validation.
    """
    if patience == PATIENCE:
        return
    text = (
        f"EarlyStopping(patience={patience}) stops it before its end only with {patience + 2} or"
        " more: it never does, so give less patience"
    )
    checks = epochs_of_fit(trainer) if by_epoch else checks_of_fit(trainer)
    message = too_short(trainer, checks, patience + 2, "check of early stopping", text)
    if message is not None:
        rank_zero_info(message)


def reached_minimum(trainer: Trainer) -> bool:
    """Say whether ``min_epochs`` (including an epoch that ends now) and ``min_steps`` are over."""
    epochs = trainer.current_epoch + int(trainer.is_last_batch)
    return epochs >= (trainer.min_epochs or 0) and trainer.global_step >= (trainer.min_steps or 0)
