"""timm's transformer blocks: each addition inside is one call with the norm after it."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from typing_extensions import override

from lightning_practices.nn import blocks
from lightning_practices.surgery import fuse, unfuse
from tests.surgery.models import everything, near
from tests.surgery.timm_models import (
    BLOCKS,
    DIM,
    TOKENS,
    VIT,
    built,
    close,
    each_block,
    images,
    kernel,
    small,
    sums,
    timm,
    vit,
)

pytestmark = [pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")]


def test_each_class_is_tested() -> None:
    twins = [twin for twin in blocks.fused_blocks().values() if "timm_transf" in twin.__module__]
    assert {twin.__qualname__ for twin in twins} == {name.replace(".", "_") for name in BLOCKS}


@pytest.mark.parametrize("training", [True, False])
@each_block
def test_each_block_in_float64(name: str, training: bool, fused_sum_calls: list[str]) -> None:
    plain, x = built(name)
    plain, x = plain.double().train(training), x.double()
    fused = copy.deepcopy(plain)
    report = fuse(fused)
    assert {fold.block.rpartition(".")[2] for fold in sums(report)} == {name.partition(".")[2]}
    close(everything(fused, x), everything(plain, x))
    assert len(fused_sum_calls) == len(sums(report)) == (2 if name == "xcit.XCABlock" else 1)


@kernel
@each_block
def test_each_block_is_as_right_as_before(name: str, sum_calls: list[str], device: str) -> None:
    plain, x = built(name)
    plain, x = plain.to(device), x.to(device)
    fused = copy.deepcopy(plain)
    report = fuse(fused)
    near(fused, plain, x)
    assert len(sum_calls) == len(sums(report))


NETWORKS = {
    "vit_tiny_patch16_224": 23,
    "deit3_small_patch16_224": 23,
    "eva02_tiny_patch14_224": 12,
    "beit_base_patch16_224": 12,
    "swin_tiny_patch4_window7_224": 20,
    "cait_xxs24_224": 47,
    "convit_tiny": 12,
    "mixer_s32_224": 15,
    "xcit_nano_12_p16_224": 24,
    "nest_tiny": 21,
    "volo_d1_224": 32,
    "pvt_v2_b0": 8,
    "twins_pcpvt_small": 16,
    "gcvit_xxtiny": 12,
    "sequencer2d_s": 32,
    "vit_relpos_small_patch16_224": 12,
    "samvit_base_patch16": 23,
    "crossvit_tiny_240": 24,
    "mobilevit_xxs": 15,
    "maxxvit_rmlp_nano_rw_256": 14,
    "swinv2_tiny_window8_256": 0,  # the norms are before the additions
    "resmlp_12_224": 0,  # affine transformations in place of norms
}


@pytest.mark.plain
@pytest.mark.parametrize("name", NETWORKS)
def test_number_of_folds(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert len(sums(fuse(model))) == NETWORKS[name]


class OwnForward(VIT.Block):  # type: ignore[misc]  # untyped
    @override
    def forward(self, x: Tensor, **options: Any) -> Any:
        return super().forward(x, **options) / 2


class OwnName(VIT.Block):  # type: ignore[misc]  # untyped
    """A subclass that changes nothing."""


def test_subclasses(fused_sum_calls: list[str]) -> None:
    plain = nn.Sequential(OwnName(DIM, 2), VIT.Block(DIM, 2), OwnForward(DIM, 2))
    plain = small(plain).double()
    fused, x = copy.deepcopy(plain), torch.randn(2, *TOKENS).double()
    report = fuse(fused)
    assert [fold.names for fold in report.folded] == [("0.norm2",), ("1.norm1",), ("1.norm2",)]
    assert [(left.names, left.reason) for left in report.skipped] == [
        (("2",), "not folded: OwnForward overrides forward")
    ]
    expected = everything(plain, x)
    for each in (fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        del fused_sum_calls[:]
        assert isinstance(each[0], OwnName)
        close(everything(each, x), expected)
        assert len(fused_sum_calls) == 3
        unfuse(each)
        assert [type(child) for child in each] == [OwnName, VIT.Block, OwnForward]


def test_a_changed_forward_runs(
    fused_sum_calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = vit().double()
    fuse(model)
    monkeypatch.setattr(VIT.Block, "forward", lambda self, x: 2 * x)
    x = torch.randn(2, *TOKENS).double()
    torch.testing.assert_close(model.blocks(x), 8 * x)
    assert not fused_sum_calls


class OtherNorm(nn.LayerNorm):
    @override
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) / 2


def fast_norm(*args: Any) -> Any:
    norm = timm.layers.LayerNorm(*args)
    norm._fast_norm = True
    return norm


@pytest.mark.parametrize("norm", [OtherNorm, nn.BatchNorm1d, nn.Identity, fast_norm])
def test_other_norms_are_called(norm: Any, fused_sum_calls: list[str]) -> None:
    shape = (2, DIM, DIM) if norm is nn.BatchNorm1d else (2, *TOKENS)
    plain = nn.Sequential(VIT.Block(DIM, 2), VIT.Block(DIM, 2)).double()
    plain[1].norm1, plain[0].norm2 = (norm(DIM).double() for _ in range(2))
    fused, x = copy.deepcopy(plain), torch.randn(*shape).double()
    report = fuse(fused)
    assert [fold.names for fold in sums(report)] == [("1.norm2",)]
    close(everything(fused, x), everything(plain, x))
    assert len(fused_sum_calls) == 1


def test_a_norm_whose_class_changes_later(fused_sum_calls: list[str]) -> None:
    fused = vit().double()
    fuse(fused)
    for block in fused.blocks:
        parametrizations.weight_norm(block.norm1)
    plain, x = copy.deepcopy(fused), images().double()
    unfuse(plain)
    close(everything(fused, x), everything(plain, x))
    assert len(fused_sum_calls) == 3  # ``norm2`` of each block
