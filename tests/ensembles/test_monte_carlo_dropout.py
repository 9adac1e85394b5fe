"""Monte Carlo dropout of whole models: what is summed up, and what is left as it was."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from typing_extensions import override

from lightning_practices.ensembles import MonteCarloPrediction, monte_carlo_dropout

TASKS = ["binary", "multiclass", "regression"]


def mlp(outputs: int = 3, inplace: bool = False) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5, inplace), nn.Linear(8, outputs)
    ).double()


def inputs(count: int = 6) -> Tensor:
    return torch.randn(count, 4, dtype=torch.float64)


def assert_same(got: MonteCarloPrediction, expected: MonteCarloPrediction) -> None:
    """Both are float64 and from the same masks: they differ by the rounding of batched products."""
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)


def picked(prediction: MonteCarloPrediction, rows: Any) -> MonteCarloPrediction:
    return MonteCarloPrediction(*(None if t is None else t[rows] for t in prediction))  # type: ignore[arg-type]


def entropy(p: Tensor) -> Tensor:
    return -torch.where(p > 0, p * p.log(), 0.0).sum(1)


def by_hand(logits: Tensor, task: str) -> MonteCarloPrediction:
    """Sum up passes in dimension 0 by the formulas, in float64."""
    logits = logits.double()
    if task == "regression":
        return MonteCarloPrediction(logits.mean(0), logits.std(0), None, None)
    if task == "multiclass":
        p = logits.exp() / logits.exp().sum(2, keepdim=True)
        mean_of_entropies = torch.stack([entropy(each) for each in p]).mean(0)
        total = entropy(p.mean(0))
    else:
        p = 1 / (1 + (-logits).exp())
        both = torch.stack([p, 1 - p], dim=2)
        mean_of_entropies = torch.stack([entropy(each) for each in both]).mean(0)
        total = entropy(both.mean(0))
    return MonteCarloPrediction(p.mean(0), p.std(0), total, total - mean_of_entropies)


class Recorded:
    """A forward that keeps each output."""

    def __init__(self, model: Callable[[Any], Tensor]) -> None:
        self.model = model
        self.outputs: list[Tensor] = []

    def __call__(self, batch: Any) -> Tensor:
        self.outputs.append(self.model(batch))
        return self.outputs[-1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("task", "shape"),
    [
        *[("binary", ()), ("binary", (1,)), ("binary", (3,)), ("multiclass", (3,))],
        *[("multiclass", (2, 4)), ("regression", ()), ("regression", (3, 2))],
    ],
)
def test_what_is_summed_up_is_what_the_formulas_say(
    task: Any, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    model = mlp(outputs=max(1, int(torch.tensor(shape).prod()))).to(dtype)
    forward = Recorded(lambda batch: 3 * model(batch).reshape(len(batch), *shape))
    got = monte_carlo_dropout(model, inputs().to(dtype), task=task, passes=7, forward=forward)
    expected = by_hand(torch.stack(forward.outputs), task)
    kept = torch.promote_types(dtype, torch.float32)
    for ours, theirs in zip(got, expected, strict=True):
        if theirs is None:
            assert ours is None
            continue
        assert ours is not None
        assert ours.dtype == kept
        assert ours.shape == theirs.shape
        # Values up to about 10, sums of 7 of them: some tens of roundings.
        error = (ours.double() - theirs).abs().max()
        assert error <= 100 * torch.finfo(kept).eps * theirs.abs().max().clamp_min(1)
    assert got.std.min() > 0


def test_certain_and_impossible_classes_add_no_entropy() -> None:
    logits = torch.tensor([[200.0, 0, 0], [0, 0, -float("inf")], [0, 0, 0], [3e38, -3e38, 0]])
    model = nn.Dropout(0.5)
    got = monte_carlo_dropout(
        model,
        logits,
        task="multiclass",
        forward=lambda batch: 0 * model(batch).nan_to_num() + logits,
    )
    assert got.entropy is not None
    assert got.mutual_information is not None
    expected = torch.tensor([1.0, 2.0, 3.0, 1.0]).log()
    torch.testing.assert_close(got.entropy, expected, rtol=1e-6, atol=0)
    assert (got.mutual_information >= 0).all()  # all passes agree: the difference is but rounding
    torch.testing.assert_close(got.mutual_information, torch.zeros(4), rtol=0, atol=1e-6)
    yes_or_no = torch.tensor([20.0, -20.0, 0.0, -80.0])
    binary = monte_carlo_dropout(
        model,
        logits,
        task="binary",
        forward=lambda batch: 0 * model(batch).nan_to_num()[:, 0] + yes_or_no,
    )
    assert binary.entropy is not None
    p = yes_or_no.double().sigmoid()
    torch.testing.assert_close(binary.mean.double(), p, rtol=1e-6, atol=0)
    assert binary.entropy[0] == binary.entropy[1] > 0  # a sure yes as a sure no
    q = (-yes_or_no).double().sigmoid()
    exact = torch.special.entr(p) + torch.special.entr(q)
    torch.testing.assert_close(binary.entropy.double(), exact, rtol=1e-6, atol=1e-8)


def test_estimates_agree_with_all_masks_enumerated() -> None:
    first, last = nn.Linear(2, 3).double(), nn.Linear(3, 3).double()
    x = 2 * torch.randn(5, 2, dtype=torch.float64)
    with torch.no_grad():
        last.weight *= 4
        masks = torch.tensor(list(itertools.product([0.0, 2.0], repeat=3)), dtype=torch.float64)
        p = torch.stack([last(first(x) * mask) for mask in masks]).softmax(2)
    passes = 2000
    model = nn.Sequential(first, nn.Dropout(0.5), last)
    got = monte_carlo_dropout(model, x, task="multiclass", passes=passes, max_batch_size=2500)
    assert got.entropy is not None
    assert got.mutual_information is not None
    variance = p.var(0, correction=0)
    assert ((got.mean - p.mean(0)).abs() <= 5 * (variance / passes).sqrt()).all()
    fourth = (p - p.mean(0)).pow(4).mean(0)
    of_std = ((fourth - variance**2).clamp_min(0) / (4 * variance * passes)).sqrt()
    second_order = 25 / (2 * passes) * variance.sqrt()  # all there is where of_std is 0
    assert ((got.std - variance.sqrt()).abs() <= 5 * of_std + second_order).all()
    each = torch.stack([entropy(of_mask) for of_mask in p])
    noise = each.std(0, correction=0) / passes**0.5
    assert ((got.entropy - got.mutual_information - each.mean(0)).abs() <= 5 * noise).all()
    assert (got.mutual_information > 0.05).all()


@pytest.mark.parametrize("task", TASKS)
def test_a_sample_is_predicted_alike_in_any_batch(task: Any) -> None:
    model, x = mlp(), inputs(9)
    whole = monte_carlo_dropout(model, x, task=task, passes=5)
    order = torch.randperm(9)
    assert_same(monte_carlo_dropout(model, x[order], task=task, passes=5), picked(whole, order))
    for rows in (slice(0, 1), slice(1, 4), slice(4, 9)):
        part = monte_carlo_dropout(model, x[rows], task=task, passes=5)
        assert_same(part, picked(whole, rows))
    again = monte_carlo_dropout(model, x, task=task, passes=5)
    assert all(a is b or torch.equal(a, b) for a, b in zip(again, whole, strict=True))  # type: ignore[arg-type]
    other = monte_carlo_dropout(model, x, task=task, passes=5, seed=1)
    assert (other.mean - whole.mean).abs().max() > 1e-3


@pytest.mark.parametrize("limit", [1, 5, 6, 13, 24, 1000])
def test_passes_in_one_forward_are_the_same_passes(limit: int) -> None:
    model, x = mlp(), inputs()
    expected = monte_carlo_dropout(model, x, task="multiclass", passes=10)
    forward = Recorded(model)
    got = monte_carlo_dropout(
        model, x, task="multiclass", passes=10, max_batch_size=limit, forward=forward
    )
    assert_same(got, expected)
    at_once = max(1, min(limit // 6, 10))
    full, rest = divmod(10, at_once)
    sizes = [6 * at_once] * full + [6 * rest] * bool(rest)
    assert [len(output) for output in forward.outputs] == sizes


def test_batches_of_several_tensors_are_repeated_as_they_are() -> None:
    model, x = mlp(), inputs()
    batch = {"x": (x, [2 * x]), "scale": torch.tensor(2.0), "name": "train"}

    def forward(batch: Any) -> Tensor:
        assert batch["name"] == "train"
        first, (second,) = batch["x"]
        return model(first + second) / batch["scale"]  # type: ignore[no-any-return]

    def predict(limit: int | None) -> MonteCarloPrediction:
        return monte_carlo_dropout(
            model, batch, task="regression", max_batch_size=limit, forward=forward
        )

    assert_same(predict(64), predict(None))
    batch["mask"] = torch.ones(4, 4)
    predict(None)
    with pytest.raises(ValueError, match=r"a tensor of shape \(4, 4\).*max_batch_size=None"):
        predict(64)


def test_when_memory_runs_out_fewer_passes_are_tried() -> None:
    model, x = mlp(), inputs()
    expected = monte_carlo_dropout(model, x, task="regression", passes=10)
    tried: list[int] = []

    def forward(batch: Tensor, limit: int = 20) -> Tensor:
        tried.append(len(batch))
        y: Tensor = model(batch)
        if len(batch) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return y

    options: dict[str, Any] = {"task": "regression", "passes": 10, "max_batch_size": 60}
    assert_same(monte_carlo_dropout(model, x, forward=forward, **options), expected)
    assert tried == [60, 30, 12, 12, 12, 12, 12]
    with pytest.raises(torch.OutOfMemoryError):
        monte_carlo_dropout(model, x, forward=lambda batch: forward(batch, 5), **options)


class Normed(nn.Module):
    """Everything that has modes, and a forward that may fail half way."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)
        self.fails = False

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.norm(x))[:, None]
        x = self.attention(x, x, x)[0][:, 0]
        if self.fails:
            raise KeyError("half way")
        return x

    @override
    def train(self, mode: bool = True) -> "Normed":
        raise AssertionError("it may do more than set flags")


