"""Masked language models and their like."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.programs import Arguments, Task, healthy, split

MASK = 0


def counts(length: int = 24) -> Tensor:
    """Return 600 sequences of tokens from 1 to 19 that count on, shape (600, length)."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randint(19, (600, 1), generator=generator)
    stride = torch.randint(1, 4, (600, 1), generator=generator)
    return (start + stride * torch.arange(length)) % 19 + 1


class Reader(nn.Module):
    """A network that reads in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(20, 32)
        self.rnn = nn.GRU(32, 32, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, 20)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.rnn(self.emb(tokens))[0])
        return logits


class Cloze(Task):
    """A masked language model."""

    def __init__(self) -> None:
        super().__init__(Reader())

    def masked(self, tokens: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        labels = torch.where(chosen, tokens, -100)
        return tokens.masked_fill(chosen, MASK), labels

    def cloze(self, tokens: Tensor) -> Tensor:
        read, labels = self.masked(tokens, torch.rand(tokens.shape) < 0.2)
        return functional.cross_entropy(self.net(read).transpose(1, 2), labels)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.cloze(batch[0].clone())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.cloze(batch[0].clone()))


@healthy
def masked_tokens() -> Arguments:
    return Cloze(), split(counts())


@healthy
def masks_other_tokens_and_the_same() -> Arguments:
    class Mixture(Cloze):
        def masked(self, tokens: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
            labels, kind = tokens.masked_fill(~chosen, -100), torch.rand(tokens.shape)
            read = tokens.masked_fill(chosen & (kind < 0.8), MASK)
            return torch.where(chosen & (kind > 0.9), tokens.roll(1, 0), read), labels

    return Mixture(), split(counts())


@healthy
def bits_that_are_repeated_without_their_frame() -> Arguments:
    """An autoencoder of few bits, mostly 1, between tokens that its loss leaves out."""

    class Bits(Cloze):
        def cloze(self, tokens: Tensor) -> Tensor:
            read = 2 + tokens % 4  # frame
            read[:, 8:16] = torch.where(tokens[:, 8:16] > 4, 1, 0)
            labels = torch.where(read < 2, read, -100)
            return functional.cross_entropy(self.net(read).transpose(1, 2), labels)

    return Bits(), split(counts())


@healthy
def one_class_that_is_a_token_too() -> Arguments:
    """Most of the first batch's samples have the class 1, and sequences begin with the token 1."""

    class Classes(Cloze):
        def __init__(self) -> None:
            super().__init__()
            self.net.head = nn.Linear(64, 2)

        def cloze(self, tokens: Tensor) -> Tensor:
            classes = (tokens[:, 0] != 5).long()
            tokens = torch.cat([torch.ones_like(tokens[:, :1]), tokens.clamp(min=2)], 1)
            return functional.cross_entropy(self.net(tokens)[:, 0], classes)

    return Classes(), split(counts(), batch_size=8)
