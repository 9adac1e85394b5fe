"""Healthy programs whose outputs and losses come close to a fault."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tests.advisor.programs import (
    Arguments,
    Task,
    diabetes,
    diabetes_loaders,
    digit_loaders,
    digits,
    healthy,
    mlp,
    split,
)


class Custom(Task):
    """A task whose loss is a method of the batch."""

    def loss_of(self, batch: Any) -> Tensor:
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss_of(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss_of(batch))


class Mapped(nn.Module):
    """A network and a function of its output."""

    def __init__(self, body: nn.Module, function: Any) -> None:
        super().__init__()
        self.body = body
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.body(x))


def masks() -> Any:
    x, _ = digits()
    return split(x, (x[:, 0] > 0).long())


def convolutions(outputs: int, *after: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, outputs, 3, padding=1), *after
    )


@healthy
def rectifier_before_a_mean_over_positions() -> Arguments:
    """As in SqueezeNet."""
    return Task(convolutions(10, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())), digit_loaders()


@healthy
def two_channels_of_softmax_before_dice() -> Arguments:
    def dice(p: Tensor, y: Tensor) -> Tensor:
        labels = functional.one_hot(y, 2).movedim(-1, 1).float()
        both = (p * labels).sum(dim=(0, 2, 3))
        return 1 - (2 * both / (p.sum(dim=(0, 2, 3)) + labels.sum(dim=(0, 2, 3)))).mean()

    return Task(convolutions(2, nn.Softmax(dim=1)), dice), masks()


@healthy
def masked_binary_cross_entropy() -> Arguments:
    """Pixels with the label -1 don't count."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        each = functional.binary_cross_entropy_with_logits(z, y, reduction="none")
        known = (y >= 0).float()
        return (each * known).sum() / known.sum()

    x, _ = digits()
    target = (x > 0).float()
    target[:, :, ::3] = -1
    return Task(convolutions(1), loss), split(x, target)


@healthy
def clamped_sigmoid_and_binary_cross_entropy() -> Arguments:
    x, y = digits()
    net = Mapped(mlp(64, 32, 1), lambda z: z.sigmoid().clamp(1e-6, 1 - 1e-6).squeeze(1))
    return Task(net, nn.BCELoss()), split(x, (y % 2).float())


@healthy
def probability_of_any_of_several() -> Arguments:
    x, y = digits()
    net = Mapped(mlp(64, 32, 4), lambda z: 1 - (1 - (z - 1).sigmoid()).prod(1))
    return Task(net, nn.BCELoss()), split(x, (y % 2).float())


@healthy
def softmax_and_binary_cross_entropy_of_classes() -> Arguments:
    x, y = digits()
    net = nn.Sequential(mlp(64, 32, 10), nn.Softmax(1))
    return Task(net, nn.BCELoss()), split(x, functional.one_hot(y, 10).float())


@healthy
def mean_of_softmaxes_and_nll() -> Arguments:
    net = Mapped(mlp(64, 40), lambda z: z.view(-1, 4, 10).softmax(-1).mean(1))
    return Task(net, lambda p, y: functional.nll_loss(p.log(), y)), digit_loaders()


@healthy
def attention_over_the_rows_of_an_image() -> Arguments:
    """The last layer comes before the pooling, and the softmax is over dimension 1."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.values = nn.Linear(8, 10)
            self.scores = nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            rows = x[:, 0].transpose(0, 1)  # rows first
            weights = torch.softmax(self.scores(rows), dim=0)
            return (weights * self.values(rows)).sum(0)

    return Task(Pooled()), digit_loaders()


@healthy
def bags_of_instances_one_at_a_time() -> Arguments:
    """Multiple instance learning: a softmax over dimension 0, which is the batch's."""

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.values = mlp(64, 16, 2)
            self.scores = mlp(64, 16, 1)

        def forward(self, x: Tensor) -> Tensor:
            weights = self.scores(x).softmax(dim=0)
            return weights.T @ self.values(x)

    class Bags(Custom):
        def loss_of(self, batch: Any) -> Tensor:
            x, y = batch
            return functional.cross_entropy(self.net(x), (y == 0).any().long()[None])

    return Bags(Bag()), split(*digits(), batch_size=5)


