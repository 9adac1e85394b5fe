"""The mixin that initialises a LightningModule's weights."""

from typing import Any

from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from lightning_practices.callbacks import Initialize
from lightning_practices.init import Initialization, InitReport, Scheme
from lightning_practices.mixins._configure_model import refuse_unparallelised
from lightning_practices.mixins._practice import PracticeMixin, configured

_OFF = "The weights are left as they are: initialization is off."


class InitMixin(PracticeMixin):
    """Initialise the module by :func:`~lightning_practices.init.initialize`, in its first fit.

    ::

        class Net(InitMixin, LightningModule): ...

        Net()  # all weights are new
        Net(initialization=Initialization(modules=["head"]))  # the backbone is pretrained

    List the mixin before the class that it extends. The weights are drawn once, in
    ``configure_model`` of the first fit: after ``__init__`` and ``setup``, and before Lightning
    restores a checkpoint and wraps the model. Later fits, validation, testing and prediction leave
    the weights alone. So does every fit after ``load_from_checkpoint`` or ``load_state_dict`` of
    the module.

    **Pretrained weights** that ``__init__`` puts into a part of the module would be overwritten:
    name the new modules, see :class:`~lightning_practices.callbacks.Initialize`.

    All ranks begin with the same weights; sharded weights (FSDP2) are those of rank 0 too.

    If your class defines ``configure_model``, call ``super().configure_model()`` at its end, so
    that the layers made in it are initialised too. For Lightning the mixin overrides this hook, see
    :class:`FusedLayersMixin`.

    Args:
        *args: Positional arguments for the next base class.
        initialization: The name of a scheme; or an
            :class:`~lightning_practices.init.Initialization`; or ``None``, to leave the weights as
            they are.
        **kwargs: Keyword arguments for the next base class.

    Raises:
        ValueError: If the scheme is unknown. When the first fit starts, see
            :class:`~lightning_practices.callbacks.Initialize`.
        TypeError: On subclassing, if bases are of both packages of Lightning. In
            ``configure_model`` under ``ModelParallelStrategy``, if no class but a mixin of this
            package overrides the hook.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.mixins import InitMixin
        >>> class Net(InitMixin, BoringModel): ...
        >>> module = Net(initialization="kaiming_normal")
        >>> Trainer(barebones=True, accelerator="cpu", max_steps=1).fit(module)
        >>> module.init_report
        InitReport(1 initialized, 0 zeroed, 0 kept)
    """

    def __init__(
        self, *args: Any, initialization: Scheme | Initialization | None = "auto", **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        own = configured(
            "initialization", initialization, Initialization, (str,), Initialization, "'auto'"
        )
        self._initialize = None if own is None else Initialize(own)
        self._has_weights = False  # that must not be overwritten

    @property
    def init_report(self) -> InitReport:
        """The weights that were drawn, layer by layer; empty before the first fit."""
        own: Initialize | None = vars(self).get("_initialize")
        return InitReport(when_empty=_OFF) if own is None else own.report

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
        if self._initialize is None or self._has_weights or not is_fit:
            return
        self._initialize.initialize(trainer, self)
        self._has_weights = True
