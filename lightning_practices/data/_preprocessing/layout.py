"""Which numbers of a tensor share a statistic: those of a feature, a channel or a pixel."""

from typing import Literal

from torch import Tensor

Per = Literal["auto", "feature", "channel", "pixel"]


def resolved(per: Per, x: Tensor) -> Per:
    """Return ``per``, or what ``"auto"`` means for a tensor of these dimensions.

    Raises:
        ValueError: If ``"auto"`` may mean two things, or the tensor has too few dimensions.
    """
    if per == "auto":
        if x.dim() == 3:
            raise ValueError(
                f"a tensor of shape {tuple(x.shape)} may be sequences of features, (N, L, F), or of"
                " channels, (N, C, L): give per='feature' or per='channel'"
            )
        return {1: "pixel", 2: "feature"}.get(x.dim(), "channel")  # type: ignore[return-value]
    least = 1 if per == "pixel" else 2
    if x.dim() < least:
        raise ValueError(
            f"per={per!r} needs {least} dimensions at least, the first of which is the samples, but"
            f" got a tensor of shape {tuple(x.shape)}"
        )
    return per


def shared_dims(per: Per, x: Tensor) -> tuple[int, ...]:
    """Return the dimensions over which a statistic is taken."""
    if per == "pixel":
        return (0,)
    kept = 1 if per == "channel" else x.dim() - 1
    return tuple(dim for dim in range(x.dim()) if dim != kept)


def spread_out(statistic: Tensor, per: Per, x: Tensor) -> Tensor:
    """Return a statistic of ``x`` in a shape that broadcasts to ``x``. A single number fits all.

    Raises:
        ValueError: If ``x`` has another number of features or channels, or pixels.
    """
    if statistic.dim() == 0 or (statistic.numel() == 1 and x.dim() < 2):
        return statistic.view(())  # one for all numbers, as of targets of shape (N,) or (N, 1)
    expected = x.shape[1:] if per == "pixel" else x.shape[1 if per == "channel" else -1 :][:1]
    if statistic.shape != expected:
        raise ValueError(
            f"the preprocessing was fitted to {_shape(statistic, per)}, but got a tensor of shape"
            f" {tuple(x.shape)}"
        )
    return statistic.view(-1, *[1] * (x.dim() - 2)) if per == "channel" else statistic


def as_rows(x: Tensor, per: Per) -> Tensor:
    """Return a matrix whose columns are the features, channels or pixels."""
    if per == "pixel":
        return x.flatten(1) if x.dim() > 1 else x[:, None]
    if per == "channel":
        x = x.movedim(1, -1)
    return x.reshape(-1, x.shape[-1])


def from_rows(rows: Tensor, per: Per, like: Tensor) -> Tensor:
    """Undo :func:`as_rows` for a tensor of the shape of ``like``."""
    if per != "channel":
        return rows.view(like.shape)
    moved = like.movedim(1, -1)
    return rows.view(moved.shape).movedim(-1, 1)


def _shape(statistic: Tensor, per: Per) -> str:
    if per == "pixel":
        return f"samples of shape {tuple(statistic.shape)}"
    return f"{len(statistic)} {per}s"
