"""Policies whose advantage has a gradient."""

from torch import Tensor
from torch.nn import functional

from tests.advisor.healthy.advantages import Bandit, contexts
from tests.advisor.programs import Arguments, faulty


@faulty("LP153", "critic", source="an advantage that isn't detached")
def advantage_not_detached() -> Arguments:
    class Attached(Bandit):
        def losses(self, chosen: Tensor, values: Tensor, returns: Tensor) -> Tensor:
            advantage = returns - values
            return -(chosen * advantage).mean() + 0.5 * functional.mse_loss(values, returns)

    return Attached(), contexts()


@faulty("LP153", "critic", source="normalised advantages in the ratio of a proximal policy")
def ratio_times_normalised_advantage() -> Arguments:
    class Proximal(Bandit):
        def losses(self, chosen: Tensor, values: Tensor, returns: Tensor) -> Tensor:
            errors = returns - values
            advantage = (errors - errors.mean()) / (errors.std() + 1e-8)
            ratio = (chosen - chosen.detach()).exp()
            surrogate = (ratio * advantage).minimum(ratio.clamp(0.8, 1.2) * advantage)
            return -surrogate.mean() + 0.5 * errors.pow(2).mean()

    return Proximal(), contexts()
