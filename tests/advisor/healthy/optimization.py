"""Healthy manual optimization, clipping and rates, close to faulty ones."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import LambdaLR, StepLR

from lightning_practices.callbacks import GradientClipping
from lightning_practices.mixins import TrainingPractices
from tests.advisor.plans import Planned, adamw, stopped, trainer
from tests.advisor.programs import Arguments, Task, digit_loaders, digits, healthy, mlp, split


class Gan(Task):
    """Generator and discriminator; the generator's backward pass leaves gradients in both."""

    def __init__(self) -> None:
        super().__init__(mlp(8, 64, 64))
        self.judge = mlp(64, 64, 1, activation=nn.LeakyReLU)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        real = batch[0].flatten(1)
        found: Any = self.optimizers()
        first, second = found
        made = self.net(torch.randn(len(real), 8))
        first.zero_grad()
        self.manual_backward(self._loss(self.judge(made), 1.0))
        first.step()
        second.zero_grad()
        loss = self._loss(self.judge(real), 1.0) + self._loss(self.judge(made.detach()), 0.0)
        self.manual_backward(loss)
        second.step()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def _loss(self, logits: Tensor, target: float) -> Tensor:
        return functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))

    def configure_optimizers(self) -> Any:
        return [Adam(self.net.parameters(), 2e-4), Adam(self.judge.parameters(), 2e-4)]


@healthy
def gan() -> Arguments:
    return Gan(), digit_loaders()


class Manual(Task):
    """Manual optimization that clears after the step, accumulates, and steps a schedule."""

    def __init__(self, every: int = 1) -> None:
        super().__init__(mlp(64, 64, 10))
        self.automatic_optimization = False
        self.every = every

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        optimizer: Any = self.optimizers()
        loss = self.loss(self.net(x), y) / self.every
        self.manual_backward(loss)
        if (batch_idx + 1) % self.every == 0:
            torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            self.lr_schedulers().step()  # type: ignore[union-attr]
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), 0.1)
        return [optimizer], [StepLR(optimizer, 100)]


@healthy
def manual_optimization() -> Arguments:
    return Manual(), digit_loaders(), trainer()


@healthy
def manual_accumulation_over_eight_batches() -> Arguments:
    return Manual(8), digit_loaders(), trainer()


class ByHand(Task):
    """Updates its weights without the optimizer."""

    def __init__(self) -> None:
        super().__init__(mlp(64, 64, 10))
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = self.loss(self.net(x), y)
        self.zero_grad()
        self.manual_backward(loss)
        with torch.no_grad():
            for p in self.parameters():
                if p.grad is not None:
                    p -= 0.1 * p.grad
        return loss


@healthy
def updates_by_hand() -> Arguments:
    return ByHand(), digit_loaders()


class Closure(Task):
    """Clears and differentiates in a closure."""

    def __init__(self) -> None:
        super().__init__(mlp(64, 64, 10))
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        optimizer: Any = self.optimizers()

        def closure() -> Tensor:
            loss = self.loss(self.net(x), y)
            self.net.zero_grad()
            self.manual_backward(loss)
            return loss

        optimizer.step(closure=closure)


@healthy
def closure_of_manual_optimization() -> Arguments:
    return Closure(), digit_loaders()


class Halves(Manual):
    """Two backward passes to a step."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        for part in (slice(0, 32), slice(32, 64)):
            loss = self.loss(self.net(x[part]), y[part]) / 2
            self.manual_backward(loss)
        optimizer.step()
        self.lr_schedulers().step()  # type: ignore[union-attr]
        return loss


@healthy
def two_backward_passes_to_a_step() -> Arguments:
    return Halves(), digit_loaders()


@healthy
def clipping_by_callback() -> Arguments:
    return stopped(GradientClipping(1.0))


@healthy
def clipping_by_trainer() -> Arguments:
    return stopped(gradient_clip_val=1.0)


class Alternating(Gan):
    """One network a batch, and all optimizers step: one of them without gradients."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizers: Any = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        x, y = batch[0].flatten(1), batch[0].flatten(1).square()
        net = self.judge if batch_idx % 2 else self.net
        made = net(x if batch_idx % 2 else x[:, :8])
        self.manual_backward(functional.mse_loss(made, y[:, : made.shape[1]]))
        for optimizer in optimizers:
            optimizer.step()


@healthy
def optimizers_that_take_turns() -> Arguments:
    return Alternating(), digit_loaders()


@healthy
def rate_of_one_before_the_factor_of_a_transformer() -> Arguments:
    def configure(module: Planned) -> Any:
        optimizer = Adam(module.parameters(), 1.0, betas=(0.9, 0.98))
        factor = lambda step: 64**-0.5 * min((step + 1) ** -0.5, (step + 1) * 40**-1.5)  # noqa: E731
        scheduler = {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}
        return [optimizer], [scheduler]

    return Planned(configure), digit_loaders(), trainer()


class Practised(TrainingPractices, Task):
    pass


@healthy
def clipping_by_mixin() -> Arguments:
    return Practised(mlp(64, 64, 10), gradient_clipping=1.0), digit_loaders(), trainer()


@healthy
def linear_model_with_a_high_rate() -> Arguments:
    return Planned(lambda m: Adam(m.parameters(), 0.1), mlp(64, 10)), digit_loaders(), trainer()


@healthy
def fine_tuning_with_a_low_rate() -> Arguments:
    return Planned(lambda m: Adam(m.parameters(), 1e-5)), digit_loaders(), trainer()


@healthy
def accumulation_without_batch_norm() -> Arguments:
    return stopped(accumulate_grad_batches=4)


@healthy
def small_data_in_one_batch() -> Arguments:
    x, y = digits()
    return Planned(adamw), split(x[:128], y[:128], batch_size=100), trainer()


@healthy
def gradients_set_to_zero_rather_than_none() -> Arguments:
    class Zeroed(Task):
        def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
            optimizer.zero_grad(set_to_none=False)

    return Zeroed(mlp(64, 64, 10)), digit_loaders()


@healthy
def warmup_in_optimizer_step() -> Arguments:
    class Warm(Task):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any) -> None:
            optimizer.step(closure=closure)
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * min(1.0, (self.trainer.global_step + 1) / 20)

    return Warm(mlp(64, 64, 10)), digit_loaders()


@healthy
def steps_of_every_fourth_batch_by_hooks() -> Arguments:
    class Fourth(Task):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any) -> None:
            if (batch_idx + 1) % 4 == 0:
                optimizer.step(closure=closure)
            else:
                closure()

        def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
            if batch_idx % 4 == 0:
                optimizer.zero_grad()

    return Fourth(mlp(64, 64, 10)), digit_loaders()
