"""Whatever changes after a fuse: a block computes what it would compute if it were not fused."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import fuse_conv_bn_eval, parametrize
from torchvision.models.resnet import BasicBlock
from typing_extensions import override

from lightning_practices.surgery import Report, fuse, unfuse
from tests.surgery.conftest import Calls
from tests.surgery.models import everything

pytestmark = pytest.mark.plain


class Doubled(nn.Module):
    """A parametrization."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def block(**options: Any) -> Any:
    """Return a block of which every part that may be changed is a module of its own."""
    made = BasicBlock(4, 4, downsample=nn.Sequential(nn.Conv2d(4, 4, 1)), **options)
    made.relu = nn.LeakyReLU(0.2)
    return made.double()


def images() -> Tensor:
    return torch.randn(2, 4, 5, 5, dtype=torch.float64)


def check(fused: Any, plain: Any) -> None:
    """Compare the two, of which only the first is fused."""
    x = images()
    for training in (True, False):
        actual = everything(fused.train(training), x)
        torch.testing.assert_close(actual, everything(plain.train(training), x))


def pair() -> tuple[Any, Any]:
    plain = block()
    fused = copy.deepcopy(plain)
    assert len(fuse(fused).folded) == 2
    return fused, plain


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


def other_class(block: Any) -> None:
    block.relu.__class__ = nn.Tanh


def parametrized(block: Any) -> None:
    parametrize.register_parametrization(block.bn1, "weight", Doubled())


# Each change, and how many of the two norms are still folded.
CHANGES: dict[str, tuple[Callable[[Any], None], int]] = {
    "nothing": (lambda block: None, 2),
    "hook on a norm": (hooking("bn1", "register_forward_hook", double_output), 1),
    "pre hook on a norm": (hooking("bn2", "register_forward_pre_hook", double_input), 1),
    "backward hook": (hooking("bn1", "register_full_backward_hook", double_gradient), 1),
    "backward pre hook": (hooking("bn1", "register_full_backward_pre_hook", double_gradient), 1),
    "hook on the activation": (hooking("relu", "register_forward_hook", double_output), 0),
    "hook on a convolution": (hooking("conv2", "register_forward_hook", double_output), 2),
    "forward of a norm": (other_forward("bn1"), 1),
    "forward of the activation": (other_forward("relu"), 0),
    "forward of the block": (other_forward(""), 0),
    "slope": (setting("relu.negative_slope", 0.4), 2),
    "slope that is no number": (setting("relu.negative_slope", torch.tensor(0.4)), 0),
    "class of the activation": (other_class, 0),
    "another activation": (setting("relu", nn.GELU()), 2),
    "approximated activation": (setting("relu", nn.GELU(approximate="tanh")), 0),
    "another norm": (setting("bn1", nn.GroupNorm(2, 4).double()), 1),
    "no norm": (setting("bn2", nn.Identity()), 1),
    "no shortcut": (setting("downsample", None), 2),
    "parametrized norm": (parametrized, 2),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_block_computes_what_the_plain_one_does(name: str, fused_calls: Calls) -> None:
    change, folds = CHANGES[name]
    fused, plain = pair()
    for module in (fused, plain):
        change(module)
    check(fused, plain)
    assert len(fused_calls) == 2 * folds


def test_hook_is_gone_and_the_fold_is_back(fused_calls: Calls) -> None:
    fused, plain = pair()
    fused.relu.register_forward_hook(double_output).remove()
    check(fused, plain)
    assert len(fused_calls) == 4


def test_merging_a_convolution_and_its_norm(fused_calls: Calls) -> None:
    fused, plain = pair()
    for module in (fused.eval(), plain.eval()):
        module.conv1 = fuse_conv_bn_eval(module.conv1, module.bn1)
        module.bn1 = nn.Identity()
    x = images()
    torch.testing.assert_close(fused(x), plain(x))


def test_torchs_conversion_to_synchronised_norms(fused_calls: Calls) -> None:
    fused, plain = pair()
    fused = nn.SyncBatchNorm.convert_sync_batchnorm(fused)
    assert type(fused.bn1) is nn.SyncBatchNorm
    check(fused, plain)
    assert fused_calls == []


def test_activation_of_the_norms_own(fused_calls: Calls) -> None:
    fused, plain = pair()
    fused.bn1.activation = "silu"
    plain.bn1.register_forward_hook(lambda module, args, y: nn.functional.silu(y))
    x = images()
    torch.testing.assert_close(everything(fused, x), everything(plain, x))
    assert fused_calls == [("silu", False), ("leaky_relu", True)]  # the first in its own forward


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
    fused, plain = pair()
    with everywhere():
        check(fused, plain)
    assert fused_calls == []


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (2, 4, 1, 1)])
def test_residual_of_another_shape_is_added_as_before(
    shape: tuple[int, ...], fused_calls: Calls
) -> None:
    fused, plain = pair()
    for module in (fused, plain):
        module.downsample = nn.AdaptiveAvgPool2d(shape[2:]) if shape[1] == 4 else Mean()
    check(fused, plain)
    assert fused_calls == [("leaky_relu", False)] * 2


