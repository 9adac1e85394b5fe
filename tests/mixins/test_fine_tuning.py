"""Transfer learning by subclassing."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_practices.callbacks import ProgressiveUnfreezing
from lightning_practices.mixins import FineTuningMixin
from tests.callbacks.scripted import FILTERS, same, state_of, trainer_of

pytestmark = FILTERS


class Base(LightningModule):
    """The head is registered first, so the order of children doesn't say which it is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.top = nn.Linear(4, 2)
        self.trunk = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
        self.seen: list[str] = []
        self.rates: dict[str, float] = {}

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        parts = [self.top, *reversed(self.trunk)]
        self.seen.append("".join("x" if next(p.parameters()).requires_grad else "." for p in parts))
        loss: Tensor = self.top(self.trunk(batch)).square().mean()
        return loss

    @override
    def on_train_end(self) -> None:
        (optimizer,) = self.trainer.optimizers
        self.rates = {group["name"]: group["lr"] for group in optimizer.param_groups}

    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Net(FineTuningMixin, Base):
    def __init__(self, schedule: Any = "auto", **options: Any) -> None:
        names = {"backbone": "trunk", "head": "top"}
        super().__init__(fine_tuning=ProgressiveUnfreezing(schedule, **{**names, **options}))


def fit(module: LightningModule, *callbacks: Any, **options: Any) -> Trainer:
    rows = list(torch.randn(2, 4, generator=torch.Generator().manual_seed(1)))
    data: DataLoader[Tensor] = DataLoader(rows, batch_size=1)  # type: ignore[arg-type]
    resume = options.pop("resume", None)
    trainer = trainer_of(*callbacks, **{"max_epochs": 3, **options})
    trainer.fit(module, data, ckpt_path=resume)
    return trainer


def test_the_head_first_then_two_blocks_an_epoch() -> None:
    module = Net()
    fit(module)
    assert module.seen == ["x....", "x....", "xxx..", "xxx..", "xxxxx", "xxxxx"]
    assert module.fine_tuning is not None
    assert module.fine_tuning.phase == 3
    depths = [rate / 0.1 for rate in sorted(module.rates.values(), reverse=True)]
    assert depths == pytest.approx([0.75**depth for depth in range(5)])


def test_as_the_callback_with_the_same_blocks() -> None:
    schedule: list[dict[str, Any]] = [
        {"blocks": [0, 1], "until": {"step": 3}},
        {"blocks": [2], "lr_scale": 0.5},
    ]
    ours, theirs = Net(schedule, decay=0.5), Base()
    fit(ours)
    by = ["top", "trunk.3", "trunk.2", "trunk.1", "trunk.0"]
    fit(theirs, ProgressiveUnfreezing(schedule, by=by, decay=0.5))
    assert same(state_of(ours), state_of(theirs))
    assert ours.seen == theirs.seen == [*["xx..."] * 3, *["xxx.."] * 3]


def test_by_default_the_modules_are_called_backbone_and_head() -> None:
    class Named(FineTuningMixin, Base):
        def __init__(self, fine_tuning: Any = "auto") -> None:
            super().__init__(fine_tuning=fine_tuning)
            self.backbone, self.head = self.trunk, self.top
            del self.trunk, self.top

        @override
        def on_train_end(self) -> None:
            pass

        @override
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            parts = [self.head, *reversed(self.backbone)]
            trained = (next(p.parameters()).requires_grad for p in parts)
            self.seen.append("".join("x" if each else "." for each in trained))
            loss: Tensor = self.head(self.backbone(batch)).square().mean()
            return loss

    expected = Net()
    fit(expected)
    given = ProgressiveUnfreezing(backbone="backbone", head="head")
    for fine_tuning in ("auto", given, given):  # a used one has no phase of its own
        module = Named(fine_tuning)
        fit(module)
        assert module.seen == expected.seen
        assert [*state_of(module).values()][-1].equal([*state_of(expected).values()][1])
    fit(module := Named([{"blocks": [0, 1]}]))
    assert module.seen == ["xx..."] * 6
    fit(module := Named(None))
    assert module.seen == ["xxxxx"] * 6
    assert module.configure_callbacks() == []


