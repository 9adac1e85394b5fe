"""Progressive unfreezing: the form of schedules, and networks that they fit."""

import itertools
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import yaml
from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn
from typing_extensions import override

from lightning_practices.callbacks import (
    ProgressiveUnfreezing,
    unfreezing_schedule,
    write_schedule,
)
from lightning_practices.callbacks._unfreezing.plan import make_plan
from lightning_practices.callbacks._unfreezing.schedule import read_schedule
from lightning_practices.surgery import blocks
from tests.callbacks.scripted import FILTERS, trainer_of
from tests.callbacks.unfreezing import (
    BODY,
    HEAD,
    SCHEDULE,
    STEM,
    Net,
    fit,
    loader,
    runs,
    unfreezing,
)
from tests.surgery.test_blocks import Tied

pytestmark = FILTERS

YAML = """
- blocks: [head]
  until: {epoch: 1}
- blocks: ["re:^body"]
  until: {epoch: 1}
- blocks: [2]
"""


def forms(folder: Path) -> dict[str, Any]:
    (folder / "schedule.yaml").write_text(YAML)
    return {
        "list": SCHEDULE,
        "dict": {"warm": HEAD, 2: {**BODY, "blocks": "body"}, "all": {"blocks": 2}},
        "path": folder / "schedule.yaml",
        "str": str(folder / "schedule.yaml"),
    }


@pytest.mark.parametrize("form", ["list", "dict", "path", "str"])
def test_forms(form: str, tmp_path: Path) -> None:
    module = Net()
    fit(module, ProgressiveUnfreezing(forms(tmp_path)[form]))
    assert runs(module.trained) == [("h", 4), ("hb", 4), ("hbs", 4)]


