"""Losses with a trivial minimum, and losses that contradict each other."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.programs import Arguments, Task, digit_loaders, faulty, mlp


class Views(Task):
    """Has a loss of two noisy views of an image."""

    def __init__(self) -> None:
        super().__init__(mlp(64, 64, 32))
        self.predictor = mlp(32, 16, 32)

    def of_views(self, a: Tensor, b: Tensor) -> Tensor:
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        a, b = (batch[0] + 0.1 * torch.randn_like(batch[0]) for _ in range(2))
        return self.of_views(a, b)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))


def stopped(self: Views, a: Tensor, b: Tensor) -> Tensor:
    z1, z2 = self.net(a), self.net(b)
    first = functional.cosine_similarity(self.predictor(z1), z2.detach(), dim=-1).mean()
    second = functional.cosine_similarity(self.predictor(z2), z1.detach(), dim=-1).mean()
    return -(first + second) * 0.5


def _stopped() -> Arguments:
    return type("SimSiam", (Views,), {"of_views": stopped})(), digit_loaders()


@faulty("LP133", "net.3", source="SimSiam without detach", mended=_stopped)
def no_stop_gradient() -> Arguments:
    class SimSiam(Views):
        def of_views(self, a: Tensor, b: Tensor) -> Tensor:
            z1, z2 = self.net(a), self.net(b)
            p1, p2 = self.predictor(z1), self.predictor(z2)
            criterion = nn.CosineSimilarity(dim=1)
            return -(criterion(p1, z2).mean() + criterion(p2, z1).mean()) * 0.5

    return SimSiam(), digit_loaders()


class Pull(Task):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0]
        one, other = self.net(x), self.net(x.flip(-1))
        return ((functional.normalize(one) - functional.normalize(other)) ** 2).sum(1).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))


@faulty("LP133", "net.3", source="views pulled together, without negatives")
def views_pulled_together() -> Arguments:
    return Pull(mlp(64, 64, 32)), digit_loaders()


def contrast(net: nn.Module, x: Tensor, masked: bool) -> Tensor:
    """Return the loss of SimCLR."""
    views = torch.cat([x, x + 0.1 * torch.randn_like(x)])
    z = functional.normalize(net(views), dim=1)
    similarity = z @ z.t() / 0.5
    if masked:
        similarity = similarity.masked_fill(torch.eye(len(z), dtype=torch.bool), -1e9)
    return functional.cross_entropy(similarity, torch.arange(len(z)).roll(len(x)))


class SimCLR(Task):
    masked = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return contrast(self.net, batch[0], self.masked)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))


def masked() -> Arguments:
    return type("SimCLR", (SimCLR,), {"masked": True})(mlp(64, 64, 32)), digit_loaders()


@faulty("LP246", "net.3", source="NT-Xent with the diagonal", mended=masked)
def similarities_with_their_diagonal() -> Arguments:
    return SimCLR(mlp(64, 64, 32)), digit_loaders()


@faulty("LP246", source="InfoNCE in numbers of a batch, with all pairs")
def all_pairs_as_logits() -> Arguments:
    class Info(SimCLR):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            a, b = self.net(batch[0]), self.net(0.9 * batch[0])
            z = torch.cat([a, b])
            logits = functional.cosine_similarity(z[:, None], z[None], dim=2) / 0.1
            n = len(a)
            labels = torch.cat([torch.arange(n) + n, torch.arange(n)])
            return nn.CrossEntropyLoss()(logits, labels)

    return Info(mlp(64, 64, 32)), digit_loaders()


class Adversarial(Task):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(mlp(8, 64, 64), nn.Tanh()))
        self.critic = mlp(64, 64, 1, activation=nn.LeakyReLU)


class Turns(Adversarial):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        found: Any = self.optimizers()
        g, d = found
        real = batch[0].flatten(1)
        fake = self.net(torch.randn(len(real), 8))
        loss = functional.binary_cross_entropy_with_logits
        ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)
        g.zero_grad()
        self.manual_backward(loss(self.critic(fake), ones))
        g.step()
        d.zero_grad()
        judged = loss(self.critic(fake.detach()), zeros)
        judged = judged + loss(self.critic(real), ones)
        self.manual_backward(judged)
        d.step()
        return judged.detach()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_score", self.critic(batch[0].flatten(1)).mean())

    def configure_optimizers(self) -> Any:
        parts = ((self.net, 2e-4), (self.critic, 1e-3))
        return [torch.optim.Adam(part.parameters(), lr) for part, lr in parts]


def turns() -> Arguments:
    return Turns(), digit_loaders()


@faulty("LP247", "critic.3", source="the losses of generator and critic, added up", mended=turns)
def losses_of_a_gan_added_up() -> Arguments:
    class Added(Adversarial):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            real = batch[0].flatten(1)
            fake = self.net(torch.randn(len(real), 8))
            loss = nn.BCEWithLogitsLoss()
            ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)
            d_loss = (loss(self.critic(real), ones) + loss(self.critic(fake), zeros)) / 2
            return d_loss + loss(self.critic(fake), ones)

    return Added(), digit_loaders()[0]


@faulty("LP247", source="least squares, one prediction for both losses")
def least_squares_of_a_gan_added_up() -> Arguments:
    class Added(Adversarial):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            real = batch[0].flatten(1)
            judged = self.critic(self.net(torch.randn(len(real), 8)))
            score = self.critic(real)
            g_loss = functional.mse_loss(judged, torch.ones_like(judged))
            d_loss = functional.mse_loss(judged, torch.zeros_like(judged))
            return g_loss + d_loss + functional.mse_loss(score, torch.ones_like(score))

    return Added(), digit_loaders()[0]