@pytest.mark.parametrize(
    "options", [{"backbone": "a"}, {"head": "a"}, {"by": ["a"], "backbone": "a", "head": "b"}]
)
def test_blocks_that_are_given_by_half_or_twice(options: Any) -> None:
    with pytest.raises(ValueError, match="by a backbone and a head, or by `by`, or not at all"):
        ProgressiveUnfreezing(**options)


@pytest.mark.filterwarnings("ignore:.* are never trained")
def test_a_head_within_the_backbone() -> None:
    class Whole(FineTuningMixin, LightningModule):
        def __init__(self) -> None:
            super().__init__(fine_tuning=ProgressiveUnfreezing(backbone="net", head="net.fc"))
            self.net = torchvision.models.resnet18(num_classes=3)
            self.trained: list[set[str]] = []

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            trained = {name for name, p in self.net.named_parameters() if p.requires_grad}
            self.trained.append({".".join(name.split(".")[:2]) for name in trained})
            loss: Tensor = self.net(torch.ones(2, 3, 32, 32)).mean()
            return loss

        @override
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1e-4)

    module = Whole()
    trainer = fit(module, max_epochs=2)
    groups = trainer.optimizers[0].param_groups
    layers = [f"net.layer{i}.{k}" for i in (4, 3, 2, 1) for k in (1, 0)]
    assert [group["block"] for group in groups] == ["net.fc", *layers, "net.conv1"]
    head = {"fc.weight", "fc.bias"}
    assert module.trained[0] == head
    assert module.trained[-1] == head | {"layer4.1", "layer4.0"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "backbone"}, "'backbone' names no module of Net.*'top', 'trunk'"),
        ({"head": "trunk.9"}, "head='trunk.9' names no module of Net"),
        ({"head": "trunk.3", "backbone": "trunk"}, "leaves out .*top"),
    ],
)
def test_names_that_do_not_fit(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(Net(**arguments))


def test_resuming_in_a_new_module(tmp_path: Path) -> None:
    whole, resumed = Net(), Net()
    fit(whole, ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_epochs=1))
    fit(resumed, resume=tmp_path / "step=2.ckpt")
    assert resumed.seen == whole.seen[2:]
    assert same(state_of(whole), state_of(resumed))


def test_every_run_has_the_same_callback() -> None:
    module = Net()
    trainer = fit(module)
    found = [c for c in trainer.callbacks if isinstance(c, ProgressiveUnfreezing)]  # type: ignore[attr-defined]
    assert found == [module.fine_tuning] == module.configure_callbacks()


def test_callbacks_of_the_module_itself_stay() -> None:
    class Timed(Base):
        timer = Timer()

        @override
        def configure_callbacks(self) -> Any:
            return self.timer

    class Both(FineTuningMixin, Timed):
        pass

    module = Both(fine_tuning=ProgressiveUnfreezing(backbone="trunk", head="top"))
    assert module.configure_callbacks() == [Timed.timer, module.fine_tuning]


def test_it_replaces_that_of_the_trainer(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "lightning.pytorch")
    module = Net([{"blocks": [0, 1]}])
    fit(module, ProgressiveUnfreezing([{"blocks": ["trunk.0"]}]))
    assert module.seen == ["xx..."] * 6
    assert "override existing callbacks passed to Trainer: ProgressiveUnfreezing" in caplog.text


@pytest.mark.parametrize("dropout", [False, True])
def test_dropout_of_what_is_frozen(dropout: bool) -> None:
    class Dropping(Net):
        def __init__(self) -> None:
            super().__init__(dropout=dropout)
            self.drop = self.trunk[0] = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
            self.modes: list[bool] = []

        @override
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            self.modes.append(self.trunk[0][1].training)  # type: ignore[index]
            return super().training_step(batch, batch_idx)

    fit(module := Dropping())
    assert module.modes == [dropout] * 4 + [True] * 2
