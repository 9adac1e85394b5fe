"""Programs whose first steps raise an exception, and that keep graphs from step to step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from tests.advisor.programs import (
    Arguments,
    Task,
    diabetes_loaders,
    digit_loaders,
    digits,
    faulty,
    mlp,
    split,
)


def _right() -> Arguments:
    return Task(mlp(64, 64, 10)), digit_loaders()


class OwnStep(Task):
    """A task whose step is a function of the module, the inputs and the classes."""

    def __init__(
        self, step: Callable[["OwnStep", Tensor, Tensor], Tensor], net: nn.Module | None = None
    ) -> None:
        super().__init__(net or mlp(64, 64, 10))
        self.step = step
        self.kept: Any = None
        self.losses: list[Tensor] = []
        self.metrics: dict[str, list[Tensor]] = {"loss": []}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return self.step(self, x, y)


def _stepping(
    step: Callable[[OwnStep, Tensor, Tensor], Tensor], net: nn.Module | None = None
) -> Arguments:
    return OwnStep(step, net), digit_loaders()


@faulty("LP250", source="noise on a device that the machine doesn't have", mended=_right)
def tensors_on_a_fixed_device() -> Arguments:
    def step(module: OwnStep, x: Tensor, y: Tensor) -> Tensor:
        x = x + 0.1 * torch.randn(x.shape).to("cuda" if not torch.cuda.is_available() else "meta")
        return functional.cross_entropy(module.net(x), y)

    return _stepping(step)


@faulty("LP250", source="backward and step by hand, as in a loop of torch alone", mended=_right)
def backward_under_automatic_optimization() -> Arguments:
    def step(module: OwnStep, x: Tensor, y: Tensor) -> Tensor:
        optimizer: Any = module.optimizers()
        optimizer.zero_grad()
        loss = functional.cross_entropy(module.net(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss

    return _stepping(step)


@faulty("LP250", source="the features of the flattened images were counted wrongly", mended=_right)
def layer_of_another_width() -> Arguments:
    return Task(mlp(32, 64, 10)), digit_loaders()


@faulty("LP250", source="colour images were expected", mended=_right)
def convolution_of_other_channels() -> Arguments:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    return Task(net), digit_loaders()


@faulty("LP250", source="features in float64, as NumPy makes them", mended=_right)
def inputs_in_double_precision() -> Arguments:
    x, y = digits()
    return Task(mlp(64, 10)), split(x.double(), y)


@faulty("LP250", source="a vocabulary whose tokens begin at 1", mended=_right)
def token_beyond_the_embedding() -> Arguments:
    x, y = digits()
    tokens = (x.flatten(1) > 0).long() + 1
    net = nn.Sequential(nn.Embedding(2, 8), nn.Flatten(), nn.Linear(512, 10))
    return Task(net), split(tokens, y)


@faulty("LP250", source="an output that is changed in place after its activation", mended=_right)
def value_changed_in_place() -> Arguments:
    def step(module: OwnStep, x: Tensor, y: Tensor) -> Tensor:
        h = torch.sigmoid(module.net(x))
        loss = functional.mse_loss(h, functional.one_hot(y, 10).float())
        h += 1
        return loss

    return _stepping(step)


def rate(parameters: Any) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, 1e-2)


class Stateful(Task):
    """Goes on from the state of the batch before.

    Args:
        keep: Function of the new state that returns what is kept.
    """

    def __init__(self, keep: Callable[[Any], Any]) -> None:
        super().__init__(nn.LSTM(8, 32, batch_first=True), optimizer=rate)
        self.head = nn.Linear(32, 10)
        self.keep = keep
        self.state: Any = None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        out, state = self.net(x.squeeze(1), self.state)
        self.state = self.keep(state)
        loss = functional.cross_entropy(self.head(out[:, -1]), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        out, _ = self.net(x.squeeze(1))
        self.log("val_loss", functional.cross_entropy(self.head(out[:, -1]), y))


def detached_state() -> Arguments:
    train, val = digit_loaders()
    loaders = DataLoader(train.dataset, 64, drop_last=True), val  # in order, as streams are
    return Stateful(lambda state: tuple(x.detach() for x in state)), loaders


@faulty("LP251", source="an LSTM's state that goes from batch to batch", mended=detached_state)
def state_with_its_graph() -> Arguments:
    return Stateful(lambda state: state), digit_loaders()


@faulty("LP251", source="a moving average of outputs that the loss draws to", mended=_right)
def average_with_its_graph() -> Arguments:
    def step(module: OwnStep, x: Tensor, y: Tensor) -> Tensor:
        out = module.net(x)
        mean = out.mean(0)
        module.kept = mean if module.kept is None else 0.9 * module.kept + 0.1 * mean
        return functional.cross_entropy(out, y) + 0.1 * module.kept.square().mean()

    return _stepping(step)


@faulty("LP252", source="losses of an epoch in a list")
def losses_in_a_list() -> Arguments:
    def step(module: OwnStep, x: Tensor, y: Tensor) -> Tensor:
        loss = functional.cross_entropy(module.net(x), y)
        module.losses.append(loss)
        return loss

    return _stepping(step)


@faulty("LP252", source="losses by name in a dict of lists")
def losses_in_a_dict() -> Arguments:
    def step(module: OwnStep, x: Tensor, y: Tensor) -> Tensor:
        loss = functional.cross_entropy(module.net(x), y)
        module.metrics["loss"].append(loss)
        return loss

    return _stepping(step)


@faulty("LP252", source="total_loss += loss, as in a loop of torch alone")
def sum_of_losses() -> Arguments:
    def step(module: OwnStep, x: Tensor, y: Tensor) -> Tensor:
        loss = functional.mse_loss(module.net(x), y)
        module.kept = loss if module.kept is None else module.kept + loss
        return loss

    return OwnStep(step, mlp(10, 32, 1)), diabetes_loaders()


class Memory:
    """An object of a plain class, as an agent or a cache is."""

    def __init__(self) -> None:
        self.state: Any = None
        self.losses: list[Any] = []


class Remembering(OwnStep):
    """A module that holds plain objects."""

    def __init__(self, step: Any) -> None:
        super().__init__(step)
        self.memory = Memory()
        self.memories = {"first": [Memory()]}


@faulty("LP251", source="the state of an agent, an object of a plain class", mended=_right)
def state_in_a_plain_object() -> Arguments:
    def step(module: Any, x: Tensor, y: Tensor) -> Tensor:
        out: Tensor = module.net(x)
        last, module.memory.state = module.memory.state, out.mean(0)
        drawn = 0.0 if last is None else 0.1 * (out.mean(0) - last).square().mean()
        return functional.cross_entropy(out, y) + drawn

    return Remembering(step), digit_loaders()


@faulty("LP251", source="states of layers in a dataclass within a list")
def state_in_a_dataclass_in_a_list() -> Arguments:
    @dataclass
    class State:
        hidden: Tensor | None = None

    def step(module: Any, x: Tensor, y: Tensor) -> Tensor:
        module.states = getattr(module, "states", [State()])
        out: Tensor = module.net(x)
        last = module.states[0].hidden
        out = out if last is None else out + 0.1 * last
        module.states[0].hidden = out.mean(0)
        return functional.cross_entropy(out, y)

    return Remembering(step), digit_loaders()


@faulty("LP252", source="losses in a history, an object of a plain class")
def losses_in_a_plain_object() -> Arguments:
    def step(module: Any, x: Tensor, y: Tensor) -> Tensor:
        loss = functional.cross_entropy(module.net(x), y)
        module.memory.losses.append(loss)
        return loss

    return Remembering(step), digit_loaders()


@faulty("LP252", source="a sum of losses in an object in a dict of lists")
def sum_of_losses_in_a_nested_object() -> Arguments:
    def step(module: Any, x: Tensor, y: Tensor) -> Tensor:
        loss = functional.cross_entropy(module.net(x), y)
        memory = module.memories["first"][0]
        memory.state = loss if memory.state is None else memory.state + loss
        return loss

    return Remembering(step), digit_loaders()
