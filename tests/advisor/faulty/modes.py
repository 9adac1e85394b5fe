"""Modules that a hook or a step puts into eval mode."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.programs import Arguments, Task, cnn, digit_loaders, faulty, mlp


def dropping() -> nn.Sequential:
    return nn.Sequential(mlp(64, 64, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 10))


def _kept() -> Arguments:
    return Task(dropping()), digit_loaders()


@faulty("LP131", "net.2", source="self.eval() at the start of training_step", mended=_kept)
def eval_at_the_start_of_the_step() -> Arguments:
    class Evaluated(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.eval()
            return super().training_step(batch, batch_idx)

    return Evaluated(dropping()), digit_loaders()


@faulty("LP131", "net", source="the network in eval mode by a hook, with batch norms")
def eval_by_a_hook() -> Arguments:
    class Evaluated(Task):
        def on_train_epoch_start(self) -> None:
            self.net.eval()

    return Evaluated(cnn()), digit_loaders()


@faulty("LP131", "net", source="eval() in on_train_batch_start")
def eval_before_each_batch() -> Arguments:
    class Evaluated(Task):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.net.train(False)

    return Evaluated(dropping()), digit_loaders()


@faulty("LP131", "net", source="a network whose forward begins with self.eval()")
def eval_in_forward() -> Arguments:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32))
            self.fc = nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            self.eval()
            h = functional.dropout(functional.relu(self.features(x)), 0.2, self.training)
            logits: Tensor = self.fc(h)
            return logits

    return Task(Classifier()), digit_loaders()


@faulty("LP131", "net.2", source="images are drawn in eval mode, and train() is forgotten")
def eval_for_an_accuracy_that_stays() -> Arguments:
    class Evaluated(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            if batch_idx % 50 == 0:
                self.eval()
                with torch.no_grad():
                    right = self.net(batch[0]).argmax(1) == batch[1]
                self.log("train_acc", right.float().mean())
            return loss

    return Evaluated(dropping()), digit_loaders()


@faulty("LP131", source="eval mode for the loss, training mode after it")
def eval_around_the_loss() -> Arguments:
    class Evaluated(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.net.eval()
            loss = functional.cross_entropy(self.net(batch[0]), batch[1])
            self.net.train()
            return loss

    return Evaluated(dropping()), digit_loaders()


@faulty("LP131", "net.rnn", source="a recurrent network with dropout, in eval mode by a hook")
def eval_of_a_recurrent_network() -> Arguments:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(8, 16, 2, batch_first=True, dropout=0.3)
            self.head = nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.rnn(x.squeeze(1))[0][:, -1])
            return logits

    class Evaluated(Task):
        def on_train_epoch_start(self) -> None:
            self.eval()

    return Evaluated(Rows()), digit_loaders()
