"""Schedules whose plan doesn't fit the fit."""

from typing import Any

from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    PolynomialLR,
    SequentialLR,
    StepLR,
)

from lightning_practices.mixins import TrainingPractices
from lightning_practices.schedules import LearningRateSchedule
from tests.advisor.plans import (
    BATCHES,
    Planned,
    no_trainer,
    scheduled,
    steps_of_fit,
    trainer,
)
from tests.advisor.programs import Arguments, Task, digit_loaders, faulty, mlp

_INTERVAL = "Lightning's forum: the interval is 'epoch' unless it is given"


@faulty("LP602", source=_INTERVAL)
def one_cycle_by_epoch() -> Arguments:
    return scheduled(lambda o, m: OneCycleLR(o, 0.1, total_steps=steps_of_fit(m)), "epoch")


@faulty("LP602", source=_INTERVAL)
def one_cycle_by_epoch_without_trainer() -> Arguments:
    return no_trainer(one_cycle_by_epoch())


@faulty("LP602", source=_INTERVAL)
def one_cycle_of_epochs_by_epoch_without_trainer() -> Arguments:
    program = scheduled(
        lambda o, m: OneCycleLR(o, 0.1, epochs=10, steps_per_epoch=BATCHES), "epoch"
    )
    return no_trainer(program)


@faulty("LP602", source=_INTERVAL)
def cosine_of_steps_by_epoch() -> Arguments:
    return scheduled(lambda o, m: CosineAnnealingLR(o, 10 * BATCHES), "epoch")


@faulty("LP602", source=_INTERVAL)
def warmup_and_decay_of_steps_by_epoch() -> Arguments:
    def factor(step: int) -> float:
        return min(step / 20, max(0.0, (220 - step) / 200))

    return scheduled(lambda o, m: LambdaLR(o, factor), "epoch")


@faulty("LP602", source=_INTERVAL)
def sequence_of_steps_by_epoch() -> Arguments:
    return scheduled(
        lambda o, m: SequentialLR(
            o, [LinearLR(o, 0.01, total_iters=20), CosineAnnealingLR(o, 200)], [20]
        ),
        "epoch",
    )


@faulty("LP603", source="torchvision's references step the schedule once an epoch")
def cosine_of_epochs_by_step() -> Arguments:
    return scheduled(lambda o, m: CosineAnnealingLR(o, 30), "step", max_epochs=30)


@faulty("LP603", source="a polynomial decay of segmentation recipes, stepped after each batch")
def polynomial_of_epochs_by_step() -> Arguments:
    return scheduled(lambda o, m: PolynomialLR(o, m.trainer.max_epochs or 1), "step", max_epochs=20)


@faulty("LP601", source="fine-tuning with the warmup of a pretraining recipe")
def warmup_longer_than_the_fit() -> Arguments:
    return scheduled(lambda o, m: LinearLR(o, 1e-3, total_iters=1000), "step", max_epochs=5)


@faulty("LP601", source="fine-tuning with the warmup of a pretraining recipe")
def warmup_of_a_function_longer_than_the_fit() -> Arguments:
    return scheduled(lambda o, m: LambdaLR(o, lambda step: min(1.0, step / 4000)), max_epochs=5)


class Practised(TrainingPractices, Task):
    pass


@faulty("LP601", source="fine-tuning with the warmup of a pretraining recipe")
def warmup_of_the_mixin_longer_than_the_fit() -> Arguments:
    module = Practised(mlp(64, 64, 10), schedule=LearningRateSchedule("cosine", warmup_steps=500))
    return module, digit_loaders(), trainer(max_epochs=3)


@faulty("LP605", source="questions about a loss that stays where it is after some epochs")
def exponential_by_step() -> Arguments:
    return scheduled(lambda o, m: ExponentialLR(o, 0.9), "step", max_epochs=20)


@faulty("LP605", source="questions about a loss that stays where it is after some epochs")
def step_by_step_without_trainer() -> Arguments:
    return no_trainer(scheduled(lambda o, m: StepLR(o, 10, 0.1), "step"))


def _one_cycle() -> Arguments:
    return scheduled(lambda o, m: OneCycleLR(o, 0.1, total_steps=steps_of_fit(m)), max_epochs=4)


@faulty("LP606", source="'Tried to step 101 times' in PyTorch's forum", mended=_one_cycle)
def one_cycle_shorter_than_the_fit() -> Arguments:
    return scheduled(lambda o, m: OneCycleLR(o, 0.1, total_steps=BATCHES), max_epochs=4)


@faulty("LP608", source="a recipe's eta_min with a smaller rate of the optimizer")
def least_rate_above_the_rate() -> Arguments:
    def configure(module: Planned) -> object:
        optimizer = SGD(module.parameters(), 1e-3, momentum=0.9)
        return [optimizer], [CosineAnnealingLR(optimizer, 10, eta_min=1e-2)]

    return Planned(configure), digit_loaders(), trainer()


@faulty("LP607", source="PyTorch's forum: OneCycleLR and parameter groups")
def one_cycle_of_groups_of_two_rates() -> Arguments:
    def configure(module: Planned) -> object:
        first, last = module.net[1], module.net[3]  # type: ignore[index]
        groups = [{"params": first.parameters(), "lr": 1e-3}, {"params": last.parameters()}]
        optimizer = SGD(groups, 0.1, momentum=0.9)
        scheduler = OneCycleLR(optimizer, 0.1, total_steps=steps_of_fit(module))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    return Planned(configure), digit_loaders(), trainer()


class WarmedUp(Planned):
    """The warmup of Lightning's guide, which sets the rate of all groups."""

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        optimizer.step(closure=optimizer_closure)
        for group in optimizer.param_groups:
            group["lr"] = min(1.0, (self.trainer.global_step + 1) / 50) * 0.1


@faulty("LP618", source="Lightning's guide to optimization, with two groups")
def warmup_by_hand_of_groups_of_two_rates() -> Arguments:
    def configure(module: Planned) -> object:
        first, last = module.net[1], module.net[3]  # type: ignore[index]
        groups = [{"params": first.parameters(), "lr": 1e-3}, {"params": last.parameters()}]
        return SGD(groups, 0.1, momentum=0.9)

    return WarmedUp(configure), digit_loaders(), trainer()


@faulty("LP619", source="PyTorch's forum: LambdaLR and a learning rate of nearly 0")
def function_that_returns_a_rate() -> Arguments:
    def configure(module: Planned) -> object:
        optimizer = Adam(module.parameters(), 1e-3)
        return [optimizer], [LambdaLR(optimizer, lambda epoch: 1e-3 * 0.95**epoch)]

    return Planned(configure), digit_loaders(), trainer()


@faulty("LP610", source="a schedule by epoch in a fit of one epoch")
def schedule_by_epoch_in_one_epoch() -> Arguments:
    return scheduled(lambda o, m: StepLR(o, 1), "epoch", max_epochs=1)


@faulty("LP610", source="a frequency that counts steps, of a schedule by epoch")
def schedule_with_a_frequency_longer_than_the_fit() -> Arguments:
    def configure(module: Planned) -> Any:
        optimizer = SGD(module.parameters(), 0.1)
        scheduler = {"scheduler": CosineAnnealingLR(optimizer, 10), "frequency": 100}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    return Planned(configure), digit_loaders(), trainer()


@faulty("LP604", source="a schedule of 200 epochs in a fit of 10")
def cosine_longer_than_the_fit() -> Arguments:
    return scheduled(lambda o, m: CosineAnnealingLR(o, 100), "epoch")
