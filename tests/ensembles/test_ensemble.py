"""What an ensemble says: votes, logits and spread, and that it stays what it was built of."""

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from typing_extensions import override

from lightning_practices.ensembles import Ensemble

CASES: list[Any] = [
    *[("binary", ()), ("binary", (1,)), ("binary", (3,)), ("multiclass", (3,))],
    *[("multiclass", (2, 4)), ("regression", ()), ("regression", (3, 2))],
]


class Says(nn.Module):
    """Returns what it is told to, shifted by the input."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.outputs = nn.Parameter(outputs)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.outputs + 0 * x.sum()


def ensemble_of(said: Any, **options: Any) -> Ensemble:
    return Ensemble([Says(each.clone()) for each in torch.as_tensor(said)], **options)


def classes(logits: Tensor, task: str) -> Tensor:
    """Return the probability of every class in the last dimension, in float64."""
    logits = logits.double()
    if task == "multiclass":
        e = logits.exp()
        return (e / e.sum(2, keepdim=True)).movedim(2, -1)
    p = 1 / (1 + (-logits).exp())
    return torch.stack([1 - p, p], dim=-1)


X = torch.zeros(6, 2)


def net(outputs: int = 3, width: int = 8) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(width, outputs),
    )  # fmt: skip


# Votes.


def said_by(logits: Tensor, task: str, kind: str) -> Tensor:
    """Return what members of these logits return."""
    if kind == "logits":
        return logits
    return logits.softmax(2) if task == "multiclass" else logits.sigmoid()


def reference(said: Tensor, task: str, kind: str) -> Tensor:
    """Return the probability of every class in the last dimension, in float64."""
    said = said.double()
    if kind == "logits":
        return classes(said, task)
    return said.movedim(2, -1) if task == "multiclass" else torch.stack([1 - said, said], dim=-1)


def placed(p: Tensor, task: str) -> Tensor:
    """Return probabilities of all classes, or votes, as the ensemble returns them."""
    return p.movedim(-1, 1) if task == "multiclass" else p[..., 1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
@pytest.mark.parametrize(("task", "shape"), CASES[:-2])
def test_what_is_said_is_what_the_formulas_say(
    task: Any, shape: tuple[int, ...], kind: Any, dtype: torch.dtype
) -> None:
    said = said_by(3 * torch.randn(5, 6, *shape, dtype=torch.float64), task, kind).to(dtype)
    p, kept = reference(said, task, kind), torch.promote_types(dtype, torch.float32)
    options = {"task": task, "outputs": kind}
    some = 30 * torch.finfo(kept).eps  # roundings
    got = ensemble_of(said, **options)(X)
    assert got.dtype == kept
    torch.testing.assert_close(got.double(), placed(p.mean(0), task), rtol=some, atol=some)
    votes = F.one_hot(p.argmax(-1), p.shape[-1]).double().mean(0)
    hard = ensemble_of(said, **options, vote="hard")(X)
    torch.testing.assert_close(hard, placed(votes, task).to(kept), rtol=some, atol=0)
    logits, log = ensemble_of(said, **options).logits(X), p.mean(0).log()
    assert logits.dtype == kept
    expected = placed(log, task) if task == "multiclass" else log[..., 1] - log[..., 0]
    # A logit changes by up to 1 / p of what a probability does.
    torch.testing.assert_close(
        logits.double(), expected, rtol=some, atol=some / p.mean(0).min().item()
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_are_averaged(dtype: torch.dtype) -> None:
    for _, shape in CASES[-2:]:
        said = torch.randn(5, 6, *shape).to(dtype)
        got = ensemble_of(said, task="regression")(X)
        kept = torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(got, said.double().mean(0).to(kept), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_the_spread_is_that_of_the_members(task: Any) -> None:
    logits = 3 * torch.randn(5, 6, 3, dtype=torch.float64)
    for kind in ["logits"] if task == "regression" else ["logits", "probabilities"]:
        said = said_by(logits, task, kind)
        for vote in ["soft"] if task == "regression" else ["soft", "hard"]:
            got = ensemble_of(said, task=task, outputs=kind, vote=vote).predict(X)
            if task == "regression":
                torch.testing.assert_close(got.mean, logits.mean(0))
                torch.testing.assert_close(got.std, logits.std(0))
                assert got.entropy is got.mutual_information is None
                continue
            p = classes(logits, task)
            torch.testing.assert_close(got.mean, placed(p.mean(0), task))
            torch.testing.assert_close(got.std, placed(p.std(0), task))
            entropy = -(p.mean(0) * p.mean(0).log()).sum(-1)
            within = -(p * p.log()).sum(-1).mean(0)
            torch.testing.assert_close(got.entropy, entropy)
            torch.testing.assert_close(got.mutual_information, entropy - within)


def test_logits_do_not_underflow() -> None:
    sure = torch.tensor([[[200.0, -200.0]], [[300.0, -300.0]]])
    ensemble = ensemble_of(sure, task="multiclass")
    assert ensemble(X)[0, 1] == 0
    # The mean of e^-400 and e^-600 is e^-400 / 2.
    expected = torch.tensor([[0.0, -400 - math.log(2)]])
    torch.testing.assert_close(ensemble.logits(X), expected)
    assert F.cross_entropy(ensemble.logits(X), torch.tensor([1])) == pytest.approx(400.6931)
    binary = ensemble_of([[200.0], [300.0]], task="binary")
    assert binary(X) == 1
    torch.testing.assert_close(binary.logits(X), torch.tensor([200 + math.log(2)]))


def test_members_of_one_mind_are_as_one() -> None:
    logits = torch.randn(1, 6, 3).expand(4, -1, -1)
    ensemble = ensemble_of(logits, task="multiclass")
    torch.testing.assert_close(ensemble.logits(X), logits[0].log_softmax(1))
    information = ensemble.predict(X).mutual_information
    assert information is not None
    assert information.abs().max() < 1e-6


def test_votes_are_counted_and_ties_go_to_the_first() -> None:
    logits = torch.tensor([[[9.0, 0, 0]], [[0, 1, 0]], [[0, 1, 0]], [[9, 0, 0]], [[0, 0, 1]]])
    hard = ensemble_of(logits, task="multiclass", vote="hard")(X)
    torch.testing.assert_close(hard, torch.tensor([[0.4, 0.4, 0.2]]))
    assert hard.argmax(1) == 0
    assert ensemble_of(logits[2:], task="multiclass", vote="hard")(X).argmax(1) == 0  # of three
    hard = ensemble_of([[0.0, 1.0], [1.0, 1.0], [-1.0, 1.0], [-9.0, -1.0]], task="binary",
                       vote="hard")(X)  # fmt: skip
    assert hard.tolist() == [0.25, 0.75]  # 1/2 is no yes
    half = {"task": "binary", "vote": "hard", "outputs": "probabilities"}
    assert ensemble_of([[0.5, 0.51], [0.2, 0.9]], **half)(X).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("vote", ["soft", "hard"])
def test_a_member_that_says_nan_is_not_outvoted(vote: Any) -> None:
    logits = torch.randn(3, 2, 4)
    logits[1, 0, 2] = torch.nan
    said = ensemble_of(logits, task="multiclass", vote=vote)(X)
    assert said.isnan().all(1).tolist() == [True, False]
    said = ensemble_of(logits, task="binary", vote=vote)(X)
    assert said.isnan().sum() == 1
    assert said[0, 2].isnan()
    never = torch.tensor([[[0.0, -torch.inf]], [[1.0, -torch.inf]]])  # a masked class is no nan
    assert ensemble_of(never, task="multiclass", vote=vote)(X).tolist() == [[1.0, 0.0]]


def test_the_variance_of_a_mean_of_independent_members() -> None:
    count, size = 10, 200_000
    ensemble = ensemble_of(2 * torch.randn(count, size), task="regression")
    variance = ensemble(X).var().item()
    # The sample variance of n normal values has a relative standard deviation of sqrt(2 / n).
    assert abs(variance / (4 / count) - 1) < 5 * math.sqrt(2 / size)


# Members.


def test_members_are_frozen_copies_in_eval_mode() -> None:
    given = [net(), net()]
    x = torch.randn(6, 4)
    ensemble = Ensemble(given, task="multiclass")
    before = ensemble(x)
    assert all(model.training for model in given)
    assert all(p.requires_grad for model in given for p in model.parameters())
    ensemble.train()
    assert ensemble.training
    assert not any(module.training for module in ensemble.members.modules())
    state = copy.deepcopy(ensemble.state_dict())
    assert torch.equal(ensemble(x), before)  # nothing drops
    assert all(torch.equal(value, state[name]) for name, value in ensemble.state_dict().items())
    for model in given:
        model(torch.randn(6, 4)).sum().backward()
        torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert torch.equal(ensemble(x), before)
    expected = torch.stack([m.eval()(x) for m in ensemble.members]).softmax(2).mean(0)
    assert torch.equal(before, expected)
    assert not any(p.requires_grad for p in ensemble.parameters())


def test_a_layer_that_members_share_is_each_ones_own() -> None:
    shared = nn.Linear(4, 4)
    given = [nn.Sequential(shared, nn.Linear(4, 3)) for _ in range(2)]
    ensemble = Ensemble(given, task="multiclass")
    expected = torch.stack([model(torch.ones(1, 4)) for model in given]).softmax(2).mean(0)
    assert torch.equal(ensemble(torch.ones(1, 4)), expected)
    assert len(list(ensemble.parameters())) == 8


def test_members_of_several_architectures_and_arguments() -> None:
    class Sum(nn.Module):
        @override
        def forward(self, x: Tensor, *, scale: float) -> Tensor:
            return x[:, :3] * scale

    class Other(Sum):
        @override
        def forward(self, x: Tensor, *, scale: float) -> Tensor:
            return x[:, 1:] - scale

    x = torch.randn(6, 4)
    got = Ensemble([Sum(), Other()], task="regression")(x, scale=2.0)
    torch.testing.assert_close(got, (x[:, :3] * 2 + x[:, 1:] - 2) / 2)


def test_state_copies_and_pickles() -> None:
    x = torch.randn(6, 4)
    ensemble = Ensemble([net() for _ in range(3)], task="multiclass", vote="hard")
    other = Ensemble([net() for _ in range(3)], task="multiclass", vote="hard")
    file = io.BytesIO()
    torch.save(ensemble.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), ensemble(x))
    assert torch.equal(other.predict(x).mean, ensemble.predict(x).mean)
    file = io.BytesIO()
    torch.save(ensemble, file)
    file.seek(0)
    for twin in (copy.deepcopy(ensemble), torch.load(file, weights_only=False)):
        assert torch.equal(twin(x), ensemble(x))
        assert repr(twin) == repr(ensemble)
        for p in twin.parameters():
            p.zero_()
    assert ensemble(x).max() > 0
    assert any(p.any() for p in ensemble.parameters())


def test_gradients_reach_the_input_but_not_from_predict() -> None:
    x = torch.randn(6, 4, requires_grad=True)
    ensemble = Ensemble([net(), net()], task="multiclass")
    (grad,) = torch.autograd.grad(ensemble.logits(x)[:, 0].sum(), x)
    assert grad.abs().min() > 0
    assert not ensemble.predict(x).mean.requires_grad


def test_compiled_in_one_graph() -> None:
    x = torch.randn(6, 4)
    ensemble = Ensemble([net(), net()], task="multiclass")
    compiled = torch.compile(ensemble, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), ensemble(x))
    torch.compiler.reset()


def test_autocast_is_averaged_in_float32() -> None:
    x = torch.randn(6, 4)
    ensemble = Ensemble([nn.Linear(4, 3), nn.Linear(4, 3)], task="multiclass")
    with torch.autocast("cpu", torch.bfloat16):
        each = torch.stack([member(x) for member in ensemble.members])
        got = ensemble(x)
    assert each.dtype == torch.bfloat16
    assert torch.equal(got, each.float().softmax(2).mean(0))


# What is refused.


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"members": []}, ValueError, "at least one module"),
        ({"members": [torch.relu]}, TypeError, "has to be a torch.nn.Module, but got <built-in"),
        (
            {"members": [nn.Linear]},
            TypeError,
            "has to be a torch.nn.Module, but got the class Linear",
        ),
        (
            {"task": "multilabel"},
            ValueError,
            "'binary', 'multiclass' or 'regression', but got 'multi",
        ),
        ({"outputs": "values"}, ValueError, "'logits' or 'probabilities', but got 'values'"),
        ({"vote": "median"}, ValueError, "'soft' or 'hard', but got 'median'"),
        ({"task": "regression", "vote": "hard"}, ValueError, "averages values.*vote='hard'"),
        ({"task": "regression", "outputs": "probabilities"}, ValueError, "averages values"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        Ensemble(**{"members": [net()], "task": "multiclass", **change})


@pytest.mark.parametrize(
    ("outputs", "error", "match"),
    [
        ([{"y": 1}], TypeError, "each member must return a tensor of floating dtype, got dict"),
        ([torch.ones(6, 3).long()], TypeError, "got torch.int64"),
        ([torch.ones(6)], ValueError, r"C of at least 2, got \(6,\)"),
        ([torch.ones(6, 1)], ValueError, r"C of at least 2, got \(6, 1\)"),
        ([torch.ones(6, 3), torch.ones(6, 4)], ValueError, r"of one shape, got \[\(6, 3\), \(6, 4"),
    ],
)
def test_bad_outputs(outputs: list[Any], error: type[Exception], match: str) -> None:
    class Returns(nn.Module):
        def __init__(self, what: Any) -> None:
            super().__init__()
            self.what = what

        @override
        def forward(self, x: Tensor) -> Any:
            return self.what

    ensemble = Ensemble([Returns(what) for what in outputs], task="multiclass")
    with pytest.raises(error, match=match):
        ensemble(X)


def test_what_has_no_logits_or_spread() -> None:
    x = torch.randn(6, 4)
    for options in ({"task": "regression"}, {"task": "multiclass", "vote": "hard"}):
        with pytest.raises(ValueError, match="has no logits: call it"):
            Ensemble([net()], **options).logits(x)  # type: ignore[arg-type]
    one = Ensemble([net()], task="multiclass")
    assert torch.equal(one(x), one.members[0](x).softmax(1))
    with pytest.raises(ValueError, match="at least two members, got one"):
        one.predict(x)


class _Keeping(nn.Module):
    """A model that keeps tensors with a graph, as models with weight norm or for plots do."""

    def __init__(self, kept: Any = None) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.kept = kept

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.layer(x)
        self.kept = [hidden, {"hidden": hidden}]
        return hidden


def test_members_that_keep_tensors_with_a_graph_are_copied() -> None:
    x, models = torch.randn(5, 3), [_Keeping(), _Keeping()]
    expected = torch.stack([model(x).softmax(1) for model in models]).mean(0)
    ensemble = Ensemble(models, task="multiclass")
    assert torch.equal(ensemble(x), expected)
    copied: Any = ensemble.members[0]
    assert copied.kept[0] is copied.kept[1]["hidden"]
    assert models[0].kept is not None
    assert models[0].kept[0].requires_grad


def test_a_member_that_cant_be_copied_is_named_with_its_attribute() -> None:
    model = nn.Sequential(_Keeping({"sums": {torch.randn(3, requires_grad=True).sum()}}))
    with pytest.raises(
        RuntimeError, match=r"Sequential can't be copied, because of its attribute 0\.kept"
    ):
        Ensemble([model], task="regression")
