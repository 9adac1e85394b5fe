"""Outputs that don't fit their losses."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from tests.advisor.programs import (
    Arguments,
    Task,
    cnn,
    diabetes_loaders,
    digit_loaders,
    digits,
    faulty,
    mlp,
    split,
)


def _logits() -> Arguments:
    return Task(mlp(64, 64, 10)), digit_loaders()


def odd_loaders(*shape: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return images of digits and whether each is odd: floats of shape (N, *shape)."""
    x, y = digits()
    return split(x, (y % 2).float().reshape(-1, *shape))


def mask_loaders(scale: float = 1.0) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return noisy images of digits and masks of their ink, both (N, 1, 8, 8)."""
    x, _ = digits()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return split(x + 0.3 * noise, scale * (x > 0).float())


def odd(*after: nn.Module) -> nn.Sequential:
    return nn.Sequential(mlp(64, 32, 1), *after)


def masks(*after: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1), *after
    )


def _odd() -> Arguments:
    return Task(odd(), functional.binary_cross_entropy_with_logits), odd_loaders(1)


class Within(nn.Module):
    """A network and a function of its output."""

    def __init__(self, body: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body = body
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.body(x))


@faulty("LP201", "net.1", source="questions about a loss that stays near log(10)", mended=_logits)
def softmax_before_cross_entropy() -> Arguments:
    return Task(nn.Sequential(mlp(64, 64, 10), nn.Softmax(dim=1))), digit_loaders()


@faulty("LP201", "net", source="the same, as a function in the network's forward")
def softmax_function_and_view() -> Arguments:
    net = Within(cnn(), lambda x: functional.softmax(x, dim=-1).view(-1, 10).float())
    return Task(net, nn.CrossEntropyLoss()), digit_loaders()


@faulty("LP201", "net.3", source="the same, where the step calls softmax")
def softmax_in_the_step() -> Arguments:
    def loss(x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(input=torch.softmax(x, 1) + 1e-8, target=y)

    return Task(mlp(64, 64, 10), loss), digit_loaders()


@faulty("LP201", "net.1", source="a multi-class network made of a binary one")
def sigmoid_before_cross_entropy() -> Arguments:
    return Task(nn.Sequential(mlp(64, 64, 10), nn.Sigmoid())), digit_loaders()


@faulty("LP201", "net", source="softmax written out for lack of knowledge of the module")
def written_softmax_before_cross_entropy() -> Arguments:
    def softmax(x: Tensor) -> Tensor:
        e = torch.exp(x)
        return e / e.sum(dim=1, keepdim=True)

    return Task(Within(mlp(64, 64, 10), softmax)), digit_loaders()


@faulty("LP201", "net", source="an ensemble that averages probabilities of its members")
def mean_of_softmaxes_before_cross_entropy() -> Arguments:
    def mean(x: Tensor) -> Tensor:
        return x.view(-1, 4, 10).softmax(-1).mean(1)

    return Task(Within(mlp(64, 40), mean)), digit_loaders()


@faulty("LP201", "net.2", source="per-pixel classes, with Softmax2d")
def softmax2d_before_cross_entropy() -> Arguments:
    x, _ = digits()
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.Sequential(nn.ReLU(), nn.Conv2d(8, 3, 1)), nn.Softmax2d()
    )
    return Task(net), split(x, (x[:, 0] > 0).long() + (x[:, 0] > 1).long())


@faulty("LP202", "net.1", source="the pair of BCELoss and BCEWithLogitsLoss mixed up", mended=_odd)
def sigmoid_before_bce_with_logits() -> Arguments:
    return Task(odd(nn.Sigmoid()), nn.BCEWithLogitsLoss()), odd_loaders(1)


@faulty("LP202", "net.body.3", source="the same, in a submodule's forward and for segmentation")
def sigmoid_function_before_bce_with_logits() -> Arguments:
    net = Within(mlp(64, 32, 1), lambda x: x.sigmoid().clamp(1e-6, 1 - 1e-6).squeeze(1))
    return Task(net, functional.binary_cross_entropy_with_logits), odd_loaders()


@faulty("LP202", "net.1", source="softmax for several labels, with one-hot targets")
def softmax_before_bce_with_logits() -> Arguments:
    x, y = digits()
    net = nn.Sequential(mlp(64, 32, 10), nn.Softmax(1))
    return Task(net, nn.BCEWithLogitsLoss()), split(x, functional.one_hot(y, 10).float())


@faulty(
    "LP203",
    "net.0.3",
    source="RuntimeError: all elements of input should be between 0 and 1",
    mended=_odd,
)
def linear_before_bce() -> Arguments:
    return Task(odd(), nn.BCELoss()), odd_loaders(1)


@faulty("LP203", "net.0.3", source="the exception of BCELoss mended by a clamp")
def clamp_before_bce() -> Arguments:
    loss = lambda x, y: functional.binary_cross_entropy(torch.clamp(x, 0, 1), y)  # noqa: E731
    return Task(odd(), loss), odd_loaders(1)


@faulty("LP203", "net.1", source="ReLU as the last activation, as in the layers before")
def relu_before_bce() -> Arguments:
    return Task(odd(nn.ReLU()), lambda x, y: nn.BCELoss()(x.clamp(max=1), y)), odd_loaders(1)


@faulty("LP203", "net.1", source="tanh for a binary output")
def tanh_before_bce() -> Arguments:
    return Task(odd(nn.Tanh()), nn.BCELoss()), odd_loaders(1)


@faulty(
    "LP204",
    "net.1",
    also=("LP109",),
    source="accuracy of exactly the share of a class",
    mended=_odd,
)
def softmax_of_one_output() -> Arguments:
    return Task(odd(nn.Softmax(dim=1)), nn.BCELoss()), odd_loaders(1)


def dice(p: Tensor, y: Tensor) -> Tensor:
    both = (p * y).sum(dim=(1, 2, 3))
    return 1 - ((2 * both + 1) / (p.sum(dim=(1, 2, 3)) + y.sum(dim=(1, 2, 3)) + 1)).mean()


def _dice() -> Arguments:
    return Task(masks(nn.Sigmoid()), dice), mask_loaders()


@faulty(
    "LP204",
    "net.3",
    also=("LP109",),
    source="a Dice loss of one channel that doesn't move",
    mended=_dice,
)
def softmax_of_one_channel_before_dice() -> Arguments:
    return Task(masks(nn.Softmax(dim=1)), dice), mask_loaders()


@faulty("LP204", "net.2", also=("LP109",), source="the same, with the softmax within the loss")
def softmax_of_one_channel_within_dice() -> Arguments:
    return Task(masks(), lambda x, y: dice(functional.softmax(x, dim=1), y)), mask_loaders()


@faulty("LP205", "net.0.3", source="CrossEntropyLoss for one output: the loss is 0", mended=_odd)
def cross_entropy_of_one_output() -> Arguments:
    return Task(odd(), nn.CrossEntropyLoss()), odd_loaders(1)


@faulty("LP205", "net.body.3", source="the same, squeezed: samples are taken for classes")
def cross_entropy_over_the_batch() -> Arguments:
    net = Within(mlp(64, 32, 1), lambda x: x.squeeze())
    return Task(net, nn.CrossEntropyLoss()), odd_loaders()


@faulty(
    "LP205",
    "net.1.3",
    source="a softmax of one output, and class indices",
    also=("LP204", "LP109", "LP319"),
)
def nll_of_one_output() -> Arguments:
    x, y = digits()
    net = nn.Sequential(nn.Identity(), mlp(64, 32, 1))
    loss = lambda z, t: functional.nll_loss(functional.log_softmax(z, 1), t)  # noqa: E731
    return Task(net, loss), split(x, 0 * y)


def _nll() -> Arguments:
    return Task(nn.Sequential(mlp(64, 64, 10), nn.LogSoftmax(1)), functional.nll_loss), (
        digit_loaders()
    )


@faulty("LP206", "net.1", source="LogSoftmax(dim=0)", mended=_nll)
def log_softmax_over_the_batch() -> Arguments:
    net = nn.Sequential(mlp(64, 64, 10), nn.LogSoftmax(dim=0))
    return Task(net, nn.NLLLoss()), digit_loaders()


@faulty("LP206", "net.1", source="a softmax over positions of a sequence")
def log_softmax_over_the_positions() -> Arguments:
    x, y = digits()
    net = nn.Sequential(nn.Linear(8, 10), nn.LogSoftmax(dim=1))
    loss = lambda z, t: functional.nll_loss(z.flatten(0, 1), t.repeat_interleave(8))  # noqa: E731
    return Task(net, loss), split(x[:, 0], y)


@faulty("LP206", "net.1", source="a softmax over the batch before a squared error")
def softmax_over_the_batch_before_mse() -> Arguments:
    x, y = digits()
    net = nn.Sequential(mlp(64, 64, 10), nn.Softmax(dim=0))
    return Task(net, functional.mse_loss), split(x, functional.one_hot(y, 10).float())


@faulty("LP206", "net.body.3", source="a softmax of squeezed outputs")
def softmax_of_squeezed_outputs() -> Arguments:
    net = Within(mlp(64, 32, 1), lambda x: x.squeeze(1).softmax(dim=0))
    return Task(net, nn.BCELoss()), odd_loaders()


@faulty("LP207", "net.3", source="NLLLoss without LogSoftmax", mended=_logits)
def logits_before_nll() -> Arguments:
    return Task(mlp(64, 64, 10), nn.NLLLoss()), digit_loaders()


@faulty("LP207", "net.1", source="NLLLoss after Softmax: the loss goes to -1")
def probabilities_before_nll() -> Arguments:
    net = nn.Sequential(mlp(64, 64, 10), nn.Softmax(1))
    return Task(net, nn.NLLLoss()), digit_loaders()


def _distillation(function: Callable[[Tensor], Tensor], **options: Any) -> Arguments:
    x, y = digits()
    teacher = (3 * functional.one_hot(y, 10).float()).softmax(1)
    loss = nn.KLDivLoss(reduction="batchmean", **options)
    return Task(Within(mlp(64, 64, 10), function), loss), split(x, teacher)


def _kl() -> Arguments:
    return _distillation(lambda x: x.log_softmax(1))


@faulty("LP208", "net", source="KLDivLoss with two softmaxes", mended=_kl)
def probabilities_in_kl() -> Arguments:
    return _distillation(lambda x: x.softmax(1))


@faulty("LP208", "net.body.3", source="KLDivLoss with logits: negative values")
def logits_in_kl() -> Arguments:
    return _distillation(lambda x: x)


@faulty("LP208", "net", source="log_target=True for probabilities")
def probabilities_as_log_target() -> Arguments:
    return _distillation(lambda x: x.log_softmax(1), log_target=True)


@faulty("LP209", "net.1", source="Softmax, then LogSoftmax for NLLLoss", mended=_nll)
def softmax_then_log_softmax() -> Arguments:
    net = nn.Sequential(mlp(64, 64, 10), nn.Softmax(1), nn.LogSoftmax(1))
    return Task(net, nn.NLLLoss()), digit_loaders()


@faulty("LP209", "net.3", source="a Dice loss with a sigmoid, after a network with one")
def sigmoid_twice() -> Arguments:
    return Task(masks(nn.Sigmoid()), lambda p, y: dice(p.sigmoid(), y)), mask_loaders()


@faulty("LP209", "net.1", source="sigmoid in forward and in the step")
def sigmoid_twice_before_bce() -> Arguments:
    loss = lambda p, y: functional.binary_cross_entropy(torch.sigmoid(p), y)  # noqa: E731
    return Task(odd(nn.Sigmoid()), loss), odd_loaders(1)


@faulty("LP210", "net.1", source="ReLU after every layer, also the last", mended=_logits)
def relu_before_cross_entropy() -> Arguments:
    return Task(nn.Sequential(mlp(64, 64, 10), nn.ReLU())), digit_loaders()


@faulty("LP210", "net.1", source="the same for a binary output")
def relu_before_bce_with_logits() -> Arguments:
    return Task(odd(nn.ReLU(inplace=True)), nn.BCEWithLogitsLoss()), odd_loaders(1)


@faulty("LP210", "net", source="the same, where forward ends in F.relu, with log_softmax")
def relu_before_log_softmax() -> Arguments:
    net = Within(mlp(64, 64, 10), functional.relu)
    loss = lambda z, t: functional.nll_loss(z.log_softmax(1), t)  # noqa: E731
    return Task(net, loss), digit_loaders()


@faulty("LP210", "net.1", source="ReLU and then Sigmoid: no probability is below 0.5")
def relu_before_sigmoid() -> Arguments:
    return Task(odd(nn.ReLU(), nn.Sigmoid()), nn.BCELoss()), odd_loaders(1)


@faulty("LP211", "net.1", source="tanh after the last layer of a classifier")
def tanh_before_cross_entropy() -> Arguments:
    return Task(nn.Sequential(mlp(64, 64, 10), nn.Tanh())), digit_loaders()


def _regression(*after: nn.Module) -> Arguments:
    return Task(nn.Sequential(mlp(10, 32, 1), *after), functional.mse_loss), diabetes_loaders()


@faulty("LP214", "net.1", source="ReLU as output for standardised targets", mended=_regression)
def relu_for_standardised_targets() -> Arguments:
    return _regression(nn.ReLU())


@faulty("LP214", "net.1", source="sigmoid as output for standardised targets")
def sigmoid_for_standardised_targets() -> Arguments:
    return _regression(nn.Sigmoid())


@faulty("LP214", "net.1", source="tanh as output, with the loss written out")
def tanh_for_standardised_targets() -> Arguments:
    net = nn.Sequential(mlp(10, 32, 1), nn.Tanh())
    return Task(net, lambda p, y: ((y - p) ** 2).mean()), diabetes_loaders()


@faulty("LP214", "net.3", source="an autoencoder of standardised images with a sigmoid")
def sigmoid_decoder_of_standardised_images() -> Arguments:
    class Decoder(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return functional.mse_loss(self.net(batch[0]), batch[0])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    return Decoder(masks(nn.Sigmoid())), digit_loaders()


@faulty("LP214", "net.body.3", source="a scaled tanh that is too small, with an absolute error")
def scaled_tanh_for_wide_targets() -> Arguments:
    net = Within(mlp(10, 32, 1), lambda x: 1.2 * torch.tanh(x) + 0.1)
    return Task(net, nn.L1Loss()), diabetes_loaders()


@faulty("LP203", "net.0.3", source="binary cross entropy written out, for outputs of a layer")
def linear_before_written_bce() -> Arguments:
    def loss(z: Tensor, y: Tensor) -> Tensor:
        p = z.clamp(1e-7, 1 - 1e-7)
        return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()

    return Task(odd(), loss), odd_loaders(1)


@faulty(
    "LP210",
    "net.0.3",
    also=("LP503",),
    source="ReLU and dropout after the last layer, the first as a clamp",
)
def clamp_and_dropout_before_cross_entropy() -> Arguments:
    net = nn.Sequential(mlp(64, 64, 10), nn.Dropout(0.1))
    return Task(net, lambda x, y: functional.cross_entropy(x.clamp(min=0), y)), digit_loaders()


@faulty("LP214", "net.1", source="tanh as output, with a log-cosh loss")
def tanh_for_standardised_targets_and_log_cosh() -> Arguments:
    net = nn.Sequential(mlp(10, 32, 1), nn.Tanh())
    return Task(net, lambda p, y: torch.log(torch.cosh(p - y)).mean()), diabetes_loaders()
