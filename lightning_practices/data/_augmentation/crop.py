"""A random crop to the image's own size."""

from collections.abc import Sequence
from typing import Any, Literal

from torchvision.transforms import v2
from typing_extensions import override


class RandomPaddedCrop(v2.RandomCrop):  # type: ignore[misc]  # torchvision carries no types
    """Pad an image, and crop it at random to the size that it had.

    Args:
        padding: See :class:`torchvision.transforms.v2.RandomCrop`.
        fill: See there.
        padding_mode: See there.
    """

    def __init__(
        self,
        padding: int | Sequence[int] = 4,
        fill: Any = 0,
        padding_mode: Literal["constant", "edge", "reflect", "symmetric"] = "constant",
    ) -> None:
        super().__init__(1, padding, fill=fill, padding_mode=padding_mode)
        self._given = padding

    @override
    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        own = v2.RandomCrop(v2.query_size(flat_inputs), self._given)
        made: dict[str, Any] = own.make_params(flat_inputs)
        return made

    @override
    def extra_repr(self) -> str:
        return f"padding={self._given}, fill={self.fill}, padding_mode={self.padding_mode}"
