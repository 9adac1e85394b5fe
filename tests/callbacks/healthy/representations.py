"""Representations that are learned well without labels, or from pairs."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.programs import digit_loaders, digits, mlp
from tests.callbacks.faulty_fits import Fit
from tests.callbacks.healthy.declared import Metric, Own, fits_well


def adam(lr: float) -> Any:
    return partial(torch.optim.Adam, lr=lr)


@torch.no_grad()
def nearest(net: nn.Module) -> float:
    """Return the share of digits whose nearest other digit, by features, is of the same class."""
    x, y = digits()
    net.eval()
    z = functional.normalize(net(x))
    near = (z @ z.T).fill_diagonal_(-2).argmax(1)
    return (y[near] == y).float().mean().item()


def view(x: Tensor) -> Tensor:
    """Return images moved by a pixel at most, with noise."""
    top, left = torch.randint(-1, 2, (2,)).tolist()
    return x.roll((top, left), (-2, -1)) + 0.3 * torch.randn_like(x)


@fits_well(above=0.85)
def contrast_of_two_views() -> tuple[Fit, Metric]:
    class Contrast(Own):
        def __init__(self) -> None:
            super().__init__(mlp(64, 128, 64), optimizer=adam(3e-3))
            self.projection = mlp(64, 32, 16)

        def loss_of(self, batch: Any) -> Tensor:
            both = torch.cat([view(batch[0]), view(batch[0])])
            z = functional.normalize(self.projection(self.net(both)))
            alike = (z @ z.T / 0.2).masked_fill(torch.eye(len(z)).bool(), -torch.inf)
            return functional.cross_entropy(alike, torch.arange(len(z)).roll(len(z) // 2))

    module = Contrast()
    return Fit(module, *digit_loaders(), steps=150), lambda: nearest(module.net)


@fits_well(above=0.85)
def teacher_by_moving_average() -> tuple[Fit, Metric]:
    """BYOL: the target comes from a slow copy, so the loss rises before it falls."""

    def network() -> nn.Sequential:
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 32)
        )

    class Bootstrap(Own):
        def __init__(self) -> None:
            super().__init__(network(), optimizer=adam(2e-3))
            self.predictor = nn.Sequential(
                nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32)
            )
            self.teacher = network().requires_grad_(False)
            self.teacher.load_state_dict(self.net.state_dict())

        def loss_of(self, batch: Any) -> Tensor:
            a, b = view(batch[0]), view(batch[0])
            loss = torch.zeros(())
            for own, other in ((a, b), (b, a)):
                with torch.no_grad():
                    target = functional.normalize(self.teacher(other))
                out = functional.normalize(self.predictor(self.net(own)))
                loss = loss + functional.mse_loss(out, target, reduction="sum") / len(a)
            return loss

        def on_train_batch_end(self, *args: Any) -> None:
            with torch.no_grad():
                pairs = zip(self.teacher.parameters(), self.net.parameters(), strict=True)
                for slow, fast in pairs:
                    slow.lerp_(fast, 0.03)

    module = Bootstrap()
    return Fit(module, *digit_loaders(128), steps=200), lambda: nearest(module.net)


@fits_well(above=0.93, full=True)
def triplets() -> tuple[Fit, Metric]:
    """The hardest sample of another class in the batch is the negative."""

    class Triplets(Own):
        def loss_of(self, batch: Any) -> Tensor:
            x, y = batch
            z = functional.normalize(self.net(x))
            apart = (z[:, None] - z[None]).square().sum(-1)
            same = y[:, None] == y[None]
            far = apart.masked_fill(~same, -1.0).max(1).values
            near = apart.masked_fill(same, 9.0).min(1).values
            return functional.relu(far - near + 0.3).mean()

    module = Triplets(mlp(64, 64, 16), optimizer=adam(2e-3))
    return Fit(module, *digit_loaders(), steps=200), lambda: nearest(module.net)


@fits_well(above=0.8)
def halves_of_images_with_a_learned_temperature() -> tuple[Fit, Metric]:
    """As CLIP: two towers, and a scale that is learned as a logarithm."""

    class Towers(Own):
        def __init__(self) -> None:
            super().__init__(mlp(32, 64, 16), optimizer=adam(3e-3))
            self.other = mlp(32, 64, 16)
            self.scale = nn.Parameter(torch.tensor(2.6))

        def logits(self, x: Tensor) -> Tensor:
            a = functional.normalize(self.net(x[:, :, :4]))
            b = functional.normalize(self.other(x[:, :, 4:]))
            return self.scale.exp() * a @ b.T

        def loss_of(self, batch: Any) -> Tensor:
            logits, own = self.logits(batch[0]), torch.arange(len(batch[0]))
            return (
                functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)
            ) / 2

    module, (x, _) = Towers(), digits()

    @torch.no_grad()
    def metric() -> float:
        """Return how often the own half is among the best fifth of a hundred."""
        logits = module.logits(x[:100])
        return (
            (logits.argsort(1, descending=True)[:, :20] == torch.arange(100)[:, None])
            .any(1)
            .float()
            .mean()
            .item()
        )

    return Fit(module, *digit_loaders(), steps=250), metric


@fits_well(above=0.78, full=True)
def redundancy_is_reduced() -> tuple[Fit, Metric]:
    """Barlow twins: the loss is of a matrix of correlations."""

    class Twins(Own):
        def loss_of(self, batch: Any) -> Any:
            a, b = self.net(view(batch[0])), self.net(view(batch[0]))
            a, b = ((z - z.mean(0)) / (z.std(0) + 1e-5) for z in (a, b))
            c = a.T @ b / len(a)
            on = (c.diagonal() - 1).square().sum()
            off = c.square().sum() - c.diagonal().square().sum()
            return on + 0.02 * off

    module = Twins(mlp(64, 128, 32), optimizer=adam(2e-3))
    return Fit(module, *digit_loaders(128), steps=200), lambda: nearest(module.net)