@pytest.mark.parametrize("fails", [False, True])
def test_all_is_left_as_it_was(fails: bool) -> None:
    model = Normed()
    flags = [True, False, True, False, True]
    for module, flag in zip(model.modules(), flags, strict=True):
        module.training = flag
    model.fails = fails
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator, keys = torch.get_rng_state(), [list(vars(m)) for m in model.modules()]
    try:
        monte_carlo_dropout(model, torch.randn(6, 4, generator=torch.Generator()), task="binary")
    except KeyError:
        assert fails
    assert [module.training for module in model.modules()] == flags
    assert [list(vars(m)) for m in model.modules()] == keys
    assert "forward" not in vars(model.attention)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), generator)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.is_grad_enabled()


def test_batch_norm_uses_and_keeps_its_running_statistics() -> None:
    norm, x = nn.BatchNorm1d(4).double(), 3 * inputs() + 1
    norm(x)
    expected = norm.eval()(x)
    norm.train()
    seen: list[Tensor] = []
    norm.register_forward_hook(lambda module, args, y: seen.append(y))
    statistics = [buffer.clone() for buffer in norm.buffers()]
    got = monte_carlo_dropout(nn.Sequential(norm, nn.Dropout(0.5)), x, task="regression")
    assert len(seen) == 30
    assert all(torch.equal(y, expected) for y in seen)
    assert not got.mean.requires_grad
    for buffer, before in zip(norm.buffers(), statistics, strict=True):
        assert torch.equal(buffer, before)