@healthy
def attention_to_one_key() -> Arguments:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(64, 32, 10)

        def forward(self, x: Tensor) -> Tensor:
            z = self.body(x)[:, None]
            weights = (z @ z.transpose(1, 2)).softmax(-1)
            return functional.dropout(weights, 0.1, self.training).matmul(z)[:, 0]

    return Task(Attention()), digit_loaders()


@healthy
def images_and_labels_by_similarity() -> Arguments:
    """As in CLIP, in both directions, with a learnt temperature; one is written out."""

    class Pairs(Custom):
        def __init__(self) -> None:
            super().__init__(mlp(64, 32, 16))
            self.labels = nn.Linear(64, 16)
            self.scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

        def loss_of(self, batch: Any) -> Tensor:
            x, _ = batch
            a = functional.normalize(self.net(x + 0.1 * torch.randn_like(x)), dim=-1)
            b = functional.normalize(self.labels(x.flatten(1)), dim=-1)
            logits = self.scale.exp() * a @ b.T
            there = functional.cross_entropy(logits, torch.arange(len(x)))
            back = -functional.log_softmax(logits, dim=0).diagonal().mean()
            return (there + back) / 2

    return Pairs(), digit_loaders()


@healthy
def distillation_with_a_temperature() -> Arguments:
    class Distilled(Custom):
        def __init__(self) -> None:
            super().__init__(mlp(64, 32, 10))
            self.teacher = mlp(64, 32, 10).requires_grad_(False)

        def loss_of(self, batch: Any) -> Tensor:
            x, y = batch
            z = self.net(x)
            with torch.no_grad():
                soft = functional.softmax(self.teacher(x) / 4, dim=1)
            near = functional.kl_div(functional.log_softmax(z / 4, 1), soft, reduction="batchmean")
            return functional.cross_entropy(z, y, label_smoothing=0.1) + 16 * near

    return Distilled(), digit_loaders()


@healthy
def quantised_codes() -> Arguments:
    """VQ-VAE: argmin, detached terms of both kinds, and a straight-through estimator."""

    class Quantised(Custom):
        def __init__(self) -> None:
            super().__init__(mlp(64, 32, 8))
            self.codes = nn.Embedding(16, 8)
            self.decoder = mlp(8, 32, 64)

        def loss_of(self, batch: Any) -> Tensor:
            x = batch[0].flatten(1)
            z = self.net(x)
            q = self.codes(torch.cdist(z, self.codes.weight).argmin(1))
            out = self.decoder(z + (q - z).detach())
            near = functional.mse_loss(q, z.detach()) + 0.25 * functional.mse_loss(z, q.detach())
            return functional.mse_loss(out, x) + near

    return Quantised(), digit_loaders()


@healthy
def rounded_bits_by_straight_through() -> Arguments:
    def bits(z: Tensor) -> Tensor:
        p = z.sigmoid()
        return p + (p.round() - p).detach()

    x, y = digits()
    return Task(Mapped(mlp(64, 32, 10), bits), functional.mse_loss), split(
        x, functional.one_hot(y, 10).float()
    )


@healthy
def evidence_with_two_minuses() -> Arguments:
    """A likelihood with a minus, and its minus as the loss; sums over the pixels."""

    class Variational(Custom):
        def __init__(self) -> None:
            super().__init__(mlp(64, 32, 8))
            self.decoder = nn.Sequential(mlp(4, 32, 64), nn.Sigmoid())

        def loss_of(self, batch: Any) -> Tensor:
            x = (batch[0].flatten(1) > 0).float()
            mean, log_variance = self.net(x).chunk(2, dim=1)
            z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
            p = self.decoder(z)
            likelihood = -functional.binary_cross_entropy(p, x, reduction="sum") / len(x)
            divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1).mean()
            return -(likelihood - divergence)

    return Variational(), digit_loaders()


