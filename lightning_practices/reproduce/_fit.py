"""One fit of a classifier, by the package's own mixins."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from lightning_practices.mixins import TrainingPractices

Module = TypeVar("Module", bound=LightningModule)

OTHER_SEEDS = 1000  # of fits that only choose
_MOST_FURTHER = 5  # rates beyond the given ones

_OFF: dict[str, Any] = {
    "schedule": None, "early_stopping": None, "gradient_clipping": None, "checkpoint": None,
    "exact_resume": None, "fuse_layers": None,
}  # fmt: skip
_SILENT: dict[str, Any] = {
    "accelerator": "auto", "devices": 1, "logger": False, "enable_checkpointing": False,
    "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0,
}  # fmt: skip


class Classifier(TrainingPractices, LightningModule):
    """A network with a loss, whose accuracy is logged.

    Args:
        network: Returns the logits of a batch of images.
        classes: Number of classes.
        loss: Loss of logits and labels.
        **practices: See ``TrainingPractices``; all of them are off unless they are given.
    """

    def __init__(
        self, network: nn.Module, classes: int = 10, loss: nn.Module | None = None, **practices: Any
    ) -> None:
        super().__init__(**{**_OFF, **practices})
        self.network = network
        self.loss = nn.CrossEntropyLoss() if loss is None else loss
        self.accuracy = MulticlassAccuracy(classes, average="micro")

    @override
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits

    @override
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.loss(self(batch[0]), batch[1])
        return loss

    @override
    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self._log(batch, "val_")

    @override
    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self._log(batch, "")

    def _log(self, batch: list[Tensor], prefix: str) -> None:
        logits = self(batch[0])
        self.accuracy(logits, batch[1])
        self.log(f"{prefix}accuracy", self.accuracy)
        self.log(f"{prefix}loss", nn.functional.cross_entropy(logits, batch[1]))


def train(
    make: Callable[[], Module], data: LightningDataModule, seed: int, **trainer: Any
) -> Module:
    """Make a module and train it.

    Args:
        make: Makes the module, with weights of the seed.
        data: Data to train on and to validate with.
        seed: Seed of the weights and of the random numbers in training.
        **trainer: Arguments of the Trainer, such as ``max_epochs``.
    """
    seed_everything(seed, verbose=False)
    model = make()
    Trainer(**{**_SILENT, **trainer}).fit(model, datamodule=data)
    return model


def test(model: LightningModule, data: LightningDataModule) -> dict[str, float]:
    """Return the metrics of the module's ``test_step``; accuracy and error are in per cent."""
    (metrics,) = Trainer(**_SILENT).test(model, datamodule=data, verbose=False)
    return _in_percent(metrics)


def fit_at_best_rate(
    make: Callable[[float], LightningModule],
    data_of: Callable[[int], LightningDataModule],
    seed: int,
    rates: Sequence[float],
    **trainer: Any,
) -> dict[str, float]:
    """Choose the learning rate with another seed, then fit with it.

    A best rate at an end of the given ones may not be the best: then further ones are tried beyond
    it, by the same factor, until the best lies between two others.

    Args:
        make: Makes the module with a learning rate.
        data_of: Makes the data of a seed.
        seed: Seed of the fit whose metrics are returned.
        rates: Learning rates to choose from: that with the lowest ``val_loss`` after the fit. A
            single one is taken as it is.
        **trainer: Arguments of the Trainer. Without ``limit_val_batches`` the fits don't validate.

    Returns:
        The metrics, with the chosen learning rate as ``"rate"``.
    """
    trainer = {"limit_val_batches": 0, **trainer}

    def val_loss(rate: float) -> float:
        other = seed + OTHER_SEEDS
        data = data_of(other)
        model = train(partial(make, rate), data, other, **trainer)
        (metrics,) = Trainer(**_SILENT).validate(model, datamodule=data, verbose=False)
        loss = metrics["val_loss"]
        return loss if loss == loss else float("inf")  # nan, of a fit that diverged, is worst

    best = _lowest(val_loss, rates)
    data = data_of(seed)
    model = train(partial(make, best), data, seed, **trainer)
    return {**test(model, data), "rate": best}


def _lowest(loss_of: Callable[[float], float], rates: Sequence[float]) -> float:
    """Return the rate of the lowest loss, beyond the given ones where the best is at an end."""
    if len(rates) == 1:
        return rates[0]
    losses = {rate: loss_of(rate) for rate in rates}
    for _ in range(_MOST_FURTHER):
        low, *_, high = ordered = sorted(losses)
        best = min(ordered, key=losses.__getitem__)
        if best not in (low, high):
            break
        inner = ordered[1] if best == low else ordered[-2]
        further = float(f"{best * best / inner:.3g}")
        losses[further] = loss_of(further)
    return min(losses, key=losses.__getitem__)


def _in_percent(metrics: Mapping[str, float]) -> dict[str, float]:
    if "accuracy" not in metrics:
        return dict(metrics)
    accuracy = 100 * metrics["accuracy"]
    return {**metrics, "accuracy": accuracy, "error": 100 - accuracy}
