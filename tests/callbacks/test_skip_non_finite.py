"""Steps of nan and infinite gradients: nothing of them remains, and many in a row end the fit."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from typing_extensions import override

from lightning_practices.callbacks import GradientClipping, SkipNonFinite
from tests import processes
from tests.callbacks.clipping import (
    BATCHES,
    Gradients,
    Manual,
    Net,
    Noted,
    fit,
    norm_of,
    rows,
    trainer_of,
)
from tests.callbacks.scripted import FILTERS, same, state_of

pytestmark = FILTERS

OPTIMIZERS: list[tuple[Any, dict[str, Any]]] = [
    (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
    (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1, "fused": True}),
    (torch.optim.AdamW, {"weight_decay": 0.1, "foreach": True}),
    (torch.optim.AdamW, {"weight_decay": 0.1, "fused": True}),
    (torch.optim.Adam, {"weight_decay": 0.1, "amsgrad": True}),
    (torch.optim.RMSprop, {"weight_decay": 0.1, "momentum": 0.9}),
    (torch.optim.NAdam, {"decoupled_weight_decay": True, "weight_decay": 0.1}),
    (torch.optim.Adafactor, {"weight_decay": 0.1}),
]


def data(*bad: int, value: float = math.nan) -> list[Tensor]:
    """Return rows of which one of each bad batch has a value that isn't finite."""
    given = rows()
    given[[2 * batch for batch in bad], 0] = value
    return list(given)


def without(*bad: int) -> list[Tensor]:
    return [row for i, row in enumerate(rows()) if i // 2 not in bad]


# What remains of a step.


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS, ids=str)
def test_a_fit_with_bad_batches_is_one_without_them(
    kind: Any, options: dict[str, Any], value: float
) -> None:
    module, skip = Net(kind, **options), SkipNonFinite()
    trainer = fit(module, skip, data=data(1, 2, 5, value=value))
    expected = Net(kind, **options)
    fit(expected, data=without(1, 2, 5))
    assert same(state_of(module), state_of(expected))
    assert (skip.skipped, skip.consecutive) == (6, {0: 1})
    assert trainer.global_step == 2 * BATCHES  # as of any other step


def test_without_it_the_weights_are_lost() -> None:
    fit(module := Net(), data=data(1))
    assert all(p.isnan().any() for p in module.net[0].parameters())


def test_large_finite_gradients_are_used() -> None:
    class Large(Net):
        @override
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * 1e30  # its square isn't float32

    fit(module := Large(lr=1e-31), skip := SkipNonFinite(1))
    fit(expected := Large(lr=1e-31))
    assert skip.skipped == 0
    assert same(state_of(module), state_of(expected))


def test_an_accumulated_step_is_lost_as_a_whole() -> None:
    fit(module := Net(), skip := SkipNonFinite(), data=data(1), accumulate_grad_batches=3)
    fit(expected := Net(), data=without(0, 1, 2), accumulate_grad_batches=3)
    assert skip.skipped == 2
    assert same(state_of(module), state_of(expected))


class Halves(Manual):
    """The first optimizer's gradients are bad at batch 3, at which the second steps too."""

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        hook = self.net[0].weight.register_hook(
            lambda grad: grad * (math.nan if batch_idx == 3 else 1.0)
        )
        loss = super().training_step(batch, batch_idx)
        hook.remove()
        return loss


def test_each_optimizer_by_itself() -> None:
    module, skip = Halves(), SkipNonFinite()
    fit(module, skip, max_epochs=1)
    skipped = [grads == [None, None] for grads in module.seen]
    assert skipped == [batch == 3 for batch in range(BATCHES)]
    assert all(norm_of(grads) > 0 for grads in module.other)
    assert (skip.skipped, skip.consecutive) == (1, {0: 0, 1: 0})


@pytest.mark.parametrize("skip_first", [True, False])
def test_with_clipping_in_either_order(skip_first: bool) -> None:
    skip, clipping = SkipNonFinite(), GradientClipping(percentile=50)
    callbacks = [skip, clipping] if skip_first else [clipping, skip]
    fit(module := Net(), *callbacks, data=data(1))
    fit(expected := Net(), GradientClipping(percentile=50), data=without(1))
    assert same(state_of(module), state_of(expected))
    assert clipping.state_dict()["optimizers"][0]["steps"] == 2 * BATCHES - 2


