"""Progressive unfreezing: when phases end, and what a phase trains."""

from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor, nn
from typing_extensions import override

from tests.callbacks.scripted import FILTERS, At, same, state_of, stop, trainer_of
from tests.callbacks.unfreezing import (
    BODY,
    HEAD,
    SCHEDULE,
    STEM,
    Each,
    Net,
    fit,
    loader,
    runs,
    trained,
    unfreezing,
)

pytestmark = FILTERS


def until(phase: dict[str, Any], **ends: Any) -> dict[str, Any]:
    return {**phase, "until": ends}


FLAT = {"monitor": "val_loss", "patience": 2}
RISING = {"monitor": "val_loss", "patience": 1, "mode": "max"}


@pytest.mark.parametrize(
    ("phases", "script", "options", "expected"),
    [
        pytest.param(SCHEDULE, [], {}, [("h", 4), ("hb", 4), ("hbs", 4)], id="epochs"),
        pytest.param(
            [until(HEAD, epoch=2), BODY, STEM],
            [],
            {"max_epochs": 4},
            [("h", 8), ("hb", 4), ("hbs", 4)],
            id="2 epochs",
        ),
        pytest.param(
            [until(HEAD, step=3), until(BODY, step=6), STEM],
            [],
            {},
            [("h", 3), ("hb", 6), ("hbs", 3)],
            id="steps",
        ),
        pytest.param(
            [until(HEAD, step=3), until(BODY, epoch=1), STEM],
            [],
            {},
            [("h", 3), ("hb", 1), ("hbs", 8)],
            id="the rest of an epoch",
        ),
        pytest.param(
            [until(HEAD, plateau=FLAT), until(BODY, plateau=FLAT), STEM],
            [3, 2, 2, 2, 5, 4, 4, 4, 4],
            {"max_epochs": 9},
            [("h", 16), ("hb", 16), ("hbs", 4)],
            id="plateaus, each with a best of its own",
        ),
        pytest.param(
            [until(HEAD, plateau=FLAT), STEM],
            [3, 4, 2, 3, 3],
            {"max_epochs": 6},
            [("h", 20), ("hs", 4)],
            id="a plateau of checks in a row",
        ),
        pytest.param(
            [until(HEAD, plateau=RISING), STEM],
            [1, 2, torch.nan, 3],
            {"max_epochs": 4},
            [("h", 12), ("hs", 4)],
            id="a plateau of what rises, by nan",
            marks=pytest.mark.filterwarnings("ignore:monitor='val_loss' has mode='max'"),
        ),
        pytest.param(
            [until(HEAD, plateau={**FLAT, "min_delta": 0.5}), STEM],
            [3, 2.5, 2, 1],
            {"max_epochs": 4},
            [("h", 16)],
            id="min_delta",
        ),
        pytest.param(
            [until(HEAD, plateau={**FLAT, "min_delta": 1}), STEM],
            [3, 2, 2, 1],
            {"max_epochs": 4},
            [("h", 12), ("hs", 4)],
            id="a change equal to min_delta",
        ),
        pytest.param(
            [until(HEAD, plateau=FLAT, step=6), until(BODY, epoch=5, plateau=FLAT), STEM],
            [3, 2, 2, 2, 2],
            {"max_epochs": 5},
            [("h", 6), ("hb", 10), ("hbs", 4)],
            id="the first of several",
        ),
        pytest.param(
            [HEAD, {"freeze": ["head"], **BODY}, {"freeze": ["body"], "blocks": ["stem", 0]}],
            [],
            {},
            [("h", 4), ("b", 4), ("hs", 4)],
            id="frozen again",
        ),
        pytest.param(SCHEDULE, [], {"fast_dev_run": 3}, [("h", 3)], id="fast_dev_run"),
        pytest.param(
            SCHEDULE, [], {"max_steps": 9}, [("h", 4), ("hb", 4), ("hbs", 1)], id="max_steps"
        ),
    ],
)
def test_when_phases_end(
    phases: Any, script: Any, options: dict[str, Any], expected: list[tuple[str, int]]
) -> None:
    fit(module := Net(script), unfreezing(*phases), **options)
    assert runs(module.trained) == expected


