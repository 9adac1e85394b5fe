"""Monte Carlo dropout as a part of the module."""

from typing import Any, Literal

from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from typing_extensions import override

from lightning_practices.ensembles import monte_carlo_dropout
from lightning_practices.mixins._practice import PracticeMixin


class MonteCarloDropoutMixin(PracticeMixin):
    """Predict by :func:`lightning_practices.ensembles.monte_carlo_dropout`, mean and spread.

    List it before the module it extends: ``class Net(MonteCarloDropoutMixin, BaseNet)``. The
    ``predict_step`` of ``BaseNet`` is run as often as there are passes, and decides how a batch is
    read; it returns logits, or values for ``"regression"``. Without one, Lightning's calls the
    module with the batch. ``Net`` itself, if it has a ``predict_step``, gets what is predicted from
    ``super().predict_step(batch, batch_idx)``, which it may call with a part of the batch.

    ``Trainer.predict`` then returns a :class:`~lightning_practices.ensembles.MonteCarloPrediction`
    for each batch, the same for each sample whatever the batch size, order and number of processes.
    Training, validation and tests stay as they are.

    Args:
        *args: Passed on.
        monte_carlo_task: What the outputs are: ``"multiclass"`` logits of shape ``(N, C, *)``,
            ``"binary"`` logits ``(N, *)``, or values, ``"regression"``.
        monte_carlo_passes: How many, at least 2.
        monte_carlo_seed: Which networks are drawn from those that dropout trains.
        monte_carlo_max_batch_size: Most samples in one forward, to run several passes in one where
            batches are small. Default: one pass at a time.
        **kwargs: Passed on.

    Raises:
        TypeError: On subclassing, if a base is from ``pytorch_lightning``.
        RuntimeError, TypeError, ValueError: From ``predict_step``, as from the function.
    """

    def __init__(
        self,
        *args: Any,
        monte_carlo_task: Literal["binary", "multiclass", "regression"],
        monte_carlo_passes: int = 30,
        monte_carlo_seed: int = 0,
        monte_carlo_max_batch_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.monte_carlo_task = monte_carlo_task
        self.monte_carlo_passes = monte_carlo_passes
        self.monte_carlo_seed = monte_carlo_seed
        self.monte_carlo_max_batch_size = monte_carlo_max_batch_size

    @override
    def predict_step(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        step = super().predict_step
        if not is_param_in_hook_signature(step, "batch_idx", min_args=2):
            args = ()  # Lightning passes a step only what it takes
        return monte_carlo_dropout(
            self,
            batch,
            task=self.monte_carlo_task,
            passes=self.monte_carlo_passes,
            seed=self.monte_carlo_seed,
            max_batch_size=self.monte_carlo_max_batch_size,
            forward=lambda batch: step(batch, *args, **kwargs),
        )
