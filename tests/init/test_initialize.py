"""Values of each kind of layer, and what is left alone."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lightning_practices.init import InitReport, initialize
from lightning_practices.nn import BatchNorm2d
from lightning_practices.surgery import fuse

pytestmark = pytest.mark.plain


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def states(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    after = model.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def row(report: InitReport, name: str) -> Any:
    (found,) = (one for one in report.initialized if name in one.names)
    return found


def assert_std(weight: Tensor, std: float) -> None:
    """Compare a sample's standard deviation, within five of its own standard errors."""
    values = weight.detach().double()
    assert abs(values.mean()) < 5 * std / math.sqrt(values.numel())
    assert abs(values.std().item() / std - 1) < 5 / math.sqrt(2 * values.numel())


CASES: list[tuple[nn.Module, str, float]] = [
    (nn.ReLU(), "kaiming_normal", 2.0),
    (nn.LeakyReLU(0.5), "kaiming_normal", 2 / 1.25),
    (nn.PReLU(), "kaiming_normal", 2 / 1.0625),
    (nn.SELU(), "lecun_normal", 1.0),
    (nn.ELU(), "kaiming_normal", 1.5505),
    (nn.Tanh(), "xavier_normal", 1.4),
    (nn.Sigmoid(), "xavier_normal", 1.0),
    (nn.Softmax(dim=-1), "xavier_normal", 1.0),
]


@pytest.mark.parametrize(("activation", "scheme", "variance"), CASES, ids=str)
@pytest.mark.parametrize("traced", [False, True])
def test_the_activation_after_a_layer_decides(
    activation: nn.Module, scheme: str, variance: float, traced: bool
) -> None:
    model: Any = nn.Sequential(
        nn.Linear(100, 300), nn.LayerNorm(300), nn.Dropout(0.5), activation, nn.Linear(300, 7)
    )
    report = initialize(model, batch=torch.randn(2, 100) if traced else None, generator=seeded())
    first = row(report, "0.weight")
    fan = 200 if scheme == "xavier_normal" else 100
    assert (first.scheme, first.fan) == (scheme, fan)
    assert first.gain**2 == pytest.approx(variance, rel=1e-4)
    assert_std(model[0].weight, math.sqrt(variance / fan))
    assert first.after == pytest.approx(model[0].weight.double().std(correction=0).item())
    last = row(report, "4.weight")
    assert (last.scheme, last.activation, last.gain) == ("xavier_normal", "linear", 1.0)
    assert ("traced" in first.why) == traced
    for layer in (model[0], model[4]):
        assert not layer.bias.any()


def test_elus_gain_keeps_the_second_moment() -> None:
    z = torch.linspace(-12, 12, 2_000_001, dtype=torch.float64)
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    for alpha in (0.3, 1.0, 1.7):
        moment = torch.trapezoid(nn.functional.elu(z, alpha).square() * density, z).item()
        report = initialize(nn.Sequential(nn.Linear(4, 4), nn.ELU(alpha)))
        assert report.initialized[0].gain == pytest.approx(moment**-0.5, rel=1e-9)


