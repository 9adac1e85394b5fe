"""Recompute the running statistics of a model's batch norms."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_practices._arguments import check_callable, check_iterable
from lightning_practices._batches import input_of
from lightning_practices._names import modules_with_names
from lightning_practices.nn import SyncBatchNorm

_SYNCHRONISED = (nn.SyncBatchNorm, SyncBatchNorm)
_PIECE = 1 << 24  # elements that are converted to float64 at once
_SEEN = "_recalibrated_from"  # attribute of a layer during the pass


@dataclass
class _Seen:
    """The inputs of a layer so far.

    Attributes:
        count: The number of values of a channel.
        mean: The mean of each channel, in float64.
        squares: The sum of each channel's squared differences from the mean, in float64.
    """

    count: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def nothing(cls, layer: _BatchNorm) -> Self:
        zeros = torch.zeros(layer.num_features, dtype=torch.float64, device=_place_of(layer))
        return cls(0, zeros, zeros.clone())

    def add(self, count: int, mean: Tensor, squares: Tensor) -> None:
        """Add further inputs, by the update of Chan, Golub and LeVeque, 1979."""
        if count == 0:
            return
        share = count / (self.count + count)
        apart = mean - self.mean
        self.mean = self.mean + apart * share
        self.squares = self.squares + squares + apart.square() * (self.count * share)
        self.count += count


def recalibrate_batch_norm(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    forward: Callable[[Any, Any], Any] | None = None,
) -> tuple[str, ...]:
    r"""Recompute the running statistics of ``model``'s batch norms over ``loader``, in place.

    In training, running statistics are averages over batches that passed through older weights. For
    the final weights one pass over the training data gives the matching statistics:

    .. math::
        \mathrm{E}[x] = \frac{1}{n} \sum_{i=1}^{n} x_i \qquad
        \mathrm{Var}[x] = \frac{1}{n - 1} \sum_{i=1}^{n} (x_i - \mathrm{E}[x])^2

    over all :math:`n` values :math:`x_i` of a channel in all batches, whatever their sizes. So the
    variance within the batches and that of their means both count, and the data need no shuffling.
    As in torch's running statistics, the variance is the unbiased one. Each batch is normalised by
    its own statistics, as in training, so the inputs of deeper norms depend on the batch size: use
    that of training. ``num_batches_tracked`` becomes the number of batches.

    Statistics are computed in float64 and rounded once. The differences from
    :func:`torch.optim.swa_utils.update_bn`, which averages the batches' means and variances with
    equal weights, are also:

    - Only batch norms are in train mode. All other layers are in eval mode, as in evaluation: with
      dropout on, batch norms would record a different variance.
    - After an error the model is unchanged.
    - Each module's mode and each batch norm's momentum are restored.
    - A layer that no batch reaches keeps its statistics.
    - Several processes are supported.

    If the model is in train mode, a batch norm in eval mode counts as frozen: it keeps its
    statistics, since training has used them. If the whole model is in eval mode, as after
    validation, modes don't show which batch norms are frozen, and all are recomputed. In that case
    call ``model.train()`` and freeze again first.

    If ``torch.distributed`` is initialised, all ranks have to call this function, each with its own
    batches, whose number and sizes may differ. One collective gives all ranks the statistics of all
    batches. A ``SyncBatchNorm`` joins one batch of each rank to one batch, so with such layers all
    ranks need the same number of batches, as in training.

    Sources: "Batch normalization: ideal solution", lecture S3; Ioffe and Szegedy, 2015,
    arXiv:1502.03167, algorithm 2; Wu and Johnson, 2021, *Rethinking "Batch" in BatchNorm*,
    arXiv:2105.07576; on dropout Li et al., 2018, arXiv:1801.05134.

    Args:
        model: The model, with its final weights.
        loader: Batches of training data. They are on the model's device, or ``forward`` moves them.
        forward: Function of the model and a batch that runs the model on the batch. Default: call
            the model with the batch, or with its first item if the batch is a list or tuple.

    Returns:
        The names of the batch norms with new statistics. Without a batch norm to recompute
        ``loader`` is not read.

    Raises:
        TypeError: If ``model`` is not a module. If ``forward`` is not given, and a batch is neither
            a tensor nor a list or tuple whose first item is a tensor.
        ValueError: If no batch reaches a batch norm.
        RuntimeError: If ``torch.compile`` runs a batch norm without its hooks, which see inputs.

    Example:
        >>> from lightning_practices.surgery import recalibrate_batch_norm
        >>> data = 5 + 3 * torch.randn(64, 4)
        >>> model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
        >>> recalibrate_batch_norm(model, torch.utils.data.DataLoader(data, batch_size=16))
        ('0',)
        >>> torch.allclose(model[0].running_mean, data.mean(0), atol=1e-5)
        True
        >>> torch.allclose(model[0].running_var, data.var(0), atol=1e-4)
        True
    """
    check_iterable("loader", loader, "batches of training data")
    if forward is not None:
        check_callable("forward", forward, "a function of the model and a batch")
    named = _to_recompute(model)
    if not named:
        return ()
    layers = list(named.values())
    run = forward or (lambda model, batch: model(input_of(batch)))
    with _restored(model, layers):
        model.eval()
        seen, batches = _look(layers, loader, lambda batch: run(model, batch))
    seen, batches = _over_all_ranks(layers, seen, batches)
    if not any(one.count for one in seen):
        raise ValueError(
            "no batch has reached a batch norm, so statistics are unchanged: either the loader is"
            " empty (an iterator runs only once), or `forward` doesn't run the model"
        )
    for layer, one, number in zip(layers, seen, batches, strict=True):
        if one.count:
            mean, variance, tracked = _buffers(layer)
            mean.copy_(one.mean)
            variance.copy_(one.squares / max(one.count - 1, 1))
            tracked.fill_(number)
    return tuple(name for name, one in zip(named, seen, strict=True) if one.count)


def _to_recompute(model: nn.Module) -> dict[str, _BatchNorm]:
    layers = {
        names[0]: module
        for module, names in modules_with_names(model)
        if isinstance(module, _BatchNorm)
        and module.track_running_stats
        and all(buffer is not None for buffer in _buffers(module))
    }
    training = {name: layer for name, layer in layers.items() if layer.training}
    return training if training or model.training else layers


def _buffers(layer: _BatchNorm) -> tuple[Any, Any, Any]:
    return layer.running_mean, layer.running_var, layer.num_batches_tracked


@contextmanager
def _restored(model: nn.Module, layers: Sequence[_BatchNorm]) -> Iterator[None]:
    """Restore modes, momenta and statistics on exit, also after an error."""
    modes = [(module, module.training) for module in model.modules()]
    momenta = [layer.momentum for layer in layers]
    buffers = [buffer for layer in layers for buffer in _buffers(layer)]
    copies = [buffer.clone() for buffer in buffers]
    try:
        yield
    except BaseException as error:
        error.add_note("while recomputing batch norm's running statistics: none has changed")
        raise
    finally:
        for module, mode in modes:
            module.training = mode
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for buffer, copy in zip(buffers, copies, strict=True):
            buffer.copy_(copy)


def _look(
    layers: Sequence[_BatchNorm], loader: Iterable[Any], run: Callable[[Any], Any]
) -> tuple[list[_Seen], list[int]]:
    """Return what each layer has seen in the batches of this rank, and its number of batches."""
    for layer in layers:
        layer.train()
        layer.momentum = 0.0  # running statistics don't matter in the pass
        layer.num_batches_tracked.zero_()  # type: ignore[union-attr]
        vars(layer)[_SEEN] = _Seen.nothing(layer)
    hooks = [layer.register_forward_pre_hook(_note, with_kwargs=True) for layer in layers]
    try:
        with torch.no_grad():
            for batch in loader:
                run(batch)
        seen = [vars(layer)[_SEEN] for layer in layers]
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers:
            del vars(layer)[_SEEN]
    batches = [int(layer.num_batches_tracked) for layer in layers]  # type: ignore[arg-type]
    if any(number and not one.count for number, one in zip(batches, seen, strict=True)):
        raise RuntimeError(
            "torch.compile has run a batch norm without the hooks that see its inputs: give the"
            " model before torch.compile, or a `forward` that runs it"
        )
    return seen, batches


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Add the input of a layer to what it has seen."""
    # It is read from the layer, since compiled code may call this function in a later pass too.
    seen: _Seen | None = vars(layer).get(_SEEN)
    if seen is None:
        return
    x: Tensor = args[0] if args else kwargs["input"]
    size = max(_PIECE // max(x[:1].numel(), 1), 1)
    for piece in torch.split(x.detach(), size):
        values = piece.to(seen.mean.device).double()
        over = [dim for dim in range(values.ndim) if dim != 1]
        mean = values.mean(over, keepdim=True)
        squares = (values - mean).square().sum(over)
        seen.add(values.numel() // max(values.shape[1], 1), mean.flatten(), squares)


def _place_of(layer: _BatchNorm) -> torch.device:
    """Return the device for float64: that of the layer, or the CPU for Apple's, which has none."""
    device: torch.device = layer.running_mean.device  # type: ignore[union-attr]
    return torch.device("cpu") if device.type == "mps" else device


def _over_all_ranks(
    layers: Sequence[_BatchNorm], seen: list[_Seen], batches: list[int]
) -> tuple[list[_Seen], list[int]]:
    """Join what the layers have seen on all ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return seen, batches
    for place, layer in enumerate(layers):
        # The ranks of the layer's process group have joined their batches: count them once.
        if isinstance(layer, _SYNCHRONISED) and dist.get_rank(layer.process_group) != 0:
            batches[place] = 0
    rows = [
        torch.cat([torch.tensor([one.count, number]).to(one.mean), one.mean, one.squares])
        for one, number in zip(seen, batches, strict=True)
    ]
    mine = torch.cat(rows).to(_place_of(layers[0]))
    all_rows = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(all_rows, mine)
    joined, numbers = [_Seen.nothing(layer) for layer in layers], [0] * len(layers)
    for of_rank in all_rows:
        for place, row in enumerate(torch.split(of_rank, [row.numel() for row in rows])):
            count, number = (int(value) for value in row[:2].tolist())
            mean, squares = row[2:].to(joined[place].mean).chunk(2)
            joined[place].add(count, mean, squares)
            numbers[place] += number
    return joined, numbers
