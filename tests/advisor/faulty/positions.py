"""Attention over text without positions."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.healthy.sequences import text_windows
from tests.advisor.programs import Arguments, Task, faulty, split

STEPS, WIDTH = 20, 32


def text() -> tuple[Tensor, Tensor]:
    """Return windows of text, and whether the first of two letters comes before the second."""
    codes = text_windows(STEPS - 1)
    first, second = ((codes == ord(one)).float().argmax(dim=1) for one in "eo")
    return codes, (first < second).long()


class Encoder(nn.Module):
    """Attention over embedded tokens, and a classifier of their mean."""

    def __init__(self, positions: Tensor | None = None) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, WIDTH)
        self.positions = None if positions is None else nn.Parameter(positions)
        self.encoder = nn.TransformerEncoderLayer(WIDTH, 4, 64, batch_first=True)
        self.head = nn.Linear(WIDTH, 2)

    def embed(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.embedding(tokens)
        return x if self.positions is None else x + self.positions

    def forward(self, tokens: Tensor) -> Any:
        return self.head(self.encoder(self.embed(tokens)).mean(dim=1))


class Written(Encoder):
    """Attention that is written out, with a class for each token."""

    def __init__(self, is_causal: bool = False) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.is_causal = is_causal

    def forward(self, tokens: Tensor) -> Any:
        x = self.embed(tokens)
        q, k, v = self.qkv(x).chunk(3, dim=2)
        scores = q @ k.transpose(1, 2) / WIDTH**0.5
        if self.is_causal:
            scores = scores + torch.full(scores.shape[1:], -torch.inf).triu(1)
        return self.head(x + scores.softmax(dim=-1) @ v).transpose(1, 2)


@faulty("LP274", "net.encoder", source="nn.TransformerEncoder on embedded tokens alone")
def no_positions_in_an_encoder() -> Arguments:
    return Task(Encoder()), split(*text())


@faulty("LP274", source="attention written out, for a tag of each token that its neighbour tells")
def no_positions_in_a_tagger() -> Arguments:
    codes, _ = text()
    follows = torch.isin(codes.roll(1, dims=1), torch.tensor(list(b"aeiou"))).long()
    loss = functional.cross_entropy
    return Task(Written(), loss), split(codes, follows)
