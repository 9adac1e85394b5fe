"""Value functions whose targets don't use the ends of episodes."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from tests.advisor.faulty.values import DISCOUNT, Values, transitions
from tests.advisor.programs import Arguments, faulty, mlp


class Named(Dataset[Any]):
    """Transitions in dicts; the last column has a name of its own."""

    def __init__(self, data: Any, last: str) -> None:
        self.data, self.last = data, last

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, place: int) -> Any:
        names = ("state", "action", "reward", "next_state", self.last)
        return dict(zip(names, self.data[place], strict=True))


def named(last: str) -> tuple[DataLoader[Any], DataLoader[Any]]:
    train, val = transitions()
    return (
        DataLoader(Named(train.dataset, last), 64, shuffle=True),
        DataLoader(Named(val.dataset, last), 64),
    )


def critic(module: Any, batch: Any) -> Tensor:
    """Return the loss of the values of states, for episodes that never end."""
    with torch.no_grad():
        after = module.target(batch["next_state"]).squeeze(1)
    error = batch["reward"] + DISCOUNT * after - module.net(batch["state"]).squeeze(1)
    return error.square().mean()


@faulty("LP137", "net.3", source="deep Q-learning that unpacks done and forgets it")
def best_value_after_done() -> Arguments:
    class Unpacked(Values):
        def __init__(self) -> None:
            super().__init__(None)  # type: ignore[arg-type]

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            state, action, reward, follows, _done = batch
            with torch.no_grad():
                best = self.target(follows).max(dim=1).values
            value = self.net(state).gather(1, action[:, None])[:, 0]
            return functional.smooth_l1_loss(value, reward + DISCOUNT * best)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    return Unpacked(), transitions()


@faulty("LP138", "net.3", source="deep Q-learning that forgets done")
def best_value_after_the_end() -> Arguments:
    def step(module: Any, batch: Any) -> Tensor:
        state, action, reward, follows, _ = batch
        with torch.no_grad():
            best = module.target(follows).max(dim=1).values
        value = module.net(state).gather(1, action[:, None])[:, 0]
        return functional.smooth_l1_loss(value, reward + DISCOUNT * best)

    return Values(step), transitions()


@faulty("LP137", "net.3", source="a critic that forgets terminal in a dict, squared by hand")
def value_after_the_end() -> Arguments:
    return Values(critic, 1), named("terminal")


@faulty("LP138", source="the smaller of two critics, detached")
def smaller_of_two_values_after_the_end() -> Arguments:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = mlp(4, 32, 2), mlp(4, 32, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.first(x), self.second(x)

    class Critics(Values):
        def __init__(self) -> None:
            super().__init__(step)
            self.net, self.target = Twins(), Twins()

    def step(module: Any, batch: Any) -> Tensor:
        state, action, reward, follows, _ = batch
        one, two = (x.gather(1, action[:, None]) for x in module.target(follows))
        target = (reward[:, None] + torch.min(one, two) * DISCOUNT).detach()
        first, second = (x.gather(1, action[:, None]) for x in module.net(state))
        return functional.mse_loss(first, target) + functional.mse_loss(second, target)

    return Critics(), transitions()
