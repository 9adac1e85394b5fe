"""Attention that knows positions, or that needs none."""

import torch

from tests.advisor.faulty.positions import STEPS, WIDTH, Encoder, Written, text
from tests.advisor.programs import Arguments, Task, healthy, split


@healthy
def learnt_positions() -> Arguments:
    return Task(Encoder(0.02 * torch.randn(STEPS, WIDTH))), split(*text())


@healthy
def learnt_positions_from_zero() -> Arguments:
    def slow(parameters: object) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, 1e-3)  # type: ignore[arg-type]

    return Task(Encoder(torch.zeros(1, STEPS, WIDTH)), optimizer=slow), split(*text())


@healthy
def sets_in_random_order() -> Arguments:
    """The items of baskets."""
    draw = torch.Generator().manual_seed(0)
    items = torch.rand(640, 200, generator=draw).argsort(dim=1)[:, :STEPS]
    return Task(Encoder()), split(items, (items < 10).any(dim=1).long())


@healthy
def sets_that_are_sorted() -> Arguments:
    draw = torch.Generator().manual_seed(0)
    items = torch.rand(640, 60, generator=draw).argsort(dim=1)[:, :STEPS].sort(dim=1).values
    return Task(Encoder()), split(items, (items < 3).any(dim=1).long())


@healthy
def causal_attention_without_positions() -> Arguments:
    """Haviv et al., 2022: a causal mask tells the order."""
    codes, _ = text()
    follows = torch.isin(codes.roll(1, dims=1), torch.tensor(list(b"aeiou"))).long()
    return Task(Written(is_causal=True)), split(codes, follows)


@healthy
def tags_of_the_tokens_themselves() -> Arguments:
    codes, _ = text()
    return Task(Written()), split(codes, torch.isin(codes, torch.tensor(list(b"aeiou"))).long())
