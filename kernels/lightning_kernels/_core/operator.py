"""A class that wraps kernel launches as a differentiable operator: eager, compiled or in place."""

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

    An eager call runs ``forward`` in an ``autograd.Function``, which has the least overhead on the
    host. Under ``torch.compile``, ``torch.export``, fake tensors or another dispatch mode the call
    goes through ``torch.ops``: the tracer records an opaque operator, and ``fake`` gives the shapes
    and dtypes of its results. Both ways use the same ``forward``, ``setup_context`` and
    ``backward``.

    Args:
        name: Name of the operator in ``torch.ops.lightning_kernels``.
        schema: Arguments and results, in the syntax of ``torch.library.define``.
        forward: Function that allocates the results and launches kernels. Its first argument is a
            tensor.
        fake: Function that only allocates the results, for tensors without data.
        setup_context: Function ``(ctx, inputs, output)`` that saves tensors for ``backward``.
        backward: Function ``(ctx, *grads)`` that returns a gradient or ``None`` for each argument.
        in_place: Variant of ``forward`` that writes its first result over its first argument.
        fits_in_place: Function that returns whether ``in_place`` supports the given arguments.
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
        """Call the operator. The arguments are positional, in the order of the schema."""
        if is_traced(args[0]):
            return self._traced(*args)
        return self._eager(*args)

    def in_place(self, x: Tensor, *args: Any) -> Tensor:
        """Write the first result over ``x``. Return ``x``.

        The kernel writes to ``x`` if ``in_place`` supports the arguments. Otherwise the result is
        copied to ``x``.
        """
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
    """Return a subclass of ``autograd.Function`` for eager calls.

    Its ``forward`` takes ``ctx`` and calls ``setup_context`` itself. With a separate
    ``setup_context`` torch would bind the arguments to the signature at each call, which is slow.
    """

    def forward_with_context(ctx: Any, *args: Any) -> Any:
        output = forward(*args)
        setup_context(ctx, args, output)
        if not dirties:
            return output
        ctx.mark_dirty(args[0])  # alone: torch refuses a second output where the input is a view
        return args[0]

    members = {"forward": staticmethod(forward_with_context), "backward": staticmethod(backward)}
    return type(name, (torch.autograd.Function,), members)
