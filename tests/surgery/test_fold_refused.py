"""Blocks that can't be folded, or not for certain: they are left alone, and the report says why."""

import copy
import random
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet18
from typing_extensions import override

from lightning_practices.surgery import Report, fuse
from tests.surgery.blocks import Block, Calls, Forward, check, make


class Halving(torch.autograd.Function):
    """Has another gradient than its operations."""

    @staticmethod
    @override
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    @override
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad / 2


def reasons(report: Report) -> list[str]:
    return [left.reason.removeprefix("not folded: ") for left in report.skipped]


def output_used_twice(self: Any, x: Tensor) -> Any:
    y = self.norm(self.conv(x))
    return self.silu(y) * y


def sum_used_twice(self: Any, x: Tensor) -> Any:
    y = self.norm(self.conv(x)) + x
    return self.silu(y) * y


def norm_called_twice(self: Any, x: Tensor) -> Any:
    return self.act(self.norm(self.act(self.norm(self.conv(x)))))


def added_in_place_to_the_other(self: Any, x: Tensor) -> Any:
    x += self.norm(self.conv(x.clone()))
    return self.silu(x)


def norms_input_may_change_before_the_sum(self: Any, x: Tensor) -> Any:
    z = x.clone()
    y = self.norm(z.view_as(z))
    return self.act(y + self.other(z))


def norms_input_used_before_the_sum(self: Any, x: Tensor) -> Any:
    z = self.conv(x)
    y = self.norm(z)
    return self.act(y + self.other(z))


def statistics_read_before_the_sum(self: Any, x: Tensor) -> Any:
    y = self.norm(self.conv(x))
    r = x * self.norm.running_mean.sum()
    return self.act(y + r)


def residual_used_again(self: Any, x: Tensor) -> Any:
    z = self.other(x)
    y = self.silu(self.norm(self.conv(x)) + z)
    z.mul_(2)
    return y + z


def scaled_sum(self: Any, x: Tensor) -> Any:
    return self.act(torch.add(self.norm(self.conv(x)), x, alpha=2))


def dropout_between(self: Any, x: Tensor) -> Any:
    return self.act(self.drop(self.norm(self.conv(x))))


def tanh_gelu(self: Any, x: Tensor) -> Any:
    return self.gelu(self.norm(self.conv(x)))


def relu6(self: Any, x: Tensor) -> Any:
    return functional.relu6(self.norm(self.conv(x)))


def learned_slope(self: Any, x: Tensor) -> Any:
    return functional.leaky_relu(self.norm(self.conv(x)), x.shape[0])


def control_flow(self: Any, x: Tensor) -> Any:
    return self.act(self.norm(self.conv(x))) if x.sum() > 0 else x * self.scale


def reads_a_list(self: Any, x: Tensor) -> Any:
    self.items.append(x)
    return self.act(self.norm(self.conv(x * len(self.items))))


def sets_an_attribute(self: Any, x: Tensor) -> Any:
    self.rate += 1
    return self.act(self.norm(self.conv(x)) * self.rate)


def draws_from_torch(self: Any, x: Tensor) -> Any:
    return self.act(self.norm(self.conv(x))) * float(torch.rand(()))


def draws_from_python(self: Any, x: Tensor) -> Any:
    random.seed(3)
    return self.act(self.norm(self.conv(x))) * random.random()


def draws_from_numpy(self: Any, x: Tensor) -> Any:
    numpy.random.seed(3)
    return self.act(self.norm(self.conv(x))) * numpy.random.rand()


def without_gradients(self: Any, x: Tensor) -> Any:
    with torch.no_grad():
        y = self.act(self.norm(self.conv(x)))
    return y * self.scale + x


def without_autocast(self: Any, x: Tensor) -> Any:
    with torch.autocast("cpu", enabled=False):
        return self.act(self.norm(self.conv(x)))


def asks_for_gradients(self: Any, x: Tensor) -> Any:
    y = self.norm(self.conv(x))
    return self.act(y) if torch.is_grad_enabled() else self.silu(y)


def custom_gradient(self: Any, x: Tensor) -> Any:
    y: Tensor = Halving.apply(x)
    return self.act(self.norm(self.conv(y)))


def asks_for_the_type_of_a_result(self: Any, x: Tensor) -> Any:
    y = self.conv(x)
    return self.act(self.norm(y[0] if isinstance(y, tuple) else y))


def asks_for_the_data_type(self: Any, x: Tensor) -> Any:
    y = self.norm(self.conv(x))
    return self.silu(y) if x.dtype is torch.float64 else self.act(y)


def asks_for_an_attribute(self: Any, x: Tensor) -> Any:
    y = self.norm(self.conv(x))
    return self.act(y) if hasattr(x, "mask") else self.silu(y)


def catches_what_is_wrong(self: Any, x: Tensor) -> Any:
    try:
        n = len(self.items)
    except Exception:
        n = 7
    return self.act(self.norm(self.conv(x))) * n


