"""Language models whose targets are shifted by the dataset and by the step."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.healthy.sequences import Decoder, Language, Recurrent, text_windows
from tests.advisor.programs import Arguments, Task, faulty, split


def shifted(logits: Tensor, tokens: Tensor) -> Tensor:
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def _once() -> Arguments:
    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(logits.flatten(0, 1), target.flatten())

    return Language(Decoder(), loss), split(text_windows())


@faulty("LP291", "net.head", source="labels of the dataset that the loss shifts too", mended=_once)
def shifted_by_dataset_and_loss() -> Arguments:
    return Language(Decoder(), shifted), split(text_windows())


@faulty("LP291", "net.rnn", source="a recurrent network with time first and ignored positions")
def shifted_with_ignored_positions() -> Arguments:
    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb = nn.Embedding(256, 16)
            self.rnn = nn.GRU(16, 256)

        def forward(self, tokens: Tensor) -> Tensor:
            out: Tensor = self.rnn(self.emb(tokens))[0]
            return out

    class Shifted(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            tokens, labels = batch[0].T, batch[1].T
            return functional.cross_entropy(
                self.net(tokens)[:-1].reshape(-1, 256), labels[1:].reshape(-1), ignore_index=-1
            )

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    text = text_windows()
    labels = text[:, 1:].clone()
    labels[::2, :5] = -1
    return Shifted(TimeFirst()), split(text[:, :-1], labels)


@faulty("LP291", "net.head", source="inputs cut at the end, targets that begin at the third token")
def targets_begin_at_the_third() -> Arguments:
    class Cut(Task):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            text = batch[0]
            return text[:, :-2], text[:, 2:]

    return Cut(Recurrent(), nn.CrossEntropyLoss()), split(torch.as_tensor(text_windows()))
