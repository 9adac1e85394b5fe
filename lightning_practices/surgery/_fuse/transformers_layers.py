"""Fused forwards of the norms and stochastic depths of transformers.

transformers defines these layers anew in the file of each model. So a class is known not by its
name but by the source code of its methods: see :class:`Form`. This file does not import
transformers.

A fused forward has the original's argument and returns the original's dtype, which depends on the
dtypes of input and weight. It computes in float32 and rounds once. The originals compute in float32
too, but most of them also round before the multiplication by the weight.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import lightning_kernels
from lightning_kernels import Autocast
from lightning_practices.nn import ScheduledRate
from lightning_practices.nn.blocks import FusedBlock, fingerprint

# Packages whose classes are compared with the forms. The second holds the code of models that
# transformers has downloaded.
_PACKAGES = ("transformers", "transformers_modules")
_SERVED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class FusedNorm(FusedBlock):
    """Base class of the fused norms."""

    autocast: Autocast = "input"

    def serves(self, x: Tensor, *parameters: Tensor) -> bool:
        """Return whether a kernel normalises ``x`` with ``parameters``, one for each channel."""
        if torch.compiler.is_compiling() and lightning_kernels.get_compiled_norms() == "inductor":
            return False
        return self.folds(x) and all(
            parameter.shape == x.shape[-1:] and parameter.dtype in _SERVED_DTYPES
            for parameter in parameters
        )


class FusedDropPath(ScheduledRate, FusedBlock):
    """Base class of the fused stochastic depths."""

    rate_name = "drop_prob"


def _normalised(
    norm: Callable[..., Tensor], x: Tensor, *parameters: Tensor | None, eps: float,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Return ``x`` normalised over its last dimension, in ``dtype``, which is rounded to once."""
    x = x if x.dtype == dtype else x.float()
    fitting = (p if p is None or p.dtype == x.dtype else p.float() for p in parameters)
    return norm(x, x.shape[-1:], *fitting, eps).to(dtype)


