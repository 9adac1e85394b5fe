"""Functions with an infinite derivative."""

from torch import Tensor
from torch.nn import functional

from tests.advisor.programs import Arguments, Task, digit_loaders, faulty, mlp


def _triplet(small: float) -> Arguments:
    """Return a program whose loss takes the distances of all pairs, each sample with itself too."""

    def loss(points: Tensor, y: Tensor) -> Tensor:
        squares = (points[:, None] - points[None]).square().sum(-1)
        distances = (squares + small).sqrt()
        same = (y[:, None] == y).float()
        return (same * distances + (1 - same) * functional.relu(3 - distances)).mean()

    return Task(mlp(64, 32, 8), loss), digit_loaders()


@faulty(
    "LP121", "net.1.weight", mended=lambda: _triplet(1e-8),
    source="questions about pairwise distances: nan from the second step on",
)  # fmt: skip
def distance_of_a_sample_to_itself() -> Arguments:
    return _triplet(0.0)


@faulty("LP121", source="a penalty of the distance to a copy, written with a power")
def distance_to_a_copy() -> Arguments:
    def loss(logits: Tensor, y: Tensor) -> Tensor:
        moved = (logits - logits.detach()).square().sum(1) ** 0.5
        return functional.cross_entropy(logits, y) + 0.1 * moved.mean()

    return Task(mlp(64, 32, 10), loss), digit_loaders()
