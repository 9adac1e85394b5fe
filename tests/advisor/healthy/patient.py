"""Early stopping and momentum of batch norms, close to the faulty ones."""

from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, ReduceLROnPlateau

from tests.advisor.faulty.patient import convolutions, patient, shifted
from tests.advisor.plans import Planned, adamw, trainer
from tests.advisor.programs import Arguments, Task, digit_loaders, digits, healthy, split


@healthy
def rate_falls_before_the_end() -> Arguments:
    stop = EarlyStopping("val_loss", patience=12)
    return patient(stop, lambda o: ReduceLROnPlateau(o, patience=5))


@healthy
def plateau_of_another_value() -> Arguments:
    """The loss may rise while the accuracy, which stops the fit, still does."""
    stop = EarlyStopping("val_acc", patience=5, mode="max")
    return patient(stop, lambda o: ReduceLROnPlateau(o, patience=8))


@healthy
def plateau_with_a_coarse_threshold() -> Arguments:
    """It takes slow improvements for a plateau, which early stopping counts as improvements."""
    stop = EarlyStopping("val_loss", patience=8)
    return patient(stop, lambda o: ReduceLROnPlateau(o, patience=8, threshold=0.05))


@healthy
def plateau_of_steps() -> Arguments:
    stop = EarlyStopping("val_loss", patience=3)
    return patient(stop, lambda o: ReduceLROnPlateau(o, patience=10), "step")


@healthy
def trial_that_neither_ends() -> Arguments:
    stop = EarlyStopping("val_loss", patience=8)
    return patient(stop, lambda o: ReduceLROnPlateau(o, patience=10), max_epochs=5)


@healthy
def patience_of_more_than_a_cycle() -> Arguments:
    stop = EarlyStopping("val_loss", patience=12)
    return patient(stop, lambda o: CosineAnnealingWarmRestarts(o, 10))


@healthy
def momentum_of_all_batches() -> Arguments:
    return Task(convolutions(None)), digit_loaders(16)


@healthy
def momentum_of_one_with_the_whole_split() -> Arguments:
    x, y = digits()
    return Task(convolutions(1.0)), split(x[:30], y[:30], batch_size=24)


@healthy
def momentum_of_nearly_one_with_large_batches() -> Arguments:
    """The statistics of 64 pictures are as good as an average, as was measured on the digits."""
    return Task(convolutions(0.99)), digit_loaders()


@healthy
def momentum_of_half() -> Arguments:
    return Task(convolutions(0.5)), digit_loaders()


@healthy
def momentum_that_falls_with_the_epochs() -> Arguments:
    class Falling(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            for part in pl_module.modules():
                if isinstance(part, nn.BatchNorm2d):
                    part.momentum = max(0.9 * 0.5**trainer.current_epoch, 0.01)

    module = Planned(adamw, convolutions(0.9), (Falling(),))
    return module, digit_loaders(16), trainer(max_epochs=20)


@healthy
def small_momentum_in_a_long_fit() -> Arguments:
    return shifted(0.01, trainer(max_epochs=50))


@healthy
def small_momentum_of_tuned_statistics() -> Arguments:
    """Statistics of a network that was trained before, which a short fit is to keep."""
    found: Any = shifted(0.001, trainer(max_epochs=10))
    module, data, plan = found
    norm = module.net[0]
    norm.running_mean.fill_(5.0)
    norm.running_var.fill_(9.0)
    return module, data, plan
