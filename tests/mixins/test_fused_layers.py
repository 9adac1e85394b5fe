import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader
from torchvision.models.resnet import BasicBlock
from torchvision.ops import FrozenBatchNorm2d
from typing_extensions import override

from lightning_practices.mixins import FusedLayersMixin
from lightning_practices.nn import BatchNorm2d, Dropout, LayerNorm
from lightning_practices.surgery import Report, unfuse
from tests import processes

FUSED = "FusedLayers: 2 layers fused (1 LayerNorm, 1 Dropout)"
FOLDED = (
    "FusedLayers: 3 layers fused (3 BatchNorm2d), 2 folded with the operations behind them,"
    " 1 skipped: the module itself (not folded: no fused forward is known for its class, see"
    " surgery.register_block)"
)


class Kept(nn.Dropout):
    @override
    def forward(self, input: Tensor) -> Tensor:
        return input


class Plain(LightningModule):
    def __init__(self, hidden: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net: Any = self.build(hidden)

    def build(self, hidden: int) -> nn.Module:
        return nn.Sequential(
            nn.Linear(4, hidden), nn.LayerNorm(hidden), nn.Dropout(0.2), nn.Linear(hidden, 1)
        )

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = (self(batch) - batch.sum(1, keepdim=True)).square().mean()
        return loss

    @override
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("loss", self.training_step(batch, batch_idx))

    test_step = validation_step

    @override
    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self(batch)  # type: ignore[no-any-return]

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Fused(FusedLayersMixin, Plain):
    pass


class Residual(Plain):
    """Has a residual network, and an activation of its own after the first norm."""

    @override
    def build(self, hidden: int) -> nn.Module:
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        return nn.Sequential(BasicBlock(4, 4), nn.Flatten(), nn.Linear(16, 1))

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.relu(self.norm(self.conv(x.view(-1, 1, 2, 2)))))  # type: ignore[no-any-return]


class FusedResidual(FusedLayersMixin, Residual):
    pass


def data() -> DataLoader[Tensor]:
    x: Any = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    return DataLoader(x, batch_size=4)


def trainer(root: Path, **kwargs: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(
        **{"accelerator": "cpu", "max_epochs": 2, "default_root_dir": root, **quiet, **kwargs}
    )


def fitted(module: Plain, root: Path, **kwargs: Any) -> Trainer:
    done = trainer(root, **kwargs)
    torch.manual_seed(5)
    done.fit(module, data(), data())
    return done


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list in which this test's reports will be."""
    said: list[str] = []
    monkeypatch.setattr("lightning_practices.callbacks._fused_layers.rank_zero_info", said.append)
    return said


def test_every_stage_runs_fused_layers_and_reports_once(
    tmp_path: Path, messages: list[str]
) -> None:
    module, x = Fused(), torch.randn(5, 4)
    assert module.fused_layers == Report()
    norm = module.net[1]
    run = trainer(tmp_path, enable_checkpointing=False)
    run.validate(module, data(), verbose=False)
    assert module.net[1] is norm
    assert [type(layer) for layer in module.net[1:3]] == [LayerNorm, Dropout]
    run.fit(module, data(), data())
    run.test(module, data(), verbose=False)
    predicted = run.predict(module, data())
    assert predicted is not None
    assert len(predicted) == 4
    fitted(module, tmp_path, enable_checkpointing=False)
    assert messages == [FUSED]
    assert [r.names for r in module.fused_layers.replaced] == [("net.1",), ("net.2",)]
    module.eval()
    expected = copy.deepcopy(module)
    unfuse(expected)
    assert torch.equal(module(x), expected(x))


def test_trains_as_the_plain_module_does(tmp_path: Path) -> None:
    start, trained = [], []
    for cls in (Plain, Fused):
        torch.manual_seed(0)
        module = cls().double()
        start.append(copy.deepcopy(module.state_dict()))
        fitted(module, tmp_path, precision="64-true", enable_checkpointing=False)
        trained.append(module.state_dict())
    for name, expected in trained[0].items():
        assert torch.equal(trained[1][name], expected)
        assert not torch.equal(start[1][name], expected)


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [
        (Fused, Plain), (Plain, Fused), (Fused, Fused),
        (FusedResidual, Residual), (Residual, FusedResidual),
    ],
)  # fmt: skip
def test_checkpoints_load_into_the_other(
    saved: type[Plain], loaded: type[Plain], tmp_path: Path, messages: list[str]
) -> None:
    module = saved(hidden=6)
    path = tmp_path / "saved.ckpt"
    fitted(module, tmp_path, enable_checkpointing=False).save_checkpoint(path)
    messages.clear()
    twin = loaded.load_from_checkpoint(path, weights_only=True).eval()
    module.eval()
    x = torch.randn(5, 4)
    assert torch.equal(twin(x), module(x))
    fused = issubclass(loaded, FusedLayersMixin)
    assert any(isinstance(m, (LayerNorm, BatchNorm2d)) for m in twin.modules()) == fused
    assert messages == [FOLDED if issubclass(loaded, Residual) else FUSED] * fused
    resumed = trainer(tmp_path, max_epochs=3, enable_checkpointing=False)
    resumed.fit(twin.train(), data(), data(), ckpt_path=path, weights_only=True)
    assert len(messages) == fused
    assert not torch.equal(twin.net[-1].weight, module.net[-1].weight)


