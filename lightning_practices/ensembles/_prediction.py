"""Mean and spread of several predictions for one batch."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_practices.ensembles._vote import Task


class MonteCarloPrediction(NamedTuple):
    """Mean and spread of several predictions for a batch, in float32 or float64.

    Attributes:
        mean: Mean over the passes: of the probabilities, or for ``"regression"`` of the outputs. It
            has the output's shape.
        std: Standard deviation over the passes of the same values, unbiased (divided by passes -
            1).
        entropy: Entropy of the mean probabilities, in nats: the uncertainty of the prediction. It
            has the output's shape, without the classes for ``"multiclass"``. ``None`` for
            ``"regression"``.
        mutual_information: The part of the entropy that is due to uncertain weights, in nats; more
            training data would lower it. It is 0 if all passes return the same probabilities,
            however uncertain these are. It has the entropy's shape. ``None`` for ``"regression"``.

    Example:
        >>> from lightning_practices.ensembles import monte_carlo_dropout
        >>> model = nn.Sequential(nn.Linear(4, 32), nn.Dropout(0.5), nn.Linear(32, 1))
        >>> prediction = monte_carlo_dropout(model, torch.randn(8, 4), task="regression")
        >>> prediction.mean.shape, prediction.std.shape, prediction.entropy
        (torch.Size([8, 1]), torch.Size([8, 1]), None)
    """

    mean: Tensor
    std: Tensor
    entropy: Tensor | None
    mutual_information: Tensor | None


class Summary:
    """Running mean and variance of passes (Welford's algorithm), and mean of their entropies."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.passes = 0
        self._mean = self._squares = self._entropy = torch.zeros(())

    def add(self, outputs: Tensor) -> None:
        """Add passes, stacked in dimension 0."""
        for output in outputs.to(torch.promote_types(outputs.dtype, torch.float32)):
            values = self._probabilities(output)
            self.passes += 1
            delta = values - self._mean
            self._mean = self._mean + delta / self.passes
            self._squares = self._squares + delta * (values - self._mean)
            if self.task != "regression":
                self._entropy = self._entropy + _entropy(values)

    def result(self) -> MonteCarloPrediction:
        """Return the mean and the spread of the passes that were added."""
        mean, std = self._mean, (self._squares / (self.passes - 1)).sqrt()
        if self.task == "regression":
            return MonteCarloPrediction(mean, std, None, None)
        entropy = _entropy(mean)
        # Rounding can make the difference slightly negative.
        information = (entropy - self._entropy / self.passes).clamp_min(0)
        if self.task == "binary":
            mean, std = mean[:, 1], std[:, 1]
        return MonteCarloPrediction(mean, std, entropy, information)

    def _probabilities(self, output: Tensor) -> Tensor:
        if self.task == "multiclass":
            return output.softmax(1)
        if self.task == "binary":  # two classes, since 1 - p would round small probabilities to 0
            return torch.stack([-output, output], dim=1).sigmoid()
        return output


def _entropy(probabilities: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(probabilities).sum(1)  # unlike p log p, `entr(0)` is 0
    return entropy