@pytest.mark.parametrize(
    ("layer", "fan_in", "fan_out"),
    [
        (nn.Conv1d(8, 16, 5), 40, 80),
        (nn.Conv2d(8, 16, 3), 72, 144),
        (nn.Conv2d(8, 16, 3, groups=4), 18, 36),
        (nn.Conv2d(16, 16, 3, groups=16), 9, 9),
        (nn.Conv2d(8, 16, 4, stride=2), 128, 64),
        (nn.Conv2d(8, 16, 1, stride=2), 8, 16),
        (nn.Conv2d(8, 16, 3, dilation=2), 72, 144),
        (nn.Conv3d(4, 6, 3), 108, 162),
        (nn.ConvTranspose2d(8, 16, 4, stride=2), 32, 256),
        (nn.ConvTranspose2d(8, 16, 2, stride=2), 8, 64),
        (nn.ConvTranspose2d(8, 16, 3), 72, 144),
        (nn.ConvTranspose2d(8, 16, (4, 2), stride=(2, 1), groups=2), 16, 64),
        (nn.Bilinear(3, 5, 7), 15, 7),
        (nn.MultiheadAttention(12, 3), 12, 12),
    ],
    ids=str,
)
def test_fans(layer: nn.Module, fan_in: float, fan_out: float) -> None:
    (of_in, *_) = initialize(layer, "lecun_normal").initialized
    (of_mean, *_) = initialize(layer, "xavier_normal").initialized
    assert of_in.fan == fan_in
    assert of_mean.fan == (fan_in + fan_out) / 2
    assert of_mean.after == pytest.approx((2 / (fan_in + fan_out)) ** 0.5, rel=0.5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(32, 8, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(32, 32, 3, groups=8, padding=1, padding_mode="circular"),
        nn.ConvTranspose2d(32, 8, 4, stride=2),
        nn.ConvTranspose2d(64, 8, 2, stride=2, groups=2),
        nn.ConvTranspose2d(64, 8, 5, stride=2),
    ],
    ids=str,
)
def test_a_fan_is_what_a_unit_sums(layer: nn.Module) -> None:
    layer.double()
    powers = []
    for seed in range(8):
        initialize(layer, "lecun_normal", generator=seeded(seed))
        width: Any = layer.in_channels
        x = torch.randn(8, width, 16, 16, dtype=torch.float64, generator=seeded(seed))
        y = layer(x)[..., 4:-4, 4:-4]  # without the border, which sums fewer
        powers.append(y.square().mean().item())
    assert sum(powers) / len(powers) == pytest.approx(1, rel=0.1)


def test_each_gate_of_an_lstm() -> None:
    layer: Any = nn.LSTM(24, 32, num_layers=2, bidirectional=True, proj_size=8).double()
    initialize(nn.Sequential(layer), generator=seeded())
    for name, p in layer.named_parameters():
        if name.startswith("weight_hh"):
            for gate in p.detach().chunk(4):
                assert gate.shape == (32, 8)
                torch.testing.assert_close(gate.T @ gate, torch.eye(8).double())
        elif name.startswith("weight_ih"):
            for gate in p.detach().chunk(4):
                assert_std(gate, math.sqrt(2 / (gate.shape[1] + 32)))
    for direction in ("", "_reverse"):
        for k in range(2):
            ih, hh = (getattr(layer, f"bias_{of}_l{k}{direction}") for of in ("ih", "hh"))
            expected = torch.zeros(4, 32).double()
            expected[1] = 1
            assert torch.equal((ih + hh).view(4, 32), expected)


@pytest.mark.parametrize(
    ("layer", "gates"),
    [(nn.GRU(5, 6), 3), (nn.RNN(5, 6), 1), (nn.LSTMCell(5, 6), 4), (nn.GRUCell(5, 6), 3)],
    ids=str,
)
def test_other_recurrent_layers(layer: nn.Module, gates: int) -> None:
    initialize(layer)
    for name, p in layer.named_parameters():
        if "weight_hh" in name:
            for gate in p.detach().chunk(gates):
                torch.testing.assert_close(gate @ gate.T, torch.eye(6))
    forget = torch.cat([p for name, p in layer.named_parameters() if "bias" in name]).sum()
    assert forget == (6 if gates == 4 else 0)


def test_learned_keys_and_values_of_attention() -> None:
    drawn = []
    for seed in (1, 1, 2):
        layer = nn.MultiheadAttention(400, 4, add_bias_kv=True)
        initialize(layer, generator=seeded(seed))
        assert not layer.in_proj_bias.any()
        assert layer.bias_k is not None
        assert_std(layer.bias_k, math.sqrt(2 / 800))
        drawn.append(layer.bias_k)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_embeddings_and_norms() -> None:
    model: Any = nn.Sequential(nn.Embedding(500, 40, padding_idx=3), nn.LayerNorm(40), nn.PReLU())
    for p in model.parameters():
        nn.init.constant_(p, 7.0)
    report = initialize(model, generator=seeded())
    weight = model[0].weight
    assert not weight[3].any()
    assert_std(torch.cat([weight[:3], weight[4:]]), 1.0)
    assert model[1].weight.eq(1).all()
    assert not model[1].bias.any()
    assert model[2].weight == 0.25
    assert report.norms == ["1", "2"]


