"""S1, table I: inputs as they are, with the mean subtracted, and standardised."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from torch import nn

from lightning_practices.data import PreprocessingName
from lightning_practices.optim import Optimizer
from lightning_practices.reproduce._data import Data, digits
from lightning_practices.reproduce._fit import Classifier, fit_at_best_rate
from lightning_practices.reproduce._folder import Folder
from lightning_practices.reproduce._table import Column, Table

LABELS, GREY_LEVELS = 300, 255
SIZE, BATCH = 32, 32  # of images in a folder
RATES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def experiment(
    seed: int,
    preprocess: PreprocessingName | None,
    network: str,
    rates: Sequence[float],
    epochs: int = 40,
) -> dict[str, float]:
    """Train a convolutional network on grey levels from 0 to 255, as image files hold them."""

    def data_of(its_seed: int) -> Data:
        return digits(its_seed, LABELS, scale=GREY_LEVELS, preprocess=preprocess)

    def make(rate: float) -> Classifier:
        return Classifier(NETWORKS[network](), optimizer=Optimizer("momentum", lr=rate))

    return fit_at_best_rate(make, data_of, seed, rates, max_epochs=epochs)


def experiment_on_folder(
    seed: int,
    data: str,
    preprocess: PreprocessingName | None,
    network: str,
    rates: Sequence[float],
    epochs: int = 40,
    batch_size: int = BATCH,
) -> dict[str, float]:
    """Train the same networks on images of a folder, reduced to 32 x 32 pixels."""

    def data_of(its_seed: int) -> Folder:
        return Folder(
            data, its_seed, batch_size, image_size=SIZE, scale=GREY_LEVELS, preprocess=preprocess,
            num_workers=0,
        )  # fmt: skip

    classes = data_of(seed).num_classes

    def make(rate: float) -> Classifier:
        made = NETWORKS[network](3, SIZE, classes)
        return Classifier(made, classes, optimizer=Optimizer("momentum", lr=rate))

    return fit_at_best_rate(make, data_of, seed, rates, max_epochs=epochs)


def _one_layer(channels: int = 1, size: int = 8, classes: int = 10) -> nn.Sequential:
    pixels = ((size - 2) // 2) ** 2  # of a map at the end
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * pixels, classes),
    )  # fmt: skip


def _two_layers(
    activation: Callable[[], nn.Module], channels: int = 1, size: int = 8, classes: int = 10
) -> nn.Sequential:
    pixels = (size // 4) ** 2
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), activation(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), activation(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * pixels, classes),
    )  # fmt: skip


NETWORKS: dict[str, Callable[..., nn.Sequential]] = {
    "one layer, ReLU": _one_layer,
    "two layers, ReLU": partial(_two_layers, nn.ReLU),
    "two layers, tanh": partial(_two_layers, nn.Tanh),
}
LECTURE = (  # of its three networks, with 16 features
    {"none": 51.26, "mean subtraction": 55.01, "standardisation": 63.29},
    {"none": 43.54, "mean subtraction": 57.72, "standardisation": 64.75},
    {"none": 50.12, "mean subtraction": 61.76, "standardisation": 65.75},
)

_TABLE = Table(
    name="preprocessing",
    title="Inputs as they are, centred and standardised",
    source="S1, table I (speech features)",
    claim="standardisation gains 9 to 22 points over raw inputs, mean subtraction 1 to 14",
    experiment=experiment,
    rows={
        "none": {"preprocess": None},
        "mean subtraction": {"preprocess": "center"},
        "standardisation": {"preprocess": "standardize"},
    },
    columns={
        name: Column("accuracy", settings={"network": name, "rates": RATES}, lecture=figures)
        for name, figures in zip(NETWORKS, LECTURE, strict=True)
    },
    reference="none",
    tiny={"epochs": 1, "rates": (1e-3,)},
)
_ON_FOLDER = replace(
    _TABLE,
    title="Inputs as they are, centred and standardised, of a folder of images",
    experiment=experiment_on_folder,
    tiny={**_TABLE.tiny, "batch_size": 8},
)
TABLE = replace(_TABLE, on_folder=_ON_FOLDER)
