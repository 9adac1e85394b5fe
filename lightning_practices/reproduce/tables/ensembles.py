"""S1, S2: one network, several, snapshots of one fit, and Monte Carlo dropout."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from lightning_practices.callbacks import SnapshotEnsemble
from lightning_practices.ensembles import Ensemble, Vote, monte_carlo_dropout
from lightning_practices.nn import Dropout
from lightning_practices.optim import Optimizer
from lightning_practices.reproduce._data import Data, digits
from lightning_practices.reproduce._fit import Classifier, train
from lightning_practices.reproduce._table import Column, Table

LABELS, BATCH, WIDTH, DROPOUT = 200, 20, 128, 0.3
GROUPS = 3
MOST, SEEDS = 100, 1000  # networks of a group and of a run, so that no two share a seed
LEAST = 1e-6  # probability, since votes may give none


def experiment(
    seed: int,
    members: int = 1,
    vote: Vote = "soft",
    snapshots: bool = False,
    dropout: float = 0.0,
    passes: int | None = None,
    epochs: int = 40,
) -> dict[str, float]:
    """Train three groups of networks, and return means over the groups.

    Args:
        seed: Seed of the split and of all networks.
        members: Networks, or snapshots.
        vote: How the members are joined.
        snapshots: Whether the members are snapshots of one fit.
        dropout: Rate of dropout.
        passes: Passes with dropout at test time; without it, dropout is off there.
        epochs: Length of each fit.
    """
    data = digits(seed, LABELS, batch_size=BATCH)
    images, classes = data.test[:]
    groups = []
    for group in range(GROUPS):
        first = SEEDS * (1 + seed) + MOST * group
        if snapshots:
            callback = SnapshotEnsemble(members)
            model = _fitted(data, first, epochs, dropout, callbacks=[callback])
            networks = callback.members(model)
        else:
            networks = [_fitted(data, first + i, epochs, dropout) for i in range(members)]
        if passes is None:
            joint = Ensemble(networks, task="multiclass", vote=vote)(images)
        else:
            joint = monte_carlo_dropout(networks[0], images, task="multiclass", passes=passes).mean
        groups.append(joint)
    return _scores(torch.stack(groups), classes)


def _fitted(
    data: Data, seed: int, epochs: int, dropout: float, callbacks: Sequence[Callback] = ()
) -> Classifier:
    def make() -> Classifier:
        network = nn.Sequential(
            nn.Flatten(), nn.Linear(64, WIDTH), nn.ReLU(), Dropout(dropout),
            nn.Linear(WIDTH, WIDTH), nn.ReLU(), Dropout(dropout), nn.Linear(WIDTH, 10),
        )  # fmt: skip
        schedule: Any = None if callbacks else "cosine"  # the callback brings its own
        return Classifier(network, optimizer=Optimizer("momentum", lr=0.1), schedule=schedule)

    options = {"limit_val_batches": 0, "callbacks": [*callbacks]}
    return train(make, data, seed, max_epochs=epochs, **options).eval()


def _scores(groups: Tensor, classes: Tensor) -> dict[str, float]:
    """Return error, likelihood and the variance between groups of probabilities."""
    wrong = (groups.argmax(-1) != classes).float().mean()
    right = groups[:, torch.arange(len(classes)), classes]
    return {
        "error": 100 * float(wrong),
        "negative log likelihood": float(-right.clamp_min(LEAST).log().mean()),
        "variance": 1000 * float(groups.var(0).mean()),
    }


LECTURE = {"one network": 0.35, "7 networks": 0.27}

TABLE = Table(
    name="ensembles",
    title="One network and several",
    source="S1 (MNIST, 7 and 35 networks; D. Cireşan and others, 2011 and 2012), S0, S2",
    claim="7 networks have 0.27 % errors where one has 0.35 %; the variance of a mean of n is 1/n",
    experiment=experiment,
    rows={
        "one network": {},
        "3 networks": {"members": 3},
        "7 networks": {"members": 7},
        "7 networks, votes": {"members": 7, "vote": "hard"},
        "5 snapshots of one fit": {"snapshots": True, "members": 5},
        "dropout, off at test": {"dropout": DROPOUT},
        "dropout, 30 passes": {"dropout": DROPOUT, "passes": 30},
    },
    columns={
        "error": Column("error", lecture=LECTURE, more_is_better=False),
        "negative log likelihood": Column(
            "negative log likelihood", "nats", digits=3, more_is_better=False
        ),
        "variance of probabilities": Column("variance", "1/1000", digits=2, more_is_better=False),
    },
    reference="one network",
    tiny={"epochs": 2},
)
