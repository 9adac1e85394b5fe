"""Losses with smoothed labels: against their definition in float64, and plain in evaluation."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_practices.nn import LabelSmoothingBCEWithLogitsLoss, LabelSmoothingCrossEntropyLoss

pytestmark = pytest.mark.plain

N, K = 6, 5
ALPHAS = [0.0, 0.1, 1.0]


def tensors(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def labels(*shape: int) -> Tensor:
    return torch.randint(K, shape, generator=torch.Generator().manual_seed(1))


# Classes.


def by_hand(x: Tensor, y: Tensor, alpha: float, weight: Tensor | None = None) -> Tensor:
    """Return the loss of each sample by the equation; ``y`` are probabilities."""
    q = (1 - alpha) * y + alpha / y.shape[1]
    each = q * (x.exp() / x.exp().sum(1, keepdim=True)).log()
    if weight is not None:
        each = each * weight.view(-1, *[1] * (x.dim() - 2))
    return -each.sum(1)


def one_hot(y: Tensor) -> Tensor:
    return F.one_hot(y, K).movedim(-1, 1).double()


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(N,), (N, 3), (N, 2, 4)])
def test_labels(shape: tuple[int, ...], weighted: bool, alpha: float) -> None:
    x, y = tensors(N, K, *shape[1:]), labels(*shape)
    weight = torch.linspace(0.5, 2.0, K, dtype=torch.float64) if weighted else None
    loss = LabelSmoothingCrossEntropyLoss(weight, reduction="none", label_smoothing=alpha)
    torch.testing.assert_close(loss(x, y), by_hand(x, one_hot(y), alpha, weight))
    plain = nn.CrossEntropyLoss(weight, reduction="none")
    assert torch.equal(loss.eval()(x, y), plain(x, y))
    torch.testing.assert_close(loss.train()(x, y), by_hand(x, one_hot(y), alpha, weight))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_probabilities_as_those_of_mixup(alpha: float) -> None:
    x, y = tensors(N, K), 0.3 * one_hot(labels(N)) + 0.7 * one_hot(labels(N).flip(0))
    loss = LabelSmoothingCrossEntropyLoss(reduction="none", label_smoothing=alpha)
    torch.testing.assert_close(loss(x, y), by_hand(x, y, alpha))
    assert torch.equal(loss.eval()(x, y), nn.CrossEntropyLoss(reduction="none")(x, y))


@pytest.mark.parametrize("training", [True, False])
def test_ignored_labels_count_for_nothing(training: bool) -> None:
    x, y = tensors(N, K).requires_grad_(), labels(N)
    y[2:4] = -1
    loss = LabelSmoothingCrossEntropyLoss(ignore_index=-1).train(training)
    alpha = 0.1 if training else 0.0
    kept = y >= 0
    torch.testing.assert_close(loss(x, y), by_hand(x[kept], one_hot(y[kept]), alpha).mean())
    (grad,) = torch.autograd.grad(loss(x, y), x)
    assert grad[2:4].eq(0).all()
    assert grad[kept].ne(0).all()


def test_the_gradient_keeps_outputs_bounded() -> None:
    # At the logits whose softmax is q the loss is least: the entropy of q, as documented.
    q = torch.full((1, 10), 0.1 / 10, dtype=torch.float64)
    q[0, 3] += 0.9
    x = q.log().requires_grad_()
    loss = LabelSmoothingCrossEntropyLoss()(x, torch.tensor([3]))
    (grad,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(grad, torch.zeros_like(grad))
    assert loss.item() == pytest.approx(-(q * q.log()).sum().item())
    assert loss.item() == pytest.approx(0.50, abs=5e-3)


# Binary.


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_binary_labels(reduction: str, weighted: bool, alpha: float) -> None:
    x = tensors(N, K)
    y = torch.rand(N, K, generator=torch.Generator().manual_seed(2), dtype=torch.float64).round()
    y[0] = 0.25
    weight, pos = (None, None)
    if weighted:
        weight, pos = torch.rand(N, 1).double(), torch.linspace(0.5, 2, K).double()
    loss = LabelSmoothingBCEWithLogitsLoss(
        weight, reduction=reduction, pos_weight=pos, label_smoothing=alpha
    )
    q = (1 - alpha) * y + alpha / 2
    p = x.sigmoid()
    each = -((1.0 if pos is None else pos) * q * p.log() + (1 - q) * (1 - p).log())
    each = each if weight is None else weight * each
    expected = {"none": each, "mean": each.mean(), "sum": each.sum()}[reduction]
    torch.testing.assert_close(loss(x, y), expected)
    plain = nn.BCEWithLogitsLoss(weight, reduction=reduction, pos_weight=pos)
    assert torch.equal(loss.eval()(x, y), plain(x, y))


def test_the_least_binary_loss() -> None:
    x = torch.tensor([math.log(0.95 / 0.05)], dtype=torch.float64, requires_grad=True)
    loss = LabelSmoothingBCEWithLogitsLoss()(x, torch.ones(1, dtype=torch.float64))
    (grad,) = torch.autograd.grad(loss, x)
    assert grad.abs() < 1e-15
    assert loss.item() == pytest.approx(0.20, abs=5e-3)


def test_the_target_is_left_alone() -> None:
    x, y = tensors(N), torch.ones(N, dtype=torch.float64)
    LabelSmoothingBCEWithLogitsLoss()(x, y)
    assert y.eq(1).all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_binary_targets_that_are_not_floating(dtype: torch.dtype, training: bool) -> None:
    loss = LabelSmoothingBCEWithLogitsLoss().train(training)
    with pytest.raises(TypeError, match=rf"but got {dtype}: pass target.to\(input.dtype\)"):
        loss(tensors(N), torch.ones(N, dtype=dtype))


# Both.

LOSSES: list[tuple[type[Any], type[nn.Module]]] = [
    (LabelSmoothingCrossEntropyLoss, nn.CrossEntropyLoss),
    (LabelSmoothingBCEWithLogitsLoss, nn.BCEWithLogitsLoss),
]


@pytest.mark.parametrize(("smoothed", "plain"), LOSSES)
def test_half_precision_is_as_exact_as_torchs_own(smoothed: Any, plain: Any) -> None:
    x = tensors(N, K).bfloat16()
    y = one_hot(labels(N)).bfloat16()
    got, own = smoothed()(x, y), plain()(x, y)
    assert got.dtype == own.dtype == torch.bfloat16
    exact = smoothed()(x.double(), y.double())
    # Of bfloat16 a rounding is 2**-9: of the target, the terms, their sum and the mean.
    assert abs(got.double() - exact) <= 4 * 2**-9 * exact
    with torch.autocast("cpu", torch.bfloat16):
        assert smoothed()(x, y).dtype == plain()(x, y).dtype


@pytest.mark.parametrize(("smoothed", "plain"), LOSSES)
def test_it_is_torchs_loss(smoothed: Any, plain: Any) -> None:
    loss = smoothed(label_smoothing=0.2)
    assert isinstance(loss, plain)
    assert repr(loss) == f"{smoothed.__name__}(label_smoothing=0.2)"
    assert loss.state_dict().keys() == plain().state_dict().keys()
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    x, y = tensors(N, K), one_hot(labels(N))
    for training in (True, False, True):
        loss.train(training)
        assert torch.equal(compiled(x, y), loss(x, y))


@pytest.mark.parametrize(("smoothed", "_"), LOSSES)
@pytest.mark.parametrize("alpha", [-0.1, 1.5, math.nan])
def test_smoothing_out_of_range(smoothed: Any, _: Any, alpha: float) -> None:
    with pytest.raises(ValueError, match=rf"between 0 and 1, but got {alpha}"):
        smoothed(label_smoothing=alpha)


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, K)
        self.loss = LabelSmoothingCrossEntropyLoss()
        self.seen: list[tuple[str, float, float]] = []

    def note(self, stage: str, batch: Tensor) -> Tensor:
        x, y = self.net(batch), labels(len(batch))
        loss: Tensor = self.loss(x, y)
        alpha = 0.1 if stage == "train" else 0.0
        expected = F.cross_entropy(x, y, label_smoothing=alpha)
        self.seen.append((stage, loss.item(), expected.item()))
        return loss

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.note("train", batch)

    @override
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.note("val", batch)

    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_fit_trains_smoothed_and_validates_plain() -> None:
    rows: Any = list(tensors(8, 3, dtype=torch.float32))
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = Net()
    trainer.fit(module, DataLoader(rows, batch_size=4), DataLoader(rows, batch_size=8))
    stages = [stage for stage, _, _ in module.seen]
    assert stages == ["val", "train", "train", "val", "train", "train", "val"]
    assert all(loss == expected for _, loss, expected in module.seen)