@pytest.mark.parametrize("form", ["list", "dict", "str"])
def test_from_the_configuration_of_a_command_line(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"schedule": forms(tmp_path)[form], "by": [["head"], "body", ""], "decay": 0.5}
    name = "lightning_practices.callbacks.ProgressiveUnfreezing"
    trainer = {
        "callbacks": [{"class_path": name, "init_args": options}],
        "accelerator": "cpu",
        "max_epochs": 3,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    (path := tmp_path / "config.yaml").write_text(yaml.safe_dump({"trainer": trainer}))
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of what Lightning calls
    monkeypatch.setattr(sys, "argv", ["fit.py", "--config", str(path)])
    cli = LightningCLI(Net, save_config_callback=None, seed_everything_default=False, run=False)
    cli.trainer.fit(cli.model, loader(), loader(8))
    assert runs(cli.model.trained) == [("h", 4), ("hb", 4), ("hbs", 4)]
    assert cli.model.rates[0] == {"head": 0.1, "body": 0.05, "rest": 0.025}


def test_the_default_written_edited_and_read(tmp_path: Path) -> None:
    schedule = unfreezing_schedule(Net(), at_once=1, epochs=2)
    assert schedule == [
        {"blocks": ["head"], "until": {"epoch": 2}},
        {"blocks": ["body"], "until": {"epoch": 2}},
        {"blocks": ["stem"]},
    ]
    write_schedule(schedule, path := tmp_path / "schedule.yaml")
    assert yaml.safe_load(path.read_text()) == schedule
    path.write_text(path.read_text().replace("epoch: 2", "step: 3"))
    fit(module := Net(), ProgressiveUnfreezing(path))
    assert runs(module.trained) == [("h", 3), ("hb", 3), ("hbs", 6)]
    fit(module := Net(), ProgressiveUnfreezing())
    assert runs(module.trained) == [("h", 4), ("hbs", 8)]


def test_blocks_of_ones_own() -> None:
    module = Net()
    fit(module, ProgressiveUnfreezing(by=[["head", "body"], ""]))
    assert runs(module.trained) == [("hb", 4), ("hbs", 8)]
    assert [*module.rates[0]] == ["head", "rest"]


WRONG: list[tuple[Any, str]] = [
    ([{"blocks": ["re:("]}], r"phase 1: blocks='\(' is no regular expression: missing"),
    ([], "schedule has no phases"),
    ("never", "schedule has to be 'auto', a list or dict of phases or the path .* got 'never'"),
    (["head"], "phase 1: it has to be a dict with the key 'blocks', but got 'head'"),
    ({"warm": {**HEAD, "unitl": 3}, 2: STEM}, "phase warm: 'unitl' is none of blocks, freeze, unt"),
    ([{"until": {"epoch": 1}}, STEM], "phase 1: it is empty: name blocks to train"),
    ([{"blocks": [], "until": {"epoch": 1}}, STEM], "phase 1: it is empty"),
    ([{"blocks": ["head"]}, STEM], r"phase 1: until has to say when the phase ends, .*got None"),
    ([{**HEAD, "until": 3}, STEM], "phase 1: until has to say when the phase ends, .*got 3"),
    ([HEAD], "phase 1: it is the last phase .*until={'epoch': 1} has no meaning"),
    (
        [{**HEAD, "until": {"epochs": 1}}, STEM],
        "phase 1: 'epochs' is none of epoch, step, plateau: did you mean 'epoch'",
    ),
    (
        [{**HEAD, "until": {"epoch": 0}}, STEM],
        "epoch has to be a whole number from 1 on, but got 0",
    ),
    ([{**HEAD, "until": {"step": True}}, STEM], "step has to be a whole number .*got True"),
    ([{**HEAD, "until": {"plateau": {"patience": 2}}}, STEM], "plateau has to name a value"),
    ([{**HEAD, "until": {"plateau": {"monitor": "a", "mode": "up"}}}, STEM], "mode has .*got 'up'"),
    (
        [{**HEAD, "until": {"plateau": {"monitor": "a", "patience": 0}}}, STEM],
        "patience has to be a whole number from 1 on, but got 0",
    ),
    (
        [{**HEAD, "until": {"plateau": {"monitor": "a", "min_delta": -1}}}, STEM],
        "min_delta has to be a number from 0 on, but got -1",
    ),
    (
        [{**HEAD, "until": {"plateau": {"monitor": "a", "delta": 1}}}, STEM],
        "'delta' is none of monitor, patience, mode, min_delta",
    ),
    ([{**HEAD, "lr_scale": 0}, STEM], "lr_scale has to be a number above 0, but got 0"),
    ([{**HEAD, "lr_scale": "a"}, STEM], "lr_scale has to be a number above 0, but got 'a'"),
    (
        [HEAD, {"freeze": ["head"], "lr_scale": 1}],
        "lr_scale is the factor .* but there are no blocks",
    ),
    ([{**HEAD, "restore_best": True}, STEM], "restore_best needs a plateau in until"),
    ([{**HEAD, "restore_best": 1}, STEM], "restore_best has to be true or false, but got 1"),
    ([{**HEAD, "blocks": [-1]}, STEM], "blocks has to list names, depths from 0 .*got -1"),
    ([{**HEAD, "blocks": [True]}, STEM], "blocks has to list names, .*got True"),
    ([{**HEAD, "blocks": 1.5}, STEM], "blocks has to be a list of names and depths, but got 1.5"),
]


@pytest.mark.parametrize(("schedule", "message"), WRONG)
def test_what_is_no_schedule(schedule: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        ProgressiveUnfreezing(schedule)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"(?s)phase 1: .*\n- phase 1: .*\n- phase 2: "):
        ProgressiveUnfreezing([{"blocks": [], "a": 1, "until": {"b": 1}}, {"until": 1}])
    wrong = {"blocks": ["hat", "stem", "stem.0"], "until": {"epoch": 1}}
    with pytest.raises(ValueError, match=r"(?s)phase 1: .*'hat'.*\n- phase 1: .*'stem.0'.*phase 2"):
        fit(Net(), unfreezing(wrong, {"blocks": ["tail"]}))


UNFIT: list[tuple[list[dict[str, Any]], str]] = [
    (
        [HEAD, {"blocks": ["bod"]}],
        "phase 2: there is no block, module or parameter 'bod'; near.*body",
    ),
    ([{"blocks": ["hea"]}], "parameter 'hea'; near it: head$"),  # of whole words
    ([{"blocks": [3]}], "there is no depth 3: the deepest block, 2, is the last"),
    ([{"blocks": ["re:tail"]}], "'re:tail' matches no parameter's name"),
    ([{"blocks": ["body.2"]}], "'body.2' has no parameters"),
    (
        [HEAD, {"blocks": [0]}],
        "phase 2: 0 overlaps what is trained by an earlier phase .*head.weig",
    ),
    (
        [{"blocks": ["body", "body.0.bias"]}],
        "'body.0.bias' overlaps .* by another entry .*body.0.b",
    ),
    ([HEAD, {"freeze": ["stem"], **STEM}], "phase 2: freeze: 'stem' isn't trained before"),
    ([HEAD, {"freeze": ["head"]}], "phase 2: nothing is trained"),
    (
        [HEAD, {"freeze": ["head"], **BODY}, {"blocks": ["head"], "lr_scale": 2}],
        "phase 3: lr_scale of head.* was None when it was first trained",
    ),
]


@pytest.mark.parametrize(("schedule", "message"), UNFIT)
def test_what_does_not_fit_the_model(schedule: list[dict[str, Any]], message: str) -> None:
    module = Net()
    with pytest.raises(ValueError, match=message):
        fit(module, unfreezing(*schedule))
    assert module.trained == []
    assert all(p.requires_grad for p in module.parameters())


def test_other_bad_arguments(tmp_path: Path) -> None:
    wrong: list[Any] = [0, 1.1, True, -1, "x"]
    for decay in wrong:
        with pytest.raises((TypeError, ValueError), match=f"decay has to be .* but got {decay!r}"):
            ProgressiveUnfreezing(decay=decay)
    with pytest.raises(TypeError, match=r"schedule has to be a list of phases, .* but got 3"):
        ProgressiveUnfreezing(3)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"none.yaml' names a file that doesn't exist, .*"):
        ProgressiveUnfreezing(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match=r"path has to be that of a \.yaml file, but got"):
        write_schedule(SCHEDULE, tmp_path / "schedule.json")
    with pytest.raises(ValueError, match="phase 1: it is empty"):
        write_schedule([{"blocks": []}], tmp_path / "schedule.yaml")
    with pytest.raises(ValueError, match="at_once has to be a whole number from 1 on, but got 0"):
        unfreezing_schedule(Net(), at_once=0)
    with pytest.raises(ValueError, match="Linear is one block"):
        unfreezing_schedule(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- blocks: [head", "can't be read as a YAML file: ParserError"),
        ("- blocks: !!python/object:os.system []", "can't be read as a YAML file: Constr"),
        ("[" * 5000, "can't be read as a YAML file: "),
        ("blocks: &a [*a]", "it has to be a dict with the key 'blocks'"),
        ("\n".join(["- 3"] * 100), "and 80 more"),
    ],
    ids=["not closed", "an object", "nested deeply", "within itself", "long"],
)
def test_what_is_no_schedule_file(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "schedule.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        ProgressiveUnfreezing(tmp_path / "schedule.yaml")
    assert len(str(caught.value)) < 5000


def test_yaml_aliases_of_aliases_are_quoted_in_part(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    (tmp_path / "schedule.yaml").write_text("\n".join([*lines, "b: {blocks: *a8}"]))
    with pytest.raises(ValueError, match="blocks has to list names") as caught:
        ProgressiveUnfreezing(tmp_path / "schedule.yaml")
    assert len(str(caught.value)) < 10_000  # in full 9 ** 9 letters


def test_a_tied_parameter_by_either_name() -> None:
    for name in ("head.weight", "words.weight", "words"):
        phases = read_schedule([{**HEAD, "blocks": [name]}, {"blocks": ["hidden"]}])
        plan = make_plan(Tied(), phases, None, 0.5)
        assert plan.trainable[0] == {"words.weight"}
        assert plan.shares["words.weight"].scale == 1


class Classifier(Net):
    def __init__(self, net: nn.Module, size: int) -> None:
        super().__init__()
        del self.stem, self.body, self.head
        self.net = net
        self.images = torch.randn(2, 3, size, size)
        self.before: dict[str, Tensor] = {}

    @override
    def forward(self, rows: Tensor) -> Tensor:
        out: Tensor = self.net(rows)
        return out

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.trained.append(str(sum(p.numel() for p in self.parameters() if p.requires_grad)))
        loss: Tensor = self(self.images).logsumexp(1).mean()
        return loss


def small_vit() -> Any:
    return torchvision.models.VisionTransformer(32, 16, 3, 2, 16, 32, num_classes=4)


def small_convnext() -> Any:
    setting = torchvision.models.convnext.CNBlockConfig
    return torchvision.models.ConvNeXt([setting(8, 16, 1), setting(16, None, 1)], num_classes=4)


FAMILIES: dict[str, Any] = {
    "resnet18": lambda: torchvision.models.resnet18(num_classes=4),
    "vit": small_vit,
    "convnext": small_convnext,
    "timm resnet": lambda: timm.create_model("resnet10t", num_classes=4),
    "timm vit": lambda: timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=3, embed_dim=24, num_classes=4
    ),
    "timm convnext": lambda: timm.create_model(
        "convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_classes=4
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    module = Classifier(FAMILIES[family](), 32)
    found = blocks(module)
    schedule = unfreezing_schedule(module)
    trainer = trainer_of(ProgressiveUnfreezing(), max_epochs=len(schedule), limit_val_batches=0)
    states: list[dict[str, Tensor]] = []
    module.on_train_epoch_start = lambda: states.append(  # type: ignore[method-assign]
        {name: value.clone() for name, value in module.state_dict().items()}
    )
    trainer.fit(module, [torch.zeros(1)], [torch.zeros(1)])
    states.append(module.state_dict())
    names: set[str] = set()
    counts = []
    for phase, (before, after) in enumerate(itertools.pairwise(states)):
        for label in schedule[phase]["blocks"]:
            names.update(*(block.parameters for block in found if block.name == label))
        counts.append(str(sum(module.get_parameter(name).numel() for name in names)))
        for name, value in before.items():
            own = name in names
            if own or name in dict(module.named_parameters()):
                assert own or torch.equal(value, after[name]), (phase, name)
            elif "num_batches" in name:  # a buffer of the layer whose weight is beside it
                weight = re.sub("num_batches_tracked$", "weight", name)
                assert torch.equal(value, after[name]) != (weight in names), (phase, name)
    assert module.trained == counts
    assert names == {name for name, _ in module.named_parameters()}
