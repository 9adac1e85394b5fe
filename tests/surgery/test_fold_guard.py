"""Whatever changes after a fold: the block computes what it would compute without the fold."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import fuse_conv_bn_eval, parametrize
from typing_extensions import override

from lightning_practices.surgery import fuse, unfuse
from tests.surgery.blocks import Calls
from tests.surgery.models import everything


class Doubled(nn.Module):
    """A parametrization."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Guarded(nn.Module):
    """Reads of itself all that can be read."""

    title: tuple[Any, ...] = ("a", 1)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.act = self.again = nn.LeakyReLU(0.2)
        self.identity, self.list = nn.Identity(), nn.ModuleList([nn.Conv2d(4, 4, 1)])
        self.norm2, self.finish = nn.BatchNorm2d(4), torch.sin
        self.flag, self.factor = True, 3
        self.register_module("shortcut", None)
        self.register_parameter("scale", None)

    def helper(self: Any, x: Tensor) -> Any:
        return x if self.shortcut is None else self.shortcut(x)

    @override
    def forward(self: Any, x: Tensor, bonus: Any = None) -> Any:
        y = self.act(self.identity(self.norm(self.conv(x))))
        for layer in self.list:
            y = self.norm2(layer(y))
        y = self.again(y + self.helper(x)) * (self.factor if self.flag else 1)
        y = self.finish(y) * len(self.title)
        y = y if self.scale is None else y * self.scale
        y = y + 1 if hasattr(self, "extra") else y
        return y if bonus is None else y + bonus


def images() -> Tensor:
    return torch.randn(2, 4, 3, 3, dtype=torch.float64)


def check(block: Any, plain: Any, fused_calls: Calls, *, folded: bool = False) -> None:
    """Compare the two, of which only the first is fused."""
    x = images()
    for training in (True, False):
        actual = everything(block.train(training), x)
        torch.testing.assert_close(actual, everything(plain.train(training), x))
    assert bool(fused_calls) == folded


def pair(block: nn.Module) -> tuple[Any, Any]:
    plain = block.double()
    fused = copy.deepcopy(plain)
    assert fuse(fused).folded
    return fused, plain


def test_block_is_folded_as_long_as_nothing_changes(fused_calls: Calls) -> None:
    block, plain = pair(Guarded())
    check(block, plain, fused_calls, folded=True)
    assert fused_calls == [("leaky_relu", False), ("leaky_relu", True)] * 2


def setting(path: str, value: Any) -> Callable[[Any], None]:
    """Return a change of one attribute."""
    name, _, attribute = path.rpartition(".")

    def change(block: Any) -> None:
        setattr(block.get_submodule(name), attribute, copy.deepcopy(value))

    return change


def hooking(name: str, register: str, hook: Callable[..., Any]) -> Callable[[Any], None]:
    return lambda block: getattr(block.get_submodule(name), register)(hook)


