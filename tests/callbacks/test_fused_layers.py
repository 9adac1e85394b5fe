"""The callback that fuses layers and measures them at the first batch of a fit."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_practices import nn as fused
from lightning_practices.callbacks import FusedLayers
from lightning_practices.mixins import FusedLayersMixin
from lightning_practices.surgery import measure_fused
from lightning_practices.surgery._fuse import measure
from lightning_practices.surgery._fuse.measure import Means
from tests import processes

pytestmark = pytest.mark.plain


class Net(LightningModule):
    """DropBlock gains on every CPU, and the norm of eight numbers on none."""

    def __init__(self) -> None:
        super().__init__()
        self.net: Any = nn.Sequential(
            nn.Conv2d(1, 4, 3), torchvision.ops.DropBlock2d(0.2, 3), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.LayerNorm(4), nn.Linear(4, 1),
        )  # fmt: skip
        self.seen: list[Tensor] = []

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        y: Tensor = self.net(batch)
        self.seen.append(y.detach())
        return y.square().mean()

    @override
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.net(batch)

    test_step = validation_step

    @override
    def predict_step(self, batch: Tensor, batch_idx: int) -> Any:
        return self.net(batch)

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def data() -> DataLoader[Tensor]:
    x: Any = torch.randn(8, 1, 40, 40, generator=torch.Generator().manual_seed(1))
    return DataLoader(x, batch_size=4)


def trainer(root: Path, **kwargs: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(
        **{
            "accelerator": "cpu", "max_epochs": 2, "default_root_dir": root,
            "enable_checkpointing": False, **quiet, **kwargs,
        }
    )  # fmt: skip


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the CPU time of this thread, on which other work of the machine has no effect."""
    monkeypatch.setattr(measure, "DEFAULT", Means(clock=time.thread_time))


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr("lightning_practices.callbacks._fused_layers.rank_zero_info", said.append)
    return said


def kinds(module: Net) -> list[type]:
    return [type(module.net[1]), type(module.net[4])]


def test_the_first_batch_is_measured(tmp_path: Path, messages: list[str]) -> None:
    callback, module = FusedLayers(measure=True), Net()
    trainer(tmp_path, callbacks=[callback]).fit(module, data(), data())
    assert kinds(module) == [fused.DropBlock2d, nn.LayerNorm]
    assert {layer.names for layer in callback.report.measured} == {("net.1",), ("net.4",)}
    assert [layer.names for layer in callback.report.replaced] == [("net.1",)]
    assert messages[0] == "FusedLayers: 2 layers fused (1 DropBlock2d, 1 LayerNorm)"
    assert messages[1].startswith(
        "FusedLayers: after the first batch 1 layer fused (1 DropBlock2d), 2 measured, 1 skipped:"
        " net.4 (no gain of 3 % beyond the noise: "
    )
    assert len(messages) == 2
    assert not any(module._forward_pre_hooks for module in module.modules())
    trainer(tmp_path, callbacks=[callback]).test(module, data())
    assert kinds(module) == [fused.DropBlock2d, nn.LayerNorm]  # what was restored stays so


def test_measuring_does_not_change_the_training(tmp_path: Path) -> None:
    results = []
    for measured in (False, True):
        torch.manual_seed(0)
        module = Net().double()
        module.net[1] = nn.Dropout(0.5)
        samples: Any = [sample.double() for batch in data() for sample in batch]
        batches = DataLoader(samples, batch_size=4)
        fit = trainer(tmp_path, callbacks=[FusedLayers(measure=measured)], precision="64-true")
        torch.manual_seed(5)
        fit.fit(module, batches, batches)
        results.append([*module.seen, *module.state_dict().values()])
    assert all(map(torch.equal, *results))


def test_on_a_cpu_nothing_is_measured_by_default(tmp_path: Path) -> None:
    callback, module = FusedLayers(), Net()
    trainer(tmp_path, callbacks=[callback]).fit(module, data(), data())
    assert kinds(module) == [fused.DropBlock2d, fused.LayerNorm]
    assert not callback.report.measured


