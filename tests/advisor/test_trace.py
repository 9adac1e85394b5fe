"""What is measured of a tensor, which calls of a step are recorded, and hashes of samples."""

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from lightning_practices.advisor._observe import observe
from lightning_practices.advisor._samples import digests_of_rows
from lightning_practices.advisor._trace import Statistics
from lightning_practices.advisor._trace.calls import _BLOCK
from tests.advisor.programs import digit_loaders, mlp

pytestmark = [
    pytest.mark.plain,
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
]


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype).sub_(0.5)
    return x.masked_fill_(x < -1, 0).masked_fill_(x > 1.5, -0.0)  # zeros of both signs


@pytest.mark.parametrize(
    "x",
    [
        drawn(3),
        drawn(_BLOCK),
        drawn(_BLOCK + 1),
        drawn(3, _BLOCK, dtype=torch.float64) + 1e3,
        drawn(700, 900).T,
        drawn(2, 3, 500, 300).to(memory_format=torch.channels_last),
        drawn(900, 700).bfloat16(),
    ],
    ids=["few", "a block", "and one more", "float64", "transposed", "channels last", "bfloat16"],
)
def test_statistics_of_all_blocks_are_those_in_float64(x: Tensor) -> None:
    wide = x.double()
    found = Statistics.of(x)
    assert found.mean == pytest.approx(float(wide.mean()), abs=1e-6)
    assert found.std == pytest.approx(float(wide.std(correction=0)), rel=1e-6)
    assert (found.low, found.high) == (float(wide.min()), float(wide.max()))
    assert found.finite == 1
    assert found.zero == int((wide == 0).sum()) / x.numel()


def test_statistics_are_of_finite_elements() -> None:
    x = drawn(2 * _BLOCK)
    x[5], x[-1], x[_BLOCK] = float("nan"), float("inf"), -float("inf")
    assert Statistics.of(x)._replace(finite=1.0) == Statistics.of(x[x.isfinite()])
    assert Statistics.of(x).finite == 1 - 3 / len(x)


def test_statistics_of_equal_elements_have_no_spread() -> None:
    assert Statistics.of(torch.full((3 * _BLOCK,), 0.1)).std == 0


class Manual(LightningModule):
    """Trains two networks in turns on the same batch, and an average of the second."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.first, self.second = mlp(64, 8), nn.Linear(8, 10)
        self.average = AveragedModel(self.second)

    def loss(self, batch: Any) -> Tensor:
        return functional.cross_entropy(self.second(self.first(batch[0])), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        first, second = optimizers

        def closure() -> Tensor:
            first.zero_grad()
            loss = self.loss(batch)
            self.manual_backward(loss)
            return loss

        first.step(closure)
        second.zero_grad()
        self.manual_backward(self.loss(batch))
        second.step()
        self.average.update_parameters(self.second)

    def configure_optimizers(self) -> Any:
        options: dict[str, Any] = {"foreach": False}  # of calls that return each parameter
        return (
            torch.optim.SGD(self.first.parameters(), 0.1, **options),
            torch.optim.Adam(self.second.parameters(), **options),
        )


def test_a_parameter_that_an_optimizer_has_moved_is_still_the_parameter() -> None:
    (step, *_) = observe(Manual(), digit_loaders()[0], None).steps
    layers = [call.parameters for call in step.calls if call.is_layer]
    names = [["first.1.weight", "first.1.bias"], ["second.weight", "second.bias"]]
    assert layers == 2 * names
    assert step.stepped == {0, 1}
    assert len(step.values_of("first.1.weight")) == 1


def test_calls_of_optimizers_are_not_recorded_but_those_of_closures_and_averages_are() -> None:
    (step, *_) = observe(Manual(), digit_loaders()[0], None).steps
    names = [call.name for call in step.calls]
    assert names.count("cross_entropy") == 2
    assert not {"addcdiv", "lerp", "sqrt", "linalg_vector_norm"} & {*names}
    assert any(x.source == "parameter average.module.weight"
               for call in step.calls for x in call.inputs)  # fmt: skip


def test_hashes_of_rows_tell_their_values_kinds_and_shapes() -> None:
    x, y = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]]), torch.tensor([0, 1, 0])
    first, second, third = digests_of_rows((x, y))
    assert first == third != second
    assert digests_of_rows((x[1:2], y[1:2])) == [second]
    assert digests_of_rows((x, torch.tensor([0, 1, 1])))[2] != third
    assert digests_of_rows((x[1:2].view(torch.int32), y[1:2])) != [second]
    assert digests_of_rows((x[1:2, :, None], y[1:2])) != [second]
    assert digests_of_rows((x.to_sparse(), y)) == [first, second, third]
    assert len({*digests_of_rows(x.bfloat16())}) == 2
    assert digests_of_rows((x, y[:2])) == digests_of_rows("no tensor") == []
