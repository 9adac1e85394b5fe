"""Masked language models whose labels are taken after the masking."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.healthy.masked import MASK, Cloze, counts
from tests.advisor.programs import Arguments, faulty, split


def _cloned() -> Arguments:
    return Cloze(), split(counts())


@faulty("LP292", "net.head", source="masked in place before the labels are taken", mended=_cloned)
def labels_from_masked_tokens() -> Arguments:
    class After(Cloze):
        def masked(self, tokens: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
            tokens[chosen] = MASK
            return tokens, torch.where(chosen, tokens, -100)

    return After(), split(counts())


@faulty("LP292", "net.head", source="the masked positions of both, chosen by a mask")
def chosen_positions_of_masked_tokens() -> Arguments:
    class Chosen(Cloze):
        def cloze(self, tokens: Tensor) -> Tensor:
            chosen = torch.rand(tokens.shape) < 0.2
            read = tokens.masked_fill_(chosen, MASK)
            return functional.cross_entropy(self.net(read)[chosen], tokens[chosen])

    return Chosen(), split(counts())


@faulty("LP292", "net.head", source="masks, other tokens and the same, and then the labels")
def labels_after_the_mixture() -> Arguments:
    class Mixture(Cloze):
        def masked(self, tokens: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
            kind = torch.rand(tokens.shape)
            tokens[chosen & (kind < 0.8)] = MASK
            other = chosen & (kind > 0.9)
            tokens[other] = torch.randint(1, 20, tokens.shape)[other]
            return tokens, tokens.masked_fill(~chosen, -100)

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(nn.ModuleList([self.net]).parameters())

    return Mixture(), split(counts())
