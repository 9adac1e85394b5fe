"""Running statistics against those computed by hand, in float64."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn
from typing_extensions import override

from lightning_practices.nn import BatchNorm1d, BatchNorm2d
from lightning_practices.surgery import _recalibrate, recalibrate_batch_norm

pytestmark = pytest.mark.plain

Statistics = tuple[Tensor, Tensor, int]  # mean, unbiased variance, and of how many batches
SIZES = (4, 6, 5, 3)


def network() -> Any:
    return nn.Sequential(
        nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(5, 4), nn.BatchNorm1d(4, momentum=0.3), nn.Linear(4, 1),
    ).double()  # fmt: skip


def batches(sizes: Sequence[int] = SIZES) -> list[Tensor]:
    """Return batches that differ from each other more than their values do."""
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(size, 3, generator=generator, dtype=torch.float64) * (i + 1) + 3 * i
        for i, size in enumerate(sizes)
    ]


def by_hand(net: Iterable[Any], batches: Sequence[Tensor]) -> dict[int, Statistics]:
    """Return what each batch norm of a sequence should have, in float64, by its index.

    These are the statistics of all its inputs together. In the pass it normalises each batch by
    the batch's own statistics.
    """
    inputs: dict[int, list[Tensor]] = {}
    for batch in batches:
        x = batch.double()
        for i, layer in enumerate(net):
            if isinstance(layer, _BatchNorm):
                inputs.setdefault(i, []).append(x)
                mean = x.sum(0) / len(x)
                x = (x - mean) / ((x - mean).square().sum(0) / len(x) + layer.eps).sqrt()
                x = x * layer.weight.double() + layer.bias.double()
            elif isinstance(layer, nn.Linear):
                x = x @ layer.weight.double().T + layer.bias.double()
            elif isinstance(layer, nn.ReLU):
                x = x.clamp(min=0)
    return {i: together(found) for i, found in inputs.items()}


def together(inputs: Sequence[Tensor]) -> Statistics:
    """Return the statistics of the concatenated inputs, of shape (N, C) each."""
    x = torch.cat([one.double() for one in inputs])
    mean = x.sum(0) / len(x)
    return mean, (x - mean).square().sum(0) / (len(x) - 1), len(inputs)


def statistics_of(layer: Any) -> Statistics:
    return layer.running_mean, layer.running_var, int(layer.num_batches_tracked)


def assert_close(actual: Statistics, expected: Statistics) -> None:
    assert actual[2] == expected[2]
    for a, b in zip(actual[:2], expected[:2], strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-12, atol=1e-12)


def trained(net: Any) -> Any:
    """Return ``net`` with weights that are new, and statistics of older ones."""
    for batch in batches((8, 8)):
        net(batch)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))
    return net


def record(net: nn.Module) -> list[Any]:
    """Return all that a failed pass has to leave as it was."""
    state = [(name, value.clone()) for name, value in net.state_dict().items()]
    modes = [module.training for module in net.modules()]
    momenta = [module.momentum for module in net.modules() if isinstance(module, _BatchNorm)]
    return [*state, modes, momenta]


def assert_same(actual: list[Any], expected: list[Any]) -> None:
    *states, modes, momenta = actual
    *old_states, old_modes, old_momenta = expected
    for (name, value), (old_name, old) in zip(states, old_states, strict=True):
        assert name == old_name
        assert torch.equal(value, old), name
    assert modes == old_modes
    assert momenta == old_momenta


class Untouchable:
    """A loader that must not be used."""

    def __iter__(self) -> Iterator[Tensor]:
        raise AssertionError("the loader was used")


# The statistics.


@pytest.mark.parametrize("pack", [lambda x: x, lambda x: [x, "y"], lambda x: (x, None, 3)])
@pytest.mark.parametrize("training", [True, False])
def test_the_statistics_are_those_by_hand(training: bool, pack: Callable[[Tensor], Any]) -> None:
    net = trained(network()).train(training)
    before, expected = record(net), by_hand(net, batches())
    assert recalibrate_batch_norm(net, [pack(x) for x in batches()]) == ("1", "5")
    for i, statistics in expected.items():
        assert_close(statistics_of(net[i]), statistics)
    after = record(net)
    assert after[-2:] == before[-2:]  # modes and momenta
    for (name, new), (_, old) in zip(after[:-2], before[:-2], strict=True):
        assert torch.equal(new, old) == (not name.split(".")[1].startswith(("running", "num"))), (
            name
        )


def test_the_same_again_and_cumulative_layers_alike() -> None:
    net = trained(network())
    net[1].momentum = None
    for _ in range(2):
        recalibrate_batch_norm(net, batches())
        for i, statistics in by_hand(net, batches()).items():
            assert_close(statistics_of(net[i]), statistics)
        assert (net[1].momentum, net[5].momentum) == (None, 0.3)


def test_only_batch_norm_trains_in_the_pass_and_nothing_learns() -> None:
    net = trained(network())
    seen: list[Any] = []
    net[4].register_forward_hook(lambda *_: seen.append([m.training for m in net.modules()]))
    net[6].register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    recalibrate_batch_norm(net, batches((4,)))
    assert seen == [[False, False, True, False, False, False, True, False], False]


def test_averages_in_half_precision_do_not_stall() -> None:
    many = [
        x.bfloat16() for x in (torch.rand(300, 32, 4) + torch.linspace(0, 9, 300)[:, None, None])
    ]
    net: Any = nn.BatchNorm1d(4).bfloat16()
    theirs: Any = nn.BatchNorm1d(4).bfloat16()
    mean, variance, _ = by_hand([net], many)[0]
    recalibrate_batch_norm(net, many)
    update_bn(many, theirs)
    bound = torch.finfo(torch.bfloat16).eps / 2  # rounded once
    errors = [
        ((actual.double() - exact).abs() / exact).max()
        for layer in (net, theirs)
        for actual, exact in ((layer.running_mean, mean), (layer.running_var, variance))
    ]
    assert max(errors[:2]) <= bound
    assert max(errors[2:]) > 8 * bound


def test_a_shared_layer_counts_each_of_its_calls() -> None:
    norm, x = nn.BatchNorm1d(3).double(), batches()

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = norm, norm

        @override
        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(2 * x) if len(x) > 3 else self.a(x)  # type: ignore[no-any-return]

    assert recalibrate_batch_norm(Twice(), x) == ("a",)
    inputs = [y for batch in x for y in ((batch, 2 * batch) if len(batch) > 3 else (batch,))]
    assert len(inputs) == 7
    assert_close(statistics_of(norm), by_hand([norm], inputs)[0])


def test_layers_that_few_or_no_batches_reach() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.rare, self.auxiliary = (nn.BatchNorm1d(3).double() for _ in range(3))

        @override
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.main(x)
            if self.training:
                y = y + self.auxiliary(x)
            return self.rare(y) if len(x) == 6 else y

    net = trained(Branches())
    net.rare(batches()[0])
    old = copy.deepcopy(net.auxiliary)
    assert recalibrate_batch_norm(net, batches()) == ("main", "rare")
    assert_close(statistics_of(net.main), by_hand([net.main], batches())[0])
    both = nn.Sequential(net.main, net.rare)
    assert_close(statistics_of(net.rare), by_hand(both, batches()[1:2])[1])
    assert_same(record(net.auxiliary), record(old))


def test_fused_layers_and_virtual_batches() -> None:
    norm = BatchNorm1d(3, activation="relu", virtual_batch_size=3, dtype=torch.float64)
    net = nn.Sequential(norm, BatchNorm1d(3, dtype=torch.float64))
    x = batches((6, 4, 3))
    pieces = [
        piece for batch, n in zip(x, (2, 2, 1), strict=True) for piece in batch.tensor_split(n)
    ]
    recalibrate_batch_norm(net, x)
    assert_close(statistics_of(norm), together(pieces))
    norm.train()
    assert_close(statistics_of(net[1]), by_hand(net[1:], [norm(batch) for batch in x])[0])


def test_batches_of_64_64_and_2_of_images() -> None:
    generator = torch.Generator().manual_seed(2)
    x = [torch.randn(n, 3, 4, 5, generator=generator) + 3 * n for n in (64, 64, 2)]
    for make in (nn.BatchNorm2d, BatchNorm2d):
        for momentum in (0.1, None):
            norm: Any = make(3, momentum=momentum)
            recalibrate_batch_norm(norm, x)
            rows = [one.double().movedim(1, -1).reshape(-1, 3) for one in x]
            mean, variance, count = together(rows)
            exact = mean.float(), variance.float(), count
            assert all(map(torch.equal, statistics_of(norm)[:2], exact[:2]))
            assert norm.num_batches_tracked == 3
            assert norm.momentum == momentum


def test_large_inputs_are_converted_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_recalibrate, "_PIECE", 7)  # two samples
    norm = nn.BatchNorm1d(3).double()
    recalibrate_batch_norm(norm, batches())
    assert_close(statistics_of(norm), together(batches()))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_compiled_model(momentum: float | None) -> None:
    net = trained(network())
    net[1].momentum = momentum
    compiled: Any = torch.compile(net, backend="eager")
    compiled.train()(batches()[0])
    for data in (batches(), batches((4, 5, 9))):  # compiled code of the first pass runs again
        recalibrate_batch_norm(compiled, data)
        for i, statistics in by_hand(net, data).items():
            assert_close(statistics_of(net[i]), statistics)
        compiled.train()(batches()[0])


def test_an_input_by_name() -> None:
    norm = nn.BatchNorm1d(3).double()
    recalibrate_batch_norm(norm, batches(), forward=lambda model, batch: model(input=batch))
    assert_close(statistics_of(norm), together(batches()))


# Which layers.


def test_frozen_layers_keep_theirs() -> None:
    net = trained(network())
    net[1].eval()  # with weights that train
    net[3].eval()
    before, frozen = record(net), copy.deepcopy(net[1])
    assert recalibrate_batch_norm(net, batches()) == ("5",)
    assert_same(record(net[1]), record(frozen))
    assert record(net)[-2:] == before[-2:]
    x = [net[:5].eval()(batch) for batch in batches()]  # through the frozen one's old statistics
    assert_close(statistics_of(net[5]), by_hand(net[5:6], x)[0])


def test_nothing_to_recompute() -> None:
    net = trained(network())
    net[1].eval()
    net[5].eval()
    lost: Any = nn.BatchNorm1d(3)
    lost.num_batches_tracked = None
    untracked = nn.Sequential(
        nn.BatchNorm1d(3, track_running_stats=False),
        nn.InstanceNorm1d(3, track_running_stats=True),
        lost,
    )
    for model in (net, untracked, untracked.eval(), nn.Linear(3, 3)):
        before = record(model)
        assert recalibrate_batch_norm(model, Untouchable()) == ()
        assert_same(record(model), before)


# What goes wrong.


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_changes_if_anything_raises(error: type[BaseException]) -> None:
    net = trained(network())
    net[4].eval()
    before = record(net)

    def forward(model: nn.Module, batch: Tensor) -> None:
        model(batch)
        if len(batch) == 5:
            raise error("in the third batch")

    with pytest.raises(error, match="third") as caught:
        recalibrate_batch_norm(net, batches(), forward=forward)
    assert "none has changed" in caught.value.__notes__[0]
    assert_same(record(net), before)


@pytest.mark.parametrize("loader", [[], iter(())])
def test_an_empty_loader(loader: Iterable[Tensor]) -> None:
    net = trained(network())
    before = record(net)
    with pytest.raises(ValueError, match="the loader is empty"):
        recalibrate_batch_norm(net, loader)
    assert_same(record(net), before)


def test_a_forward_that_does_not_run_the_model() -> None:
    net = trained(network())
    before = record(net)
    with pytest.raises(ValueError, match="`forward` doesn't run the model"):
        recalibrate_batch_norm(net, batches(), forward=lambda model, batch: model[0](batch))
    assert_same(record(net), before)


@pytest.mark.parametrize(
    ("batch", "got"),
    [
        ({"x": 1}, "type dict,"),
        ([{"x": 1}], "type list that begins with dict"),
        ((), "type tuple,"),
    ],
)
def test_batches_that_need_forward(batch: Any, got: str) -> None:
    net = trained(network())
    before = record(net)
    with pytest.raises(TypeError, match=got + r".*forward=lambda model, batch"):
        recalibrate_batch_norm(net, [batch])
    assert_same(record(net), before)


def test_forward_runs_batches_of_any_type() -> None:
    net = trained(network())
    data = [{"x": x} for x in batches()]
    recalibrate_batch_norm(net, data, forward=lambda model, batch: model(batch["x"]))
    for i, statistics in by_hand(net, batches()).items():
        assert_close(statistics_of(net[i]), statistics)


@pytest.mark.parametrize("bad", [None, nn.BatchNorm1d])
def test_anything_but_a_module_is_refused(bad: Any) -> None:
    with pytest.raises(TypeError, match="model has to be a torch"):
        recalibrate_batch_norm(bad, batches())