@pytest.mark.parametrize(
    ("options", "ends", "expected"),
    [
        ({"accumulate_grad_batches": 3}, {"step": 1}, [("h", 3), ("hs", 9)]),  # 2 steps an epoch
        ({"accumulate_grad_batches": 3}, {"step": 2}, [("h", 4), ("hs", 8)]),
        ({"accumulate_grad_batches": 3}, {"step": 3}, [("h", 7), ("hs", 5)]),
        (
            {"accumulate_grad_batches": 2, "val_check_interval": 1},
            {"plateau": {"monitor": "val_loss", "patience": 2}},
            [("h", 4), ("hs", 8)],  # flat after 3 batches, among accumulated gradients
        ),
    ],
)
def test_never_among_accumulated_gradients(
    options: dict[str, Any], ends: dict[str, Any], expected: list[tuple[str, int]]
) -> None:
    module = Net([1.0])
    trainer = fit(module, unfreezing(until(HEAD, **ends), STEM), **options)
    assert runs(module.trained) == expected
    assert trainer.global_step == 6


def test_a_phase_begins_before_the_epoch_of_the_module_itself() -> None:
    flags = []
    module = Net()
    module.on_train_epoch_start = lambda: flags.append(trained(module))  # type: ignore[method-assign]
    fit(module, unfreezing())
    assert flags == ["h", "hb", "hbs"]


def test_a_schedule_of_accumulation() -> None:
    module = Net()
    scheduler = GradientAccumulationScheduler({0: 1, 1: 4})
    fit(module, unfreezing(until(HEAD, step=5), STEM), scheduler)
    assert runs(module.trained) == [("h", 8), ("hs", 4)]