def test_the_mixin_brings_the_callback(tmp_path: Path) -> None:
    class Measured(FusedLayersMixin, Net): ...

    module = Measured(fuse_layers=FusedLayers(measure=True))
    trainer(tmp_path).fit(module, data(), data())
    assert kinds(module) == [fused.DropBlock2d, nn.LayerNorm]
    assert len(module.fused_layers.measured) == 2
    off = Measured(fuse_layers=None)
    trainer(tmp_path).fit(off, data(), data())
    assert kinds(off) == [torchvision.ops.DropBlock2d, nn.LayerNorm]
    assert str(off.fused_layers) == "The layers are left as they are: fuse_layers is off."
    assert kinds(Measured(fuse_layers=False)) == kinds(off)


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_other_runs_fuse_too(tmp_path: Path, stage: str) -> None:
    callback, module = FusedLayers(measure=True), Net()
    getattr(trainer(tmp_path, callbacks=[callback]), stage)(module, data())
    assert kinds(module) == [fused.DropBlock2d, fused.LayerNorm]
    assert not callback.report.measured


def test_an_error_in_the_first_batch_leaves_no_hooks(tmp_path: Path) -> None:
    class Broken(Net):
        @override
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            super().training_step(batch, batch_idx)
            raise RuntimeError("broken")

    callback, module = FusedLayers(measure=True), Broken()
    with pytest.raises(RuntimeError, match="broken"):
        trainer(tmp_path, callbacks=[callback]).fit(module, data(), data())
    assert not any(module._forward_pre_hooks for module in module.modules())
    assert not callback.report.measured
    assert kinds(module) == [fused.DropBlock2d, fused.LayerNorm]


def test_a_skipped_first_batch_leaves_no_hooks(tmp_path: Path) -> None:
    class Skips(Net):
        @override
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1

    callback, module = FusedLayers(measure=True), Skips()
    trainer(tmp_path, callbacks=[callback]).fit(module, data(), data())
    assert not any(module._forward_pre_hooks for module in module.modules())
    assert not callback.report.measured


def test_deterministic_fits_measure_nothing_new(tmp_path: Path) -> None:
    callback, module = FusedLayers(measure=True), Net()
    module.net[2] = nn.AvgPool2d(38)
    try:
        trainer(tmp_path, callbacks=[callback], deterministic=True).fit(module, data(), data())
    finally:
        torch.use_deterministic_algorithms(False)
    assert kinds(module) == [fused.DropBlock2d, fused.LayerNorm]
    assert not callback.report.measured


@pytest.mark.parametrize("flag", [1, "yes", "auto"])
def test_measure_is_a_flag(flag: Any) -> None:
    with pytest.raises(TypeError, match="measure has to be True or False"):
        FusedLayers(measure=flag)


def fit_on_rank(root: Path) -> tuple[list[type], list[Any]]:
    measure.DEFAULT = Means(clock=time.thread_time)
    torch.set_num_threads(1)
    callback, module = FusedLayers(measure=True), Net()
    trainer(root, callbacks=[callback], strategy="ddp", devices=2).fit(module, data(), data())
    return kinds(module), callback.report.measured


def test_ranks_agree(tmp_path: Path) -> None:
    first, second = processes.run(fit_on_rank, [(tmp_path,)] * 2)
    assert first == second  # also in the times, which rank 0 has measured
    assert first[0] == [fused.DropBlock2d, nn.LayerNorm]


def test_a_loop_of_ones_own() -> None:
    from lightning_practices.surgery import fuse

    module = Net().net
    with measure_fused(module, fuse(module)) as report:
        module(next(iter(data()))).sum().backward()
        assert not report.measured
    assert len(report.measured) == 2
    assert type(module[4]) is nn.LayerNorm
    with measure_fused(nn.Linear(2, 2)) as empty:
        pass
    assert str(empty) == "Nothing is fused: call surgery.fuse(model) first."
    with pytest.raises(TypeError, match=r"model has to be a torch\.nn\.Module"), measure_fused(1):  # type: ignore[arg-type]
        pass
