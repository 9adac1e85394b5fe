"""Healthy programs that move the dimension of samples, or mix samples on purpose."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.faulty.mixtures import Positions, Rows
from tests.advisor.healthy.losses import Custom
from tests.advisor.programs import (
    Arguments,
    Task,
    diabetes,
    diabetes_loaders,
    digit_loaders,
    healthy,
    mlp,
    split,
)


@healthy
def rows_as_a_sequence() -> Arguments:
    return Task(Rows()), digit_loaders()


@healthy
def time_first_merged_and_split_again() -> Arguments:
    class TimeFirst(Rows):
        def forward(self, x: Tensor) -> Any:
            h, _ = self.rnn(x.squeeze(1).transpose(0, 1))
            logits = self.head(functional.relu(h.reshape(-1, 32)))
            return logits.view(8, len(x), 10).mean(dim=0)

    return Task(TimeFirst(batch_first=False)), digit_loaders()


@healthy
def encoder_with_time_first() -> Arguments:
    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
            self.head = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Any:
            h = self.encoder(x.squeeze(1).permute(1, 0, 2))
            return self.head(h.permute(1, 0, 2).reshape(len(x), -1))

    return Task(TimeFirst()), digit_loaders()


@healthy
def channels_as_samples() -> Arguments:
    class Independent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift, self.head = nn.Linear(8, 16), nn.Linear(128, 10)

        def forward(self, x: Tensor) -> Any:
            h = functional.relu(self.lift(x.squeeze(1).permute(0, 2, 1).reshape(-1, 8)))
            return self.head(h.view(len(x), 8, 16).flatten(1))

    return Task(Independent()), digit_loaders()


@healthy
def windows_of_an_image() -> Arguments:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift, self.qkv = nn.Linear(1, 16), nn.Linear(16, 48)
            self.head = nn.Linear(16 * 64, 10)

        def forward(self, x: Tensor) -> Any:
            h = self.lift(x.permute(0, 2, 3, 1))
            h = h.view(len(x), 2, 4, 2, 4, 16).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, 16)
            q, k, v = self.qkv(h).view(-1, 16, 3, 2, 8).permute(2, 0, 3, 1, 4)
            h = functional.scaled_dot_product_attention(q, k, v)
            h = h.transpose(1, 2).reshape(-1, 2, 2, 4, 4, 16).permute(0, 1, 3, 2, 4, 5)
            return self.head(h.reshape(len(x), -1))

    return Task(Windows()), digit_loaders()


@healthy
def several_draws_of_each_sample() -> Arguments:
    """As importance-weighted autoencoders do."""

    class Draws(Custom):
        def __init__(self) -> None:
            super().__init__(mlp(64, 32, 16))
            self.decoder = mlp(8, 32, 64)

        def loss_of(self, batch: Any) -> Tensor:
            x = batch[0].flatten(1)
            mean, scale = self.net(x).chunk(2, dim=1)
            scale = functional.softplus(scale)
            z = mean + scale * torch.randn(4, *mean.shape)
            y = self.decoder(z.reshape(-1, 8)).view(4, len(x), 64)
            prior = 0.5 * (mean**2 + scale**2 - 2 * scale.log() - 1).sum(dim=1).mean()
            return (y.mean(dim=0) - x).square().mean() + 0.01 * prior

    return Draws(), digit_loaders()


class Between(nn.Module):
    """Attention between the samples of a batch (Somepalli et al., 2021, SAINT).

    Args:
        batch_first: Whether samples are the second dimension rather than the first.
    """

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.place = 0 if batch_first else 1
        self.lift, self.head = nn.Linear(10, 32), nn.Linear(32, 1)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=batch_first)

    def forward(self, x: Tensor) -> Any:
        h = functional.relu(self.lift(x))
        samples = h.unsqueeze(self.place)
        return self.head(h + self.attention(samples, samples, samples)[0].squeeze(self.place))


@healthy
def attention_between_samples() -> Arguments:
    return Task(Between(batch_first=True), functional.mse_loss), diabetes_loaders()


@healthy
def attention_between_samples_time_first() -> Arguments:
    return Task(Between(batch_first=False), functional.mse_loss), diabetes_loaders()


@healthy
def graph_of_nearest_samples() -> Arguments:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift, self.head = nn.Linear(10, 32), nn.Linear(64, 1)

        def forward(self, x: Tensor) -> Any:
            nearest = torch.cdist(x, x).topk(4, largest=False).indices
            h = functional.relu(self.lift(x))
            around = h[nearest.reshape(-1)].view(len(x), 4, 32).mean(dim=1)
            return self.head(torch.cat([h, around], dim=1))

    return Task(Graph(), functional.mse_loss), diabetes_loaders()


@healthy
def pairs_of_samples() -> Arguments:
    """As PacGAN's discriminator, or a net of pairs: two samples make one input."""

    class Pairs(Custom):
        def loss_of(self, batch: Any) -> Tensor:
            x, y = batch
            pairs, targets = x.reshape(-1, 20), y.reshape(-1, 2)
            return functional.mse_loss(self.net(pairs), targets.diff(dim=1))

    return Pairs(mlp(20, 64, 1)), diabetes_loaders()


@healthy
def series_in_order_as_one_sequence() -> Arguments:
    class Series(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(10, 32), nn.Linear(32, 1)

        def forward(self, x: Tensor) -> Any:
            return self.head(self.rnn(x)[0])

    x, y = diabetes()
    loaders = split(x, y[:, None])
    ordered = [torch.utils.data.DataLoader(one.dataset, 64, drop_last=True) for one in loaders]
    return Task(Series(), functional.mse_loss), (ordered[0], ordered[1])


@healthy
def positions_of_time_first() -> Arguments:
    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions = Positions()
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
            self.head = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Any:
            h = self.layer(self.positions(x.squeeze(1).transpose(0, 1)))
            return self.head(h.transpose(0, 1).flatten(1))

    return Task(TimeFirst()), digit_loaders(batch_size=8)  # as many as there are rows


@healthy
def learned_positions_of_rows() -> Arguments:
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(100, 8)
            self.start = nn.Parameter(0.02 * torch.randn(1, 1, 8))

        def forward(self, x: Tensor) -> Any:
            return x.squeeze(1) + self.table(torch.arange(x.size(2))) + self.start

    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return Task(nn.Sequential(Learned(), layer, mlp(64, 10))), digit_loaders(batch_size=8)
