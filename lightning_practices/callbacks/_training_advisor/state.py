"""Looks and findings as primitives, for checkpoints."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lightning_practices.advisor import (
    ActivationLook,
    BatchLook,
    Finding,
    Look,
    LossLook,
    Norms,
    WeightLook,
)


def of_look(look: Look) -> dict[str, Any]:
    """Return a look as primitives."""
    return {
        "step": look.step,
        "weights": {name: list(one) for name, one in look.weights.items()},
        "activations": [_listed(one) for one in look.activations],
        "losses": [list(one) for one in look.losses],
        "batch": None if look.batch is None else _listed(look.batch),
        "norms": {place: list(one) for place, one in look.norms.items()},
        "is_whole": look.is_whole,
    }


def to_look(state: Mapping[str, Any]) -> Look:
    """Return the look of :func:`of_look`."""
    return Look(
        state["step"],
        {name: WeightLook(*one) for name, one in state["weights"].items()},
        [ActivationLook(*_tupled(one)) for one in state["activations"]],
        [LossLook(*one) for one in state["losses"]],
        None if state["batch"] is None else BatchLook(*_tupled(state["batch"])),
        {place: Norms(*one) for place, one in state["norms"].items()},
        state["is_whole"],
    )


def of_finding(finding: Finding) -> dict[str, Any]:
    """Return a finding as primitives."""
    return asdict(finding) | {"modules": list(finding.modules), "numbers": dict(finding.numbers)}


def to_finding(state: Mapping[str, Any]) -> Finding:
    """Return the finding of :func:`of_finding`."""
    return Finding(**{**state, "modules": tuple(state["modules"])})


def _listed(fields: tuple[Any, ...]) -> list[Any]:
    return [list(x) if isinstance(x, tuple) else x for x in fields]


def _tupled(fields: list[Any]) -> list[Any]:
    return [tuple(x) if isinstance(x, list) else x for x in fields]
