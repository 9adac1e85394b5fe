"""S1, S4: initial weights of deep networks, and which of them train."""

from collections.abc import Callable
from typing import Any

from torch import nn

from lightning_practices.init import audit, initialize
from lightning_practices.optim import Optimizer
from lightning_practices.reproduce._data import digits
from lightning_practices.reproduce._fit import Classifier, test, train
from lightning_practices.reproduce._networks import perceptron
from lightning_practices.reproduce._table import Column, Table

LABELS, WIDTH = 500, 128
ACTIVATIONS = {"tanh": nn.Tanh, "ReLU": nn.ReLU}


def experiment(
    seed: int, scheme: str, activation: str, depth: int, epochs: int = 20
) -> dict[str, float]:
    """Train a deep network, and measure the last hidden layer before it."""
    data = digits(seed, LABELS)
    spread = 0.0

    def make() -> Classifier:
        nonlocal spread
        network = perceptron(64, WIDTH, depth, 10, ACTIVATIONS[activation])
        SCHEMES[scheme](network)
        spread = audit(network, data.train[:][0]).layers[-1].std
        return Classifier(network, optimizer=Optimizer("momentum", lr=0.01), gradient_clipping=1.0)

    model = train(make, data, seed, max_epochs=epochs, limit_val_batches=0)
    return {**test(model, data), "spread": spread}


def _normal(std: float) -> Callable[[nn.Module], Any]:
    def begin(network: nn.Module) -> None:
        for p in network.parameters():
            nn.init.normal_(p, 0, std) if p.dim() > 1 else nn.init.zeros_(p)

    return begin


SCHEMES: dict[str, Callable[[nn.Module], Any]] = {
    "N(0, 0.01²)": _normal(0.01),
    "N(0, 1)": _normal(1.0),
    "Xavier, 1/n": lambda network: initialize(network, "lecun_normal"),
    "He, 2/n": lambda network: initialize(network, "kaiming_normal"),
    "auto": initialize,
}

TABLE = Table(
    name="initialization",
    title="Initial weights and depth",
    source="S1, S4 (X. Glorot and Y. Bengio, 2010; K. He and others, 2015)",
    claim="N(0, 0.01²) dies out, N(0, 1) saturates tanh, Xavier suits tanh, He suits ReLU",
    experiment=experiment,
    rows={name: {"scheme": name} for name in SCHEMES},
    columns={
        f"{activation}, {depth} layers": Column(
            "accuracy", settings={"activation": activation, "depth": depth}
        )
        for activation in ACTIVATIONS
        for depth in (10, 30)
    },
    reference="N(0, 0.01²)",
    tiny={"epochs": 1},
)