def test_it_is_left_to_the_scaler() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    module, skip = Net(), SkipNonFinite(1)
    fit(module, skip, data=data(1, 2), plugins=[plugin])
    assert (skip.skipped, skip.consecutive) == (0, {})
    assert scaler.get_scale() == 2.0**4
    assert len(module.seen) == 2 * BATCHES - 4
    assert all(p.isfinite().all() for p in module.parameters())


# What is counted, logged and saved.


def test_what_is_logged() -> None:
    logger = Noted()
    fit(Net(), SkipNonFinite(), data=data(1, 2, 4), logger=logger, max_epochs=1)
    assert logger.of("skipped_steps") == [0, 1, 2, 2, 3, 3]


def test_counts_survive_a_checkpoint(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    fit(Net(), SkipNonFinite(), save, data=data(1, 4, 5), max_epochs=1)
    saved = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)["callbacks"]["SkipNonFinite"]
    assert saved == {"skipped": 3, "consecutive": {0: 2}}
    skip = SkipNonFinite(4)
    options = {"data": data(0, 1, 3), "resume": tmp_path / "epoch=0.ckpt"}
    with pytest.raises(RuntimeError, match="in 4 steps in a row"):
        fit(Net(), skip, **options)
    assert skip.skipped == 5


def test_a_new_fit_starts_afresh() -> None:
    skip = SkipNonFinite()
    for _ in range(2):
        fit(Net(), skip, data=data(1, 5), max_epochs=1)
        assert (skip.skipped, skip.consecutive) == (2, {0: 1})


# The end.


class Torn(Net):
    """Has a middle layer through which nan comes into the backward pass, from a batch on."""

    def __init__(self, since: int = 2) -> None:
        super().__init__(momentum=0.9)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 1))
        self.since = since
        self.before: dict[str, Tensor] = {}
        self.bad: list[Gradients] = []

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if batch_idx == self.since:
            self.before = state_of(self)
        hidden = self.net[1](self.net[0](batch))
        if batch_idx >= self.since:
            hidden.register_hook(lambda grad: grad * torch.tensor([1.0, 1.0, 1.0, math.nan]))
        loss: Tensor = self.net[2](hidden).square().mean()
        return loss


def test_many_in_a_row_end_the_fit_with_a_report() -> None:
    module, skip = Torn(), SkipNonFinite(3)
    with pytest.raises(RuntimeError) as error:
        fit(module, GradientClipping(1.0), skip)  # which would have made all gradients nan
    assert skip.skipped == 3
    assert same(state_of(module), module.before)
    assert all(state_of(module)[name].isfinite().all() for name in module.before)
    report = skip.report
    assert report is not None
    found = {p.name: (p.nan, p.infinite) for p in report.parameters}
    assert found == {
        "net.0.weight": (1.0, 0.0), "net.0.bias": (1.0, 0.0),
        "net.1.weight": (0.25, 0.0), "net.1.bias": (0.25, 0.0),
    }  # fmt: skip
    assert (report.first_layer, report.last_layer, report.finite) == ("net.0", "net.1", 2)
    message = str(error.value)
    assert message.startswith(
        "SkipNonFinite: gradients were nan or infinite in 3 steps in a row, the last of which is"
        " step 4 in epoch 0. No such step has changed the weights.\n4 of 6 parameters: in the"
        " module's order the first layer is net.0, and the last, which the backward pass mostly"
        " comes to first, net.1.\n"
    )
    assert "net.1.weight" in message
    assert "25.0%" in message
    assert str(report) in message
    assert repr(report) == "NonFiniteReport(4 non-finite, 2 finite)"


def test_a_good_step_starts_the_count_again() -> None:
    fit(Net(), skip := SkipNonFinite(3), data=data(0, 1, 3, 4))
    assert skip.skipped == 8


