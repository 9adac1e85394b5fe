"""S3 against the tuning playbook: small batches, at equal epochs and at equal steps."""

from collections.abc import Sequence

from torch import nn

from lightning_practices.optim import Optimizer
from lightning_practices.reproduce._data import Data, digits
from lightning_practices.reproduce._fit import Classifier, fit_at_best_rate
from lightning_practices.reproduce._networks import perceptron
from lightning_practices.reproduce._table import Column, Table

LABELS, WIDTH, DEPTH = 900, 128, 2
SIZES = (8, 16, 32, 64, 128, 256)
RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def experiment(
    seed: int,
    batch_size: int,
    epochs: int | None = None,
    steps: int | None = None,
    rates: Sequence[float] = RATES,
) -> dict[str, float]:
    """Train with batches of one size, for a number of epochs or of steps."""

    def data_of(its_seed: int) -> Data:
        return digits(its_seed, LABELS, batch_size=batch_size)

    def make(rate: float) -> Classifier:
        network = perceptron(64, WIDTH, DEPTH, 10, nn.ReLU)
        return Classifier(network, optimizer=Optimizer("momentum", lr=rate))

    length = {"max_epochs": -1, "max_steps": steps} if epochs is None else {"max_epochs": epochs}
    return fit_at_best_rate(make, data_of, seed, rates, **length)


TABLE = Table(
    name="batch_size",
    title="The size of batches",
    source="S3 (D. Masters and C. Luschi, 2018); V. Godbole and others, 2023",
    claim="S3: 32 or less generalise best. The playbook: at equal steps and tuned rates the size "
    "doesn't matter for the result",
    experiment=experiment,
    rows={
        "20 epochs, one rate": {"epochs": 20, "rates": (0.03,)},
        "20 epochs, best rate": {"epochs": 20},
        "500 steps, best rate": {"steps": 500},
    },
    columns={
        str(size): Column("accuracy", settings={"batch_size": size}, x=size) for size in SIZES
    },
    reference="20 epochs, one rate",
    tiny={"epochs": 1, "rates": (0.03,)},
    axis="batch size",
    log_axis=True,
)
