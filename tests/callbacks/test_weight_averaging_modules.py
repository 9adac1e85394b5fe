"""Averaged weights of modules of all sorts, and in several fits."""

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from typing_extensions import override

from lightning_practices.callbacks import WeightAveraging
from tests.callbacks.averaging import VALIDATION, Loader, Net, alike, averaged, fit
from tests.callbacks.scripted import STEPS, At, fail, same, state_of, trainer_of

# Modules of all sorts.


class Odd(Net):
    """A tied weight, a frozen one, buffers, and later a new buffer and a new weight."""

    scale: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net.append(nn.Linear(2, 2))
        self.twin = nn.Linear(2, 2)
        self.twin.weight = self.get_parameter("net.2.weight")
        self.twin.requires_grad_(False)
        self.register_buffer("scale", torch.ones(2))
        self.register_buffer("count", torch.tensor(0))
        self.late: nn.Linear | None = None
        self.grown: nn.Parameter | None = None

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.scale += 1
        self.count += 1
        if self.grown is not None:
            self.grown.data += 1
        return super().training_step(batch, batch_idx)

    @override
    def on_train_epoch_end(self) -> None:
        if self.current_epoch == 1:
            self.register_buffer("another", torch.zeros(3))
            self.grown = nn.Parameter(torch.zeros(()))
        if self.current_epoch:
            self.late = nn.Linear(1, self.current_epoch)
            self.made = self.late.weight.detach().clone()


def test_tied_and_new_weights_and_other_buffers() -> None:
    module = Odd()
    fit(module, WeightAveraging(decay=0.6, decay_warmup=False), max_epochs=4)
    final = state_of(module)
    assert torch.equal(final["scale"], torch.full((2,), 17.0))
    assert final["count"] == 16
    assert torch.equal(final["another"], torch.zeros(3))
    assert torch.equal(final["late.weight"], module.made)
    grown = torch.zeros(())  # from the start of epoch 2 on, validation in between
    for step in range(1, 9):
        grown = grown.lerp(torch.tensor(float(step)), 1 - 0.6)
    assert torch.equal(final["grown"], grown)
    assert torch.equal(final["twin.weight"], final["net.2.weight"])
    expected = module.trained[1]["net.2.weight"]
    for step in range(2, 17):
        expected = expected.lerp(module.trained[step]["net.2.weight"], 1 - 0.6)
    assert torch.equal(final["net.2.weight"], expected)


def test_a_weight_made_before_a_validation_in_mid_epoch() -> None:
    class Made(Net):
        @override
        def on_train_batch_end(self, *given: Any) -> None:
            if self.trainer.global_step == 6:
                self.made = nn.Parameter(torch.zeros(()))
            elif self.trainer.global_step > 6:
                self.made.data += 1

    module = Made(values=16 * [1.0], every=1)
    averaging = WeightAveraging(decay=0.6, decay_warmup=False)
    fit(module, averaging, val_check_interval=1, max_steps=8)
    # That of step 8 comes after the average.
    assert torch.equal(module.made, torch.tensor(0.0).lerp(torch.tensor(1.0), 1 - 0.6))


def test_a_compiled_module() -> None:
    module, plain = Net(), Net()
    module.net.compile(backend="eager")
    compiled: Any = torch.compile(module, backend="eager")
    trainer_of(WeightAveraging(decay=0.6), max_epochs=2).fit(compiled, Loader(), VALIDATION)
    fit(plain, WeightAveraging(decay=0.6), max_epochs=2)
    assert same(state_of(module), state_of(plain))


def test_layers_made_in_configure_model() -> None:
    class Late(Net):
        def __init__(self) -> None:
            super().__init__()
            self.made = 0

        @override
        def configure_model(self) -> None:
            self.made += 1
            if self.made == 1:
                torch.manual_seed(0)
                self.net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))

    module, plain = Late(), Net()
    fit(module, WeightAveraging(decay=0.6))
    fit(plain, WeightAveraging(decay=0.6))
    assert module.made == 1
    assert same(state_of(module), state_of(plain))


def test_swa_of_a_module_without_batch_norm_needs_no_forward() -> None:
    class Bare(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.weight.sum()

        @override
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1.0)

    module = Bare()
    trainer_of(WeightAveraging("swa", start=0), max_epochs=3).fit(module, Loader())
    assert module.weight.item() == -(4 + 8 + 12) / 3


# Several fits.


def test_a_second_fit_averages_anew_from_what_the_module_has() -> None:
    module, averaging = Net(values=9 * [1.0]), WeightAveraging(decay=0.6)
    trainer = fit(module, averaging)
    first = state_of(module)
    module.trained.clear()
    trainer.fit_loop.max_epochs = 6
    trainer.fit(module, Loader(), VALIDATION)
    assert averaging.averaged == 8
    assert alike(state_of(module), averaged([module.trained[s] for s in range(17, 25)], 0.6))
    plain = Net()
    plain.load_state_dict(first)
    other = trainer_of(max_epochs=2)
    other.fit(plain, Loader(), VALIDATION)
    assert all(same(module.trained[16 + s], plain.trained[s]) for s in range(1, 9))


def test_the_same_trainer_continues_the_averages_after_an_exception() -> None:
    module, averaging = Net(), WeightAveraging(decay=0.6)
    mistakes = At(6, fail)
    trainer = trainer_of(averaging, mistakes, max_epochs=3)
    with pytest.raises(ValueError, match="a user's mistake"):
        trainer.fit(module, Loader(), VALIDATION)
    assert same(state_of(module), module.trained[6])
    assert averaging.averaged == 6
    mistakes.step = -1
    trainer.fit(module, Loader(), VALIDATION)
    assert averaging.averaged == trainer.global_step == len(module.trained) > 6
    assert alike(state_of(module), averaged(module.trained.values(), 0.6))


@pytest.mark.parametrize("width", [2, 3])
def test_the_same_callback_in_a_fit_of_another_module(width: int) -> None:
    averaging = WeightAveraging(decay=0.6)
    first = Net()
    fit(first, averaging)
    kept = state_of(first)
    module = Net(width=width)
    fit(module, averaging, max_epochs=2)
    states = [module.trained[s] for s in range(1, 9)]
    assert alike(state_of(module), averaged(states, 0.6, Net(width=width)))
    assert same(state_of(first), kept)


def test_fast_dev_run() -> None:
    module, averaging = Net(), WeightAveraging(start=5, decay=0.6)
    trainer_of(averaging, fast_dev_run=True).fit(module, Loader(), VALIDATION)
    assert averaging.averaged == 0
    assert same(state_of(module), module.trained[1])
    module, averaging = Net(), WeightAveraging("swa")
    trainer_of(averaging, fast_dev_run=2).fit(module, Loader(), VALIDATION)
    assert averaging.averaged == 1
    assert STEPS > 2
