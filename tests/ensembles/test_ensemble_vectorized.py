"""Members that run vectorized: the same as one by one, whatever happens to them in between."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from typing_extensions import override

from lightning_practices.ensembles import Ensemble, _ensemble

X = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def net(width: int = 8, rate: float = 0.5) -> nn.Sequential:
    model = nn.Sequential(
        nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(rate),
        nn.Linear(width, 3),
    ).double()  # fmt: skip
    model(2 * torch.randn(32, 4, dtype=torch.float64))  # statistics of its own
    return model


def pair(vectorized: bool = True, **options: Any) -> tuple[Ensemble, Ensemble]:
    """Return the same ensemble twice: vectorized, or by default, and one by one."""
    members = options.pop("members", None) or [net() for _ in range(4)]
    how = True if vectorized else None
    options = {"task": "multiclass", **options}
    return Ensemble(members, vectorize=how, **options), Ensemble(
        members, vectorize=False, **options
    )


def assert_same(ours: Ensemble, theirs: Ensemble, x: Tensor = X) -> None:
    """Both are float64: they differ by the rounding of batched products."""
    assert_runs_vectorized(ours)
    for call in ("forward", "logits"):
        got, expected = getattr(ours, call)(x), getattr(theirs, call)(x)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)


def assert_runs_vectorized(ensemble: Ensemble) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("ran one by one")

    assert "run vectorized" in repr(ensemble)
    ensemble.__dict__["_looped"] = fail
    ensemble(X.to(next(ensemble.parameters()).dtype))
    del ensemble.__dict__["_looped"]


class Attentive(nn.Module):
    """Attention, layer norm, an embedding and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 8)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)
        self.head.weight = self.embedding.weight
        self.register_buffer("shift", torch.randn(8), persistent=False)

    @override
    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding((3 * x).round().long() % 5) + self.shift
        h = self.norm(h + self.attention(h, h, h)[0])
        out: Tensor = self.head(h.mean(1))
        return out


def images() -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    ).double()  # fmt: skip


@pytest.mark.parametrize("make", [net, lambda: Attentive().double(), images])
def test_vectorized_is_the_same(make: Callable[[], nn.Module]) -> None:
    ours, theirs = pair(members=[make() for _ in range(4)])
    assert_same(ours, theirs)
    hard = [
        Ensemble(ours.members, task="multiclass", vote="hard", vectorize=s) for s in (True, False)
    ]
    assert torch.equal(hard[0](X), hard[1](X))
    for a, b in zip(ours.predict(X), theirs.predict(X), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)
    assert torch.backends.mha.get_fastpath_enabled()


def test_there_is_one_copy_of_the_weights_and_the_state_stays_as_it_was() -> None:
    ours, theirs = pair()
    names = list(ours.state_dict())
    ours(X)
    assert list(ours.state_dict()) == names
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name])
    weights = [member[0].weight for member in ours.members]  # type: ignore[index]
    assert len({weight.untyped_storage().data_ptr() for weight in weights}) == 1
    stack = ours._vectorized._state
    ours(X)
    assert ours._vectorized._state is stack  # not stacked anew


def test_changes_of_members_are_seen() -> None:
    ours, theirs = pair()
    assert_same(ours, theirs)

    def both(change: Callable[[Ensemble], object]) -> None:
        before = ours(X.to(next(ours.parameters()).dtype))
        for ensemble in (ours, theirs):
            torch.manual_seed(1)
            change(ensemble)
        x = X.to(next(ours.parameters()).dtype)
        assert not torch.equal(ours(x), before)
        tolerance = 1e-12 if x.dtype == torch.float64 else 1e-5
        torch.testing.assert_close(ours(x), theirs(x), rtol=tolerance, atol=tolerance)
        assert_runs_vectorized(ours)

    state = Ensemble([net() for _ in range(4)], task="multiclass").state_dict()
    other = {name: 2 * value for name, value in state.items()}
    both(lambda e: e.load_state_dict(state))
    both(lambda e: e.load_state_dict({k: v.clone() for k, v in other.items()}, assign=True))
    both(lambda e: e.members[1][0].weight.normal_())  # type: ignore[index]
    both(lambda e: e.members[2][4].weight.data.normal_())  # type: ignore[index]
    both(lambda e: e.members[3][1].running_mean.add_(1))  # type: ignore[index]
    both(lambda e: setattr(e.members[0][0].weight, "data", torch.ones(8, 4).double()))  # type: ignore[index]
    both(lambda e: e.members[0].load_state_dict(net().state_dict()))
    both(lambda e: e.float())
    both(lambda e: e.double().members[1][4].bias.add_(1))  # type: ignore[index]


