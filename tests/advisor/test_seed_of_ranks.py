"""The rule on the seed of all ranks, which the environment holds."""

import pytest
from lightning.pytorch import Trainer
from torch import nn

from lightning_practices.advisor import advise
from tests.advisor.programs import Task, digit_loaders

pytestmark = pytest.mark.plain


@pytest.mark.parametrize(("seed", "devices"), [("7", 2), ("7", 1), (None, 2)])
def test_one_seed_for_several_ranks_is_found(
    monkeypatch: pytest.MonkeyPatch, seed: str | None, devices: int
) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    if seed is not None:
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10)
    )
    trainer = Trainer(accelerator="cpu", devices=devices, strategy="ddp", logger=False)
    report = advise(Task(net), digit_loaders(), trainer, select=["LP635"])
    found = [one.modules for one in report]
    assert found == ([("net.3",)] if seed is not None and devices == 2 else [])
