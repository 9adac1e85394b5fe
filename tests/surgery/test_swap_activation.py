"""Activations replaced in place, with the weights and dropout that fit, and undone exactly."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_practices.surgery import fuse, swap_activation


def deep(depth: int = 30, width: int = 256) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.1)]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def spread(model: nn.Module) -> float:
    x = torch.randn(200, 256, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return float(model.eval()[:-1](x).square().mean().sqrt())  # type: ignore[index]


def test_signals_keep_their_scale_for_selu() -> None:
    model = deep()
    report = swap_activation(model, nn.ReLU, nn.SELU)
    assert all(type(model[3 * i + 1]) is nn.SELU for i in range(30))
    assert 0.5 < spread(model) < 2
    report.undo()
    swap_activation(model, nn.ReLU, nn.SELU, initialize=False)
    assert not 0.5 < spread(model) < 2  # torch's own weights vanish


@pytest.mark.parametrize("initialize", [True, False])
def test_undo_restores_layers_weights_and_parameters(initialize: bool) -> None:
    model = deep(3).eval()
    before, layers, parameters = copies(model), list(model), list(model.parameters())
    report = swap_activation(model, nn.ReLU, nn.SELU, initialize=initialize)
    weights_stayed = all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    assert weights_stayed is not initialize
    report.undo()
    assert all(a is b for a, b in zip(model, layers, strict=True))
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    with pytest.raises(RuntimeError, match="undone already"):
        report.undo()


def test_dropout_becomes_alpha_dropout_for_selu_alone() -> None:
    def model() -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.2),
            nn.Flatten(), nn.LazyLinear(4), nn.Dropout(0.3, inplace=True),
        )  # fmt: skip

    one = model()
    report = swap_activation(one, nn.ReLU(), nn.SELU, initialize=False)
    assert repr(one[3]) == "FeatureAlphaDropout(p=0.2, inplace=False)"
    assert repr(one[6]) == "AlphaDropout(p=0.3, inplace=True)"
    assert report.norms == ["1"]
    assert "SELU normalises by itself: leave out 1" in str(report)
    other = model()
    report = swap_activation(other, nn.ReLU, nn.LeakyReLU(0.1), initialize=False)
    assert repr(other[2]) == "LeakyReLU(negative_slope=0.1)"
    assert type(other[3]) is nn.Dropout2d
    assert not report.norms


def test_shared_layers_stay_shared_and_copies_are_apart() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(2, 2), relu, nn.Linear(2, 2), relu, nn.Linear(2, 2), nn.ReLU())
    before = copies(model)
    report = swap_activation(model, nn.ReLU, nn.PReLU(init=0.3))
    assert model[1] is model[3]
    assert model[1] is not model[5]
    assert model.state_dict()["5.weight"].item() == pytest.approx(0.3)
    report.undo()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_frozen_parameters_stay() -> None:
    model = deep(3)
    model[0].requires_grad_(False)
    before = copies(model)
    swap_activation(model, nn.ReLU, nn.ELU)
    changed = {n for n, v in model.state_dict().items() if not torch.equal(before[n], v)}
    assert "0.weight" not in changed
    assert "3.weight" in changed


def test_what_can_not_be_swapped_is_an_error_and_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.GELU())
    with pytest.raises(ValueError, match=r"no layer of class ReLU; activations .*: Tanh, GELU"):
        swap_activation(model, nn.ReLU, nn.SELU)
    with pytest.raises(ValueError, match="the model itself is a ReLU"):
        swap_activation(nn.ReLU(), nn.ReLU, nn.SELU)
    fused = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    fuse(fused)
    with pytest.raises(ValueError, match=r"surgery.unfuse\(model\) before"):
        swap_activation(fused, nn.ReLU, nn.SELU)
    lazy = nn.Sequential(nn.LazyLinear(2), nn.ReLU())
    with pytest.raises(ValueError, match=r"lazy|shape|batch"):
        swap_activation(lazy, nn.ReLU, nn.SELU)
    assert type(lazy[1]) is nn.ReLU
    wrong: Any = torch.relu
    with pytest.raises(TypeError, match="after has to be the class of an activation"):
        swap_activation(model, nn.Tanh, wrong)


def test_undo_refuses_a_model_that_has_changed() -> None:
    model = deep(2)
    report = swap_activation(model, nn.ReLU, nn.SELU)
    model[4] = nn.Tanh()
    with pytest.raises(RuntimeError, match="4 is no longer the layer"):
        report.undo()
    assert type(model[1]) is nn.SELU
