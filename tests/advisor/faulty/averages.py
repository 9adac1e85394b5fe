"""Averages of weights that don't fit the fit."""

import copy
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.callbacks import WeightAveraging as LightningWeightAveraging
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from lightning_practices.callbacks import WeightAveraging
from tests.advisor.plans import Planned, adamw, stopped, trainer
from tests.advisor.programs import Arguments, digit_loaders, faulty

_SLOW = "reports of an EMA that validates like the random weights"


class EMA(Callback):
    """As written in many repositories: a copy of the weights that follows slowly."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.shadow: Any = None


@faulty("LP616", source=_SLOW)
def ema_of_constant_decay_in_a_short_fit() -> Arguments:
    return stopped(WeightAveraging("ema", decay=0.999, decay_warmup=False), max_epochs=5)


@faulty("LP616", source=_SLOW)
def ema_of_lightning_in_a_short_fit() -> Arguments:
    return stopped(LightningWeightAveraging(avg_fn=get_ema_avg_fn(0.9999)), max_epochs=5)


@faulty("LP616", source=_SLOW)
def ema_of_an_own_callback_in_a_short_fit() -> Arguments:
    return stopped(EMA(0.9999), max_epochs=5)


@faulty("LP616", source=_SLOW)
def ema_of_several_tensors_in_a_short_fit() -> Arguments:
    average = LightningWeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(0.999))
    return stopped(average, max_epochs=5)


class Averaged(Planned):
    """Validates with an average that the module keeps."""

    def __init__(self, decay: float) -> None:
        super().__init__(adamw)
        self.average = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(decay))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.average.update_parameters(self.net)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", self.loss(self.average(x), y))


@faulty("LP616", "average", source=_SLOW)
def ema_of_the_module_in_a_short_fit() -> Arguments:
    return Averaged(0.9999), digit_loaders(), trainer(max_epochs=5)


class Copied(Planned):
    """Validates with a copy of the network that a hook moves."""

    def __init__(self, decay: float) -> None:
        super().__init__(adamw)
        self.decay = decay
        self.average = copy.deepcopy(self.net).requires_grad_(False)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        for a, p in zip(self.average.parameters(), self.net.parameters(), strict=True):
            a.lerp_(p.detach(), 1 - self.decay)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", self.loss(self.average(x), y))


@faulty("LP616", "average", source=_SLOW)
def copy_that_a_hook_moves_slowly() -> Arguments:
    return Copied(0.9995), digit_loaders(), trainer(max_epochs=5)


@faulty("LP616", "shadow.model", source=_SLOW)
def copy_within_an_own_module() -> Arguments:
    class Shadow(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.model = copy.deepcopy(net)

        @torch.no_grad()
        def follow(self, net: nn.Module) -> None:
            state = net.state_dict()
            self.model.load_state_dict(
                {name: 0.9999 * x + (1 - 0.9999) * state[name]
                 for name, x in self.model.state_dict().items()}
            )  # fmt: skip

    class Validated(Planned):
        def __init__(self) -> None:
            super().__init__(lambda module: torch.optim.Adam(module.net.parameters(), 1e-3))
            self.shadow = Shadow(self.net)

        def on_before_zero_grad(self, optimizer: Any) -> None:
            self.shadow.follow(self.net)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            x, y = batch
            self.log("val_loss", self.loss(self.shadow.model(x), y))

    return Validated(), digit_loaders(), trainer(max_epochs=5)


@faulty("LP617", source="StochasticWeightAveraging of a long fit in a short one")
def stochastic_average_after_the_end() -> Arguments:
    average = StochasticWeightAveraging(1e-2, swa_epoch_start=50)
    return stopped(average, max_epochs=5)
