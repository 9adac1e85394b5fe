"""Distillation from a teacher that is trained too."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.programs import Arguments, Task, cnn, digit_loaders, faulty, mlp


class Distil(Task):
    """Has a student, another network, and a loss of both."""

    def __init__(self, other: nn.Module | None = None) -> None:
        super().__init__(mlp(64, 32, 10))
        self.big = cnn() if other is None else other

    def total(self, x: Tensor, y: Tensor) -> Tensor:
        student, teacher = self.net(x), self.big(x)
        soft = functional.kl_div(
            functional.log_softmax(student / 4, dim=1),
            functional.softmax(teacher / 4, dim=1),
            reduction="batchmean",
        )
        return 0.5 * functional.cross_entropy(student, y) + 0.5 * 16 * soft

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.total(*batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.cross_entropy(self.net(batch[0]), batch[1]))


def _frozen() -> Arguments:
    return Distil(cnn().requires_grad_(False).eval()), digit_loaders()


@faulty("LP132", "big", source="self.parameters() with an unfrozen teacher", mended=_frozen)
def teacher_in_the_optimizer() -> Arguments:
    return Distil(), digit_loaders()


@faulty("LP132", "big", source="cross entropy with the teacher's probabilities as targets")
def teacher_by_soft_targets() -> Arguments:
    class Soft(Distil):
        def total(self, x: Tensor, y: Tensor) -> Tensor:
            targets = (self.big(x) / 2).softmax(1)
            return functional.cross_entropy(self.net(x) / 2, targets)

    return Soft(), digit_loaders()


@faulty("LP132", "teacher_model", source="features of the teacher, without detach")
def teacher_of_features() -> Arguments:
    class Features(Task):
        def __init__(self) -> None:
            super().__init__(mlp(64, 32, 10))
            self.teacher_model = mlp(64, 64, 32)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            hidden = functional.relu(self.net[1](self.net[0](x)))
            hint = ((hidden - self.teacher_model(x)) ** 2).mean()
            return functional.cross_entropy(self.net[3](hidden), y) + 0.1 * hint

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", functional.cross_entropy(self.net(batch[0]), batch[1]))

    return Features(), digit_loaders()


@faulty("LP132", "teacher", source="a divergence written out, with the teacher's logits")
def teacher_of_a_written_divergence() -> Arguments:
    class Written(Task):
        def __init__(self) -> None:
            super().__init__(mlp(64, 32, 10))
            self.teacher = mlp(64, 64, 10)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            s, t = self.net(x), self.teacher(x)
            p_t = torch.softmax(t / 3, dim=-1)
            kd = -(p_t * torch.log_softmax(s / 3, dim=-1)).sum(-1).mean()
            return (1 - 0.7) * functional.cross_entropy(s, y) + 0.7 * kd

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", functional.cross_entropy(self.net(batch[0]), batch[1]))

    return Written(), digit_loaders()
