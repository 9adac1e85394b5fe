"""The callback that initialises a module's weights before its first fit."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map
from typing_extensions import override

from lightning_practices._names import module_name, plain_name, some
from lightning_practices.callbacks._practice import PracticeCallback
from lightning_practices.init import Initialization, InitReport, Scheme

_NOT_YET = "Nothing is initialised yet: weights are drawn when a fit starts."


class Initialize(PracticeCallback):
    """Initialise the module by :func:`~lightning_practices.init.initialize`, in its first fit.

    ::

        Trainer(callbacks=[Initialize()])  # all weights are new
        Trainer(callbacks=[Initialize(Initialization(modules=["head"]))])  # pretrained backbone

    The weights are drawn once, when the first fit with this callback sets up the module: after
    ``__init__``, and before the module's own ``setup`` and ``configure_model``, before Lightning
    restores a checkpoint and wraps the model. Later fits of the module with this callback,
    validation, testing and prediction leave the weights alone. For layers that ``setup`` or
    ``configure_model`` make, and for modules from ``load_from_checkpoint``, use
    :class:`~lightning_practices.mixins.InitMixin`.

    **Pretrained weights** can't be told from random ones, and would be overwritten: name the new
    modules. If you name none, and a norm that isn't frozen has been trained (its scales differ, or
    its batches are counted), the fit ends with an error. Models without norms have no such sign.
    Frozen parameters are never changed.

    All ranks draw the same weights, from a seed that rank 0 draws from torch's global generator. If
    the module has an ``example_input_array``, the activations are read from a call with it, else
    from the order of the layers.

    Args:
        initialization: The name of a scheme, or an
            :class:`~lightning_practices.init.Initialization`.

    Attributes:
        report: The weights that were drawn, layer by layer.

    Raises:
        TypeError: If ``initialization`` is neither.
        ValueError: If the scheme is unknown. When the first fit starts, if ``initialize`` raises
            one, or would overwrite trained norms.
        MisconfigurationException: When the first fit starts, if all weights are to be drawn and
            ``setup`` or ``configure_model`` of the module makes parameters.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.callbacks import Initialize
        >>> module, init = BoringModel(), Initialize("kaiming_normal")
        >>> Trainer(barebones=True, accelerator="cpu", max_steps=1, callbacks=[init]).fit(module)
        >>> init.report, init.report.initialized[0].names
        (InitReport(1 initialized, 0 zeroed, 0 kept), ('layer.weight',))
    """

    def __init__(self, initialization: Scheme | Initialization = "auto") -> None:
        if not isinstance(initialization, Initialization):
            try:
                initialization = Initialization(initialization)
            except (TypeError, ValueError) as error:
                raise type(error)(f"initialization: {error}") from None
        self.initialization = initialization
        self.report = InitReport(when_empty=_NOT_YET)
        self._early: frozenset[str] | None = None  # the parameters before setup; None: any may come

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        is_known = self._last_fit is not None and self._last_fit[1]() is pl_module
        self._early = None
        if stage == "fit" and not is_known:
            self.initialize(trainer, pl_module)
            if self.initialization.modules is None:
                self._early = frozenset(_names(pl_module))
        super().setup(trainer, pl_module, stage)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        early = self._early
        late = [] if early is None else [name for name in _names(pl_module) if name not in early]
        if late:
            name = type(pl_module).__name__
            raise MisconfigurationException(
                f"Initialize draws weights before setup and configure_model of {name}, which made"
                f" {some(late)}: make these layers in __init__, or subclass InitMixin, which draws"
                " weights later, or name the modules to initialise, as in"
                " Initialize(Initialization(modules=['head']))"
            )

    def initialize(self, trainer: Trainer, pl_module: LightningModule) -> InitReport:
        """Initialise the module now, alike on all ranks. Rank 0 logs a line.

        Returns:
            The report, which is :attr:`report` too.
        """
        own = self.initialization
        if own.modules is None and (trained := _trained_norms(pl_module)):
            raise ValueError(
                f"the initialization {own.scheme!r} would overwrite weights of"
                f" {type(pl_module).__name__} that have been trained, as the norms {some(trained)}"
                " show: name the new modules, as in Initialization(modules=['head']), or turn the"
                " initialization off"
            )
        seed = trainer.strategy.broadcast(int(torch.randint(2**63 - 1, ())))
        generator = torch.Generator().manual_seed(seed)
        self.report = own(pl_module, _batch_of(pl_module), generator)
        rank_zero_info(f"Initialize: {self.report!r}")
        return self.report


def _names(module: nn.Module) -> list[str]:
    return [plain_name(name) for name, _ in module.named_parameters()]


def _trained_norms(module: nn.Module) -> list[str]:
    """Return the names of trainable norms whose scales differ, or that have counted batches."""
    names = []
    for name, part in module.named_modules():
        scale, counted = part._parameters.get("weight"), part._buffers.get("num_batches_tracked")
        is_norm = "norm" in type(part).__name__.lower() and scale is not None and scale.dim() == 1
        if not is_norm or scale is None or not scale.requires_grad or scale.is_meta:
            continue
        whole = scale.full_tensor() if isinstance(scale, DTensor) else scale
        is_counted = counted is not None and not counted.is_meta and bool(counted > 0)
        if is_counted or not bool((whole == whole[:1]).all()):
            names.append(module_name(name))
    return names


def _batch_of(module: Any) -> Any:
    """Return the module's example input if a call needs nothing else, on the module's device.

    Sharded modules are not called: a call gathers their weights.
    """
    given = module.example_input_array
    p = next(module.parameters(), None)
    is_one = isinstance(given, Tensor | Mapping) or (isinstance(given, tuple) and len(given) == 1)
    if p is None or not is_one or isinstance(p, DTensor):
        return None
    return tree_map(lambda x: x.to(p.device) if isinstance(x, Tensor) else x, given)