def test_copies_and_pickles_have_weights_of_their_own() -> None:
    ours, theirs = pair()
    ours(X)
    file, other = io.BytesIO(), io.BytesIO()
    torch.save(ours, file)
    torch.save(theirs, other)
    assert file.tell() < 1.1 * other.tell()  # the weights once
    file.seek(0)
    for twin in (copy.deepcopy(ours), torch.load(file, weights_only=False)):
        assert not twin._vectorized._state[0]
        assert_same(twin, theirs)
        for p in twin.parameters():
            p.zero_()
        torch.testing.assert_close(twin(X), torch.full((6, 3), 1 / 3, dtype=torch.float64))
    assert_same(ours, theirs)


def test_after_inference_mode_gradients_still_reach_the_input() -> None:
    ours, theirs = pair()
    with torch.inference_mode():
        ours(X)
    x = X.clone().requires_grad_()
    (got,) = torch.autograd.grad(ours.logits(x)[:, 0].sum(), x)
    (expected,) = torch.autograd.grad(theirs.logits(x)[:, 0].sum(), x)
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-13)
    with torch.inference_mode():
        ours.members[0][4].bias.add_(1)  # type: ignore[index]
        theirs.members[0][4].bias.add_(1)  # type: ignore[index]
    assert_same(ours, theirs)


def test_compiled_members_run_one_by_one() -> None:
    ours, theirs = pair()
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    assert torch.equal(compiled(X), theirs(X))
    torch.compiler.reset()


class Setting(nn.Module):
    def __init__(self, setting: Any, width: int = 3) -> None:
        super().__init__()
        self.setting = setting
        self.linear = nn.Linear(4, width).double()

    @override
    def forward(self, x: Tensor) -> Any:
        return self.linear(x)


def _hooked() -> nn.Module:
    model = net()
    model[0].register_forward_hook(lambda module, args, out: 2 * out)
    return model


def _tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ([net(), nn.Linear(4, 3)], "layers differ in number or name"),
        ([nn.Linear(4, 3), nn.Bilinear(4, 3, 2)], "the models differ: Linear and Bilinear"),
        ([nn.Sequential(nn.ReLU()), nn.Sequential(nn.GELU())], "'0' differ: ReLU and GELU"),
        ([net(), net(rate=0.1)], "settings of '3' differ"),
        ([net(), net(width=9)], "settings of '0' differ"),
        ([Setting("relu"), Setting("gelu")], "settings of the models differ"),
        ([Setting(1), Setting(1.0)], "settings of the models differ"),
        ([Setting([1, {"a": 2}]), Setting([1, {"a": 3}])], "settings of the models differ"),
        ([Setting(torch.ones(1)), Setting(torch.ones(1))], "can't be compared"),
        ([net(), _hooked()], "settings of '0' differ"),
        ([net(), net().float()], "'0.weight' differs in shape, dtype or device"),
        ([_tied(), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))], "differ in name"),
        (
            [Setting(1), Setting(1).register_forward_pre_hook(print) and Setting(2)],
            "settings of the models differ",
        ),
        ([weight_norm(nn.Linear(4, 3)) for _ in range(2)], "differ: Parametrized"),
    ],
)
def test_what_is_not_alike_runs_one_by_one(members: list[nn.Module], match: str) -> None:
    with pytest.raises(ValueError, match=f"vectorize=True, but .*{match}.*leave vectorize=None"):
        Ensemble(members, task="multiclass", vectorize=True)
    ensemble = Ensemble(members, task="multiclass")
    assert "run one by one: " in repr(ensemble)


