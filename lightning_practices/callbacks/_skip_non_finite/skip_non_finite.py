"""Optimizer steps that are skipped because a gradient is nan or infinite."""

import math
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import LBFGS, Optimizer
from typing_extensions import override

from lightning_kernels import clip_grad_norm_
from lightning_practices._names import plain_name
from lightning_practices._twin import reject_twin
from lightning_practices.callbacks._skip_non_finite.report import (
    NonFiniteParameter,
    NonFiniteReport,
)
from lightning_practices.callbacks._trainer.logs import log_number, logs_now
from lightning_practices.callbacks._trainer.optimizers import grad_scaler, place_of
from lightning_practices.callbacks._trainer.others import put_first
from lightning_practices.callbacks._trainer.ranks import any_rank, sum_over_ranks
from lightning_practices.callbacks._trainer.sharding import local
from lightning_practices.callbacks._trainer.strategies import refuse


class SkipNonFinite(Callback):
    """Skip each step in which a gradient is nan or infinite, and stop after many in a row.

    Of such a step nothing remains: the gradients of that optimizer are dropped on all ranks, and
    all of torch's optimizers leave a parameter without a gradient alone, with its weight decay,
    momentum and step count. Everything else goes on as after any step: ``global_step``,
    ``max_steps`` and schedulers count it. If it was accumulated, all of its batches are lost. What
    the forward pass writes, as batch norm does its running statistics, isn't taken back.

    After ``max_consecutive`` of them in a row by one optimizer the fit ends with a
    ``RuntimeError``, so that no job takes it for trained, sweeps go on and nothing is validated or
    saved; the weights are those of the last good step. Its message is :attr:`report`: which
    parameters had such gradients, and the first of them.

    Each step costs one pass over the gradients and one wait for the device, since only the host can
    skip. The largest absolute value is looked at, so that large finite gradients don't count.
    The number of skipped steps is logged as ``skipped_steps``, if the trainer has a logger, every
    ``log_every_n_steps``. It stands first among the callbacks, so before :class:`GradientClipping`
    makes all gradients nan.

    Under ``"16-mixed"`` this does nothing: the ``GradScaler`` skips steps itself, and to do so is
    how it finds its scale.

    Args:
        max_consecutive: Skipped steps in a row that end the fit.

    Attributes:
        skipped: Steps skipped so far.
        consecutive: Of these, the last ones in a row, of each optimizer by its place.
        report: What was wrong with the last gradients when the fit was ended, else ``None``.

    Raises:
        ValueError: If ``max_consecutive`` is not 1 or more.
        MisconfigurationException: When the fit starts, if the strategy is DeepSpeed, whose engine
            has the gradients, or an optimizer is ``LBFGS``, of whose step they are a part.
        RuntimeError: After that many steps in a row.
        TypeError: If the trainer or the module is from ``pytorch_lightning``.
    """

    def __init__(self, max_consecutive: int = 10) -> None:
        if max_consecutive < 1:
            raise ValueError(f"max_consecutive has to be 1 or more, but got {max_consecutive}")
        self.max_consecutive = max_consecutive
        self.skipped = 0
        self.consecutive: dict[int, int] = {}
        self.report: NonFiniteReport | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        reject_twin(trainer, pl_module)
        if stage != "fit":
            return
        refuse(
            trainer,
            DeepSpeedStrategy,
            who="SkipNonFinite",
            cannot="see the gradients",
            instead="remove SkipNonFinite; with fp16 the engine skips such steps itself",
        )
        if trainer.global_step == 0:  # not a fit that goes on
            self.skipped, self.consecutive = 0, {}
        self.report = None
        put_first(trainer, self)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if any(isinstance(optimizer, LBFGS) for optimizer in trainer.optimizers):
            raise MisconfigurationException(
                "SkipNonFinite can't skip a step of LBFGS, which computes gradients again in the"
                " midst of it: use another optimizer, or leave SkipNonFinite out"
            )
        if grad_scaler(trainer) is not None:
            rank_zero_info(
                "SkipNonFinite: left to the GradScaler of 16-mixed, which skips steps of nan or"
                " infinite gradients itself"
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
            log_number(pl_module, "skipped_steps", float(self.skipped))

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
            f"SkipNonFinite: gradients were nan or infinite in {steps} steps in a row, the last one"
            f" is step {trainer.global_step} in epoch {trainer.current_epoch}. None has touched the"
            f" weights.\n{self.report}"
        )


def _report(
    trainer: Trainer, pl_module: LightningModule, parameters: list[Tensor]
) -> NonFiniteReport:
    """Return which gradients are nan or infinite, on whichever rank."""
    ours = {id(p) for p in parameters}
    named = {name: p for name, p in pl_module.named_parameters() if id(p) in ours}
    rows = []
    for p in named.values():
        # Over ranks, counts of shards add up, and counts of copies leave their ratio as it is.
        grad = torch.zeros(0) if p.grad is None else local(p.grad)
        counts = grad.isnan().sum(), grad.isinf().sum(), torch.tensor(grad.numel())
        rows.append(torch.stack([count.cpu() for count in counts]))
    shares = [
        NonFiniteParameter(plain_name(name), nan / max(size, 1), inf / max(size, 1))
        for name, (nan, inf, size) in zip(
            named, sum_over_ranks(trainer, torch.stack(rows)).tolist(), strict=True
        )
    ]
    bad = tuple(p for p in shares if p.nan or p.infinite)
    return NonFiniteReport(bad, finite=len(shares) - len(bad))
