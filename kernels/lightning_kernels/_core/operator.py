"""One operator behind two doors: a bare autograd function, or a registered ``torch.ops`` entry."""

from collections.abc import Callable
from typing import Any

import torch

from lightning_kernels._core.dispatch import is_traced
from lightning_kernels._core.triton import INTERPRETED

NAMESPACE = "lightning_kernels"
_library = torch.library.Library(NAMESPACE, "DEF")


class Operator:
    """An operator implemented by kernel launches, differentiable if ``backward`` is given.

    In eager mode a call goes straight to ``forward`` inside a bare ``autograd.Function``, the
    cheapest way on the host. Under ``torch.compile``, ``torch.export``, fake tensors or another
    dispatch mode it goes through ``torch.ops``, where it is opaque: those see shapes and types from
    ``fake`` and never the kernels. Both doors share one ``forward``, ``setup_context`` and
    ``backward``, so they cannot disagree.

    Args:
        name: Name within ``torch.ops.lightning_kernels``.
        schema: Its arguments and results, as ``torch.library.define`` takes them.
        forward: Allocates and launches. Its first argument is a tensor.
        fake: Allocates only, for tensors without data.
        setup_context: ``(ctx, inputs, output)``, saves what ``backward`` needs.
        backward: ``(ctx, *grads)``, returns a gradient or ``None`` for each argument.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        forward: Callable[..., Any],
        fake: Callable[..., Any],
        setup_context: Callable[[Any, tuple[Any, ...], Any], None] | None = None,
        backward: Callable[..., Any] | None = None,
    ) -> None:
        qualified = f"{NAMESPACE}::{name}"
        _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(name, forward, "CUDA")
        if INTERPRETED:
            _library.impl(name, forward, "CPU")
        torch.library.register_fake(qualified, fake, lib=_library)
        self._eager = forward
        if setup_context is not None and backward is not None:
            torch.library.register_autograd(
                qualified, backward, setup_context=setup_context, lib=_library
            )
            self._eager = _autograd_function(name, forward, setup_context, backward).apply
        self._traced = getattr(getattr(torch.ops, NAMESPACE), name).default

    def __call__(self, *args: Any) -> Any:
        """Call the operator with positional arguments, in the order of its schema."""
        if is_traced(args[0]):
            return self._traced(*args)
        return self._eager(*args)


def _autograd_function(
    name: str,
    forward: Callable[..., Any],
    setup_context: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., Any],
) -> type[torch.autograd.Function]:
    """Build the bare function. A ``forward`` that takes ``ctx`` spares binding its signature."""

    def forward_with_context(ctx: Any, *args: Any) -> Any:
        output = forward(*args)
        setup_context(ctx, args, output)
        return output

    members = {"forward": staticmethod(forward_with_context), "backward": staticmethod(backward)}
    return type(name, (torch.autograd.Function,), members)
