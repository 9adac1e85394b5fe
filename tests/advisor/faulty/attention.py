"""Attention over the wrong dimension, or with an inverted mask."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.faulty.language import PAD, padded_text
from tests.advisor.programs import Arguments, Task, digit_loaders, faulty, split


class Attention(nn.Module):
    """Self-attention over the rows of an image.

    Args:
        dim: The dimension of the softmax.
        heads: The number of heads.
    """

    def __init__(self, dim: int, heads: int = 1) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, 32), nn.Linear(32, 10)
        self.w_q, self.w_k, self.w_v = (nn.Linear(32, 32) for _ in range(3))
        self.dim, self.heads = dim, heads

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x.squeeze(1))
        q, k, v = (
            w(h).view(len(h), 8, self.heads, -1).transpose(1, 2)
            for w in (self.w_q, self.w_k, self.w_v)
        )
        scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
        mixed = functional.dropout(scores.softmax(self.dim), 0.1, self.training) @ v
        logits: Tensor = self.head((h + mixed.transpose(1, 2).flatten(2)).mean(1))
        return logits


def _right() -> Arguments:
    return Task(Attention(-1, 4)), digit_loaders()


@faulty("LP141", "net", source="softmax over the heads: dim=1", mended=_right)
def softmax_over_the_heads() -> Arguments:
    return Task(Attention(1, 4)), digit_loaders()


@faulty("LP141", "net.softmax", source="nn.Softmax(dim=1) of scores (N, T, T)", mended=_right)
def softmax_over_the_queries() -> Arguments:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.fc = nn.Linear(8, 48), nn.Linear(16, 10)
            self.softmax = nn.Softmax(dim=1)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x.squeeze(1)).chunk(3, dim=-1)
            weights = self.softmax(torch.bmm(q, k.permute(0, 2, 1)) * 0.25)
            logits: Tensor = self.fc(torch.bmm(weights, v).mean(dim=1))
            return logits

    return Task(Single()), digit_loaders()


class Padded(nn.Module):
    """Classifies padded texts."""

    def __init__(self, mask: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, 32, padding_idx=PAD)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head, self.mask = nn.Linear(32, 2), mask

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.encoder(self.embed(tokens), src_key_padding_mask=self.mask(tokens))
        logits: Tensor = self.head(h[:, 0])
        return logits


def texts() -> Any:
    text = padded_text()
    return split(text, (text[:, :9] == ord("e")).any(1).long())


def _masked() -> Arguments:
    return Task(Padded(lambda tokens: tokens == PAD)), texts()


@faulty("LP142", "net.encoder", source="src_key_padding_mask = tokens != pad", mended=_masked)
def inverted_mask() -> Arguments:
    return Task(Padded(lambda tokens: tokens != PAD)), texts()


@faulty("LP142", "net.attention", source="an attention mask of ones for tokens", mended=_masked)
def mask_of_ones_for_tokens() -> Arguments:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(256, 32, padding_idx=PAD)
            self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
            self.head = nn.Linear(32, 2)

        def forward(self, tokens: Tensor) -> Tensor:
            h = self.words(tokens)
            attention_mask = torch.ones_like(tokens).masked_fill(tokens == PAD, 0).bool()
            mixed, _ = self.attention(h, h, h, key_padding_mask=attention_mask)
            logits: Tensor = self.head((h + mixed)[:, 0])
            return logits

    return Task(Pooled()), texts()
