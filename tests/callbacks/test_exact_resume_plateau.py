"""The module's own ReduceLROnPlateau in a fit that is resumed, against one that was not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from typing_extensions import override

from tests.callbacks.resuming import Noisy, Rows, SaveAt, fit
from tests.callbacks.scripted import FILTERS, same

pytestmark = [
    *FILTERS,
    # The first steps, before any validation.
    pytest.mark.filterwarnings("ignore:ReduceLROnPlateau conditioned on metric val_loss"),
]


class Plateau(Noisy):
    """Its rate falls at each check, as no value is ten times better than another."""

    def __init__(self, interval: str, frequency: int) -> None:
        super().__init__()
        self.config = {"interval": interval, "frequency": frequency, "strict": False}
        self.rates: dict[int, float] = {}

    @override
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, patience=0, factor=0.5, threshold=10.0
        )
        config = {"scheduler": scheduler, "monitor": "val_loss", **self.config}
        return {"optimizer": optimizer, "lr_scheduler": config}

    @override
    def on_train_batch_end(self, *_: Any) -> None:
        self.rates[self.trainer.global_step] = self.trainer.optimizers[0].param_groups[0]["lr"]


def shuffled(rows: Rows) -> DataLoader[Any]:
    return DataLoader(rows, 4, shuffle=True)


@pytest.mark.parametrize(
    ("interval", "frequency", "hook", "step"),
    [
        ("epoch", 1, "on_train_batch_end", 4),
        ("epoch", 1, "on_train_batch_end", 6),
        ("epoch", 1, "on_validation_end", 4),
        ("epoch", 1, "on_train_epoch_end", 8),
        ("epoch", 2, "on_train_epoch_end", 4),
        ("epoch", 2, "on_train_epoch_end", 8),
        ("step", 1, "on_train_batch_end", 4),
        ("step", 1, "on_train_batch_end", 5),
        ("step", 1, "on_validation_end", 8),
        ("step", 1, "on_train_epoch_end", 8),
        ("step", 2, "on_train_batch_end", 6),
    ],
)
def test_it_makes_all_its_steps(
    tmp_path: Path, interval: str, frequency: int, hook: str, step: int
) -> None:
    modules = [Plateau(interval, frequency) for _ in range(2)]
    options: dict[str, Any] = {"val": True, "max_epochs": 4}
    path = tmp_path / "saved.ckpt"
    whole = fit(shuffled, SaveAt(path, step, hook), module=modules[0], **options)
    rest = fit(shuffled, resume=path, module=modules[1], **options)
    expected = {at: rate for at, rate in modules[0].rates.items() if at > step}
    assert len({*modules[0].rates.values()}) > 1
    assert modules[1].rates == expected
    assert same(rest.weights, whole.weights)
