"""Copies of a module's state: what memory they take, and what they can give back."""

import copy
import pickle
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from typing_extensions import override

from lightning_practices.callbacks import EarlyStopping
from lightning_practices.callbacks._trainer.kept_state import KeptState
from tests.callbacks.scripted import DIP, FILTERS, WEIGHTS, Scripted, fit, same, saves, state_of

pytestmark = FILTERS


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))


def test_the_memory_is_allocated_once() -> None:
    module = net()
    kept = KeptState.of(module.state_dict())
    places = {name: value.data_ptr() for name, value in kept.values.items()}
    for _ in range(3):
        module(torch.randn(2, 2, 5, 5))
        with torch.no_grad():
            for p in module.parameters():
                p.add_(1)
        assert not kept.equals(module.state_dict())
        kept.copy_(module.state_dict())
        assert kept.equals(module.state_dict())
    assert places == {name: value.data_ptr() for name, value in kept.values.items()}
    assert not any(value.requires_grad or value.is_pinned() for value in kept.values.values())
    shared = {value.data_ptr() for value in module.state_dict().values()}
    assert not shared & {*places.values()}


def test_it_comes_back_in_place() -> None:
    module = net().to(memory_format=torch.channels_last)
    kept = KeptState.of(module.state_dict())
    before = state_of(module)
    live = dict(module.state_dict())
    with torch.no_grad():
        for value in live.values():
            value.zero_()
    kept.load_into(module)
    assert same(before, module.state_dict())
    assert all(value.data_ptr() == live[k].data_ptr() for k, value in module.state_dict().items())


def test_other_types_and_shapes_take_other_memory() -> None:
    kept = KeptState.of({"a": torch.ones(2), "b": torch.ones(3)})
    first = kept.values["b"].data_ptr()
    kept.copy_({"a": torch.ones(2, dtype=torch.float64), "b": torch.zeros(3), "c": torch.ones(1)})
    assert kept.values["a"].dtype == torch.float64
    assert kept.values["b"].data_ptr() == first
    assert {*kept.values} == {"a", "b", "c"}
    kept.copy_({"a": torch.ones(4)})
    assert kept.values.keys() == {"a"}
    assert torch.equal(kept.values["a"], torch.ones(4))
    sparse = torch.eye(3).to_sparse()
    kept.copy_({"a": sparse})
    kept.copy_({"a": sparse * 2})
    assert torch.equal(kept.values["a"].to_dense(), 2 * torch.eye(3))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_of_the_copy_shares_nothing(again: Any) -> None:
    kept = KeptState.of({"a": torch.ones(2)})
    other = again(kept)
    kept.copy_({"a": torch.zeros(2)})
    assert torch.equal(other.values["a"], torch.ones(2))


def test_equal_by_what_and_where() -> None:
    kept = KeptState.of({"a": torch.ones(2), "b": torch.zeros(2)})
    assert kept.equals({"a": torch.ones(2), "b": torch.zeros(2)})
    assert not kept.equals({"a": torch.ones(2)})
    assert not kept.equals({"a": torch.ones(2), "b": torch.ones(2)})
    assert kept.equals({"a": torch.ones(2), "b": torch.ones(2)}, ["a"])
    assert not kept.equals({"a": torch.ones(2), "b": torch.ones(2)}, ["b"])
    assert not KeptState.of({"a": 1}).equals({"a": 1})  # nothing says whether objects are the same


# In a fit: states that are more than tensors, or grow.


class Growing(Scripted):
    """A table with a row more in each epoch, a buffer that is made late, and one that goes."""

    def __init__(self) -> None:
        super().__init__(DIP)
        self.register_buffer("table", torch.zeros(1))
        self.register_buffer("late", None)
        self.register_buffer("early", torch.full((2,), 7.0))
        self.note: dict[str, list[int]] = {"epochs": []}
        self.table: Tensor
        self.early: Tensor | None
        self.late: Tensor | None

    @override
    def on_validation_epoch_end(self) -> None:
        self.log("val_loss", self.value())

    @override
    def on_train_epoch_end(self) -> None:
        epoch = self.current_epoch
        self.table = torch.cat([self.table, torch.tensor([float(epoch)])])
        self.note["epochs"].append(epoch)
        if epoch >= 2:
            self.late, self.early = torch.ones(3), None

    @override
    def get_extra_state(self) -> dict[str, list[int]]:
        return self.note

    @override
    def set_extra_state(self, state: dict[str, list[int]]) -> None:
        self.note = state


def test_a_state_that_grows_and_has_objects(tmp_path: Any) -> None:
    module, stopping = Growing(), EarlyStopping("val_loss", patience=3)
    fit(module, stopping, saves(tmp_path), num_sanity_val_steps=0)
    assert torch.equal(module.table, torch.tensor([0.0, 0.0, 1.0]))
    assert module.early is not None
    assert torch.equal(module.early, torch.full((2,), 7.0))
    assert module.late is not None
    assert torch.equal(module.late, torch.ones(3))  # there was none: it stays
    assert module.note == {"epochs": [0, 1]}
    saved = torch.load(tmp_path / "step=16.ckpt", weights_only=True)
    (kept,) = saved[WEIGHTS].values()
    assert kept["best"]["_extra_state"] == {"epochs": [0, 1]}
    names = {name for name, _ in module.named_parameters()}
    assert all(torch.equal(kept["best"][name], module.state_dict()[name]) for name in names)


def test_other_parameters_are_another_module() -> None:
    module, stopping = Scripted(), EarlyStopping("val_loss", patience=3)
    fit(module, stopping, max_epochs=2)
    module.net[0] = nn.Linear(2, 3)
    with pytest.raises(MisconfigurationException, match="of other shapes than Scripted has now"):
        stopping.restore(module)


# On a GPU.


@pytest.mark.gpu
def test_a_gpus_state_is_copied_to_pinned_memory_before_later_writes(device: str) -> None:
    value = torch.zeros(2**26, device=device)
    kept = KeptState.of({"a": value})
    place = kept._values["a"].data_ptr()
    assert kept._values["a"].is_pinned()
    for _ in range(20):
        value.add_(1)  # queued before the copy
    kept.copy_({"a": value})
    for _ in range(20):
        value.add_(1)  # queued behind it
    assert torch.equal(kept.values["a"], torch.full((2**26,), 20.0))
    assert kept.values["a"].data_ptr() == place
    kept.copy_({"a": value})
    other = pickle.loads(pickle.dumps(kept))  # waits
    assert torch.equal(other.values["a"], torch.full((2**26,), 40.0))
    state = {"weight": torch.randn(3, 3, device=device)}
    module = nn.Linear(3, 3, bias=False, device=device)
    KeptState.of(state).load_into(module)
    assert torch.equal(module.weight, state["weight"])


@pytest.mark.gpu
def test_the_host_does_not_wait_for_the_copy(device: str) -> None:
    value = torch.zeros(2**26, device=device)
    kept = KeptState.of({"a": value})
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # about a second of the device's time
    kept.copy_({"a": value})
    (copied,) = kept._copied
    assert not copied.query()
    assert torch.equal(kept.values["a"], value.cpu())
