"""Generative models that train well."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.programs import digit_loaders, digits, mlp, split
from tests.callbacks.faulty_fits import Fit
from tests.callbacks.healthy.declared import Manual, Metric, Own, fits_well, squared_error


def adam(lr: float) -> Any:
    return partial(torch.optim.Adam, lr=lr)


@fits_well(below=0.35, full=True)
def autoencoder() -> tuple[Fit, Metric]:
    class Reconstruct(Own):
        def loss_of(self, batch: Any) -> Tensor:
            return functional.mse_loss(self.net(batch[0]), batch[0].flatten(1))

    net, (x, _) = mlp(64, 64, 8, 64, 64), digits()
    module = Reconstruct(net, optimizer=adam(3e-3))
    return Fit(module, *digit_loaders(), steps=250), lambda: squared_error(net, x, x.flatten(1))


@fits_well(below=0.6)
def variational_autoencoder() -> tuple[Fit, Metric]:
    """The divergence gets its weight little by little, so that the loss rises for a while."""

    class Variational(Own):
        def __init__(self) -> None:
            super().__init__(mlp(64, 64, 16), optimizer=adam(3e-3))
            self.decoder = mlp(8, 64, 64)

        def loss_of(self, batch: Any) -> Any:
            mean, log_variance = self.net(batch[0]).chunk(2, dim=1)
            code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
            error = functional.mse_loss(self.decoder(code), batch[0].flatten(1), reduction="sum")
            divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum()
            weight = min(1.0, self.global_step / 200)
            return (error + weight * divergence) / len(mean)

    module, (x, _) = Variational(), digits()

    def metric() -> Any:
        rebuilt = module.decoder(module.net(x)[:, :8])
        return (rebuilt - x.flatten(1)).square().mean().item()

    return Fit(module, *digit_loaders(), steps=300), metric


class Quantised(Own):
    """An autoencoder whose codes are the nearest of a codebook.

    Args:
        is_averaged: Whether the codebook is a moving average, in buffers, rather than learned.
    """

    def __init__(self, *, is_averaged: bool) -> None:
        super().__init__(mlp(64, 64, 16), optimizer=adam(3e-3))
        self.decoder = mlp(16, 64, 64)
        self.is_averaged = is_averaged
        self.counts: Tensor
        self.sums: Tensor
        book = 0.3 * torch.randn(32, 4)
        if is_averaged:
            self.register_buffer("book", book)
            self.register_buffer("counts", torch.ones(32))
            self.register_buffer("sums", book.clone())
        else:
            self.book = nn.Parameter(book)

    def rebuilt(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output, the codes and their nearest ones."""
        z = self.net(x).reshape(-1, 4)
        place = torch.cdist(z, self.book).argmin(1)
        near = self.book[place]
        if self.is_averaged and self.training:
            self.follow(z.detach(), place)
        passed = z + (near - z).detach()
        return self.decoder(passed.reshape(len(x), 16)), z, near

    @torch.no_grad()
    def follow(self, z: Tensor, place: Tensor) -> None:
        hot = functional.one_hot(place, 32).float()
        self.counts.lerp_(hot.sum(0), 0.05)
        self.sums.lerp_(hot.T @ z, 0.05)
        self.book.copy_(self.sums / self.counts.clamp_min(1e-3)[:, None])

    def loss_of(self, batch: Any) -> Tensor:
        out, z, near = self.rebuilt(batch[0])
        loss = functional.mse_loss(out, batch[0].flatten(1))
        loss = loss + 0.25 * functional.mse_loss(z, near.detach())
        return loss if self.is_averaged else loss + functional.mse_loss(near, z.detach())


def quantised(module: Quantised) -> tuple[Fit, Metric]:
    x, _ = digits()

    @torch.no_grad()
    def metric() -> float:
        module.eval()
        return (module.rebuilt(x)[0] - x.flatten(1)).square().mean().item()

    return Fit(module, *digit_loaders(), steps=300), metric


@fits_well(below=0.65)
def codebook_that_is_learned() -> tuple[Fit, Metric]:
    return quantised(Quantised(is_averaged=False))


@fits_well(below=0.65)
def codebook_that_is_a_moving_average() -> tuple[Fit, Metric]:
    return quantised(Quantised(is_averaged=True))


def ring(number: int) -> Tensor:
    """Return points near a circle of radius two."""
    angle = 2 * math.pi * torch.rand(number, generator=torch.Generator().manual_seed(0))
    points = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    return points + 0.1 * torch.randn(number, 2, generator=torch.Generator().manual_seed(1))


def off_the_ring(points: Tensor) -> float:
    """Return the mean distance from the circle, or 9 if the points aren't all around it."""
    angle = torch.atan2(points[:, 1], points[:, 0])
    used = torch.histc(angle, 8, -math.pi, math.pi) > 0.02 * len(points)
    return (points.norm(dim=1) - 2).abs().mean().item() if used.all() else 9.0


