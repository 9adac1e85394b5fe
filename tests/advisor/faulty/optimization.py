"""Optimizers, clipping and manual optimization that don't train as they should."""

from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import StepLR

from tests.advisor.plans import Planned, adamw, no_trainer, stopped, trainer
from tests.advisor.programs import Arguments, Task, cnn, digit_loaders, faulty, mlp

_MANUAL = "Lightning's discussions on manual optimization"


class Manual(Task):
    """Manual optimization, in which parts can be left out."""

    def __init__(self, *left_out: str) -> None:
        super().__init__(mlp(64, 64, 10))
        self.automatic_optimization = False
        self.left_out = left_out

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        optimizer: Any = self.optimizers()
        loss = self.loss(self.net(x), y)
        if "zero_grad" not in self.left_out:
            optimizer.zero_grad()
        self.manual_backward(loss)
        if "order" in self.left_out:
            optimizer.zero_grad()
        optimizer.step()
        return loss


class WithoutStep(Task):
    def __init__(self, net: Any) -> None:
        super().__init__(net)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        loss = self.loss(self.net(x), y)
        self.manual_backward(loss)
        return loss


class TwoNets(Task):
    """Two networks, each with its optimizer, of which one's gradients are never cleared."""

    def __init__(self) -> None:
        super().__init__(mlp(64, 64, 10))
        self.other = mlp(64, 64, 10)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        found: Any = self.optimizers()
        first, second = found
        first.zero_grad()
        self.manual_backward(self.loss(self.net(x), y))
        first.step()
        self.manual_backward(self.loss(self.other(x), y))
        second.step()

    def configure_optimizers(self) -> Any:
        return [Adam(self.net.parameters(), 1e-3), SGD(self.other.parameters(), 0.1)]


def _manual() -> Arguments:
    return Manual(), digit_loaders()


@faulty("LP621", source=_MANUAL, mended=_manual)
def gradients_not_cleared() -> Arguments:
    return Manual("zero_grad"), digit_loaders()


@faulty("LP621", source=_MANUAL)
def gradients_of_one_of_two_not_cleared() -> Arguments:
    return TwoNets(), digit_loaders()


@faulty("LP624", source="PyTorch's forum: zero_grad between backward and step", mended=_manual)
def gradients_cleared_before_the_step() -> Arguments:
    return Manual("order"), digit_loaders()


@faulty("LP622", source=_MANUAL, mended=_manual)
def step_left_out() -> Arguments:
    return WithoutStep(mlp(64, 64, 10)), digit_loaders()


class ManualScheduled(Manual):
    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), 0.1)
        return [optimizer], [StepLR(optimizer, 1)]


@faulty("LP609", source=_MANUAL)
def schedule_under_manual_optimization() -> Arguments:
    return ManualScheduled(), digit_loaders()


@faulty("LP632", source=_MANUAL, mended=_manual)
def clipping_by_the_trainer_under_manual_optimization() -> Arguments:
    return Manual(), digit_loaders(), trainer(gradient_clip_val=1.0)


class Clipped(Planned):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)


class GradientClippingCallback(Callback):
    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        torch.nn.utils.clip_grad_norm_(pl_module.parameters(), 1.0)


@faulty("LP631", source="clipping in a hook, and gradient_clip_val of the Trainer")
def clipped_by_hook_and_trainer() -> Arguments:
    return Clipped(adamw), digit_loaders(), trainer(gradient_clip_val=0.5)


@faulty("LP631", source="clipping in a callback, and gradient_clip_val of the Trainer")
def clipped_by_callback_and_trainer() -> Arguments:
    return stopped(GradientClippingCallback(), gradient_clip_val=0.5)


@faulty("LP633", source="lecture S3")
def batches_of_half_the_data() -> Arguments:
    return Task(mlp(64, 64, 10)), digit_loaders(512)


@faulty("LP634", "net.1", source="Lightning's forum: accumulate_grad_batches and batch norm")
def accumulation_with_batch_norm() -> Arguments:
    program = stopped(accumulate_grad_batches=4)
    return Planned(adamw, cnn()), *program[1:]


@faulty("LP641", source="TheDeepChecker and UMLAUT: learning rate too high")
def adam_with_a_rate_of_one() -> Arguments:
    return no_trainer((Planned(lambda m: Adam(m.parameters(), 1.0)), digit_loaders()))


@faulty("LP643", source="TheDeepChecker and UMLAUT: learning rate too high")
def adam_with_a_rate_of_sgd() -> Arguments:
    return Planned(lambda m: Adam(m.parameters(), 0.1)), digit_loaders(), trainer()


@faulty("LP641", source="TheDeepChecker and UMLAUT: learning rate too high")
def sgd_with_a_rate_of_100() -> Arguments:
    return Planned(lambda m: SGD(m.parameters(), 100.0)), digit_loaders()


@faulty("LP642", source="TheDeepChecker and UMLAUT: learning rate too low")
def sgd_with_a_rate_of_1e_6() -> Arguments:
    return Planned(lambda m: SGD(m.parameters(), 1e-6)), digit_loaders(), trainer()


@faulty("LP642", source="TheDeepChecker and UMLAUT: learning rate too low")
def adam_with_a_rate_of_1e_7() -> Arguments:
    return Planned(lambda m: Adam(m.parameters(), 1e-7)), digit_loaders(), trainer()


@faulty("LP621", source="an optimizer_zero_grad that does nothing, for accumulation")
def hook_that_clears_no_gradients() -> Arguments:
    class Kept(Task):
        def optimizer_zero_grad(self, *args: Any, **kwargs: Any) -> None:
            pass

    return Kept(mlp(64, 64, 10)), digit_loaders()


@faulty("LP622", source="an optimizer_step that calls the closure alone")
def hook_that_steps_no_optimizer() -> Arguments:
    class Idle(Task):
        def optimizer_step(
            self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
        ) -> None:
            if optimizer_closure is not None:
                optimizer_closure()
            optimizer.zero_grad()

    return Idle(mlp(64, 64, 10)), digit_loaders()
