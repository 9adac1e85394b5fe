"""Steps of validation, heads and noise that aren't as training needs them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from tests.advisor.programs import (
    Arguments,
    Task,
    cnn,
    diabetes,
    digit_loaders,
    faulty,
    mlp,
)


class Large(Task):
    """Tells digits above 4."""

    def __init__(self) -> None:
        super().__init__(mlp(64, 32, 1), functional.binary_cross_entropy_with_logits)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return self.loss(self.net(x).squeeze(1), (y > 4).float())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        logits = self.net(x).squeeze(1)
        self.log("val_loss", self.loss(logits, (y > 4).float()))
        self.log("val_acc", (self.decided(logits) == (y > 4)).float().mean())

    def decided(self, logits: Tensor) -> Tensor:
        return logits > 0


@faulty("LP664", "net.3", source="a threshold of 0.5 on the outputs of a model without sigmoid")
def threshold_of_probabilities() -> Arguments:
    class Half(Large):
        def decided(self, logits: Tensor) -> Tensor:
            return logits > 0.5

    return Half(), digit_loaders()


@faulty("LP664", source="round of logits in a metric")
def rounded_logits() -> Arguments:
    class Rounded(Large):
        def decided(self, logits: Tensor) -> Tensor:
            return torch.round(logits).bool()

    return Rounded(), digit_loaders()


@faulty("LP664", source="a threshold of 0.5 on one of several logits, which the loss takes all")
def threshold_of_one_of_several_logits() -> Arguments:
    class Several(Task):
        def __init__(self) -> None:
            super().__init__(mlp(64, 32, 3))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            out = self.net(batch[0])[:, :2]
            y = torch.stack([batch[1] > 4, batch[1] % 2 > 0], dim=1).float()
            loss = functional.binary_cross_entropy_with_logits(out, y)
            return loss + functional.mse_loss(self.net(batch[0])[:, 2], batch[1].float())

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            odd = self.net(batch[0])[..., 1] > 0.5
            self.log("val_acc", (odd == (batch[1] % 2 > 0)).float().mean())

    return Several(), digit_loaders()


def scaled(task: Task, factor: float, shift: float = 0.0) -> Arguments:
    """Return a regression whose validation targets have another unit."""
    x, y = diabetes()
    train = TensorDataset(x[:320], y[:320, None])
    val = TensorDataset(x[320:], y[320:, None] * factor + shift)
    return task, (DataLoader(train, 32, shuffle=True), DataLoader(val, 32))


@faulty("LP346", "net.3", source="targets that are standardised in the train dataset alone")
def validation_targets_in_their_unit() -> Arguments:
    return scaled(Task(mlp(10, 32, 1), functional.mse_loss), 77, 152)


@faulty("LP346", source="a scaler that is applied twice to the validation targets")
def validation_targets_scaled_twice() -> Arguments:
    return scaled(Task(mlp(10, 32, 1), functional.l1_loss), 0.013)


class Scaled(Task):
    """A body, a head, and a trained scale."""

    def __init__(self) -> None:
        super().__init__(mlp(64, 64, 32))
        self.head = nn.Linear(32, 10)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Any:
        return self.scale * self.head(self.net(x).relu())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))


@faulty("LP145", "head", source="everything frozen but a temperature")
def scale_alone_is_trained() -> Arguments:
    module = Scaled()
    module.net.requires_grad_(False)
    module.head.requires_grad_(False)
    return module, digit_loaders()


@faulty("LP145", "head", source="biases alone are trained, under a new head that is frozen")
def shift_alone_is_trained() -> Arguments:
    class Shifted(Scaled):
        def __init__(self) -> None:
            super().__init__()
            self.requires_grad_(False)
            self.shift = nn.Parameter(torch.zeros(10))
            nn.init.normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

        def forward(self, x: Tensor) -> Any:
            return super().forward(x) + self.shift

    return Shifted(), digit_loaders()


@faulty("LP146", "head", source="a new head that is frozen, and a body that is trained")
def new_head_is_frozen() -> Arguments:
    module = Scaled()
    module.head.requires_grad_(False)
    return module, digit_loaders()


class Denoiser(Task):
    """Predicts the noise of a diffusion."""

    def __init__(self) -> None:
        super().__init__(mlp(65, 128, 128, 64, activation=nn.SiLU))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0].flatten(1)
        time = torch.randint(0, 1000, (len(x), 1))
        kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)[time]
        return self.of_noise(x, time / 1000, kept)

    def of_noise(self, x: Tensor, time: Tensor, kept: Tensor) -> Tensor:
        noise = self.noise(x)
        noisy = kept.sqrt() * x + (1 - kept).sqrt() * noise
        return functional.mse_loss(self.net(torch.cat([noisy, time], dim=1)), noise)

    def noise(self, x: Tensor) -> Tensor:
        return torch.randn_like(x)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))


@faulty("LP271", "net.5", source="rand_like for randn_like in a diffusion model")
def rand_like_as_noise() -> Arguments:
    class Uniform(Denoiser):
        def noise(self, x: Tensor) -> Tensor:
            return torch.rand_like(x)

    return Uniform(), digit_loaders()


@faulty("LP271", source="torch.rand of the images' shape, and lerp")
def rand_in_a_lerp() -> Arguments:
    class Uniform(Denoiser):
        def of_noise(self, x: Tensor, time: Tensor, kept: Tensor) -> Tensor:
            noise = torch.rand(x.shape)
            noisy = torch.lerp(x, noise, time)
            return functional.smooth_l1_loss(self.net(torch.cat([noisy, time], dim=1)), noise)

    return Uniform(), digit_loaders()


@faulty("LP272", "net.5", source="a time step that the network doesn't get")
def time_step_is_left_out() -> Arguments:
    class Blind(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(64, 128, 128, 64, activation=nn.SiLU)

        def of_noise(self, x: Tensor, time: Tensor, kept: Tensor) -> Tensor:
            noise = self.noise(x)
            noisy = kept.sqrt() * x + (1 - kept).sqrt() * noise
            return functional.mse_loss(self.net(noisy), noise)

    return Blind(), digit_loaders()


@faulty("LP272", source="a network whose forward takes the time step and doesn't use it")
def time_step_is_not_used() -> Arguments:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv2d(1, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 1, 3, padding=1)
            )

        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            return self.layers(x)

    class Images(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x = batch[0]
            time = torch.rand(len(x), device=x.device)
            angle = (time * torch.pi / 2).view(-1, 1, 1, 1)
            noise = torch.randn_like(x)
            noisy = noise * angle.sin() + x * angle.cos()
            return functional.mse_loss(self.net(noisy, time), noise)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    return Images(Unused()), digit_loaders()


@faulty("LP147", "net.1", source="self.train() at the start of the validation step")
def training_mode_in_validation() -> Arguments:
    class Training(Task):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.train()
            super().validation_step(batch, batch_idx)

    net = nn.Sequential(mlp(64, 32), nn.Dropout(0.3), nn.ReLU(), nn.Linear(32, 10))
    return Training(net), digit_loaders()


@faulty("LP147", source="model.train() in on_validation_start")
def training_mode_in_a_hook() -> Arguments:
    class Training(Task):
        def on_validation_epoch_start(self) -> None:
            self.train()

    return Training(cnn()), digit_loaders()
