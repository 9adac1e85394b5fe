"""S3, S4: L1, L2 and no penalty on few data, and the exact zeros of proximal L1."""

import torch

from lightning_practices.callbacks import Penalty
from lightning_practices.optim import Optimizer, decayed_weights
from lightning_practices.reproduce._data import digits
from lightning_practices.reproduce._fit import Classifier, test, train
from lightning_practices.reproduce._networks import perceptron
from lightning_practices.reproduce._table import Column, Table

LABELS, WIDTH = 100, 256


def experiment(
    seed: int, l1: float = 0.0, l2: float = 0.0, proximal: bool = False, epochs: int = 100
) -> dict[str, float]:
    """Train a network that is large for its data, and count its zero weights."""
    data = digits(seed, LABELS)

    def make() -> Classifier:
        penalty = Penalty(l1, l2, proximal=proximal) if l1 or l2 else None
        network = perceptron(64, WIDTH, 2, 10)
        return Classifier(network, optimizer=Optimizer("momentum", lr=0.03), penalty=penalty)

    model = train(make, data, seed, max_epochs=epochs, limit_val_batches=0)
    penalised = decayed_weights(model).values()
    weights = torch.cat([weight.detach().flatten() for weight in penalised])
    zeros = 100 * float((weights == 0).float().mean())
    return {**test(model, data), "zeros": zeros, "largest": float(weights.abs().max())}


TABLE = Table(
    name="penalties",
    title="Penalties of large weights",
    source="S3, S4",
    claim="L2 first; L1 makes weights zero, L2 makes them small",
    experiment=experiment,
    rows={
        "none": {},
        "L2, 0.01": {"l2": 0.01},
        "L2, 0.03": {"l2": 0.03},
        "L1, 0.001": {"l1": 0.001},
        "proximal L1, 0.001": {"l1": 0.001, "proximal": True},
        "proximal L1, 0.003": {"l1": 0.003, "proximal": True},
    },
    columns={
        "accuracy": Column("accuracy"),
        "loss": Column("loss", "nats", digits=3, more_is_better=False),
        "weights that are zero": Column("zeros"),
        "largest weight": Column("largest", "", digits=2, more_is_better=False),
    },
    reference="none",
    tiny={"epochs": 2},
)
