"""Healthy programs that change weights apart from the optimizer, or add layers."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tests.advisor.faulty.resets import Made, draw
from tests.advisor.programs import Arguments, Task, digit_loaders, healthy, mlp


@healthy
def weights_drawn_once_at_the_start() -> Arguments:
    class Drawn(Task):
        def on_train_start(self) -> None:
            self.net.apply(draw)

    return Drawn(mlp(64, 64, 10)), digit_loaders()


@healthy
def weights_drawn_in_the_first_epoch_alone() -> Arguments:
    class Drawn(Task):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 0:
                self.net.apply(draw)

    return Drawn(mlp(64, 64, 10)), digit_loaders()


@healthy
def weights_scaled_by_the_first_batch() -> Arguments:
    """Mishkin and Matas, 2016, LSUV: an initialisation by data, from orthogonal weights."""

    class Lsuv(Task):
        is_done = False

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if not self.is_done:
                with torch.no_grad():
                    nn.init.orthogonal_(self.net[1].weight)
                    self.net[1].weight /= self.net[1](batch[0].flatten(1)).std()
                self.is_done = True
            return super().training_step(batch, batch_idx)

    return Lsuv(mlp(64, 64, 10)), digit_loaders()


@healthy
def weights_within_a_box() -> Arguments:
    class Clamped(Task):
        def on_train_batch_end(self, *args: Any) -> None:
            with torch.no_grad():
                for p in self.parameters():
                    p.clamp_(-0.03, 0.03)

    return Clamped(mlp(64, 64, 10)), digit_loaders()


@healthy
def weights_with_noise_in_each_step() -> Arguments:
    class Noisy(Task):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            with torch.no_grad():
                for p in self.parameters():
                    p.add_(0.01 * torch.randn_like(p))

    return Noisy(mlp(64, 64, 10)), digit_loaders()


@healthy
def last_layer_drawn_in_each_epoch() -> Arguments:
    """Zhou et al., 2022, Fortuitous forgetting in connectionist networks: later layers anew."""

    class Forgetting(Task):
        def on_train_epoch_start(self) -> None:
            self.net[3].reset_parameters()

    return Forgetting(mlp(64, 64, 10)), digit_loaders()


@healthy
def all_layers_drawn_in_each_tenth_epoch() -> Arguments:
    """Nikishin et al., 2022, the primacy bias: resets of a network in long intervals."""

    class Periodic(Task):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch and self.current_epoch % 10 == 0:
                self.net.apply(draw)

    return Periodic(mlp(64, 64, 10)), digit_loaders()


@healthy
def weights_restored_after_an_epoch() -> Arguments:
    class Restored(Task):
        best: Any = None

        def on_train_epoch_end(self) -> None:
            self.best = self.best or copy.deepcopy(self.net.state_dict())
            self.net.load_state_dict(self.best)

    return Restored(mlp(64, 64, 10)), digit_loaders()


@healthy
def layer_made_in_a_step_and_added_to_the_optimizer() -> Arguments:
    class Grown(Made):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            if len(optimizer.param_groups) == 1:
                optimizer.add_param_group({"params": list(self.head.parameters())})

    return Grown(lambda module: module.head is None), digit_loaders()
