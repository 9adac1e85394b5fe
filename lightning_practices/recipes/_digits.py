"""Scikit-learn's handwritten digits, and a small convolutional network for them."""

from typing import Any

import torch
from torch import nn
from typing_extensions import override

from lightning_practices.recipes._classifier import Classifier
from lightning_practices.recipes._errors import sklearn_datasets
from lightning_practices.recipes._splits import TensorData

_WHITE = 16  # grey levels are from 0 to 16


class DigitsData(TensorData):
    """1797 handwritten digits of 8 x 8 pixels, which scikit-learn ships.

    A batch holds images ``(N, 1, 8, 8)`` with values from 0 to 1, and their classes.

    Args:
        batch_size: Images of a batch.
        **practices: See :class:`~lightning_practices.mixins.DataPractices`.

    Raises:
        MissingPackageError: If scikit-learn isn't installed.
    """

    def __init__(self, batch_size: int = 32, **practices: Any) -> None:
        super().__init__(batch_size, **practices)
        pixels, labels = sklearn_datasets("DigitsData").load_digits(return_X_y=True)
        images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / _WHITE
        self.use(images, torch.tensor(labels))


class DigitsClassifier(Classifier):
    """Two convolutions with batch norm, and a hidden layer with dropout.

    Args:
        width: Channels of the first convolution; the second has twice as many.
        dropout: The probability with which a hidden unit is dropped.
        num_classes: See :class:`Classifier`.
        label_smoothing: See :class:`Classifier`.
        **practices: See :class:`~lightning_practices.mixins.TrainingPractices`.
    """

    def __init__(
        self,
        width: int = 32,
        dropout: float = 0.3,
        num_classes: int | None = None,
        label_smoothing: float = 0.0,
        **practices: Any,
    ) -> None:
        super().__init__(num_classes, label_smoothing, **practices)
        self.save_hyperparameters()
        self.width, self.dropout = width, dropout

    @override
    def make_network(self, num_classes: int) -> nn.Module:
        wide = 2 * self.width
        return nn.Sequential(
            nn.Conv2d(1, self.width, 3, padding=1, bias=False),
            nn.BatchNorm2d(self.width), nn.ReLU(),
            nn.Conv2d(self.width, wide, 3, padding=1, bias=False),
            nn.BatchNorm2d(wide), nn.ReLU(),
            nn.AdaptiveMaxPool2d(2), nn.Flatten(),
            nn.Linear(4 * wide, wide), nn.ReLU(), nn.Dropout(self.dropout),
            nn.Linear(wide, num_classes),
        )  # fmt: skip
