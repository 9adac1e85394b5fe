"""Choose how each parameter of a model is initialised."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm

from lightning_practices._layers import NORMS
from lightning_practices._names import module_name, modules_with_names
from lightning_practices.init._activations import LINEAR, Activation, scheme_for
from lightning_practices.init._flow import Flow
from lightning_practices.init._structure import Structure
from lightning_practices.init._trace import traced
from lightning_practices.init._weights import STD, Law, Weight, biases_of, law_of, weights_of

_TOKENS = ("*cls_token*", "*class_token*", "*dist_token*", "*pos_embed*", "*position_embedding*",
           "*positional_embedding*", "*relative_position_bias_table*", "*mask_token*")  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """A weight and the law that was chosen for it.

    Attributes:
        names: All names of the weight.
        cls: Class of its layer.
        weight: The weight.
        law: The law.
        activation: The activation after the layer, as text.
        why: Why the law was chosen.
    """

    names: tuple[str, ...]
    cls: str
    weight: Weight
    law: Law
    activation: str
    why: str


class Chooser:
    """Chooses the schemes of a model's weights.

    Args:
        model: The model.
        schemes: Schemes by patterns of the names of layers; the first that matches counts.
        batch: A batch to trace the model with, or ``None``.
    """

    def __init__(self, model: nn.Module, schemes: Mapping[str, str], batch: Any) -> None:
        self._structure = Structure(model)
        self._flow = None if batch is None else Flow(traced(model, batch))
        self._schemes = schemes
        self._used: set[str] = set()
        self.attends = self._structure.attends
        self._projections = self._structure.projections
        self.last_norms = self._structure.last_norms
        self._branches = len(self._projections)
        if self._flow is not None:
            self.attends |= self._flow.attends
            self.last_norms = self._flow.last_norms
            if self._flow.projections:
                self._projections, self._branches = self._flow.projections, self._flow.branches

    @property
    def unused(self) -> list[str]:
        """The patterns that have matched no layer so far."""
        return [pattern for pattern in self._schemes if pattern not in self._used]

    def scheme_of(self, names: tuple[str, ...]) -> str:
        """Return the scheme of a layer: that of the first pattern, or ``"auto"``."""
        for pattern, scheme in self._schemes.items():
            if any(fnmatchcase(module_name(name), pattern) for name in names):
                self._used.add(pattern)
                return scheme
        return "auto"

    def choose(self, weight: Weight, names: tuple[str, ...], layers: tuple[str, ...]) -> Choice:
        """Return the choice for a weight with these names, of a layer with these names."""
        scheme = self.scheme_of(layers)
        is_by_pattern = "*" not in self._schemes
        cls = type(weight.module).__name__
        if weight.role == "hidden":
            law = law_of("orthogonal", LINEAR, weight.fans(), own_gain=True)
            return Choice(names, cls, weight, law, "", "a recurrent weight")
        if scheme != "auto" and (weight.role != "embedding" or is_by_pattern):
            activation, _ = self._following(weight, names)
            law = law_of(scheme, activation, weight.fans(), own_gain=True)
            used = scheme.startswith("kaiming") or scheme == "orthogonal"
            return Choice(names, cls, weight, law, str(activation) * used, "as given")
        if weight.role == "input":
            law = law_of("xavier_normal", LINEAR, weight.fans(), own_gain=True)
            return Choice(names, cls, weight, law, "", "the input of a recurrent layer")
        is_matrix = not isinstance(weight.module, nn.modules.conv._ConvNd)
        if self.attends and is_matrix:
            return self._for_transformer(weight, names, cls)
        if weight.role == "embedding":
            return Choice(names, cls, weight, Law("normal", 1.0), "", "an embedding, as in torch")
        activation, why = self._following(weight, names)
        law = law_of(scheme_for(activation), activation, weight.fans(), own_gain=False)
        return Choice(names, cls, weight, law, str(activation), why)

    def token(self, module: nn.Module, own: str, name: str) -> Choice | None:
        """Return the choice for a parameter of a transformer that is a token or a position."""
        if not self.attends or not any(fnmatchcase(own, pattern) for pattern in _TOKENS):
            return None
        weight, law = Weight(module, own, "embedding"), Law("trunc_normal", STD)
        return Choice((name,), type(module).__name__, weight, law, "", "a token or position")

    def _for_transformer(self, weight: Weight, names: tuple[str, ...], cls: str) -> Choice:
        law, why = Law("trunc_normal", STD), "transformer"
        if weight.role == "layer" and not self._projections.isdisjoint(names):
            law = replace(law, std=STD / math.sqrt(max(self._branches, 1)))
            why = f"ends a residual branch: 0.02 / sqrt({self._branches})"
        return Choice(names, cls, weight, law, "", why)

    def _following(self, weight: Weight, names: tuple[str, ...]) -> tuple[Activation, str]:
        if self._flow is not None:
            for name in names:
                if (seen := self._flow.following(name)) is not None:
                    return seen, "traced"
        read = self._structure.following(weight.module)
        if read.activation is None:
            return Activation("relu"), f"{read.why}, taken for ReLU; a batch would tell"
        return read.activation, read.why


@dataclass
class Plan:
    """What is to be done to a model. Nothing is changed yet.

    Attributes:
        choices: The weights to draw.
        biases: The biases to set to 0, with their layers and all of their names.
        resets: The norms and ``PReLU`` layers to reset, by name.
        zeroed: The scales to set to 0, by name.
        kept: The parameters that are kept: names, class of the layer and reason.
    """

    choices: list[Choice]
    biases: list[tuple[str, nn.Module, str]]
    resets: dict[str, nn.Module]
    zeroed: dict[str, Tensor]
    kept: list[tuple[tuple[str, ...], str, str]]


def plan(model: nn.Module, chosen: set[nn.Module], chooser: Chooser) -> Plan:
    """Return what is to be done to the chosen modules of a model."""
    made = Plan([], [], {}, {}, [])
    tied = _names_of_parameters(model)
    done: set[int] = set()
    for module, aliases in modules_with_names(model):
        if module not in chosen or isinstance(module, parametrize.ParametrizationList):
            continue
        paths = tuple(module_name(alias) for alias in aliases)
        chooser.scheme_of(paths)  # for the patterns that match
        weights = [*weights_of(module)]
        for weight in weights:
            _plan_weight(made, weight, paths, tied, done, chooser)
        if isinstance(module, (*NORMS, nn.PReLU)):
            _plan_norm(made, module, paths, chooser)
            continue
        known = {weight.attribute for weight in weights}
        if weights:
            biases = [name for name, p in biases_of(module) if p.requires_grad]
            known.update(name for name, _ in biases_of(module))
            if all(p.requires_grad for weight in weights for p in weight.originals()):
                made.biases += [(_join(paths[0], name), module, name) for name in biases]
        for own, p in module.named_parameters(recurse=False):
            if own not in known:
                _plan_other(made, module, own, p, paths[0], chooser)
    return made


def _plan_weight(
    made: Plan,
    weight: Weight,
    paths: tuple[str, ...],
    tied: Mapping[int, tuple[str, ...]],
    done: set[int],
    chooser: Chooser,
) -> None:
    originals = weight.originals()
    if originals[0] is None or id(originals[0]) in done:
        return
    done.update(map(id, originals))
    own = _join(paths[0], weight.attribute)
    names = tied.get(id(originals[0]), (own,)) if len(originals) == 1 else (own,)
    if parametrize.is_parametrized(weight.module, weight.attribute):
        names = tuple(_join(path, weight.attribute) for path in paths)
    if reason := _why_kept(weight, originals):
        made.kept.append((names, type(weight.module).__name__, reason))
        return
    made.choices.append(chooser.choose(weight, names, paths))


def _plan_norm(made: Plan, module: nn.Module, paths: tuple[str, ...], chooser: Chooser) -> None:
    if not all(p.requires_grad for p in module.parameters(recurse=False)):
        made.kept.append((paths, type(module).__name__, "frozen"))
        return
    made.resets[paths[0]] = module
    scale = module._parameters.get("weight")
    names = {_join(path, "weight") for path in paths}
    is_last = not chooser.last_norms.isdisjoint(names) and isinstance(module, NORMS)
    if is_last and scale is not None and chooser.scheme_of(paths) == "auto":
        made.zeroed[_join(paths[0], "weight")] = scale


def _plan_other(
    made: Plan, module: nn.Module, own: str, p: Tensor, path: str, chooser: Chooser
) -> None:
    """Plan a parameter of a module for which there is no rule."""
    name = _join(path, own)
    if not p.requires_grad:
        made.kept.append(((name,), type(module).__name__, "frozen"))
    elif (choice := chooser.token(module, own, name)) is not None:
        made.choices.append(choice)
    else:
        reason = f"there is no rule for a parameter of {type(module).__name__}"
        made.kept.append(((name,), type(module).__name__, reason))


def _why_kept(weight: Weight, originals: list[Tensor]) -> str | None:
    if not all(p.requires_grad for p in originals):
        return "frozen"
    if parametrize.is_parametrized(weight.module, weight.attribute):
        made: Any = weight.module.parametrizations[weight.attribute]  # type: ignore[index]
        if not all(isinstance(one, _WeightNorm | _SpectralNorm) for one in made):
            return f"{type(made[0]).__name__} decides its values"
    return None


def _names_of_parameters(model: nn.Module) -> dict[int, tuple[str, ...]]:
    names: dict[int, tuple[str, ...]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names[id(p)] = (*names.get(id(p), ()), module_name(name))
    return names


def _join(path: str, name: str) -> str:
    return f"{path}.{name}".removeprefix(".")


def chosen_modules(model: nn.Module, modules: tuple[str | nn.Module, ...]) -> set[nn.Module]:
    """Return the modules that ``modules`` names, with all modules in them.

    Raises:
        ValueError: If the model has no such module.
    """
    known = dict(_by_name(model))
    parts = set(known.values())
    found: set[nn.Module] = set()
    for entry in modules:
        module = known.get(entry) if isinstance(entry, str) else entry
        if module is None or module not in parts:
            name = repr(entry) if isinstance(entry, str) else f"a {type(entry).__name__}"
            raise ValueError(
                f"modules has to name modules of {type(model).__name__}, but got {name}, which it"
                f" doesn't have; it has {', '.join([*known][1:6])}"
            )
        found.update(module.modules())
    return found


def _by_name(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for module, aliases in modules_with_names(model):
        for alias in aliases:
            yield module_name(alias), module