class Late(Fused):
    """Makes its layers when it is told on which device and in which precision."""

    @override
    def build(self, hidden: int) -> Any:
        return None

    @override
    def configure_model(self) -> None:
        if self.net is None:
            self.net = Plain.build(self, 8)
        super().configure_model()


class LateBase(Plain):
    build = Late.build

    @override
    def configure_model(self) -> None:
        if self.net is None:
            self.net = Plain.build(self, 8)


class FusedLate(FusedLayersMixin, LateBase):
    pass


@pytest.mark.parametrize("cls", [Late, FusedLate])
def test_layers_made_in_configure_model_are_fused(
    cls: type[Plain], tmp_path: Path, messages: list[str]
) -> None:
    module = cls()
    run = fitted(module, tmp_path, precision="bf16-true")
    assert [type(layer) for layer in module.net[1:3]] == [LayerNorm, Dropout]
    assert module.net[1].weight.dtype == torch.bfloat16
    run.validate(module, data(), verbose=False)
    assert messages == [FUSED]


def test_later_layers_are_fused_and_added_to_the_report(
    tmp_path: Path, messages: list[str]
) -> None:
    module = Fused()
    run = fitted(module, tmp_path, enable_checkpointing=False)
    module.net.append(nn.Dropout(0.1))
    run.validate(module, data(), verbose=False)
    assert messages == [FUSED, "FusedLayers: 1 layer fused (1 Dropout)"]
    names = [r.names for r in module.fused_layers.replaced]
    assert names == [("net.1",), ("net.2",), ("net.4",)]


def test_message_says_what_was_skipped_and_why(messages: list[str]) -> None:
    module = Fused()
    module.again = module.net[1]
    module.first, module.second = Kept(), Kept()
    module.third = module.second
    module.configure_model()
    module.configure_model()
    why = "Kept overrides forward"
    assert messages == [f"{FUSED}, 2 skipped: first ({why}); second = third ({why})"]
    assert "net.1" in str(module.fused_layers)
    assert [s.names for s in module.fused_layers.skipped] == [("first",), ("second", "third")]
    assert module.fused_layers.replaced[0].names == ("net.1", "again")


def test_message_counts_many_skipped_layers_by_reason(messages: list[str]) -> None:
    module = Fused()
    module.kept = nn.ModuleList(Kept() for _ in range(50))
    module.configure_model()
    assert messages == [
        f"{FUSED}, 50 skipped: 50 (Kept overrides forward); print the report for the table"
    ]
    assert len(module.fused_layers.skipped) == 50


def test_module_without_such_layers_says_so(messages: list[str]) -> None:
    module = Fused()
    assert str(module.fused_layers).startswith("Nothing is fused yet: layers are fused when a run")
    module.net = nn.Linear(4, 1)
    module.configure_model()
    assert messages == ["FusedLayers: 0 layers fused"]
    assert str(module.fused_layers) == "Nothing to replace."


@pytest.mark.parametrize("compiled", ["net", "module"])
def test_compiled_in_one_graph(compiled: str, tmp_path: Path) -> None:
    module: Any = Fused()
    net = module.net
    if compiled == "net":
        module.net = torch.compile(net, backend="aot_eager", fullgraph=True)
        whole = module
    else:
        whole = torch.compile(module, backend="eager")
    fitted(whole, tmp_path, enable_checkpointing=False)
    assert [type(layer) for layer in net[1:3]] == [LayerNorm, Dropout]
    assert len(module.fused_layers.replaced) == 2
    x = torch.randn(5, 4)
    plain = Plain().eval()
    plain.net.load_state_dict(net.state_dict())
    assert torch.allclose(whole.eval()(x), plain(x), rtol=1e-6)
    torch.compiler.reset()


