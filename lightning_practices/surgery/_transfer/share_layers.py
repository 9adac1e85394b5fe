"""Share layers between two models."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from lightning_practices._names import check_module
from lightning_practices.surgery._blocks import Block, found, is_within, names_of

Shared = nn.Module | nn.Parameter


def share_layers(a: nn.Module, b: nn.Module, where: Iterable[str | Block]) -> tuple[str, ...]:
    """Replace layers of ``b`` by layers of ``a``, in place, so that both models train them.

    Tasks whose outputs have the same meaning, but whose inputs differ, share the later layers: for
    example the recognition of handwritten, printed and spoken text. Tasks with the same kind of
    input share the earlier layers. The given modules and parameters of ``a`` replace those of
    ``b``, including their buffers, such as running statistics, and their mode. The keys of both
    ``state_dict`` don't change. An optimizer for both models must get each shared parameter once,
    as in ``SGD(nn.ModuleList([a, b]).parameters(), lr)``. Make the optimizer, and freeze layers,
    afterwards. ``copy.deepcopy((a, b))`` keeps the sharing. A copy of only one model has its own
    layers.

    Source: "Transfer learning and multitask learning", lecture S0.

    Args:
        a: The model whose layers are shared.
        b: The model that is changed.
        where: Names of modules and parameters that both models have, or blocks of :func:`blocks` of
            ``a``.

    Returns:
        The names of the shared parameters.

    Raises:
        TypeError: If ``a`` or ``b`` is not a module, or ``where`` is not a sequence.
        ValueError: If ``a`` is ``b``, or ``where`` contains a whole model. If a model has no module
            or parameter with a given name. If classes, shapes, dtypes or devices of ``a`` and ``b``
            differ. If ``b`` uses a replaced parameter in another layer too. After an error both
            models are unchanged.

    Example:
        >>> from lightning_practices.surgery import share_layers
        >>> digits = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
        >>> speech = nn.Sequential(nn.Linear(40, 8), nn.ReLU(), nn.Linear(8, 10))
        >>> share_layers(digits, speech, ["2"])
        ('2.weight', '2.bias')
        >>> speech[2] is digits[2]
        True
    """
    check_module(a, "a")
    check_module(b, "b")
    if a is b:
        raise ValueError("a and b are one model, which shares its layers with itself already")
    names = names_of(where)
    outermost = [name for name in names if not any(_is_below(name, other) for other in names)]
    modules: dict[nn.Module, nn.Module] = {}
    parameters: dict[int, nn.Parameter] = {}
    for name in outermost:
        (mine, alone), (its, its_alone) = found(a, [name]), found(b, [name])
        _check_alike(name, [*mine, *alone], [*its, *its_alone])
        modules |= dict(zip(its, mine, strict=True))
        parameters |= {id(p): q for p, q in zip(its_alone, alone, strict=True)}
    if a in modules.values() or b in modules:
        raise ValueError("a whole model can't be shared: use one model in both places")
    _check_only_there(b, modules)
    for module in list(b.modules()):
        for name, child in list(module._modules.items()):
            if child in modules:
                setattr(module, name, modules[child])
        for name, p in list(module._parameters.items()):
            if id(p) in parameters:
                setattr(module, name, parameters[id(p)])
    ids = {id(p) for p in a.parameters()}
    return tuple(name for name, p in b.named_parameters() if id(p) in ids)


def _is_below(name: str, module: str) -> bool:
    return name != module and is_within(name, module)


def _check_alike(name: str, mine: Sequence[Shared], its: Sequence[Shared]) -> None:
    """Raise ``ValueError`` if a part of ``a`` can't replace its counterpart in ``b``."""
    for one, other in zip(mine, its, strict=True):
        if one is other:
            raise ValueError(f"{name!r} is shared already")
        if type(one) is not type(other):
            raise ValueError(
                f"{name!r} is a {type(one).__name__} of a, but a {type(other).__name__} of b"
            )
        if isinstance(one, nn.Module) and isinstance(other, nn.Module):
            states = _state(one), _state(other)
        else:
            states = {name: _kind(one)}, {name: _kind(other)}
        if differing := [key for key in states[0] | states[1] if _differ(key, *states)]:
            key = differing[0]
            raise ValueError(
                f"{key!r} of {name!r} is {states[0].get(key, 'not there')} in a, but"
                f" {states[1].get(key, 'not there')} in b"
            )


def _differ(key: str, one: dict[str, str], other: dict[str, str]) -> bool:
    return one.get(key) != other.get(key)


def _state(module: nn.Module) -> dict[str, str]:
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: _kind(tensor) for name, tensor in tensors}


def _kind(tensor: Any) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"


def _check_only_there(b: nn.Module, modules: Iterable[nn.Module]) -> None:
    """Raise ``ValueError`` if ``b`` uses a replaced parameter in another layer too."""
    inside = {part for module in modules for part in module.modules()}
    taken = {id(p) for module in modules for p in module.parameters()}
    for path, module in b.named_modules():
        for name, p in module._parameters.items():
            if module not in inside and id(p) in taken:
                full = f"{path}.{name}" if path else name
                raise ValueError(f"{full!r} of b is tied to a layer to be shared: share both")
