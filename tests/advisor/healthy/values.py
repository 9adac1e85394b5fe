"""Healthy value functions, and distances with a gradient on both sides that are no such ones."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.faulty.values import DISCOUNT, Values, q_learning, transitions
from tests.advisor.programs import Arguments, Task, digit_loaders, healthy, mlp


@healthy
def q_learning_with_a_target_network() -> Arguments:
    return Values(q_learning), transitions()


@healthy
def double_q_learning_without_a_target_network() -> Arguments:
    def step(module: Any, batch: Any) -> Tensor:
        state, action, reward, follows, is_over = batch
        with torch.no_grad():
            values = module.net(follows)
            after = values.gather(1, values.argmax(dim=1, keepdim=True)).squeeze(1)
        value = module.net(state).gather(1, action[:, None])[:, 0]
        return (reward + DISCOUNT * after * (1 - is_over) - value).square().mean()

    return Values(step), transitions()


@healthy
def potentials_of_two_states() -> Arguments:
    """A step of an integrator: the change of a potential is the reward, with both ends trained."""

    def step(module: Any, batch: Any) -> Tensor:
        state, _, reward, follows, _ = batch
        before, after = module.net(state)[:, 0], module.net(follows)[:, 0]
        return functional.mse_loss(after, before + 0.1 * reward)

    return Values(step, 1), transitions()


@healthy
def largest_of_several_predictions_with_an_offset() -> Arguments:
    """Two heads that agree: none is a value of a later state."""

    def step(module: Any, batch: Any) -> Tensor:
        state, _, reward, *_ = batch
        out = module.net(state)
        supervised = functional.mse_loss(out.mean(dim=1), reward)
        return supervised + 0.1 * functional.mse_loss(out[:, 0], 0.9 * out.amax(dim=1) + reward)

    return Values(step, 3), transitions()


@healthy
def embedding_with_two_names() -> Arguments:
    class Tied(Task):
        def __init__(self) -> None:
            super().__init__(mlp(64, 32, 10))
            self.backbone = self.net[1]

        def on_fit_start(self) -> None:
            self.net.load_state_dict(self.net.state_dict())

    return Tied(), digit_loaders()


@healthy
def one_encoder_for_both_views() -> Arguments:
    """SimSiam: the target encoder is the encoder, and the gradient stops."""

    class Siamese(Task):
        def __init__(self) -> None:
            super().__init__(mlp(64, 64, 32))
            self.target_encoder = self.net
            self.predictor = nn.Linear(32, 32)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x = batch[0]
            first, second = (x + 0.1 * torch.randn_like(x) for _ in range(2))
            with torch.no_grad():
                target = self.target_encoder(second)
            return -functional.cosine_similarity(self.predictor(self.net(first)), target).mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            pass

    return Siamese(), digit_loaders()
