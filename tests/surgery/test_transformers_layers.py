"""Surgery on the norms and stochastic depths that transformers defines in each model's file."""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, rms_norm

import lightning_kernels
from lightning_practices.nn.blocks import fingerprint
from lightning_practices.surgery import fuse, unfuse
from tests.kernels.reference import assert_as_right
from tests.surgery.clients import client, needs
from tests.surgery.models import assert_equal, everything, randomise, step

pytestmark = [needs("transformers"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

FILE = "lightning_practices.surgery._fuse.transformers_layers"
CHANNELS = 24
ROWS, IMAGE = (4, 12, CHANNELS), (4, CHANNELS, 4, 3)  # over 1024 elements, for one draw
Exact = Callable[..., Tensor]


def scaled(x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-6, by: float = 0) -> Tensor:
    return rms_norm(x, x.shape[-1:], None if weight is None else by + weight, eps)


def centred(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5,
    axis: int = -1,
) -> Tensor:  # fmt: skip
    x = x.transpose(axis, -1)
    return layer_norm(x, x.shape[-1:], weight, bias, eps).transpose(axis, -1)


# The model's file, the class, its arguments, the shape of an input, and what is computed.
NORMS: dict[str, tuple[str, str, tuple[Any, ...], tuple[int, ...], Exact]] = {
    "Llama": ("llama", "LlamaRMSNorm", (CHANNELS,), ROWS, scaled),
    "Llama4": ("llama4", "Llama4TextRMSNorm", (CHANNELS, 1e-6), ROWS, scaled),
    "CpmAnt": (
        "cpmant",
        "CpmAntLayerNorm",
        (SimpleNamespace(eps=1e-6, hidden_size=CHANNELS),),
        ROWS,
        scaled,
    ),
    "Olmo2": ("olmo2", "Olmo2RMSNorm", (CHANNELS,), ROWS, scaled),
    "Moshi": ("moshi", "MoshiRMSNorm", (CHANNELS,), ROWS, scaled),
    "Gemma": ("gemma", "GemmaRMSNorm", (CHANNELS,), ROWS, partial(scaled, by=1)),
    "Gemma3n": ("gemma3n", "Gemma3nRMSNorm", (CHANNELS,), ROWS, scaled),
    "Gemma3n, no scale": ("gemma3n", "Gemma3nRMSNorm", (CHANNELS, 1e-6, False), ROWS, scaled),
    "T5": ("t5", "T5LayerNorm", (CHANNELS,), ROWS, scaled),
    "L2": ("llama4", "Llama4TextL2Norm", (), ROWS, scaled),
    "Cohere": ("cohere", "CohereLayerNorm", (CHANNELS,), ROWS, centred),
    "Deberta": ("deberta", "DebertaLayerNorm", (CHANNELS, 1e-5), ROWS, centred),
    "Olmo": ("olmo", "OlmoLayerNorm", (CHANNELS,), ROWS, centred),
    "ConvNext": ("convnext", "ConvNextLayerNorm", (CHANNELS,), ROWS, partial(centred, eps=1e-6)),
    "Eomt": ("eomt", "EomtLayerNorm2d", (CHANNELS, 1e-5), IMAGE, partial(centred, axis=1)),
    "SqueezeBert": (
        "squeezebert",
        "SqueezeBertLayerNorm",
        (CHANNELS, 1e-5),
        (4, CHANNELS, 12),
        partial(centred, axis=1),
    ),
}
# More classes of a form above, by the model's file.
SAME = {"mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "phi3": "Phi3", "olmo3": "Olmo3",
        "mixtral": "Mixtral", "mamba": "Mamba", "gemma2": "Gemma2", "gemma3": "Gemma3",
        "helium": "Helium", "gpt_oss": "GptOss", "qwen3_next": "Qwen3Next"}  # fmt: skip
DROPS = ("beit", "clap", "convnext", "dinov2", "segformer", "swin")
# The dtypes of the input and of the parameters. OLMo's first has none.
DTYPES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.bfloat16),
]


def class_of(file: str, name: str) -> Any:
    return getattr(import_module(f"transformers.models.{file}.modeling_{file}"), name)


def norm_of(kind: str, device: str = "cpu") -> Any:
    file, name, arguments, *_ = NORMS[kind]
    norm = class_of(file, name)(*arguments).to(device)
    randomise(norm)
    return norm


def drop_path_of(file: str, rate: float) -> Any:
    prefix = {"beit": "Beit", "convnext": "ConvNext"}.get(file, file.capitalize())
    return class_of(file, f"{prefix}DropPath")(rate)


@pytest.mark.parametrize("kind", NORMS)
def test_a_norm_is_swapped_and_restored(kind: str, device: str) -> None:
    model = nn.Sequential(norm_of(kind, device))
    cls, attributes, keys = type(model[0]), dict(vars(model[0])), list(model.state_dict())
    text = repr(model)
    report = fuse(model)
    assert [(r.names, r.after) for r in report.replaced] == [(("0",), f"{FILE}.{cls.__name__}")]
    assert not report.skipped
    assert isinstance(model[0], cls)
    assert type(model[0]).__name__ == cls.__name__  # by which transformers knows its norms
    assert (repr(model), list(model.state_dict())) == (text, keys)
    assert not fuse(model).replaced
    x = torch.randn(NORMS[kind][3], device=device)
    expected = everything(model, x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other[0]) is type(model[0])
        assert_equal(everything(other, x), expected)
    assert len(unfuse(model).replaced) == 1
    assert type(model[0]) is cls
    assert vars(model[0]) == attributes


