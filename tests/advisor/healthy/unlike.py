"""Validation, heads and noise that resemble the faulty ones."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from tests.advisor.faulty.unlike import Denoiser, Large, Scaled, scaled
from tests.advisor.programs import (
    Arguments,
    Task,
    cnn,
    diabetes,
    digit_loaders,
    digits,
    healthy,
    mlp,
)


@healthy
def threshold_of_logits() -> Arguments:
    return Large(), digit_loaders()


@healthy
def threshold_after_a_sigmoid() -> Arguments:
    class Sigmoid(Large):
        def decided(self, logits: Tensor) -> Tensor:
            return logits.sigmoid().round() > 0.5

    return Sigmoid(), digit_loaders()


class Counted(Task):
    """One output tells digits above 4, and the other one predicts the digit."""

    def __init__(self) -> None:
        super().__init__(mlp(64, 32, 2))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        above, digit = self.parts(self.net(x))
        loss = functional.binary_cross_entropy_with_logits(above, (y > 4).float())
        return loss + functional.mse_loss(digit, y.float())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))
        self.log("val_same", (self.parts(self.net(batch[0]))[1].round() == batch[1]).float().mean())

    def parts(self, out: Tensor) -> Any:
        return out[:, 0], out[:, 1]


@healthy
def count_beside_logits_is_rounded() -> Arguments:
    return Counted(), digit_loaders()


@healthy
def count_beside_logits_by_unbind() -> Arguments:
    class Unbound(Counted):
        def parts(self, out: Tensor) -> Any:
            return out.unbind(-1)

    return Unbound(), digit_loaders()


@healthy
def count_beside_logits_in_chunks() -> Arguments:
    class Chunks(Counted):
        def parts(self, out: Tensor) -> Any:
            above, digit = out.chunk(2, dim=1)
            return above.squeeze(1), digit.select(1, 0)

    return Chunks(), digit_loaders()


@healthy
def regression_scored_in_its_unit() -> Arguments:
    class Unit(Task):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            x, y = batch
            self.log("val_loss", self.loss(self.net(x) * 77 + 152, y))

    return scaled(Unit(mlp(10, 32, 1), functional.mse_loss), 77, 152)


@healthy
def validation_targets_of_later_times() -> Arguments:
    """A series that grows: its last part is far from the first."""
    x, y = diabetes()
    y = (y + torch.linspace(-3, 3, len(y)))[:, None] / 2
    train, val = TensorDataset(x[:320], y[:320]), TensorDataset(x[320:], 2 * y[320:])
    loaders = DataLoader(train, 32, shuffle=True), DataLoader(val, 32)
    return Task(mlp(10, 32, 1), functional.mse_loss), loaders


@healthy
def temperature_of_a_trained_model() -> Arguments:
    module = Scaled()
    with torch.no_grad():
        module.head.weight.copy_(1.5 * torch.randn(10, 32) / 32**0.5)
        module.head.bias.copy_(0.1 * torch.randn(10))
    module.requires_grad_(False)
    module.scale.requires_grad_(True)
    return module, digit_loaders()


def _zero_shot(rows: Tensor) -> Arguments:
    """Return a head of embeddings of the classes, with a bias of 0, and a trained temperature."""
    module = Scaled()
    module.net = nn.Flatten()
    module.head = nn.Linear(64, 10)
    with torch.no_grad():
        module.head.weight.copy_(rows)
        module.head.bias.zero_()
    module.requires_grad_(False)
    module.scale.requires_grad_(True)
    return module, digit_loaders()


@healthy
def temperature_of_a_head_of_class_means() -> Arguments:
    x, y = digits()
    return _zero_shot(torch.stack([x[y == one].flatten(1).mean(dim=0) for one in range(10)]))


@healthy
def temperature_of_a_head_of_unit_vectors() -> Arguments:
    """Embeddings of texts have a norm of 1."""
    return _zero_shot(functional.normalize(torch.randn(10, 64), dim=1))


@healthy
def fixed_classifier() -> Arguments:
    """The body learns for directions that stay."""
    module = Scaled()
    nn.init.orthogonal_(module.head.weight)
    module.head.requires_grad_(False)
    return module, digit_loaders()


@healthy
def normal_noise() -> Arguments:
    return Denoiser(), digit_loaders()


@healthy
def residual_of_a_blind_denoiser() -> Arguments:
    """Predicts what was added, of a size that it has to see for itself."""

    class Blind(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(64, 128, 128, 64, activation=nn.SiLU)

        def of_noise(self, x: Tensor, time: Tensor, kept: Tensor) -> Tensor:
            added = 0.5 * torch.rand(len(x), 1) * torch.randn_like(x)
            return functional.mse_loss(self.net(x + added), added)

    return Blind(), digit_loaders()


@healthy
def strength_of_a_blur_is_predicted() -> Arguments:
    """What is predicted is uniform and changes the images, a number for each."""

    class Strength(Denoiser):
        def of_noise(self, x: Tensor, time: Tensor, kept: Tensor) -> Tensor:
            strength = torch.rand(len(x), 1)
            noisy = torch.cat([x + strength, time], dim=1)
            return functional.mse_loss(self.net(noisy).mean(1, keepdim=True), strength)

    return Strength(), digit_loaders()


@healthy
def uniform_samples_are_reconstructed() -> Arguments:
    class Reconstruct(Denoiser):
        def of_noise(self, x: Tensor, time: Tensor, kept: Tensor) -> Tensor:
            sample = torch.rand_like(x)
            noisy = torch.cat([sample + 0.1 * torch.randn_like(x), time], dim=1)
            return functional.mse_loss(self.net(noisy), sample)

    return Reconstruct(), digit_loaders()


@healthy
def several_passes_in_training_mode() -> Arguments:
    class Passes(Task):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            x, y = batch
            self.train()
            mean = torch.stack([self.net(x).softmax(1) for _ in range(5)]).mean(0)
            self.log("val_loss", functional.nll_loss(mean.log(), y))

    net = nn.Sequential(mlp(64, 32), nn.Dropout(0.3), nn.ReLU(), nn.Linear(32, 10))
    return Passes(net), digit_loaders()


class Losses(nn.Module):
    """Gives a dict of losses in training mode, and a list of predictions otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = cnn()

    def forward(self, x: Tensor, y: Tensor) -> Any:
        out = self.layers(x)
        if self.training:
            return {"loss_classifier": functional.cross_entropy(out, y)}
        return [{"labels": one.argmax()} for one in out]


@healthy
def losses_of_a_detector_in_validation() -> Arguments:
    class Detector(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return torch.stack(list(self.net(*batch).values())).sum()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.train()
            self.log("val_loss", self.training_step(batch, batch_idx))

    return Detector(Losses()), digit_loaders()


@healthy
def losses_of_one_mode_in_validation() -> Arguments:
    """In eval mode the network gives a tensor for each sample, and no loss."""

    class OneMode(Losses):
        def forward(self, x: Tensor, y: Tensor) -> Any:
            out = self.layers(x)
            return functional.cross_entropy(out, y) if self.training else out.argmax(dim=1)

    class Step(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss: Tensor = self.net(*batch)
            return loss

        def on_validation_epoch_start(self) -> None:
            self.train()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.net(*batch))

    return Step(OneMode()), digit_loaders()
