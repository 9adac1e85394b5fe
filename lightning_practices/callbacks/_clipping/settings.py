"""The arguments of gradient clipping."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from lightning_practices._arguments import (
    check_choice,
    check_flag,
    check_number,
    check_whole,
    shown,
)

ClippingAlgorithm = Literal["norm", "value", "adaptive"]
"""Clipping by norm, by value or by the ratio of the norms of gradients and weights."""


@dataclass(frozen=True)
class ClippingSettings:
    """The checked arguments of :class:`GradientClipping`.

    Raises:
        ValueError: If an argument is out of its range, or two contradict each other.
    """

    value: float | None = None
    algorithm: ClippingAlgorithm = "norm"
    groups: Mapping[str, float] = field(default_factory=dict)
    percentile: float | None = None
    warmup_steps: int = 0
    log_layers: str | None = None
    fused: bool = False

    def __post_init__(self) -> None:
        check_choice("algorithm", self.algorithm, get_args(ClippingAlgorithm))
        check_flag("fused", self.fused)
        if not isinstance(self.groups, Mapping) or any(not isinstance(k, str) for k in self.groups):
            raise TypeError(
                "groups has to be a dict of thresholds by patterns of names, but got"
                f" {shown(self.groups)}"
            )
        thresholds = {"value": self.value, **{f"groups[{k!r}]": v for k, v in self.groups.items()}}
        for name, threshold in thresholds.items():
            if threshold is not None:
                check_number(name, threshold, gt=0, finite=False)
        self._check_percentile()
        self._check_fused()
        unset = self.value is None and not self.groups
        if self.algorithm != "norm" and unset:
            raise ValueError(f"algorithm={self.algorithm!r} needs a value to clip by")
        check_whole("warmup_steps", self.warmup_steps, 0)
        self._check_log_layers()

    @property
    def has_threshold(self) -> bool:
        """Whether parameters that match no pattern of ``groups`` have a threshold."""
        return self.value is not None or self.percentile is not None

    @property
    def top_layers(self) -> int:
        """The number of layers whose norms are logged; 0 without ``log_layers``."""
        return int(self.log_layers.removeprefix("top")) if self.log_layers else 0

    def _check_fused(self) -> None:
        if not self.fused:
            return
        contradictions = {
            f"algorithm={self.algorithm!r}": self.algorithm != "norm",
            "groups": bool(self.groups),
            f"percentile={self.percentile}": self.percentile is not None,
        }
        for given, contradicts in contradictions.items():
            if contradicts:
                raise ValueError(
                    "fused=True lets the optimizer divide all its gradients by one number that"
                    f" comes from their norm and a value: leave out {given}, or fused"
                )

    def _check_log_layers(self) -> None:
        if self.log_layers is None:
            return
        message = (
            "log_layers has to be 'top' and a number of layers, as in 'top5', but got"
            f" {shown(self.log_layers)}"
        )
        if not isinstance(self.log_layers, str):
            raise TypeError(message)
        if not re.fullmatch(r"top[1-9]\d*", self.log_layers):
            raise ValueError(message)

    def _check_percentile(self) -> None:
        if self.percentile is None:
            return
        check_number("percentile", self.percentile, ge=0, le=100)
        if self.value is not None:
            raise ValueError(
                f"value={self.value} is a fixed threshold and percentile={self.percentile} one that"
                " follows the norms: give one of them"
            )
        if self.algorithm != "norm":
            raise ValueError(
                f"percentile needs algorithm='norm', but got {self.algorithm!r}: leave out one"
            )
