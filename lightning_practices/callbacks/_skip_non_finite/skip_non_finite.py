"""The callback that skips optimizer steps whose gradients are nan or infinite."""

import math
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import LBFGS, Optimizer
from typing_extensions import override

from lightning_kernels import clip_grad_norm_
from lightning_practices._arguments import check_whole
from lightning_practices._names import count, plain_name
from lightning_practices.callbacks._practice import PracticeCallback
from lightning_practices.callbacks._skip_non_finite.report import (
    NonFiniteParameter,
    NonFiniteReport,
)
from lightning_practices.callbacks._trainer.logs import log_numbers, logs_now
from lightning_practices.callbacks._trainer.optimizers import grad_scaler, place_of
from lightning_practices.callbacks._trainer.others import put_first
from lightning_practices.callbacks._trainer.ranks import any_rank, sum_over_ranks
from lightning_practices.callbacks._trainer.sharding import local
from lightning_practices.callbacks._trainer.strategies import refuse


class SkipNonFinite(PracticeCallback):
    """Skip each optimizer step in which a gradient is nan or infinite; stop after many in a row.

    To skip a step, the gradients of the optimizer are set to ``None`` on all ranks. All of torch's
    optimizers ignore a parameter without a gradient: its weight, momentum and step count stay
    unchanged, and it isn't decayed. Everything else continues as after any step: ``global_step``,
    ``max_steps`` and schedulers count the skipped step. With gradient accumulation the gradients of
    all batches of the step are lost. Changes by the forward pass, such as running statistics of
    batch norms, are not undone.

    After ``max_consecutive`` skipped steps in a row of one optimizer the fit ends with a
    ``RuntimeError``. So the job counts as failed, a sweep continues with its next run, and nothing
    is validated or saved. The weights are those of the last step that wasn't skipped. The error
    message contains :attr:`report`, which lists the parameters with nan or infinite gradients.

    Each step costs one pass over the gradients and one wait for the device, since the host has to
    know whether to skip. The pass computes the largest absolute value rather than a sum, which
    large finite gradients could overflow. The number of skipped steps is logged as
    ``skipped_steps`` every ``log_every_n_steps``, if there is a logger or :class:`LearningCurves`.
    This callback moves itself before all other callbacks, since :class:`GradientClipping` could
    make all gradients nan.

    Under ``"16-mixed"`` this callback does nothing: the ``GradScaler`` itself skips steps with nan
    or infinite gradients, and adapts its scale by them.

    Args:
        max_consecutive: The number of skipped steps in a row that ends the fit.

    Attributes:
        skipped: The number of steps skipped so far.
        consecutive: The number of skipped steps in a row up to now, by the optimizer's index.
        report: The report on the step that ended the fit; ``None`` if no step has.

    Raises:
        ValueError: If ``max_consecutive`` is below 1.
        MisconfigurationException: When the fit starts, if the strategy is DeepSpeed, or an
            optimizer is ``LBFGS``, which computes gradients within its step.
        RuntimeError: After ``max_consecutive`` skipped steps in a row.
        TypeError: If the Trainer and the module are of different packages of Lightning.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.callbacks import SkipNonFinite
        >>> class Net(BoringModel):
        ...     def training_step(self, batch, batch_idx):
        ...         loss = self.step(batch)
        ...         return loss * torch.nan if batch_idx == 1 else loss
        >>> module, skip = Net(), SkipNonFinite()
        >>> Trainer(barebones=True, accelerator="cpu", max_steps=4, callbacks=[skip]).fit(module)
        >>> skip.skipped, bool(module.layer.weight.isfinite().all())
        (1, True)
    """

    def __init__(self, max_consecutive: int = 10) -> None:
        self.max_consecutive = check_whole("max_consecutive", max_consecutive, 1)
        self.report: NonFiniteReport | None = None
        self._reset()

    @override
    def _reset(self) -> None:
        self.skipped = 0
        self.consecutive: dict[int, int] = {}

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        refuse(
            trainer,
            DeepSpeedStrategy,
            who="SkipNonFinite",
            cannot="see the gradients",
            instead="remove SkipNonFinite; with fp16 the engine skips such steps itself",
        )
        self.report = None
        put_first(trainer, self)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if any(isinstance(optimizer, LBFGS) for optimizer in trainer.optimizers):
            raise MisconfigurationException(
                "SkipNonFinite can't skip a step of LBFGS, which computes gradients within the"
                " step: use another optimizer, or leave SkipNonFinite out"
            )
        if grad_scaler(trainer) is not None:
            rank_zero_info(
                "SkipNonFinite does nothing under 16-mixed, whose GradScaler skips steps with nan"
                " or infinite gradients itself"
            )

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if grad_scaler(trainer) is not None:
            return
        place = place_of(trainer, optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        largest = clip_grad_norm_(parameters, math.inf, norm_type=math.inf, nonfinite="skip")
        if not any_rank(trainer, ~largest.isfinite()):
            self.consecutive[place] = 0
        else:
            self.skipped += 1
            self.consecutive[place] = self.consecutive.get(place, 0) + 1
            if self.consecutive[place] >= self.max_consecutive:
                self._stop(trainer, pl_module, parameters, self.consecutive[place])
            for p in parameters:
                p.grad = None
            rank_zero_info(
                f"SkipNonFinite: a gradient is nan or infinite, step {trainer.global_step} is"
                f" skipped (epoch {trainer.current_epoch}, {self.consecutive[place]} in a row)"
            )
        if logs_now(trainer):
            log_numbers(pl_module, {"skipped_steps": float(self.skipped)})

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "consecutive": dict(self.consecutive)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]
        self.consecutive = dict(state_dict["consecutive"])

    def _stop(
        self, trainer: Trainer, pl_module: LightningModule, parameters: list[Tensor], steps: int
    ) -> None:
        self.report = _report(trainer, pl_module, parameters)
        raise RuntimeError(
            f"SkipNonFinite: gradients were nan or infinite in {count(steps, 'step')} in a row, the"
            f" last of which is step {trainer.global_step} in epoch {trainer.current_epoch}. No"
            f" such step has changed the weights.\n{self.report}"
        )


def _report(
    trainer: Trainer, pl_module: LightningModule, parameters: list[Tensor]
) -> NonFiniteReport:
    """Report the gradients that are nan or infinite on any rank; every rank has to call this."""
    ours = {id(p) for p in parameters}
    named = {name: p for name, p in pl_module.named_parameters() if id(p) in ours}
    rows = []
    for p in named.values():
        # Summed over ranks, counts of shards add up, and counts of equal copies keep their ratio.
        grad = torch.zeros(0) if p.grad is None else local(p.grad)
        counts = grad.isnan().sum(), grad.isinf().sum(), torch.tensor(grad.numel())
        rows.append(torch.stack([one.cpu() for one in counts]))
    shares = [
        NonFiniteParameter(plain_name(name), nan / max(size, 1), inf / max(size, 1))
        for name, (nan, inf, size) in zip(
            named, sum_over_ranks(trainer, torch.stack(rows)).tolist(), strict=True
        )
    ]
    bad = tuple(p for p in shares if p.nan or p.infinite)
    return NonFiniteReport(bad, finite=len(shares) - len(bad))
