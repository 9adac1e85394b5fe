"""Exact zeros by L1, and what ranks make of penalties together."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import softshrink
from torch.optim import SGD, Adam
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_practices.callbacks import GradientClipping, Penalty, SkipNonFinite
from tests import processes
from tests.callbacks.clipping import Manual, Net, Noted, fit, trainer_of
from tests.callbacks.penalised import WEIGHTS, doubled, plain
from tests.callbacks.scripted import FILTERS, same, state_of

pytestmark = FILTERS

L1 = 0.2


# After the step.


class ByHand(Net):
    """Shrinks the weights after each step, in its own words."""

    def __init__(self, rate: Any = None, **options: Any) -> None:
        super().__init__(**options)
        self.rate = rate or (lambda step: 0.1)
        self.double()

    @override
    def on_train_batch_end(self, *_: Any) -> None:
        threshold = L1 * self.rate(self.trainer.global_step - 1)
        for name, p in self.named_parameters():
            if name in WEIGHTS:
                p.data.copy_(softshrink(p.data, threshold))


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_l1_after_each_step(kind: Any) -> None:
    module, expected = plain(kind=kind), ByHand(kind=kind)
    fit(module, Penalty(l1=L1, proximal=True), data=doubled(), max_epochs=6)
    fit(expected, data=doubled(), max_epochs=6)
    for name, weight in state_of(expected).items():
        assert torch.equal(state_of(module)[name], weight), name


def test_exact_zeros_where_its_gradient_makes_none() -> None:
    zeros = []
    for proximal in (True, False):
        module = plain()
        fit(module, Penalty(l1=2.0, proximal=proximal), data=doubled(), max_epochs=8)
        zeros.append(sum(int((state_of(module)[name] == 0).sum()) for name in WEIGHTS))
        assert all((state_of(module)[f"net.{i}.bias"] != 0).all() for i in (0, 2))
    assert zeros[0] >= 4
    assert zeros[1] == 0


class Scheduled(Net):
    """Each group has its own rate, a number or a tensor, that falls from step to step."""

    def __init__(self, as_tensor: bool = False) -> None:
        super().__init__()
        self.as_tensor = as_tensor
        self.before: list[list[Tensor]] = []
        self.double()

    @override
    def configure_optimizers(self) -> Any:
        rates = [torch.tensor(lr) if self.as_tensor else lr for lr in (0.1, 0.05)]
        groups = [
            {"params": [*self.net[2 * i].parameters()], "lr": lr} for i, lr in enumerate(rates)
        ]
        optimizer = SGD(groups)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    @override
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Compute what the step and L1 after it are to make."""
        made = []
        for group in optimizer.param_groups:
            lr = float(group["lr"])
            for p in group["params"]:
                stepped = p.detach() - lr * p.grad
                made.append(softshrink(stepped, lr * L1) if p.dim() > 1 else stepped)
        self.before.append(made)

    @override
    def on_train_batch_end(self, *_: Any) -> None:
        for p, right in zip(self.net.parameters(), self.before[-1], strict=True):
            torch.testing.assert_close(p.detach(), right, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_the_present_rate_of_each_group(as_tensor: bool) -> None:
    module = Scheduled(as_tensor)
    fit(module, Penalty(l1=L1, proximal=True), data=doubled())
    assert len(module.before) == 12


def test_once_for_each_step_of_accumulated_batches() -> None:
    module = Scheduled()
    seen: list[int] = []

    class Counts(Penalty):
        @override
        def _shrink(self, optimizer: Any, *_: Any) -> None:
            seen.append(1)
            super()._shrink(optimizer)

    module.on_train_batch_end = lambda *_: None  # type: ignore[method-assign]
    fit(module, Counts(l1=L1, proximal=True), data=doubled(), accumulate_grad_batches=4)
    assert len(seen) == len(module.before) == 4


def test_l2_is_in_the_gradient_all_the_same() -> None:
    module, expected = plain(), ByHand()
    fit(module, Penalty(l1=L1, l2=0.5, proximal=True), data=doubled())
    fit(expected, Penalty(l2=0.5), data=doubled())
    assert same(state_of(module), state_of(expected))


def test_manual_optimization() -> None:
    module = Manual().double()
    fit(module, Penalty(l1=100.0, proximal=True), data=doubled(), max_epochs=1)
    assert all((module.net[i].weight == 0).all() for i in (0, 2))
    assert not any((module.net[i].bias == 0).any() for i in (0, 2))


@pytest.mark.parametrize("kind", [Net, Manual])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("clips", [False, True])
def test_a_step_that_the_scaler_skips_shrinks_nothing(kind: Any, fused: bool, clips: bool) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30, growth_interval=1000)
    module = kind(fused=fused)
    changes: list[bool] = []
    taken: list[bool] = []

    class Watches(Callback):
        """Notes whether weights change in a step, which they do without L1 too."""

        @override
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            self.before, self.scale = state_of(module), scaler.get_scale()

        @override
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            taken.append(scaler.get_scale() == self.scale)
            changes.append(not same(self.before, state_of(module)))

    fit(
        module, Penalty(l1=L1, proximal=True), Watches(),
        *([GradientClipping(1.0, fused=fused)] if clips else []),
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)], max_epochs=8,
    )  # fmt: skip
    assert not any(changes[:4])
    assert any(changes)
    if kind is Net:  # with one step for each batch
        assert changes == taken


