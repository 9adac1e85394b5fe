"""The mixin that adds early stopping."""

from typing import Any
from weakref import WeakSet

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lightning_practices._packages import either
from lightning_practices.callbacks import EarlyStopping
from lightning_practices.mixins._practice import MonitorMixin, check_constructed, configured

_PATIENCE = 10
_OF_MODULES: WeakSet[Callback] = WeakSet()  # callbacks that mixins brought


class EarlyStoppingMixin(MonitorMixin):
    """Add :class:`~lightning_practices.callbacks.EarlyStopping` to every fit of the module.

    List the mixin before the class that it extends: ``class Net(EarlyStoppingMixin, BaseNet)``. If
    ``Net`` has its own ``configure_callbacks``, extend the list that
    ``super().configure_callbacks()`` returns.

    If the Trainer has an ``EarlyStopping``, Lightning's or that of this package, the default
    ``early_stopping=10`` adds no callback, and rank 0 logs this; :attr:`early_stopping` is the
    Trainer's then. Any other value beside it is an error. To use a second ``EarlyStopping``, return
    it from ``configure_callbacks``. finetuning-scheduler, which stops by itself, is refused.

    Args:
        *args: Positional arguments for the next base class.
        early_stopping: The patience: the number of validations in a row without improvement of
            ``monitor`` that ends training; or an
            :class:`~lightning_practices.callbacks.EarlyStopping`, which has its own ``monitor``,
            ``mode`` and ``patience``; or ``None``, for no early stopping.
        **kwargs: Keyword arguments for the next base class; ``monitor`` and ``mode`` are among
            them, see :class:`MonitorMixin`.

    Raises:
        TypeError: On subclassing, if bases are of both packages of Lightning.
        MisconfigurationException: When the fit starts, if the Trainer has an ``EarlyStopping`` too,
            and ``early_stopping`` isn't the default; or see the callback.
        ValueError: See the callback.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.mixins import EarlyStoppingMixin
        >>> class Net(EarlyStoppingMixin, BoringModel):
        ...     def validation_step(self, batch, batch_idx):  # a loss that rises after epoch 2
        ...         self.log("val_loss", abs(self.current_epoch - 2.0))
        >>> module = Net(early_stopping=3)
        >>> trainer = Trainer(max_epochs=20, limit_train_batches=4, limit_val_batches=1,
        ...                   accelerator="cpu", logger=False,
        ...                   enable_checkpointing=False, enable_progress_bar=False,
        ...                   enable_model_summary=False)
        >>> trainer.fit(module)
        >>> trainer.current_epoch, module.early_stopping.best_step
        (6, 12)
    """

    def __init__(
        self, *args: Any, early_stopping: int | EarlyStopping | None = _PATIENCE, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        monitor = early_stopping if isinstance(early_stopping, str) else self._monitor
        callback = configured(
            "early_stopping",
            early_stopping,
            EarlyStopping,
            (int,),
            lambda patience: EarlyStopping(self._monitor, patience=patience, mode=self._mode),
            f"10 or early_stopping=EarlyStopping({monitor!r}, patience=10)",
        )
        self._early_stopping = self._bring(callback)
        self._is_patience_default = type(early_stopping) is int and early_stopping == _PATIENCE
        self._stopping_of_trainer: LightningEarlyStopping | None = None  # if it has one

    @override
    def configure_callbacks(self) -> list[Callback]:
        check_constructed(self)
        if self._trainer is not None and self._early_stopping is not None:
            # Before its setup, in which it takes our callback for one of Lightning's.
            self._early_stopping.refuse_others(self._trainer)
            self._prefer_stopping_of(self._trainer, self._early_stopping)
        return super().configure_callbacks()

    @property
    def early_stopping(self) -> EarlyStopping | None:
        """The callback, with ``best_step``, ``fit_steps``, ``best_score``; ``None`` if off.

        If the Trainer's is used it is this one, or ``None`` if that is Lightning's.
        """
        used = self._stopping_of_trainer or self._early_stopping
        return used if isinstance(used, EarlyStopping) else None

    def _prefer_stopping_of(self, trainer: Any, own: EarlyStopping) -> None:
        """Leave out our callback if the Trainer has one that stops.

        Lightning would replace the Trainer's by ours.
        """
        _OF_MODULES.add(own)
        if own in trainer.callbacks:  # since an earlier run
            theirs = None
        else:
            found = (c for c in trainer.callbacks if isinstance(c, either(LightningEarlyStopping)))
            theirs = next((one for one in found if one not in _OF_MODULES), None)
        self._stopping_of_trainer = theirs
        self._leave_out(own, theirs is not None)
        if theirs is None or trainer.state.fn != TrainerFn.FITTING:
            return
        name = f"{type(theirs).__name__}({theirs.monitor!r})"
        if not self._is_patience_default:
            raise MisconfigurationException(
                f"the Trainer has {name}, and early_stopping={own.patience} of"
                f" {type(self).__name__} would stop by {own.monitor!r} too: remove the Trainer's,"
                " or give early_stopping=None; for both return one from configure_callbacks"
            )
        rank_zero_info(
            f"EarlyStoppingMixin: the Trainer's {name} stops this fit, so the default"
            f" early_stopping={_PATIENCE}, by {own.monitor!r}, is left out"
        )
