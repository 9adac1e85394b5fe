"""Initialise by data: scale each layer's weights until its output has unit variance."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from lightning_practices._arguments import check_instance
from lightning_practices._names import check_module, module_name, modules_with_names
from lightning_practices.init._activations import LINEAR
from lightning_practices.init._initialize import check_modules, check_ready, std_of, write
from lightning_practices.init._plan import chosen_modules
from lightning_practices.init._report import Initialized, InitReport, Kept
from lightning_practices.init._run import call, unchanged
from lightning_practices.init._trace import LAYERS
from lightning_practices.init._weights import Fans, Weight, biases_of, law_of, weights_of

_MOST_ITERATIONS = 10  # Mishkin and Matas, 2016: T_max
_TOLERANCE = 0.01  # of the variance; the paper stops at 0.1
_LAW = law_of("orthogonal", LINEAR, Fans(1, 1), own_gain=True)


def lsuv_(
    model: nn.Module,
    batch: Any,
    *,
    modules: Sequence[str | nn.Module] | None = None,
    generator: torch.Generator | None = None,
) -> InitReport:
    r"""Give linear and convolution layers weights by a batch: each output has unit variance.

    Layer-sequential unit variance: in the order in which the model calls its layers, the weight
    becomes a random orthogonal matrix and the bias 0, and then

    .. math:: W \leftarrow W / \sqrt{\mathrm{Var}[W x + b]}

    until the variance over the batch is 1 within 0.01, at most 10 times. One forward pass does all
    layers. The variance is that before the activation, so the scheme needs no gain, but the batch
    has to be like the data, and of some tens of samples.

    The pass runs in eval mode, without dropout; norms keep their mode. Buffers, modes and random
    states are restored. Frozen weights are not changed, and neither are embeddings, recurrent and
    parametrised weights, and the projections within ``nn.MultiheadAttention``: for these see
    :func:`initialize`.

    Source: Mishkin and Matas, 2016, "All you need is a good init", arXiv:1511.06422.

    Args:
        model: The model, of any state.
        batch: A batch: a tensor, a list that begins with one, or a mapping of keyword arguments, on
            the model's device.
        modules: The modules to initialise, or their names. Default: the whole model.
        generator: Random number generator, of any device. Default: torch's own.

    Returns:
        The report. The layers that the batch didn't reach are kept.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the model has no such module. If a parameter has no shape yet, is on the meta
            device, or is sharded. After an error the model is unchanged.

    Example:
        >>> from lightning_practices.init import lsuv_
        >>> model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 3))
        >>> x = torch.randn(128, 16)
        >>> lsuv_(model, x)
        InitReport(2 initialized, 0 zeroed, 0 kept)
        >>> bool((model[0](x).var() - 1).abs() < 0.02), bool((model(x).var() - 1).abs() < 0.02)
        (True, True)
    """
    check_module(model)
    chosen = {*model.modules()}
    if modules is not None:
        chosen = chosen_modules(model, check_modules(modules))
    if generator is not None:
        check_instance("generator", generator, torch.Generator, "a torch.Generator")
    check_ready(model, chosen)
    report = InitReport()
    targets = _targets(model, chosen, report)
    mode = _Scaling(targets, generator, report)
    try:
        with unchanged(model, norms_as_they_are=True), torch.no_grad(), mode:
            call(model, batch)
    except BaseException:
        mode.undo()
        raise
    for names, weight in targets.values():
        report.kept.append(Kept(names, type(weight.module).__name__, "the batch didn't reach it"))
    return report


def _targets(
    model: nn.Module, chosen: set[nn.Module], report: InitReport
) -> dict[int, tuple[tuple[str, ...], Weight]]:
    """Return the weights to scale by the ids of their parameters."""
    targets: dict[int, tuple[tuple[str, ...], Weight]] = {}
    for module, aliases in modules_with_names(model):
        for weight in weights_of(module) if module in chosen else ():
            names = tuple(
                f"{module_name(alias)}.{weight.attribute}".removeprefix(".") for alias in aliases
            )
            p, *others = weight.originals()
            if isinstance(p, DTensor):
                raise ValueError(f"{names[0]} is sharded: call lsuv_ before the model is sharded")
            reason = None
            if not all(each.requires_grad for each in (p, *others)):
                reason = "frozen"
            elif parametrize.is_parametrized(module, weight.attribute):
                reason = "parametrised"
            elif weight.role != "layer" or isinstance(module, nn.MultiheadAttention):
                reason = f"lsuv_ has no rule for {type(module).__name__}"
            if reason is not None:
                report.kept.append(Kept(names, type(module).__name__, reason))
            else:
                targets.setdefault(id(p), (names, weight))
    return targets


class _Scaling(TorchFunctionMode):
    """Draws and scales each weight when a layer is called with it for the first time."""

    def __init__(
        self,
        targets: dict[int, tuple[tuple[str, ...], Weight]],
        generator: torch.Generator | None,
        report: InitReport,
    ) -> None:
        super().__init__()
        self._targets, self._generator, self._report = targets, generator, report
        self._old: list[tuple[Tensor, Tensor]] = []

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in LAYERS:
            for x in tree_leaves((args, kwargs)):
                if id(x) in self._targets and isinstance(x, nn.Parameter):
                    self._scale(*self._targets.pop(id(x)), lambda: func(*args, **kwargs))
        return func(*args, **kwargs)

    def undo(self) -> None:
        """Restore all parameters."""
        with torch.no_grad():
            for p, old in self._old:
                p.copy_(old)

    def _scale(self, names: tuple[str, ...], weight: Weight, run: Any) -> None:
        p = weight.value
        biases = [(own, bias) for own, bias in biases_of(weight.module) if bias.requires_grad]
        self._old += [(each, each.clone()) for each in (p, *(bias for _, bias in biases))]
        before = std_of(p)
        write(weight, _LAW.draw(weight, self._generator))
        for own, bias in biases:
            bias.zero_()
            self._report.biases.append(f"{names[0].rpartition('.')[0]}.{own}".removeprefix("."))
        for _ in range(_MOST_ITERATIONS):
            std = std_of(run())
            if not 0 < std < float("inf"):
                why = "orthogonal only: its output has no variance on the batch"
                break
            if abs(std**2 - 1) <= _TOLERANCE:
                why = "unit variance of the output"
                break
            p.div_(std)
        else:
            why = f"variance {std**2:.3g} of the output after {_MOST_ITERATIONS} iterations"
        cls = type(weight.module).__name__
        self._report.initialized.append(
            Initialized(names, cls, "lsuv", "", None, None, before, std_of(p), why)
        )
