"""Averages of the weights: an exponential moving average, or stochastic weight averaging.

- ``weight_averaging``: the callback.
- ``tensors``: the averages, tensor by tensor, and the tensors of a module that are averaged.
- ``statistics``: the running statistics of batch norms for averaged weights.
- ``checks``: which arguments and Trainers are refused.
"""

from lightning_practices.callbacks._averaging.weight_averaging import AveragingKind, WeightAveraging

__all__ = ["AveragingKind", "WeightAveraging"]
