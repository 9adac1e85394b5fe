"""Fits that note the gradients of each step before anything clips them, and when they are used."""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

BATCHES = 6  # an epoch, of two rows
WIDTH = 3

Gradients = list[Tensor | None]

# Of all algorithms, thresholds that some steps exceed and others don't.
THRESHOLDS: list[tuple[str, float]] = [("norm", 5.0), ("value", 2.5), ("adaptive", 4.0)]


def rows() -> Tensor:
    return torch.randn(2 * BATCHES, WIDTH, generator=torch.Generator().manual_seed(1))


def loader(data: Sequence[Tensor] | None = None) -> DataLoader[Tensor]:
    return DataLoader(list(rows()) if data is None else data, batch_size=2)  # type: ignore[arg-type]


def copies(parameters: Iterable[Tensor]) -> Gradients:
    return [None if p.grad is None else p.grad.detach().clone() for p in parameters]


def noting(
    kind: Callable[..., Any], parameters: Iterable[Tensor], seen: Any, **options: Any
) -> Any:
    """Return an optimizer that adds the gradients it has at each step to ``seen``."""
    optimizer = kind(parameters, **options)

    def note(*_: Any) -> None:
        seen.append(copies(p for group in optimizer.param_groups for p in group["params"]))

    plain = optimizer.step

    # The closure comes first, as in each of torch's optimizers.
    def step(closure: Any = None, **kwargs: Any) -> Any:
        loss = None if closure is None else closure()
        note()
        plain(**kwargs)
        return loss

    optimizer.step = step
    return optimizer


class Net(LightningModule):
    """A small network whose optimizer notes what it sees."""

    def __init__(self, kind: Callable[..., Any] = torch.optim.SGD, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net: Any = nn.Sequential(nn.Linear(WIDTH, 4), nn.Tanh(), nn.Linear(4, 1))
        self.kind = kind
        self.options = {"lr": 0.1, **options}
        self.seen: list[Gradients] = []

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = (self.net(batch) - 2 * batch.sum(1, keepdim=True)).square().mean()
        return loss

    @override
    def configure_optimizers(self) -> Any:
        return noting(self.kind, self.net.parameters(), self.seen, **self.options)


class Manual(Net):
    """Two optimizers, of the first layer and of the second, which steps at every other batch."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.automatic_optimization = False
        self.other: list[Gradients] = []  # what the second one has seen

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        optimizers: Any = self.optimizers()
        for optimizer in optimizers[: 1 + batch_idx % 2]:
            self.before_step(optimizer)
            optimizer.step()
            optimizer.zero_grad()
        return loss

    def before_step(self, optimizer: Any) -> None:
        pass

    @override
    def configure_optimizers(self) -> Any:
        return [
            noting(self.kind, self.net[place].parameters(), seen, **self.options)
            for place, seen in ((0, self.seen), (2, self.other))
        ]


class Raw(Callback):
    """Notes weights and gradients of all parameters before each step; comes first."""

    def __init__(self) -> None:
        self.weights: list[list[Tensor]] = []
        self.grads: list[Gradients] = []
        self.steps: list[int] = []

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.weights.append([p.detach().clone() for p in parameters])
        self.grads.append(copies(parameters))
        self.steps.append(trainer.global_step)

    def norms(self) -> list[float]:
        """Return the norm of each step, in float64."""
        return [norm_of(grads) for grads in self.grads]


def norm_of(grads: Iterable[Tensor | None]) -> float:
    flat = [grad.double().flatten() for grad in grads if grad is not None]
    return float(torch.linalg.vector_norm(torch.cat(flat)))


def by_hand(weights: Sequence[Tensor], grads: Gradients, algorithm: str, value: float) -> Gradients:
    """Clip in float64: by torch's functions, and adaptively by the paper's formula."""
    parameters = [nn.Parameter(weight.double()) for weight in weights]
    for p, grad in zip(parameters, grads, strict=True):
        p.grad = None if grad is None else grad.double().clone()
    if algorithm == "norm":
        nn.utils.clip_grad_norm_(parameters, value)
    elif algorithm == "value":
        nn.utils.clip_grad_value_(parameters, value)
    else:
        for p in parameters:
            if p.grad is not None:
                dims = (1,) if p.dim() > 1 else (0,)
                weight = p.detach().norm(dim=dims, keepdim=True).clamp(min=1e-3)
                grad = p.grad.norm(dim=dims, keepdim=True)
                p.grad *= torch.where(grad > value * weight, value * weight / grad, 1.0)
    return copies(parameters)


def assert_same(seen: Sequence[Gradients], expected: Sequence[Gradients], **options: Any) -> None:
    """Assert that gradients are equal, up to the rounding of their own type."""
    assert len(seen) == len(expected)
    for mine, right in zip(seen, expected, strict=True):
        for a, b in zip(mine, right, strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                torch.testing.assert_close(a, b.to(a.dtype), equal_nan=True, **options)


class Noted(Logger):
    """Keeps what is logged, by step."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[int, dict[str, float]] = {}

    @property
    @override
    def name(self) -> str:
        return "noted"

    @property
    @override
    def version(self) -> int:
        return 0

    @override
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        kept = {name: value for name, value in metrics.items() if name != "epoch"}
        self.steps.setdefault(step, {}).update(copy.copy(kept))

    @override
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass

    def of(self, name: str) -> list[float]:
        return [values[name] for values in self.steps.values()]


def trainer_of(*callbacks: Callback, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu", "devices": 1, "max_epochs": 2, "logger": False, "log_every_n_steps": 1
    }  # fmt: skip
    return Trainer(
        callbacks=list(callbacks),
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **defaults | options,
    )


def fit(module: LightningModule, *callbacks: Callback, data: Any = None, **options: Any) -> Trainer:
    resume = options.pop("resume", None)
    trainer = trainer_of(*callbacks, **options)
    trainer.fit(module, loader(data), ckpt_path=resume)
    return trainer
