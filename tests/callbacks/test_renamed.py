"""Fits of modules that have renamed layers since the checkpoint was saved."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from lightning_practices.callbacks import (
    BestCheckpoint,
    EarlyStopping,
    ProgressiveUnfreezing,
    SnapshotEnsemble,
    WeightAveraging,
)
from tests import processes
from tests.callbacks.scripted import FILTERS, State, Stateful, same, saves, state_of, trainer_of

pytestmark = FILTERS

EPOCHS, STEPS = 5, 4
DIP = (3.0, 1.0, 2.0, 2.0, 2.0)  # best after 8 steps
ROWS = list(torch.randn(2 * STEPS, 3, generator=torch.Generator().manual_seed(1)))
FLAT = {"plateau": {"monitor": "val_loss", "patience": 1}}


class Net(LightningModule):
    """A trunk and a head, a frozen scale, and a buffer that isn't averaged."""

    trunk_name = "body"

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.add_module(self.trunk_name, self.make_trunk())
        self.head = nn.Linear(4, 1)
        self.scale = nn.Parameter(torch.tensor(2.0), requires_grad=False)
        self.register_buffer("count", torch.zeros(1))

    def make_trunk(self) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))

    @override
    def forward(self, rows: Tensor) -> Tensor:
        self.count: Tensor
        self.count += self.training
        hidden: Tensor = self.get_submodule(self.trunk_name)(rows).tanh()
        return self.head(hidden) * self.scale  # type: ignore[no-any-return]

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = (self(batch) - batch.sum(1, keepdim=True)).square().mean()
        return loss + 1e-6 * torch.rand(())  # the random states of a fit count too

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        value = DIP[max(self.trainer.global_step // STEPS - 1, 0)]
        self.log("val_loss", -1e9 if self.trainer.sanity_checking else value)

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        pass

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["layout"] = 1

    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Renamed(Net):
    """Has the trunk under another name, and doesn't load earlier checkpoints."""

    trunk_name = "trunk"


def new_name(name: str) -> str:
    return name.replace("body.", "trunk.")


class InPlace(Renamed):
    """Renames entry by entry, and raises where an entry has its new name already."""

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        for name in ("0.weight", "0.bias", "1.weight", "1.bias"):
            state[f"trunk.{name}"] = state.pop(f"body.{name}")
        for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
            state[f"trunk.{name}"] = state.pop(f"body.{name}")
        assert state["count"] is not None
        assert state["scale"] is not None


class Replaced(Renamed):
    """Empties the old dict, and makes another."""

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {new_name(name): state.pop(name) for name in list(state)}


class ByVersion(Renamed):
    """Asks another entry of the checkpoint whether to rename."""

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint["layout"] == 1:
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {new_name(name): value for name, value in state.items()}


class MadeAnew(InPlace):
    """Makes its layers in the shapes of the checkpoint, with random weights."""

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        assert len(checkpoint["state_dict"]["trunk.0.weight"]) == 4
        self.trunk = self.make_trunk()
        self.head.reset_parameters()


class Reordered(InPlace):
    """Changes optimizer states too, which must happen once."""

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        for state in checkpoint["optimizer_states"]:
            state["state"] = {place: state["state"].pop(place) for place in list(state["state"])}


HOOKS = [InPlace, Replaced, ByVersion, MadeAnew, Reordered]


def phases(trunk: str) -> list[dict[str, Any]]:
    return [
        {"blocks": ["head"], "until": FLAT, "restore_best": True},
        {"blocks": [trunk]},
    ]


def unfreezing(trunk: str) -> ProgressiveUnfreezing:
    return ProgressiveUnfreezing(phases(trunk), by=[["head"], [trunk, "scale"]])


HOLDERS: dict[str, Callable[[str], Sequence[Callback]]] = {
    "ema": lambda _: [WeightAveraging(decay=0.6)],
    "swa": lambda _: [WeightAveraging("swa", start=2, interval="step", frequency=3)],
    "early stopping": lambda _: [EarlyStopping("val_loss", patience=2)],
    "both": lambda _: [EarlyStopping("val_loss", patience=9), WeightAveraging(decay=0.6)],
    "unfreezing": lambda trunk: [unfreezing(trunk)],
    "snapshots": lambda _: [SnapshotEnsemble(5)],
}


def data() -> tuple[Stateful, Stateful]:
    return Stateful(ROWS, batch_size=2), Stateful(ROWS, batch_size=8)


def fit(
    module: LightningModule, *callbacks: Callback, resume: Path | None = None, **options: Any
) -> Trainer:
    trainer = trainer_of(*callbacks, **{"max_epochs": EPOCHS} | options)
    torch.manual_seed(1)
    trainer.fit(module, *data(), ckpt_path=resume, weights_only=True if resume else None)
    return trainer


def results(module: LightningModule, holders: Sequence[Callback]) -> list[State]:
    """Return the weights after a fit, those of snapshots too, by the new names."""
    states = [state_of(module)]
    for holder in holders:
        if isinstance(holder, SnapshotEnsemble):
            states += map(state_of, holder.members(module))
    return [{new_name(name): value for name, value in state.items()} for state in states]


def assert_same(actual: list[State], expected: list[State]) -> None:
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert same(one, other)


@pytest.fixture(scope="module", params=HOLDERS)
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, list[State]]:
    """Return a fit that nothing interrupts, with its checkpoints."""
    folder = tmp_path_factory.mktemp("fit")
    holders = HOLDERS[request.param]("body")
    module = Net()
    steps = saves(folder / "steps", every_n_train_steps=2)
    trainer = fit(module, *holders, steps, saves(folder / "epochs"))
    trainer.save_checkpoint(folder / "after.ckpt")
    return request.param, folder, results(module, holders)


# A checkpoint from before the validation of an epoch would leave that out, so 8 is one of epochs.
FILES = ("steps/step=6.ckpt", "epochs/step=8.ckpt", "steps/step=10.ckpt", "steps/step=14.ckpt")


@pytest.mark.parametrize("kind", HOOKS)
def test_a_resumed_fit_is_that_without_the_rename(
    whole: tuple[str, Path, list[State]], kind: type[Renamed]
) -> None:
    name, folder, expected = whole
    for file in (*FILES, "after.ckpt") if kind is InPlace else FILES[2:3]:
        holders = HOLDERS[name]("trunk")
        fit(module := kind(), *holders, resume=folder / file)
        assert_same(results(module, holders), expected)


def test_a_fit_that_goes_on_after_its_end(tmp_path: Path) -> None:
    trainer = fit(Net(), EarlyStopping("val_loss", patience=9), max_epochs=3)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    fit(expected := Net(), EarlyStopping("val_loss", patience=9), resume=tmp_path / "after.ckpt")
    fit(module := InPlace(), EarlyStopping("val_loss", patience=9), resume=tmp_path / "after.ckpt")
    assert_same(results(module, []), results(expected, []))


def test_the_weights_of_the_fit_itself_are_not_changed_by_the_hook(tmp_path: Path) -> None:
    callbacks = [WeightAveraging(decay=0.6), EarlyStopping("val_loss", patience=9)]
    fit(Net(), *callbacks, saves(tmp_path, every_n_train_steps=10))
    saved = torch.load(tmp_path / "step=10.ckpt", weights_only=True)["weight_averaging"]["current"]
    seen: list[State] = []

    class Look(MadeAnew):
        @override
        def on_train_batch_start(self, *_: Any) -> None:
            seen.append(state_of(self))

    callbacks = [EarlyStopping("val_loss", patience=9), WeightAveraging(decay=0.6)]
    fit(Look(), *callbacks, resume=tmp_path / "step=10.ckpt")
    assert same(seen[0], {new_name(name): value for name, value in saved.items()})


def test_the_rates_of_renamed_blocks_have_their_new_names(tmp_path: Path) -> None:
    fit(Net(), unfreezing("body"), saves(tmp_path, every_n_train_steps=14))
    trainer = fit(InPlace(), unfreezing("trunk"), resume=tmp_path / "step=14.ckpt")
    (optimizer,) = trainer.optimizers
    assert [group["name"] for group in optimizer.param_groups] == ["head", "trunk"]
    assert [group["block"] for group in optimizer.param_groups] == ["head", "trunk"]


def test_best_checkpoints_and_their_kept_weights(tmp_path: Path) -> None:
    best = BestCheckpoint("val_loss", dirpath=tmp_path)
    stopping = EarlyStopping("val_loss", patience=9)
    fit(module := Net(), best, stopping)
    again = EarlyStopping("val_loss", patience=9)
    trainer = trainer_of(BestCheckpoint("val_loss", dirpath=tmp_path), again)
    loaded = InPlace()
    trainer.test(loaded, data()[1], ckpt_path=best.best_model_path, verbose=False)
    assert_same(results(loaded, []), results(module, []))
    again.restore(loaded)
    assert_same(results(loaded, []), results(module, []))


# What can't be loaded.


class Marking(Renamed):
    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint["layout"] == 1:
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {new_name(name): value for name, value in state.items()}
            checkpoint["layout"] = 2


class Half(InPlace):
    """Renames the state_dict alone: of any other dict it doesn't rename the bias."""

    calls = 0

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.calls += 1
        if self.calls > 1:
            state = checkpoint["state_dict"]
            state["body.0.bias"] = state.pop("trunk.0.bias")


class Reshaped(InPlace):
    calls = 0

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.calls += 1
        if self.calls > 1:
            checkpoint["state_dict"]["head.weight"] = torch.zeros(1, 5)


NAMED = {
    "ema": "the (averages|weights under training) of WeightAveraging",
    "swa": "the (averages|weights under training) of WeightAveraging",
    "early stopping": r"the best weights of EarlyStopping\(monitor='val_loss'\)",
    "both": "the weights under training of WeightAveraging",
    "unfreezing": "the best weights of ProgressiveUnfreezing",
    "snapshots": "the snapshot of step 4 of SnapshotEnsemble",
}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            Half,
            "the names of {} in the checkpoint don't fit Half, missing trunk.0.bias and unexpected"
            r" body.0.bias: .*changes|{} .* don't fit Half, missing trunk.0.bias and unexpected"
            " body.0.bias: .*in the same way",
        ),
        (Reshaped, r"the shapes of {} .*Reshaped: head.weight: \(1, 5\) .*, \(1, 4\) now"),
        (
            Marking,
            r"{} .* missing trunk.0.bias, trunk.0.weight, .* and unexpected body.0.bias, .* and 2"
            " more: Marking.on_load_checkpoint gets each copy .* not by another entry",
        ),
    ],
)
def test_names_that_do_not_fit_are_an_error(
    whole: tuple[str, Path, list[State]], kind: type[Renamed], message: str
) -> None:
    name, folder, _ = whole
    expected = message.replace("{}", NAMED[name])
    with pytest.raises(MisconfigurationException, match=expected):
        fit(kind(), *HOLDERS[name]("trunk"), resume=folder / FILES[2])


