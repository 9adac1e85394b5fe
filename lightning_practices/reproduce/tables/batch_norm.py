"""S0, S3: batch norm allows larger learning rates."""

from torch import nn

from lightning_practices.init import initialize
from lightning_practices.nn import BatchNorm1d
from lightning_practices.optim import Optimizer
from lightning_practices.reproduce._data import digits
from lightning_practices.reproduce._fit import Classifier, test, train
from lightning_practices.reproduce._networks import perceptron
from lightning_practices.reproduce._table import Column, Table

LABELS, WIDTH, DEPTH = 500, 64, 6
RATES = (0.001, 0.01, 0.1, 0.3, 1.0, 3.0)


def experiment(seed: int, normalised: bool, lr: float, epochs: int = 15) -> dict[str, float]:
    """Train a deep network of narrow layers."""
    data = digits(seed, LABELS)

    def make() -> Classifier:
        norm = BatchNorm1d if normalised else None
        network = perceptron(64, WIDTH, DEPTH, 10, nn.ReLU, norm)
        initialize(network, "kaiming_normal")
        return Classifier(network, optimizer=Optimizer("sgd", lr=lr))

    return test(train(make, data, seed, max_epochs=epochs, limit_val_batches=0), data)


TABLE = Table(
    name="batch_norm",
    title="Batch norm and the learning rate",
    source="S0, S3 (S. Ioffe and C. Szegedy, 2015)",
    claim="with batch norm higher learning rates train, and training depends less on the weights",
    experiment=experiment,
    rows={"without": {"normalised": False}, "batch norm": {"normalised": True}},
    columns={f"{lr:g}": Column("accuracy", settings={"lr": lr}, x=lr) for lr in RATES},
    reference="without",
    tiny={"epochs": 1},
    axis="learning rate",
    log_axis=True,
)
