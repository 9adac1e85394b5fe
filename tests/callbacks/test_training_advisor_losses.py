"""Which losses are of data, and which layers are on one branch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_practices.callbacks._training_advisor.targets import Given
from tests.advisor.programs import Task, digits, mlp, split
from tests.callbacks.advised import MARKS, fitted

pytestmark = MARKS


def _numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


CODES = torch.randint(0, 50, (16, 12), generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(64) % 10
VALUES = _numbers(64, 1)
IMAGES = _numbers(64, 1, 8, 8)
MASK = _numbers(16, 12) > 0
OF_THE_BATCH: dict[str, Callable[[], tuple[Any, ...]]] = {
    "classes": lambda: (CLASSES, CLASSES),
    "a column": lambda: (VALUES, VALUES.squeeze(1)),
    "another type": lambda: (VALUES, VALUES.double()),
    "a logarithm": lambda: (VALUES.exp(), VALUES.exp().log1p()),
    "a standardised column": lambda: (VALUES, (VALUES - 3) / 7),
    "one-hot vectors": lambda: (CLASSES, functional.one_hot(CLASSES, 10)),
    "classes in two": lambda: (CLASSES, (CLASSES == 3).float()),
    "a threshold": lambda: (IMAGES, (IMAGES.flatten(1) > 0).float()),
    "the next words": lambda: (CODES, CODES[:, 1:].reshape(-1)),
    "some words": lambda: (CODES, CODES.masked_fill(~MASK, -100), MASK),
}
OF_THE_STEP: dict[str, Callable[[], tuple[Any, ...]]] = {
    "noise": lambda: (IMAGES, torch.randn(64, 64)),
    "equal targets": lambda: (IMAGES, torch.ones(64, 1)),
    "other classes": lambda: (CLASSES, CLASSES[torch.randperm(64)]),
    "a network's values": lambda: (VALUES, 0.1 * VALUES + 0.9 * torch.randn(64, 1)),
    "rewards that are equal": lambda: (torch.ones(64), torch.randn(64)),
    "a batch of one number": lambda: (torch.zeros(1), torch.randn(64)),
    "rows that are equal": lambda: (CLASSES, torch.eye(10)[3].expand(64, 10)),
}


@pytest.mark.parametrize("name", [*OF_THE_BATCH, *OF_THE_STEP])
def test_targets_of_the_batch_are_known(name: str) -> None:
    torch.manual_seed(1)  # other numbers than those above
    batch, target, *kept = (OF_THE_BATCH | OF_THE_STEP)[name]()
    has = Given({"x": torch.randn(64, 3), "y": batch}).has(target, *kept)
    assert bool(has) == (name in OF_THE_BATCH)


def _cross_entropy(module: Any, out: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(out, y)


def _penalty(module: Any) -> Tensor:
    return sum((p.square().sum() for p in module.net.parameters()), torch.zeros(()))


def _weights_of_samples(module: Any, out: Tensor, y: Tensor) -> Tensor:
    return (functional.cross_entropy(out, y, reduction="none") * torch.rand(len(y))).mean()


def _entropy(out: Tensor) -> Tensor:
    return -(out.softmax(1) * out.log_softmax(1)).sum(1).mean()


def _hot(y: Tensor) -> Tensor:
    return functional.one_hot(y, 10).float()


LOSSES: dict[str, tuple[Callable[[Any, Tensor, Tensor], Tensor], bool]] = {
    "one": (_cross_entropy, True),
    "scaled": (lambda m, out, y: 3 * _cross_entropy(m, out, y), True),
    "unreduced": (
        lambda m, out, y: functional.cross_entropy(out, y, reduction="none").mean(), True
    ),
    "with a penalty": (lambda m, out, y: _cross_entropy(m, out, y) + 1e-3 * _penalty(m), True),
    "with a learned scale": (
        lambda m, out, y: (-m.scale).exp() * _cross_entropy(m, out, y) + m.scale.sum(), True
    ),
    "of two tasks": (
        lambda m, out, y: _cross_entropy(m, out, y) + functional.mse_loss(out, _hot(y)), True
    ),
    "with an entropy": (lambda m, out, y: _cross_entropy(m, out, y) - _entropy(out), False),
    "weighted by samples": (_weights_of_samples, False),
    "of the network's own target": (
        lambda m, out, y: functional.mse_loss(out, out.detach().roll(1, 0)), False
    ),
    "by hand": (lambda m, out, y: -out.log_softmax(1).gather(1, y[:, None]).mean(), False),
}  # fmt: skip


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_data_are_known(name: str, accumulated: int) -> None:
    """The whole loss is that of the training step, also if gradients are accumulated."""
    loss, is_of_data = LOSSES[name]
    seen = []

    class Scaled(Task):
        def __init__(self) -> None:
            super().__init__(mlp(64, 16, 10))
            self.scale = nn.Parameter(torch.zeros(1))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            found = loss(self, self.net(batch[0]), batch[1]).sum()
            seen.append(found.item())
            return found

    looks = fitted(
        Scaled(), split(*digits())[0], steps=2, accumulate_grad_batches=accumulated
    )._looks
    assert [look.is_of_data for look in looks] == [is_of_data] * 2
    for look, first in zip(looks, seen[::accumulated], strict=True):
        for one in look.losses[:1]:
            assert one.total == pytest.approx(first, rel=1e-5)


def test_layers_are_on_the_branch_that_they_end_in() -> None:
    class Branches(Task):
        def __init__(self) -> None:
            super().__init__(mlp(64, 16, 16))
            self.value, self.policy = mlp(16, 8, 8, 1), mlp(16, 8, 10)
            self.alone = mlp(64, 8, 8, 4)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            trunk = self.net(batch[0]).relu()
            loss = self.value(trunk).square().mean() + self.alone(batch[0]).square().mean()
            return loss + functional.cross_entropy(self.policy(trunk), batch[1])

    (look,) = fitted(Branches(), split(*digits())[0], steps=1)._looks
    branches = {tuple(name for name, _ in one) for one in look.branches(0)}
    assert branches == {
        ("net.1.weight", "net.3.weight", "policy.1.weight", "policy.3.weight"),
        ("value.1.weight", "value.3.weight", "value.5.weight"),
        ("alone.1.weight", "alone.3.weight", "alone.5.weight"),
    }
