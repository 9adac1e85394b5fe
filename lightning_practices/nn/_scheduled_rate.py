"""Dropout rates that a schedule can change without a recompilation."""

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from typing_extensions import override


class ScheduledRate(nn.Module):
    """The base class of this package's dropout layers, whose rate a schedule can change.

    The rate is a number at first. A compiler treats a number as a constant and compiles again for
    each new value. After :meth:`schedule_rate` the layer reads its rate from a tensor on the device
    instead: a change needs neither a compilation nor a synchronisation, and it reaches a captured
    CUDA graph. Before and after, the rate is set by assigning the attribute.

    The tensor moves with the layer and stays float32. It is not a buffer. A buffer that appears
    while a model is in use shifts the later buffers for code that pairs the buffers of two models
    by position, such as :class:`torch.optim.swa_utils.AveragedModel`, and DDP would broadcast it.

    A layer of your own subclasses this, and its ``forward`` drops at :meth:`current_rate`.

    Attributes:
        rate_name: Name of the attribute that holds the rate.
        rate: The tensor, or ``None`` if the rate is not scheduled.
    """

    rate_name: ClassVar[str] = "p"
    rate: Tensor | None = None  # on the class, since `surgery.fuse` calls no constructor

    def schedule_rate(self, device: torch.device | str | None = None) -> None:
        """Read the rate from the tensor ``rate`` from now on.

        Args:
            device: Device of the layer's inputs. Default: torch's default device. A rate that is
                scheduled already is moved there.
        """
        if self.rate is None:
            self.rate = torch.empty((), dtype=torch.float32, device=device)
        elif device is not None:
            self.rate = self.rate.to(device)
        self.rate.fill_(getattr(self, self.rate_name))

    @override
    def __setattr__(self, name: str, value: Any) -> None:
        if name == self.rate_name and self.rate is not None:
            if not 0 <= value <= 1:  # later a check would have to read the device
                raise ValueError(f"{name} has to be between 0 and 1, but got {value}")
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
        """Return the tensor if the rate is scheduled, else the number."""
        if self.rate is not None:  # a compiler guards a number that is read
            return self.rate
        rate: float = getattr(self, self.rate_name)
        return rate
