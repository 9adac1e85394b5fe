"""Dropout rates that a schedule can change without a recompilation."""

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from typing_extensions import override

from lightning_practices._arguments import check_number
from lightning_practices.nn._fused_layer import FusedLayer


class ScheduledRate(FusedLayer):
    """Base class of this package's dropout layers. A schedule can change their rate.

    Initially the rate is a number. ``torch.compile`` treats a number as a constant and recompiles
    for each new value. After :meth:`schedule_rate` the layer reads its rate from a tensor on the
    device instead: a change needs neither a recompilation nor a synchronisation, and it applies to
    a captured CUDA graph too. With or without a schedule, set the rate by assigning the attribute.

    The tensor moves with the layer and stays float32. It is not a buffer, for two reasons.
    :class:`torch.optim.swa_utils.AveragedModel` and similar code pair the buffers of two models by
    position, and a new buffer would shift the positions of the buffers after it. DDP would
    broadcast it.

    To write a custom dropout layer, subclass this class and drop at :meth:`current_rate` in
    ``forward``.

    Attributes:
        rate_name: Name of the attribute that holds the rate.
        rate: The tensor that holds a scheduled rate, or ``None`` if the rate is not scheduled.

    Example:
        >>> from lightning_practices.nn import Dropout
        >>> dropout = Dropout(0.1)
        >>> dropout.current_rate()
        0.1
        >>> dropout.schedule_rate()
        >>> dropout.p = 0.3  # in a training loop, say
        >>> dropout.current_rate()
        tensor(0.3000)
    """

    rate_name: ClassVar[str] = "p"
    rate: Tensor | None = None  # a class attribute, since `surgery.fuse` runs no constructor

    def schedule_rate(self, device: torch.device | str | None = None) -> None:
        """Read the rate from the tensor ``rate`` from now on.

        Args:
            device: Device of the layer's inputs. Default: torch's default device. If the rate is
                scheduled already, its tensor is moved there.
        """
        if self.rate is None:
            self.rate = torch.empty((), dtype=torch.float32, device=device)
        elif device is not None:
            self.rate = self.rate.to(device)
        self.rate.fill_(getattr(self, self.rate_name))

    @override
    def __setattr__(self, name: str, value: Any) -> None:
        if name == self.rate_name and self.rate is not None:
            value = check_number(name, value, ge=0, le=1)  # the device can't raise an error
            self.rate.fill_(value)
        super().__setattr__(name, value)

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.rate is not None:
            # `half` changes the dtype, and `to_empty` loses the value.
            self.rate = fn(self.rate).float().fill_(getattr(self, self.rate_name))
        return self

    def current_rate(self) -> float | Tensor:
        """Return the tensor if the rate is scheduled, otherwise the number."""
        if self.rate is not None:  # don't read the number: torch.compile would guard on it
            return self.rate
        rate: float = getattr(self, self.rate_name)
        return rate
