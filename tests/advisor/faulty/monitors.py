"""Early stopping, checkpoints and schedules that monitor the wrong value, or in the wrong way."""

from typing import Any

from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_practices.callbacks import BestCheckpoint
from lightning_practices.callbacks import EarlyStopping as OwnEarlyStopping
from lightning_practices.mixins import TrainingPractices
from tests.advisor.plans import Planned, adamw, stopped, trainer
from tests.advisor.programs import Arguments, Task, digit_loaders, faulty, mlp

_NOT_LOGGED = "Lightning's forum: early stopping conditioned on a metric that is not available"
_MODE = "questions about accuracy with the default mode 'min'"


def _plateau(monitor: str | None, **options: Any) -> Arguments:
    def configure(module: Planned) -> Any:
        optimizer = SGD(module.parameters(), 0.1, momentum=0.9)
        scheduler = ReduceLROnPlateau(optimizer, **options)
        named = {} if monitor is None else {"monitor": monitor}
        return {"optimizer": optimizer, "lr_scheduler": scheduler, **named}

    return Planned(configure), digit_loaders(), trainer()


def _logged() -> Arguments:
    return stopped(EarlyStopping("val_loss"))


@faulty("LP611", source=_NOT_LOGGED, mended=_logged)
def early_stopping_on_a_name_that_nothing_logs() -> Arguments:
    return stopped(EarlyStopping("valid_loss"))


class Several(Planned):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        x, y = batch
        self.log("val_loss", self.loss(self.net(x), y))


@faulty("LP611", source="Lightning's forum: several validation loaders change the logged names")
def early_stopping_with_two_validation_loaders() -> Arguments:
    train, val = digit_loaders()
    callbacks = [EarlyStopping("val_loss")]
    return Several(adamw), (train, [val, val]), trainer(callbacks=callbacks)


@faulty("LP611", source=_NOT_LOGGED)
def early_stopping_of_the_module_on_a_name_that_nothing_logs() -> Arguments:
    module = Planned(adamw, callbacks=(EarlyStopping("val/loss"),))
    return module, digit_loaders(), trainer()


class Practised(TrainingPractices, Task):
    pass


@faulty("LP611", source=_NOT_LOGGED)
def early_stopping_of_the_mixin_on_a_name_that_nothing_logs() -> Arguments:
    module = Practised(mlp(64, 64, 10), early_stopping=OwnEarlyStopping("validation_loss"))
    return module, digit_loaders(), trainer(enable_checkpointing=True)


@faulty("LP611", source=_NOT_LOGGED)
def checkpoint_on_a_name_that_nothing_logs() -> Arguments:
    return stopped(ModelCheckpoint(monitor="accuracy", mode="max"), enable_checkpointing=True)


@faulty("LP611", source="Lightning's forum: ReduceLROnPlateau needs a monitor", mended=_logged)
def plateau_without_monitor() -> Arguments:
    return _plateau(None)


@faulty("LP611", source=_NOT_LOGGED)
def plateau_on_a_name_that_nothing_logs() -> Arguments:
    return _plateau("valid_loss")


class Named(Task):
    """Names the monitor in ``configure_optimizers`` alone."""

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), 0.1)
        scheduler = {"scheduler": ReduceLROnPlateau(optimizer), "monitor": "valid_loss"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


@faulty("LP611", source=_NOT_LOGGED)
def plateau_on_a_name_of_configure_optimizers() -> Arguments:
    return Named(mlp(64, 64, 10)), digit_loaders()


@faulty("LP612", source=_MODE)
def early_stopping_on_falling_accuracy() -> Arguments:
    return stopped(EarlyStopping("val_acc"))


@faulty("LP612", source=_MODE)
def checkpoint_of_the_worst_accuracy() -> Arguments:
    return stopped(ModelCheckpoint(monitor="val_acc"), enable_checkpointing=True)


@faulty("LP612", source=_MODE)
def best_checkpoint_of_the_highest_loss() -> Arguments:
    return stopped(BestCheckpoint(monitor="val_loss", mode="max"), enable_checkpointing=True)


@faulty("LP612", source=_MODE)
def plateau_of_falling_accuracy() -> Arguments:
    return _plateau("val_acc")


@faulty("LP612", source=_MODE)
def early_stopping_on_rising_loss() -> Arguments:
    return stopped(OwnEarlyStopping("val_loss", mode="max"))


@faulty("LP613", source="patience of a long fit in a short one")
def patience_longer_than_the_fit() -> Arguments:
    return stopped(EarlyStopping("val_loss", patience=50))


@faulty("LP625", source="early stopping on the training loss")
def early_stopping_on_the_training_loss() -> Arguments:
    return stopped(EarlyStopping("train_loss"))


@faulty("LP614", source="Trainer() runs 1000 epochs")
def fit_without_end() -> Arguments:
    return stopped(max_epochs=-1)


@faulty("LP615", source="check_val_every_n_epoch of a long fit in a short one")
def validation_after_the_end() -> Arguments:
    return stopped(check_val_every_n_epoch=20)


@faulty("LP615", source="limit_val_batches=0 left over from a trial")
def early_stopping_without_validation() -> Arguments:
    return stopped(EarlyStopping("val_loss"), limit_val_batches=0)
