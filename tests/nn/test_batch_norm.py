import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from lightning.pytorch.callbacks import BaseFinetuning
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.optim.swa_utils import update_bn

from lightning_practices.nn import BatchNorm1d, BatchNorm2d, BatchNorm3d
from tests.kernels.reference import assert_as_right_as_torch, run

KINDS: list[tuple[Any, Any, tuple[int, ...]]] = [
    (nn.BatchNorm1d, BatchNorm1d, (96, 3)),
    (nn.BatchNorm1d, BatchNorm1d, (8, 3, 12)),
    (nn.BatchNorm2d, BatchNorm2d, (4, 3, 4, 6)),
    (nn.BatchNorm3d, BatchNorm3d, (4, 3, 2, 3, 4)),
]
each_kind = pytest.mark.parametrize(("kind", "fused", "shape"), KINDS, ids=str)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"eps": 1e-3, "momentum": 0.3},
    {"momentum": None},
    {"affine": False},
    {"track_running_stats": False},
]
ACTIVATIONS: list[tuple[dict[str, Any], Callable[[Tensor], Tensor]]] = [
    ({"activation": "relu"}, F.relu),
    ({"activation": "leaky_relu", "activation_parameter": 0.2}, lambda z: F.leaky_relu(z, 0.2)),
    ({"activation": "elu", "activation_parameter": 1.5}, lambda z: F.elu(z, 1.5)),
    ({"activation": "selu"}, F.selu),
    ({"activation": "silu"}, F.silu),
    ({"activation": "relu6"}, F.relu6),
    ({"activation": "hardswish"}, F.hardswish),
    ({"activation": "gelu"}, F.gelu),
]


def randomise(layer: nn.Module) -> None:
    """Draw parameters and running statistics."""
    with torch.no_grad():
        for name, tensor in layer.state_dict().items():
            if name == "num_batches_tracked":
                tensor.fill_(2)
            else:
                tensor.uniform_(0.5, 1.5)