def test_a_long_report() -> None:
    module = Net()
    module.net = nn.Sequential(*(nn.Linear(3, 3) for _ in range(20)))
    with pytest.raises(RuntimeError, match="40 of 40 parameters") as error:
        fit(module, SkipNonFinite(1), data=data(0, value=math.inf))
    assert "and 20 more" in str(error.value)


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: list[Any] = ["x", math.nan, 1.5, True]
    for value in wrong:
        with pytest.raises(TypeError, match=f"max_consecutive has to be a whole .* got {value!r}"):
            SkipNonFinite(value)
    with pytest.raises(ValueError, match=r"max_consecutive has to be a whole .* 1 on, but got 0"):
        SkipNonFinite(0)
    with pytest.raises(MisconfigurationException, match="can't skip a step of LBFGS"):
        fit(Net(torch.optim.LBFGS), SkipNonFinite())
    trainer = trainer_of()
    # As if it were installed: what is asked is only of which class the strategy is.
    trainer._accelerator_connector.strategy = object.__new__(DeepSpeedStrategy)
    with pytest.raises(MisconfigurationException, match="under DeepSpeedStrategy, which keeps"):
        SkipNonFinite().setup(trainer, Net(), "fit")


# Two ranks, of which one alone has the bad row.


class Sharded(Net):
    def configure_model(self) -> None:
        assert self.device_mesh is not None
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


class Apart(Net):
    """Has a layer whose gradients DDP doesn't average."""

    def __init__(self) -> None:
        super().__init__(torch.optim.AdamW)
        self._ddp_params_and_buffers_to_ignore = ["net.2.weight", "net.2.bias"]
        self.factor = torch.tensor(1.0)
        self.net[2].weight.register_hook(lambda grad: grad * self.factor)

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.factor = batch.sum() / batch.sum()  # nan on one rank
        loss: Tensor = self.net(batch.nan_to_num()).square().mean()
        return loss


def test_ranks_skip_and_stop_together() -> None:
    ranks = processes.run(fits_on_two_ranks, [()] * 2)
    for kind in ("ddp", "sharded", "apart"):
        mine, other = (rank[kind] for rank in ranks)
        assert mine["skipped"] == other["skipped"] == 3
        assert mine["report"] == other["report"]
        assert all(value.isfinite().all() for value in [*mine["state"].values()])
        if kind != "apart":
            assert same(mine["state"], other["state"])
    expected = Net(torch.optim.AdamW)
    fit(expected, data=without(1, 4, 5), max_epochs=1)
    for kind in ("ddp", "sharded"):
        for name, value in state_of(expected).items():
            torch.testing.assert_close(ranks[0][kind]["state"][name], value)
    names = [name for name, _ in Net().named_parameters()]
    for kind in ("ddp", "sharded"):
        assert ranks[0][kind]["report"] == [(name, 1.0, 0.0) for name in names]
    assert ranks[0]["apart"]["report"] == [("net.2.weight", 0.5, 0.0)]  # of both ranks' elements


def fits_on_two_ranks() -> dict[str, Any]:
    return {kind: fit_on_two_ranks(kind) for kind in ("ddp", "sharded", "apart")}


def fit_on_two_ranks(kind: str) -> dict[str, Any]:
    strategy: Any = DDPStrategy() if kind != "sharded" else ModelParallelStrategy(2, 1)
    modules = {"ddp": Net, "sharded": Sharded}
    module = modules[kind](torch.optim.AdamW) if kind in modules else Apart()
    skip = SkipNonFinite(2)
    trainer = trainer_of(
        skip, strategy=strategy, devices=2, use_distributed_sampler=False, max_epochs=1
    )
    given = data(1, 4, 5)[trainer.global_rank :: 2]  # the bad rows are all of rank 0
    try:
        trainer.fit(module, torch.utils.data.DataLoader(given, batch_size=1))  # type: ignore[arg-type]
    except RuntimeError:
        assert skip.report is not None
    state = {
        name: value.full_tensor() if isinstance(value, DTensor) else value
        for name, value in state_of(module).items()
    }
    assert skip.report is not None
    report = [(p.name, p.nan, p.infinite) for p in skip.report.parameters]
    return {"state": state, "skipped": skip.skipped, "report": report}