REFUSED: dict[Forward, str] = {
    output_used_twice: "its output is used 2 times",
    sum_used_twice: "the sum is used 2 times",
    norm_called_twice: "it is called more than once",
    added_in_place_to_the_other: "it is added to another tensor in place",
    norms_input_may_change_before_the_sum: "its input may be changed before the addition",
    norms_input_used_before_the_sum: "its input may be changed before the addition",
    statistics_read_before_the_sum: "its parameters or buffers are used apart",
    residual_used_again: "the other summand is used again after the addition",
    scaled_sum: "add stands before the ReLU",
    dropout_between: "Dropout stands before the ReLU",
    tanh_gelu: "the approximated GELU can't be fused",
    relu6: "relu6 can't be fused",
    learned_slope: "the negative_slope of leaky_relu is not a number",
    control_flow: "TraceError: symbolically traced variables cannot be used as inputs to control",
    reads_a_list: "its forward reads the attribute 'items', a list",
    sets_an_attribute: "its forward changes the attribute 'rate'",
    draws_from_torch: "on other tensors than its inputs",
    draws_from_python: "draws random numbers",
    draws_from_numpy: "draws random numbers",
    without_gradients: "switches gradients, autocast",
    without_autocast: "switches gradients, autocast",
    asks_for_gradients: "whether gradients or autocast are enabled",
    custom_gradient: "its forward ",  # torch 2.11 raises by itself
    asks_for_the_type_of_a_result: "asks for the type of a result",
    asks_for_the_data_type: "reads the dtype of a value",
    asks_for_an_attribute: "reads the mask of a value",
    catches_what_is_wrong: "its forward reads the attribute 'items', a list",
}


@pytest.mark.parametrize("forward", REFUSED, ids=lambda forward: forward.__name__)
def test_refused_block_is_left_alone_and_says_why(forward: Forward, fused_calls: Calls) -> None:
    report = check(make(forward))
    assert report.folded == []
    assert len(report.skipped) >= 1
    assert all(REFUSED[forward] in reason for reason in reasons(report)), reasons(report)
    assert fused_calls == []


def norms_input_changed_before_the_sum(self: Any, x: Tensor) -> Any:
    z = x.clone()
    y = self.norm(z)
    z.mul_(3)
    return self.act(y + z)


@torch.no_grad()  # as autograd lets nobody do it
def test_norm_is_not_moved_past_a_change_of_its_input() -> None:
    block, x = make(norms_input_changed_before_the_sum), torch.randn(2, 4, 3, 3).double()
    plain = copy.deepcopy(block)
    (reason,) = reasons(fuse(block))
    assert "its input may be changed before the addition" in reason
    torch.testing.assert_close(block(x), plain(x))


def silent(self: Any, x: Tensor) -> Any:
    return self.conv(self.norm(x)) + self.norm2(x)


def test_norm_without_an_activation_is_not_mentioned() -> None:
    report = check(make(silent))
    assert (len(report.replaced), report.folded, report.skipped) == (3, [], [])


class Plain(Block):
    @override
    def forward(self, x: Tensor) -> Any:
        return self.act(self.norm(self.conv(x)))


class OwnCall(Plain):
    @override
    def __call__(self, *args: Any) -> Any:
        return super().__call__(*args)


class OwnReduce(Plain):
    @override
    def __reduce__(self) -> Any:
        return super().__reduce__()


class Registered(Plain):
    def __init_subclass__(cls) -> None:
        raise AssertionError("nobody asked")


class Meta(type):
    pass


class WithMeta(Plain, metaclass=Meta):
    pass


class Calling(nn.Module):
    """Calls a layer that does more than to run its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act, self.inner = nn.BatchNorm2d(4), nn.ReLU(), OwnCall()

    @override
    def forward(self, x: Tensor) -> Any:
        return self.inner(self.act(self.norm(x)))


class KeywordOnly(Block):
    @override
    def forward(self, x: Tensor, *, bonus: Any) -> Any:
        return self.act(self.norm(self.conv(x))) + bonus


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (OwnCall, "OwnCall overrides __call__"),
        (OwnReduce, "OwnReduce overrides __reduce__"),
        (Registered, "Registered overrides __init_subclass__"),
        (WithMeta, "WithMeta has the metaclass Meta"),
        (Calling, "OwnCall overrides __call__"),
        (KeywordOnly, "a keyword argument without a default"),
    ],
)
def test_classes_with_their_own_way_are_left_alone(cls: type[nn.Module], reason: str) -> None:
    block = cls()
    report = fuse(block)
    assert type(block) is cls
    assert report.folded == []
    assert any(reason in left.reason for left in report.skipped)


def test_scripted_block_is_left_alone() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
    report = fuse(nn.Sequential(scripted, nn.BatchNorm2d(4), nn.ReLU()))
    assert [fold.names for fold in report.folded] == [("1",)]
    assert [left.names for left in report.skipped] == [("0.0",)]


def test_nothing_is_folded_if_anything_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hostile(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.act = nn.BatchNorm2d(4), nn.ReLU()

        @override
        def forward(self, x: Tensor) -> Any:
            raise KeyboardInterrupt

    model: Any = nn.Sequential(resnet18().layer1, Hostile())
    kinds = [type(module) for module in model.modules()]
    functions = nn.Module.__setattr__, nn.Module.__delattr__, isinstance
    with pytest.raises(KeyboardInterrupt):
        fuse(model)
    assert [type(module) for module in model.modules()] == kinds
    assert functions == (nn.Module.__setattr__, nn.Module.__delattr__, isinstance)
    assert "__getattribute__" not in vars(nn.Module)
    assert not torch.is_autocast_enabled("cpu")


def test_norm_with_two_names_is_refused() -> None:
    block: Any = Plain().double()
    block.alias = block.norm
    report = check(block)
    assert reasons(report) == ["it is shared"]
    assert report.skipped[0].names == ("norm", "alias")
