"""Healthy plans of fits, close to faulty ones."""

from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.callbacks import WeightAveraging as LightningWeightAveraging
from torch.optim import SGD
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from lightning_practices.callbacks import WeightAveraging
from lightning_practices.mixins import TrainingPractices
from tests.advisor.plans import (
    BATCHES,
    Planned,
    adamw,
    no_trainer,
    scheduled,
    steps_of_fit,
    stopped,
    trainer,
)
from tests.advisor.programs import Arguments, Task, digit_loaders, healthy, mlp


@healthy
def one_cycle_of_the_fit() -> Arguments:
    return scheduled(lambda o, m: OneCycleLR(o, 0.1, total_steps=steps_of_fit(m)))


@healthy
def one_cycle_without_trainer() -> Arguments:
    return no_trainer(one_cycle_of_the_fit())


@healthy
def one_cycle_of_epochs() -> Arguments:
    return scheduled(lambda o, m: OneCycleLR(o, 0.1, total_steps=10), "epoch")


@healthy
def cosine_of_epochs() -> Arguments:
    return scheduled(lambda o, m: CosineAnnealingLR(o, m.trainer.max_epochs or 1), "epoch")


@healthy
def cosine_of_100_epochs_in_a_trial_of_10() -> Arguments:
    return scheduled(lambda o, m: CosineAnnealingLR(o, 100), "epoch")


@healthy
def cosine_with_restarts_by_step() -> Arguments:
    return scheduled(lambda o, m: CosineAnnealingWarmRestarts(o, BATCHES))


@healthy
def cyclic_by_step() -> Arguments:
    return scheduled(lambda o, m: CyclicLR(o, 0.01, 0.1, step_size_up=2 * BATCHES))


@healthy
def warmup_and_linear_decay() -> Arguments:
    def factor(step: int) -> float:
        return min((step + 1) / 20, max(0.0, (220 - step) / 200))

    return scheduled(lambda o, m: LambdaLR(o, factor))


@healthy
def warmup_then_cosine() -> Arguments:
    return scheduled(
        lambda o, m: SequentialLR(
            o, [LinearLR(o, 0.01, total_iters=20), CosineAnnealingLR(o, 200)], [20]
        )
    )


@healthy
def warmup_by_epoch() -> Arguments:
    return scheduled(
        lambda o, m: SequentialLR(
            o, [LinearLR(o, 0.1, total_iters=2), CosineAnnealingLR(o, 8)], [2]
        ),
        "epoch",
    )


@healthy
def divisions_of_recipes() -> Arguments:
    return scheduled(lambda o, m: MultiStepLR(o, [30, 60, 80]), "epoch", max_epochs=90)


@healthy
def exponential_by_epoch_until_early_stopping() -> Arguments:
    stopping = EarlyStopping("val_loss")
    return scheduled(
        lambda o, m: ExponentialLR(o, 0.97), "epoch", max_epochs=1000, callbacks=[stopping]
    )


@healthy
def functions_of_two_groups() -> Arguments:
    def configure(module: Planned) -> Any:
        first, last = module.net[1], module.net[3]  # type: ignore[index]
        groups = [{"params": first.parameters(), "lr": 1e-2}, {"params": last.parameters()}]
        optimizer = SGD(groups, 0.1, momentum=0.9)
        lambdas = [lambda epoch: 0.05 * 0.9**epoch, lambda epoch: 0.9**epoch]
        return [optimizer], [LambdaLR(optimizer, lambdas)]

    return Planned(configure), digit_loaders(), trainer()


@healthy
def slow_exponential_by_step() -> Arguments:
    return scheduled(lambda o, m: ExponentialLR(o, 0.99), max_epochs=10)


@healthy
def accumulated_one_cycle() -> Arguments:
    return scheduled(
        lambda o, m: OneCycleLR(o, 0.1, total_steps=steps_of_fit(m)), accumulate_grad_batches=4
    )


@healthy
def plateau_of_the_loss() -> Arguments:
    def configure(module: Planned) -> Any:
        optimizer = SGD(module.parameters(), 0.1, momentum=0.9)
        scheduler = {"scheduler": ReduceLROnPlateau(optimizer, "max"), "monitor": "val_acc"}
        return [optimizer], [scheduler]

    return Planned(configure), digit_loaders(), trainer()


@healthy
def right_monitors() -> Arguments:
    return stopped(
        EarlyStopping("val_acc", mode="max"), ModelCheckpoint(monitor="val_loss"),
        enable_checkpointing=True,
    )  # fmt: skip


class LogsAccuracy(Callback):
    """Logs a value from a callback."""

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.log("score", 1.0)


@healthy
def monitor_that_a_callback_logs() -> Arguments:
    return stopped(LogsAccuracy(), EarlyStopping("score", mode="max"))


class LogsLater(Planned):
    def on_validation_epoch_end(self) -> None:
        if self.current_epoch > 0:
            self.log("val_late", 1.0)


@healthy
def monitor_that_is_logged_later() -> Arguments:
    return (
        LogsLater(adamw),
        digit_loaders(),
        trainer(callbacks=[EarlyStopping("val_late", strict=False)]),
    )


@healthy
def monitor_of_a_split_that_is_not_given() -> Arguments:
    module, data, its_trainer = right_monitors()  # type: ignore[misc]
    return module, data[0], its_trainer


@healthy
def averages_that_follow() -> Arguments:
    return stopped(WeightAveraging("ema"), max_epochs=5)


@healthy
def average_of_lightning_that_follows() -> Arguments:
    return stopped(LightningWeightAveraging(avg_fn=get_ema_avg_fn(0.95)), max_epochs=10)


class Averaged(Planned):
    """Keeps an equal average, and validates with it."""

    def __init__(self) -> None:
        super().__init__(adamw)
        self.average = AveragedModel(self.net)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.average.update_parameters(self.net)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", self.loss(self.average(x), y))


@healthy
def equal_average_of_the_module() -> Arguments:
    return Averaged(), digit_loaders(), trainer()


class TeacherAverage(Callback):
    """A teacher that follows slowly, on purpose."""

    def __init__(self) -> None:
        self.decay = 0.996


@healthy
def slow_teacher() -> Arguments:
    return stopped(TeacherAverage(), max_epochs=2)


@healthy
def equal_average_of_lightning() -> Arguments:
    return stopped(LightningWeightAveraging())


@healthy
def stochastic_average() -> Arguments:
    return stopped(StochasticWeightAveraging(1e-2))


class Practised(TrainingPractices, Task):
    pass


@healthy
def all_practices() -> Arguments:
    return Practised(mlp(64, 64, 10)), digit_loaders(), trainer(enable_checkpointing=True)


@healthy
def trial() -> Arguments:
    return stopped(EarlyStopping("val_loss", patience=50), fast_dev_run=True)
