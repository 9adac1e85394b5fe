"""Rates of dropout that a schedule can change without a recompilation."""

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from typing_extensions import override


class ScheduledRate(nn.Module):
    """What layers that drop share: their rate, a number until it is scheduled.

    A compiler takes a number for a constant, and compiles again for every other. After
    :meth:`schedule_rate` the layer reads its rate from a tensor, on the device: changes need
    neither a compilation nor a synchronisation, and reach a captured CUDA graph. The rate is set as
    ever, as an attribute.

    The tensor follows the layer from device to device and stays float32. It is no buffer: one that
    comes while a model is in use would shift all others for those who pair the buffers of two
    models, as :class:`torch.optim.swa_utils.AveragedModel` does, and DDP would broadcast it.
    """

    rate_name: ClassVar[str] = "p"  # the attribute that holds the rate
    rate: Tensor | None = None  # on the class, for layers that became fused by a change of class

    def schedule_rate(self, device: torch.device | str | None = None) -> None:
        """Keep the rate in a tensor ``rate`` too, which then decides.

        Args:
            device: Where the layer's inputs are, by default torch's default device. A rate that is
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
            if not 0 <= value <= 1:  # no function can tell later, without reading the device
                raise ValueError(f"{name} has to be between 0 and 1, but got {value}")
            self.rate.fill_(value)
        super().__setattr__(name, value)

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.rate is not None:
            # Again float32 after `half`, and again the rate after `to_empty`.
            self.rate = fn(self.rate).float().fill_(getattr(self, self.rate_name))
        return self

    def current_rate(self) -> float | Tensor:
        """Return the tensor if there is one, else the number."""
        if self.rate is not None:  # then the number is not to be read: a compiler would guard it
            return self.rate
        rate: float = getattr(self, self.rate_name)
        return rate