def twins(kind: Any, fused: Any, **options: Any) -> tuple[Any, Any]:
    """Return torch's layer of 3 channels and ours, with the same state."""
    theirs, ours = kind(3, **options), fused(3, **options)
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def as_function(layer: nn.Module) -> Any:
    """Return a fresh ``layer`` in the type of its input, as a function of it and its parameters."""

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        fresh: Any = copy.deepcopy(layer)
        if x.dtype == torch.float64:
            fresh.double()
        given = dict(zip(dict(fresh.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(fresh, given, (x,))  # type: ignore[no-any-return]

    return function


def assert_same_state(ours: nn.Module, theirs: nn.Module, **tolerance: Any) -> None:
    state = theirs.state_dict()
    assert ours.state_dict().keys() == state.keys()
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor.double(), state[name].double(), **tolerance)


@each_kind
@pytest.mark.parametrize("options", [*OPTIONS, {"dtype": torch.float64, "device": "cpu"}], ids=str)
def test_is_built_printed_and_saved_like_torchs(
    options: dict[str, Any], kind: Any, fused: Any, shape: tuple[int, ...]
) -> None:
    theirs, ours = kind(3, **options), fused(3, **options)
    assert isinstance(ours, kind)
    assert repr(ours) == repr(theirs)
    assert {name: (t.shape, t.dtype) for name, t in ours.state_dict().items()} == {
        name: (t.shape, t.dtype) for name, t in theirs.state_dict().items()
    }
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    for source, target in ((theirs, ours), (ours, theirs)):
        randomise(source)
        target.load_state_dict(source.state_dict(), strict=True)
        assert_same_state(target, source, rtol=0, atol=0)


def test_prints_what_it_does_besides() -> None:
    layer = BatchNorm2d(
        3, activation="elu", activation_parameter=0.5, virtual_batch_size=8, momentum=0.2
    )
    theirs = repr(nn.BatchNorm2d(3, momentum=0.2)).removesuffix(")")
    besides = "activation=elu, activation_parameter=0.5, virtual_batch_size=8"
    assert repr(layer) == f"{theirs}, {besides})"
    assert layer.state_dict().keys() == nn.BatchNorm2d(3).state_dict().keys()


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize(
    ("kind", "fused", "shape", "options"),
    [*((*kind, {}) for kind in KINDS), *((*KINDS[2], options) for options in OPTIONS[1:])],
    ids=str,
)
def test_is_as_right_as_torchs(
    kind: Any,
    fused: Any,
    shape: tuple[int, ...],
    options: dict[str, Any],
    training: bool,
    device: str,
) -> None:
    theirs, ours = (layer.to(device).train(training) for layer in twins(kind, fused, **options))
    parameters = [p.detach() for p in theirs.parameters()]

    def draw() -> tuple[list[Tensor | None], Tensor]:
        x = 1 + 2 * torch.randn(shape, device=device)
        return [x, *parameters], torch.randn_like(x)

    assert_as_right_as_torch(as_function(ours), as_function(theirs), draw)


@each_kind
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_running_statistics_over_several_batches(
    options: dict[str, Any], kind: Any, fused: Any, shape: tuple[int, ...], device: str
) -> None:
    theirs, ours = (layer.to(device) for layer in twins(kind, fused, **options))
    exact = copy.deepcopy(theirs).double()
    for _ in range(3):
        x = torch.randn(shape, device=device)
        ours(x)
        exact(x.double())
    assert_same_state(ours, exact, rtol=1e-5, atol=1e-6)
    if options.get("track_running_stats", True):
        assert ours.num_batches_tracked == 5
        before = copy.deepcopy(ours)
        ours.eval()(x)
        assert_same_state(ours, before, rtol=0, atol=0)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_statistics_no_longer_tracked(training: bool, device: str) -> None:
    theirs, ours = (layer.to(device) for layer in twins(nn.BatchNorm1d, BatchNorm1d))
    x = torch.randn(5, 3, device=device)
    for layer in (theirs, ours):
        layer.track_running_stats = False
        layer.train(training)
    torch.testing.assert_close(ours(x), theirs(x))
    assert_same_state(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize(("options", "activate"), ACTIVATIONS)
def test_activation_and_residual(
    options: dict[str, Any], activate: Callable[[Tensor], Tensor], residual: bool, device: str
) -> None:
    theirs = nn.BatchNorm2d(3).to(device)
    ours = BatchNorm2d(3, **options).to(device)

    def draw() -> tuple[list[Tensor | None], Tensor]:
        x, other, grad = (torch.randn(4, 3, 6, 5, device=device) for _ in range(3))
        return [x, other] if residual else [x], grad

    def composed(x: Tensor, other: Tensor | None = None) -> Tensor:
        z = copy.deepcopy(theirs).to(x.dtype)(x)
        return activate(z if other is None else z + other)

    def fused(x: Tensor, other: Tensor | None = None) -> Tensor:
        return copy.deepcopy(ours).to(x.dtype)(x, other)  # type: ignore[no-any-return]

    assert_as_right_as_torch(fused, composed, draw)
    tensors, grad = ([t.double() for t in draw()[0] if t is not None], draw()[1].double())
    for actual, exact in zip(run(fused, tensors, grad), run(composed, tensors, grad), strict=True):
        torch.testing.assert_close(actual, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("virtual", [None, 2])
def test_channels_last_is_kept(virtual: int | None, device: str) -> None:
    layer = BatchNorm2d(3, activation="relu", virtual_batch_size=virtual).to(device)
    x = torch.randn(4, 3, 5, 4, device=device)
    last = x.to(memory_format=torch.channels_last).requires_grad_()
    y = layer(last)
    (grad,) = torch.autograd.grad(y, last, y.detach())
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert grad.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, layer(x).to(memory_format=torch.channels_last))


@each_kind
def test_wrong_dimensions_raise_torchs_error(kind: Any, fused: Any, shape: tuple[int, ...]) -> None:
    for wrong in ((3,), (2, 3, 2, 2, 2, 2)):
        with pytest.raises(ValueError, match="expected") as theirs:
            kind(3)(torch.randn(wrong))
        with pytest.raises(ValueError, match="expected") as ours:
            fused(3)(torch.randn(wrong))
        assert str(ours.value) == str(theirs.value)


def test_a_single_value_per_channel_raises_and_changes_nothing(device: str) -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel") as theirs:
        nn.BatchNorm1d(3)(torch.randn(1, 3))
    layer = BatchNorm1d(3, device=device)
    before = copy.deepcopy(layer.state_dict())
    x = torch.randn(5, 3, device=device)
    with pytest.raises(ValueError, match="more than 1 value per channel") as ours:
        layer(x[:1])
    assert str(ours.value) == str(theirs.value)
    layer.virtual_batch_size = 2  # two of two samples, one of one
    with pytest.raises(ValueError, match=r"more than 1 value .*\[5, 3\]\) in 3 virtual batches"):
        layer(x)
    with pytest.raises(RuntimeError, match="sum exactly to 5"):
        layer(torch.randn(6, 3, device=device), torch.randn(5, 3, device=device))
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name])
    layer(torch.randn(6, 3, device=device))
    assert layer.num_batches_tracked == 3


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("size", "pieces"), [(6, (2, 2, 2)), (7, (3, 2, 2)), (2, (2,))], ids=str)
def test_virtual_batches_are_batches(
    size: int, pieces: tuple[int, ...], options: dict[str, Any], device: str
) -> None:
    theirs = nn.BatchNorm2d(3, **options).to(device)
    ours = BatchNorm2d(
        3, **options, activation="leaky_relu", virtual_batch_size=-(-size // len(pieces))
    ).to(device)
    parameters = [torch.randn(3, device=device) for _ in theirs.parameters()]
    names = [name for name, _ in theirs.named_parameters()]
    states: dict[Any, nn.Module] = {}

    def in_a_loop(x: Tensor, residual: Tensor, *given: Tensor) -> Tensor:
        layer = states["right"] = copy.deepcopy(theirs).to(x.dtype)
        replaced = dict(zip(names, given, strict=True))
        normalised = [
            torch.func.functional_call(layer, replaced, (part,)) for part in x.split(pieces)
        ]
        return F.leaky_relu(torch.cat(normalised) + residual)

    def at_once(x: Tensor, residual: Tensor, *given: Tensor) -> Tensor:
        layer = states["mine"] = copy.deepcopy(ours)
        replaced = dict(zip(names, given, strict=True))
        return torch.func.functional_call(layer, replaced, (x, residual))  # type: ignore[no-any-return]

    def draw() -> tuple[list[Tensor | None], Tensor]:
        x, residual, grad = (torch.randn(size, 3, 4, 5, device=device) for _ in range(3))
        return [x, residual, *parameters], grad

    assert_as_right_as_torch(at_once, in_a_loop, draw)  # on float64 last
    for name, tensor in states["mine"].state_dict().items():
        if name.startswith(("running", "num")):
            exact = states["right"].state_dict()[name]
            torch.testing.assert_close(tensor.double(), exact.double(), rtol=1e-5, atol=1e-6)
    if ours.track_running_stats:
        assert states["mine"].num_batches_tracked == len(pieces)


def test_evaluation_knows_no_virtual_batches(device: str) -> None:
    for options in ({}, {"track_running_stats": False}):
        both = twins(nn.BatchNorm1d, BatchNorm1d, **options)
        theirs, ours = (layer.to(device).eval() for layer in both)
        ours.virtual_batch_size = 2
        x = torch.randn(6, 3, device=device)
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("activation", "tanh", ValueError),
        ("virtual_batch_size", 0, ValueError),
        ("virtual_batch_size", 2.5, TypeError),
    ],
)
def test_bad_arguments_raise(name: str, value: Any, error: type[Exception]) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(error, match=f"{name} has to be .* but got {value!r}"):
        BatchNorm2d(3, **options)