def test_an_error_of_the_hook_says_what_it_was_called_for(
    whole: tuple[str, Path, list[State]],
) -> None:
    class Raises(InPlace):
        calls = 0

        @override
        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            super().on_load_checkpoint(checkpoint)
            self.calls += 1
            if self.calls > 1:
                raise KeyError("a user's mistake")

    name, folder, _ = whole
    with pytest.raises(KeyError, match="a user's mistake") as caught:
        fit(Raises(), *HOLDERS[name]("trunk"), resume=folder / FILES[2])
    assert "on_load_checkpoint of Raises was called for a copy" in caught.value.__notes__[0]


class Lax(Renamed):
    """Takes a checkpoint with other names, as it loads without strict names."""

    def __init__(self) -> None:
        super().__init__()
        self.strict_loading = False


@pytest.mark.filterwarnings("ignore:the names of the")
def test_without_strict_names_a_warning_names_what_is_left_out(
    whole: tuple[str, Path, list[State]],
) -> None:
    name, folder, _ = whole
    message = (
        f"{NAMED[name]} .* don't fit Lax, missing trunk.0.bias, .* and unexpected body.0.bias, .*"
        "missing entries are those that the module has now"
    )
    with pytest.warns(UserWarning, match=message):
        fit(Lax(), *HOLDERS[name]("trunk"), resume=folder / FILES[2])


