"""Tables: scikit-learn's breast cancer or a CSV file, and a multilayer perceptron for them."""

import csv
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_practices.recipes._classifier import Classifier
from lightning_practices.recipes._errors import DataError, sklearn_datasets
from lightning_practices.recipes._splits import TensorData


class TabularData(TensorData):
    """A table with a column of classes: a CSV file, or scikit-learn's breast cancer.

    The first line of the file has the names of the columns. The target may be any text, each of
    which is a class, in alphabetical order; all other columns are numbers. A batch holds the
    columns ``(N, columns)`` and the classes. Standardise them, with ``preprocess="standardize"``.

    Args:
        file: The CSV file. Default: breast cancer, 569 samples of 30 columns and two classes.
        target: The name of the column with the classes. Needed with a file.
        columns: The names of the columns that are used. Default: all but the target.
        batch_size: Samples of a batch.
        **practices: See :class:`~lightning_practices.mixins.DataPractices`.

    Raises:
        DataError: If the file or a column is missing, or a value is no number.
        MissingPackageError: If there is no file, and scikit-learn isn't installed.
    """

    def __init__(
        self,
        file: Path | None = None,
        target: str | None = None,
        columns: list[str] | None = None,
        batch_size: int = 32,
        **practices: Any,
    ) -> None:
        super().__init__(batch_size, **practices)
        if file is not None:
            inputs, labels = _read(Path(file), target, columns)
        elif target is not None or columns is not None:
            raise DataError("target and columns are of a CSV file: give file=... too")
        else:
            cancer = sklearn_datasets("TabularData").load_breast_cancer()
            inputs = torch.tensor(cancer.data, dtype=torch.float32)
            labels = torch.tensor(cancer.target)
        self.num_features = inputs.shape[1]
        self.use(inputs, labels)


class TabularClassifier(Classifier):
    """A multilayer perceptron, whose first layer takes as many inputs as the data has columns.

    Weights are drawn by the activation if ``initialization="auto"``. Alpha dropout keeps the mean
    and the variance of a SELU network's activations.

    Args:
        width: Units of each hidden layer.
        depth: Number of hidden layers.
        activation: The activation of the hidden layers.
        dropout: The rate of dropout before the last layer; of alpha dropout for ``"selu"``.
        num_features: Number of inputs. Default: that of the run's datamodule.
        num_classes: See :class:`Classifier`.
        label_smoothing: See :class:`Classifier`.
        **practices: See :class:`~lightning_practices.mixins.TrainingPractices`.
    """

    def __init__(
        self,
        width: int = 64,
        depth: int = 3,
        activation: Literal["selu", "relu"] = "selu",
        dropout: float = 0.1,
        num_features: int | None = None,
        num_classes: int | None = None,
        label_smoothing: float = 0.0,
        **practices: Any,
    ) -> None:
        super().__init__(num_classes, label_smoothing, **practices)
        self.save_hyperparameters()
        self.width, self.depth = width, depth
        self.activation, self.dropout = activation, dropout
        self.num_features = num_features

    @override
    def make_network(self, num_classes: int) -> nn.Module:
        self.num_features = self.of_data("num_features", self.num_features)
        is_selu = self.activation == "selu"
        layers: list[nn.Module] = []
        inputs = self.num_features
        for _ in range(self.depth):
            layers += [nn.Linear(inputs, self.width), nn.SELU() if is_selu else nn.ReLU()]
            inputs = self.width
        dropout = nn.AlphaDropout(self.dropout) if is_selu else nn.Dropout(self.dropout)
        return nn.Sequential(*layers, dropout, nn.Linear(inputs, num_classes))


def _read(file: Path, target: str | None, columns: Sequence[str] | None) -> tuple[Tensor, Tensor]:
    """Return the numbers and the classes of a CSV file."""
    if not file.is_file():
        raise DataError(f"there is no file {file}: expected is a CSV file with names of columns")
    with file.open(newline="", encoding="utf-8-sig") as opened:
        reader = csv.DictReader(opened)
        names = list(reader.fieldnames or [])
        rows = list(reader)
    if not rows:
        raise DataError(f"{file} has no rows: expected is a line of names, and then one per sample")
    if target is None:
        raise DataError(f"the target of {file} is unknown: give target=..., one of {names}")
    used = [name for name in names if name != target] if columns is None else list(columns)
    for name in (target, *used):
        if name not in names:
            near = get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {names}"
            raise DataError(f"{file} has no column {name!r}: {hint}")
    if target in used or not used:
        raise DataError(f"columns has to name columns of {file} other than the target {target!r}")
    inputs = [
        [_number(row[name], file, line, name) for name in used]
        for line, row in enumerate(rows, start=2)
    ]
    classes = {text: index for index, text in enumerate(sorted({row[target] for row in rows}))}
    return torch.tensor(inputs), torch.tensor([classes[row[target]] for row in rows])


def _number(text: str | None, file: Path, line: int, column: str) -> float:
    try:
        return float(text or "")
    except ValueError:
        raise DataError(
            f"line {line} of {file} has {text!r} in column {column!r}, which is no number: fill or"
            " encode it beforehand, or leave the column out of columns=..."
        ) from None
