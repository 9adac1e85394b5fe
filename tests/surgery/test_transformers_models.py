"""Fused models of transformers in use: checkpointed, copied, saved, compiled, generating."""

import copy
import pickle
from pathlib import Path

import pytest
import torch

from lightning_practices.surgery import fuse, unfuse
from tests.amounts import few_and_many
from tests.surgery.clients import needs
from tests.surgery.models import assert_equal
from tests.surgery.transformers_models import (
    MODELS,
    Calls,
    batch,
    build,
    classes,
    count_ends,
    fused,
    run,
)

pytestmark = [
    needs("transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
kernel = pytest.mark.kernel


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return count_ends(monkeypatch)


@kernel
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kind", few_and_many(["llama", "bart"], ["vit", "distilbert"]))
def test_checkpointed_activations(kind: str, reentrant: bool, device: str, ends: Calls) -> None:
    model = fused(build(kind, 0.2, device)).train()
    expected, count = run(model), len(ends)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    ends.clear()
    torch.manual_seed(3)
    y = model(**batch(model))[0]
    factors = torch.linspace(-1, 1, y.numel(), device=device).view(y.shape)
    (y * factors).sum().backward()
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    for mine, right in zip([y.detach(), *found], expected, strict=True):
        torch.testing.assert_close(mine, right)  # BART's shared weights are summed in other orders
    assert len(ends) == 2 * count  # each layer ran once more


def test_copies_and_pickles(device: str) -> None:
    for kind in ("bert", "llama", "bart", "dinov2"):
        model = fused(build(kind, device=device))
        expected = run(model)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert classes(other) == classes(model)
            assert_equal(run(other), expected)
        restored = build(kind, device=device)
        restored.load_state_dict(model.state_dict())
        unfuse(model)
        assert_equal(run(model), run(restored))


@pytest.mark.parametrize("kind", ["bert", "llama", "bart", "vit"])
def test_a_fused_model_is_saved_and_loaded(kind: str, tmp_path: Path, device: str) -> None:
    model = fused(build(kind, device=device)).eval()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).to(device)
    assert len(fuse(loaded).folded) == MODELS[kind][2]
    assert_equal(run(loaded), run(model))


@kernel
@pytest.mark.parametrize("kind", few_and_many(["bert", "llama"], ["dinov2", "bart"]))
def test_a_compiled_model(kind: str, device: str) -> None:
    model = fused(build(kind, device=device))
    compiled = torch.compile(model, backend="aot_eager")
    for mine, right in zip(run(model, compiled), run(model), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "kind", few_and_many(["llama", "gpt2"], ["opt", "biogpt", "gemma3", "gpt_neox"])
)
def test_generated_tokens_are_equal(kind: str, device: str) -> None:
    model = build(kind, device=device, causal=True).eval()
    other = fused(model)
    tokens = batch(model)["input_ids"]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(tokens, **options)
    assert torch.equal(other.generate(tokens, **options), expected)
    assert torch.equal(other.generate(tokens, use_cache=False, **options), expected)


@pytest.mark.parametrize("kind", ["bert", "llama", "bart", "mpnet", "albert", "vit", "swin"])
def test_all_outputs_are_there(kind: str, device: str) -> None:
    model = build(kind, device=device).eval()
    model.set_attn_implementation("eager")
    other = fused(model)
    options = {"output_attentions": True, "output_hidden_states": True, "return_dict": True}
    expected, found = (each(**batch(each), **options) for each in (model, other))
    assert list(found) == list(expected)
    for name, right in expected.items():
        if name != "cache":
            tensors = right if isinstance(right, tuple) else (right,)
            mine = found[name] if isinstance(right, tuple) else (found[name],)
            for a, b in zip(mine, tensors, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@kernel
def test_the_renamed_argument_still_works(device: str) -> None:
    model = build("llama", device=device).eval()
    layer, other = model.layers[0], fused(model).layers[0]
    from transformers import DynamicCache

    x = torch.randn(2, 3, 8, device=device)
    angles = model.rotary_emb(x, torch.arange(3, device=device)[None])
    caches = [DynamicCache() for _ in range(2)]
    with torch.no_grad():
        for each, cache in zip((layer, other), caches, strict=True):
            each(x, position_embeddings=angles, past_key_values=cache)
    assert [cache.get_seq_length() for cache in caches] == [3, 3]