def test_a_parameter_that_the_activation_lacks_raises() -> None:
    layer = BatchNorm1d(3, activation="relu", activation_parameter=0.5)
    with pytest.raises(ValueError, match=r"but got 0.5 with activation 'relu'"):
        layer(torch.randn(4, 3))
    assert layer.num_batches_tracked == 0


def test_torchs_conversion_takes_a_plain_layer() -> None:
    layer = BatchNorm2d(3, eps=1e-3)
    randomise(layer)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(layer))[0]
    assert type(converted) is nn.SyncBatchNorm
    assert converted.eps == 1e-3
    assert converted.weight is layer.weight
    assert_same_state(converted, layer, rtol=0, atol=0)


@pytest.mark.parametrize("besides", [{"activation": "relu"}, {"virtual_batch_size": 4}], ids=str)
def test_torchs_conversion_of_what_it_would_drop_raises(besides: dict[str, Any]) -> None:
    model = nn.Sequential(BatchNorm2d(3, **besides))
    with pytest.raises(RuntimeError, match=r"use lightning_practices.nn.SyncBatchNorm.convert"):
        nn.SyncBatchNorm.convert_sync_batchnorm(model)


def test_qconfig_is_an_attribute_like_any_other() -> None:
    layer: Any = BatchNorm2d(3)
    assert not hasattr(layer, "qconfig")
    layer.qconfig = "a configuration"
    assert layer.qconfig == copy.deepcopy(layer).qconfig == "a configuration"
    assert nn.SyncBatchNorm.convert_sync_batchnorm(layer).qconfig == "a configuration"
    del layer.qconfig
    assert not hasattr(layer, "qconfig")