class Mean(nn.Module):
    """Makes one number of each sample."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2, 3), keepdim=True)


def test_residual_of_another_type_is_added_in_place_as_before(fused_calls: Calls) -> None:
    fused, plain = pair()
    for module in (fused, plain):
        module.downsample = None
        module.conv1.register_forward_pre_hook(lambda module, args: args[0].double())
    x = images().float()
    assert fused(x).dtype is torch.float64
    torch.testing.assert_close(fused(x), plain(x))
    assert all(not adds for _, adds in fused_calls)


def test_forward_that_its_class_gets_later(
    monkeypatch: pytest.MonkeyPatch, fused_calls: Calls
) -> None:
    fused, plain = pair()
    monkeypatch.setattr(BasicBlock, "forward", lambda self, x: self.conv1(x))
    check(fused, plain)
    assert fused_calls == []


class Sub(BasicBlock):  # type: ignore[misc]  # untyped
    """A subclass without a forward of its own."""


def test_forward_that_a_subclass_gets_later(
    monkeypatch: pytest.MonkeyPatch, fused_calls: Calls
) -> None:
    plain = Sub(4, 4).double()
    fused = copy.deepcopy(plain)
    assert len(fuse(fused).folded) == 2
    check(fused, plain)
    assert len(fused_calls) == 4
    monkeypatch.setattr(Sub, "forward", lambda self, x: self.conv1(x), raising=False)
    check(fused, plain)
    assert len(fused_calls) == 4


def test_restoring_a_part_only(fused_calls: Calls) -> None:
    fused, plain = pair()
    unfuse(fused.bn2)
    assert type(fused.bn2) is nn.BatchNorm2d
    check(fused, plain)
    assert len(fused_calls) == 2


def reasons(report: Report) -> set[str]:
    return {left.reason for left in report.skipped}


class OwnForward(BasicBlock):  # type: ignore[misc]  # untyped
    @override
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.bn1(self.conv1(x)))
        return y


class OwnCall(BasicBlock):  # type: ignore[misc]  # untyped
    @override
    def __call__(self, *args: Any) -> Any:
        return super().__call__(*args)


class Registered(BasicBlock):  # type: ignore[misc]  # untyped
    def __init_subclass__(cls) -> None:
        raise AssertionError("nobody asked")


class Meta(type):
    pass


class WithMeta(BasicBlock, metaclass=Meta):  # type: ignore[misc]  # untyped
    pass


@pytest.mark.parametrize("cls", [OwnForward, OwnCall, Registered, WithMeta])
def test_classes_with_their_own_way_are_left_alone(cls: type[nn.Module], calls: Calls) -> None:
    made = cls(4, 4)
    report = fuse(made)
    assert type(made) is cls
    assert report.folded == []
    (reason,) = reasons(report)
    assert reason.startswith("not folded: ")
    assert cls.__name__ in reason


@pytest.mark.parametrize(
    ("name", "folds", "reason"),
    [
        ("hook on the activation", 0, "relu has hooks or a forward of its own"),
        ("pre hook on a norm", 1, "bn2 has hooks or a forward of its own"),
        ("forward of the block", 0, "this instance has its own forward"),
        ("approximated activation", 0, "the approximated GELU can't be fused"),
    ],
)
def test_what_was_there_before_is_refused(
    name: str, folds: int, reason: str, fused_calls: Calls
) -> None:
    plain = block()
    CHANGES[name][0](plain)
    fused = copy.deepcopy(plain)
    report = fuse(fused)
    assert len(report.folded) == folds
    assert reasons(report) == {f"not folded: {reason}"}
    check(fused, plain)
    assert len(fused_calls) == 2 * folds


def test_group_norms_take_no_residual(fused_calls: Calls) -> None:
    plain = block(norm_layer=lambda channels: nn.GroupNorm(2, channels))
    fused = copy.deepcopy(plain)
    report = fuse(fused)
    assert [fold.chain for fold in report.folded] == ["GroupNorm + LeakyReLU"]
    assert reasons(report) == {"not folded: the kernels add no residual to a GroupNorm"}
    check(fused, plain)


def test_another_version_of_the_block_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, calls: Calls
) -> None:
    def forward(self: Any, x: Tensor) -> Any:
        return self.relu(self.bn2(self.conv2(x)) + x)

    monkeypatch.setattr(BasicBlock, "forward", forward)
    made = block()
    report = fuse(made)
    assert type(made) is BasicBlock
    assert (report.folded, len(report.replaced)) == ([], 2)
    name = "torchvision.models.resnet.BasicBlock.forward"
    assert reasons(report) == {
        f"not folded: {name} is not the one that the fused forward was written for"
    }


def test_scripted_block_is_left_alone() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
    report = fuse(nn.Sequential(scripted, nn.BatchNorm2d(4), nn.ReLU()))
    assert [fold.names for fold in report.folded] == [("1",)]
    assert [left.names for left in report.skipped] == [("0.0",)]


def test_nothing_is_folded_if_anything_raises() -> None:
    class Hostile(nn.Sequential):
        @property
        def parametrizations(self) -> None:
            raise RuntimeError("boom")

    model: Any = nn.Sequential(block(), Hostile(nn.BatchNorm2d(4), nn.ReLU()))
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(RuntimeError, match="boom"):
        fuse(model)
    assert [type(module) for module in model.modules()] == kinds


def test_shared_blocks_are_folded_once_and_named_fully(fused_calls: Calls) -> None:
    made = block()
    report = fuse(nn.ModuleDict({"a": made, "b": made}))
    assert [fold.names for fold in report.folded] == [("a.bn1", "b.bn1"), ("a.bn2", "b.bn2")]


def test_norm_that_two_blocks_share_is_folded_in_both(fused_calls: Calls) -> None:
    norm = nn.BatchNorm2d(4)
    plain = nn.Sequential(nn.Sequential(norm, nn.ReLU()), nn.Sequential(norm, nn.SiLU())).double()
    fused = copy.deepcopy(plain)
    assert len(fuse(fused).folded) == 2
    check(fused, plain)
    assert [name for name, _ in fused_calls] == ["relu", "silu"] * 2