# It warns about any configure_model; this one makes no sharded layers.
@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback with a model that")
def test_weight_averaging_copies_fused_layers(tmp_path: Path, messages: list[str]) -> None:
    averaging = EMAWeightAveraging(decay=0.5)
    module = Fused()
    fitted(module, tmp_path, callbacks=[averaging], enable_checkpointing=False)
    assert messages == [FUSED]
    average: Any = averaging._average_model
    assert type(average.module.net[1]) is LayerNorm
    assert torch.equal(average.module.net[1].weight, module.net[1].weight)  # given back at the end


# torch and Lightning deprecate TorchScript, each in its own words.
@pytest.mark.filterwarnings("ignore:.*(torch.jit|to_torchscript)")
def test_restored_module_can_be_scripted(tmp_path: Path) -> None:
    module = Fused()
    fitted(module, tmp_path, enable_checkpointing=False)
    unfuse(module)
    module.eval()
    x = torch.randn(5, 4)
    assert torch.equal(module.to_torchscript()(x), module(x))  # type: ignore[operator]


def test_folded_network_trains_as_the_plain_one_does(tmp_path: Path, messages: list[str]) -> None:
    trained = []
    for cls in (Residual, FusedResidual):
        torch.manual_seed(0)
        module = cls().double()
        fitted(module, tmp_path, precision="64-true", enable_checkpointing=False)
        trained.append(module.state_dict())
    assert messages == [FOLDED]
    assert isinstance(module, FusedResidual)
    assert type(module) is FusedResidual
    for name, expected in trained[0].items():
        torch.testing.assert_close(trained[1][name], expected)


# It warns about any configure_model; this one makes no sharded layers.
@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback with a model that")
def test_weight_averaging_copies_folded_blocks(tmp_path: Path) -> None:
    averaging, module = EMAWeightAveraging(decay=0.5), FusedResidual()
    fitted(module, tmp_path, callbacks=[averaging], enable_checkpointing=False)
    average: Any = averaging._average_model
    assert type(average.module.net[0]) is type(module.net[0]) is not BasicBlock


def test_folds_found_later_are_added_to_the_report(messages: list[str]) -> None:
    module = FusedResidual()
    module.configure_model()
    module.net.append(nn.Sequential(nn.BatchNorm1d(1), nn.SiLU()))
    module.configure_model()
    later = "FusedLayers: 1 layer fused (1 BatchNorm1d), 1 folded with the operations behind"
    assert messages[0] == FOLDED
    assert messages[1].startswith(later)
    assert [fold.names for fold in module.fused_layers.folded][-1] == ("net.3.0",)


def test_norms_without_a_fused_class_are_counted(messages: list[str]) -> None:
    module = Fused()
    module.net.extend([FrozenBatchNorm2d(1) for _ in range(3)])
    module.configure_model()
    assert messages == [f"{FUSED}, not served: 3 FrozenBatchNorm2d"]
    assert len(module.fused_layers.not_served) == 3


class Gathering(Fused):
    @override
    def on_train_end(self) -> None:
        weights = self.all_gather(self.net[1].weight.detach())
        assert isinstance(weights, Tensor)
        assert weights.shape == (2, 8)
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], torch.ones(8))  # as it began
        assert isinstance(self.net[1], LayerNorm)
        Path(self.trainer.default_root_dir, f"rank {self.global_rank}").touch()


def two_processes(root: Path) -> None:
    fitted(Gathering(), root, strategy="ddp", devices=2, enable_checkpointing=False)


def test_two_processes_report_once_and_train_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    processes.run(two_processes, [(tmp_path,)] * 2)
    output = capsys.readouterr().out
    assert output.count("FusedLayers:") == 1
    assert FUSED in output
    assert {path.name for path in tmp_path.iterdir()} == {"rank 0", "rank 1"}


class Sharded(Fused):
    @override
    def configure_model(self) -> None:
        assert self.device_mesh is not None
        mesh = self.device_mesh["data_parallel"]
        fully_shard(self.net[1], mesh=mesh)
        fully_shard(self.net, mesh=mesh)
        super().configure_model()


def model_parallel(root: Path) -> None:
    options: dict[str, Any] = {"devices": 1, "enable_checkpointing": False}
    sharded = Sharded()
    fitted(sharded, root, strategy=ModelParallelStrategy(1, 1), **options)
    assert isinstance(sharded.net[1], LayerNorm)
    weight: Any = sharded.net[1].weight
    assert not torch.equal(weight.full_tensor(), torch.ones(8))
    with pytest.raises(TypeError, match="Fused must override configure_model"):
        fitted(Fused(), root, strategy=ModelParallelStrategy(1, 1), **options)


def test_model_parallel_strategy_still_wants_its_hook(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    processes.run(model_parallel, [(tmp_path,)])
    assert FUSED in capsys.readouterr().out
