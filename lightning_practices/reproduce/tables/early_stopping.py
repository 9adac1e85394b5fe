"""S0, S2, S3, S4: early stopping with the best weights, against the last weights."""

from torch import nn

from lightning_practices.callbacks import EarlyStopping
from lightning_practices.optim import Optimizer
from lightning_practices.reproduce._data import digits
from lightning_practices.reproduce._fit import Classifier, test, train
from lightning_practices.reproduce._networks import perceptron
from lightning_practices.reproduce._table import Column, Table

WIDTH, DEPTH, EPOCHS = 256, 3, 100


def experiment(
    seed: int, labels: int, patience: int | None, best: bool = True, epochs: int = EPOCHS
) -> dict[str, float]:
    """Train a large network on few labels."""
    data = digits(seed, labels)

    def make() -> Classifier:
        stopping = (
            None
            if patience is None
            else EarlyStopping("val_loss", patience=patience, restore_best_weights=best)
        )
        network = perceptron(64, WIDTH, DEPTH, 10, nn.ReLU)
        return Classifier(network, optimizer=Optimizer("adam", lr=1e-3), early_stopping=stopping)

    model = train(make, data, seed, max_epochs=epochs)
    length = model.trainer.current_epoch
    return {**test(model, data), "epochs": float(length)}


LONG = "all of 100 epochs"

COLUMNS = {
    f"{metric}, {labels} labels": Column(metric, unit, {"labels": labels}, {}, None, digits, more)
    for labels in (100, 900)
    for metric, unit, digits, more in (
        ("loss", "nats", 3, False), ("accuracy", "%", 1, True), ("epochs", "", 0, False),
    )
}  # fmt: skip

TABLE = Table(
    name="early_stopping",
    title="Early stopping",
    source="S0, S2, S3, S4 (L. Prechelt, 1998)",
    claim="stop when the validation error has not improved for some checks, and take the best "
    "weights back",
    experiment=experiment,
    rows={
        LONG: {"patience": None},
        "stopped, last weights": {"patience": 10, "best": False},
        "stopped, best weights": {"patience": 10},
    },
    columns=COLUMNS,
    reference=LONG,
    tiny={"epochs": 2},
)
