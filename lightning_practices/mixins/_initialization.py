"""The mixin that initialises a LightningModule's weights."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map
from typing_extensions import override

from lightning_practices._names import module_name, some
from lightning_practices.init import Initialization, InitReport, Scheme
from lightning_practices.mixins._configure_model import refuse_unparallelised
from lightning_practices.mixins._practice import PracticeMixin, configured


class InitMixin(PracticeMixin):
    """Initialise the module by :func:`~lightning_practices.init.initialize`, in its first fit.

    ::

        class Net(InitMixin, LightningModule): ...

        Net()  # all weights are new
        Net(initialize=Initialization(modules=["head"]))  # the backbone is pretrained

    List the mixin before the class that it extends. The weights are drawn once, in
    ``configure_model`` of the first fit: after ``__init__`` and ``setup``, and before Lightning
    restores a checkpoint and wraps the model. Later fits, validation, testing and prediction leave
    the weights alone. So does every fit after ``load_from_checkpoint`` or ``load_state_dict`` of
    the module.

    **Pretrained weights** that ``__init__`` puts into a part of the module can't be told from
    random ones, and would be overwritten: name the new modules. If you name none, and a norm that
    isn't frozen has been trained (its scales differ, or its batches are counted), the fit ends with
    an error. Models without norms have no such sign. Frozen parameters are never changed.

    All ranks begin with the same weights: DDP takes those of rank 0, and sharded weights (FSDP2)
    are those of rank 0 too. If the module has an ``example_input_array``, the activations are read
    from a call with it, else from the order of the layers.

    If your class defines ``configure_model``, call ``super().configure_model()`` at its end, so
    that the layers made in it are initialised too. For Lightning the mixin overrides this hook, see
    :class:`FusedLayersMixin`.

    Args:
        *args: Positional arguments for the next base class.
        initialize: The name of a scheme; or an :class:`~lightning_practices.init.Initialization`;
            or ``None``, to leave the weights as they are.
        **kwargs: Keyword arguments for the next base class.

    Raises:
        ValueError: If the scheme is unknown. When the first fit starts, if ``initialize`` raises
            one, or would overwrite trained norms.
        TypeError: On subclassing, if bases are of both packages of Lightning. In
            ``configure_model`` under ``ModelParallelStrategy``, if no class but a mixin of this
            package overrides the hook.
    """

    def __init__(
        self, *args: Any, initialize: Scheme | Initialization | None = "auto", **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._initialization = configured(
            "initialize", initialize, Initialization, (str,), Initialization, "'auto'"
        )
        self._has_weights = False  # that must not be overwritten
        self._init_report = InitReport()

    @property
    def init_report(self) -> InitReport:
        """The weights that were drawn, layer by layer; empty before the first fit."""
        return self._init_report

    @override
    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        result = super().load_state_dict(*args, **kwargs)
        self._has_weights = True
        return result

    @override
    def configure_model(self) -> None:
        super().configure_model()
        refuse_unparallelised(self)
        trainer: Any = self._trainer
        is_fit = trainer is not None and trainer.state.fn == TrainerFn.FITTING
        if self._initialization is None or self._has_weights or not is_fit:
            return
        module: Any = self
        if self._initialization.modules is None and (trained := _trained_norms(module)):
            raise ValueError(
                f"initialize={self._initialization.scheme!r} would overwrite weights of"
                f" {type(self).__name__} that have been trained, as the norms {some(trained)} show:"
                " name the new modules, as in initialize=Initialization(modules=['head']), or give"
                " initialize=None"
            )
        self._init_report = self._initialization(module, _batch_of(module))
        self._has_weights = True
        rank_zero_info(f"InitMixin: {self._init_report!r}")


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