def double_output(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * 2


def double_input(module: nn.Module, args: Any) -> Any:
    return tuple(2 * argument for argument in args)


def double_gradient(module: nn.Module, gradients: Any, *_: Any) -> Any:
    return tuple(2 * gradient for gradient in gradients)


def other_forward(name: str) -> Callable[[Any], None]:
    return lambda block: setattr(block.get_submodule(name), "forward", lambda x: x * 3)


def other_helper(block: Any) -> None:
    block.helper = MethodType(lambda self, x: 2 * x, block)


def other_class(block: Any) -> None:
    block.act.__class__ = nn.Tanh


def parametrized(block: Any) -> None:
    parametrize.register_parametrization(block.norm, "weight", Doubled())


def more_layers(block: Any) -> None:
    block.list.append(nn.Conv2d(4, 4, 1).double())
    torch.manual_seed(3)
    nn.init.normal_(block.list[1].weight)
    nn.init.normal_(block.list[1].bias)


def merged(block: Any) -> None:
    block.eval()
    block.conv = fuse_conv_bn_eval(block.conv, block.norm)
    block.norm = nn.Identity()


CHANGES: dict[str, Callable[[Any], None]] = {
    "hook on the norm": hooking("norm", "register_forward_hook", double_output),
    "hook on the identity": hooking("identity", "register_forward_hook", double_output),
    "hook on the activation": hooking("act", "register_forward_hook", double_output),
    "hook on the layer before": hooking("list.0", "register_forward_hook", double_output),
    "pre hook": hooking("norm2", "register_forward_pre_hook", double_input),
    "backward hook": hooking("norm", "register_full_backward_hook", double_gradient),
    "backward pre hook": hooking("act", "register_full_backward_pre_hook", double_gradient),
    "forward of the norm": other_forward("norm"),
    "forward of the activation": other_forward("act"),
    "forward of the identity": other_forward("identity"),
    "slope": setting("act.negative_slope", 0.4),
    "class of the activation": other_class,
    "activation": setting("act", nn.GELU()),
    "other name of the activation": setting("again", nn.GELU()),
    "identity": setting("identity", nn.Tanh()),
    "method": other_helper,
    "flag": setting("flag", False),
    "number": setting("factor", 4),
    "number of another type": setting("factor", 3.0),
    "class attribute": setting("title", ("a", 2, 3)),
    "function": setting("finish", torch.cos),
    "missing attribute": setting("extra", 1),
    "child that was None": setting("shortcut", nn.Tanh()),
    "parameter that was None": setting("scale", nn.Parameter(torch.tensor(2.0))),
    "longer list": more_layers,
    "parametrized norm": parametrized,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_block_computes_what_the_plain_one_does(
    change: Callable[[Any], None], fused_calls: Calls
) -> None:
    block, plain = pair(Guarded())
    for module in (block, plain):
        change(module)
    check(block, plain, fused_calls)


def test_hook_is_gone_and_the_fold_is_back(fused_calls: Calls) -> None:
    block, plain = pair(Guarded())
    block.act.register_forward_hook(double_output).remove()
    check(block, plain, fused_calls, folded=True)


def test_merging_a_convolution_and_its_norm(fused_calls: Calls) -> None:
    block, plain = pair(Guarded())
    for module in (block, plain):
        merged(module)
    x = images()
    torch.testing.assert_close(block(x), plain(x))
    assert fused_calls == []


def test_torchs_conversion_to_synchronised_norms(fused_calls: Calls) -> None:
    block, plain = pair(Guarded())
    block = nn.SyncBatchNorm.convert_sync_batchnorm(block)
    assert type(block.norm) is nn.SyncBatchNorm
    check(block, plain, fused_calls)


def test_activation_of_the_norms_own(fused_calls: Calls) -> None:
    block, plain = pair(Guarded())
    block.norm.activation = "silu"
    plain.norm.register_forward_hook(lambda module, args, y: nn.functional.silu(y))
    x = images()
    torch.testing.assert_close(everything(block, x), everything(plain, x))
    assert fused_calls == [("silu", False)]  # in the norm's own forward


@contextmanager
def everywhere() -> Iterator[None]:
    handle = register_module_forward_hook(
        lambda module, args, y: 2 * y if isinstance(module, nn.LeakyReLU) else None
    )
    try:
        yield
    finally:
        handle.remove()


def test_hooks_on_every_module_are_called(fused_calls: Calls) -> None:
    block, plain = pair(Guarded())
    with everywhere():
        check(block, plain, fused_calls)


def test_other_arguments_than_it_was_read_for(fused_calls: Calls) -> None:
    block, plain = pair(Guarded())
    x = images()
    torch.testing.assert_close(block(x, 2.0), plain(x, 2.0))
    torch.testing.assert_close(block(x=x), plain(x=x))
    torch.testing.assert_close(block(x, bonus=x), plain(x, bonus=x))
    assert fused_calls == []
    for module in (block, plain):
        with pytest.raises(TypeError):
            module()


def test_forward_that_its_class_gets_later(
    monkeypatch: pytest.MonkeyPatch, fused_calls: Calls
) -> None:
    block, plain = pair(Guarded())
    monkeypatch.setattr(Guarded, "forward", lambda self, x: self.conv(x))
    check(block, plain, fused_calls)


def test_part_of_a_sequence_is_folded_for_itself(fused_calls: Calls) -> None:
    layers = [nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), nn.Tanh()]
    whole, plain = pair(nn.Sequential(*layers))
    check(whole[:2], plain[:2], fused_calls)
    check(whole[1:], plain[1:], fused_calls)
    whole.insert(2, nn.Tanh())
    plain.insert(2, nn.Tanh())
    check(whole, plain, fused_calls)


def test_restoring_a_part_only(fused_calls: Calls) -> None:
    block, plain = pair(Guarded())
    unfuse(block.norm2)
    assert type(block.norm2) is nn.BatchNorm2d
    check(block, plain, fused_calls)


def parametrized_block(block: Any) -> None:
    block.scale = nn.Parameter(torch.ones(()))
    parametrize.register_parametrization(block, "scale", Doubled())


@pytest.mark.parametrize(
    ("change", "folds", "reason"),
    [
        (CHANGES["hook on the activation"], 0, "act has hooks or a forward of its own"),
        (CHANGES["pre hook"], 1, "norm2 has hooks or a forward of its own"),
        (CHANGES["hook on the layer before"], 1, "list.0 has hooks or a forward of its own"),
        (other_forward(""), 0, "this instance has its own forward"),
        (parametrized_block, 0, "it is parametrized"),
    ],
)
def test_what_was_there_before_is_refused(
    change: Callable[[Any], None], folds: int, reason: str, fused_calls: Calls
) -> None:
    plain: Any = Guarded().double()
    change(plain)
    block = copy.deepcopy(plain)
    report = fuse(block)
    assert len(report.folded) == folds
    assert {left.reason for left in report.skipped} == {f"not folded: {reason}"}
    check(block, plain, fused_calls, folded=folds > 0)


def test_shared_blocks_are_folded_once_and_named_fully(fused_calls: Calls) -> None:
    block = Guarded()
    report = fuse(nn.ModuleDict({"a": block, "b": block}))
    assert [fold.names for fold in report.folded] == [
        ("a.norm", "b.norm"),
        ("a.norm2", "b.norm2"),
    ]


def test_norm_with_two_names_in_a_block_is_refused(fused_calls: Calls) -> None:
    plain = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()).double()
    plain.append(plain[0])
    block = copy.deepcopy(plain)
    (left,) = fuse(block).skipped
    assert left.reason == "not folded: it is called more than once"
    check(block, plain, fused_calls)


def test_norm_that_two_blocks_share_is_folded_in_both(fused_calls: Calls) -> None:
    norm = nn.BatchNorm2d(4)
    block, plain = pair(
        nn.Sequential(nn.Sequential(norm, nn.ReLU()), nn.Sequential(norm, nn.SiLU()))
    )
    check(block, plain, fused_calls, folded=True)
    assert [name for name, _ in fused_calls] == ["relu", "silu"] * 2