@healthy
def minimax_generator() -> Arguments:
    """The generator makes the discriminator's loss larger, under manual optimization."""

    class Minimax(Custom):
        automatic_optimization = False

        def __init__(self) -> None:
            super().__init__(mlp(8, 32, 64))
            self.judge = mlp(64, 32, 1, activation=nn.Tanh)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            generator, judge = self.optimizers()  # type: ignore[misc]
            real = batch[0].flatten(1)
            fake = self.net(torch.randn(len(real), 8))
            bce = functional.binary_cross_entropy_with_logits
            zeros, ones = torch.zeros(len(real), 1), torch.ones(len(real), 1)
            for_judge = bce(self.judge(real), ones) + bce(self.judge(fake.detach()), zeros)
            judge.zero_grad()
            self.manual_backward(for_judge)
            judge.step()
            for_generator = -bce(self.judge(fake), zeros)
            generator.zero_grad()
            self.manual_backward(for_generator)
            generator.step()

        def validation_step(self, batch: Any, batch_idx: int) -> None: ...

        def configure_optimizers(self) -> Any:
            return [torch.optim.Adam(m.parameters(), 1e-3) for m in (self.net, self.judge)]

    return Minimax(), digit_loaders()


@healthy
def critic_with_a_negative_loss() -> Arguments:
    class Critic(Custom):
        def loss_of(self, batch: Any) -> Tensor:
            real = batch[0].flatten(1)
            fake = real[:, torch.randperm(64)]
            return (self.net(fake) - self.net(real)).mean() + (self.net(real) ** 2).mean()

    return Critic(mlp(64, 32, 1)), digit_loaders()


@healthy
def noise_by_its_residual() -> Arguments:
    """The difference of input and output is the prediction."""

    class Denoised(Custom):
        def loss_of(self, batch: Any) -> Tensor:
            x, _ = batch
            noisy = x + 0.3 * torch.randn_like(x)
            return ((noisy - self.net(noisy) - x) ** 2).mean()

    return Denoised(convolutions(1)), digit_loaders()


@healthy
def outputs_scaled_to_targets_in_their_units() -> Arguments:
    x, y = diabetes()
    net = Mapped(mlp(10, 32, 1), lambda z: 152 + 77 * z)
    return Task(net, nn.MSELoss()), split(x, (152 + 77 * y)[:, None])


@healthy
def tanh_for_targets_that_it_reaches() -> Arguments:
    x, y = diabetes()
    net = Mapped(mlp(10, 32, 1), lambda z: 3 * torch.tanh(z / 3))
    return Task(net, nn.HuberLoss()), split(x, y[:, None].clamp(-2.9, 2.9))


@healthy
def rectifier_for_counts() -> Arguments:
    x, y = digits()
    net = nn.Sequential(mlp(64, 32, 1), nn.Softplus())
    return Task(net, nn.MSELoss()), split(x, y.float()[:, None])


@healthy
def all_pairs_of_samples_and_members() -> Arguments:
    """An ensemble's score: (N, M) predictions against (N, 1), and members against each other."""

    def score(p: Tensor, y: Tensor) -> Tensor:
        spread = (p[:, :, None] - p[:, None, :]).abs().mean()
        return (p - y).abs().mean() - 0.5 * spread

    return Task(mlp(10, 32, 8), score), diabetes_loaders()


@healthy
def ranks_as_cumulative_logits() -> Arguments:
    """Ordinal regression: nine binary outputs."""
    x, y = digits()
    return Task(mlp(64, 32, 9), functional.binary_cross_entropy_with_logits), split(
        x, (y[:, None] > torch.arange(9)).float()
    )


@healthy
def mixture_of_gaussians() -> Arguments:
    def loss(z: Tensor, y: Tensor) -> Tensor:
        weights, means, log_scales = z.chunk(3, dim=1)
        each = -0.5 * ((y - means) / log_scales.exp()) ** 2 - log_scales
        return -(weights.log_softmax(1) + each).logsumexp(1).mean()

    return Task(mlp(10, 32, 12), loss), diabetes_loaders()