@pytest.mark.plain
@pytest.mark.parametrize("file", SAME)
def test_a_norm_of_a_known_form_is_swapped(file: str) -> None:
    model, x = nn.Sequential(class_of(file, f"{SAME[file]}RMSNorm")(CHANNELS)), torch.randn(ROWS)
    expected = everything(model, x)
    assert len(fuse(model).replaced) == 1
    assert_equal(everything(model, x), expected)


@pytest.mark.plain
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", NORMS)
def test_a_norm_on_the_cpu_is_the_original(kind: str, dtype: torch.dtype) -> None:
    model, x = nn.Sequential(norm_of(kind)).to(dtype), torch.randn(NORMS[kind][3], dtype=dtype)
    expected = everything(model, x)
    fuse(model)
    assert_equal(everything(model, x), expected)


@pytest.mark.kernel
@pytest.mark.parametrize(("of_input", "of_weight"), DTYPES, ids=str)
@pytest.mark.parametrize("kind", NORMS)
def test_a_norm_is_as_right_as_the_original(
    kind: str, of_input: torch.dtype, of_weight: torch.dtype, device: str
) -> None:
    *_, shape, exact = NORMS[kind]
    plain = norm_of(kind, device)
    if isinstance(plain, nn.LayerNorm) and of_input != of_weight:
        pytest.skip("torch's layer norm takes one dtype")
    plain.to(of_weight)
    layer = nn.Sequential(copy.deepcopy(plain))
    assert len(fuse(layer).replaced) == 1

    def results() -> Any:
        x = torch.randn(shape, device=device).to(of_input)
        randomise(plain)
        layer[0].load_state_dict(plain.state_dict())
        wide = [t.detach().double().requires_grad_() for t in (x, *plain.parameters())]
        y = exact(*wide)
        grad = torch.randn_like(y)
        grad = grad.to(plain(x).dtype).double()  # the same for all
        gradients = torch.autograd.grad(y, wide, grad)
        found = (_run(module, x, grad) for module in (layer, plain))
        return zip(*found, [y.detach(), *gradients], strict=True)

    assert_as_right(results, torch.Size(shape).numel())


def _run(module: nn.Module, x: Tensor, grad: Tensor) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    y = module(leaf)
    gradients = torch.autograd.grad(y, [leaf, *module.parameters()], grad.to(y.dtype))
    return [y.detach(), *gradients]


