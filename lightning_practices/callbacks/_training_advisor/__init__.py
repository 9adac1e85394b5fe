"""Watching of a fit: what only training shows.

- ``training_advisor``: the callback, which decides when to look, and reports.
- ``schedule``: at which steps it looks.
- ``open_look``: one look: the measures of a step, read at its end.
- ``graph``, ``forward``: the graph of a loss, and activations, losses and batches.
- ``losses``, ``targets``: losses and those of their priors, and where their targets come from.
- ``weights``, ``zeroing``: gradients and weights around a step of an optimizer, and after it.
- ``not_finite``: where the first number that isn't finite was seen.
- ``readings``: numbers on a device, read at once.
- ``ranks``: looks of several ranks as one.
- ``since_start``: what has changed since the fit began, by ``modes``, ``unowned`` and ``outputs``.
- ``metrics``: logged values.
- ``waiting``: the time in which training waits for data.
- ``state``: looks and findings as primitives, for checkpoints.
"""

from lightning_practices.callbacks._training_advisor.training_advisor import TrainingAdvisor

__all__ = ["TrainingAdvisor"]
