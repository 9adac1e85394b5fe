"""S3: layer norm where batches are too small for batch norm."""

from collections.abc import Callable, Sequence

from torch import nn

from lightning_practices.nn import BatchNorm1d, LayerNorm
from lightning_practices.optim import Optimizer
from lightning_practices.reproduce._data import Data, digits
from lightning_practices.reproduce._fit import Classifier, fit_at_best_rate
from lightning_practices.reproduce._networks import perceptron
from lightning_practices.reproduce._table import Column, Table

LABELS, WIDTH, DEPTH = 256, 64, 4
SIZES = (2, 4, 8, 32, 128)
RATES = (0.003, 0.03, 0.3)

NORMS: dict[str, Callable[[int], nn.Module] | None] = {
    "none": None,
    "batch norm": BatchNorm1d,
    "layer norm": LayerNorm,
}


def experiment(
    seed: int, norm: str, batch_size: int, rates: Sequence[float] = RATES, epochs: int = 10
) -> dict[str, float]:
    """Train a network with one kind of norm on batches of one size."""

    def data_of(its_seed: int) -> Data:
        return digits(its_seed, LABELS, batch_size=batch_size)

    def make(rate: float) -> Classifier:
        network = perceptron(64, WIDTH, DEPTH, 10, nn.ReLU, NORMS[norm])
        return Classifier(network, optimizer=Optimizer("sgd", lr=rate))

    return fit_at_best_rate(make, data_of, seed, rates, max_epochs=epochs)


TABLE = Table(
    name="small_batches",
    title="Norms and the size of batches",
    source="S3 (J. L. Ba, J. R. Kiros and G. E. Hinton, 2016)",
    claim="layer norm suits small batches, where batch norm's statistics are too noisy",
    experiment=experiment,
    rows={name: {"norm": name} for name in NORMS},
    columns={
        str(size): Column("accuracy", settings={"batch_size": size}, x=size) for size in SIZES
    },
    reference="none",
    tiny={"epochs": 1, "rates": (0.03,)},
    axis="batch size",
    log_axis=True,
)
