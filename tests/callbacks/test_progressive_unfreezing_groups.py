"""Progressive unfreezing: the groups and rates of a user's own optimizers and schedulers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim import SGD, Adam, AdamW, Optimizer, lr_scheduler
from torch.optim.swa_utils import SWALR
from typing_extensions import override

from lightning_practices.callbacks._unfreezing.groups import split_groups
from lightning_practices.callbacks._unfreezing.plan import Share
from lightning_practices.mixins import LearningRateScheduleMixin
from lightning_practices.schedules import LearningRateSchedule
from lightning_practices.surgery import blocks
from tests.callbacks.scripted import FILTERS
from tests.callbacks.unfreezing import BODY, HEAD, STEM, Net, fit, loader, unfreezing

pytestmark = FILTERS

SCALES = {"head": 1.0, "body": 0.5, "stem": 0.25}
RATE = 0.25

Make = Callable[[Optimizer, Callable[[float], Any]], Any]


def both(optimizer: Optimizer, each: Callable[[float], Any]) -> Any:
    linear = lr_scheduler.LinearLR(optimizer, 0.25, total_iters=4)
    return lr_scheduler.SequentialLR(
        optimizer, [linear, lr_scheduler.CosineAnnealingLR(optimizer, 8)], [4]
    )


def chained(optimizer: Optimizer, each: Callable[[float], Any]) -> Any:
    constant = lr_scheduler.ConstantLR(optimizer, 0.5, 3)
    return lr_scheduler.ChainedScheduler([constant, lr_scheduler.ExponentialLR(optimizer, 0.5)])


MAKES: dict[str, Make] = {
    "LambdaLR": lambda o, _: lr_scheduler.LambdaLR(o, lambda step: 1 / (step + 1)),
    "MultiplicativeLR": lambda o, _: lr_scheduler.MultiplicativeLR(o, lambda step: 0.5),
    "StepLR": lambda o, _: lr_scheduler.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o, _: lr_scheduler.MultiStepLR(o, [2, 5], 0.5),
    "PolynomialLR": lambda o, _: lr_scheduler.PolynomialLR(o, 10, 2.0),
    "CosineAnnealingLR": lambda o, _: lr_scheduler.CosineAnnealingLR(o, 6),
    "WarmRestarts": lambda o, _: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "OneCycleLR": lambda o, each: lr_scheduler.OneCycleLR(o, each(RATE), total_steps=12),
    "CyclicLR": lambda o, each: lr_scheduler.CyclicLR(o, each(RATE), each(1.0), step_size_up=3),
    "SequentialLR": both,
    "ChainedScheduler": chained,
    "SWALR": lambda o, each: SWALR(o, each(0.5), anneal_epochs=4),
    "ReduceLROnPlateau": lambda o, each: lr_scheduler.ReduceLROnPlateau(
        o, factor=0.25, patience=0, min_lr=each(0.01)
    ),
}


def shares_of(model: nn.Module) -> dict[int, Share]:
    names = dict(model.named_parameters())
    return {
        id(names[name]): Share(block, SCALES[block.name], True, None)
        for block in blocks(model)
        for name in block.parameters
    }


def rates_of(optimizer: Optimizer, scheduler: Any) -> list[list[float]]:
    """Return the rates by group, and what the scheduler says they are, step by step."""
    found = [scheduler.get_last_lr()]
    for _ in range(10):
        optimizer.step()
        found.append([group["lr"] for group in optimizer.param_groups])
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            scheduler.step(1.0)
        else:
            scheduler.step()
        found.append(scheduler.get_last_lr())
    return found


@pytest.mark.parametrize("name", MAKES)
def test_a_scheduler_goes_on_as_if_made_with_the_groups(name: str) -> None:
    model = Net()
    optimizer = SGD(model.parameters(), RATE, momentum=0.9)
    scheduler = MAKES[name](optimizer, lambda rate: rate)
    split_groups(optimizer, [scheduler], shares_of(model))
    assert [group["name"] for group in optimizer.param_groups] == ["head", "body", "stem"]

    groups = [
        {"params": getattr(model, block).parameters(), "lr": RATE * scale}
        for block, scale in SCALES.items()
    ]
    expected = SGD(groups, RATE, momentum=0.9)
    reference = MAKES[name](expected, lambda rate: [rate * scale for scale in SCALES.values()])
    # Powers of two scale exactly, and the lambdas' and the cosines' products nearly.
    torch.testing.assert_close(
        torch.tensor(rates_of(optimizer, scheduler), dtype=torch.float64),
        torch.tensor(rates_of(expected, reference), dtype=torch.float64),
        rtol=1e-15,
        atol=0,
    )
    assert scheduler.state_dict().keys() == reference.state_dict().keys()


def test_options_and_names_of_parameters() -> None:
    model = Net()
    weights = [(n, p) for n, p in model.named_parameters() if "weight" in n]
    biases = [(n, p) for n, p in model.named_parameters() if "bias" in n]
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": 0.1, "name": "decay"},
        {"params": biases, "lr": 0.5},
    ]
    optimizer = AdamW(groups, lr=torch.tensor(0.25), betas=(0.5, 0.75), capturable=True)
    before = optimizer.param_groups
    split_groups(optimizer, [], shares_of(model))
    assert optimizer.param_groups is before  # whoever holds the list sees the groups
    names = ["head/decay", "body/decay", "stem/decay", "head", "body", "stem"]
    assert [group["name"] for group in before] == names
    assert [group["weight_decay"] for group in before] == [0.1] * 3 + [0.01] * 3
    assert [float(group["lr"]) for group in before] == [0.25, 0.125, 0.0625, 0.5, 0.25, 0.125]
    assert len({id(group["lr"]) for group in before[:3]}) == 3
    for group in before:
        assert group["betas"] == (0.5, 0.75)
        named = dict(zip(group["param_names"], group["params"], strict=True))
        assert named == {n: p for n, p in model.named_parameters() if n in named}
        assert all(name.startswith(group["block"]) for name in named)
    assert sum(len(group["params"]) for group in before) == len([*model.parameters()])
    split_groups(optimizer, [], shares_of(model))  # what is split stays
    assert [group["name"] for group in optimizer.param_groups] == names
    assert [float(group["lr"]) for group in before[:3]] == [0.25, 0.125, 0.0625]


def test_names_are_unique() -> None:
    model = Net()
    halves = [p for n, p in model.named_parameters() if "weight" in n]
    rest = [p for n, p in model.named_parameters() if "weight" not in n]
    optimizer = SGD([{"params": halves}, {"params": rest}], lr=0.1)
    split_groups(optimizer, [], shares_of(model))
    names = [group["name"] for group in optimizer.param_groups]
    assert names == ["head-0", "body-0", "stem-0", "head-1", "body-1", "stem-1"]


def test_rates_of_a_fit() -> None:
    schedule = [HEAD, {**BODY, "lr_scale": 0.5}, STEM]
    module = Net()
    fit(module, unfreezing(*schedule, decay=0.25))
    assert module.rates == [{"head": 0.1, "body": 0.05, "stem": 0.1 * 0.25**2}] * 12
    fit(module := Net(), unfreezing(*schedule, decay=1))
    assert module.rates[0] == {"head": 0.1, "body": 0.05, "stem": 0.1}


def test_groups_by_block_keep_their_own_rates() -> None:
    class Own(Net):
        @override
        def configure_optimizers(self) -> Any:
            groups = []
            for block, rate in {"head": 0.25, "body": 0.125, "stem": 0.0625}.items():
                weight, *others = getattr(self, block).parameters()
                groups += [{"params": [weight], "lr": rate}]
                groups += [{"params": others, "lr": rate, "weight_decay": 0.0, "name": "others"}]
            return Adam(groups)

    module = Own()
    fit(module, unfreezing(decay=0.1))
    assert module.rates[0] == {
        "head": 0.25,
        "head/others": 0.25,
        "body": 0.125,
        "body/others": 0.125,
        "stem": 0.0625,
        "stem/others": 0.0625,
    }
    fit(module := Own(), unfreezing(HEAD, {**BODY, "lr_scale": 0.1}, STEM))
    assert [*module.rates[0].values()][::2] == [0.25, 0.125 * 0.1, 0.0625]


def test_groups_by_block_of_one_rate_have_the_decay() -> None:
    groups = lambda net: [{"params": getattr(net, name).parameters()} for name in SCALES]  # noqa: E731
    fit(module := Picky(lambda net: Adam(groups(net), lr=0.5)), unfreezing(decay=0.5))
    assert module.rates[0] == {"head": 0.5, "body": 0.25, "stem": 0.125}


def test_a_cycle_runs_across_phases(tmp_path: Any) -> None:
    class Cycle(Net):
        @override
        def configure_optimizers(self) -> Any:
            optimizer = Adam(self.parameters(), lr=0.5)
            scheduler = lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=13)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    module = Cycle()
    logger, monitor = CSVLogger(tmp_path), LearningRateMonitor("step")
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        callbacks=[unfreezing(decay=0.5), monitor],
        logger=logger,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader(), loader(8))
    one = SGD(nn.Linear(1, 1).parameters(), lr=0.5)
    cycle = lr_scheduler.OneCycleLR(one, 0.5, total_steps=13)
    for rates in module.rates:
        (rate,) = cycle.get_last_lr()
        assert rates == pytest.approx({"head": rate, "body": rate / 2, "stem": rate / 4}, rel=1e-12)
        one.step()
        cycle.step()
    assert {"lr-Adam/head", "lr-Adam/body", "lr-Adam/stem"} <= trainer.callback_metrics.keys()


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle", "plateau"])
def test_schedules_of_the_mixin(schedule: Any) -> None:
    class Scheduled(LearningRateScheduleMixin, Net):
        pass

    values = [1.0, 1.0, 2.0]
    given = LearningRateSchedule(schedule, patience=0)
    module, whole = (Scheduled(script=values, schedule=given) for _ in range(2))
    fit(module, unfreezing(decay=0.5))
    fit(whole, unfreezing(decay=1))
    for rates, own in zip(module.rates, whole.rates, strict=True):
        expected = {"head": own["head"], "body": own["head"] / 2, "stem": own["head"] / 4}
        assert rates == pytest.approx(expected, rel=1e-12)
    assert module.rates[0] != module.rates[-1]


def test_a_floor_above_a_rate() -> None:
    class Floor(Net):
        @override
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [lr_scheduler.CosineAnnealingLR(optimizer, 3, eta_min=0.02)]

    message = r"CosineAnnealingLR\(eta_min=0.02\) is the least rate .* of stem would rise to it"
    with pytest.warns(UserWarning, match=message):
        fit(Floor(), unfreezing(decay=0.3))
    fit(Floor(), unfreezing(decay=0.5))


class Picky(Net):
    def __init__(self, make: Callable[[Net], Any]) -> None:
        super().__init__()
        self.make = make

    @override
    def configure_optimizers(self) -> Any:
        return self.make(self)


def test_an_optimizer_of_what_was_trainable() -> None:
    # No phase has frozen anything by then.
    module = Picky(lambda net: SGD([p for p in net.parameters() if p.requires_grad], lr=0.1))
    fit(module, unfreezing())
    assert module.rates[0].keys() == {"head", "body", "stem"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda net: SGD([*net.head.parameters(), *net.stem.parameters()], lr=0.1),
            r"configure_optimizers of Picky has left out 4 parameters .*: body.0.weight, .*give",
        ),
        (lambda net: torch.optim.LBFGS(net.parameters()), "groups of LBFGS can't change"),
    ],
)
def test_optimizers_that_are_refused(make: Any, message: str) -> None:
    with pytest.raises(Exception, match=message):
        fit(Picky(make), unfreezing())


def test_an_optimizer_that_needs_a_group_of_processes() -> None:
    optimizer: Any = object.__new__(ZeroRedundancyOptimizer)
    with pytest.raises(Exception, match="groups of ZeroRedundancyOptimizer can't change"):
        split_groups(optimizer, [], {})


def test_a_scheduler_that_is_refused() -> None:
    class Stranger:
        def __init__(self, optimizer: Optimizer) -> None:
            self.optimizer = optimizer

    optimizer = SGD(Net().parameters(), lr=0.1)
    with pytest.raises(Exception, match=r"which attributes Stranger has.*torch\.optim\.lr_sch"):
        split_groups(optimizer, [Stranger(optimizer)], {})


def test_a_scheduler_of_another_optimizer() -> None:
    model, other = Net(), Net()
    first, second = SGD(model.parameters(), lr=0.5), SGD(other.parameters(), lr=0.25)
    scheduler = lr_scheduler.StepLR(second, 1, 0.5)
    split_groups(first, [scheduler], shares_of(model))
    assert scheduler.base_lrs == [0.25]
    assert len(second.param_groups) == 1


def test_parameters_that_are_not_the_models() -> None:
    model, stranger = Net(), nn.Parameter(torch.zeros(1))
    optimizer = SGD([*model.parameters(), stranger], lr=0.5)
    split_groups(optimizer, [], shares_of(model))
    (others,) = (group for group in optimizer.param_groups if group["block"] == "others")
    assert (others["params"], others["lr"]) == ([stranger], 0.5)


def test_a_tensor_as_rate_is_each_groups_own() -> None:
    model = Net()
    rate: Tensor = torch.tensor(0.5)
    optimizer = Adam(model.parameters(), lr=rate, capturable=True)
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
    split_groups(optimizer, [scheduler], shares_of(model))
    optimizer.step()
    scheduler.step()
    assert [float(group["lr"]) for group in optimizer.param_groups] == [0.25, 0.125, 0.0625]
    assert rate == 0.5
