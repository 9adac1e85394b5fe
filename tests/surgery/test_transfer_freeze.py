"""Frozen means frozen: weights, statistics, outputs; and undone as it was."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from lightning_practices.surgery import (
    blocks,
    freeze,
    fuse,
    recalibrate_batch_norm,
    unfreeze,
    unfuse,
)
from tests.surgery.test_blocks import Tied


def network() -> Any:
    return nn.Sequential(
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)),
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)),
        nn.Linear(4, 2),
    )


def inputs() -> Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(3)) * 3 + 1


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    now = model.state_dict()
    assert now.keys() == before.keys()
    return {name for name, value in before.items() if not torch.equal(value, now[name])}


def fit(model: Any, steps: int = 3) -> None:
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(steps):
        model.train()
        optimizer.zero_grad()
        model(inputs()).square().sum().backward()
        optimizer.step()


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


# Frozen.


def test_weights_and_statistics_stay_whatever_is_called() -> None:
    model = network()
    assert freeze(model, ["0"]) == ("0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias")
    before = state(model)
    fit(model)
    model[0].train()
    model[0][1].train(True)
    for module in model.modules():
        module.train()
    model(inputs())
    assert not any(name.startswith("0.") for name in changed(model, before))
    assert {name for name in before if name[0] in "12"} == changed(model, before)
    assert modes(model[0]) == dict.fromkeys(modes(model[0]), False)
    assert modes(model[1]) == dict.fromkeys(modes(model[1]), True)
    assert model.training


def test_outputs_are_those_of_evaluation() -> None:
    model = network()
    fit(model)
    freeze(model, ["0", "1"])
    model.train()
    assert torch.equal(model(inputs()), model.eval()(inputs()))


def test_gradients_left_over_are_not_applied() -> None:
    model = network()
    optimizer = SGD(model.parameters(), 0.1)
    model(inputs()).sum().backward()
    freeze(model, ["0"])
    before = state(model)
    optimizer.step()
    assert not any(name.startswith("0.") for name in changed(model, before))
    assert model[0][0].weight.grad is None
    assert model[1][0].weight.grad is not None


def test_a_block_and_parameters_by_name() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "c": nn.Linear(2, 2)})
    assert freeze(model, [blocks(model)[1], "c.bias"]) == ("b.weight", "b.bias", "c.bias")
    assert not model["b"].train().training
    assert model["c"].training
    assert model["c"].weight.requires_grad
    assert freeze(model, ["c.bias"]) == ()
    assert unfreeze(model, ["c"]) == ("c.bias",)
    assert freeze(model, []) == unfreeze(model, []) == ()


def test_a_whole_model_and_back() -> None:
    model = network()
    freeze(model, [""])
    unfreeze(model, [""])
    assert all(modes(model).values())
    freeze(model, [""])
    assert not any(p.requires_grad for p in model.parameters())
    model.train()
    assert not any(modes(model).values())
    unfreeze(model, [""])
    assert all(p.requires_grad for p in model.parameters())
    assert all(modes(model).values())


def test_names_of_a_compiled_model() -> None:
    model: Any = torch.compile(network(), backend="eager")
    before = state(model)
    model.train()
    model(inputs())
    assert {name for name in changed(model, before) if "running_mean" in name} == {
        "_orig_mod.0.1.running_mean", "_orig_mod.1.1.running_mean"
    }  # fmt: skip
    freeze(model, ["0"])
    freeze(model, ["_orig_mod.1"])
    before = state(model)
    model.train()
    fit(model)
    assert changed(model, before) == {"_orig_mod.2.weight", "_orig_mod.2.bias"}
    assert len(unfreeze(model, ["0", "1"])) == 8
    fit(model)
    assert len(changed(model, before)) == len(before)


def test_dropout_that_stays_on() -> None:
    model = network()
    freeze(model, ["0"], dropout=True)
    before = state(model)
    fit(model)
    assert not any(name.startswith("0.") for name in changed(model, before))
    assert modes(model[0]) == {"": True, "0": True, "1": False, "2": True}
    assert not torch.equal(model[0](inputs()), model[0](inputs()))
    model.eval()
    assert not any(modes(model).values())
    model.train()
    model[0][2].eval()  # by its user, and so it stays
    freeze(model, ["0"])
    freeze(model, ["0"], dropout=True)
    assert modes(model[0]) == {"": True, "0": True, "1": False, "2": False}
    unfreeze(model, ["0"])
    assert modes(model[0]) == {"": True, "0": True, "1": True, "2": False}


class Buffered(nn.Module):
    def __init__(self, buffer: Tensor) -> None:
        super().__init__()
        self.register_buffer("buffer", buffer)
        self.drop = nn.Dropout()


def test_what_has_statistics_is_what_has_floats() -> None:
    model = nn.Sequential(Buffered(torch.zeros(2)), Buffered(torch.arange(2)), nn.Linear(2, 2))
    freeze(model, ["0", "1"], dropout=True)
    expected = {"": True, "0": False, "0.drop": True, "1": True, "1.drop": True, "2": True}
    assert modes(model) == expected
    model.train()
    assert modes(model) == expected


def test_a_tied_weight_is_frozen_in_both_places() -> None:
    model = Tied()
    assert freeze(model, ["words"]) == ("words.weight",)
    assert not model.head.weight.requires_grad
    assert unfreeze(model, ["head"]) == ("words.weight",)
    assert model.words.weight.requires_grad
    assert unfreeze(model, ["words"]) == ()


# Undone.


def test_what_was_not_trainable_or_in_train_mode_stays_so() -> None:
    model = network()
    model[0][0].bias.requires_grad_(False)
    model[0][1].eval()
    before, flags = modes(model), [p.requires_grad for p in model.parameters()]
    attributes = [set(vars(module)) for module in model.modules()]
    freeze(model, ["0", "1"])
    freeze(model, ["0"])  # once more is no change
    model.train()
    assert "0.0.bias" not in unfreeze(model, ["0", "1"])
    assert modes(model) == before
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [set(vars(module)) for module in model.modules()] == attributes
    model.train()
    assert all(modes(model).values())


def test_parts_of_what_was_frozen() -> None:
    model = network()
    freeze(model, ["0", "1"])
    assert unfreeze(model, ["1.0", "1.1"]) == ("1.0.weight", "1.0.bias", "1.1.weight", "1.1.bias")
    model.train()
    assert modes(model[1]) == {"": False, "0": True, "1": True, "2": False}
    assert not any(modes(model[0]).values())
    assert unfreeze(model, ["0.0.weight"]) == ("0.0.weight",)
    assert unfreeze(model, ["0"]) == ("0.0.bias", "0.1.weight", "0.1.bias")


def test_a_model_in_eval_mode_stays_in_it() -> None:
    model = network().eval()
    freeze(model, ["0"])
    unfreeze(model, ["0"])
    assert not any(modes(model).values())
    freeze(model, ["0"])
    model.train()
    unfreeze(model, ["0"])
    assert all(modes(model).values())


class Keeps(nn.Sequential):
    """Keeps its own batch norm in eval mode, as people do."""

    @override
    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self[1].eval()
        return self


def test_a_module_with_its_own_train() -> None:
    model = nn.Sequential(Keeps(nn.Linear(4, 4), nn.BatchNorm1d(4)), nn.Linear(4, 2)).eval()
    freeze(model, ["0"])
    model.train()
    assert not any(modes(model[0]).values())
    unfreeze(model, ["0"])
    assert modes(model[0]) == {"": True, "0": True, "1": False}


def test_a_train_that_an_instance_has_is_given_back() -> None:
    model = network()
    calls: list[bool] = []
    model[0].train = calls.append
    freeze(model, ["0"])
    model.train()
    unfreeze(model, ["0"])
    assert model[0].train == calls.append
    assert calls[-1] is True


# Copies, and what else is done to models.


@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "save"])
def test_copies_are_frozen_by_themselves(copied: str) -> None:
    model = network()
    freeze(model, ["0"])
    if copied == "deepcopy":
        twin = copy.deepcopy(model)
    elif copied == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    unfreeze(model, ["0"])
    assert all(modes(model).values())
    before = state(twin)
    fit(twin)
    assert not any(name.startswith("0.") for name in changed(twin, before))
    assert len(unfreeze(twin, ["0"])) == 4
    assert all(modes(twin).values())


def test_state_and_classes_are_the_same() -> None:
    model = network()
    before, classes = state(model), [type(module) for module in model.modules()]
    freeze(model, ["0"])
    assert state(model).keys() == before.keys()
    assert [type(module) for module in model.modules()] == classes
    network().load_state_dict(model.state_dict())
    model.load_state_dict(before)


def test_parametrizations_and_accelerated_layers() -> None:
    model = network()
    fuse(model)
    parametrizations.weight_norm(model[0][0])
    freeze(model, ["0"])
    before = state(model)
    fit(model)
    assert not any(name.startswith("0.") for name in changed(model, before))
    parametrize.remove_parametrizations(model[0][0], "weight")
    assert not unfuse(model).skipped
    model.train()
    assert not model[0].training
    assert type(model[0][1]) is nn.BatchNorm1d
    unfreeze(model, ["0"])
    assert model[0][1].training


def test_frozen_statistics_are_not_recalibrated() -> None:
    model = network()
    freeze(model, ["0"])
    assert recalibrate_batch_norm(model, [inputs()]) == ("1.1",)


class Lit(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.seen: list[dict[str, bool]] = []

    @override
    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        self.seen.append(modes(self.net[0]))
        loss: Tensor = self.net(batch[0]).square().mean()
        return loss

    @override
    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.net(batch[0])

    @override
    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), 0.1)


# Lightning's advice, about the very modules that are to be in eval mode
@pytest.mark.filterwarnings("ignore:Found 4 module.s. in eval mode at the start of training")
def test_a_fit_with_validation_and_then_unfrozen() -> None:
    """Lightning evaluates by ``eval()``, and gives modes back without calling ``train()``."""
    module = Lit()
    freeze(module, ["net.0"])
    before = state(module)
    loader = DataLoader(TensorDataset(inputs()), batch_size=4)
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader, loader)
    assert not any(name.startswith("net.0.") for name in changed(module, before))
    assert module.seen == [dict.fromkeys(["", "0", "1", "2"], False)] * 4
    module.train()
    trainer.validate(module, loader, verbose=False)
    unfreeze(module, ["net.0"])
    assert all(modes(module).values())


# What is refused.


def test_names_that_are_not_there() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"called '0.3'; near it: "):
        freeze(model, ["0", "0.3"])
    assert all(p.requires_grad for p in model.parameters())
    assert all(modes(model).values())
    with pytest.raises(ValueError, match="called 'layer4'"):
        unfreeze(model, ["layer4"])
    for wrong in ("0", blocks(model)[0], 3):
        with pytest.raises(TypeError, match="where has to be a sequence of names or blocks"):
            freeze(model, wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="where has to hold names or blocks, but got 0"):
        freeze(model, [0])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"model has to be a torch.nn.Module"):
        freeze("model", ["0"])  # type: ignore[arg-type]
