"""Transformer layers next to their twins, and what is asked of both."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import vision_transformer

import lightning_kernels
from lightning_practices.nn import EncoderBlock, TransformerDecoderLayer, TransformerEncoderLayer

WIDTH = 8
ENCODER, DECODER, VIT = "encoder", "decoder", "vit"
# What each folds, pre-norm and post-norm.
FOLDED = {
    (ENCODER, True): 1,
    (ENCODER, False): 2,
    (DECODER, True): 2,
    (DECODER, False): 3,
    (VIT, True): 1,
}
each_layer = pytest.mark.parametrize(("kind", "norm_first"), FOLDED)
_CLASSES: dict[str, tuple[Any, Any]] = {
    ENCODER: (nn.TransformerEncoderLayer, TransformerEncoderLayer),
    DECODER: (nn.TransformerDecoderLayer, TransformerDecoderLayer),
    VIT: (vision_transformer.EncoderBlock, EncoderBlock),
}


def pair(kind: str, norm_first: bool, p: float = 0.0, **options: Any) -> tuple[Any, Any]:
    """Return torch's layer with random parameters, and the twin with the same."""
    theirs, ours = (
        cls(2, WIDTH, 16, p, 0.0)
        if kind == VIT
        else cls(WIDTH, 2, 16, p, norm_first=norm_first, **options)
        for cls in _CLASSES[kind]
    )
    for name, parameter in theirs.named_parameters():
        nn.init.normal_(parameter, std=1.0 if "norm" in name or "ln" in name else 0.3)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def inputs(device: str = "cpu") -> list[Tensor]:
    """Return a batch of sequences and of memories, those shorter."""
    return [torch.randn(3, length, WIDTH, device=device) for length in (5, 4)]


def call(layer: Any, x: Tensor, memory: Tensor, *, masks: str = "none") -> Tensor:
    """Call a layer with masks of the kind that is named; without batch_first likewise."""
    y: Tensor
    if isinstance(layer, vision_transformer.EncoderBlock):
        y = layer(x)
        return y
    decodes = isinstance(layer, nn.TransformerDecoderLayer)
    own = "tgt" if decodes else "src"
    given: dict[str, Any] = {}
    if masks in ("causal", "bool"):
        given[f"{own}_mask"] = torch.ones(5, 5, dtype=torch.bool, device=x.device).triu(1)
        given["tgt_is_causal" if decodes else "is_causal"] = masks == "causal"
    if masks == "float":
        given[f"{own}_mask"] = torch.linspace(-1, 1, 25, device=x.device, dtype=x.dtype).view(5, 5)
    if masks in ("padding", "bool"):
        given[f"{own}_key_padding_mask"] = torch.arange(15, device=x.device).view(3, 5) % 5 > 3
    if masks == "padding" and decodes:
        given["memory_key_padding_mask"] = torch.arange(12, device=x.device).view(3, 4) % 4 > 2
    if masks == "float" and decodes:
        given["memory_mask"] = torch.linspace(-1, 1, 20, device=x.device, dtype=x.dtype).view(5, 4)
    if not layer.self_attn.batch_first:
        x, memory = x.transpose(0, 1), memory.transpose(0, 1)
    y = layer(x, memory, **given) if decodes else layer(x, **given)
    return y if layer.self_attn.batch_first else y.transpose(0, 1)


def gradients(layer: Any, x: Tensor, memory: Tensor, *, seed: int = 7) -> list[Tensor]:
    """Return the result and the gradients of what is trained and given, under one seed."""
    torch.manual_seed(seed)
    leaves = [t.detach().clone().requires_grad_() for t in (x, memory)]
    y = call(layer, *leaves)
    wanted = [*leaves, *layer.parameters()]
    grads = torch.autograd.grad(
        y.float().square().sum(), wanted, allow_unused=True, materialize_grads=True
    )
    return [y.detach(), *grads]


def count_folds(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return the list in which the options of every folded end will be."""
    calls: list[dict[str, Any]] = []
    function = lightning_kernels.add_dropout_layer_norm

    def counted(*args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        calls.append(options)
        return function(*args, **options)

    monkeypatch.setattr(lightning_kernels, "add_dropout_layer_norm", counted)
    return calls
