"""The mixin that predicts by Monte Carlo dropout."""

from typing import Any

from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from typing_extensions import override

from lightning_practices.ensembles import MonteCarloDropout, Task
from lightning_practices.mixins._practice import PracticeMixin, configured


class MonteCarloDropoutMixin(PracticeMixin):
    """Predict mean and spread by :func:`lightning_practices.ensembles.monte_carlo_dropout`.

    List the mixin before the class that it extends: ``class Net(MonteCarloDropoutMixin, BaseNet)``.
    The ``predict_step`` of ``BaseNet`` is run once in each pass. It reads the batch, and returns
    logits, or values for ``"regression"``. If ``BaseNet`` has no ``predict_step``, Lightning's
    ``predict_step`` calls the module with the batch. A ``predict_step`` of ``Net`` itself gets the
    prediction from ``super().predict_step(batch, batch_idx)``, which it may call with a part of the
    batch.

    ``Trainer.predict`` then returns a :class:`~lightning_practices.ensembles.MonteCarloPrediction`
    for each batch. The prediction for a sample doesn't depend on the batch size, the order or the
    number of processes. Training, validation and tests are not changed.

    Args:
        *args: Positional arguments for the next base class.
        monte_carlo_dropout: The kind of outputs, ``"multiclass"``, ``"binary"`` or
            ``"regression"``; or a :class:`~lightning_practices.ensembles.MonteCarloDropout`; or
            ``None``, to predict without dropout.
        **kwargs: Keyword arguments for the next base class.

    Raises:
        TypeError: On subclassing, if bases are of both packages of Lightning.
        ValueError: If the kind of outputs is none of ``"multiclass"``, ``"binary"`` and
            ``"regression"``.
        RuntimeError, TypeError, ValueError: In ``predict_step``, see the function.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.mixins import MonteCarloDropoutMixin
        >>> class Net(MonteCarloDropoutMixin, BoringModel):
        ...     def __init__(self, **practices):
        ...         super().__init__(**practices)
        ...         self.layer = nn.Sequential(nn.Dropout(0.2), self.layer)
        >>> trainer = Trainer(barebones=True, accelerator="cpu", limit_predict_batches=1)
        >>> [prediction] = trainer.predict(Net(monte_carlo_dropout="multiclass"))
        >>> prediction.mean.shape, round(prediction.mean.sum().item(), 4)  # probabilities
        (torch.Size([1, 2]), 1.0)
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
            "'multiclass' or monte_carlo_dropout=MonteCarloDropout('multiclass')",
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