@pytest.mark.kernel
@pytest.mark.parametrize("kind", NORMS)
def test_the_kernels_are_what_runs(kind: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.Sequential(norm_of(kind, device)), torch.randn(NORMS[kind][3], device=device)
    cls = type(model[0])
    weight: Any = getattr(model[0], "weight", x)
    if weight.dim() == 0:
        pytest.skip("this version of transformers multiplies by a number, and runs as it is")
    fuse(model)
    monkeypatch.setattr(cls, "forward", None)
    with pytest.raises(TypeError, match="not callable"):
        model(x)  # a change of the original's forward counts
    monkeypatch.undo()
    for name in ("rms_norm", "layer_norm"):
        monkeypatch.setattr(lightning_kernels, name, None)
    with pytest.raises(TypeError, match="not callable"):
        model(x)


@pytest.mark.kernel
def test_a_weight_for_each_head_is_the_original_s(device: str) -> None:
    norm = class_of("cohere", "CohereLayerNorm")((2, CHANNELS)).to(device)
    randomise(norm)
    model, x = nn.Sequential(norm), torch.randn(3, 2, CHANNELS, device=device)
    expected = everything(model, x)
    assert len(fuse(model).replaced) == 1
    assert_equal(everything(model, x), expected)


@pytest.mark.kernel
def test_channels_that_come_first(device: str) -> None:
    cls = class_of("convnext", "ConvNextLayerNorm")
    norm = cls(CHANNELS, data_format="channels_first").to(device)
    randomise(norm)
    model, x = nn.Sequential(norm), torch.randn(IMAGE, device=device)
    expected = everything(model, x)
    fuse(model)
    for actual, wanted in zip(everything(model, x), expected, strict=True):
        torch.testing.assert_close(actual, wanted)
        assert actual.stride() == wanted.stride()


@pytest.mark.parametrize("file", DROPS)
def test_a_drop_path_is_swapped_drops_and_is_restored(file: str, device: str) -> None:
    model = nn.Sequential(drop_path_of(file, 0.4))
    cls, attributes = type(model[0]), dict(vars(model[0]))
    x = torch.rand(60, 3, device=device) + 1

    def draw(model: nn.Module) -> Tensor:
        torch.manual_seed(1)
        y: Tensor = model(x)
        return y

    plain = draw(model)
    (replaced,) = fuse(model).replaced
    assert replaced.after == f"{FILE}.{cls.__name__}"
    dropped = draw(model)
    if lightning_kernels.route(x) == "aten":
        assert torch.equal(dropped, plain)
    kept = dropped[:, :1] != 0
    assert 0 < kept.sum() < len(x)
    torch.testing.assert_close(dropped, x * kept / 0.6)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(draw(other), dropped)
    model[0].schedule_rate(device)  # type: ignore[operator]
    setattr(model[0], "drop_prob", 0.0)  # noqa: B010
    torch.testing.assert_close(model(x), x)
    setattr(model[0], "drop_prob", 0.4)  # noqa: B010
    assert model.eval()(x) is x
    model.train()
    unfuse(model)
    assert type(model[0]) is cls
    assert vars(model[0]) == attributes


CHANGED = """
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm as Known
class LlamaRMSNorm(nn.Module):
    def forward(self, hidden_states):
        return hidden_states * 2
class GemmaRMSNorm(nn.Module):
    forward = Known.forward
    def _norm(self, x):
        return x * 2
class Twice(nn.LayerNorm):
    forward = Known.forward
    _norm = Known._norm
"""


def test_a_class_with_other_code_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "modeling_llama.py"
    file.write_text(CHANGED)
    spec: Any = spec_from_file_location("transformers.models.llama.modeling_llama", file)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    norms = module.LlamaRMSNorm(), module.GemmaRMSNorm(), module.Twice(CHANNELS)
    assert all(fingerprint(type(norm).forward) for norm in norms)
    report = fuse(nn.Sequential(*norms))
    assert not report.replaced
    assert report.count_not_served() == "1 LlamaRMSNorm, 1 GemmaRMSNorm"
    assert [skipped.reason for skipped in report.skipped] == ["Twice overrides forward"]


@pytest.mark.kernel
@pytest.mark.parametrize("kind", ["Llama", "Olmo2", "T5", "Deberta"])
def test_a_weight_in_float64_is_the_original_s(kind: str, device: str) -> None:
    model = nn.Sequential(norm_of(kind, device)).double()
    x = torch.randn(ROWS, device=device)
    expected = everything(model, x)
    fuse(model)
    assert_equal(everything(model, x), expected)


def test_a_subclass_is_swapped_and_stays_its_own() -> None:
    cls = type(norm_of("Llama"))
    own = type("Own", (cls,), {"extra": 3, "__module__": __name__})
    model, x = nn.Sequential(own(CHANNELS)), torch.randn(ROWS)
    expected = model(x)
    assert len(fuse(model).replaced) == 1
    assert isinstance(model[0], own)
    torch.testing.assert_close(model(x), expected)
    unfuse(model)
    assert type(model[0]) is own


@pytest.mark.plain
def test_a_norm_with_a_forward_of_its_own_is_skipped() -> None:
    norm = norm_of("Llama")
    norm.forward = norm.forward
    report = fuse(nn.Sequential(norm))
    assert [skipped.reason for skipped in report.skipped] == ["this instance has its own forward"]
    assert not report.replaced
    assert not report.not_served


@pytest.mark.kernel
@pytest.mark.parametrize("kind", ["Llama", "Gemma", "Cohere"])
def test_a_compiled_norm_is_one_graph(kind: str, device: str) -> None:
    model = nn.Sequential(norm_of(kind, device))
    fuse(model)
    x = torch.randn(ROWS, device=device).bfloat16()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_equal(step(compiled, x), step(model, x))


@pytest.mark.kernel
def test_a_norm_that_is_left_to_inductor_is_the_original(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = nn.Sequential(norm_of("Olmo2", device)), torch.randn(ROWS, device=device).bfloat16()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    expected = step(compiled, x)
    fuse(model)
    monkeypatch.setattr(lightning_kernels, "rms_norm", None)
    lightning_kernels.set_compiled_norms("inductor")
    try:
        assert_equal(step(compiled, x), expected)
    finally:
        lightning_kernels.set_compiled_norms("kernels")


@pytest.mark.parametrize("kind", ["llama", "t5", "swin", "convnext"])
def test_a_fused_model_is_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    model = client(f"transformers/{kind}", device="cpu")
    assert any(FILE in replaced.after for replaced in fuse(model).replaced)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert_equal(list(loaded.state_dict().values()), list(model.state_dict().values()))
    assert list(loaded.state_dict()) == list(model.state_dict())
    fused = {type(module) for module in model.modules()} - {type(m) for m in loaded.modules()}
    assert any(cls.__module__ == FILE for cls in fused)
    assert len(fuse(loaded).replaced) > 0


@pytest.mark.plain
def test_a_llama_computes_the_same() -> None:
    model = client("transformers/llama", device="cpu")
    tokens = torch.randint(3, 500, (2, 7))
    expected = model(tokens).logits
    fuse(model)
    assert torch.equal(model(tokens).logits, expected)
    unfuse(model)
    assert torch.equal(model(tokens).logits, expected)
