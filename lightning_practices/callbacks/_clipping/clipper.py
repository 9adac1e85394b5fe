"""The clipping of one optimizer's gradients: thresholds, norms and logs."""

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import Tensor
from torch.optim import Optimizer

from lightning_kernels import (
    clip_grad_adaptive_,
    clip_grad_norm_,
    clip_grad_value_,
    clip_grads_with_norm_,
)
from lightning_practices._arguments import shown
from lightning_practices._names import plain_name
from lightning_practices._packages import either
from lightning_practices.callbacks._clipping.settings import ClippingSettings
from lightning_practices.callbacks._clipping.state import ClippingState
from lightning_practices.callbacks._trainer.logs import logs_now
from lightning_practices.callbacks._trainer.optimizers import grad_scaler, place_of
from lightning_practices.callbacks._trainer.strategies import refuse
from lightning_practices.optim import clip_in_step, clips_in_step

_SHOWN = 10  # parameter names in an error message


class _Group(NamedTuple):
    """Parameters that are clipped together, and the threshold; ``None`` for an automatic one."""

    parameters: list[Tensor]
    value: float | None


class _Step(NamedTuple):
    """One step of an optimizer.

    Attributes:
        optimizer: Torch's own optimizer, not Lightning's wrapper.
        factor: The factor of the thresholds: below 1 in the warm-up, 1 after it.
        scale: The loss scale, by which the gradients are multiplied.
        logs: Whether to log at this step.
    """

    optimizer: Any
    factor: float
    scale: float
    logs: bool


class Clipper:
    """Clips the gradients of one optimizer at a time.

    Args:
        settings: The arguments of the callback.

    Attributes:
        serves_module: Whether the module calls :meth:`clip` in its own hook. A missing threshold is
            then taken from the Trainer's ``gradient_clip_val``.
    """

    def __init__(self, settings: ClippingSettings) -> None:
        self.settings = settings
        self.serves_module = False
        self._is_set_up = False
        self._value, self._algorithm = settings.value, settings.algorithm  # in this fit
        self._names: dict[int, str] = {}  # of each parameter, by its id
        self._patterns: dict[int, str] = {}  # the pattern matched by a parameter, by id
        self._states: dict[int, ClippingState] = {}  # by the optimizer's index
        self._is_flat = False  # whether a gradient is a shard of several parameters, as in FSDP1
        self._engine_clips = False  # whether DeepSpeed's engine clips

    def setup(self, trainer: Trainer) -> None:
        """Choose the threshold and algorithm of this fit, and refuse unsupported arguments."""
        given = self.settings
        theirs = trainer.gradient_clip_val or None
        if theirs is not None and (given.has_threshold or not self.serves_module):
            off = ", as by gradient_clipping=None of the mixin" if self.serves_module else ""
            raise MisconfigurationException(
                f"Trainer(gradient_clip_val={theirs}) and GradientClipping would both clip: give"
                f" the value to one of them alone{off}"
            )
        self._engine_clips = isinstance(trainer.strategy, either(DeepSpeedStrategy))
        if given.has_threshold or given.groups or not self.serves_module:
            refuse(
                trainer,
                DeepSpeedStrategy,
                who="GradientClipping",
                cannot="clip",
                instead="let the engine clip by norm, by Trainer(gradient_clip_val=1.0) or"
                " 'gradient_clipping': 1.0 in DeepSpeed's config, and leave GradientClipping out",
            )
        self._value, self._algorithm = given.value, given.algorithm
        if theirs is not None:
            algorithm = trainer.gradient_clip_algorithm
            self._value = float(theirs)
            self._algorithm = "value" if algorithm and algorithm.value == "value" else "norm"
        self._is_flat = isinstance(trainer.strategy, either(FSDPStrategy))
        self._is_set_up, self._names = True, {}  # `start` records the names of this fit
        for argument in self._arguments_for_single_parameters():
            refuse(
                trainer,
                FSDPStrategy,
                who=f"GradientClipping({argument})",
                cannot="see the gradients of single parameters",
                instead=f"use ModelParallelStrategy (FSDP2), or leave out {argument}",
            )

    def start(self, pl_module: LightningModule) -> None:
        """Record the parameters' names, once module and optimizers have the same tensors."""
        named = [
            (plain_name(name), p) for name, p in pl_module.named_parameters(remove_duplicate=False)
        ]
        self._names = {id(p): name for name, p in reversed(named)}
        self._patterns = {}
        for pattern in self.settings.groups:
            found = [p for name, p in named if fnmatchcase(name, pattern)]
            if not found:
                raise ValueError(_no_match(pattern, [name for name, _ in named]))
            for p in found:
                self._patterns.setdefault(id(p), pattern)
        optimizers = pl_module.trainer.optimizers
        if self.settings.fused:
            self._refuse_unfused(optimizers)
        if self._is_flat and self._algorithm == "norm" and len(optimizers) > 1:
            raise MisconfigurationException(
                "FSDPStrategy knows the norm of all gradients together, not that of each of"
                f" {len(optimizers)} optimizers: use ModelParallelStrategy, or algorithm='value'"
            )

    def clip(self, pl_module: LightningModule, optimizer: Any, *, in_step: bool) -> None:
        """Clip the gradients of an optimizer, and log. See :meth:`GradientClipping.clip`."""
        if not self._is_set_up:
            raise RuntimeError(
                "GradientClipping.clip was called without a fit that has this callback, and the"
                " callback chooses the threshold when a fit begins:"
                f" {type(pl_module).__name__}.configure_callbacks has to return it, as"
                " super().configure_callbacks() does"
            )
        if not self._names:  # Lightning's Tuner trains before `on_fit_start` of the callbacks
            self.start(pl_module)
        parameters = [
            p for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        if self._engine_clips or not parameters:
            return
        trainer = pl_module.trainer
        place = place_of(trainer, optimizer)
        state = self._states.setdefault(place, ClippingState())
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
        self._states = {i: ClippingState(**state) for i, state in state_dict["optimizers"].items()}

    def reset(self) -> None:
        """Forget the counts and norms of past steps."""
        self._states = {}

    def _arguments_for_single_parameters(self) -> list[str]:
        """Return the arguments, as given, that need the gradients of single parameters."""
        given = self.settings
        arguments = {
            "algorithm='adaptive'": self._algorithm == "adaptive",
            f"log_layers={given.log_layers!r}": given.top_layers > 0,
            "groups": self._algorithm == "norm" and bool(given.groups),
            f"percentile={given.percentile}": given.percentile is not None,
            "fused=True": given.fused,
        }
        return [argument for argument, is_given in arguments.items() if is_given]

    def _refuse_unfused(self, optimizers: list[Optimizer]) -> None:
        if self._value is None or self._algorithm != "norm":
            raise MisconfigurationException(
                f"GradientClipping(fused=True) needs a largest norm, but got value={self._value}"
                f" and algorithm={self._algorithm!r}: give a value, or leave out fused"
            )
        for optimizer in optimizers:
            if not clips_in_step(optimizer):
                raise MisconfigurationException(
                    "GradientClipping(fused=True) leaves clipping to the optimizer, but this"
                    f" {type(optimizer).__name__} can't: make it with fused=True, which torch's"
                    " SGD, Adam and AdamW have, and newer ones' Adagrad, or leave out fused here"
                )

    def _groups(self, parameters: list[Tensor]) -> list[_Group]:
        """Return the groups of parameters that are clipped together."""
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
        self, trainer: Trainer, groups: list[_Group], state: ClippingState, step: _Step
    ) -> dict[str, Tensor]:
        """Clip each group by its norm, and return the values to log."""
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
            elif step.logs and not self._is_flat:
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
        """Clip by the norm of all parameters together, and return the norm before clipping."""
        if self.settings.fused:
            return clip_in_step(step.optimizer, limit, scaler=grad_scaler(trainer))
        root: Any = trainer.strategy.model  # only FSDP1's wrapper computes the whole norm
        clip = root.clip_grad_norm_ if self._is_flat else partial(clip_grad_norm_, parameters)
        return _unscaled(clip(limit * step.scale), step.scale)

    def _clip_elements(
        self, _: Trainer, groups: list[_Group], state: ClippingState, step: _Step
    ) -> dict[str, Tensor]:
        """Clip by value or adaptively, and return the values to log."""
        everything = [p for group in groups for p in group.parameters]
        looks = step.logs and not self._is_flat  # flat shards give only this rank's norm
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
        """Log the norms of the layers whose gradients have the largest norms."""
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
        # `LightningModule.log` would keep logging layers that are no longer among the largest.
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.fit_loop.epoch_loop._batches_that_stepped)