class Adversarial(Manual):
    """A generator and a discriminator, or a critic with a penalty of its slope."""

    def __init__(self, *, wasserstein: bool, rate: float) -> None:
        super().__init__(mlp(2, 64, 64, 2))
        self.critic = mlp(2, 64, 64, 1, activation=nn.LeakyReLU)
        self.wasserstein, self.rate = wasserstein, rate

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        real = batch[0]
        optimizers: Any = self.optimizers()
        own, other = optimizers
        fake = self.net(torch.randn(len(real), 2))
        if not self.wasserstein:
            loss = functional.binary_cross_entropy_with_logits
            ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)
            judged = loss(self.critic(real), ones) + loss(self.critic(fake.detach()), zeros)
            self.step(other, judged)
            self.step(own, loss(self.critic(fake), ones))
            return
        share = torch.rand(len(real), 1)
        mixed = (share * real + (1 - share) * fake).detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(mixed).sum(), mixed, create_graph=True)
        penalty = (slope.norm(dim=1) - 1).square().mean()
        self.step(other, self.critic(fake.detach()).mean() - self.critic(real).mean() + 5 * penalty)
        if batch_idx % 3 == 0:
            self.step(own, -self.critic(fake).mean())

    def configure_optimizers(self) -> Any:
        betas = (0.0, 0.9) if self.wasserstein else (0.5, 0.999)
        return [
            torch.optim.Adam(part.parameters(), self.rate, betas=betas)
            for part in (self.net, self.critic)
        ]


def adversarial(module: Adversarial, steps: int) -> tuple[Fit, Metric]:
    x = ring(2048)

    @torch.no_grad()
    def metric() -> float:
        return off_the_ring(module.net(torch.randn(1000, 2)))

    return Fit(module, split(x, torch.zeros(2048), batch_size=128)[0], steps=steps), metric


@fits_well(below=0.4, full=True)
def adversarial_networks() -> tuple[Fit, Metric]:
    return adversarial(Adversarial(wasserstein=False, rate=1e-3), 1600)


@fits_well(below=0.4, full=True)
def critic_with_a_penalty_of_its_slope() -> tuple[Fit, Metric]:
    return adversarial(Adversarial(wasserstein=True, rate=2e-3), 1200)


class Couplings(nn.Module):
    """Six affine couplings, which begin as the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([mlp(1, 48, 48, 2) for _ in range(6)])
        for part in self.parts:
            nn.init.zeros_(part.get_parameter("5.weight"))
            nn.init.zeros_(part.get_parameter("5.bias"))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = torch.zeros(len(x))
        for part in self.parts:
            kept, moved = x.chunk(2, dim=1)
            scale, shift = part(kept).chunk(2, dim=1)
            scale = torch.tanh(scale)
            x = torch.cat([moved * scale.exp() + shift, kept], dim=1)
            log_det = log_det + scale.sum(1)
        return x, log_det


@fits_well(below=2.4, full=True)
def coupling_flow() -> tuple[Fit, Metric]:
    class Likelihood(Own):
        def loss_of(self, batch: Any) -> Any:
            z, log_det = self.net(batch[0])
            return (0.5 * z.square().sum(1) + math.log(2 * math.pi) - log_det).mean()

    x = ring(2048)
    module = Likelihood(Couplings(), optimizer=adam(3e-3))

    @torch.no_grad()
    def metric() -> Any:
        return module.loss_of([x]).item()

    return Fit(module, *split(x, x[:, 0], batch_size=128), steps=300), metric


@fits_well(below=0.6)
def noise_prediction() -> tuple[Fit, Metric]:
    """A diffusion model: noise and its strength are drawn anew for each batch."""
    x = ring(2048)
    net = mlp(3, 64, 64, 2, activation=nn.SiLU)

    def noised(points: Tensor, time: Tensor, noise: Tensor) -> Tensor:
        return torch.cat([(1 - time).sqrt() * points + time.sqrt() * noise, time], 1)

    class Denoise(Own):
        def loss_of(self, batch: Any) -> Tensor:
            time, noise = torch.rand(len(batch[0]), 1), torch.randn_like(batch[0])
            return functional.mse_loss(self.net(noised(batch[0], time, noise)), noise)

    module = Denoise(net, optimizer=adam(3e-3))

    @torch.no_grad()
    def metric() -> float:
        torch.manual_seed(1)
        return module.loss_of([x]).item()

    return Fit(module, *split(x, x[:, 0], batch_size=128), steps=300), metric


@fits_well(below=0.2, full=True)
def score_by_denoising() -> tuple[Fit, Metric]:
    """The target grows as the noise gets small: noise of a hundredth to one."""
    x = ring(2048)
    net = mlp(3, 64, 64, 2, activation=nn.Tanh)

    class Score(Own):
        def loss_of(self, batch: Any) -> Any:
            scale = 10 ** (-1.3 * torch.rand(len(batch[0]), 1))
            noise = torch.randn_like(batch[0])
            found = self.net(torch.cat([batch[0] + scale * noise, scale.log()], 1)) / scale
            return 0.5 * (scale * found + noise).square().sum(1).mean()

    @torch.no_grad()
    def metric() -> Any:
        """Return the mean distance from the circle after steps along the score."""
        points = 2 * torch.randn(1000, 2)
        for scale in torch.logspace(0, -1.3, 40)[:, None]:
            every = scale.expand(1000, 1)
            points = points + 0.3 * scale * net(torch.cat([points, every.log()], 1))
        return (points.norm(dim=1) - 2).abs().mean().item()

    module = Score(net, optimizer=adam(3e-3))
    return Fit(module, *split(x, x[:, 0], batch_size=128), steps=400), metric
