"""Blocks written to make a fold go wrong: each computes what it computes unfolded."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lightning_practices.surgery import fuse
from tests.surgery.blocks import Calls, Forward, check, make


def functional_relu(self: Any, x: Tensor) -> Any:
    return functional.relu(self.norm(self.conv(x)), inplace=True)


def method_relu(self: Any, x: Tensor) -> Any:
    return torch.relu(self.norm2(self.norm(self.conv(x)).relu_()))


def leaky_with_a_slope(self: Any, x: Tensor) -> Any:
    return functional.leaky_relu(self.norm(self.conv(x)), self.rate)


def elu_with_alpha(self: Any, x: Tensor) -> Any:
    return functional.elu(self.norm(self.conv(x)), alpha=0.5)


def identities_between(self: Any, x: Tensor) -> Any:
    y = self.identity(self.norm(self.conv(x)))
    return self.act(self.identity(x + y))


def added_by_method(self: Any, x: Tensor) -> Any:
    return self.act(self.norm(self.conv(x)).add(x))


def added_by_torch(self: Any, x: Tensor) -> Any:
    return self.act(torch.add(x, self.norm(self.conv(x)), alpha=1))


def added_in_place(self: Any, x: Tensor) -> Any:
    y = self.norm(self.conv(x))
    y += self.other(x)
    return self.silu(y)


def two_norms_added(self: Any, x: Tensor) -> Any:
    return self.act(self.norm(self.conv(x)) + self.norm2(self.other(x)))


def nested_lists(self: Any, x: Tensor) -> Any:
    for layer in self.layers[:1]:
        x = self.norm(layer["conv"](x))
    return self.layers[-1](x)


def input_changed_after_the_norm(self: Any, x: Tensor) -> Any:
    y = self.norm(x.clone())
    x.mul_(2)
    return self.act(y) * x


def norms_input_is_used_again(self: Any, x: Tensor) -> Any:
    z = self.conv(x)
    return self.act(self.norm(z)) + z


def norms_input_is_the_residual(self: Any, x: Tensor) -> Any:
    z = self.conv(x)
    return self.act(self.norm(z) + z)


def residual_changed_before_the_sum(self: Any, x: Tensor) -> Any:
    z, y = x.clone(), self.norm(self.conv(x))
    z.mul_(3)
    return self.act(y + z)


def broadcast_residual(self: Any, x: Tensor) -> Any:
    return self.act(self.norm(self.conv(x)) + x.mean(dim=(2, 3), keepdim=True))


def broadcast_norm(self: Any, x: Tensor) -> Any:
    return self.act(x + self.norm(self.conv(x[:, :, :1, :1])))


def residual_of_another_type(self: Any, x: Tensor) -> Any:
    return self.act(self.norm(self.conv(x)) + x.float())


def residual_is_a_number(self: Any, x: Tensor) -> Any:
    return self.act(self.norm(self.conv(x)) + x.size(0))


def used_buffer_and_parameter(self: Any, x: Tensor) -> Any:
    self.count.add_(1)
    return self.act(self.norm(self.conv(x * self.scale + self.count)))


def depends_on_training(self: Any, x: Tensor) -> Any:
    y = self.norm(self.conv(x))
    return self.act(y) if self.training else self.silu(y)


def sizes_changed_in_place(self: Any, x: Tensor) -> Any:
    n = m = x.shape[0]
    m += 1
    return self.act(self.norm(self.conv(x))) * n + m


def aliased_sum(self: Any, x: Tensor) -> Any:
    z = y = self.other(x)
    y += self.act(self.norm(self.conv(x)))
    return z


def default_argument(self: Any, x: Tensor, twice: bool = False, **more: Any) -> Any:
    y = self.act(self.norm(self.conv(x)))
    return y * 2 if twice else y


def asks_for_the_type(self: Any, x: Any) -> Any:
    x = x if isinstance(x, Tensor) else x[0]
    return self.act(self.norm(self.conv(x)))


FOLDED: dict[Forward, tuple[str, ...]] = {
    functional_relu: ("ReLU",),
    method_relu: ("ReLU", "ReLU"),
    leaky_with_a_slope: ("LeakyReLU",),
    elu_with_alpha: ("ELU",),
    identities_between: ("add + ReLU",),
    added_by_method: ("add + ReLU",),
    added_by_torch: ("add + ReLU",),
    added_in_place: ("add + SiLU",),
    two_norms_added: ("add + ReLU",),
    nested_lists: ("ReLU",),
    input_changed_after_the_norm: ("ReLU",),
    norms_input_is_used_again: ("ReLU",),
    norms_input_is_the_residual: ("add + ReLU",),
    residual_changed_before_the_sum: ("add + ReLU",),
    broadcast_residual: ("add + ReLU",),
    broadcast_norm: ("add + ReLU",),
    residual_of_another_type: ("add + ReLU",),
    residual_is_a_number: ("add + ReLU",),
    used_buffer_and_parameter: ("ReLU",),
    depends_on_training: ("ReLU",),
    sizes_changed_in_place: ("ReLU",),
    aliased_sum: ("ReLU",),
    default_argument: ("ReLU",),
    asks_for_the_type: ("ReLU",),
}
NOT_IN_ONE_CALL = (
    broadcast_residual,
    broadcast_norm,
    residual_of_another_type,
    residual_is_a_number,
)


@pytest.mark.parametrize("forward", FOLDED, ids=lambda forward: forward.__name__)
def test_folded_block_computes_the_same(forward: Forward, fused_calls: Calls) -> None:
    report = check(make(forward))
    chains = FOLDED[forward]
    assert [fold.chain for fold in report.folded] == [f"BatchNorm2d + {c}" for c in chains]
    assert report.skipped == []
    calls = 0 if forward in NOT_IN_ONE_CALL else len(chains)
    assert len(fused_calls) == (calls if forward is depends_on_training else 2 * calls)


def test_every_kind_of_input_has_a_fold_of_its_own(fused_calls: Calls) -> None:
    block, x = make(asks_for_the_type), torch.randn(2, 4, 3, 3, dtype=torch.float64)
    plain = copy.deepcopy(block)
    fuse(block)
    for argument in (x, [x, 2 * x], (x, 2 * x)):
        torch.testing.assert_close(block(argument), plain(argument))
    assert len(fused_calls) == 2  # not for the tuple, which it was not read for
