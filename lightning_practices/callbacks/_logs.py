"""When there is something to log for."""

from lightning.pytorch import Trainer

from lightning_practices.callbacks._learning_curves import LearningCurves


def logs_now(trainer: Trainer) -> bool:
    """Say whether it is a step at which values are logged, and there is who keeps them."""
    if not trainer._logger_connector.should_update_logs:
        return False
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return bool(trainer.loggers) or any(isinstance(c, LearningCurves) for c in callbacks)
