"""PyTorch's own test cases of its norm layers, given to the layers of this package."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

import lightning_practices.nn
from tests.conftest import IS_INTERPRETED
from tests.kernels import torch_cases
from tests.kernels.alike import (
    Make,
    Target,
    assert_alike,
    instance_norm_by_group_norm,
    tensors_of,
)
from tests.kernels.torch_cases import Case


@pytest.mark.parametrize("name", torch_cases.MODULES)
def test_layers_give_the_results_and_gradients_of_torch(name: str, device: str) -> None:
    for case in torch_cases.cases("modules", name, IS_INTERPRETED):
        with torch_cases.naming(case):
            torchs = _made(getattr(nn, name), case).to(device)
            ours = _made(getattr(lightning_practices.nn, name), case).to(device)
            assert ours.state_dict().keys() == torchs.state_dict().keys()
            assert repr(ours) == repr(torchs)
            state = {
                key: torch.rand_like(t) + 0.5 if t.is_floating_point() else t
                for key, t in torchs.state_dict().items()
            }
            for layer in (ours, torchs):
                layer.load_state_dict(state)
            mine, theirs = _target(ours), _target(torchs)
            yardstick = theirs
            if isinstance(torchs, _InstanceNorm):
                yardstick = _target(deepcopy(torchs), by_group_norm=True)
            assert_alike(mine, theirs, case, device, yardstick)


@pytest.mark.plain
def test_layers_raise_the_errors_of_torch() -> None:
    errors = torch_cases.errors("modules")
    assert errors
    for name, (positional, keywords), (expected, call) in errors:
        make = getattr(lightning_practices.nn, name)
        if call is None:
            with pytest.raises(expected):
                make(*positional, **keywords)
        else:
            with pytest.raises(expected):  # in the constructor, if it can know
                make(*positional, **keywords)(*call[0], **call[1])


def _made(kind: type[nn.Module], case: Case) -> nn.Module:
    assert case.made is not None
    (positional, keywords), training = case.made
    (dtype,) = {t.dtype for t in tensors_of(case.call)}
    return kind(*positional, **keywords).train(training).to(dtype)


def _target(layer: nn.Module, by_group_norm: bool = False) -> Make:
    """Return a function that returns a copy of the layer, of which a call changes the buffers."""

    def make(wide: bool) -> Target:
        copy: Any = deepcopy(layer)
        copy = copy.double() if wide else copy
        if by_group_norm:
            copy.__class__ = type("Yardstick", (_ByGroupNorm, type(copy)), {})
        return Target(copy, tuple(copy.parameters()), tuple(copy.buffers()))

    return make


class _ByGroupNorm(_InstanceNorm):
    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        return instance_norm_by_group_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias,
            self.training or not self.track_running_stats,
            0.0 if self.momentum is None else self.momentum, self.eps,
        )  # fmt: skip
