"""Healthy programs with two networks whose outputs are compared."""

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests.advisor.faulty.distillation import Distil
from tests.advisor.programs import Arguments, Task, cnn, digit_loaders, healthy, mlp


@healthy
def frozen_teacher() -> Arguments:
    return Distil(cnn().requires_grad_(False).eval()), digit_loaders()


@healthy
def teacher_under_no_grad_and_a_students_optimizer() -> Arguments:
    class Student(Distil):
        def __init__(self) -> None:
            super().__init__(cnn().eval())

        def total(self, x: Tensor, y: Tensor) -> Tensor:
            with torch.no_grad():
                soft = self.big(x).softmax(1)
            return functional.cross_entropy(self.net(x), soft)

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.net.parameters())

    return Student(), digit_loaders()


@healthy
def mutual_learning() -> Arguments:
    """Zhang et al., 2018: two students, each with a loss of its own."""

    class Mutual(Distil):
        def total(self, x: Tensor, y: Tensor) -> Tensor:
            a, b = self.net(x), self.big(x)
            first, second = a.log_softmax(1), b.log_softmax(1)
            kl = functional.kl_div(first, second, log_target=True, reduction="batchmean")
            back = functional.kl_div(second, first, log_target=True, reduction="batchmean")
            own = functional.cross_entropy(a, y) + functional.cross_entropy(b, y)
            return own + kl + back

    return Mutual(mlp(64, 64, 10)), digit_loaders()


@healthy
def teacher_that_learns_from_labels() -> Arguments:
    class Online(Task):
        def __init__(self) -> None:
            super().__init__(mlp(64, 32, 10))
            self.teacher = mlp(64, 64, 10)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            s, t = self.net(x), self.teacher(x)
            kl = functional.kl_div(s.log_softmax(1), t.softmax(1), reduction="batchmean")
            return functional.cross_entropy(t, y) + functional.cross_entropy(s, y) + kl

    return Online(), digit_loaders()


@healthy
def two_branches_that_agree() -> Arguments:
    """Two encoders without labels, and a variance that keeps them from collapsing."""

    class Agree(Task):
        def __init__(self) -> None:
            super().__init__(mlp(64, 32, 16))
            self.other = mlp(64, 32, 16)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            a, b = self.net(batch[0]), self.other(batch[0] * 0.9)
            spread = sum(functional.relu(1 - z.std(dim=0)).mean() for z in (a, b))
            return functional.mse_loss(a, b) + spread

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    return Agree(), digit_loaders()


@healthy
def momentum_teacher() -> Arguments:
    class Momentum(Task):
        def __init__(self) -> None:
            super().__init__(mlp(64, 32, 16))
            self.teacher = copy.deepcopy(self.net).requires_grad_(False)
            self.predictor = mlp(16, 32, 16)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x = batch[0]
            target = functional.normalize(self.teacher(x + 0.1), dim=1)
            own = functional.normalize(self.predictor(self.net(x)), dim=1)
            return functional.mse_loss(own, target)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

        def on_train_batch_end(self, *args: Any) -> None:
            with torch.no_grad():
                pairs = zip(self.teacher.parameters(), self.net.parameters(), strict=True)
                for one, other in pairs:
                    one.lerp_(other, 0.01)

    return Momentum(), digit_loaders()


@healthy
def learned_prior_of_a_discrete_code() -> Arguments:
    """The posterior is the target of a divergence, and decodes too."""

    class Discrete(Task):
        def __init__(self) -> None:
            super().__init__(mlp(64, 32, 10))
            self.prior, self.decoder = mlp(32, 32, 10), mlp(10, 32, 64)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x = batch[0].flatten(1)
            logits = self.net(x)
            posterior, code = logits.softmax(1), functional.gumbel_softmax(logits)
            prior = self.prior(x[:, :32]).log_softmax(1)
            kl = functional.kl_div(prior, posterior, reduction="batchmean")
            return functional.mse_loss(self.decoder(code), x) + 0.1 * kl

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    return Discrete(), digit_loaders()