@healthy
def several_exits() -> Arguments:
    """Deep supervision: a mean of stacked losses, in a dict."""

    class Exits(Custom):
        def __init__(self) -> None:
            super().__init__(mlp(64, 32, 32))
            self.exits = nn.ModuleList(nn.Linear(32, 10) for _ in range(3))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, y = batch
            z = self.net(x)
            losses = [functional.cross_entropy(head(z), y, reduction="none") for head in self.exits]
            return {"loss": torch.stack(losses).mean(), "hidden": z.detach()}

        def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    return Exits(), digit_loaders()


@healthy
def hinge_with_signed_targets() -> Arguments:
    x, y = digits()
    signs = (2.0 * (y % 2) - 1)[:, None]
    return Task(mlp(64, 32, 1), lambda z, t: (1 - z * t).clamp(min=0).mean()), split(x, signs)


@healthy
def triplets_of_one_class() -> Arguments:
    class Triplets(Custom):
        def loss_of(self, batch: Any) -> Tensor:
            x, _ = batch
            z = self.net(x + 0.1 * torch.randn_like(x))
            return functional.triplet_margin_loss(self.net(x), z, z.roll(1, 0), margin=0.5)

    return Triplets(mlp(64, 32, 8)), digit_loaders()


@healthy
def sigmoid_of_an_own_autograd_function() -> Arguments:
    """What it computes can't be told from the functions within."""

    class Logits(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
            return torch.logit(torch.sigmoid(x)).relu() - torch.logit(torch.sigmoid(-x)).relu()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
            return grad

    return Task(Mapped(mlp(64, 32, 10), Logits.apply)), digit_loaders()


@healthy
def checkpointed_layers() -> Arguments:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = mlp(64, 32, 32), mlp(32, 32, 10)

        def forward(self, x: Tensor) -> Any:
            hidden = torch.relu(self.first(x))
            return checkpoint(self.second, hidden, use_reentrant=True)

    return Task(Checkpointed()), digit_loaders()


@healthy
def weights_of_classes_and_ignored_labels() -> Arguments:
    x, y = digits()
    labels = torch.where(torch.arange(len(y)) % 3 == 0, -1, y)
    loss = nn.CrossEntropyLoss(torch.linspace(0.5, 2, 10), ignore_index=-1, reduction="sum")
    return Task(mlp(64, 32, 10), lambda z, t: loss(z, t) / len(t)), split(x, labels)


@healthy
def many_classes_of_which_few_are_seen() -> Arguments:
    return Task(mlp(64, 32, 200)), digit_loaders()


@healthy
def self_distillation_by_probabilities() -> Arguments:
    """As in DINO: the teacher's softmax is the target, and has no gradient."""

    class Dino(Custom):
        def __init__(self) -> None:
            super().__init__(mlp(64, 32, 16))
            self.teacher = mlp(64, 32, 16).requires_grad_(False)

        def loss_of(self, batch: Any) -> Tensor:
            x, _ = batch
            z = self.net(x + 0.1 * torch.randn_like(x))
            soft = (self.teacher(x) / 0.1).softmax(-1)
            return functional.cross_entropy(z / 0.5, soft)

    return Dino(), digit_loaders()


@healthy
def softmax_of_weights_between_experts() -> Arguments:
    """Gates have a softmax, and multiply the experts' logits after all layers."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = mlp(64, 4)
            self.experts = mlp(64, 40)

        def forward(self, x: Tensor) -> Tensor:
            weights = self.gate(x).softmax(-1)
            return torch.einsum("nk,nkc->nc", weights, self.experts(x).view(-1, 4, 10))

    return Task(Experts()), digit_loaders()


@healthy
def output_tied_to_an_embedding() -> Arguments:
    """The embedding's weights have a standard deviation of 1, and so the first loss is high."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(16, 32)
            self.body = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32))
            self.norm = nn.LayerNorm(32)
            self.head = nn.Linear(32, 16, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x: Tensor) -> Tensor:
            z = self.embedding(x)
            out: Tensor = self.head(self.norm(z + self.body(z)))
            return out

    codes = torch.arange(512)[:, None].add(torch.arange(9)).remainder(16)
    net = Tied()
    return Task(net, lambda z, t: functional.cross_entropy(z.flatten(0, 1), t.flatten())), split(
        codes[:, :-1], codes[:, 1:]
    )