def _rms_norm(x: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
    return _normalised(lightning_kernels.rms_norm, x, weight, eps=eps, dtype=dtype)


def _llama(self: Any, hidden_states: Tensor) -> Any:
    """Llama, Mistral, Qwen, Phi-3, Mixtral, Mamba: scale after the cast to the input's dtype."""
    if not self.serves(hidden_states, self.weight):
        return self.original.forward(self, hidden_states)
    dtype = torch.promote_types(hidden_states.dtype, self.weight.dtype)
    return _rms_norm(hidden_states, self.weight, self.variance_epsilon, dtype)


def _cpm_ant(self: Any, hidden_states: Tensor) -> Any:
    """CPM-Ant: as Llama's, with ``eps``."""
    if not self.serves(hidden_states, self.weight):
        return self.original.forward(self, hidden_states)
    dtype = torch.promote_types(hidden_states.dtype, self.weight.dtype)
    return _rms_norm(hidden_states, self.weight, self.eps, dtype)


def _llama4(self: Any, x: Tensor) -> Any:
    """Llama 4: as Llama's, with ``eps``."""
    return _cpm_ant(self, x)


def _olmo2(self: Any, hidden_states: Tensor) -> Any:
    """OLMo 2 and 3, gpt-oss, Helium: scale before the cast to the input's dtype."""
    if not self.serves(hidden_states, self.weight):
        return self.original.forward(self, hidden_states)
    return _rms_norm(hidden_states, self.weight, self.variance_epsilon, hidden_states.dtype)


def _moshi(self: Any, x: Tensor) -> Any:
    """Moshi, Gemma 3n of transformers 5.0: as OLMo 2's, with ``eps``."""
    if not self.serves(x, self.weight):
        return self.original.forward(self, x)
    return _rms_norm(x, self.weight, self.eps, x.dtype)


def _gemma(self: Any, x: Tensor) -> Any:
    """Gemma 1 to 3, Qwen3-Next: scale by ``1 + weight`` before the cast."""
    if not self.serves(x, self.weight):
        return self.original.forward(self, x)
    return _rms_norm(x, 1.0 + self.weight.float(), self.eps, x.dtype)


def _gemma4(self: Any, hidden_states: Tensor) -> Any:
    """Gemma 3n and 4: scale before the cast, or don't scale."""
    weight = self.weight if self.with_scale else None
    if not self.serves(hidden_states, *() if weight is None else (weight,)):
        return self.original.forward(self, hidden_states)
    return _rms_norm(hidden_states, weight, self.eps, hidden_states.dtype)


def _t5(self: Any, hidden_states: Tensor) -> Any:
    """T5, mT5, UMT5, LongT5: the result has the dtype of the weight."""
    if not self.serves(hidden_states, self.weight):
        return self.original.forward(self, hidden_states)
    return _rms_norm(hidden_states, self.weight, self.variance_epsilon, self.weight.dtype)


def _unweighted(self: Any, x: Tensor) -> Any:
    """Llama 4's queries and keys, nanochat, DeepSeek-V4: no scale."""
    if not self.serves(x):
        return self.original.forward(self, x)
    return _rms_norm(x, None, self.eps, x.dtype)


def _inkling(self: Any, hidden_states: Tensor) -> Any:
    """Inkling 2: no scale."""
    return _unweighted(self, hidden_states)


def _cohere(self: Any, hidden_states: Tensor) -> Any:
    """Cohere: layer norm without bias, scale before the cast."""
    if not self.serves(hidden_states, self.weight):
        return self.original.forward(self, hidden_states)
    return _normalised(
        lightning_kernels.layer_norm, hidden_states, self.weight, None,
        eps=self.variance_epsilon, dtype=hidden_states.dtype,
    )  # fmt: skip


def _deberta(self: Any, hidden_states: Tensor) -> Any:
    """DeBERTa: layer norm, scale and bias after the cast."""
    if not self.serves(hidden_states, self.weight, self.bias):
        return self.original.forward(self, hidden_states)
    dtype = torch.promote_types(hidden_states.dtype, self.weight.dtype)
    return _normalised(
        lightning_kernels.layer_norm, hidden_states, self.weight, self.bias,
        eps=self.variance_epsilon, dtype=torch.promote_types(dtype, self.bias.dtype),
    )  # fmt: skip


def _olmo(self: Any, hidden_states: Tensor) -> Any:
    """OLMo 1: layer norm without parameters."""
    if not self.serves(hidden_states):
        return self.original.forward(self, hidden_states)
    return lightning_kernels.layer_norm(hidden_states, self.normalized_shape, eps=1e-5)


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


@dataclass(frozen=True)
class Form:
    """One way to write a layer, which classes of many models share.

    Attributes:
        forward: Fused forward. Where the kernels don't run, it calls the original forward.
        sources: Known fingerprints of each method that the fused forward replaces.
        base: Base class of the fused class, besides the original class.
        parent: The one base class of the original class.
        functions: Known fingerprint of each function of its module that the original forward calls.
    """

    forward: Callable[..., Any]
    sources: Mapping[str, tuple[str, ...]]
    base: type[FusedBlock] = FusedNorm
    parent: type[nn.Module] = nn.Module
    functions: Mapping[str, str] = field(default_factory=dict)

    def matches(self, cls: type) -> bool:
        """Return whether ``cls`` is written in this form."""
        if cls.__bases__ != (self.parent,):
            return False
        return all(
            fingerprint(inspect.getattr_static(cls, name, None)) in known
            for name, known in self.sources.items()
        ) and all(
            fingerprint(_globals(cls).get(name)) == known for name, known in self.functions.items()
        )


def _globals(cls: Any) -> dict[str, Any]:
    return getattr(cls.forward, "__globals__", {})


_SQUARES = ("6dc7d2ba16b4",)  # the method `_norm` of many RMS norms
_OF_LAYER_NORM: dict[str, Any] = {"parent": nn.LayerNorm}

FORMS = (
    Form(_llama, {"forward": ("9635bcd843f3",)}),
    Form(_cpm_ant, {"forward": ("cd89819860dd",)}),
    Form(_llama4, {"forward": ("08e8868b5ae3",), "_norm": _SQUARES}),
    Form(_olmo2, {"forward": ("eef4e978a32a", "b6d7ab076811")}),
    Form(_moshi, {"forward": ("7ba3b3ea45ac",), "_norm": _SQUARES}),
    Form(_moshi, {"forward": ("c3f94aeaa12d",), "_norm": ("3c99d84226e6",)}),
    Form(_gemma, {"forward": ("2dad5f576075",), "_norm": _SQUARES}),
    Form(_gemma4, {"forward": ("a40eed024292",), "_norm": ("4c9e92e3757c",)}),
    Form(_t5, {"forward": ("3152525beceb",)}),
    Form(_unweighted, {"forward": ("7ff42f05720e",), "_norm": _SQUARES}),
    Form(_unweighted, {"forward": ("08c50f9bfaca",)}),
    Form(_inkling, {"forward": ("2c0d5a3de6fa",)}),
    Form(_cohere, {"forward": ("ec976d1bff62",)}),
    Form(_deberta, {"forward": ("114c8768a627",)}),
    Form(_olmo, {"forward": ("b8440eb33e1a",)}),
    Form(_convnext, {"forward": ("47110db86b0b",)}, **_OF_LAYER_NORM),
    Form(_eomt, {"forward": ("f3e44ddb9f8c",)}, **_OF_LAYER_NORM),
    Form(_squeezebert, {"forward": ("52c9652c8a45",)}, **_OF_LAYER_NORM),
    Form(_drop_path, {"forward": ("baa4d67c11a0", "eedb88ffd7db")}, FusedDropPath),
    Form(
        _drop_path,
        {"forward": ("089925c2fa28",)},
        FusedDropPath,
        functions={"drop_path": "ae59d9e74cc6"},
    ),
)


def form_of(cls: type, forms: Iterable[Form]) -> Form | None:
    """Return the form of a class of transformers, or ``None`` if its source code is unknown."""
    if cls.__module__.partition(".")[0] not in _PACKAGES or "forward" not in vars(cls):
        return None
    return next((form for form in forms if form.matches(cls)), None)
