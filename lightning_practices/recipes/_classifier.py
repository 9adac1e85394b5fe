"""What the classifiers of the recipes share: the loss, the accuracy and the steps."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from lightning_practices.data import hard_targets
from lightning_practices.mixins import TrainingPractices


class Classifier(TrainingPractices, LightningModule):
    """Base of the classifiers: a subclass makes the network, in ``make_network``.

    ::

        class Mlp(Classifier):
            def __init__(self, inputs: int, num_classes: int | None = None, **practices):
                super().__init__(num_classes, **practices)
                self.save_hyperparameters()

            def make_network(self, num_classes: int) -> nn.Module:
                return nn.Linear(self.hparams["inputs"], num_classes)

    The network is made in ``configure_model``, when the data are known. It logs ``train_loss``,
    ``val_loss``, ``val_accuracy``, ``test_loss`` and ``test_accuracy``, and predicts probabilities.
    Its subclass calls ``save_hyperparameters``, so that ``load_from_checkpoint`` makes the same
    network.

    Args:
        num_classes: Number of classes. Default: that of the run's datamodule.
        label_smoothing: The share of the target that all classes get alike.
        **practices: See :class:`~lightning_practices.mixins.TrainingPractices`.
    """

    network: nn.Module

    def __init__(
        self, num_classes: int | None = None, label_smoothing: float = 0.0, **practices: Any
    ) -> None:
        super().__init__(**practices)
        self.num_classes = num_classes
        self.loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)

    def make_network(self, num_classes: int) -> nn.Module:
        """Return the network, whose outputs are logits ``(N, num_classes)``."""
        raise NotImplementedError

    @override
    def configure_model(self) -> None:
        if not hasattr(self, "network"):  # Lightning calls this hook in each fit and test
            self.num_classes = self.of_data("num_classes", self.num_classes)
            self.network = self.make_network(self.num_classes)
            self.accuracy = MulticlassAccuracy(self.num_classes, average="micro")
        super().configure_model()

    def of_data(self, name: str, given: int | None) -> int:
        """Return a size of the data: the given one, or that of the run's datamodule.

        Args:
            name: The name of the argument, and of the datamodule's attribute.
            given: The value of the argument; ``None`` if it was left out.

        Raises:
            ValueError: If neither is known, or they differ.
        """
        datamodule: Any = None if self._trainer is None else self.trainer.datamodule  # type: ignore[attr-defined]
        found: int | None = getattr(datamodule, name, None)
        size = found if given is None else given
        own = type(self).__name__
        if size is None:
            raise ValueError(
                f"{name} is unknown: give {own}({name}=...), or a datamodule with the attribute"
                f" {name}"
            )
        if found not in (None, size):
            raise ValueError(
                f"the data has {name}={found}, but {own} was given {size}: leave it out, or give"
                f" {found}"
            )
        self.hparams[name] = size  # for load_from_checkpoint
        return size

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.network(inputs)
        return logits

    @override
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        inputs, targets = batch
        loss: Tensor = self.loss(self(inputs), targets)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def _evaluate(self, batch: list[Tensor], stage: str) -> None:
        inputs, targets = batch
        logits = self(inputs)
        self.accuracy(logits, hard_targets(targets))
        self.log(f"{stage}_loss", self.loss(logits, targets), prog_bar=True, sync_dist=True)
        self.log(f"{stage}_accuracy", self.accuracy, prog_bar=True)

    @override
    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "val")

    @override
    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "test")

    @override
    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return torch.softmax(self(batch[0]), dim=1)
