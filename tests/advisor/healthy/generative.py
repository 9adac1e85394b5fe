"""Healthy generative models, and others that train without labels."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.programs import (
    Arguments,
    Task,
    cnn,
    diabetes,
    digit_loaders,
    digits,
    healthy,
    mlp,
    split,
)


class Unlabelled(Task):
    """Has a loss of the images alone."""

    def loss_of(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss_of(batch[0])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss_of(batch[0]))


@healthy
def autoencoder() -> Arguments:
    class Reconstruct(Unlabelled):
        def loss_of(self, x: Tensor) -> Tensor:
            return functional.mse_loss(self.net(x), x.flatten(1))

    return Reconstruct(mlp(64, 32, 8, 32, 64)), digit_loaders()


@healthy
def linear_autoencoder() -> Arguments:
    """Two linear layers without an activation between them: principal components."""

    class Reconstruct(Unlabelled):
        def loss_of(self, x: Tensor) -> Tensor:
            return functional.mse_loss(self.net(x), x.flatten(1))

    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8, bias=False), nn.Linear(8, 64, bias=False))
    return Reconstruct(net), digit_loaders()


@healthy
def variational_autoencoder() -> Arguments:
    """It samples in validation too."""

    class Variational(Unlabelled):
        def __init__(self) -> None:
            super().__init__(mlp(64, 64, 16))
            self.decoder = mlp(8, 64, 64)

        def loss_of(self, x: Tensor) -> Tensor:
            mean, log_variance = self.net(x).chunk(2, dim=1)
            code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
            target = (x.flatten(1) > 0).float()
            errors = functional.binary_cross_entropy_with_logits(
                self.decoder(code), target, reduction="none"
            )
            divergence = -0.5 * (1 + log_variance - mean.pow(2) - log_variance.exp()).sum(1)
            return (errors.sum(1) + divergence).mean()

    return Variational(), digit_loaders()


@healthy
def adversarial_networks() -> Arguments:
    """Two optimizers under manual optimization, each for its own network."""

    class Adversarial(Task):
        def __init__(self) -> None:
            super().__init__(nn.Sequential(mlp(8, 64, 64), nn.Tanh()))
            self.critic = mlp(64, 64, 1, activation=nn.LeakyReLU)
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            real = batch[0].flatten(1).clamp(-1, 1)
            first, second = self.optimizers()
            loss = functional.binary_cross_entropy_with_logits
            fake = self.net(torch.randn(len(real), 8))
            ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)
            second.zero_grad()
            judged = loss(self.critic(real), ones) + loss(self.critic(fake.detach()), zeros)
            self.manual_backward(judged)
            second.step()
            first.zero_grad()
            self.manual_backward(loss(self.critic(fake), ones))
            first.step()

        def configure_optimizers(self) -> Any:
            return [
                torch.optim.Adam(self.net.parameters(), 2e-4, betas=(0.5, 0.999)),
                torch.optim.Adam(self.critic.parameters(), 2e-4, betas=(0.5, 0.999)),
            ]

    return Adversarial(), digit_loaders()[0]


@healthy
def noise_prediction() -> Arguments:
    """A diffusion model: what it predicts is drawn anew for each batch."""

    class Denoise(Unlabelled):
        def loss_of(self, x: Tensor) -> Tensor:
            time = torch.rand(len(x), 1)
            noise = torch.randn(len(x), 64)
            noisy = (1 - time).sqrt() * x.flatten(1) + time.sqrt() * noise
            return functional.mse_loss(self.net(torch.cat([noisy, time], dim=1)), noise)

    return Denoise(mlp(65, 128, 128, 64, activation=nn.SiLU)), digit_loaders()


@healthy
def coupling_flow() -> Arguments:
    """The last layer of each coupling is zero, and the loss may become negative."""

    class Flow(Unlabelled):
        def __init__(self) -> None:
            super().__init__(nn.ModuleList([mlp(5, 32, 10) for _ in range(4)]))
            for coupling in self.net:
                nn.init.zeros_(coupling[-1].weight)
                nn.init.zeros_(coupling[-1].bias)

        def loss_of(self, x: Tensor) -> Tensor:
            log_det = torch.zeros(len(x))
            for coupling in self.net:
                kept, moved = x.chunk(2, dim=1)
                scale, shift = coupling(kept).chunk(2, dim=1)
                scale = torch.tanh(scale)
                x = torch.cat([moved * scale.exp() + shift, kept], dim=1)
                log_det = log_det + scale.sum(1)
            return (0.5 * x.square().sum(1) - log_det).mean()

    return Flow(), split(diabetes()[0], torch.zeros(442))


@healthy
def contrastive_pairs() -> Arguments:
    """The other samples of the batch are the negatives."""

    class Contrast(Unlabelled):
        def loss_of(self, x: Tensor) -> Tensor:
            views = [self.net(x + 0.3 * torch.randn_like(x)) for _ in range(2)]
            a, b = (functional.normalize(view, dim=1) for view in views)
            return functional.cross_entropy(a @ b.T / 0.2, torch.arange(len(a)))

    return Contrast(cnn()), digit_loaders()


@healthy
def teacher_by_moving_average() -> Arguments:
    """The teacher has no gradients and is in no optimizer."""

    class Distil(Unlabelled):
        def __init__(self) -> None:
            super().__init__(mlp(64, 64, 16))
            self.teacher = mlp(64, 64, 16)
            self.teacher.load_state_dict(self.net.state_dict())
            self.teacher.requires_grad_(False)
            self.predictor = mlp(16, 32, 16)

        def loss_of(self, x: Tensor) -> Tensor:
            student = self.predictor(self.net(x + 0.1 * torch.randn_like(x)))
            with torch.no_grad():
                target = self.teacher(x + 0.1 * torch.randn_like(x))
            return -functional.cosine_similarity(student, target, dim=1).mean()

        def on_train_batch_end(self, *args: Any) -> None:
            with torch.no_grad():
                for own, other in zip(
                    self.teacher.parameters(), self.net.parameters(), strict=True
                ):
                    own.lerp_(other, 0.01)

    return Distil(), digit_loaders()


@healthy
def policy_gradient() -> Arguments:
    """A reward times a log-probability: the loss has any sign, and no target."""

    class Bandit(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            choices = torch.distributions.Categorical(logits=self.net(x))
            drawn = choices.sample()
            reward = (drawn == y).float() - 0.1
            return -(choices.log_prob(drawn) * reward).mean()

    return Bandit(mlp(64, 64, 10)), digit_loaders()


@healthy
def segmentation() -> Arguments:
    """A class for each pixel, a Dice loss beside cross entropy."""

    class Segment(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            logits = self.net(x)
            shares = logits.softmax(dim=1)
            wanted = functional.one_hot(y, 2).movedim(-1, 1)
            common = (shares * wanted).sum((0, 2, 3))
            dice = 2 * common / (shares + wanted).sum((0, 2, 3))
            return functional.cross_entropy(logits, y) + 1 - dice.mean()

    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv2d(16, 2, 1)
    )
    images, _ = digits()
    noisy = images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return Segment(net), split(noisy, (images[:, 0] > 0.5).long())
