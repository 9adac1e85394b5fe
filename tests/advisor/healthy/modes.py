"""Healthy programs in which hooks and steps change modes."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.faulty.modes import dropping
from tests.advisor.programs import Arguments, Task, cnn, digit_loaders, healthy, mlp


@healthy
def batch_norms_in_eval_mode_by_a_hook() -> Arguments:
    class Fixed(Task):
        def on_train_epoch_start(self) -> None:
            for part in self.modules():
                if isinstance(part, nn.BatchNorm2d):
                    part.eval()

    return Fixed(cnn()), digit_loaders()


@healthy
def eval_for_an_accuracy_and_back() -> Arguments:
    class Measured(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.eval()
            with torch.no_grad():
                right = self.net(batch[0]).argmax(1) == batch[1]
            self.log("accuracy", right.float().mean())
            self.train()
            return super().training_step(batch, batch_idx)

    return Measured(dropping()), digit_loaders()


@healthy
def pretrained_network_with_its_statistics() -> Arguments:
    class Fixed(Task):
        def on_train_epoch_start(self) -> None:
            self.net.eval()

    net = cnn()
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(64, 1, 8, 8))
    return Fixed(net), digit_loaders()


@healthy
def teacher_in_eval_mode() -> Arguments:
    class Distil(Task):
        def __init__(self) -> None:
            super().__init__(dropping())
            self.teacher = cnn().requires_grad_(False)

        def on_train_epoch_start(self) -> None:
            self.teacher.eval()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            with torch.no_grad():
                soft = self.teacher(x).softmax(1)
            logits = self.net(x)
            kl = functional.kl_div(logits.log_softmax(1), soft, reduction="batchmean")
            return functional.cross_entropy(logits, y) + kl

    return Distil(), digit_loaders()


@healthy
def a_network_without_modes_in_eval_mode() -> Arguments:
    class Evaluated(Task):
        def on_train_epoch_start(self) -> None:
            self.net.eval()

    return Evaluated(mlp(64, 32, 10)), digit_loaders()


@healthy
def encoder_in_eval_mode_and_a_head_with_dropout() -> Arguments:
    class Probe(Task):
        def __init__(self) -> None:
            super().__init__(nn.Sequential(nn.Dropout(0.2), nn.Linear(64, 10)))
            self.encoder = nn.Sequential(mlp(64, 64), nn.BatchNorm1d(64), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.net(self.encoder(x))
            return logits

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.encoder.eval()
            return functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", functional.cross_entropy(self(batch[0]), batch[1]))

    return Probe(), digit_loaders()


@healthy
def dropout_that_an_option_turns_off() -> Arguments:
    class Option(nn.Module):
        def __init__(self, use_dropout: bool) -> None:
            super().__init__()
            self.body, self.head = mlp(64, 32), nn.Linear(32, 10)
            self.use_dropout = use_dropout

        def forward(self, x: Tensor) -> Tensor:
            h = functional.relu(self.body(x))
            logits: Tensor = self.head(functional.dropout(h, 0.5, training=self.use_dropout))
            return logits

    return Task(Option(use_dropout=False)), digit_loaders()