def test_frozen_parameters_stay_and_are_reported() -> None:
    model: Any = nn.Sequential(
        nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4)
    )
    model[0].weight.requires_grad_(False)
    model[1].requires_grad_(False)
    nn.init.constant_(model[1].running_mean, 3.0)
    model[4].bias.requires_grad_(False)
    before = states(model)
    report = initialize(model)
    assert changed(model, before) == {"3.weight", "3.bias", "4.weight"}
    assert {(kept.names, kept.reason) for kept in report.kept} == {
        (("0.weight",), "frozen"), (("1",), "frozen")
    }  # fmt: skip
    assert "frozen" in str(report)


def test_only_the_modules_that_are_named() -> None:
    model: Any = nn.ModuleDict(
        {"body": nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), "head": nn.Linear(3, 2)}
    )
    before = states(model)
    initialize(model, modules=["head"])
    assert changed(model, before) == {"head.weight", "head.bias"}
    before = states(model)
    initialize(model, modules=[model["body"]])
    assert changed(model, before) == {"body.0.weight", "body.0.bias"}
    for wrong in ("hed", nn.Linear(3, 2)):
        with pytest.raises(ValueError, match="modules has to name modules of ModuleDict, but got"):
            initialize(model, modules=[wrong])


def test_schemes_by_pattern() -> None:
    model: Any = nn.Sequential(
        nn.Sequential(nn.Linear(50, 60), nn.ReLU()), nn.Linear(60, 60), nn.Embedding(5, 6)
    )
    schemes: Any = {"0.*": "orthogonal", "2": "trunc_normal"}
    report = initialize(model, schemes)
    assert [one.scheme for one in report.initialized] == [
        "orthogonal", "xavier_normal", "trunc_normal"
    ]  # fmt: skip
    weight = model[0][0].weight.detach()
    torch.testing.assert_close(weight.T @ weight, 2 * torch.eye(50))  # the gain of ReLU, squared
    assert model[2].weight.abs().max() <= 0.04
    with pytest.raises(ValueError, match="the pattern 'head', which matches no module of Sequen"):
        initialize(model, {"head": "auto"})
    with pytest.raises(ValueError, match="did you mean 'kaiming_normal'"):
        initialize(model, "kaiming_norma")  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["kaiming_uniform", "xavier_uniform"])
def test_uniform_schemes(scheme: Any) -> None:
    layer = nn.Linear(100, 300)
    initialize(layer, scheme, generator=seeded())
    std = math.sqrt(2 / 100 if scheme == "kaiming_uniform" else 1 / 200)
    assert_std(layer.weight, std)
    assert layer.weight.abs().max() <= math.sqrt(3) * std


def test_the_generator_alone_decides() -> None:
    def weights(generator: torch.Generator | None) -> list[Tensor]:
        model: Any = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.GRU(5, 5), nn.Embedding(3, 4))
        initialize(model, generator=generator)
        return [*states(model).values()]

    state = torch.get_rng_state()
    model: Any = nn.Sequential(nn.Linear(5, 5), nn.Dropout(), nn.Linear(5, 5))
    torch.set_rng_state(state)
    initialize(model, batch=torch.ones(2, 5), generator=seeded(1))
    assert torch.equal(torch.get_rng_state(), state)
    first, same, other = weights(seeded(1)), weights(seeded(1)), weights(seeded(2))
    assert all(map(torch.equal, first, same))
    assert not all(map(torch.equal, first, other))
    torch.manual_seed(4)
    of_torch = weights(None)
    torch.manual_seed(4)
    assert not torch.equal(weights(seeded(1))[0], of_torch[0])


def test_tied_weights_are_drawn_once() -> None:
    model: Any = nn.ModuleDict({"tokens": nn.Embedding(50, 8), "head": nn.Linear(8, 50)})
    model["head"].weight = model["tokens"].weight
    report = initialize(model)
    (one,) = report.initialized
    assert one.names == ("tokens.weight", "head.weight")
    assert model["head"].weight is model["tokens"].weight


def test_weights_of_16_bits_are_rounded_once() -> None:
    layer = nn.Linear(30, 40)
    initialize(layer, generator=seeded())
    half = nn.Linear(30, 40).bfloat16()
    initialize(half, generator=seeded())
    assert torch.equal(half.weight, layer.weight.bfloat16())


