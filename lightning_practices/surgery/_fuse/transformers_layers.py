"""Fused forwards of the norms and stochastic depths of transformers.

A class is known by the source code of its methods, see :class:`Form`.

A fused forward has the original's argument and returns the original's dtype, which depends on the
dtypes of input and weight. It computes in float32 and rounds once. The originals compute in float32
too, but most of them also round before the multiplication by the weight.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import lightning_kernels
from lightning_kernels import Autocast
from lightning_practices.nn import ScheduledRate
from lightning_practices.nn.blocks import FusedBlock
from lightning_practices.surgery._fuse.transformers_forms import LAYER_NORM, Form

_SERVED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class NormCall(NamedTuple):
    """The call of a kernel that computes a norm over the last dimension.

    Attributes:
        function: Name of the kernel's function in :mod:`lightning_kernels`.
        eps: Number added to the variance or the mean square.
        dtype: Dtype of the result.
        weight: Scale, or ``None``.
        bias: Shift, or ``None``.
        shape: Shape of the row, if no parameter has it.
        origin: Number added to ``weight``.
    """

    function: str
    eps: float
    dtype: torch.dtype
    weight: Tensor | None = None
    bias: Tensor | None = None
    shape: tuple[int, ...] | None = None
    origin: float = 0.0

    def arguments(self, x: Tensor) -> list[Any]:
        """Return shape and parameters for a row of ``x``, in dtypes that the kernels take."""
        weight = self.weight
        if weight is not None and self.origin:
            weight = self.origin + weight.float()
        parameters = [weight] if self.function == "rms_norm" else [weight, self.bias]
        fitting = (p if p is None or p.dtype == x.dtype else p.float() for p in parameters)
        return [self.shape or x.shape[-1:], *fitting]


class FusedNorm(FusedBlock):
    """Base class of the fused norms."""

    autocast: Autocast = "input"

    def call(self, dtype: torch.dtype) -> NormCall | None:
        """Return the call that normalises an input of ``dtype``, or ``None`` if it is no row."""
        return None

    def serves(self, x: Tensor, *parameters: Tensor | None) -> bool:
        """Return whether a kernel normalises ``x`` with ``parameters``, one for each channel."""
        if torch.compiler.is_compiling() and lightning_kernels.get_compiled_norms() == "inductor":
            return False
        return self.folds(x) and all(
            p is None or (p.shape == x.shape[-1:] and p.dtype in _SERVED_DTYPES) for p in parameters
        )

    def normalise(self: Any, x: Tensor) -> Any:
        """Return ``x`` normalised over its last dimension, by a kernel if one serves it."""
        call = self.call(x.dtype)
        if not self.serves(x, call.weight, call.bias):
            return self.original.forward(self, x)
        x = x if x.dtype == call.dtype else x.float()
        norm = getattr(lightning_kernels, call.function)
        return norm(x, *call.arguments(x), call.eps).to(call.dtype)

    def add(
        self: Any, branch: Tensor, stream: Tensor, **options: Any
    ) -> tuple[Tensor, Tensor] | None:
        """Return norm and sum of a branch and the stream by one kernel, or ``None``."""
        call = self.call(stream.dtype)
        if call.dtype != stream.dtype or not self.serves(branch, call.weight, call.bias):
            return None
        function = getattr(lightning_kernels, f"add_dropout_{call.function}")
        results: tuple[Tensor, Tensor] = function(
            branch, stream, *call.arguments(branch), eps=call.eps, **options
        )
        return results


class FusedDropPath(ScheduledRate, FusedBlock):
    """Base class of the fused stochastic depths."""

    rate_name = "drop_prob"


def _llama(self: Any, dtype: torch.dtype) -> NormCall:
    """Llama, Mistral, Qwen, Phi-3, Mixtral, Mamba: scale after the cast to the input's dtype."""
    dtype = torch.promote_types(dtype, self.weight.dtype)
    return NormCall("rms_norm", self.variance_epsilon, dtype, self.weight)


def _cpm_ant(self: Any, dtype: torch.dtype) -> NormCall:
    """CPM-Ant, Llama 4: as Llama's, with ``eps``."""
    dtype = torch.promote_types(dtype, self.weight.dtype)
    return NormCall("rms_norm", self.eps, dtype, self.weight)


def _olmo2(self: Any, dtype: torch.dtype) -> NormCall:
    """OLMo 2 and 3, gpt-oss, Helium: scale before the cast to the input's dtype."""
    return NormCall("rms_norm", self.variance_epsilon, dtype, self.weight)


def _moshi(self: Any, dtype: torch.dtype) -> NormCall:
    """Moshi, Gemma 3n of transformers 5.0: as OLMo 2's, with ``eps``."""
    return NormCall("rms_norm", self.eps, dtype, self.weight)


def _gemma(self: Any, dtype: torch.dtype) -> NormCall:
    """Gemma 1 to 3, Qwen3-Next: scale by ``1 + weight`` before the cast."""
    return NormCall("rms_norm", self.eps, dtype, self.weight, origin=1.0)


def _gemma4(self: Any, dtype: torch.dtype) -> NormCall:
    """Gemma 3n and 4: scale before the cast, or don't scale."""
    return NormCall("rms_norm", self.eps, dtype, self.weight if self.with_scale else None)