def test_equal_settings_are_alike() -> None:
    settings = [1, {"a": (2.5, None, "x")}, {3, 4}, torch.float32, torch.relu]
    ours, theirs = pair(members=[Setting(copy.deepcopy(settings)) for _ in range(2)])
    assert_same(ours, theirs)


class Subclass(nn.Parameter):
    @override
    def __deepcopy__(self, memo: Any) -> "Subclass":
        return Subclass(self.detach().clone())


def test_weights_of_a_tensor_subclass_run_one_by_one() -> None:
    models = [nn.Linear(4, 3) for _ in range(2)]
    for model in models:
        model.weight = Subclass(model.weight.detach())
    with pytest.raises(ValueError, match="'weight' is a Subclass, which can't be stacked"):
        Ensemble(models, task="multiclass", vectorize=True)


# By default.


def test_on_the_cpu_members_run_one_by_one() -> None:
    ensemble, theirs = pair(vectorized=False)
    assert "run one by one: it is faster on the CPU" in repr(ensemble)
    assert torch.equal(ensemble(X), theirs(X))
    assert "run one by one: vectorize=False" in repr(theirs)


@pytest.fixture
def _elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ensemble, "_ONE_BY_ONE", ())


@pytest.mark.usefixtures("_elsewhere")
def test_elsewhere_they_run_vectorized_if_they_can() -> None:
    ours, theirs = pair(vectorized=False)
    assert_same(ours, theirs)
    ensemble = Ensemble([net(), nn.Linear(4, 3).double()], task="multiclass")
    assert "layers differ" in repr(ensemble)
    ensemble = Ensemble([images(), images()], task="multiclass")
    assert "run one by one: they have convolutions" in repr(ensemble)


class Looking(Setting):
    """What it computes depends on a value, which vmap can't look at."""

    @override
    def forward(self, x: Tensor) -> Any:
        return self.linear(x) if self.linear.weight.sum() > 0 else -self.linear(x)


@pytest.mark.usefixtures("_elsewhere")
def test_what_vmap_refuses_runs_one_by_one() -> None:
    members = [Looking(1) for _ in range(4)]
    ensemble, theirs = pair(vectorized=False, members=members)
    assert "run vectorized" in repr(ensemble)
    assert torch.equal(ensemble(X), theirs(X))
    assert "run one by one: vmap can't run them (RuntimeError)" in repr(ensemble)
    with pytest.raises(RuntimeError, match="vmap"):
        Ensemble(members, task="multiclass", vectorize=True)(X)


@pytest.mark.usefixtures("_elsewhere")
def test_a_wrong_input_is_not_vmaps_fault() -> None:
    ensemble, theirs = pair(vectorized=False)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        ensemble(X[:, :3])
    assert_same(ensemble, theirs)


@pytest.mark.parametrize("width", [1, 3])
def test_outputs_are_checked_when_vectorized_too(width: int) -> None:
    ensemble = Ensemble([Setting(1, width) for _ in range(2)], task="multiclass", vectorize=True)
    if width == 1:
        with pytest.raises(ValueError, match=r"C of at least 2, got \(6, 1\)"):
            ensemble(X)
    else:
        assert ensemble.float()(X.float()).dtype == torch.float32
        assert ensemble.bfloat16()(X.bfloat16()).dtype == torch.float32


@pytest.mark.gpu
def test_on_a_gpu_they_run_vectorized_and_say_the_same(device: str) -> None:
    ours, theirs = pair(vectorized=False)
    ours.to(device)
    assert "run vectorized" in repr(ours)
    torch.testing.assert_close(ours(X.to(device)).cpu(), theirs(X), rtol=1e-11, atol=1e-12)
    ours.cpu()
    assert torch.equal(ours(X), theirs(X))
