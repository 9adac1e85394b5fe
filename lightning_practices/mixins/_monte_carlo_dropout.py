"""Monte Carlo dropout as a part of the module."""

from typing import Any

from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from typing_extensions import override

from lightning_practices.ensembles import MonteCarloDropout, Task
from lightning_practices.mixins._practice import PracticeMixin, configured


class MonteCarloDropoutMixin(PracticeMixin):
    """Predict by :func:`lightning_practices.ensembles.monte_carlo_dropout`, mean and spread.

    List it before the module it extends: ``class Net(MonteCarloDropoutMixin, BaseNet)``. The
    ``predict_step`` of ``BaseNet`` is run once in each pass, and decides how a batch is read. It
    returns logits, or values for ``"regression"``. Without a ``predict_step``, Lightning's calls
    the module with the batch. A ``predict_step`` of ``Net`` itself gets the prediction from
    ``super().predict_step(batch, batch_idx)``, which it may call with a part of the batch.

    ``Trainer.predict`` then returns a :class:`~lightning_practices.ensembles.MonteCarloPrediction`
    for each batch. It is the same for each sample whatever the batch size, the order and the number
    of processes. Training, validation and tests stay as they are.

    Args:
        *args: Passed on.
        monte_carlo_dropout: The kind of outputs, ``"multiclass"``, ``"binary"`` or
            ``"regression"``; or a :class:`~lightning_practices.ensembles.MonteCarloDropout`; or
            ``None``, to predict without dropout.
        **kwargs: Passed on.

    Raises:
        TypeError: On subclassing, if a base is from ``pytorch_lightning``.
        ValueError: If the kind of outputs is none of the three.
        RuntimeError, TypeError, ValueError: From ``predict_step``, as from the function.
    """

    def __init__(
        self, *args: Any, monte_carlo_dropout: Task | MonteCarloDropout | None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.monte_carlo_dropout = configured(
            "monte_carlo_dropout",
            monte_carlo_dropout,
            MonteCarloDropout,
            (str,),
            MonteCarloDropout,
        )

    @override
    def predict_step(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        step = super().predict_step
        if not is_param_in_hook_signature(step, "batch_idx", min_args=2):
            args = ()  # Lightning passes a step only the arguments that it takes
        if self.monte_carlo_dropout is None:
            return step(batch, *args, **kwargs)
        return self.monte_carlo_dropout(
            self, batch, forward=lambda batch: step(batch, *args, **kwargs)
        )
