"""Schedules: values that change in the course of training, in any training loop."""

from lightning_practices.schedules._drop_rate import DropRate, drop_rate_factor

__all__ = ["DropRate", "drop_rate_factor"]
