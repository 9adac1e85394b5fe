"""The mixin that penalises large weights."""

from numbers import Real
from typing import Any

from lightning_practices.callbacks import Penalty
from lightning_practices.mixins._practice import PracticeMixin, configured


class PenaltyMixin(PracticeMixin):
    """Add :class:`~lightning_practices.callbacks.Penalty` to every fit of the module.

    List the mixin before the class that it extends: ``class Net(PenaltyMixin, BaseNet)``. If
    ``Net`` has its own ``configure_callbacks``, extend the list that
    ``super().configure_callbacks()`` returns. The mixin's callback replaces a ``Penalty`` that was
    passed to the Trainer, and Lightning logs a message.

    Args:
        *args: Positional arguments for the next base class.
        penalty: A :class:`~lightning_practices.callbacks.Penalty`, such as ``Penalty(l2=1e-4)``; or
            ``None``, for no penalty.
        **kwargs: Keyword arguments for the next base class.

    Raises:
        TypeError: On subclassing, if bases are of both packages of Lightning.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.callbacks import Penalty
        >>> from lightning_practices.mixins import PenaltyMixin
        >>> class Net(PenaltyMixin, BoringModel): ...
        >>> module = Net(penalty=Penalty(l1=10.0, proximal=True))  # far too strong
        >>> Trainer(barebones=True, accelerator="cpu", max_steps=2).fit(module)
        >>> module.layer.weight.count_nonzero()
        tensor(0)
    """

    def __init__(self, *args: Any, penalty: Penalty | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        is_number = isinstance(penalty, Real) and not isinstance(penalty, bool)
        example = f"Penalty(l2={penalty if is_number else 1e-4})"
        self._penalty = self._bring(configured("penalty", penalty, Penalty, (), Penalty, example))

    @property
    def penalty(self) -> Penalty | None:
        """The callback; ``None`` if off."""
        return self._penalty
