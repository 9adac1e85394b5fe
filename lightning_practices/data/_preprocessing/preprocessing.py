"""The base class of preprocessing that is fitted to data."""

import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Self, get_args

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_practices._arguments import check_choice, check_instance
from lightning_practices._names import count
from lightning_practices._ranks import rank
from lightning_practices.data._entries import Entry, check_entry
from lightning_practices.data._preprocessing.layout import Per, resolved, shared_dims, spread_out
from lightning_practices.data._preprocessing.moments import Moments, merged
from lightning_practices.data._preprocessing.reading import on_all_ranks, tensors

_LISTED = 5  # the most places of constant columns in a warning
_Reading = tuple[Moments | None, torch.dtype | None]


class Preprocessing(nn.Module):
    """Base of the layers that shift and scale data by statistics of the training split.

    :meth:`fit` reads data once and keeps its statistics as buffers, so that checkpoints hold them.
    ``forward`` applies them, alike in training and evaluation, and :meth:`inverse` undoes it, for
    predictions. A layer that was not fitted raises in both.

    Statistics are taken in float64 and kept in float32, or in float64 if the data are. They stay so
    if a model is cast to 16 bits. Results have the dtype of the input, and the default dtype for
    whole numbers; inputs of 16 bits are computed in float32.

    Args:
        per: Which numbers share a statistic. ``"feature"``: those of an entry of the last
            dimension, as in ``(N, F)`` or ``(N, L, F)``. ``"channel"``: those of an entry of the
            second dimension, as in ``(N, C, H, W)``. ``"pixel"``: only those of one place in each
            sample. ``"auto"``: channels for tensors of four or more dimensions, features for two,
            all numbers for one; for three dimensions an error asks.

    Raises:
        ValueError: If ``per`` is none of these.

    Example:
        >>> from lightning_practices.data import Preprocessing, Standardize
        >>> layer = Standardize().fit(torch.tensor([[1.0], [3.0]]))
        >>> isinstance(layer, Preprocessing), layer.is_fitted
        (True, True)
        >>> layer.inverse(layer(torch.tensor([[5.0]])))
        tensor([[5.]])
    """

    options: ClassVar[tuple[str, ...]] = ("per",)  # arguments of the constructor
    statistics: ClassVar[tuple[str, ...]] = ()  # names of the buffers

    def __init__(self, per: Per = "auto") -> None:
        super().__init__()
        self.per: Per = check_choice("per", per, get_args(Per))
        for name in self.statistics:
            self.register_buffer(name, None)

    @property
    def is_fitted(self) -> bool:
        """Whether the statistics are there, by :meth:`~Preprocessing.fit` or from a checkpoint."""
        return all(self._buffers[name] is not None for name in self.statistics)

    @property
    def device(self) -> torch.device | None:
        """The device of the statistics; ``None`` if there are none."""
        return next((one.device for one in self._buffers.values() if one is not None), None)

    def fit(self, data: Any, entry: Entry = 0) -> Self:
        """Take the statistics of ``data``, which should be the training split alone.

        The data are read once, batch by batch, so they may be larger than memory. Earlier
        statistics are replaced; if this raises, they stay. The state of torch's random generator on
        the CPU is as before. If ``torch.distributed`` has a process group, all ranks have to call
        this, each with its own part of the data; all get the statistics of all parts.

        Args:
            data: A tensor whose first dimension is the samples, a ``Dataset``, or an iterable of
                batches, such as a ``DataLoader``.
            entry: The tensor of a batch to read: the position in a tuple, or the key of a dict.

        Returns:
            This layer.

        Raises:
            KeyError: If batches are dicts without this key.
            IndexError: If batches are tuples with fewer entries.
            TypeError: If ``data`` has no batches, or the entry is no tensor of real numbers.
            ValueError: If there are no samples, a value is nan or infinite, or samples have
                different shapes.
            RuntimeError: If another rank raises.
        """
        return self._fit(data, check_entry(entry), lambda x: x)

    def _fit(self, data: Any, entry: Entry, before: Callable[[Tensor], Tensor]) -> Self:
        """Fit to what the function ``before`` makes of the data."""

        def read() -> _Reading:
            total, dtype = None, None
            for x in tensors(data, entry, f"fitting {type(self).__name__}"):
                piece = self._moments(before(x), resolved(self.per, x))
                dtype = x.dtype
                total = piece if total is None else _joined(total, piece)
            return total, dtype

        # Lightning's validation is in inference mode, whose tensors can't be trained with later.
        with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
            readings: list[_Reading] = on_all_ranks(read)
            self._take(readings)
        return self

    def _take(self, readings: list[_Reading]) -> None:
        """Set the statistics to those of all ranks' readings."""
        total = merged(moments for moments, _ in readings if moments is not None)
        if total is None:
            raise ValueError(
                f"{type(self).__name__} got no samples: the data are empty, or an iterator"
                " that is used up"
            )
        is_wide = any(dtype == torch.float64 for _, dtype in readings)
        present = next((b for b in self._buffers.values() if b is not None), total.mean)
        for name, value in self._solved(total).items():
            dtype = torch.float64 if is_wide else torch.float32
            self._buffers[name] = value.to(present.device, dtype)
        if rank() == 0:
            self._warn(total)

    def _moments(self, x: Tensor, per: Per) -> Moments:
        """Return the statistics of a piece of the data."""
        return Moments.of(x, shared_dims(per, x))

    def _solved(self, moments: Moments) -> dict[str, Tensor]:
        """Return the buffers by name, from the statistics of all data."""
        raise NotImplementedError

    def _applied(self, x: Tensor) -> Tensor:
        """Return the preprocessed floating-point tensor."""
        raise NotImplementedError

    def _undone(self, x: Tensor) -> Tensor:
        """Return the floating-point tensor that was preprocessed."""
        raise NotImplementedError

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self._computed(self._applied, x)

    def inverse(self, x: Tensor) -> Tensor:
        """Return the values before the preprocessing, such as predictions in the target's unit.

        Args:
            x: A tensor of the shape that ``forward`` takes.

        Raises:
            RuntimeError: If the layer was not fitted.
            ValueError: If ``x`` has another number of features, channels or pixels.
        """
        return self._computed(self._undone, x)

    def _computed(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        check_instance("input", x, Tensor, "a tensor")
        if not self.is_fitted:
            raise RuntimeError(
                f"{type(self).__name__} was not fitted: call fit(data) with the training split, or"
                " load a checkpoint with its statistics"
            )
        if not x.is_floating_point():
            x = x.to(torch.get_default_dtype())
        if x.dtype.itemsize >= 4:
            return function(x)
        return function(x.float()).to(x.dtype)

    def _broadcast(self, statistic: Tensor, x: Tensor) -> Tensor:
        """Return a statistic in the dtype of ``x``, and in a shape that broadcasts to it."""
        return spread_out(statistic, resolved(self.per, x), x).to(x.dtype)

    def _warn(self, moments: Moments) -> None:
        """Warn of constant columns, and of what else is odd about the data."""
        constant = moments.constant
        if bool(constant.any()):
            places = constant.nonzero().squeeze(-1).tolist()
            listed = ", ".join(str(one) for one in places[:_LISTED])
            dots = ", ..." if len(places) > _LISTED else ""
            columns = count(constant.numel(), "column")
            warnings.warn(
                f"{type(self).__name__}: {len(places)} of {columns} can't be scaled, as the data"
                f" are constant there, at {listed}{dots}",
                stacklevel=4,
            )

    def config(self) -> dict[str, Any]:
        """Return the class's name and the constructor's arguments, in types of Python alone.

        A layer made again from them has no statistics.
        """
        return {"class": type(self).__name__} | {name: getattr(self, name) for name in self.options}

    @override
    def extra_repr(self) -> str:
        options = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.options)
        return options if self.is_fitted else f"{options}, not fitted"

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move statistics to a device, and leave their dtype."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in before.items():
            after = self._buffers[name]
            if buffer is not None and after is not None and after.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(after.device)
        return self

    @override
    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Load statistics of any shape, also if the layer was not fitted yet."""
        for name in self.statistics:
            loaded, present = state_dict.get(prefix + name), self._buffers[name]
            if isinstance(loaded, Tensor) and (present is None or present.shape != loaded.shape):
                self._buffers[name] = loaded.new_empty(
                    loaded.shape, device=None if present is None else present.device
                )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _joined(total: Moments, piece: Moments) -> Moments:
    if total.mean.shape != piece.mean.shape:
        shapes = f"{tuple(total.mean.shape)} and {tuple(piece.mean.shape)}"
        raise ValueError(
            f"samples have statistics of the shapes {shapes}: all need the same number of features"
            " or channels; images of different sizes need per='channel'"
        )
    return total + piece
