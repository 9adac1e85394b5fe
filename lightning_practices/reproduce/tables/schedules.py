"""S0, S2: schedules of the learning rate against a constant one."""

from collections.abc import Sequence

from lightning_practices.optim import Optimizer
from lightning_practices.reproduce._data import Data, digits
from lightning_practices.reproduce._fit import Classifier, fit_at_best_rate
from lightning_practices.reproduce._networks import small_resnet
from lightning_practices.reproduce._table import Column, Table
from lightning_practices.schedules import LearningRateSchedule, LearningRateScheduleName

LABELS, BATCH = 500, 32
RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
NAMES: dict[str, LearningRateScheduleName | None] = {
    "constant": None,
    "power": "power",
    "exponential": "exponential",
    "plateau": "plateau",
    "one cycle": "one_cycle",
    "cosine": "cosine",
}


def experiment(
    seed: int,
    schedule: LearningRateScheduleName | None,
    epochs: int,
    rates: Sequence[float] = RATES,
) -> dict[str, float]:
    """Train a small residual network by SGD with momentum and one schedule."""

    def data_of(its_seed: int) -> Data:
        return digits(its_seed, LABELS, batch_size=BATCH)

    steps = epochs * (LABELS // BATCH)

    def make(rate: float) -> Classifier:
        return Classifier(
            small_resnet(10, widths=(8, 16)),
            optimizer=Optimizer("momentum", lr=rate),
            schedule=_schedule(schedule, steps, epochs),
        )

    return fit_at_best_rate(make, data_of, seed, rates, max_epochs=epochs, limit_val_batches=1.0)


def _schedule(
    name: LearningRateScheduleName | None, steps: int, epochs: int
) -> LearningRateSchedule | None:
    """Return a schedule whose own length fits to that of the fit."""
    if name is None:
        return None
    if name == "plateau":
        return LearningRateSchedule(name, patience=max(1, epochs // 8))
    if name == "power":  # the rate ends at a fifth
        return LearningRateSchedule(name, steps=steps // 4)
    if name == "exponential":  # the rate ends at a hundredth
        return LearningRateSchedule(name, steps=steps // 2)
    return LearningRateSchedule(name)


TABLE = Table(
    name="schedules",
    title="Schedules of the learning rate, each with its own best first rate",
    source="S0, S2 (A. Senior and others, 2013; L. N. Smith, 2018)",
    claim="S2: performance and exponential schedules do well, one cycle is faster",
    experiment=experiment,
    rows={label: {"schedule": name} for label, name in NAMES.items()},
    columns={
        "5 epochs": Column("accuracy", settings={"epochs": 5}),
        "20 epochs": Column("accuracy", settings={"epochs": 20}),
    },
    reference="constant",
    tiny={"epochs": 3, "rates": (0.03,)},
)
