"""Penalties on the size of weights as a part of the module."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule
from typing_extensions import override

from lightning_practices._twin import reject_twin
from lightning_practices.callbacks import Penalty
from lightning_practices.optim._parameter_groups import KINDS


class PenaltyMixin(LightningModule):
    """Bring :class:`~lightning_practices.callbacks.Penalty` to every fit of the module.

    List it before the module it extends: ``class Net(PenaltyMixin, BaseNet)``. A
    ``configure_callbacks`` of yours has to extend what ``super().configure_callbacks()`` returns.
    It replaces a ``Penalty`` that was passed to the Trainer, and Lightning says so.

    Args:
        *args: Passed on.
        penalty_l1: Strength of L1.
        penalty_l2: Strength of L2.
        penalty_no_penalty: What to spare: ``"norm"``, ``"bias"``, ``"embedding"`` and patterns of
            names.
        penalty_proximal: Whether L1 acts after the step, and makes exact zeros.
        **kwargs: Passed on.

    Raises:
        ValueError: If a strength is negative or not finite.
        TypeError: On subclassing, if a base is from ``pytorch_lightning``.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        reject_twin(cls)

    def __init__(
        self,
        *args: Any,
        penalty_l1: float = 0.0,
        penalty_l2: float = 0.0,
        penalty_no_penalty: Sequence[str] = KINDS,
        penalty_proximal: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._penalty = Penalty(
            penalty_l1, penalty_l2, exclude=penalty_no_penalty, proximal=penalty_proximal
        )

    @override
    def configure_callbacks(self) -> list[Callback]:
        given = super().configure_callbacks()
        others = [given] if isinstance(given, Callback) else given
        if not (self._penalty.l1 or self._penalty.l2):
            return [*others]
        return [*others, self._penalty]  # one instance: Lightning asks again for each run