def test_a_value_of_training_epochs() -> None:
    class Logging(Net):
        @override
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            self.log("loss_of", 1.0, on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

    phase = until(HEAD, plateau={"monitor": "loss_of", "patience": 1})
    fit(module := Logging(), unfreezing(phase, STEM), limit_val_batches=0)
    assert runs(module.trained) == [("h", 8), ("hs", 4)]


def test_frozen_means_frozen() -> None:
    states: list[dict[str, Tensor]] = []
    note = Each("on_train_batch_start", lambda _, module: states.append(state_of(module)))
    back = Each("on_train_epoch_start", lambda _, module: module.train())  # a user's
    schedule = [
        HEAD,
        {"freeze": ["head"], **BODY},
        {"freeze": ["body"], "blocks": ["stem"]},
    ]
    module = Net()
    fit(module, unfreezing(*schedule), note, back)
    states.append(state_of(module))
    for step, name in enumerate(["head"] * 4 + ["body"] * 4 + ["stem"] * 4):
        before, after = states[step], states[step + 1]
        for key, value in before.items():
            # Weights and running statistics change, by momentum and decay, or stay as they are.
            assert torch.equal(value, after[key]) != key.startswith(name), (step, key)


def test_a_norm_without_parameters_is_frozen_with_its_block() -> None:
    class Unscaled(Net):
        def __init__(self) -> None:
            super().__init__()
            del self.head
            self.norm = nn.BatchNorm1d(4, affine=False)
            self.head = nn.Linear(4, 2)

        @override
        def forward(self, rows: Tensor) -> Tensor:
            hidden: Tensor = self.norm(self.body(self.stem(rows).relu()))
            return self.head(hidden.relu())  # type: ignore[no-any-return]

    counts = []
    note = Each(
        "on_train_epoch_end", lambda _, net: counts.append(int(net.norm.num_batches_tracked))
    )
    fit(Unscaled(), unfreezing(), note)
    assert counts == [0, 4, 8]


def test_only_what_is_trained_has_gradients_and_state() -> None:
    found = []

    def note(trainer: Any, module: Net) -> None:
        names = {p: name.partition(".")[0] for name, p in module.named_parameters()}
        graded = {name for p, name in names.items() if p.grad is not None}
        (optimizer,) = trainer.optimizers
        found.append((graded, {names[p] for p in optimizer.state}))

    phases = [HEAD, {"freeze": ["head"], **BODY}, STEM]
    fit(Net(), unfreezing(*phases), Each("on_train_batch_end", note))
    assert found[:4] == [({"head"}, {"head"})] * 4
    assert found[4:8] == [({"body"}, {"head", "body"})] * 4
    assert found[8:] == [({"body", "stem"}, {"head", "body", "stem"})] * 4


@pytest.mark.parametrize("dropout", [False, True])
def test_outputs_of_what_is_frozen(dropout: bool) -> None:
    equal, statistics = [], []

    def note(_: Any, module: Net) -> None:
        x = torch.randn(8, 3)
        out = module.body(module.stem(x))
        before = state_of(module.body)
        for part in (module.stem, module.body):
            part.train()
        equal.append(torch.equal(out, module.body(module.stem(x))))
        statistics.append(same(before, module.body.state_dict()))
        modes = [m.training for m in module.body.modules() if isinstance(m, nn.BatchNorm1d)]
        assert modes == [trained(module) != "h"]

    module = Net(p=0.5)
    fit(module, unfreezing(dropout=dropout), Each("on_train_batch_start", note))
    assert equal == [not dropout] * 4 + [False] * 8
    assert statistics == [True] * 4 + [False] * 8
    assert all(part.training for part in module.modules())


def test_two_zero_biases_of_one_shape() -> None:
    class Zero(Net):
        def __init__(self) -> None:
            super().__init__()
            for part in (self.body[0], self.stem[0]):
                nn.init.zeros_(part.bias)  # type: ignore[arg-type]
            self.body[1], self.stem[1] = nn.Identity(), nn.Identity()

    fit(module := Zero(), unfreezing(), max_epochs=4)
    assert module.body[0].bias.all()  # type: ignore[operator]
    assert module.stem[0].bias.all()  # type: ignore[operator]


class Manual(Net):
    """Two optimizers, which step after each ``every`` batches, whatever epoch these are of."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.every = every

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> None:  # type: ignore[override]
        self.trained.append(trained(self))
        optimizers: Any = self.optimizers()
        self.manual_backward((self(batch) - batch[:, :2]).square().mean())
        if len(self.trained) % self.every == 0:
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

    @override
    def configure_optimizers(self) -> Any:
        below = [*self.stem.parameters(), *self.body.parameters()]
        return torch.optim.Adam(self.head.parameters()), torch.optim.SGD(below, lr=0.1)


def test_several_optimizers_by_hand() -> None:
    module = Manual(2)
    callback = unfreezing(until(HEAD, step=3), until(BODY, epoch=1), STEM)  # steps of both count
    trainer = fit(module, callback)
    assert runs(module.trained) == [("h", 4), ("hb", 4), ("hbs", 4)]
    names = [[group["name"] for group in o.param_groups] for o in trainer.optimizers]
    assert names == [["head"], ["body", "stem"]]


def test_gradients_accumulated_by_hand_across_epochs() -> None:
    fit(module := Manual(3), unfreezing(HEAD, STEM))
    assert runs(module.trained) == [("h", 6), ("hs", 6)]


@pytest.mark.filterwarnings("ignore:.* are never trained")
def test_the_module_is_given_back_as_it_came() -> None:
    module = Net()
    module.stem[0].bias.requires_grad_(False)
    module.body.eval()
    flags = [p.requires_grad for p in module.parameters()]
    modes = [part.training for part in module.modules()]
    with pytest.warns(UserWarning, match=r"Found 4 module\(s\) in eval mode at the start"):
        fit(module, unfreezing(), max_epochs=1)
    assert [p.requires_grad for p in module.parameters()] == flags
    assert [part.training for part in module.modules()] == modes
    assert "train" not in vars(module.stem)

    def fail(trainer: Any) -> None:
        raise RuntimeError("a user's mistake")

    with pytest.raises(RuntimeError, match="a user's mistake"):
        fit(module := Net(), unfreezing(), At(1, fail))
    assert trained(module) == "hbs"


@pytest.mark.filterwarnings("ignore:.* are never trained")
def test_a_second_fit() -> None:
    callback = unfreezing()
    module = Net()
    trainer = fit(module, callback, max_epochs=2)
    assert callback.phase == 2
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, loader(), loader(8))  # goes on
    assert runs(module.trained) == [("h", 4), ("hb", 4), ("hbs", 8)]
    module.trained.clear()
    trainer_of(callback).validate(module, loader(8), verbose=False)
    assert callback.phase == 3  # as the fit has left it
    fit(module, callback)  # begins anew
    assert runs(module.trained) == [("h", 4), ("hb", 4), ("hbs", 4)]


def test_what_ends_early_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "lightning.pytorch")
    fit(Net(), unfreezing(), At(5, stop))
    assert "the fit has ended in phase 2/3, so the blocks of" in caplog.text
