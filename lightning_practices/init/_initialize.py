"""Give the weights of a model new values."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm

from lightning_practices._arguments import check_choice, check_instance, shown
from lightning_practices._names import check_module, module_name
from lightning_practices.init._plan import Choice, Chooser, Plan, chosen_modules, plan
from lightning_practices.init._report import Initialized, InitReport, Kept
from lightning_practices.init._weights import Scheme, Weight

_POWER_ITERATIONS = 15  # as in the constructor of torch's spectral norm


def initialize(
    model: nn.Module,
    scheme: Scheme | Mapping[str, Scheme] = "auto",
    *,
    batch: Any = None,
    modules: Sequence[str | nn.Module] | None = None,
    generator: torch.Generator | None = None,
) -> InitReport:
    r"""Give the weights of a model new random values, in place, by the activation after each layer.

    Weights that are all equal stay equal, :math:`\mathcal{N}(0, 0.01^2)` lets activations die out
    in deep networks, and :math:`\mathcal{N}(0, 1)` saturates tanh. The schemes keep the scale of
    activations and gradients from layer to layer. With :math:`n_\mathrm{in}` and
    :math:`n_\mathrm{out}` values that a unit sums in the forward and the backward pass:

    .. math::
        \mathrm{Var}[W] = \frac{g^2}{n_\mathrm{in}} \;\text{(He, LeCun)}, \qquad
        \mathrm{Var}[W] = \frac{2 g^2}{n_\mathrm{in} + n_\mathrm{out}} \;\text{(Xavier)}

    ``"auto"`` chooses for each layer:

    - He for ReLU, ReLU6 (:math:`g^2 = 2`) and leaky ReLU of slope :math:`a`
      (:math:`g^2 = 2 / (1 + a^2)`).
    - He with another gain for ELU (1.55, which keeps the second moment), GELU (2.15), SiLU (2.34),
      Mish (2.1), Hardswish (2.33). The last four were measured over 30 layers of width 256: with 2
      activations vanish, and with the gain that keeps one layer's second moment they explode,
      because it is an unstable fixed point. Single draws end at 0.2 to 6, and deeper networks of
      these need normalisation layers.
    - Xavier for linear and sigmoid (:math:`g^2 = 1`) and for tanh (1.4: over 30 layers the root
      mean square becomes 0.40 and that of gradients 0.76; with 1 both become 0.13, and with
      :math:`(5 / 3)^2` gradients grow 13-fold).
    - LeCun for SELU (:math:`g^2 = 1`).
    - In models with attention, a normal of standard deviation 0.02, truncated at two deviations,
      for linear layers and embeddings; layers that end one of :math:`N` residual branches
      (:math:`2 L` in a transformer of :math:`L` blocks) are divided by :math:`\sqrt{N}`.
    - Orthogonal matrices for the recurrent weights of each gate, and Xavier for their inputs. The
      two biases of an LSTM's forget gate add up to 1.

    Biases become 0. Norms are reset, with their running statistics: after ``to_empty`` these are
    not defined. In residual networks of convolutions the scale of the last norm of each branch
    becomes 0, if it stands before the addition, so that each block begins as the identity.

    **What is overwritten.** Nothing tells loaded weights from random ones. So this call overwrites
    the whole model, or the ``modules`` that you name as new, such as a new head. Frozen parameters
    (``requires_grad=False``) are never changed. Call it before you load a checkpoint.

    **How the activation is found.** With a ``batch`` the model is called once, in eval mode and
    without gradients, and the functions that it calls are recorded. This sees functional calls too.
    Without a batch, the order in ``nn.Sequential`` is certain, and that of other modules' layers a
    guess. A hidden layer without any sign is taken for one with ReLU. The report tells for each
    layer how its activation was found.

    Fans are of what a unit sums: for a convolution with stride, :math:`k^2 / s^2` positions of the
    output per input; for a transposed convolution these make up :math:`n_\mathrm{in}`, where torch
    takes the weight's second dimension. Each gate or projection of a packed weight has its own
    fans. Complex weights share their variance between both parts. 16-bit weights are drawn in 32
    bits. Tied weights are drawn once. Under weight norm and spectral norm the weight is drawn, and
    torch's parametrization makes its parameters from it. Weights that FSDP2 shards are drawn whole
    on each rank, and all ranks take the values of rank 0.

    Sources: lectures S1, S4 ("Weight initialization") and S2 (LeCun); Glorot and Bengio, 2010; He
    et al., 2015, arXiv:1502.01852; Klambauer et al., 2017, arXiv:1706.02515; Saxe et al., 2014,
    arXiv:1312.6120 (orthogonal); Jozefowicz et al., 2015 (forget bias); Radford et al., 2019
    (residual projections); Goyal et al., 2017, arXiv:1706.02677 (zero scales).

    Args:
        model: The model.
        scheme: ``"auto"``; or the name of a scheme for all linear and convolution layers,
            attention projections and inputs of recurrent layers, where a normal
            ``"xavier_normal"`` has a gain of 1, and ``"kaiming_normal"`` the gain of a ReLU or a
            leaky ReLU; or schemes by patterns of the names of layers, in which ``*`` stands for any
            characters. The first pattern that matches counts, and other layers are ``"auto"``.
        batch: A batch to trace: a tensor, a list that begins with one, or a mapping of keyword
            arguments, on the model's device.
        modules: The new modules, or their names. Default: the whole model.
        generator: Random number generator, of any device. Default: torch's own.

    Returns:
        The report, layer by layer.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a scheme is unknown, a pattern matches no layer, or the model has no such
            module. If a parameter has no shape yet, is on the meta device, or is a flat shard of
            FSDP1. The model is unchanged then.

    Example:
        >>> from lightning_practices.init import initialize
        >>> model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 3))
        >>> report = initialize(model)
        >>> [(row.names[0], row.scheme) for row in report.initialized]
        [('0.weight', 'kaiming_normal'), ('2.weight', 'xavier_normal')]
        >>> round(model[0].weight.std().item() / (2 / 256) ** 0.5, 1)  # He's standard deviation
        1.0
    """
    check_module(model)
    schemes = check_schemes(scheme)
    chosen = {*model.modules()}
    if modules is not None:
        chosen = chosen_modules(model, check_modules(modules))
    if generator is not None:
        check_instance("generator", generator, torch.Generator, "a torch.Generator")
    check_ready(model, chosen)
    with _parametrizations_at_rest(model), torch.no_grad():
        chooser = Chooser(model, schemes, batch)
        made = plan(model, chosen, chooser)
        if chooser.unused and schemes != {"*": "auto"}:
            raise ValueError(
                f"scheme has the pattern {shown(chooser.unused[0])}, which matches no module of"
                f" {type(model).__name__} that is to be initialised"
            )
        return _apply(made, generator)


def _apply(made: Plan, generator: torch.Generator | None) -> InitReport:
    report = InitReport(kept=[Kept(*kept) for kept in made.kept])
    for choice in made.choices:
        before = std_of(choice.weight.value)
        _draw(choice, generator)
        after = std_of(choice.weight.value)
        law = choice.law
        report.initialized.append(
            Initialized(
                choice.names, choice.cls, law.scheme, choice.activation, law.fan, law.gain, before,
                after, choice.why,
            )
        )  # fmt: skip
    for name, module, own in made.biases:
        _set_bias(module, own, generator)
        report.biases.append(name)
    for name, module in made.resets.items():
        reset: Any = module.reset_parameters
        reset()
        report.norms.append(name)
    for name, scale in made.zeroed.items():
        nn.init.zeros_(scale)
        report.zeroed.append(name)
    return report


def _draw(choice: Choice, generator: torch.Generator | None) -> None:
    values = choice.law.draw(choice.weight, generator)
    module = choice.weight.module
    padding = getattr(module, "padding_idx", None)
    if choice.weight.role == "embedding" and padding is not None:
        values[padding] = 0.0
    write(choice.weight, values)
    if parametrize.is_parametrized(module, choice.weight.attribute):
        parts: Any = module.parametrizations[choice.weight.attribute]  # type: ignore[index]
        for part in parts:
            if isinstance(part, _SpectralNorm):
                _estimate(part, choice.weight, generator)


def write(weight: Weight, values: Tensor) -> None:
    """Set a weight to new values: a parameter, its shards, or what a parametrization computes."""
    if parametrize.is_parametrized(weight.module, weight.attribute):
        like = weight.value
        setattr(weight.module, weight.attribute, values.to(like.device, like.dtype))
    else:
        copy(weight.originals()[0], values)


def _estimate(norm: Any, weight: Weight, generator: torch.Generator | None) -> None:
    """Estimate a spectral norm anew: that of the old weight makes the new one far too large."""
    device = None if generator is None else generator.device
    for vector in (norm._u, norm._v):
        drawn = torch.randn(vector.shape, generator=generator, device=device)
        vector.copy_(drawn / drawn.norm())
    norm.training = True
    for _ in range(_POWER_ITERATIONS):
        _ = weight.value  # in train mode each reading is an iteration
    norm.training = False


def copy(p: Tensor, values: Tensor) -> None:
    """Set a parameter to new values, the same on all ranks if it is sharded."""
    if isinstance(p, DTensor):
        local = values.to(p.device, p.dtype)
        p.copy_(distribute_tensor(local, p.device_mesh, p.placements))
    else:
        p.copy_(values)


def std_of(value: Tensor) -> float:
    """Return the standard deviation of a tensor's elements, of all shards."""
    whole = value.full_tensor() if isinstance(value, DTensor) else value
    if not whole.numel():
        return float("nan")
    wide = torch.complex128 if whole.is_complex() else torch.float64
    place = "cpu" if whole.device.type == "mps" else whole.device
    return float(whole.detach().to(place).to(wide).std(correction=0))