def test_compiled_models_run_eagerly_with_the_same_masks() -> None:
    ran: list[int] = []

    def backend(graph: Any, examples: Any) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            ran.append(1)
            return graph(*args)

        return run

    model, x = mlp().eval(), inputs()
    compiled: Any = torch.compile(model, backend=backend)
    compiled(x)
    assert len(ran) == 1
    expected = monte_carlo_dropout(model, x, task="multiclass")
    assert_same(monte_carlo_dropout(compiled, x, task="multiclass"), expected)
    assert len(ran) == 1
    compiled(x)
    assert len(ran) == 2
    torch.compiler.reset()


def test_noise_tells_less_than_digits() -> None:
    data, target = load_digits(return_X_y=True)
    x, y = torch.tensor(data, dtype=torch.float32) / 16, torch.tensor(target)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x[:1200]), y[:1200]).backward()
        optimizer.step()
    digits = monte_carlo_dropout(model, x[1200:], task="multiclass", passes=50)
    noise = monte_carlo_dropout(model, torch.rand(500, 64), task="multiclass", passes=50)
    assert (digits.mean.argmax(1) == y[1200:]).float().mean() > 0.9
    assert digits.mutual_information is not None
    assert noise.mutual_information is not None
    assert noise.mutual_information.mean() > 2 * digits.mutual_information.mean()


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"model": torch.relu}, TypeError, "has to be a torch.nn.Module, but got <built-in"),
        ({"model": mlp}, TypeError, "has to be a torch.nn.Module, but got <function"),
        ({"task": "multilabel"}, ValueError, "'regression', but got 'multilabel'"),
        ({"passes": 1}, ValueError, "from 2 on, but got 1"),
        (
            {"max_batch_size": 0},
            ValueError,
            "max_batch_size has to be a whole number from 1.*got 0",
        ),
        ({"batch": "text"}, TypeError, "a batch of type str without a tensor"),
        ({"batch": [torch.tensor(1.0)]}, TypeError, "a batch of type list without a tensor"),
        ({"batch": torch.ones(0, 4)}, ValueError, r"batch is empty.*\(0, 4\)"),
        ({"forward": lambda batch: {"y": batch}}, TypeError, "got dict"),
        ({"forward": lambda batch: batch.argmax(1)}, TypeError, "got torch.int64"),
        ({"forward": lambda batch: batch[1:]}, ValueError, r"6 samples.*\(5, 4\)"),
        ({"forward": lambda batch: batch.sum()}, ValueError, r"6 samples.*\(\)"),
        ({"forward": lambda batch: batch[:, :1]}, ValueError, r"C of at least 2, got \(6, 1\)"),
        ({"forward": lambda batch: batch[:, 0]}, ValueError, r"C of at least 2, got \(6,\)"),
        ({"forward": lambda batch: batch}, RuntimeError, r"no layer that drops was called \(2\)"),
        ({"model": nn.Linear(4, 3)}, RuntimeError, "no layer of Linear drops.*StochasticDepth"),
        ({"model": nn.Dropout(0.0)}, RuntimeError, "no layer of Dropout drops"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], match: str) -> None:
    arguments = {"model": mlp(), "batch": inputs(), "task": "multiclass", **change}
    with pytest.raises(error, match=match):
        monte_carlo_dropout(**arguments)


def test_layers_that_were_not_called_are_named() -> None:
    model = nn.ModuleDict({"used": nn.Dropout(0.5), "auxiliary": nn.Dropout(0.5)})
    with pytest.warns(UserWarning, match="not called, and add no spread: auxiliary"):
        got = monte_carlo_dropout(model, inputs(), task="regression", forward=model["used"])
    assert got.std.min() > 0
