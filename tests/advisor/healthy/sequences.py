"""Healthy programs on sequences: recurrent networks and transformers."""

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

from tests.advisor.programs import Arguments, Task, healthy, split


def text_windows(length: int = 32) -> Tensor:
    """Return windows of Python's licence as bytes, shape (windows, length + 1)."""
    text = (sys.copyright + " ".join(sorted(sys.builtin_module_names)) * 8).encode()
    codes = torch.tensor(list(text))
    return codes.unfold(0, length + 1, 8).contiguous()


class Recurrent(nn.Module):
    def __init__(self, kind: Any = nn.LSTM) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, 16)
        self.rnn = kind(16, 32, num_layers=2, batch_first=True, dropout=0.2)
        self.head = nn.Linear(32, 256)

    def forward(self, codes: Tensor) -> Tensor:
        hidden: Tensor = self.rnn(self.embedding(codes))[0]
        logits: Tensor = self.head(hidden)
        return logits.transpose(1, 2)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, t, c))
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    """A language model whose output weight is that of its embedding."""

    def __init__(self, width: int = 32, depth: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.position = nn.Parameter(torch.randn(64, width) * 0.02)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 256, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.head.weight = self.embedding.weight

    def forward(self, codes: Tensor) -> Tensor:
        x = self.embedding(codes) + self.position[: codes.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


def next_codes(batch: Any) -> Any:
    codes = batch[0] if isinstance(batch, list) else batch
    return codes[:, :-1], codes[:, 1:]


class Language(Task):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return next_codes(batch)


@healthy
def lstm_on_text() -> Arguments:
    return Language(Recurrent()), split(text_windows())


@healthy
def gru_on_text() -> Arguments:
    return Language(Recurrent(nn.GRU)), split(text_windows())


@healthy
def decoder_on_text() -> Arguments:
    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(logits.reshape(-1, 256), target.reshape(-1))

    def optimizer(parameters: Any) -> Any:
        return torch.optim.AdamW(parameters, 1e-3, weight_decay=0.1)

    return Language(Decoder(), loss, optimizer), split(text_windows())


@healthy
def streamed_text_without_length() -> Arguments:
    class Stream(IterableDataset[Tensor]):
        def __iter__(self) -> Any:
            return iter(text_windows())

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(logits.flatten(0, 1), target.flatten())

    return Language(Decoder(), loss), DataLoader(Stream(), 32)


@healthy
def padded_sequences_with_a_mask() -> Arguments:
    """The loss ignores the padding; the encoder gets a mask."""

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(256, 32, padding_idx=0)
            layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, norm_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(32, 2)

        def forward(self, codes: Tensor) -> Tensor:
            hidden = self.encoder(self.embedding(codes), src_key_padding_mask=codes == 0)
            logits: Tensor = self.head(hidden)
            return logits.transpose(1, 2)

    codes = text_windows()[:, :-1].clone()
    lengths = torch.arange(len(codes)) % 16 + 16
    codes[torch.arange(32) >= lengths[:, None]] = 0
    vowels = torch.isin(codes, torch.tensor(list(b"aeiou"))).long()
    vowels[codes == 0] = -100
    return Task(Tagger()), split(codes, vowels)


@healthy
def a_model_that_computes_its_loss() -> Arguments:
    """As the models of transformers do: the batch is a dict, the loss comes from forward."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = Decoder()

        def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
            logits = self.decoder(input_ids)
            if labels is None:
                return {"logits": logits}
            shifted = logits[..., :-1, :].contiguous(), labels[..., 1:].contiguous()
            loss = functional.cross_entropy(shifted[0].view(-1, 256), shifted[1].view(-1))
            return {"loss": loss, "logits": logits}

    class Own(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.net(**batch)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.net(**batch)["loss"])

    rows = [{"input_ids": row, "labels": row} for row in text_windows()]
    return (
        Own(Model()),
        (
            DataLoader(rows[:200], 32, shuffle=True),
            DataLoader(rows[200:], 32),
        ),
    )
