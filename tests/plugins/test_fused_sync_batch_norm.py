"""The plugin in real fits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_practices.nn import BatchNorm1d, SyncBatchNorm
from lightning_practices.plugins import FusedSyncBatchNorm
from lightning_practices.surgery import fuse, unfuse
from tests import processes


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(
            nn.Conv2d(2, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.Flatten(),
            nn.Linear(16, 8),
            BatchNorm1d(8, activation="gelu", momentum=None),
            nn.Linear(8, 1),
        )
        self.seen: set[tuple[type, ...]] = set()

    def norms(self) -> tuple[type, ...]:
        return type(self.net[1]), type(self.net[4])

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.seen.add(self.norms())
        loss: Tensor = (self.net(batch) - batch.mean((1, 2, 3)).unsqueeze(1)).square().mean()
        return loss

    @override
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.training_step(batch, batch_idx)

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Failing(Net):
    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        super().training_step(batch, batch_idx)
        raise ArithmeticError("out of numbers")


BUILT = Net().norms()
SYNCHRONISED = SyncBatchNorm, SyncBatchNorm


def loaders(rank: int = 0, ranks: int = 1) -> tuple[DataLoader[Tensor], DataLoader[Tensor]]:
    """Return the training and the validation data of one of ``ranks``, in batches of 6 of all."""
    x: Any = torch.randn(24, 2, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    x[1::2] += 2  # the second of two: local statistics would not do
    x = x[rank::ranks]
    return DataLoader(x, batch_size=6 // ranks), DataLoader(x[:4], batch_size=6 // ranks)


def trainer(root: Path, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    exact = {"accelerator": "cpu", "precision": "64-true", "max_epochs": 2}
    return Trainer(**{"default_root_dir": root, "devices": 1, **exact, **quiet, **options})


def two_processes(root: Path) -> None:
    net = Net()
    saving = ModelCheckpoint(root, filename="saved")
    run = trainer(
        root,
        strategy="ddp",
        devices=2,
        use_distributed_sampler=False,  # it would shuffle
        callbacks=[saving],
        plugins=[FusedSyncBatchNorm()],
    )
    training, validation = loaders(run.global_rank, 2)
    run.fit(net, training, validation)
    assert net.seen == {SYNCHRONISED}
    assert net.norms() == BUILT
    torch.save(net.state_dict(), root / f"rank {run.global_rank}")
    net.seen.clear()
    run.validate(net, validation, verbose=False)
    assert net.seen == {BUILT}


def test_two_processes_train_as_one_does_on_the_joined_batch(tmp_path: Path) -> None:
    processes.run(two_processes, [(tmp_path,)] * 2)
    net = Net()
    start = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    alone = trainer(tmp_path, enable_checkpointing=False)
    alone.fit(net, *loaders())
    first, second = (torch.load(tmp_path / f"rank {rank}") for rank in range(2))
    saved = torch.load(tmp_path / "saved.ckpt")
    exact = net.state_dict()
    assert saved["state_dict"].keys() == first.keys() == exact.keys()
    for name, tensor in exact.items():
        torch.testing.assert_close(first[name], tensor, rtol=1e-10, atol=1e-10)
        assert torch.equal(first[name], second[name])
        assert torch.equal(first[name], saved["state_dict"][name])
        assert not torch.equal(first[name], start[name])
    Net().load_state_dict(saved["state_dict"], strict=True)


def failing(root: Path) -> None:
    options: dict[str, Any] = {"strategy": "ddp", "enable_checkpointing": False}
    net = Failing()
    with pytest.raises(ArithmeticError, match="out of numbers"):
        trainer(root, plugins=[FusedSyncBatchNorm()], **options).fit(net, *loaders())
    assert net.seen == {SYNCHRONISED}
    assert net.norms() == BUILT
    net.net[1] = BatchNormAct2d(4)
    with pytest.raises(TypeError, match=r"net.1 can't be synchronised: BatchNormAct2d"):
        trainer(root, plugins=[FusedSyncBatchNorm()], **options).fit(net, *loaders())
    assert net.norms() == (BatchNormAct2d, BUILT[1])


def test_an_exception_leaves_the_layers_as_they_were(tmp_path: Path) -> None:
    processes.run(failing, [(tmp_path,)])


def test_one_device_has_nobody_to_synchronise_with(tmp_path: Path) -> None:
    net = Net()
    run = trainer(tmp_path, plugins=[FusedSyncBatchNorm()], enable_checkpointing=False)
    run.fit(net, *loaders())
    assert net.seen == {BUILT}


def test_lightning_refuses_its_own_beside_it() -> None:
    with pytest.raises(MisconfigurationException, match=r"sync_batchnorm=True.*Choose one"):
        Trainer(accelerator="cpu", sync_batchnorm=True, plugins=[FusedSyncBatchNorm()])


def test_surgery_before_it_is_undone_after_it() -> None:
    plugin = FusedSyncBatchNorm("a group")
    net = nn.Sequential(nn.LayerNorm(3), nn.BatchNorm1d(3), BatchNorm1d(3, activation="relu"))
    built = [type(layer) for layer in net]
    fuse(net)
    fused = [type(layer) for layer in net]
    assert plugin.apply(net) is net
    assert [type(layer) for layer in net[1:]] == [SyncBatchNorm] * 2
    assert [layer.process_group for layer in net[1:]] == ["a group"] * 2
    assert plugin.revert(net) is net
    assert [type(layer) for layer in net] == fused
    unfuse(net)
    assert [type(layer) for layer in net] == built
