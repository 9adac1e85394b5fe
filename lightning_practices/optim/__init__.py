"""Optimizers: their parameter groups, and what comes before and after their steps."""

from lightning_practices.optim._clip_in_step import clip_in_step

__all__ = ["clip_in_step"]
