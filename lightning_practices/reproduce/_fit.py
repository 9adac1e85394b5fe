"""One fit of a classifier, by the package's own mixins."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from lightning_practices.mixins import TrainingPractices
from lightning_practices.reproduce._data import Split

OFF: dict[str, Any] = {
    "schedule": None, "early_stopping": None, "gradient_clipping": None, "checkpoint": None,
    "exact_resume": None, "fuse_layers": None,
}  # fmt: skip


_OTHER_SEEDS = 1000  # of fits that only choose


class Classifier(TrainingPractices, LightningModule):
    """A network with a loss, whose accuracy is logged.

    Args:
        network: Returns the logits of a batch of images.
        classes: Number of classes.
        loss: Loss of logits and labels.
        **practices: See ``TrainingPractices``; all of them are off unless they are given.
    """

    def __init__(
        self, network: nn.Module, classes: int, loss: nn.Module | None = None, **practices: Any
    ) -> None:
        super().__init__(**{**OFF, **practices})
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
        logits = self(batch[0])
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]))

    @override
    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        logits = self(batch[0])
        self.accuracy(logits, batch[1])
        self.log("accuracy", self.accuracy)
        self.log("loss", nn.functional.cross_entropy(logits, batch[1]))


def fit(
    make: Callable[[], LightningModule],
    data: Split,
    seed: int,
    *,
    batch_size: int = 32,
    **trainer: Any,
) -> dict[str, float]:
    """Make a module, train it, and return the metrics that its ``test_step`` logs.

    Args:
        make: Makes the module, with weights of the seed.
        data: Data to train, validate and test on.
        seed: Seed of the weights, the order of batches and the random numbers in training.
        batch_size: Samples of a batch.
        **trainer: Arguments of the Trainer, such as ``max_epochs``.
    """
    seed_everything(seed, verbose=False)
    model = make()
    train, val, test = data.loaders(batch_size, seed)
    runner = Trainer(**{**_SILENT, **trainer})
    runner.fit(model, train, val)
    (metrics,) = runner.test(model, test, verbose=False)
    return dict(metrics)


def fit_at_best_rate(
    make: Callable[[float], LightningModule],
    data_of: Callable[[int], Split],
    seed: int,
    rates: Sequence[float],
    **options: Any,
) -> dict[str, float]:
    """Choose the learning rate with another seed, then fit with it as :func:`fit` does.

    Args:
        make: Makes the module with a learning rate.
        data_of: Makes the split of a seed.
        seed: Seed of the fit whose metrics are returned.
        rates: Learning rates to choose from: that with the lowest loss on validation data.
        **options: See :func:`fit`.

    Returns:
        The metrics, with the chosen learning rate as ``"rate"``.
    """
    other = seed + _OTHER_SEEDS
    trial = data_of(other)
    trial = replace(trial, test=trial.val)
    losses = {rate: fit(partial(make, rate), trial, other, **options)["loss"] for rate in rates}
    best = min(losses, key=lambda rate: (losses[rate] != losses[rate], losses[rate]))  # nan is last
    return {**fit(partial(make, best), data_of(seed), seed, **options), "rate": best}


def percent(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics with the accuracy, and the error beside it, in per cent."""
    accuracy = 100 * metrics["accuracy"]
    return {**metrics, "accuracy": accuracy, "error": 100 - accuracy}


_SILENT: dict[str, Any] = {
    "accelerator": "auto", "devices": 1, "logger": False, "enable_checkpointing": False,
    "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0,
}  # fmt: skip