def _t5(self: Any, dtype: torch.dtype) -> NormCall:
    """T5, mT5, UMT5, LongT5: the result has the dtype of the weight."""
    return NormCall("rms_norm", self.variance_epsilon, self.weight.dtype, self.weight)


def _unweighted(self: Any, dtype: torch.dtype) -> NormCall:
    """Llama 4's queries and keys, nanochat, DeepSeek-V4, Inkling 2: no scale."""
    return NormCall("rms_norm", self.eps, dtype)


def _cohere(self: Any, dtype: torch.dtype) -> NormCall:
    """Cohere: layer norm without bias, scale before the cast."""
    return NormCall("layer_norm", self.variance_epsilon, dtype, self.weight)


def _deberta(self: Any, dtype: torch.dtype) -> NormCall:
    """DeBERTa: layer norm, scale and bias after the cast."""
    for parameter in (self.weight, self.bias):
        dtype = torch.promote_types(dtype, parameter.dtype)
    return NormCall("layer_norm", self.variance_epsilon, dtype, self.weight, self.bias)


def _olmo(self: Any, dtype: torch.dtype) -> NormCall:
    """OLMo 1: layer norm without parameters."""
    return NormCall("layer_norm", 1e-5, dtype, shape=self.normalized_shape)


def _of_hidden_states(self: Any, hidden_states: Tensor) -> Any:
    return self.normalise(hidden_states)


def _of_x(self: Any, x: Tensor) -> Any:
    return self.normalise(x)


def _layer_norm(layer: Any, x: Tensor) -> Tensor:
    return lightning_kernels.layer_norm(
        x, layer.normalized_shape, layer.weight, layer.bias, layer.eps, autocast=layer.autocast
    )


def _convnext(self: Any, features: Tensor) -> Any:
    """ConvNeXt, SAM: layer norm of channels, which are last or second."""
    if not self.serves(features):
        return self.original.forward(self, features)
    if self.data_format != "channels_first":
        return _layer_norm(self, features)
    return _layer_norm(self, features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _eomt(self: Any, hidden_state: Tensor) -> Any:
    """EoMT: layer norm of channels, which are second."""
    if not self.serves(hidden_state):
        return self.original.forward(self, hidden_state)
    return _layer_norm(self, hidden_state.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _squeezebert(self: Any, x: Tensor) -> Any:
    """SqueezeBERT: layer norm of channels of sequences, which are second."""
    if not self.serves(x):
        return self.original.forward(self, x)
    return _layer_norm(self, x.permute(0, 2, 1)).permute(0, 2, 1)


def _drop_path(self: Any, hidden_states: Tensor) -> Any:
    """ConvNeXt, Swin, DINOv2, SegFormer, BEiT: stochastic depth of samples."""
    if self.rate is None and not self.folds(hidden_states):
        return self.original.forward(self, hidden_states)
    rate = self.current_rate()
    return lightning_kernels.stochastic_depth(hidden_states, rate, "row", self.training)


def _rows(
    forward: Callable[..., Any], call: Callable[..., NormCall], *sources: str, **methods: str
) -> Form:
    """Return the form of a norm over the last dimension."""
    others = {name: (source,) for name, source in methods.items()}
    return Form(forward, {"forward": sources, **others}, FusedNorm, members={"call": call})


_h, _x = partial(_rows, _of_hidden_states), partial(_rows, _of_x)
_SQUARES = "6dc7d2ba16b4"  # the method `_norm` of many RMS norms

FORMS = (
    _h(_llama, "9635bcd843f3"),
    _h(_cpm_ant, "cd89819860dd"),
    _x(_cpm_ant, "08e8868b5ae3", _norm=_SQUARES),
    _h(_olmo2, "eef4e978a32a", "b6d7ab076811"),
    _x(_moshi, "7ba3b3ea45ac", _norm=_SQUARES),
    _x(_moshi, "c3f94aeaa12d", _norm="3c99d84226e6"),
    _x(_gemma, "2dad5f576075", _norm=_SQUARES),
    _h(_gemma4, "a40eed024292", _norm="4c9e92e3757c"),
    _h(_t5, "3152525beceb"),
    _x(_unweighted, "7ff42f05720e", _norm=_SQUARES),
    _x(_unweighted, "08c50f9bfaca"),
    _h(_unweighted, "2c0d5a3de6fa"),
    _h(_cohere, "ec976d1bff62"),
    _h(_deberta, "114c8768a627"),
    _h(_olmo, "b8440eb33e1a"),
    Form(_convnext, {"forward": ("47110db86b0b",)}, FusedNorm, LAYER_NORM),
    Form(_eomt, {"forward": ("f3e44ddb9f8c",)}, FusedNorm, LAYER_NORM),
    Form(_squeezebert, {"forward": ("52c9652c8a45",)}, FusedNorm, LAYER_NORM),
    Form(_drop_path, {"forward": ("baa4d67c11a0", "eedb88ffd7db")}, FusedDropPath),
    Form(
        _drop_path,
        {"forward": ("089925c2fa28",)},
        FusedDropPath,
        functions={"drop_path": "ae59d9e74cc6"},
    ),
)
