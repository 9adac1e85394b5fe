"""Several preprocessing layers, one after another."""

from collections.abc import Callable, Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_practices._arguments import check_instance, check_listed
from lightning_practices.data._entries import Entry
from lightning_practices.data._preprocessing.layout import Per
from lightning_practices.data._preprocessing.moments import Moments
from lightning_practices.data._preprocessing.preprocessing import Preprocessing


class Compose(Preprocessing):
    """Preprocessing layers that run one after another.

    Each is fitted to the results of those before it, so :meth:`~Preprocessing.fit` reads the data
    once for each layer. :meth:`~Preprocessing.inverse` undoes the last layer first.

    Args:
        layers: The layers, in order.

    Raises:
        TypeError: If ``layers`` is no list of :class:`Preprocessing` layers. On fitting, if there
            are several, and the data are an iterator, which can be read once only.
        ValueError: If the list is empty.

    Example:
        >>> from lightning_practices.data import Compose, MinMax, Standardize
        >>> x = torch.tensor([[0.0], [1.0], [5.0]])
        >>> Compose([Standardize(), MinMax()]).fit(x)(x).flatten()
        tensor([-1.0000, -0.6000,  1.0000])
    """

    options = ("layers",)

    def __init__(self, layers: list[Preprocessing]) -> None:
        super().__init__()
        listed = check_listed("layers", layers, "a list of preprocessing layers")
        if not listed:
            raise ValueError("layers has to have one preprocessing layer at least, but it is empty")
        for place, layer in enumerate(listed):
            check_instance(f"layers[{place}]", layer, Preprocessing, "a preprocessing layer")
        self.layers = nn.ModuleList(listed)

    def __iter__(self) -> Iterator[Preprocessing]:
        return iter(self.layers)  # type: ignore[arg-type]

    @property
    @override
    def is_fitted(self) -> bool:
        return all(layer.is_fitted for layer in self)

    @property
    @override
    def device(self) -> torch.device | None:
        return next(iter(self)).device

    @override
    def _fit(self, data: Any, entry: Entry, before: Callable[[Tensor], Tensor]) -> Self:
        if isinstance(data, Iterator) and len(self.layers) > 1:
            raise TypeError(
                f"Compose reads the data {len(self.layers)} times, once for each layer, but got an"
                " iterator, which can be read once: give a DataLoader, or a list of batches"
            )
        earlier = [(module, dict(module._buffers)) for module in self.modules()]
        try:
            for layer in self:
                layer._fit(data, entry, before)
                before = _after(before, layer)
        except Exception:
            for module, buffers in earlier:
                module._buffers.update(buffers)
            raise
        return self

    @override
    def _applied(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer._applied(x)
        return x

    @override
    def _undone(self, x: Tensor) -> Tensor:
        for layer in reversed(list(self)):
            x = layer._undone(x)
        return x

    @override
    def _moments(self, x: Tensor, per: Per) -> Moments:
        raise NotImplementedError  # each layer has its own

    @override
    def config(self) -> dict[str, Any]:
        return {"class": type(self).__name__, "layers": [layer.config() for layer in self]}

    @override
    def extra_repr(self) -> str:
        return ""


def _after(before: Callable[[Tensor], Tensor], layer: Preprocessing) -> Callable[[Tensor], Tensor]:
    return lambda x: layer(before(x))
