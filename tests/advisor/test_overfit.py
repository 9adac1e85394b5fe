"""Whether a module can memorise one batch."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional

from lightning_practices.advisor import overfit_batch
from lightning_practices.mixins import TrainingPractices
from tests.advisor.programs import Task, diabetes_loaders, digit_loaders, mlp

pytestmark = pytest.mark.plain


class ZeroGradient(nn.Module):
    def forward(self, x: Any) -> Any:
        return x.round()  # whose gradient is 0


def test_a_healthy_module_memorises_a_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, (train, _) = Task(mlp(64, 64, 10)), digit_loaders()
    before = {name: x.clone() for name, x in module.state_dict().items()}
    state = torch.get_rng_state()
    found = overfit_batch(module, train, steps=150)
    assert found.is_memorised
    assert "can memorise" in str(found)
    assert len(found.losses) == 150
    assert found.prior is not None
    assert 0.9 * math.log(10) < found.prior <= math.log(10)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], x) for name, x in module.state_dict().items())
    assert found.plot(tmp_path / "one.png").stat().st_size > 1000


def test_a_broken_module_does_not() -> None:
    torch.manual_seed(0)
    first = mlp(64, 32, 10)
    net = nn.Sequential(first, ZeroGradient(), nn.Linear(10, 10, bias=False))
    nn.init.zeros_(first.get_parameter("3.weight"))  # so that what is rounded is 0
    found = overfit_batch(Task(net), digit_loaders()[0], steps=60)
    assert not found.is_memorised
    assert found.share == pytest.approx(1.0, abs=0.1)
    assert "gradients reach the first layer" in found.verdict


def test_dropout_is_off_and_batch_norm_trains() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.7),
        nn.Linear(64, 10),
    )  # fmt: skip
    module = Task(net, optimizer=lambda p: torch.optim.Adam(p, 5e-3))
    found = overfit_batch(module, digit_loaders()[0], steps=100)
    assert found.is_memorised
    assert net[4].p == 0.7
    assert torch.equal(net.get_buffer("2.num_batches_tracked"), torch.tensor(0))


def test_the_prior_is_that_of_the_batch() -> None:
    torch.manual_seed(0)
    module = Task(mlp(10, 1), functional.mse_loss)  # a linear model can't memorise it
    found = overfit_batch(module, diabetes_loaders()[0], steps=20)
    assert found.prior is not None
    assert 0.5 < found.prior < 2
    assert not found.is_memorised


def test_label_smoothing_has_a_floor() -> None:
    torch.manual_seed(0)
    smooth = Task(
        mlp(64, 128, 10),
        lambda x, y: functional.cross_entropy(x, y, label_smoothing=0.1),
        lambda p: torch.optim.Adam(p, 5e-3),
    )
    found = overfit_batch(smooth, digit_loaders()[0], steps=150)
    kept, other = 0.91, 0.01
    assert found.floor == pytest.approx(-kept * math.log(kept) - 9 * other * math.log(other))
    assert found.last > found.floor
    assert found.is_memorised


def test_all_practices_and_steps_that_lightning_does_not_count() -> None:
    class Practised(TrainingPractices, Task):
        pass

    class Uncounted(Task):
        def __init__(self, net: nn.Module) -> None:
            super().__init__(net)
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            optimizer: Any = self.optimizers(use_pl_optimizer=False)
            optimizer.zero_grad()
            self.manual_backward(functional.cross_entropy(self.net(batch[0]), batch[1]))
            optimizer.step()

    net = mlp(64, 32, 10)
    assert overfit_batch(Practised(net), digit_loaders(), steps=30).losses
    found = overfit_batch(Uncounted(net), digit_loaders(), steps=30)
    assert len(found.losses) == 30
    assert found.last < found.first


def test_no_loss_is_an_error() -> None:
    class Nothing(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None

    with pytest.raises(ValueError, match="no training step of Nothing gave a loss"):
        overfit_batch(Nothing(mlp(64, 10)), digit_loaders(), steps=10)


class Gan(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.critic = mlp(8, 32, 64), mlp(64, 32, 1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        real = batch[0].flatten(1)
        ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)
        bce = functional.binary_cross_entropy_with_logits
        fake = self.generator(torch.randn(len(real), 8))
        for optimizer, losses in zip(
            optimizers,
            (
                lambda: bce(self.critic(fake), ones),
                lambda: bce(self.critic(real), ones) + bce(self.critic(fake.detach()), zeros),
            ),
            strict=True,
        ):
            optimizer.zero_grad()
            self.manual_backward(losses())
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(net.parameters()) for net in (self.generator, self.critic)]


def test_losses_that_work_against_each_other_are_not_judged() -> None:
    torch.manual_seed(0)
    found = overfit_batch(Gan(), digit_loaders(), steps=60)
    assert found.objectives == 2
    assert not found.is_memorised
    assert "the sum of 2 losses" in found.verdict
    assert "next to nothing" not in found.verdict


def test_few_steps_are_not_judged() -> None:
    torch.manual_seed(0)
    found = overfit_batch(Task(mlp(64, 10), optimizer=slow), digit_loaders(), steps=20)
    assert "20 steps are few, so give steps=200" in found.verdict
    found = overfit_batch(Task(mlp(64, 10), optimizer=slow), digit_loaders(), steps=60)
    assert "it learns next to nothing" in found.verdict


def slow(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 1e-6)


def test_a_faulty_loss_points_to_advice() -> None:
    torch.manual_seed(0)
    negative = Task(mlp(64, 10), lambda x, y: -functional.cross_entropy(x, y))
    found = overfit_batch(negative, digit_loaders(), steps=60)
    assert not found.is_memorised
    assert "below 0, the least that this loss can be: look at its sign; advise" in found.verdict
    twice = Task(nn.Sequential(mlp(64, 32, 10), nn.Softmax(dim=1)))
    assert "advise(module, data) names" in overfit_batch(twice, digit_loaders(), steps=60).verdict
    with pytest.raises(IndexError) as raised:
        overfit_batch(
            Task(mlp(64, 10), lambda x, y: functional.nll_loss(x, y + 9)), digit_loaders()
        )
    assert "advise(module, data) says why" in raised.value.__notes__[0]


def test_the_progress_bar_and_its_switch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    module, data = Task(mlp(64, 10)), digit_loaders()
    overfit_batch(module, data, steps=10, enable_progress_bar=False)
    assert capsys.readouterr() == ("", "")
    overfit_batch(module, data, steps=10)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "one batch" in shown.err
    with pytest.raises(TypeError, match="enable_progress_bar"):
        overfit_batch(module, data, enable_progress_bar=None)  # type: ignore[arg-type]