def _set_bias(module: nn.Module, own: str, generator: torch.Generator | None) -> None:
    p = module._parameters[own]
    assert p is not None
    device = p.device if generator is None else generator.device
    values = torch.zeros(p.shape, dtype=torch.float32, device=device)
    if own in ("bias_k", "bias_v"):  # of attention: a key and a value, which are no offsets
        nn.init.xavier_normal_(values, generator=generator)
    if isinstance(module, nn.LSTM | nn.LSTMCell) and own.startswith("bias_ih"):
        values[module.hidden_size : 2 * module.hidden_size] = 1.0
    copy(p, values)


@contextmanager
def _parametrizations_at_rest(model: nn.Module) -> Iterator[None]:
    """Keep spectral norms from a power iteration at each reading of their weight."""
    parts = [
        part
        for module in model.modules()
        if isinstance(module, parametrize.ParametrizationList)
        for part in module.modules()
        if part.training
    ]
    try:
        for part in parts:
            part.training = False
        yield
    finally:
        for part in parts:
            part.training = True


def check_schemes(scheme: Any) -> dict[str, str]:
    """Return the schemes by patterns; ``"*"`` for a single one.

    Raises:
        TypeError: If ``scheme`` is neither a name nor a mapping of names.
        ValueError: If a name is unknown, or the mapping is empty.
    """
    known = get_args(Scheme)
    if not isinstance(scheme, Mapping):
        return {"*": check_choice("scheme", scheme, known, "a mapping of patterns to these")}
    if not scheme:
        raise ValueError(f"scheme has to hold at least one pattern, but got {shown(scheme)}")
    for pattern, name in scheme.items():
        if not isinstance(pattern, str):
            raise TypeError(f"scheme has to map patterns of names, but got {shown(pattern)}")
        check_choice("scheme", name, known)
    return dict(scheme)


