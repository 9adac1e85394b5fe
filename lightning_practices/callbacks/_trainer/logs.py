"""When there is something to log for."""

from lightning.pytorch import Trainer

from lightning_practices.callbacks._curves.learning_curves import LearningCurves


def logs_now(trainer: Trainer) -> bool:
    """Say whether it is a step at which values are logged, and there is who keeps them."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    if not trainer.loggers and not any(isinstance(c, LearningCurves) for c in callbacks):
        return False
    return trainer._logger_connector.should_update_logs
