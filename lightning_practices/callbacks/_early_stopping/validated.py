"""The weights that were validated."""

from contextlib import AbstractContextManager, nullcontext

from lightning.pytorch import Trainer

from lightning_practices.callbacks._averaging import WeightAveraging
from lightning_practices.callbacks._trainer.others import callbacks_of


def as_validated(trainer: Trainer) -> AbstractContextManager[None]:
    """Return a context in which the module has the weights that were validated.

    The validated weights are the averages if ``WeightAveraging`` has any.
    """
    for averaging in callbacks_of(trainer, WeightAveraging):
        return averaging.averaged_weights(trainer.lightning_module)
    return nullcontext()
