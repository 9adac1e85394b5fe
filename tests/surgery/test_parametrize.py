"""Weight and spectral norm of a model's layers, and back."""

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from lightning_practices.surgery import blocks, freeze, fuse, parametrize, unparametrize

pytestmark = pytest.mark.plain

Kind = Literal["weight", "spectral"]
KINDS: list[Kind] = ["weight", "spectral"]


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, groups=3),
        nn.BatchNorm2d(6),
        nn.ConvTranspose2d(6, 4, 2, stride=2),
        nn.Flatten(),
        nn.Linear(4 * 8 * 8, 5),
    ).double()


def images() -> Tensor:
    return torch.randn(2, 3, 4, 4, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_what_becomes_of_weights(kind: Kind) -> None:
    model: Any = network()
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert parametrize(model, kind) == ("0.weight", "2.weight", "4.weight")
    model.eval()
    for index, dim in ((0, 0), (2, 1), (4, 0)):
        weight: Any = model[index].weight
        before = old[f"{index}.weight"]
        if kind == "weight":  # the same, with a length for each output
            torch.testing.assert_close(weight, before)
            lengths = model[index].parametrizations.weight.original0
            exact = before.transpose(0, dim).flatten(1).norm(dim=1)
            torch.testing.assert_close(lengths.flatten(), exact)
        else:
            matrix = before.transpose(0, dim).flatten(1)
            layer: Any = model[index].train()
            for _ in range(2000):
                weight = layer.weight
            torch.testing.assert_close(weight, before / torch.linalg.matrix_norm(matrix, 2))
        assert torch.equal(model[index].bias, old[f"{index}.bias"])


@pytest.mark.parametrize("kind", KINDS)
def test_trained_and_made_plain_again(kind: Kind) -> None:
    model = network()
    keys, order = [*model.state_dict()], [name for name, _ in model.named_parameters()]
    parametrize(model, kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(images()).square().mean().backward()
        optimizer.step()
    x = images()
    expected = model.eval()(x)
    assert unparametrize(model.train()) == ("0.weight", "2.weight", "4.weight")
    assert [*model.state_dict()] == keys
    assert [name for name, _ in model.named_parameters()] == order
    assert type(model[0]) is nn.Conv2d
    assert torch.equal(model.eval()(x), expected)
    assert unparametrize(model) == ()
    network().load_state_dict(model.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_weights_stay_frozen_parameters(kind: Kind) -> None:
    model = network()
    freeze(model, ["4"])
    parametrize(model, kind)
    assert not any(p.requires_grad for p in model[4].parameters())
    unparametrize(model)
    assert [name for name, _ in model[4].named_parameters()] == ["weight", "bias"]
    assert not any(p.requires_grad for p in model[4].parameters())


def test_where() -> None:
    model = resnet18(num_classes=3)
    assert parametrize(model, "spectral", ["fc", "layer4.0.conv1"]) == (
        "layer4.0.conv1.weight",
        "fc.weight",
    )
    unparametrize(model)
    head, top, *_ = blocks(model)
    names = parametrize(model, "weight", [head, top])
    assert "fc.weight" in names
    assert set(names) == {
        f"{name}.weight"
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear | nn.Conv2d) and name.startswith(("fc", "layer4.1"))
    }


def test_the_models_own_layer() -> None:
    layer = nn.Linear(3, 2)
    assert parametrize(layer, "weight") == ("weight",)
    assert unparametrize(layer) == ("weight",)


def test_other_parametrizations_stay() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    torch.nn.utils.parametrizations.orthogonal(model[0])
    parametrize(model, "weight", ["1"])
    assert unparametrize(model) == ("1.weight",)
    assert torch.nn.utils.parametrize.is_parametrized(model[0], "weight")
    parametrize(model, "spectral", ["1"])
    torch.nn.utils.parametrizations.orthogonal(model[1])  # on top of ours
    assert unparametrize(model) == ()


def test_beside_fused_layers() -> None:
    model = network()
    x = images()
    expected = model.eval()(x)
    fuse(model)
    parametrize(model, "weight")
    torch.testing.assert_close(model(x), expected)


def tied() -> nn.Module:
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4))
    model[1].weight = model[0].weight
    return model


def zeros(value: Callable[[Tensor], Any]) -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4))
    with torch.no_grad():
        value(model[0].weight)  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (tied, "weight", r"0\.weight and 1\.weight are one weight"),
        (lambda: zeros(lambda w: w[2].zero_()), "weight", "weight of 0 is 0 for an output"),
        (lambda: zeros(lambda w: w.zero_()), "spectral", "weight of 0 is 0 everywhere"),
        (lambda: nn.Sequential(nn.LazyLinear(3)), "weight", "0 has no weight yet: run a batch"),
        (lambda: nn.Sequential(nn.ReLU()), "weight", "no linear or convolution layer in Seq"),
        (lambda: nn.Linear(2, 2), "layer", "'weight' or 'spectral', but got 'layer'"),
    ],
)
def test_refused(make: Callable[[], nn.Module], kind: Any, message: str) -> None:
    model = make()
    with pytest.raises(ValueError, match=message):
        parametrize(model, kind)
    assert not any(torch.nn.utils.parametrize.is_parametrized(m) for m in model.modules())


def test_a_row_of_zeros_has_a_spectrum() -> None:
    model: Any = zeros(lambda w: w[2].zero_())
    before = model[0].weight.detach().clone()
    parametrize(model, "spectral")
    sigma = torch.linalg.matrix_norm(before, 2)
    torch.testing.assert_close(model.eval()[0].weight, before / sigma, rtol=0.1, atol=0)


def test_refused_as_a_whole() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    parametrize(model, "spectral", ["1"])
    with pytest.raises(ValueError, match="weight of 1 is parametrized already"):
        parametrize(model, "weight")
    assert type(model[0]) is nn.Linear
    with pytest.raises(ValueError, match=r"\['0.bias'\] are parameters"):
        parametrize(model, "weight", ["0.bias"])
    with pytest.raises(ValueError, match="no module or parameter is called '7'"):
        parametrize(model, "weight", ["7"])
