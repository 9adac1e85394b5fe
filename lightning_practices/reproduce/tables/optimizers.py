"""S0, S3, S4: the optimizers, each with its own learning rate."""

from collections.abc import Sequence

from lightning_practices.optim import Optimizer, OptimizerName
from lightning_practices.reproduce._data import Data, digits
from lightning_practices.reproduce._fit import Classifier, fit_at_best_rate
from lightning_practices.reproduce._networks import small_resnet
from lightning_practices.reproduce._table import Column, Table

LABELS = 500
OF_SGD = (0.003, 0.01, 0.03, 0.1, 0.3)
ADAPTIVE = (0.0001, 0.0003, 0.001, 0.003, 0.01)
RATES: dict[OptimizerName, Sequence[float]] = {
    "sgd": OF_SGD,
    "momentum": OF_SGD,
    "nesterov": OF_SGD,
    "adagrad": (0.001, 0.003, 0.01, 0.03, 0.1),
    "rmsprop": ADAPTIVE,
    "adam": ADAPTIVE,
    "adamw": ADAPTIVE,
}
LABEL = {
    "sgd": "SGD", "momentum": "momentum", "nesterov": "Nesterov", "adagrad": "Adagrad",
    "rmsprop": "RMSProp", "adam": "Adam", "adamw": "AdamW",
}  # fmt: skip


def experiment(
    seed: int, name: OptimizerName, epochs: int, rates: Sequence[float] | None = None
) -> dict[str, float]:
    """Train a small residual network by one optimizer."""

    def data_of(its_seed: int) -> Data:
        return digits(its_seed, LABELS)

    def make(rate: float) -> Classifier:
        return Classifier(small_resnet(10, widths=(8, 16)), optimizer=Optimizer(name, lr=rate))

    return fit_at_best_rate(make, data_of, seed, rates or RATES[name], max_epochs=epochs)


TABLE = Table(
    name="optimizers",
    title="Optimizers, each with its own best rate",
    source="S0, S3, S4",
    claim="S0 recommends Adam first, then RMSProp, then SGD with momentum",
    experiment=experiment,
    rows={LABEL[name]: {"name": name} for name in RATES},
    columns={
        "after 2 epochs": Column("accuracy", settings={"epochs": 2}),
        "after 20 epochs": Column("accuracy", settings={"epochs": 20}),
    },
    reference="SGD",
    tiny={"epochs": 1, "rates": (0.01,)},
)
