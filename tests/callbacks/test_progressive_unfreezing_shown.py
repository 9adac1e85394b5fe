"""Progressive unfreezing: what it shows, and what others freeze beside it."""

import csv
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BackboneFinetuning, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from typing_extensions import override

from lightning_practices.callbacks import ProgressiveUnfreezing
from lightning_practices.callbacks._unfreezing.progress import rates_by_block
from tests.callbacks.scripted import FILTERS, At, same, state_of
from tests.callbacks.unfreezing import (
    BODY,
    HEAD,
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

HEAD_SHOWN = """\
ProgressiveUnfreezing: phase 1/3, as the fit starts, until 1 epoch: 16.1% is trained
depth  block  parameters  trainable  rate
    0  head           10         10  0.1
    1  body           28          0
    2  stem           24          0"""

BODY_SHOWN = """\
ProgressiveUnfreezing: phase 2/3 middle, after 1 epoch, until 2 steps or a plateau of val_loss: \
61.3% is trained
depth  block  parameters  trainable  rate
    0  head           10         10  0.1
    1  body           28         28  0.05
    2  stem           24          0"""


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level("INFO", "lightning.pytorch")

    def messages() -> list[str]:
        found = (record.getMessage() for record in caplog.records)
        return [message for message in found if message.startswith("ProgressiveUnfreezing")]

    return messages


def test_a_table_at_each_transition(told: Callable[[], list[str]]) -> None:
    until = {"step": 2, "plateau": {"monitor": "val_loss"}}
    schedule: dict[str | int, Any] = {1: HEAD, "middle": {**BODY, "until": until}, 3: STEM}
    fit(Net(), ProgressiveUnfreezing(schedule, decay=0.5))
    first, second, third = told()
    assert (first, second) == (HEAD_SHOWN, BODY_SHOWN)
    assert third.startswith("ProgressiveUnfreezing: phase 3/3, after 2 steps, until the end of the")


def test_the_rate_of_a_block_is_the_largest_of_its_groups() -> None:
    layers = [nn.Linear(1, 1) for _ in range(4)]
    rates = {"a": [0.1, 0.01, 1.0], "b": [0.5]}
    each = [(block, rate) for block, its in rates.items() for rate in its]
    groups = [
        {"params": layer.parameters(), "lr": rate, "block": block}
        for layer, (block, rate) in zip(layers, each, strict=True)
    ]
    optimizer = torch.optim.SGD(groups, lr=2.0)
    layers[2].requires_grad_(False)
    assert rates_by_block([optimizer]) == {"a": 0.1, "b": 0.5}


def logged(folder: Any, *callbacks: Any, **options: Any) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        callbacks=[unfreezing(decay=0.5), *callbacks],
        logger=CSVLogger(folder),
        enable_checkpointing=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(Net(), loader(), loader(8))
    return trainer


def test_what_is_logged(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    log, calls = Net.log_dict, []

    def log_dict(module: Net, values: Any) -> None:
        calls.append(module.trainer.global_step)
        log(module, values)

    monkeypatch.setattr(Net, "log_dict", log_dict)
    logged(tmp_path, log_every_n_steps=2, enable_progress_bar=False)
    assert calls == [1, 3, 5, 7, 9, 11]  # no rate is read in between
    (path,) = tmp_path.rglob("metrics.csv")
    with path.open() as file:
        read = [{key: float(v) for key, v in row.items() if v} for row in csv.DictReader(file)]
    found = [row for row in read if "phase" in row]
    assert [row["step"] for row in found] == [1, 3, 5, 7, 9, 11]
    assert [row["phase"] for row in found] == [1, 1, 2, 2, 3, 3]
    shares = [row["trainable_share"] for row in found]
    assert shares == pytest.approx([10 / 62] * 2 + [38 / 62] * 2 + [1.0] * 2)
    assert [{key for key in row if key.startswith("lr/")} for row in found[::2]] == [
        {"lr/head"},
        {"lr/head", "lr/body"},
        {"lr/head", "lr/body", "lr/stem"},
    ]
    assert [found[-1][f"lr/{name}"] for name in ("head", "body", "stem")] == pytest.approx(
        [0.1, 0.05, 0.025]
    )


def test_the_progress_bar(tmp_path: Any) -> None:
    shown = []

    def note(trainer: Trainer, module: Net) -> None:
        bar = trainer.progress_bar_callback
        assert bar is not None
        shown.append(str(bar.get_metrics(trainer, module)["phase"]))

    logged(tmp_path, TQDMProgressBar(), Each("on_train_batch_end", note), log_every_n_steps=1)
    assert runs(shown) == [("1/3", 4), ("2/3", 4), ("3/3", 4)]


def test_barebones() -> None:
    module = Net()
    trainer = Trainer(barebones=True, accelerator="cpu", max_epochs=3, callbacks=[unfreezing()])
    trainer.fit(module, loader(), loader(8))
    assert runs(module.trained) == [("h", 4), ("hb", 4), ("hbs", 4)]


class LowRank(nn.Module):
    """A user's own: its base is frozen, what is added to it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(4, 4).requires_grad_(False)
        self.drop = nn.Dropout(0.5)
        self.added = nn.Linear(4, 4, bias=False)

    @override
    def forward(self, rows: Tensor) -> Tensor:
        out: Tensor = self.base(rows) + self.added(self.drop(rows))
        return out


class Adapted(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body[0] = LowRank()


def test_what_the_module_has_frozen_stays_so(told: Callable[[], list[str]]) -> None:
    module, modes = Adapted(), []
    before = state_of(module.body[0].base)  # type: ignore[arg-type]
    note = Each("on_train_batch_start", lambda _, net: modes.append(net.body[0].base.training))
    fit(module, unfreezing(), note)
    assert same(before, module.body[0].base.state_dict())  # type: ignore[union-attr]
    assert [p.requires_grad for p in module.body[0].parameters()] == [False, False, True]
    assert modes == [False] * 4 + [True] * 8  # in a frozen block, and left alone
    message = "the module itself has frozen, and no phase unfreezes, body.0.base.bias, body.0.base."
    assert message in told()[0]
    with pytest.raises(ValueError, match=r"'body.0.base' is empty: the model itself has frozen"):
        fit(Adapted(), unfreezing({"blocks": ["body.0.base"]}))


def test_what_it_has_frozen_goes_with_the_layer_around_it() -> None:
    modes: list[list[bool]] = []

    def note(trainer: Trainer, module: Net) -> None:
        layer = module.body[0]
        modes.append([part.training for part in (module.body[1], layer.base, layer.drop)])  # type: ignore[union-attr]

    first: dict[str, Any] = {"blocks": ["head", "body.1"], "until": {"epoch": 1}}
    fit(Adapted(), unfreezing(first, {"blocks": ["body.0"]}), Each("on_train_batch_start", note))
    assert modes == [[True, False, False]] * 4 + [[True, True, True]] * 8


def test_parts_of_a_block() -> None:
    schedule: list[dict[str, Any]] = [
        {"blocks": ["head", "re:dy.*bias"], "until": {"epoch": 1}},
        {"blocks": ["body.0.weight", "body.1.weight"], "lr_scale": 0.5},
    ]
    found = []

    def note(trainer: Trainer, module: Net) -> None:
        names = {name for name, p in module.named_parameters() if p.requires_grad}
        found.append((names, [module.stem.training, module.body.training]))

    module = Net()
    before = state_of(module.stem)
    fit(module, unfreezing(*schedule, decay=0.5), Each("on_train_batch_end", note))
    first = {"head.weight", "head.bias", "body.0.bias", "body.1.bias"}
    assert found[0] == (first, [False, True])
    assert found[-1] == (first | {"body.0.weight", "body.1.weight"}, [False, True])
    assert same(before, module.stem.state_dict())
    assert module.rates[0] == {"head": 0.1, "body": 0.05} | {"stem": 0.1 * 0.25}


def test_two_rates_in_a_block() -> None:
    schedule: list[dict[str, Any]] = [
        {"blocks": ["head", "body.1"], "lr_scale": 1, "until": {"epoch": 1}},
        {"blocks": ["body.0"]},
    ]
    fit(module := Net(), unfreezing(*schedule, decay=0.5))
    assert sorted(module.rates[0].items()) == [
        ("body-0", 0.05),
        ("body-1", 0.1),
        ("head", 0.1),
        ("stem", 0.1 * 0.25),
    ]


def test_what_others_change_during_a_fit_stays_so() -> None:
    def change(trainer: Trainer) -> None:
        trainer.lightning_module.stem[0].bias.requires_grad_(True)  # type: ignore[union-attr,index]
        trainer.lightning_module.head.bias.requires_grad_(False)  # type: ignore[union-attr]

    found = []

    def note(trainer: Trainer, module: Net) -> None:
        found.append((module.stem[0].bias.requires_grad, module.head.bias.requires_grad))

    module = Net()
    message = r"frozen or unfrozen parameters .* leaves them so: stem.0.bias, head.bias"
    with pytest.warns(UserWarning, match=message):
        fit(module, unfreezing(), At(1, change), Each("on_train_batch_end", note))
    assert found == [(False, True)] + [(True, False)] * 11
    assert [p.requires_grad for p in module.head.parameters()] == [True, False]
    assert all(p.requires_grad for p in module.stem.parameters())


# Of torch.compile's own making.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_network() -> None:
    modules = [Net(), Net(), Net()]
    modules[1].body = torch.compile(modules[1].body, backend="eager")  # type: ignore[assignment]
    modules[2].compile(backend="eager")
    for module in modules:
        fit(module, unfreezing())
    states = [
        {name.replace("_orig_mod.", ""): value for name, value in module.state_dict().items()}
        for module in modules
    ]
    assert same(states[0], states[1])
    assert same(states[0], states[2])
    assert [trained(module) for module in modules] == ["hbs"] * 3


def test_beside_one_of_lightnings() -> None:
    message = "ProgressiveUnfreezing and BackboneFinetuning would both freeze: use one"
    with pytest.raises(Exception, match=message):
        fit(Net(), unfreezing(), BackboneFinetuning())