@pytest.mark.parametrize("scheme", ["kaiming_normal", "orthogonal", "trunc_normal"])
def test_complex_weights_share_their_variance(scheme: Any) -> None:
    layer = nn.Linear(200, 200, dtype=torch.complex64)
    (one,) = initialize(layer, scheme, generator=seeded()).initialized
    both = torch.view_as_real(layer.weight.detach()).double()
    expected = {"kaiming_normal": math.sqrt(2 / 200), "orthogonal": math.sqrt(1 / 200),
                "trunc_normal": 0.0176}[scheme]  # fmt: skip
    assert both.square().sum(-1).mean().sqrt().item() == pytest.approx(expected, rel=0.02)
    assert both.square().mean((0, 1)).tolist() == pytest.approx([expected**2 / 2] * 2, rel=0.05)
    assert one.after == pytest.approx(expected, rel=0.02)


def test_parametrised_weights() -> None:
    model: Any = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(40, 50)),
        nn.ReLU(),
        parametrizations.spectral_norm(nn.Linear(50, 50)),
        parametrizations.orthogonal(nn.Linear(50, 50)),
    )
    kept = states(model[3])
    report = initialize(model, batch=torch.randn(2, 40), generator=seeded())
    assert_std(model[0].weight, math.sqrt(2 / 40))
    original: Any = model[2].parametrizations.weight.original
    assert_std(original, math.sqrt(1 / 50))
    assert torch.linalg.matrix_norm(model.eval()[2].weight, 2).item() == pytest.approx(1, rel=0.2)
    assert [one.names for one in report.initialized] == [("0.weight",), ("2.weight",)]
    assert row(report, "0.weight").activation == "relu"
    assert report.kept[0].names == ("3.weight",)
    assert changed(model[3], kept) == {"bias"}


def test_what_has_no_values_yet_is_refused() -> None:
    with torch.device("meta"):
        model: Any = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match=r"0.weight of Sequential is on the meta device.*to_empty"):
        initialize(model)
    lazy: Any = nn.Sequential(nn.Linear(3, 3), nn.LazyLinear(3))
    before = lazy[0].weight.clone()
    with pytest.raises(ValueError, match=r"1\.weight of Sequential has no shape yet: call the mo"):
        initialize(lazy, batch=torch.ones(1, 3))
    assert torch.equal(lazy[0].weight, before)


def test_running_statistics_after_to_empty() -> None:
    with torch.device("meta"):
        model: Any = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
    model.to_empty(device="cpu")
    norm: Any = model[1]
    for value in [*norm.parameters(), norm.running_mean, norm.running_var]:
        value.data.fill_(float("nan"))
    norm.num_batches_tracked.fill_(123)
    initialize(model)
    fresh = nn.BatchNorm2d(2).state_dict()
    assert not changed(norm, fresh)
    assert model[0].weight.isfinite().all()


def test_fused_layers() -> None:
    plain = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 4, 3))
    fused = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 4, 3))
    fuse(fused)
    own = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        BatchNorm2d(4, activation="leaky_relu", activation_parameter=0.5),
        nn.Conv2d(4, 4, 3),
    )
    for batch in (None, torch.randn(2, 2, 8, 8)):
        rows = [initialize(model, batch=batch).initialized for model in (plain, fused, own)]
        assert [one.activation for one in rows[0]] == [one.activation for one in rows[1]]
        assert [one.activation for one in rows[2]] == ["leaky_relu(0.5)", "linear"]


def test_other_parameters_are_kept_and_reported() -> None:
    class Scaled(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 3)
            self.scale = nn.Parameter(torch.full((3,), 5.0))

    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cls_token = nn.Parameter(torch.full((1, 1, 3), 5.0))

    model: Any = nn.ModuleList([Scaled(), Token()])
    before = states(model)
    report = initialize(model)
    assert changed(model, before) == {"0.weight", "0.bias"}
    assert {kept.names for kept in report.kept} == {("0.scale",), ("1.cls_token",)}


def test_the_report() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU())
    report = initialize(model)
    assert repr(report) == "InitReport(1 initialized, 0 zeroed, 0 kept)"
    text = str(report)
    for part in ("0.weight", "kaiming_normal", "relu: in nn.Sequential", "1.41", "norms reset: 1"):
        assert part in text
    assert str(initialize(nn.Sequential())) == "Nothing to initialise."
