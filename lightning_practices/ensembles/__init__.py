"""Ensembles: combine several predictions, of several models or of one, and measure their spread.

- ``_ensemble``: several models as one module.
- ``_monte_carlo_dropout``: several predictions of one model with dropout on.
- ``_prediction``: mean and spread of several predictions.
- ``_shared_masks``: dropout masks that all samples of a pass share.
- ``_vectorized``: run several models in one ``vmap``.
- ``_vote``: combine the outputs of several models.
"""

from lightning_practices.ensembles._ensemble import Ensemble
from lightning_practices.ensembles._monte_carlo_dropout import (
    MonteCarloDropout,
    monte_carlo_dropout,
)
from lightning_practices.ensembles._prediction import MonteCarloPrediction
from lightning_practices.ensembles._vote import Outputs, Task, Vote

__all__ = [
    "Ensemble",
    "MonteCarloDropout",
    "MonteCarloPrediction",
    "Outputs",
    "Task",
    "Vote",
    "monte_carlo_dropout",
]
