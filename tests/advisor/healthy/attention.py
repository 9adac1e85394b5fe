"""Healthy programs with attention along other dimensions, and masks."""

import torch
from torch import Tensor, nn

from tests.advisor.faulty.attention import PAD, Attention, Padded, texts
from tests.advisor.programs import Arguments, Task, digit_loaders, healthy


@healthy
def attention_over_the_last_dimension() -> Arguments:
    return Task(Attention(3, 2)), digit_loaders()


@healthy
def padding_that_is_masked() -> Arguments:
    return Task(Padded(lambda tokens: tokens == PAD)), texts()


@healthy
def values_on_the_left() -> Arguments:
    """Features first: weights sum to 1 over the second last dimension, and are transposed."""

    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.fc = nn.Linear(8, 48), nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x.squeeze(1)).chunk(3, dim=-1)
            weights = (k @ q.transpose(1, 2) / 4).softmax(dim=1)
            mixed = weights.transpose(1, 2) @ v + (v.transpose(1, 2) @ weights).transpose(1, 2)
            logits: Tensor = self.fc(mixed.mean(dim=1))
            return logits

    return Task(Transposed()), digit_loaders()


@healthy
def slots_that_compete() -> Arguments:
    """Locatello et al., 2020: a softmax over the slots, then a mean over the inputs."""

    class Slots(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.keys, self.values, self.fc = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(64, 10)
            self.slots = nn.Parameter(torch.randn(4, 16))

        def forward(self, x: Tensor) -> Tensor:
            rows = x.squeeze(1)
            queries = self.slots.expand(len(x), -1, -1)
            weights = (queries @ self.keys(rows).transpose(1, 2) / 4).softmax(dim=1)
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-8)
            logits: Tensor = self.fc((weights @ self.values(rows)).flatten(1))
            return logits

    return Task(Slots()), digit_loaders()


@healthy
def capsules_that_compete() -> Arguments:
    """Sabour et al., 2017: a softmax over the capsules, and a sum over what they read."""

    class Capsules(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.votes, self.queries, self.fc = (
                nn.Linear(8, 16),
                nn.Linear(64, 80),
                nn.Linear(80, 10),
            )

        def forward(self, x: Tensor) -> Tensor:
            votes = self.votes(x.squeeze(1))
            queries = self.queries(x.flatten(1)).view(len(x), 5, 16)
            weights = (queries @ votes.transpose(1, 2)).softmax(dim=1)
            logits: Tensor = self.fc(torch.tanh(weights @ votes).flatten(1))
            return logits

    return Task(Capsules()), digit_loaders()
