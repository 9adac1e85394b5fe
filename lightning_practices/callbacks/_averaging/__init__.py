"""Averages of the weights: an exponential moving average, or stochastic weight averaging.

- ``weight_averaging``: the callback.
- ``decay``: the decay of the exponential moving average, and the share that the first weights keep.
- ``start``: the point at which averaging starts.
- ``changes``: whether a step has changed the weights since the last average.
- ``saved``: the averages and the weights under training in a checkpoint.
- ``tensors``: the tensors of a module that are averaged, and their averages.
- ``statistics``: recomputes the running statistics of batch norms for averaged weights.
- ``checks``: errors for wrong arguments and unsupported Trainers.
"""

from lightning_practices.callbacks._averaging.weight_averaging import AveragingKind, WeightAveraging

__all__ = ["AveragingKind", "WeightAveraging"]
