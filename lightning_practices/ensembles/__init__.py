"""Ensembles: predictions of several models, or of one several times, and how far they agree."""

from lightning_practices.ensembles._ensemble import Ensemble
from lightning_practices.ensembles._monte_carlo_dropout import (
    MonteCarloPrediction,
    monte_carlo_dropout,
)

__all__ = ["Ensemble", "MonteCarloPrediction", "monte_carlo_dropout"]
