"""An operator with three doors: a bare autograd function, a registered op, and one in place."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_kernels._core.dispatch import is_traced
from lightning_kernels._core.triton import INTERPRETED

NAMESPACE = "lightning_kernels"
_library = torch.library.Library(NAMESPACE, "DEF")

SetupContext = Callable[[Any, tuple[Any, ...], Any], None]


class Operator:
    """An operator implemented by kernel launches, differentiable if ``backward`` is given.

    An eager call goes straight to ``forward`` inside a bare ``autograd.Function``, which costs the
    host least. Under ``torch.compile``, ``torch.export``, fake tensors or another dispatch mode the
    call goes through ``torch.ops``: the tracer sees an opaque operator, whose shapes and dtypes
    ``fake`` gives. Both use the same ``forward``, ``setup_context`` and ``backward``.

    Args:
        name: Name within ``torch.ops.lightning_kernels``.
        schema: Arguments and results, as ``torch.library.define`` takes them.
        forward: Allocates and launches. Its first argument is a tensor.
        fake: Allocates only, for tensors without data.
        setup_context: ``(ctx, inputs, output)``: saves what ``backward`` needs.
        backward: ``(ctx, *grads)``: returns a gradient or ``None`` for each argument.
        in_place: ``forward`` that writes its first result over its first argument.
        fits_in_place: Whether ``in_place`` can take these arguments.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        forward: Callable[..., Any],
        fake: Callable[..., Any],
        setup_context: SetupContext | None = None,
        backward: Callable[..., Any] | None = None,
        in_place: Callable[..., Any] | None = None,
        fits_in_place: Callable[..., bool] = lambda *args: True,
    ) -> None:
        qualified = f"{NAMESPACE}::{name}"
        _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(name, forward, "CUDA")
        if INTERPRETED:
            _library.impl(name, forward, "CPU")
        torch.library.register_fake(qualified, fake, lib=_library)
        self._eager = forward
        self._in_place = in_place
        self._fits_in_place = fits_in_place
        if setup_context is not None and backward is not None:
            torch.library.register_autograd(
                qualified, backward, setup_context=setup_context, lib=_library
            )
            self._eager = _autograd_function(name, forward, setup_context, backward).apply
            if in_place is not None:
                self._in_place = _autograd_function(
                    f"{name}_", in_place, setup_context, backward, dirties=True
                ).apply
        self._traced = getattr(getattr(torch.ops, NAMESPACE), name).default

    def __call__(self, *args: Any) -> Any:
        """Call the operator with positional arguments, in the order of its schema."""
        if is_traced(args[0]):
            return self._traced(*args)
        return self._eager(*args)

    def in_place(self, x: Tensor, *args: Any) -> Tensor:
        """Write the first result over ``x`` and return ``x``: directly if that is possible."""
        direct = self._in_place is not None and not is_traced(x) and self._fits_in_place(x, *args)
        result = self._in_place(x, *args) if direct else self(x, *args)  # type: ignore[misc]
        first: Tensor = result[0] if isinstance(result, tuple) else result
        return first if direct else x.copy_(first)


def _autograd_function(
    name: str,
    forward: Callable[..., Any],
    setup_context: SetupContext,
    backward: Callable[..., Any],
    dirties: bool = False,
) -> type[torch.autograd.Function]:
    """Build the bare function. A ``forward`` that takes ``ctx`` spares binding its signature."""

    def forward_with_context(ctx: Any, *args: Any) -> Any:
        output = forward(*args)
        if dirties:
            ctx.mark_dirty(args[0])
        setup_context(ctx, args, output)
        return output

    members = {"forward": staticmethod(forward_with_context), "backward": staticmethod(backward)}
    return type(name, (torch.autograd.Function,), members)
