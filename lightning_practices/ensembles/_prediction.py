"""Mean and spread of several predictions for one batch."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_practices.ensembles._vote import Task


class MonteCarloPrediction(NamedTuple):
    """What several stochastic passes over a batch say together, in float32 or better.

    Attributes:
        mean: Over the passes: of the probabilities, of the outputs for ``"regression"``. Its shape
            is the output's.
        std: Standard deviation over the passes of the same, unbiased (divided by passes - 1).
        entropy: Of the mean probabilities, in nats: how uncertain the prediction is. ``None`` for
            ``"regression"``. Its shape is the output's, without the classes for ``"multiclass"``.
        mutual_information: The part of the entropy due to the weights, in nats, which more data
            would lower: 0 where all passes agree, however undecided each is. As the entropy.
    """

    mean: Tensor
    std: Tensor
    entropy: Tensor | None
    mutual_information: Tensor | None


class Summary:
    """Mean and variance over passes by Welford's updates, and the mean of their entropies."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.passes = 0
        self._mean = self._squares = self._entropy = torch.zeros(())

    def add(self, outputs: Tensor) -> None:
        """Count the passes in dimension 0."""
        for output in outputs.to(torch.promote_types(outputs.dtype, torch.float32)):
            values = self._probabilities(output)
            self.passes += 1
            delta = values - self._mean
            self._mean = self._mean + delta / self.passes
            self._squares = self._squares + delta * (values - self._mean)
            if self.task != "regression":
                self._entropy = self._entropy + _entropy(values)

    def result(self) -> MonteCarloPrediction:
        mean, std = self._mean, (self._squares / (self.passes - 1)).sqrt()
        if self.task == "regression":
            return MonteCarloPrediction(mean, std, None, None)
        entropy = _entropy(mean)
        information = (entropy - self._entropy / self.passes).clamp_min(0)  # but for rounding
        if self.task == "binary":
            mean, std = mean[:, 1], std[:, 1]
        return MonteCarloPrediction(mean, std, entropy, information)

    def _probabilities(self, output: Tensor) -> Tensor:
        if self.task == "multiclass":
            return output.softmax(1)
        if self.task == "binary":  # as two classes; 1 - p would lose what is small
            return torch.stack([-output, output], dim=1).sigmoid()
        return output


def _entropy(probabilities: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(probabilities).sum(1)  # 0 where a probability is
    return entropy
