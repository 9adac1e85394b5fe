import re

import pytest
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torchvision.ops import FrozenBatchNorm2d
from typing_extensions import override

from lightning_practices.nn import DropCluster2d, DropConnectLinear
from lightning_practices.surgery import Folded, Report, Skipped, fuse, unfuse

pytestmark = pytest.mark.plain


class OwnForward(nn.Dropout):
    @override
    def forward(self, input: Tensor) -> Tensor:
        return input + 1


def test_report_is_a_table_of_at_most_100_columns() -> None:
    model = nn.Sequential()
    model.add_module("encoder_layer_0", nn.ModuleDict({"norm_before": nn.LayerNorm(8)}))
    model.add_module("encoder_layer_1", nn.ModuleDict({"odd": OwnForward()}))
    report = fuse(model)
    assert repr(report) == "Report(1 replaced, 0 folded, 1 skipped)"
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 100
    cells = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in lines]
    assert cells[1] == ["module", "before", "after, or why it was skipped"]
    columns = ["".join(column) for column in zip(*cells[3:-1], strict=True)]
    assert columns == [
        "encoder_layer_0.norm_beforeencoder_layer_1.odd",
        f"torch.nn.LayerNorm{__name__}.OwnForward",
        "lightning_practices.nn.LayerNormskipped: OwnForward overrides forward",
    ]
    assert cells[3][2] == "lightning_practices.nn.LayerNorm"  # in one piece


def test_report_prints_long_names_and_brackets_whole() -> None:
    reason = "has [bold]brackets[/bold] " + 20 * "and so on "
    report = Report(skipped=[Skipped(("a", 150 * "z"), 90 * "C", reason)])
    text = str(report)
    assert max(map(len, text.splitlines())) == 100
    assert (text.count("z"), text.count("C"), text.count("so")) == (150, 90, 20)
    assert "has [bold]brackets[/bold]" in text


def test_empty_report_is_a_sentence() -> None:
    assert str(fuse(nn.Linear(2, 2))) == "Nothing to replace."


def test_folds_are_rows_of_their_own() -> None:
    names, norm = ("a.norm", "b.norm"), "torch.nn.BatchNorm2d"
    fold = Folded(names, norm, "torch.nn.Sequential", "BatchNorm2d + ReLU")
    report = Report(folded=[fold])
    assert repr(report) == "Report(0 replaced, 1 folded, 0 skipped)"
    lines = str(report).splitlines()
    cells = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in lines[3:-1]]
    assert cells == [
        ["a.norm", "torch.nn.BatchNorm2d", "folded: BatchNorm2d + ReLU, in"],
        ["b.norm", "", "torch.nn.Sequential"],
    ]


@pytest.mark.parametrize("change", ["fuse", "unfuse"])
def test_a_fold_shows_the_class_of_the_norm_in_one_piece(change: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    deep = nn.ModuleDict({"a_very_long_name_of_a_module" * 3: model})
    report = fuse(deep)
    if change == "unfuse":
        report = unfuse(deep)
    (fold,) = report.folded
    assert (fold.norm, fold.block) == ("torch.nn.BatchNorm2d", "torch.nn.Sequential")
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 100
    assert any("│ torch.nn.BatchNorm2d " in line and "folded: " in line for line in lines)


def test_norms_and_dropouts_without_a_fused_class_are_counted() -> None:
    model = nn.Sequential(nn.LayerNorm(3), *(FrozenBatchNorm2d(3) for _ in range(4)), OwnForward())
    report = fuse(model)
    text = "Report(1 replaced, 0 folded, 1 skipped, not served: 4 FrozenBatchNorm2d)"
    assert repr(report) == text
    assert repr(fuse(model)) == text.replace("1 replaced", "0 replaced")
    assert [left.names for left in report.not_served] == [("1",), ("2",), ("3",), ("4",)]
    lines = str(report).splitlines()
    (row,) = (i for i, line in enumerate(lines) if "not served: 4 FrozenBatchNorm2d" in line)
    assert [line.split()[1] for line in lines[row : row + 3]] == ["1", "2", "and"]
    assert "and 2 more" in lines[row + 2]


def test_a_report_of_nothing_but_unserved_layers_is_a_table() -> None:
    report = fuse(nn.Sequential(FrozenBatchNorm2d(3)))
    assert (
        repr(report) == "Report(0 replaced, 0 folded, 0 skipped, not served: 1 FrozenBatchNorm2d)"
    )
    assert "not served: 1 FrozenBatchNorm2d" in str(report)


def test_layers_of_this_package_and_parametrizations_are_not_listed() -> None:
    model = nn.Sequential(
        weight_norm(nn.Linear(2, 2)), DropConnectLinear(2, 2), DropCluster2d(0.1, 2)
    )
    assert not fuse(model).not_served
