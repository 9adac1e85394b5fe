"""Sequences of vectors, and a recurrent network that classifies them."""

import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy
import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_practices.recipes._classifier import Classifier
from lightning_practices.recipes._errors import DataError, sklearn_datasets
from lightning_practices.recipes._splits import TensorData

_CELLS = {"gru": nn.GRU, "lstm": nn.LSTM}


class SequenceData(TensorData):
    """Sequences of one length with a class each: an NPZ file, or digits read row by row.

    A batch holds the sequences ``(N, steps, features)`` and the classes ``(N,)``.

    Args:
        file: A file of ``numpy.savez(file, x=..., y=...)`` with ``x`` of shape ``(N, steps,
            features)`` and whole numbers ``y`` of shape ``(N,)``. Default: scikit-learn's digits,
            whose 8 rows are the steps and whose 8 columns are the features.
        batch_size: Sequences of a batch.
        **practices: See :class:`~lightning_practices.mixins.DataPractices`.

    Raises:
        DataError: If the file is missing, or its arrays have other names or shapes.
        MissingPackageError: If there is no file, and scikit-learn isn't installed.
    """

    def __init__(self, file: Path | None = None, batch_size: int = 32, **practices: Any) -> None:
        super().__init__(batch_size, **practices)
        if file is None:
            digits = sklearn_datasets("SequenceData").load_digits()
            inputs = torch.tensor(digits.images, dtype=torch.float32)
            labels = torch.tensor(digits.target)
        else:
            inputs, labels = _read(Path(file))
        self.num_features = inputs.shape[2]
        self.use(inputs, labels)


class SequenceClassifier(Classifier):
    """A recurrent network, whose last hidden state is classified.

    Args:
        cell: The kind of recurrent layer.
        width: Units of each layer.
        depth: Number of layers.
        dropout: The rate of dropout between the layers and before the classifier.
        num_features: Features of each step. Default: that of the run's datamodule.
        num_classes: See :class:`Classifier`.
        label_smoothing: See :class:`Classifier`.
        **practices: See :class:`~lightning_practices.mixins.TrainingPractices`.
    """

    def __init__(
        self,
        cell: Literal["gru", "lstm"] = "gru",
        width: int = 64,
        depth: int = 2,
        dropout: float = 0.2,
        num_features: int | None = None,
        num_classes: int | None = None,
        label_smoothing: float = 0.0,
        **practices: Any,
    ) -> None:
        super().__init__(num_classes, label_smoothing, **practices)
        self.save_hyperparameters()
        self.cell, self.width, self.depth, self.dropout = cell, width, depth, dropout
        self.num_features = num_features

    @override
    def make_network(self, num_classes: int) -> nn.Module:
        self.num_features = self.of_data("num_features", self.num_features)
        between = self.dropout if self.depth > 1 else 0.0
        return _Recurrent(
            _CELLS[self.cell](
                self.num_features, self.width, self.depth, batch_first=True, dropout=between
            ),
            nn.Dropout(self.dropout),
            nn.Linear(self.width, num_classes),
        )


class _Recurrent(nn.Module):
    def __init__(self, layers: nn.RNNBase, dropout: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.layers, self.dropout, self.head = layers, dropout, head

    @override
    def forward(self, sequences: Tensor) -> Tensor:
        outputs, _ = self.layers(sequences)
        logits: Tensor = self.head(self.dropout(outputs[:, -1]))
        return logits


def _read(file: Path) -> tuple[Tensor, Tensor]:
    expected = (
        "expected is a file of numpy.savez(file, x=x, y=y) with x of shape (N, steps, features) and"
        " whole numbers y of shape (N,)"
    )
    if not file.is_file():
        raise DataError(f"there is no file {file}: {expected}")
    try:
        with numpy.load(file) as arrays:
            found = dict(arrays)
    except (ValueError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} is no NPZ file: {expected}") from error
    if not {"x", "y"} <= found.keys():
        raise DataError(f"{file} has the arrays {sorted(found)}: {expected}")
    x, y = found["x"], found["y"]
    if x.ndim != 3 or y.shape != x.shape[:1] or not numpy.issubdtype(y.dtype, numpy.integer):
        raise DataError(
            f"{file} has x of shape {x.shape} and y of shape {y.shape} and type {y.dtype}:"
            f" {expected}"
        )
    _, classes = numpy.unique(y, return_inverse=True)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(classes)