def check_modules(modules: Any) -> tuple[str | nn.Module, ...]:
    """Return modules and names of modules as a tuple.

    Raises:
        TypeError: If ``modules`` is no list of modules and names.
        ValueError: If it is empty, or a name is.
    """
    is_listed = isinstance(modules, Sequence) and not isinstance(modules, str | bytes)
    if not is_listed or not all(isinstance(each, str | nn.Module) for each in modules):
        raise TypeError(
            f"modules has to be a list of modules or their names, but got {shown(modules)}"
        )
    if not modules or not all(modules_entry != "" for modules_entry in modules):
        raise ValueError(f"modules has to name at least one module, but got {shown(modules)}")
    return tuple(modules)


def check_ready(model: nn.Module, chosen: set[nn.Module]) -> None:
    """Raise ``ValueError`` if a parameter of the chosen modules can't be given values."""
    for path, module in model.named_modules():
        if isinstance(module, FullyShardedDataParallel):
            raise ValueError(
                f"FullyShardedDataParallel has made flat shards of {type(model).__name__}: call"
                " initialize before it wraps the model, or use fully_shard (FSDP2)"
            )
        if module not in chosen:
            continue
        for own, p in [*module._parameters.items(), *module._buffers.items()]:
            name = module_name(f"{path}.{own}".removeprefix("."))
            if p is None:
                continue
            if is_lazy(p):
                raise ValueError(
                    f"{name} of {type(model).__name__} has no shape yet: call the model once, on a"
                    " batch, before initialize"
                )
            if p.is_meta:
                raise ValueError(
                    f"{name} of {type(model).__name__} is on the meta device, where it has no"
                    " values: call model.to_empty(device=...) before initialize"
                )
            if hasattr(p, "ds_id") and not p.numel():
                raise ValueError(
                    f"{name} of {type(model).__name__} is partitioned by DeepSpeed and empty here:"
                    " call initialize within deepspeed.zero.GatheredParameters"
                )
