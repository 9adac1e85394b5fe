"""Boxes in the wrong format, masks as indices, and averages without statistics."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import box_convert, generalized_box_iou_loss

from tests.advisor.programs import Arguments, Task, cnn, digit_loaders, faulty, split

_BOXES = "a detector that gave (cx, cy, w, h) to generalized_box_iou"
_EVENTS = "a library of survival models that indexed by the event"
_TEACHERS = "teachers of domain adaptation whose buffers weren't copied"


@cache
def boxes() -> tuple[Tensor, Tensor]:
    """Return pictures with a bright rectangle, and its centre and size as shares of 16 pixels."""
    generator = torch.Generator().manual_seed(0)
    size = 0.2 + 0.3 * torch.rand(320, 2, generator=generator)
    centre = size / 2 + torch.rand(320, 2, generator=generator) * (1 - size)
    places = (torch.arange(16) + 0.5) / 16
    near = (places - centre[..., None]).abs() < size[..., None] / 2
    pictures = near[:, None, 1, :, None] & near[:, None, 0, None, :]
    return pictures.float() * 2 - 0.3, torch.cat([centre, size], 1)


def detector(loss: Callable[[Tensor, Tensor], Tensor], form: str = "cxcywh") -> Arguments:
    """Return a program that predicts a box, with targets in this format."""
    pictures, targets = boxes()
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 4), nn.Sigmoid()
    )
    return Task(net, loss), split(pictures, box_convert(targets, "cxcywh", form))


def corners(form: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a loss of boxes in a format, which it turns into corners."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        both = [box_convert(each, form, "xyxy") for each in (x, y)]
        return generalized_box_iou_loss(*both, reduction="mean")

    return loss


@faulty("LP354", source=_BOXES, mended=lambda: detector(corners("cxcywh")))
def centres_for_corners() -> Arguments:
    return detector(lambda x, y: generalized_box_iou_loss(x, y, reduction="mean"))


def overlap(x: Tensor, y: Tensor) -> Tensor:
    """Return a loss of the overlap of corners, without torchvision."""
    low, high = torch.maximum(x[:, :2], y[:, :2]), torch.minimum(x[:, 2:], y[:, 2:])
    shared = (high - low).clamp(min=0).prod(1)
    areas = [(each[:, 2:] - each[:, :2]).prod(1) for each in (x, y)]
    return (1 - shared / (sum(areas) - shared).abs().clamp(min=1e-3)).mean()


@faulty("LP354", source="boxes of COCO, (x, y, w, h), in a loss of corners")
def sizes_for_corners_in_an_own_overlap() -> Arguments:
    def loss(x: Tensor, y: Tensor) -> Tensor:
        return overlap(x, y) + functional.l1_loss(x, y)

    return detector(loss, "xywh")


class Survival(LightningModule):
    """A model of hazards, whose loss is a function of risk, event and time."""

    def __init__(self, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))
        self.loss = loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, event, time = batch
        return self.loss(self.net(x)[:, 0], event, time)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-2)


def survival(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Arguments:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(320, 64, generator=generator)
    time = torch.rand(320, generator=generator) * torch.exp(-2 * x[:, 0])
    event = (torch.rand(320, generator=generator) < 0.6).long()
    return Survival(loss), split(x, event, time)[0]


def likelihoods(risk: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithms of the partial likelihoods by falling time, and their order."""
    order = time.argsort(descending=True)
    return risk[order] - risk[order].logcumsumexp(0), order


def _selected(risk: Tensor, event: Tensor, time: Tensor) -> Tensor:
    each, order = likelihoods(risk, time)
    return -each[event[order].bool()].mean()


@faulty("LP355", "net.3", source=_EVENTS, mended=lambda: survival(_selected))
def event_as_index() -> Arguments:
    def loss(risk: Tensor, event: Tensor, time: Tensor) -> Tensor:
        each, order = likelihoods(risk, time)
        return -each[event[order]].mean()

    return survival(loss)


@faulty("LP355", "net.3", source=_EVENTS)
def event_as_index_of_rows() -> Arguments:
    def loss(risk: Tensor, event: Tensor, time: Tensor) -> Tensor:
        errors = functional.mse_loss(risk, time.log(), reduction="none")
        return errors.index_select(0, event).mean()

    return survival(loss)


class Teacher(LightningModule):
    """A classifier whose validation is by a copy in eval mode, averaged after each step.

    Args:
        net: The network.
        average: Averages the weights of the copy, the first argument.
    """

    def __init__(self, net: nn.Module, average: Callable[[Any, Any], None]) -> None:
        super().__init__()
        self.net = net
        self.slow = copy.deepcopy(net).requires_grad_(False).eval()
        self.average = average

    def on_train_epoch_start(self) -> None:
        self.slow.eval()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self.net(x)
        with torch.no_grad():
            soft = self.slow(x).softmax(1)
        return functional.cross_entropy(logits, y) + functional.mse_loss(logits.softmax(1), soft)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.average(self.slow, self.net)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.cross_entropy(self.slow(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.net.parameters(), 1e-3)


@torch.no_grad()
def average_parameters(slow: nn.Module, net: nn.Module) -> None:
    for own, other in zip(slow.parameters(), net.parameters(), strict=True):
        own.lerp_(other, 0.05)


@faulty("LP527", "slow.1", "slow.4", source=_TEACHERS)
def teacher_without_statistics() -> Arguments:
    return Teacher(cnn(), average_parameters), digit_loaders()


@faulty("LP527", "slow.2", source=_TEACHERS)
def average_of_validation_without_statistics() -> Arguments:
    class Averaged(Teacher):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return functional.cross_entropy(self.net(batch[0]), batch[1])

    def average(slow: Any, net: Any) -> None:
        with torch.no_grad():
            theirs = dict(net.named_parameters())
            for name, own in slow.named_parameters():
                own.copy_(0.95 * own + 0.05 * theirs[name])

    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU())
    net.append(nn.Linear(32, 10))
    return Averaged(net, average), digit_loaders()
