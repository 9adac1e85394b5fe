"""S0, S2: gradient clipping of a recurrent network."""

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_practices.callbacks import ClippingAlgorithm, GradientClipping
from lightning_practices.optim import Optimizer
from lightning_practices.reproduce._data import digits
from lightning_practices.reproduce._fit import Classifier, test, train
from lightning_practices.reproduce._table import Column, Table

LABELS, WIDTH, PIXELS, CHANCE = 900, 64, 4, 20.0
RATES = (0.003, 0.01, 0.03, 0.1, 0.3)


class ByPieces(nn.Module):
    """A recurrent network of ReLUs that reads an image by four pixels at a time.

    Its recurrent weights begin as the identity (Q. V. Le and others, 2015).
    """

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(PIXELS, WIDTH, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(WIDTH, 10)
        nn.init.eye_(self.rnn.get_parameter("weight_hh_l0"))

    @override
    def forward(self, x: Tensor) -> Tensor:
        _, last = self.rnn(x.reshape(len(x), -1, PIXELS))
        logits: Tensor = self.head(last[0])
        return logits


def experiment(
    seed: int, algorithm: ClippingAlgorithm | None, value: float, lr: float, epochs: int = 20
) -> dict[str, float]:
    """Train the recurrent network; a run that learns nothing counts as failed."""
    data = digits(seed, LABELS)

    def make() -> Classifier:
        clipping = None if algorithm is None else GradientClipping(value, algorithm)
        return Classifier(ByPieces(), optimizer=Optimizer("sgd", lr=lr), gradient_clipping=clipping)

    model = train(make, data, seed, max_epochs=epochs, limit_val_batches=0)
    metrics = test(model, data)
    finite = all(bool(torch.isfinite(p).all()) for p in model.parameters())
    return {**metrics, "failed": 100.0 * (not finite or metrics["accuracy"] < CHANCE)}


TABLE = Table(
    name="clipping",
    title="Gradient clipping of a recurrent network",
    source="S0, S2 (R. Pascanu, T. Mikolov and Y. Bengio, 2013)",
    claim="clipping keeps training from exploding; by norm keeps the direction, by value doesn't",
    experiment=experiment,
    rows={
        "none": {"algorithm": None, "value": 0.0},
        "by value, 0.1": {"algorithm": "value", "value": 0.1},
        "by norm, 1": {"algorithm": "norm", "value": 1.0},
    },
    columns={f"{lr:g}": Column("accuracy", settings={"lr": lr}, x=lr) for lr in RATES},
    reference="none",
    tiny={"epochs": 1},
    axis="learning rate",
    log_axis=True,
)
