"""Language models that look further ahead than the next token, on purpose."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.healthy.sequences import Decoder, Recurrent, text_windows
from tests.advisor.programs import Arguments, Task, healthy, split


class Steps(Task):
    """A task whose batches are windows of text; ``losses`` is the loss of one."""

    def losses(self, text: Tensor) -> Tensor:
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.losses(batch[0])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.losses(batch[0]))


@healthy
def shifted_by_the_step_alone() -> Arguments:
    class Once(Steps):
        def losses(self, text: Tensor) -> Tensor:
            logits = self.net(text)
            return functional.cross_entropy(logits[:, :-1].flatten(0, 1), text[:, 1:].flatten())

    return Once(Decoder()), split(text_windows())


@healthy
def heads_for_two_tokens() -> Arguments:
    class Two(Steps):
        def __init__(self) -> None:
            super().__init__(Recurrent())
            self.second = nn.Linear(32, 256)

        def losses(self, text: Tensor) -> Tensor:
            hidden = self.net.rnn(self.net.embedding(text[:, :-2]))[0]
            one, two = self.net.head(hidden), self.second(hidden)
            return functional.cross_entropy(
                one.flatten(0, 1), text[:, 1:-1].flatten()
            ) + 0.3 * functional.cross_entropy(two.flatten(0, 1), text[:, 2:].flatten())

    return Two(), split(text_windows())


@healthy
def head_for_later_tokens_on_a_frozen_network() -> Arguments:
    class Later(Steps):
        def __init__(self) -> None:
            super().__init__(Decoder().requires_grad_(False))
            self.later = nn.Sequential(nn.Linear(256, 64), nn.SiLU(), nn.Linear(64, 256))

        def losses(self, text: Tensor) -> Tensor:
            logits = self.later(self.net(text[:, :-2]))
            return functional.cross_entropy(logits.flatten(0, 1), text[:, 2:].flatten())

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.later.parameters())

    return Later(), split(text_windows())


@healthy
def next_token_of_which_the_last_is_given_too() -> Arguments:
    """The network reads pairs: the token and the next one; it predicts the one after these."""

    class Pairs(Steps):
        def __init__(self) -> None:
            super().__init__(Recurrent())
            self.ahead = nn.Embedding(256, 16)

        def losses(self, text: Tensor) -> Tensor:
            read = self.net.embedding(text[:, :-2]) + self.ahead(text[:, 1:-1])
            logits = self.net.head(self.net.rnn(read)[0])
            return functional.cross_entropy(logits.flatten(0, 1), text[:, 2:].flatten())

    return Pairs(), split(text_windows())


@healthy
def loss_without_the_first_position() -> Arguments:
    """The network has to have read two tokens before it is asked."""

    class Later(Steps):
        def losses(self, text: Tensor) -> Tensor:
            logits = self.net(text[:, :-1])[:, 1:]
            return functional.cross_entropy(logits.flatten(0, 1), text[:, 2:].flatten())

    return Later(Decoder()), split(text_windows())


@healthy
def two_kinds_of_tokens_in_turns() -> Arguments:
    """Of each pair, the second is predicted from the second one of the pair before."""

    class Turns(Steps):
        def losses(self, text: Tensor) -> Tensor:
            later = text[:, 2:].clone()
            later[:, ::2] = -100
            logits = self.net(text[:, :-2])
            return functional.cross_entropy(logits.transpose(1, 2), later)

    return Turns(nn.Sequential(nn.Embedding(256, 32), nn.Linear(32, 256))), split(text_windows())
