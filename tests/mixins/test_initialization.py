"""Initialisation in a module's first fit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from typing_extensions import override

from lightning_practices.init import Initialization
from lightning_practices.mixins import FusedLayersMixin, InitMixin, TrainingPractices
from tests import processes
from tests.initialised import Plain, data, drawn, fit, same, trainer, whole

pytestmark = pytest.mark.plain


class Net(InitMixin, Plain):
    pass


def test_the_first_fit_begins_with_new_weights() -> None:
    module = Net()
    assert str(module.init_report).startswith("Nothing is initialised yet: weights are drawn when")
    expected = drawn(module)
    assert not same(expected, whole(module))
    fit(module)
    assert same(module.begins_with, expected)
    assert len(module.init_report.initialized) == 3
    trained = whole(module)
    fit(module)  # a second fit goes on
    assert same(module.begins_with, trained)


def test_no_other_run_changes_weights() -> None:
    module = Net()
    before = whole(module)
    for run in ("validate", "test", "predict"):
        getattr(trainer(), run)(module, data())
    assert same(whole(module), before)
    assert module.init_report.initialized == []
    fit(module)
    assert not same(module.begins_with, before)


class Practised(TrainingPractices, Plain):  # type: ignore[misc]
    pass


@pytest.mark.filterwarnings("ignore:.*watches 'val_loss'")  # which Plain doesn't log
def test_off_it_does_nothing() -> None:
    for module in (Net(initialization=None), Practised(early_stopping=None)):
        before = whole(module)
        fit(module)
        assert same(module.begins_with, before)
        assert str(module.init_report).startswith("The weights are left as they are: init")


def test_among_all_practices() -> None:
    module = Practised(initialization="auto", early_stopping=None, checkpoint=None)
    expected = drawn(module)
    fit(module)
    assert same(module.begins_with, expected)
    assert "BatchNorm1d" in repr(module.fused_layers.replaced)


@pytest.mark.parametrize("how", ["load_from_checkpoint", "load_state_dict", "ckpt_path"])
def test_loaded_weights_stay(how: str, tmp_path: Path) -> None:
    path = tmp_path / "net.ckpt"
    first = Net()
    fit(first).save_checkpoint(path)
    saved = whole(first)
    module = Net()
    if how == "load_from_checkpoint":
        module = Net.load_from_checkpoint(path)
    elif how == "load_state_dict":
        module.load_state_dict(saved)
    fit(module, ckpt_path=path if how == "ckpt_path" else None, max_epochs=2)
    assert same(module.begins_with, saved)


def test_only_the_new_modules() -> None:
    module = Net(initialization=Initialization("kaiming_uniform", modules=["head"]))
    before = whole(module)
    expected = drawn(module, "kaiming_uniform", modules=["head"])
    fit(module)
    assert same(module.begins_with, expected)
    changed = {name for name in before if not torch.equal(before[name], expected[name])}
    assert changed == {"head.weight", "head.bias"}


@pytest.mark.parametrize("sign", ["scale", "count"])
def test_a_trained_part_that_nobody_named_is_an_error(sign: str) -> None:
    module = Net()
    norm: Any = module.body[1]
    if sign == "scale":
        nn.init.normal_(norm.weight)
    else:
        norm.num_batches_tracked.fill_(3)
    before = whole(module)
    message = r"would overwrite weights of Net that have been trained, as the norms body\.1 show"
    with pytest.raises(ValueError, match=message):
        fit(module)
    assert same(whole(module), before)
    norm.requires_grad_(False)  # a frozen part stays, and is no sign
    module.body.requires_grad_(False)
    fit(module)
    assert torch.equal(module.begins_with["body.0.weight"], before["body.0.weight"])
    assert not torch.equal(module.begins_with["head.weight"], before["head.weight"])


def test_the_example_input_is_traced() -> None:
    module = Net()
    fit(module)
    read = {one.names[0]: one.activation for one in module.init_report.initialized}
    assert read["body.3.weight"] == "linear"  # the structure doesn't show tanh
    module = Net()
    module.example_input_array = torch.zeros(2, 4)
    fit(module)
    seen = {one.names[0]: one.activation for one in module.init_report.initialized}
    assert seen["body.3.weight"] == "tanh"


class Late(InitMixin, FusedLayersMixin, Plain):
    """Makes a layer in ``configure_model``, and runs fused layers."""

    def __init__(self) -> None:
        super().__init__()
        self.late: nn.Module | None = None

    @override
    def configure_model(self) -> None:
        if self.late is None:
            self.late = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        super().configure_model()

    @override
    def forward(self, x: Tensor) -> Tensor:
        assert self.late is not None
        return super().forward(self.late(x))


def test_layers_of_configure_model_and_fused_layers() -> None:
    module = Late()
    fit(module)
    assert {one.names[0] for one in module.init_report.initialized} == {
        "body.0.weight", "body.3.weight", "head.weight", "late.0.weight"
    }  # fmt: skip
    assert not module.begins_with["late.0.bias"].any()
    assert "BatchNorm1d" in repr(module.fused_layers.replaced)


def on_two_ranks(root: Path) -> dict[str, Tensor]:
    module = Net()
    torch.manual_seed(7 + torch.distributed.get_rank() if torch.distributed.is_initialized() else 7)
    done = trainer(devices=2, strategy="ddp", default_root_dir=root)
    done.fit(module, data(), data())
    assert not module.begins_with["head.bias"].any()
    return module.begins_with


def test_all_ranks_begin_alike_under_ddp(tmp_path: Path) -> None:
    first, second = processes.run(on_two_ranks, [(tmp_path,)] * 2)
    assert same(first, second)


class Sharded(InitMixin, Plain):
    @override
    def configure_model(self) -> None:
        if not isinstance(self.head.weight, DTensor):
            assert self.device_mesh is not None
            for layer in (self.body, self.head):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])
        super().configure_model()
        assert isinstance(self.head.weight, DTensor)


def sharded(root: Path, rank: int) -> dict[str, Tensor]:
    module = Sharded()
    torch.manual_seed(7 + rank)
    done = trainer(devices=2, strategy=ModelParallelStrategy(2, 1), default_root_dir=root)
    done.fit(module, data(), data())
    assert len(module.init_report.initialized) == 3
    with pytest.raises(TypeError, match=r"Net must override configure_model\(\)"):
        trainer(devices=2, strategy=ModelParallelStrategy(2, 1)).fit(Net(), data(), data())
    return module.begins_with


def test_all_ranks_begin_alike_under_model_parallel_strategy(tmp_path: Path) -> None:
    first, second = processes.run(sharded, [(tmp_path, 0), (tmp_path, 1)])
    assert same(first, second)
    assert not first["head.bias"].any()
    bound = 5 * (2 / 7) ** 0.5
    assert 0 < first["head.weight"].abs().max() < bound


class Saving(InitMixin, Plain):
    def __init__(self, width: int = 3, **practices: Any) -> None:
        super().__init__(**practices)
        self.save_hyperparameters()


def test_checkpoints_hold_the_scheme_and_leave_out_the_object(tmp_path: Path) -> None:
    path = tmp_path / "net.ckpt"
    fit(Saving(initialization="orthogonal")).save_checkpoint(path)
    loaded = Saving.load_from_checkpoint(path, weights_only=True)
    assert repr(vars(loaded._initialize)["initialization"]) == "Initialization('orthogonal')"
    fit(Saving(initialization=Initialization(modules=["head"]))).save_checkpoint(path)
    with pytest.warns(
        UserWarning, match="leaves out initialization of Saving, as checkpoints hold no"
    ):
        Saving.load_from_checkpoint(path, weights_only=True)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="initialization='xavier': scheme has to be"):
        Net(initialization="xavier")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="initialization has to be of one of the types str, light"):
        Net(initialization=3)  # type: ignore[arg-type]
    assert repr(Initialization(modules=["head"])) == "Initialization('auto', modules=('head',))"
