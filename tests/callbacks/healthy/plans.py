"""Fits that train well by all kinds of plans: rates, precision, accumulation, ends."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_practices.callbacks import EarlyStopping, WeightAveraging
from tests.advisor.programs import Task, cnn, digit_loaders, mlp
from tests.callbacks.faulty_fits import Fit
from tests.callbacks.healthy.declared import (
    Manual,
    Metric,
    digit_accuracy,
    fits_well,
    of,
)


class Scheduled(Task):
    """A task with a schedule by step."""

    def __init__(self, net: nn.Module, optimizer: Any, schedule: Any) -> None:
        super().__init__(net, optimizer=optimizer)
        self.schedule = schedule

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        return [optimizer], [{"scheduler": self.schedule(optimizer), "interval": "step"}]


def adam(lr: float, **options: Any) -> Any:
    return partial(torch.optim.Adam, lr=lr, **options)


def sgd(lr: float, **options: Any) -> Any:
    return partial(torch.optim.SGD, lr=lr, **options)


def digit_fit(module: Task, steps: int, **options: Any) -> tuple[Fit, Metric]:
    return Fit(module, *digit_loaders(), steps=steps, **options), of(module, digit_accuracy)


@fits_well(above=0.93)
def long_warmup() -> tuple[Fit, Metric]:
    def schedule(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1.0, (i + 1) / 300))

    return digit_fit(Scheduled(mlp(64, 64, 10), adam(3e-3), schedule), 400)


@fits_well(above=0.95)
def one_cycle_with_a_large_peak() -> tuple[Fit, Metric]:
    def schedule(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.03, total_steps=200)

    return digit_fit(Scheduled(mlp(64, 64, 10), adam(1e-3), schedule), 200)


@fits_well(above=0.95)
def cosine_with_restarts() -> tuple[Fit, Metric]:
    def schedule(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 50)

    return digit_fit(Scheduled(mlp(64, 64, 10), sgd(0.2, momentum=0.9), schedule), 200)


@fits_well(above=0.95)
def sgd_with_a_large_rate() -> tuple[Fit, Metric]:
    return digit_fit(Task(mlp(64, 64, 10), optimizer=sgd(0.5)), 200)


@fits_well(above=0.95, full=True)
def early_stopping() -> tuple[Fit, Metric]:
    stop = EarlyStopping("val_loss", patience=3)
    return digit_fit(
        Task(mlp(64, 64, 10), optimizer=adam(5e-3)), -1,
        callbacks=(stop,), options={"max_epochs": 20},
    )  # fmt: skip


@fits_well(above=0.93)
def accumulated_gradients_that_are_clipped() -> tuple[Fit, Metric]:
    options = {"accumulate_grad_batches": 4, "gradient_clip_val": 1.0}
    module = Task(mlp(64, 64, 10), optimizer=adam(5e-3))
    return Fit(module, *digit_loaders(16), steps=200, options=options), of(module, digit_accuracy)


@fits_well(above=0.93)
def bfloat16_on_the_cpu() -> tuple[Fit, Metric]:
    module = Task(cnn(), optimizer=adam(3e-3))
    return digit_fit(module, 220, options={"precision": "bf16-mixed"})


@fits_well(above=0.95, full=True)
def averaged_weights() -> tuple[Fit, Metric]:
    module = Task(mlp(64, 64, 10), optimizer=sgd(0.1, momentum=0.9))
    return digit_fit(module, 200, callbacks=(WeightAveraging(),))


@fits_well(above=0.93, full=True)
def much_dropout_and_weight_decay() -> tuple[Fit, Metric]:
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 128),
        nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10),
    )  # fmt: skip
    optimizer = partial(torch.optim.AdamW, lr=3e-3, weight_decay=0.1)
    return digit_fit(Task(net, optimizer=optimizer), 250)


@fits_well(above=0.93)
def closures_of_lbfgs() -> tuple[Fit, Metric]:
    """Each step evaluates the loss several times. It has a penalty of the weights."""

    class Ridge(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            penalty = self.net[1].weight.square().sum() / 50
            return functional.cross_entropy(self.net(batch[0]), batch[1]) + penalty

    optimizer = partial(torch.optim.LBFGS, lr=1.0, max_iter=5, line_search_fn="strong_wolfe")
    module = Ridge(mlp(64, 10), optimizer=optimizer)
    return Fit(module, *digit_loaders(1400), steps=30), of(module, digit_accuracy)


@fits_well(above=0.95, full=True)
def sharpness_aware_steps() -> tuple[Fit, Metric]:
    """Two backward passes a step: the second one at weights that are moved and put back."""

    class Sharp(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            optimizer: Any = self.optimizers()
            weights = [p for p in self.parameters() if p.requires_grad]
            optimizer.zero_grad()
            self.manual_backward(functional.cross_entropy(self.net(batch[0]), batch[1]))
            with torch.no_grad():
                size = torch.stack([p.grad.norm() for p in weights]).norm()  # type: ignore
                moves = [0.05 * p.grad / (size + 1e-9) for p in weights]  # type: ignore[operator]
                for p, move in zip(weights, moves, strict=True):
                    p.add_(move)
            optimizer.zero_grad()
            self.manual_backward(functional.cross_entropy(self.net(batch[0]), batch[1]))
            with torch.no_grad():
                for p, move in zip(weights, moves, strict=True):
                    p.sub_(move)
            optimizer.step()

    return digit_fit(Sharp(cnn(), optimizer=sgd(0.1, momentum=0.9)), 150)


@fits_well(above=0.9, full=True)
def signs_of_gradients() -> tuple[Fit, Metric]:
    """Each weight changes by the same amount, whatever its gradient."""

    class Signs(torch.optim.Optimizer):
        def __init__(self, params: Any, lr: float) -> None:
            super().__init__(params, {"lr": lr})

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            with torch.enable_grad():
                loss = closure() if closure is not None else None
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(1 - 0.1 * group["lr"]).sub_(group["lr"] * p.grad.sign())
            return loss

    return digit_fit(Task(mlp(64, 64, 10), optimizer=partial(Signs, lr=3e-4)), 400)


@fits_well(above=0.93)
def first_loss_is_given_back_in_a_dict() -> tuple[Fit, Metric]:
    """The loss is a sum over samples, a hundred times the mean."""

    class Summed(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss: Tensor = functional.cross_entropy(self.net(batch[0]), batch[1], reduction="sum")
            return {"loss": loss, "outputs": None}

    return digit_fit(Summed(mlp(64, 64, 10), optimizer=adam(3e-3)), 250)
