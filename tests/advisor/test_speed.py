"""Hints for speed on a GPU."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_practices import surgery
from lightning_practices.advisor import advise
from lightning_practices.advisor._observation import Observation, Split
from lightning_practices.advisor.rules.speed_of_the_data import loader_for_a_gpu
from lightning_practices.advisor.rules.speed_of_the_model import channels_last, layers_to_fuse
from tests.advisor.programs import Task, cnn, digit_loaders

pytestmark = pytest.mark.plain


def seen_on_a_gpu(precision: str = "bf16-mixed", **options: Any) -> Observation:
    """Return an observation whose observing Trainer says that it is on a GPU."""
    device = SimpleNamespace(root_device=torch.device("cuda", 0))
    observer: Any = SimpleNamespace(strategy=device, precision=precision)
    return Observation(Task(cnn()), None, observer, **options)


def test_layers_to_fuse_are_those_that_fuse_changes_and_the_module_is_as_before() -> None:
    seen = seen_on_a_gpu()
    classes = [type(part) for part in seen.module.modules()]
    (found,) = layers_to_fuse.findings(seen)
    assert [type(part) for part in seen.module.modules()] == classes
    report = surgery.fuse(seen.module)
    changed = {one.names[0] for one in report.replaced} | {one.names[0] for one in report.folded}
    assert set(found.modules) == changed != set()
    assert layers_to_fuse.findings(seen) == []


def test_channels_last_names_the_convolutions_until_they_are() -> None:
    seen = seen_on_a_gpu()
    # One channel has the same layout in both formats.
    (found,) = channels_last.findings(seen)
    assert found.modules == ("net.3",)
    seen.module.to(memory_format=torch.channels_last)
    assert channels_last.findings(seen) == []
    assert channels_last.findings(seen_on_a_gpu("32-true")) == []


def test_loader_for_a_gpu() -> None:
    loader = digit_loaders()[0]
    (found,) = loader_for_a_gpu.findings(seen_on_a_gpu(train=Split(loader)))
    assert found.remedy == "DataLoader(..., pin_memory=True, num_workers=4)"
    loader.pin_memory, loader.num_workers = True, 2
    assert loader_for_a_gpu.findings(seen_on_a_gpu(train=Split(loader))) == []


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval")
def test_hints_on_a_gpu() -> None:
    net = nn.Sequential(*cnn()[:-1], nn.Linear(32, 40_000), nn.ReLU(), nn.Linear(40_000, 10))
    report = advise(Task(net), digit_loaders(), Trainer(accelerator="gpu", devices=1, logger=False))
    assert {"LP701", "LP703", "LP705"} <= {one.id for one in report.of("hint")}
