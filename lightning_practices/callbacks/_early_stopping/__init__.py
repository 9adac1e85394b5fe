"""Early stopping, and training for the number of steps that it has found.

- ``early_stopping``: the callback that stops training, and restores the best weights.
- ``arguments``: its arguments, for one or several monitored values.
- ``patience``: the default patience, and a message if a patience is longer than the fit.
- ``validated``: the weights that were validated: the averages, if there are any.
- ``retrain_for``: the callback that trains on all data for that number of steps, and the function
  that joins two loaders.
"""

from lightning_practices.callbacks._early_stopping.early_stopping import EarlyStopping
from lightning_practices.callbacks._early_stopping.retrain_for import RetrainFor, join_loaders

__all__ = ["EarlyStopping", "RetrainFor", "join_loaders"]
