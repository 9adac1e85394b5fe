"""Programs that resemble weights over the batch, codes without gradient, and wrong signs."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn import functional
from torch.utils.data import DataLoader

from tests.advisor.faulty.widened import (
    Pooled,
    Sampled,
    by_rsample,
    labels_of_digits,
    log_likelihood,
    negative_log_likelihood,
    of_distributions,
    pooled_by_a_product,
    pooled_by_a_sum,
    pooled_by_einsum,
    reparametrised,
)
from tests.advisor.programs import (
    Arguments,
    Task,
    diabetes_loaders,
    digit_loaders,
    digits,
    healthy,
    mlp,
    split,
)

healthy(reparametrised)


@healthy
def weights_over_rows() -> Arguments:
    return Pooled(pooled_by_a_sum(1)), digit_loaders()


@healthy
def weights_over_rows_in_a_product() -> Arguments:
    return Pooled(pooled_by_a_product(1)), digit_loaders()


@healthy
def weights_over_rows_in_einsum() -> Arguments:
    return Pooled(pooled_by_einsum(1)), digit_loaders()


class Bags(Task):
    """Attends to the instances of a bag, which are the rows of its batch."""

    def __init__(self) -> None:
        super().__init__(mlp(64, 32))
        self.score, self.head = nn.Linear(32, 4), nn.Linear(128, 2)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        h = functional.relu(self.net(x))
        weights = self.score(h).softmax(dim=0)  # over the instances, for each of four heads
        pooled = (weights[:, :, None] * h[:, None]).sum(0)
        return functional.cross_entropy(self.head(pooled.flatten()[None]), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))


@healthy
def bags_of_instances() -> Arguments:
    x, y = digits()
    bags = [(x[i : i + 16], (y[i : i + 16] == 7).any().long()[None]) for i in range(0, 1600, 16)]
    train, val = bags[:80], bags[80:]
    loaders: Any = (
        DataLoader(train, batch_size=None, shuffle=True),  # type: ignore[arg-type]
        DataLoader(val, batch_size=None),  # type: ignore[arg-type]
    )
    return Bags(), loaders


class Slots(Task):
    """A soft mixture of experts: slots are means of the samples of a batch, by weights over it."""

    def __init__(self) -> None:
        super().__init__(mlp(64, 32))
        self.phi = nn.Parameter(torch.randn(32, 4) * 0.2)
        self.expert, self.head = nn.Linear(32, 32), nn.Linear(32, 10)

    def logits(self, x: Tensor) -> Tensor:
        h = functional.relu(self.net(x))[:, None].expand(-1, 6, -1)
        scores = h @ self.phi  # of six equal tokens of each sample
        slots = scores.softmax(1).transpose(1, 2) @ h
        out: Tensor = self.head((scores.softmax(2) @ self.expert(slots).relu()).mean(1))
        return out

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return functional.cross_entropy(self.logits(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.cross_entropy(self.logits(batch[0]), batch[1]))


@healthy
def soft_mixture_of_experts() -> Arguments:
    return Slots(), digit_loaders()


@healthy
def reparametrised_with_distributions() -> Arguments:
    return Sampled(by_rsample, of_distributions), digit_loaders()


class Scored(Task):
    """A discrete code that is trained by a score function, with a divergence from a uniform one."""

    def __init__(self) -> None:
        super().__init__(mlp(64, 32, 16))
        self.decoder = nn.Sequential(nn.Embedding(16, 32), nn.ReLU(), nn.Linear(32, 64))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0].flatten(1)
        code = Categorical(logits=self.net(x))
        z = code.sample()
        error = functional.mse_loss(self.decoder(z), x, reduction="none").mean(1)
        reward = -(error - error.mean()).detach()
        return error.mean() - (reward * code.log_prob(z)).mean() - 0.01 * code.entropy().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))


@healthy
def code_by_a_score_function() -> Arguments:
    return Scored(), digit_loaders()


@healthy
def negative_normal_likelihood() -> Arguments:
    return Task(mlp(10, 32, 2), negative_log_likelihood), diabetes_loaders()


@healthy
def maximised_likelihood() -> Arguments:
    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, 1e-3, maximize=True)

    return Task(mlp(10, 32, 2), log_likelihood, optimizer), diabetes_loaders()


@healthy
def negative_categorical_likelihood() -> Arguments:
    def loss(out: Tensor, y: Tensor) -> Tensor:
        return -Categorical(logits=out).log_prob(y).mean()

    return Task(mlp(64, 64, 10), loss), digit_loaders()


@healthy
def several_labels_and_sigmoids() -> Arguments:
    return Task(mlp(64, 64, 4), functional.binary_cross_entropy_with_logits), split(
        *labels_of_digits()
    )


@healthy
def shares_of_labels() -> Arguments:
    x, y = labels_of_digits()
    some = y.sum(1) > 0
    return Task(mlp(64, 64, 4)), split(x[some], (y / y.sum(1, keepdim=True))[some])


class Twins(Task):
    """Draws two noisy views of a sample together, and others apart."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0]
        views = [functional.normalize(self.net(x + 0.3 * torch.randn_like(x))) for _ in range(2)]
        labels = torch.arange(len(x), device=x.device)
        return functional.cross_entropy(views[0] @ views[1].T / 0.2, labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))


@healthy
def contrastive_in_large_batches() -> Arguments:
    return Twins(mlp(64, 64, 32)), digit_loaders(256)


class Denoiser(Task):
    """Predicts the noise that was added."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0].flatten(1)
        noise = torch.randn_like(x)
        return functional.mse_loss(self.net(x + noise), noise)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))


@healthy
def denoising_in_large_batches() -> Arguments:
    return Denoiser(mlp(64, 128, 64)), digit_loaders(256)


class LowRank(nn.Module):
    """A frozen layer with the product of two parameters beside it, written as matrices."""

    def __init__(self, layer: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, layer.in_features) / layer.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x: Tensor) -> Any:
        return self.layer(x) + 2 * (x @ self.a.T @ self.b.T)


@healthy
def lora_of_matrices() -> Arguments:
    net = nn.Sequential(
        nn.Flatten(), LowRank(nn.Linear(64, 64)), nn.ReLU(), LowRank(nn.Linear(64, 64)), nn.ReLU(),
        nn.Linear(64, 10),
    )  # fmt: skip
    return Task(net), digit_loaders()