class Partial(Net):
    """Saves no frozen parameter, and so doesn't load one."""

    def __init__(self) -> None:
        super().__init__()
        self.strict_loading = False

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        del checkpoint["state_dict"]["scale"]


@pytest.mark.parametrize("step", [8, 10])
@pytest.mark.filterwarnings("ignore:the names of .* missing scale. as strict_loading is False")
@pytest.mark.parametrize("name", ["early stopping", "ema", "both"])
def test_a_state_dict_without_frozen_parameters(name: str, step: int, tmp_path: Path) -> None:
    save = saves(tmp_path) if step == 8 else saves(tmp_path, every_n_train_steps=2)
    fit(expected := Partial(), *HOLDERS[name](""), save)
    fit(module := Partial(), *HOLDERS[name](""), resume=tmp_path / f"step={step}.ckpt")
    assert_same(results(module, []), results(expected, []))


class Shifting(Net):
    """Changes tensors in place, once for each copy."""

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"]["head.bias"].add_(1.0)


@pytest.mark.parametrize("step", [8, 16])
def test_a_hook_that_changes_tensors_changes_each_once(step: int, tmp_path: Path) -> None:
    stopping = EarlyStopping("val_loss", patience=9)
    fit(Net(), stopping, saves(tmp_path))
    best = torch.load(tmp_path / "step=8.ckpt", weights_only=True)["state_dict"]
    trainer = trainer_of(again := EarlyStopping("val_loss", patience=9))
    module = Shifting()
    trainer.validate(module, data()[1], ckpt_path=tmp_path / f"step={step}.ckpt", verbose=False)
    again.restore(module)
    assert same(state_of(module), best | {"head.bias": best["head.bias"] + 1.0})


# On two ranks.


def resume_on_two_ranks(folder: Path) -> list[State]:
    options: dict[str, Any] = {"devices": 2, "strategy": "ddp"}
    fit(Net(), *HOLDERS["both"](""), saves(folder), **options)
    resume = folder / "step=6.ckpt"
    fit(expected := Net(), *HOLDERS["both"](""), resume=resume, **options)
    fit(module := Replaced(), *HOLDERS["both"](""), resume=resume, **options)
    return results(expected, []) + results(module, [])


def test_on_two_ranks(tmp_path: Path) -> None:
    for expected, actual in processes.run(resume_on_two_ranks, [(tmp_path,)] * 2):
        assert same(actual, expected)