def test_folds_into_a_convolution_in_evaluation(device: str) -> None:
    convolution = nn.Conv2d(2, 3, 3, dtype=torch.float64, device=device).eval()
    layer = BatchNorm2d(3, activation="relu", dtype=torch.float64, device=device).eval()
    randomise(layer)
    x = torch.randn(2, 2, 5, 6, dtype=torch.float64, device=device)
    folded = fuse_conv_bn_eval(convolution, layer)
    torch.testing.assert_close(folded(x).relu(), layer(convolution(x)))


def test_statistics_of_a_whole_loader(device: str) -> None:
    theirs, ours = (layer.to(device) for layer in twins(nn.BatchNorm1d, BatchNorm1d))
    batches = [torch.randn(6, 3, device=device) for _ in range(3)]
    update_bn(batches, ours)
    update_bn([batch.double() for batch in batches], theirs.double())
    assert ours.num_batches_tracked == 3
    assert ours.momentum == 0.1
    assert_same_state(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_keep_class_state_and_output(copied: Callable[..., Any], device: str) -> None:
    layer = BatchNorm2d(3, activation="elu", activation_parameter=0.7, virtual_batch_size=2)
    randomise(layer.to(device))
    x = torch.randn(4, 3, 2, 5, device=device)
    twin = copied(layer)
    assert type(twin) is BatchNorm2d
    assert repr(twin) == repr(layer)
    assert twin.running_mean is not layer.running_mean
    assert torch.equal(twin(x), layer(x))
    assert_same_state(twin, layer, rtol=0, atol=0)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("virtual", [None, 2])
def test_compiles_into_one_graph(virtual: int | None, training: bool, device: str) -> None:
    layer = BatchNorm2d(3, activation="relu", virtual_batch_size=virtual).to(device)
    randomise(layer.train(training))
    twin = copy.deepcopy(layer)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        tensors = [torch.randn(4, 3, 2, 5, device=device) for _ in range(2)]
        grad = torch.randn(4, 3, 2, 5, device=device)
        for mine, right in zip(
            run(compiled, tensors, grad), run(layer, tensors, grad), strict=True
        ):
            torch.testing.assert_close(mine, right)
    assert_same_state(twin, layer)
    torch.compiler.reset()


def test_finetuning_recognises_it() -> None:
    model = nn.Sequential(nn.Linear(3, 3), BatchNorm1d(3, activation="relu"))
    BaseFinetuning.freeze(model, train_bn=True)
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    BaseFinetuning.freeze(model, train_bn=False)
    assert not any(p.requires_grad for p in model.parameters())
    assert not model[1].track_running_stats


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_autocast_keeps_the_inputs_type(dtype: torch.dtype, device: str) -> None:
    layer = BatchNorm2d(3, activation="silu").to(device)
    randomise(layer)
    x = torch.randn(4, 3, 5, 3, dtype=dtype, device=device)
    exact = copy.deepcopy(layer).double()(x.double())
    with torch.autocast(device, dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == dtype
    assert (y - exact).abs().max() <= 2 * torch.finfo(dtype).eps * exact.abs().max()


def test_a_frozen_layer_passes_the_same_gradient_on(device: str) -> None:
    layer = BatchNorm1d(3, activation="gelu", device=device)
    randomise(layer)
    x, grad = torch.randn(6, 3, device=device), torch.randn(6, 3, device=device)
    y, grad_x = run(layer, [x], grad)
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    assert all(map(torch.equal, run(layer, [x], grad), (y, grad_x)))
    assert not layer(x).requires_grad