def _norm(parameters: list[Tensor], scale: float) -> Tensor:
    """Return the norm of all gradients together, without changing the gradients."""
    return _unscaled(clip_grad_norm_(parameters, math.inf, nonfinite="skip"), scale)


def _exceeds(pairs: list[tuple[Tensor, Tensor | float]]) -> Tensor | bool:
    """Return whether a norm is above its limit: a tensor on the device, so that nothing waits.

    For norms on the CPU it returns a ``bool``, since comparing numbers is faster.
    """
    device = pairs[0][0].device
    if device.type == "cpu" and all(norm.device == device for norm, _ in pairs):
        return any(float(norm) > float(limit) for norm, limit in pairs)
    above = [(norm > limit).to(device) for norm, limit in pairs]
    return above[0] if len(above) == 1 else torch.stack(above).any()


def _unscaled(norm: Tensor, scale: float) -> Tensor:
    return norm if scale == 1.0 else norm / scale


def _loss_scale(trainer: Trainer, optimizer: Any, in_step: bool) -> float:
    """Return the loss scale of the gradients; with a ``GradScaler`` this waits for the device."""
    scaler = grad_scaler(trainer)
    # Within the step Lightning has unscaled the gradients, unless a fused optimizer does so itself.
    if scaler is None or (in_step and not clips_in_step(optimizer)):
        return 1.0
    return scaler.get_scale()


def _no_match(pattern: str, names: list[str]) -> str:
    """Return the error message for a pattern that matches no parameter, with the known names."""
    some = [*map(repr, names[:_SHOWN])]
    if len(names) > _SHOWN:
        some.append(f"and {len(names) - _SHOWN} more")
    there = f"there are: {', '.join(some)}" if some else "there is none at all"
    return f"no parameter's name matches {shown(pattern)} of groups; {there}"
