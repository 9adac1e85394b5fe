"""What GradientClipping and GradientClippingMixin share: thresholds, their state, and logs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import Tensor
from torch.optim import Optimizer

from lightning_kernels import (
    clip_grad_adaptive_,
    clip_grad_norm_,
    clip_grad_value_,
    clip_grads_with_norm_,
)
from lightning_practices._names import plain_name
from lightning_practices.callbacks._clipping.settings import ClippingSettings
from lightning_practices.callbacks._trainer.logs import logs_now
from lightning_practices.optim import clip_in_step
from lightning_practices.optim._clip_in_step import clips_in_step

_WINDOW = 1000  # steps whose norms the automatic threshold is a percentile of
_SHOWN = 10  # parameters that an error names


class _Group(NamedTuple):
    """Parameters that are clipped together, and by what; ``None`` for the automatic threshold."""

    parameters: list[Tensor]
    value: float | None


class _Step(NamedTuple):
    """What holds for one step.

    Attributes:
        optimizer: Torch's own, whose step it is.
        factor: That warm-up multiplies thresholds by.
        scale: Of the loss, and so of the gradients.
        logs: Whether it is time to.
    """

    optimizer: Any
    factor: float
    scale: float
    logs: bool


@dataclass
class _State:
    """What is known of one optimizer's gradients; on the device, so that nothing waits for it.

    Attributes:
        steps: Taken.
        looked: Of these, those that were looked at to see whether something was clipped.
        clipped: Of these, those in which something was.
        norms: The last ones, that of step ``i`` at ``i % _WINDOW``; nan for those not finite. A
            list until the device is known.
    """

    steps: int = 0
    looked: int = 0
    clipped: Tensor | float = 0.0
    norms: Tensor | list[float] | None = None

    def percentile(self, norm: Tensor, percentile: float) -> Tensor:
        """Remember the norm of this step, and return the percentile of all that are remembered."""
        if not isinstance(self.norms, Tensor):
            known = self.norms or []
            self.norms = norm.new_full((_WINDOW,), math.nan)
            if known:  # from a checkpoint: the copy waits, once
                self.norms[: len(known)] = torch.tensor(known, dtype=norm.dtype)
        self.norms[self.steps % _WINDOW] = torch.where(norm.isfinite(), norm, math.nan)
        return self.norms.nanquantile(percentile / 100)

    def look(self, clipped: Tensor | bool) -> None:
        self.looked += 1
        self.clipped = self.clipped + clipped

    def primitives(self) -> dict[str, Any]:
        norms = self.norms
        if isinstance(norms, Tensor):
            norms = norms[: self.steps].tolist()
        clipped = float(self.clipped)
        return {"steps": self.steps, "looked": self.looked, "clipped": clipped, "norms": norms}


class Clipper:
    """Clips the gradients of one optimizer at a time.

    Args:
        settings: What it was told.
        owner: Class that it clips for.
        adopts: Whether the Trainer's ``gradient_clip_val`` stands in for a value that isn't given.
    """

    def __init__(self, settings: ClippingSettings, *, owner: str, adopts: bool) -> None:
        self.settings = settings
        self._owner = owner
        self._adopts = adopts
        self._value, self._algorithm = settings.value, settings.algorithm  # in this fit
        self._names: dict[int, str] = {}  # of parameters, by id
        self._patterns: dict[int, str] = {}  # likewise, for those that one matches
        self._states: dict[int, _State] = {}  # by the optimizer's place
        self._flat = False  # shards of several parameters, as FSDP1 has
        self._leaves_it = False  # to the strategy

    def setup(self, trainer: Trainer) -> None:
        """Settle what this fit clips by, and refuse what can't be."""
        given = self.settings
        theirs = trainer.gradient_clip_val or None
        if theirs is not None and (given.has_threshold or not self._adopts):
            raise MisconfigurationException(
                f"Trainer(gradient_clip_val={theirs}) and {self._owner} would both clip: give the"
                " value to one of them alone"
            )
        self._leaves_it = isinstance(trainer.strategy, DeepSpeedStrategy)
        if self._leaves_it and (given.has_threshold or given.groups or not self._adopts):
            raise MisconfigurationException(
                f"{self._owner} can't clip under DeepSpeedStrategy, whose engine has the gradients"
                " and clips them itself, by their norm: set Trainer(gradient_clip_val=1.0), or"
                " 'gradient_clipping': 1.0 in DeepSpeed's config, and no value here"
            )
        self._value, self._algorithm = given.value, given.algorithm
        if theirs is not None:
            algorithm = trainer.gradient_clip_algorithm
            self._value = float(theirs)
            self._algorithm = "value" if algorithm and algorithm.value == "value" else "norm"
        self._flat = isinstance(trainer.strategy, FSDPStrategy)
        if self._flat:
            self._refuse_flat_shards()

    def start(self, pl_module: LightningModule) -> None:
        """Learn the parameters' names, now that they are those that the optimizers have."""
        named = [
            (plain_name(name), p) for name, p in pl_module.named_parameters(remove_duplicate=False)
        ]
        self._names = {id(p): name for name, p in reversed(named)}
        self._patterns = {}
        for pattern in self.settings.groups:
            found = [p for name, p in named if fnmatchcase(name, pattern)]
            if not found:
                raise ValueError(_nothing(pattern, [name for name, _ in named]))
            for p in found:
                self._patterns.setdefault(id(p), pattern)
        optimizers = pl_module.trainer.optimizers
        if self.settings.fused:
            self._refuse_unfused(optimizers)
        if self._flat and self._algorithm == "norm" and len(optimizers) > 1:
            raise MisconfigurationException(
                "FSDPStrategy knows the norm of all gradients together, not that of each of"
                f" {len(optimizers)} optimizers: use ModelParallelStrategy, or algorithm='value'"
            )

    def clip(self, pl_module: LightningModule, optimizer: Any, *, in_step: bool) -> None:
        """Clip the gradients of an optimizer, and log if it is time to.

        Args:
            pl_module: The module that is fitted.
            optimizer: Whose parameters have the gradients; if none has one, nothing happens.
            in_step: Whether this is inside of ``optimizer.step``, and not before.
        """
        if not self._names:
            raise RuntimeError(
                f"{self._owner} hasn't seen the fit start: a configure_callbacks of"
                f" {type(pl_module).__name__} has to extend what super().configure_callbacks()"
                " returns"
            )
        parameters = [
            p for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        if self._leaves_it or not parameters:
            return
        trainer = pl_module.trainer
        place = place_of(trainer, optimizer)
        state = self._states.setdefault(place, _State())
        warmup = self.settings.warmup_steps
        logs = logs_now(trainer)
        reads_scale = not self.settings.fused or (logs and self.settings.top_layers)
        step = _Step(
            optimizer=trainer.optimizers[place],
            factor=min(1.0, (state.steps + 1) / warmup) if warmup else 1.0,
            scale=_loss_scale(trainer, optimizer, in_step) if reads_scale else 1.0,
            logs=logs,
        )
        suffix = f"-{place}" if place else ""
        if step.logs and self.settings.top_layers:
            self._log_largest_layers(trainer, parameters, step, f"grad_norm{suffix}/")
        clip = self._clip_norms if self._algorithm == "norm" else self._clip_elements
        values = clip(trainer, self._groups(parameters), state, step)
        if warmup and self._value is not None:
            values["grad_clip_threshold"] = torch.tensor(self._value * step.factor, device="cpu")
        state.steps += 1
        if step.logs:
            if state.looked:
                values["grad_clipped_fraction"] = torch.as_tensor(state.clipped / state.looked)
            for name, value in values.items():
                pl_module.log(f"{name}{suffix}", value)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": {i: state.primitives() for i, state in self._states.items()}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._states = {i: _State(**state) for i, state in state_dict["optimizers"].items()}

    def reset(self) -> None:
        """Forget all steps."""
        self._states = {}

    def _refuse_flat_shards(self) -> None:
        given = self.settings
        alone = {  # what asks for single parameters
            "algorithm='adaptive'": self._algorithm == "adaptive",
            "log_layers": given.top_layers > 0,
            "groups": self._algorithm == "norm" and bool(given.groups),
            "percentile": given.percentile is not None,
            "fused": given.fused,
        }
        for name, wanted in alone.items():
            if wanted:
                raise MisconfigurationException(
                    f"FSDPStrategy shards several parameters as one, and {self._owner} has no"
                    f" {name} for those: use ModelParallelStrategy"
                )

    def _refuse_unfused(self, optimizers: list[Optimizer]) -> None:
        if self._value is None or self._algorithm != "norm":
            raise MisconfigurationException(
                f"{self._owner}: fused=True needs a largest norm, but got {self._value} and"
                f" {self._algorithm!r}: give a value, or leave out fused"
            )
        for optimizer in optimizers:
            if not clips_in_step(optimizer):
                raise MisconfigurationException(
                    f"{self._owner}: fused=True leaves clipping to the optimizer, but this"
                    f" {type(optimizer).__name__} can't: make it with fused=True, which torch's"
                    " SGD, Adam and AdamW have, and newer ones' Adagrad, or leave out fused here"
                )

    def _groups(self, parameters: list[Tensor]) -> list[_Group]:
        """Return the parameters by how they are clipped."""
        given = self.settings
        default = math.inf if self._value is None and given.percentile is None else self._value
        if not self._patterns:
            return [_Group(parameters, default)]
        found: dict[str | None, list[Tensor]] = {}
        for p in parameters:
            found.setdefault(self._patterns.get(id(p)), []).append(p)
        return [
            _Group(members, default if pattern is None else given.groups[pattern])
            for pattern, members in found.items()
        ]

    def _clip_norms(
        self, trainer: Trainer, groups: list[_Group], state: _State, step: _Step
    ) -> dict[str, Tensor]:
        """Clip each group by its norm, and return what there is to log."""
        pairs: list[tuple[Tensor, Tensor | float]] = []  # norms and thresholds
        values: dict[str, Tensor] = {}
        for parameters, value in groups:
            if value is None and self.settings.percentile is not None:
                norm = _norm(parameters, step.scale)
                limit = state.percentile(norm, self.settings.percentile) * step.factor
                values["grad_clip_threshold"] = limit
                least = torch.finfo(limit.dtype).tiny  # for gradients that are all 0
                clip_grads_with_norm_(parameters, limit.clamp(min=least), norm)
                pairs.append((norm, limit))
            elif value is not None and value < math.inf:
                limit_now = value * step.factor
                pairs.append((self._clip_norm(trainer, parameters, limit_now, step), limit_now))
            elif step.logs and not self._flat:
                pairs.append((_norm(parameters, step.scale), math.inf))
        if pairs:
            state.look(_exceeds(pairs))
            if step.logs:
                device = pairs[0][0].device
                after = torch.stack([norm.clamp(max=limit).to(device) for norm, limit in pairs])
                before = torch.stack([norm.to(device) for norm, _ in pairs])
                values["grad_norm"] = torch.linalg.vector_norm(before)
                values["grad_norm_clipped"] = torch.linalg.vector_norm(after)
        return values

    def _clip_norm(
        self, trainer: Trainer, parameters: list[Tensor], limit: float, step: _Step
    ) -> Tensor:
        """Clip by the norm of all parameters together, and return it."""
        if self.settings.fused:
            return clip_in_step(step.optimizer, limit, scaler=_scaler(trainer))
        root: Any = trainer.strategy.model  # under FSDP1 it alone can
        clip = root.clip_grad_norm_ if self._flat else partial(clip_grad_norm_, parameters)
        return _unscaled(clip(limit * step.scale), step.scale)

    def _clip_elements(
        self, _: Trainer, groups: list[_Group], state: _State, step: _Step
    ) -> dict[str, Tensor]:
        """Clip by value or adaptively, and return what there is to log."""
        everything = [p for group in groups for p in group.parameters]
        looks = step.logs and not self._flat  # whose norms are those of a shard
        before = _norm(everything, step.scale) if looks else None
        clip = clip_grad_value_ if self._algorithm == "value" else clip_grad_adaptive_
        for parameters, value in groups:
            if value is not None and value < math.inf:
                clip(parameters, value * step.factor * step.scale)
        if before is None:
            return {}
        after = _norm(everything, step.scale)
        state.look(after < before)
        return {"grad_norm": before, "grad_norm_clipped": after}

    def _log_largest_layers(
        self, trainer: Trainer, parameters: list[Tensor], step: _Step, prefix: str
    ) -> None:
        """Log the norms of the layers whose gradients have the largest ones."""
        layers: dict[str, list[Tensor]] = {}
        for p in parameters:
            name = self._names.get(id(p), "")
            layers.setdefault(name.rpartition(".")[0] or name, []).append(p)
        norms = [_norm(members, step.scale) for members in layers.values()]
        together = torch.stack([norm.to(norms[0].device) for norm in norms])
        top = together.topk(min(self.settings.top_layers, len(norms)))
        names = list(layers)
        largest = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        values = {f"{prefix}{names[i]}": norm for i, norm in largest}
        for logger in trainer.loggers:  # `log` would repeat layers that no longer are among them
            logger.log_metrics(values, step=trainer.fit_loop.epoch_loop._batches_that_stepped)


def _norm(parameters: list[Tensor], scale: float) -> Tensor:
    """Return the norm of all gradients, and leave them as they are."""
    return _unscaled(clip_grad_norm_(parameters, math.inf, nonfinite="skip"), scale)


def _exceeds(pairs: list[tuple[Tensor, Tensor | float]]) -> Tensor | bool:
    """Return whether a norm is above its limit; of norms on a device a tensor, there to stay."""
    device = pairs[0][0].device
    if device.type == "cpu" and all(norm.device == device for norm, _ in pairs):
        return any(float(norm) > float(limit) for norm, limit in pairs)
    above = [(norm > limit).to(device) for norm, limit in pairs]
    return above[0] if len(above) == 1 else torch.stack(above).any()


def _unscaled(norm: Tensor, scale: float) -> Tensor:
    return norm if scale == 1.0 else norm / scale


def place_of(trainer: Trainer, optimizer: Any) -> int:
    """Return the place of an optimizer, or of Lightning's wrapper of it, among the Trainer's."""
    bare = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
    for place, other in enumerate(trainer.optimizers):
        if other is bare:
            return place
    raise ValueError(
        f"{type(bare).__name__} isn't one of the optimizers that configure_optimizers returned"
    )


def _scaler(trainer: Trainer) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)


def _loss_scale(trainer: Trainer, optimizer: Any, in_step: bool) -> float:
    """Return what the gradients are multiplied by; to know it waits for the device."""
    scaler = _scaler(trainer)
    # Lightning unscales them in the step, unless the optimizer does so itself, as fused ones do.
    if scaler is None or (in_step and not getattr(optimizer, "_step_supports_amp_scaling", False)):
        return 1.0
    scale: float = scaler.get_scale()
    return scale


def _nothing(pattern: str, names: list[str]) -> str:
    """Say that a pattern matches no parameter, and which there are."""
    shown = [*map(repr, names[:_SHOWN])]
    if len(names) > _SHOWN:
        shown.append(f"and {len(names) - _SHOWN} more")
    there = f"there are: {', '.join(shown)}" if shown else "there is none at all"
    return f"no parameter's name matches {pattern!r} of groups; {there}"
