"""The ways in which transformers writes layers and blocks, and the form of a class.

transformers defines its layers anew in the file of each model. So a class is known not by its name
but by the source code of its methods. The packages' files with fused forwards list their forms;
this file does not import transformers.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_practices.nn.blocks import DECIDING, FusedBlock, fingerprint

# Packages whose classes are compared with the forms. The second holds the code of models that
# transformers has downloaded.
_PACKAGES = ("transformers", "transformers_modules")

# The bases of classes with a form: torch's, and transformers' for layers with checkpointed
# activations. The latter wraps the forward of each subclass, also of the fused class.
MODULE = "torch.nn.modules.module.Module"
LAYER_NORM = "torch.nn.modules.normalization.LayerNorm"
CHECKPOINTED = "transformers.modeling_layers.GradientCheckpointingLayer"


@dataclass(frozen=True)
class Form:
    """One way to write a layer or block, which classes of many models share.

    Attributes:
        forward: Fused forward. Where the kernels don't run, it calls the original forward.
        sources: Known fingerprints of each method that the fused forward replaces.
        base: Base class of the fused class, besides the original class.
        parent: Full name of the one base class of the original class.
        functions: Known fingerprint of each function of its module that the original forward calls.
        members: Further members of the fused class.
    """

    forward: Callable[..., Any]
    sources: Mapping[str, tuple[str, ...]]
    base: type[FusedBlock]
    parent: str = MODULE
    functions: Mapping[str, str] = field(default_factory=dict)
    members: Mapping[str, Any] = field(default_factory=dict)

    def matches(self, cls: type) -> bool:
        """Return whether ``cls`` is written in this form, or inherits all from a class that is."""
        written = all(
            fingerprint(inspect.getattr_static(cls, name, None)) in known
            for name, known in self.sources.items()
        ) and all(
            fingerprint(_globals(cls).get(name)) == known for name, known in self.functions.items()
        )
        if not written or len(cls.__bases__) != 1:
            return False
        (base,) = cls.__bases__
        if f"{base.__module__}.{base.__qualname__}" == self.parent:
            return True
        return not any(name in vars(cls) for name in DECIDING) and self.matches(base)


def _globals(cls: Any) -> dict[str, Any]:
    return getattr(cls.forward, "__globals__", {})


def form_of(cls: type, forms: Iterable[Form]) -> Form | None:
    """Return the form of a class of transformers, or ``None`` if its source code is unknown."""
    if cls.__module__.partition(".")[0] not in _PACKAGES or "forward" not in vars(cls):
        return None
    return next((form for form in forms if form.matches(cls)), None)