def test_skipped_gradients() -> None:
    rows = [row * (float("nan") if i == 2 else 1.0) for i, row in enumerate(doubled())]
    module, expected = plain(), plain()
    fit(module, SkipNonFinite(), Penalty(l1=L1, l2=0.1, proximal=True), data=rows)
    fit(expected, Penalty(l1=L1, l2=0.1, proximal=True), data=rows[:2] + rows[4:])
    assert same(state_of(module), state_of(expected))


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"precision": "16-mixed"}], ids=str)
@pytest.mark.parametrize("arguments", [{"l1": 0.1, "l2": 0.1}, {"l1": 0.1, "proximal": True}])
def test_it_never_waits_for_the_gpu(arguments: dict[str, Any], options: dict[str, Any]) -> None:
    class Strict(Penalty):
        @override
        def on_before_optimizer_step(self, *args: Any) -> None:
            torch.cuda.set_sync_debug_mode("error")
            try:
                super().on_before_optimizer_step(*args)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        @override
        def _shrink(self, optimizer: Any, *_: Any) -> None:
            torch.cuda.set_sync_debug_mode("error")
            try:
                super()._shrink(optimizer)
            finally:
                torch.cuda.set_sync_debug_mode("default")

    module = Net(fused=bool(options))
    fit(module, Strict(**arguments), accelerator="gpu", logger=Noted(), **options)


# Two ranks, each with half of every batch.


class Sharded(Net):
    def configure_model(self) -> None:
        assert self.device_mesh is not None
        mesh = self.device_mesh["data_parallel"]
        for layer in (self.net[0], self.net[2]):
            fully_shard(layer, mesh=mesh)
        fully_shard(self.net, mesh=mesh)


class State(Callback):
    """Keeps the weights, whole, of the end of training."""

    @override
    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.state = {
            name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
            for name, p in pl_module.named_parameters()
        }


FITS: list[tuple[str, dict[str, Any]]] = [
    (strategy, arguments)
    for strategy in ("ddp", "model_parallel")
    for arguments in ({"l1": 0.1, "l2": 0.3}, {"l1": 2.0, "l2": 0.3, "proximal": True})
]


def test_two_ranks_as_one_process() -> None:
    ranks = processes.run(fits_on_two_ranks, [()] * 2)
    for place, (_, arguments) in enumerate(FITS):
        module, logger = plain(), Noted()
        fit(module, GradientClipping(5.0), Penalty(**arguments), data=doubled(), logger=logger)
        for rank in ranks:
            assert rank[place]["state"].keys() == state_of(module).keys()
            for name, value in state_of(module).items():
                mine = rank[place]["state"][name]
                torch.testing.assert_close(mine, value, rtol=1e-9, atol=1e-12)
                assert torch.equal(mine == 0, value == 0)
        for step, values in logger.steps.items():
            assert ranks[0][place]["logged"][step] == pytest.approx(values, rel=1e-9)
            assert "penalty" in values


def fits_on_two_ranks() -> list[dict[str, Any]]:
    return [fit_on_two_ranks(*which) for which in FITS]


def fit_on_two_ranks(strategy: str, arguments: dict[str, Any]) -> dict[str, Any]:
    module: Net = Sharded() if strategy == "model_parallel" else Net()
    by: Any = {"ddp": "ddp", "model_parallel": ModelParallelStrategy(2, 1)}
    logger, kept = Noted(), State()
    trainer = trainer_of(
        GradientClipping(5.0), Penalty(**arguments), kept, logger=logger, strategy=by[strategy],
        devices=2, use_distributed_sampler=False,
    )  # fmt: skip
    mine: Any = doubled()[trainer.global_rank :: 2]
    trainer.fit(module.double(), DataLoader(mine, batch_size=1))
    return {"state": kept.state, "logged": logger.steps}
