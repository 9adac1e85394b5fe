"""Run the clipping of a module's own ``configure_gradient_clipping`` while it is observed."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

_HOOK = "configure_gradient_clipping"
_LIBRARIES = ("lightning.", "pytorch_lightning.", "lightning_practices.mixins.")
_NORMS = (1e6, 1e7)  # of gradients that any threshold makes smaller
_SAME = 1e-3  # relative difference by rounding


class Twice(NamedTuple):
    """Two thresholds for the norm of the same gradients, in one hook.

    Attributes:
        own: The norm to which the hook clips by itself.
        given: That to which it clips by ``self.clip_gradients``.
    """

    own: float
    given: float


def let_clip(model: LightningModule, observer: Trainer, trainer: Trainer | None) -> list[Twice]:
    """Let a simplified copy clip as its class says, and return the list of what is clipped twice.

    Only a hook that the user has written runs. It gets the threshold of the user's Trainer. What it
    raises is left to the fit: until then the gradients stay as they are.

    Args:
        model: The copy.
        observer: The Trainer that runs it.
        trainer: The user's Trainer, or ``None``.

    Returns:
        A list that the hook fills while the steps run.
    """
    vars(model).pop("clip_gradients", None)  # manual optimization calls it
    twice: list[Twice] = []
    if not is_own_hook(model):
        return twice
    hook: Callable[..., None] = getattr(type(model), _HOOK).__get__(model)
    plan = trainer if trainer is not None and model.automatic_optimization else observer
    value, algorithm = plan.gradient_clip_val, plan.gradient_clip_algorithm
    known: set[int] = set()

    def clip(optimizer: Any, *args: Any, **kwargs: Any) -> None:
        own = observer.gradient_clip_val, observer.gradient_clip_algorithm
        observer.gradient_clip_val, observer.gradient_clip_algorithm = value, algorithm

        def run() -> None:
            hook(optimizer, gradient_clip_val=value, gradient_clip_algorithm=algorithm)

        try:
            run()
            if id(optimizer) not in known:
                known.add(id(optimizer))
                found = _clipped_twice(model, optimizer, run)
                twice.extend([] if found is None else [found])
        except Exception:  # of the user's code, which may not expect this Trainer
            pass
        finally:
            observer.gradient_clip_val, observer.gradient_clip_algorithm = own

    model.configure_gradient_clipping = clip  # type: ignore[method-assign]
    return twice


def is_own_hook(model: LightningModule) -> bool:
    """Return whether the class of a module has a clipping that no library has written."""
    return not getattr(type(model), _HOOK).__module__.startswith(_LIBRARIES)


def _clipped_twice(model: LightningModule, optimizer: Any, run: Callable[[], None]) -> Twice | None:
    """Return both thresholds of a hook that clips the norm of all gradients by two means.

    Each is a constant. Thresholds of parts, of single elements, or that follow the gradients are
    other practices, and may stand beside another one.
    """
    gradients = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
    norm = _norm(gradients)
    if any(x.is_sparse for x in gradients) or not 0 < norm < math.inf:
        return None
    given: list[float] = []

    def note(optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None,
             ) -> None:  # fmt: skip
        algorithm = gradient_clip_algorithm or model.trainer.gradient_clip_algorithm or "norm"
        threshold = gradient_clip_val or model.trainer.gradient_clip_val or 0.0
        if str(getattr(algorithm, "value", algorithm)).lower() == "norm" and threshold > 0:
            given.append(float(threshold))

    own = []
    with _kept(gradients):
        model.clip_gradients = note  # type: ignore[method-assign]
        try:
            before = [x.clone() for x in gradients]
            for size in _NORMS:
                for x, first in zip(gradients, before, strict=True):
                    x.copy_(first * (size / norm))
                run()
                own.append(_norm(gradients))
                if not _is_scaled(gradients, before):
                    return None
        finally:
            del vars(model)["clip_gradients"]
    is_constant = abs(own[0] - own[1]) <= _SAME * own[0] and own[0] < _NORMS[0] / 2
    return Twice(own[0], given[0]) if given and is_constant and own[0] > 0 else None


def _is_scaled(gradients: list[Tensor], before: list[Tensor]) -> bool:
    """Return whether all gradients are the same multiple of those before."""
    pairs = [
        (float(x.double().norm()), float(y.double().norm()))
        for x, y in zip(gradients, before, strict=True)
    ]
    factors = [x / y for x, y in pairs if y > 0]
    return max(factors) - min(factors) <= 10 * _SAME * max(factors)


def _norm(gradients: list[Tensor]) -> float:
    return math.hypot(*(float(torch.linalg.vector_norm(x.double())) for x in gradients))


@contextmanager
def _kept(gradients: list[Tensor]) -> Iterator[None]:
    """Restore gradients after the block."""
    saved = [x.clone() for x in gradients]
    try:
        yield
    finally:
        for x, first in zip(gradients, saved, strict=True):
            x.copy_(first)
