"""Losses of wrong shapes, signs, targets and values."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from tests.advisor.faulty.outputs import Within, mask_loaders, masks, odd, odd_loaders
from tests.advisor.programs import (
    Arguments,
    Task,
    diabetes,
    diabetes_loaders,
    digit_loaders,
    digits,
    faulty,
    mlp,
    split,
)


class Named(TensorDataset):
    """Samples as dicts."""

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return {"features": x, "target": y}


def _flat() -> tuple[DataLoader[Any], DataLoader[Any]]:
    return split(*diabetes())


def _regression() -> Arguments:
    return Task(mlp(10, 32, 1), functional.mse_loss), diabetes_loaders()


BROADCAST = "UserWarning: Using a target size that is different to the input size"


@faulty("LP213", "net.3", source=BROADCAST, mended=_regression)
def mse_broadcasts() -> Arguments:
    return Task(mlp(10, 32, 1), nn.MSELoss()), _flat()


@faulty("LP213", "net.3", source="the same, written out, without a warning")
def written_mse_broadcasts() -> Arguments:
    return Task(mlp(10, 32, 1), lambda p, y: ((p - y) ** 2).mean()), _flat()


@faulty("LP213", "net.body.3", source="squeezed outputs and targets of shape (N, 1)")
def squeezed_outputs_broadcast() -> Arguments:
    net = Within(mlp(10, 32, 1), lambda x: x.squeeze(-1))
    return Task(net, lambda p, y: (y - p).abs().mean()), diabetes_loaders()


@faulty("LP213", "net.3", source="a loss that isn't torch's: log-cosh")
def log_cosh_broadcasts() -> Arguments:
    return Task(mlp(10, 32, 1), lambda p, y: torch.log(torch.cosh(p - y)).mean()), _flat()


@faulty("LP213", "net.1.3", source="binary cross entropy written out")
def written_bce_broadcasts() -> Arguments:
    def loss(z: Tensor, y: Tensor) -> Tensor:
        p = z.sigmoid()
        return -(y * torch.log(p + 1e-7) + (1 - y) * torch.log(1 - p + 1e-7)).mean()

    return Task(nn.Sequential(nn.Identity(), mlp(64, 32, 1)), loss), odd_loaders()


@faulty("LP213", "net.3", source="the same under manual optimization, with batches of dicts")
def huber_broadcasts_under_manual_optimization() -> Arguments:
    class Manual(Task):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            loss = functional.huber_loss(self.net(batch["features"]), batch["target"])
            self.manual_backward(loss)
            optimizer.step()
            return loss.detach()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log(
                "val_loss", functional.mse_loss(self.net(batch["features"])[:, 0], batch["target"])
            )

    x, y = diabetes()
    train, val = Named(x[:320], y[:320]), Named(x[320:], y[320:])
    return Manual(mlp(10, 32, 1)), (DataLoader(train, 64, shuffle=True), DataLoader(val, 64))


@faulty("LP213", "net.2", source="a discriminator of patches with targets of shape (N,)")
def outputs_of_images_broadcast() -> Arguments:
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Tanh(), nn.Conv2d(8, 1, 6))
    return Task(net, functional.mse_loss), odd_loaders()


def _masks() -> Arguments:
    return Task(masks(), functional.binary_cross_entropy_with_logits), mask_loaders()


@faulty(
    "LP215",
    "net.2",
    source="masks of 0 and 255: the loss is negative",
    mended=_masks,
)
def masks_of_255() -> Arguments:
    return Task(masks(), nn.BCEWithLogitsLoss()), mask_loaders(255.0)


@faulty("LP215", "net.0.3", source="labels of -1 and 1 for binary cross entropy")
def labels_of_minus_one() -> Arguments:
    x, y = digits()
    data = split(x, (2.0 * (y % 2) - 1)[:, None])
    return Task(odd(), functional.binary_cross_entropy_with_logits), data


@faulty("LP215", "net.0.3", source="labels of 1 and 2, and torch's exception")
def labels_of_two() -> Arguments:
    x, y = digits()
    data = split(x, (1.0 + y % 2)[:, None])
    return Task(odd(nn.Sigmoid()), nn.BCELoss()), data


def _wide() -> Arguments:
    return Task(mlp(64, 32, 11)), split(digits()[0], digits()[1] + 1)


@faulty("LP216", "net.3", source="IndexError: Target 10 is out of bounds", mended=_wide)
def classes_from_one() -> Arguments:
    return Task(mlp(64, 32, 10)), split(digits()[0], digits()[1] + 1)


@faulty("LP216", "net.3", source="expected scalar type Long but found Float")
def classes_as_floats() -> Arguments:
    return Task(mlp(64, 32, 10)), split(digits()[0], digits()[1].float())


@faulty("LP216", "net.3", source="0D or 1D target tensor expected, multi-target not supported")
def classes_in_a_column() -> Arguments:
    return Task(mlp(64, 32, 10)), split(digits()[0], digits()[1][:, None])


@faulty("LP216", "net.3", source="the same, for one-hot integers")
def one_hot_integers() -> Arguments:
    return Task(mlp(64, 32, 10)), split(digits()[0], functional.one_hot(digits()[1], 10))


def _signed() -> Arguments:
    x, y = digits()
    return Task(odd(), nn.SoftMarginLoss()), split(x, (2.0 * (y % 2) - 1)[:, None])


@faulty("LP217", "net.0.3", source="SoftMarginLoss with labels of 0 and 1", mended=_signed)
def soft_margin_of_zero_and_one() -> Arguments:
    return Task(odd(), nn.SoftMarginLoss()), odd_loaders(1)


@faulty("LP217", "net.3", source="CosineEmbeddingLoss with labels of 0 and 1")
def cosine_embedding_of_zero_and_one() -> Arguments:
    class Pairs(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            z = self.net(x)
            same = (y == y.roll(1)).float()
            return functional.cosine_embedding_loss(z, z.roll(1, 0), same, margin=0.3)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    return Pairs(mlp(64, 32, 8)), digit_loaders()


def _bce() -> Arguments:
    return Task(odd(nn.Sigmoid()), functional.binary_cross_entropy), odd_loaders(1)


@faulty("LP219", "net.0.3", source="the order of scikit-learn's metrics", mended=_bce)
def swapped_bce() -> Arguments:
    loss = lambda p, y: functional.binary_cross_entropy(y, p)  # noqa: E731
    return Task(odd(nn.Sigmoid()), loss), odd_loaders(1)


@faulty("LP219", "net.0.3", source="the same, for logits")
def swapped_bce_with_logits() -> Arguments:
    loss = lambda p, y: nn.BCEWithLogitsLoss()(y, p)  # noqa: E731
    return Task(odd(), loss), odd_loaders(1)


@faulty("LP220", "net.3", source="Karpathy's recipe: the loss at initialisation")
def logits_are_large() -> Arguments:
    net = mlp(64, 32, 10)
    nn.init.normal_(list(net.parameters())[-2], std=3.0)
    return Task(net), digit_loaders()


def _logits() -> Arguments:
    return Task(mlp(64, 64, 10)), digit_loaders()


@faulty("LP221", "net.3", source="a likelihood's sign, added to a loss that has it", mended=_logits)
def cross_entropy_is_maximised() -> Arguments:
    return Task(mlp(64, 64, 10), lambda p, y: -functional.cross_entropy(p, y)), digit_loaders()


@faulty("LP221", "net.3", source="a mean of log-probabilities without its minus")
def likelihood_is_minimised() -> Arguments:
    def loss(z: Tensor, y: Tensor) -> Tensor:
        return functional.log_softmax(z, dim=1).gather(1, y[:, None]).mean()

    return Task(mlp(64, 64, 10), loss), digit_loaders()


@faulty("LP221", "net.3", source="a class weight with a minus")
def negative_class_weights() -> Arguments:
    weight = torch.tensor([-3.0] * 5 + [1.0] * 5)
    loss = nn.CrossEntropyLoss(weight, reduction="sum")
    return Task(mlp(64, 64, 10), loss), digit_loaders()


@faulty("LP301", source="the logarithm of targets that are 0", mended=_regression)
def logarithm_of_zero() -> Arguments:
    x, y = digits()
    loss = lambda p, t: functional.mse_loss(p[:, 0], torch.log(t.float()))  # noqa: E731
    return Task(mlp(64, 32, 1), loss), split(x, y)


@faulty("LP222", "net.3", source="logarithm of a probability that is 0: nan", mended=_logits)
def entropy_of_zero() -> Arguments:
    def loss(z: Tensor, y: Tensor) -> Tensor:
        p = (1000 * z).softmax(1)
        return -(functional.one_hot(y, 10) * torch.log(p)).sum(1).mean()

    return Task(mlp(64, 32, 10), loss), digit_loaders()


@faulty("LP223", "net.3", source="raw targets: the network predicts a constant for long")
def targets_in_their_units() -> Arguments:
    x, y = diabetes()
    return Task(mlp(10, 32, 1), functional.mse_loss), split(x, 150 + 77 * y[:, None])


@faulty("LP223", "net.3", source="the same, written out in a step")
def written_targets_in_their_units() -> Arguments:
    x, y = diabetes()
    loss = lambda p, t: torch.mean(torch.square(t - p[:, 0]))  # noqa: E731
    return Task(mlp(10, 32, 1), loss), split(x, 30 * y)


@faulty(
    "LP225",
    "net.3",
    also=("LP103",),
    source="requires_grad_() after an exception of backward",
    mended=_logits,
)
def loss_asks_for_a_gradient() -> Arguments:
    def loss(p: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(p.detach(), y).requires_grad_()

    return Task(mlp(64, 64, 10), loss), digit_loaders()


@faulty("LP225", "net.3", source="a loss of numbers, made a tensor again")
def loss_of_numbers() -> Arguments:
    def loss(p: Tensor, y: Tensor) -> Tensor:
        return torch.tensor(functional.cross_entropy(p, y).item(), requires_grad=True)

    return Task(mlp(64, 64, 10), loss), digit_loaders()


@faulty(
    "LP225",
    "net.3",
    also=("LP103",),
    source="the class that argmax gives, compared with the target",
)
def loss_of_argmax() -> Arguments:
    def loss(p: Tensor, y: Tensor) -> Tensor:
        error = functional.mse_loss(p.argmax(1).float(), y.float())
        error.requires_grad = True
        return error

    return Task(mlp(64, 64, 10), loss), digit_loaders()


@faulty(
    "LP226", "net.0.3", also=("LP109",), source="predictions rounded before the loss", mended=_bce
)
def predictions_rounded_before_the_loss() -> Arguments:
    loss = lambda p, y: functional.mse_loss(p.round(), y)  # noqa: E731
    return Task(odd(nn.Sigmoid()), loss), odd_loaders(1)


@faulty("LP226", "net.3", source="a term of the classes that argmax gives")
def term_of_argmax() -> Arguments:
    def loss(p: Tensor, y: Tensor) -> Tensor:
        distance = functional.l1_loss(p.max(dim=1)[1].float(), y.float())
        return functional.cross_entropy(p, y) + 0.1 * distance

    return Task(mlp(64, 64, 10), loss), digit_loaders()


@faulty("LP227", "net.3", source="a term of the loss that doesn't fall")
def detached_term() -> Arguments:
    def loss(p: Tensor, y: Tensor) -> Tensor:
        labels = functional.one_hot(y, 10).float()
        return functional.cross_entropy(p, y) + functional.mse_loss(p.data.softmax(1), labels)

    return Task(mlp(64, 64, 10), loss), digit_loaders()


@faulty("LP254", "net.3", source="several labels and CrossEntropyLoss")
def several_labels() -> Arguments:
    x, y = digits()
    labels = functional.one_hot(y, 10) + functional.one_hot((y + 1) % 10, 10)
    return Task(mlp(64, 64, 10)), split(x, labels.float())


@faulty("LP218", "net.3", source="votes of annotators that aren't divided by their number")
def votes_for_classes() -> Arguments:
    x, y = digits()
    votes = 2 * functional.one_hot(y, 10) + functional.one_hot((y + 1) % 10, 10)
    return Task(mlp(64, 64, 10)), split(x, votes.float())


@faulty("LP212", "net.1", source="LogSoftmax and CrossEntropyLoss")
def log_softmax_before_cross_entropy() -> Arguments:
    return Task(nn.Sequential(mlp(64, 64, 10), nn.LogSoftmax(1))), digit_loaders()


@faulty("LP212", "net.1", source="the logarithm of a softmax")
def logarithm_of_softmax() -> Arguments:
    loss = lambda p, y: functional.nll_loss(p.log(), y)  # noqa: E731
    return Task(nn.Sequential(mlp(64, 64, 10), nn.Softmax(1)), loss), digit_loaders()


@faulty("LP224", "net.3", source="raw targets and an absolute error")
def targets_in_their_units_for_l1() -> Arguments:
    x, y = diabetes()
    return Task(mlp(10, 32, 1), nn.SmoothL1Loss()), split(x, 150 + 77 * y[:, None])


@faulty("LP229", "net.3", source="a learning rate that depends on the batch's size")
def summed_cross_entropy() -> Arguments:
    return Task(mlp(64, 64, 10), nn.CrossEntropyLoss(reduction="sum")), digit_loaders()


@faulty("LP229", "net.3", source="losses of samples that are added up")
def losses_of_samples_added_up() -> Arguments:
    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(logits, y, reduction="none").sum()

    return Task(mlp(64, 64, 10), loss), digit_loaders()


@faulty("LP229", source="a sum of squares, written out")
def sum_of_squares() -> Arguments:
    return Task(mlp(10, 32, 1), lambda p, y: ((p - y) ** 2).sum()), diabetes_loaders()


@faulty("LP228", source="requires_grad_() of all that a step gets")
def targets_with_gradient() -> Arguments:
    loss = lambda p, y: functional.mse_loss(p, y.requires_grad_())  # noqa: E731
    return Task(mlp(10, 32, 1), loss), diabetes_loaders()
