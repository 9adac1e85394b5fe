"""What modules keep from step to step on purpose."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.faulty.states import Kept, waves
from tests.advisor.programs import Arguments, Task, digit_loaders, healthy, mlp


@healthy
def state_of_a_stream_in_order() -> Arguments:
    return Task(Kept()), waves(shuffle=False)


@healthy
def state_that_is_kept_for_a_look_alone() -> Arguments:
    return Task(Kept(is_kept=False)), waves()


@healthy
def state_that_each_batch_resets() -> Arguments:
    """Truncated backpropagation within a step: the state goes on between parts of a sequence."""

    class Parts(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            self.net.hidden = None
            losses = [functional.cross_entropy(self.net(part), y) for part in x.chunk(2, dim=1)]
            return torch.stack(losses).mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    return Parts(Kept()), waves()


@healthy
def queue_of_features() -> Arguments:
    """Features of the batches before are negatives: as many as the batch has samples."""

    class Queue(Task):
        queue: Tensor

        def __init__(self) -> None:
            super().__init__(mlp(64, 64, 32))
            self.register_buffer("queue", functional.normalize(torch.randn(64, 32), dim=1))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x = batch[0]
            first, second = (
                functional.normalize(self.net(x + 0.1 * torch.randn_like(x)), dim=1)
                for _ in range(2)
            )
            own = (first * second).sum(dim=1, keepdim=True)
            logits = torch.cat([own, first @ self.queue.T], dim=1) / 0.2
            self.queue = second.detach()
            return functional.cross_entropy(logits, torch.zeros(len(x), dtype=torch.long))

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            pass

    return Queue(), digit_loaders()


@healthy
def features_normalised_by_running_statistics() -> Arguments:
    """As many features as samples in a batch."""

    class Running(nn.Module):
        mean: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(64))
            self.first, self.last = mlp(64, 64), nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            if self.training:
                self.mean = torch.lerp(self.mean, h.detach().mean(dim=0), 0.1)
            return self.last(torch.relu(h - self.mean))

    return Task(Running()), digit_loaders()


@healthy
def pictures_mixed_with_those_before() -> Arguments:
    """Mixup with the batch before, for which targets are mixed too."""

    class Mixed(Task):
        def __init__(self) -> None:
            super().__init__(mlp(64, 64, 10))
            self.before: tuple[Tensor, Tensor] | None = None

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch[0], functional.one_hot(batch[1], 10).float()
            other, target = self.before or (x, y)
            self.before = x, y
            return functional.cross_entropy(self.net(0.8 * x + 0.2 * other), 0.8 * y + 0.2 * target)

    return Mixed(), digit_loaders()
