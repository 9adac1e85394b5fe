"""Padded sequences whose summary is read after the padding."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.advisor.programs import Arguments, Task, faulty, split

STEPS, TOKENS = 20, 30


def sentences() -> tuple[Tensor, Tensor]:
    """Return tokens of 4 to 20 steps, padded by 0 at the end, and two classes.

    The class is the half of the tokens from which most of a sentence's are.
    """
    draw = torch.Generator().manual_seed(0)
    y = torch.randint(2, (640,), generator=draw)
    low = torch.randint(1, 20, (640, STEPS), generator=draw)
    tokens = low + 10 * y[:, None]
    lengths = torch.randint(4, STEPS + 1, (640,), generator=draw)
    return tokens * (torch.arange(STEPS) < lengths[:, None]), y


class Reader(nn.Module):
    """Embeds tokens, reads them, and classifies a summary.

    Args:
        summary: Function of the reader, the embedded tokens and the tokens.
        padding: The ``padding_idx`` of the embedding.
    """

    def __init__(
        self, summary: Callable[[Any, Tensor, Tensor], Tensor], padding: int | None = 0
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, 24, padding_idx=padding)
        self.rnn = nn.GRU(24, 24, batch_first=True)
        self.summary = summary
        self.head = nn.Linear(24, 2)

    def forward(self, tokens: Tensor) -> Any:
        return self.head(self.summary(self, self.embedding(tokens), tokens))


class Attentive(Reader):
    """Reads by attention, with learnt positions."""

    def __init__(self, summary: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__(summary)
        self.rnn = None  # type: ignore[assignment]
        self.positions = nn.Parameter(0.1 * torch.randn(STEPS, 24))
        self.encoder = nn.TransformerEncoderLayer(24, 4, 48, 0.0, batch_first=True)

    def attend(self, x: Tensor, tokens: Tensor) -> Any:
        return self.encoder(x + self.positions, src_key_padding_mask=tokens == 0)


class Series(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 24, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        return self.rnn(x)[0].select(1, STEPS - 1)


def reads(net: nn.Module) -> Arguments:
    return Task(net), split(*sentences())


@faulty("LP273", "net.rnn", source="out[:, -1] of an LSTM on padded reviews")
def last_output_of_padded_tokens() -> Arguments:
    return reads(Reader(lambda net, x, tokens: net.rnn(x)[0][:, -1]))


@faulty("LP273", "net.rnn", source="h[-1] without packing, and an embedding without padding_idx")
def last_state_of_padded_tokens() -> Arguments:
    return reads(Reader(lambda net, x, tokens: net.rnn(x)[1][-1], padding=None))


@faulty("LP273", source="attention read at the last position, which is padding")
def last_position_of_attention() -> Arguments:
    return reads(Attentive(lambda net, x, tokens: net.attend(x, tokens)[:, -1, :]))


@faulty("LP275", "net.0.rnn", source="series of various lengths, padded by zeros")
def last_output_of_padded_series() -> Arguments:
    tokens, y = sentences()
    x = torch.stack([tokens / 10.0, (tokens > 9).float(), (tokens > 0).float()], dim=2)
    return Task(nn.Sequential(Series(), nn.Linear(24, 2))), split(x, y)
