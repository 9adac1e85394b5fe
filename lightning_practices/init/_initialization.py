"""The settings of an initialisation as an object."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lightning_practices._arguments import check_names
from lightning_practices._calls import as_call
from lightning_practices.init._initialize import check_schemes, initialize
from lightning_practices.init._report import InitReport
from lightning_practices.init._weights import Scheme


class Initialization:
    """The scheme of an initialisation, and the names of the new modules.

    Args:
        scheme: See :func:`initialize`.
        modules: Names of the new modules, whose weights are to be drawn. Default: the whole model.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a scheme is unknown, or ``modules`` has no name.

    Example:
        >>> from lightning_practices.init import Initialization
        >>> report = Initialization(modules=["1"])(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
        >>> [row.names for row in report.initialized]
        [('1.weight',)]
    """

    def __init__(
        self, scheme: Scheme | Mapping[str, Scheme] = "auto", modules: Sequence[str] | None = None
    ) -> None:
        check_schemes(scheme)
        self.scheme = scheme
        self.modules = None if modules is None else check_names("modules", modules, least=1)

    def __call__(
        self, model: nn.Module, batch: Any = None, generator: torch.Generator | None = None
    ) -> InitReport:
        """Initialise a model by :func:`initialize`, which see for the arguments."""
        return initialize(
            model, self.scheme, batch=batch, modules=self.modules, generator=generator
        )

    def __repr__(self) -> str:
        return as_call(self)
