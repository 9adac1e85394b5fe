"""Whether a module can memorise one batch."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
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
