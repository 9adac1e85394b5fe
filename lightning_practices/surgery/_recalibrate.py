"""Recompute the running statistics of a model's batch norms."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn
from typing_extensions import override

from lightning_practices._batches import input_of
from lightning_practices._names import modules_with_names
from lightning_practices.nn import SyncBatchNorm

_SYNCHRONISED = (nn.SyncBatchNorm, SyncBatchNorm)


def recalibrate_batch_norm(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    forward: Callable[[Any, Any], Any] | None = None,
) -> tuple[str, ...]:
    r"""Recompute the running statistics of ``model``'s batch norms over ``loader``, in place.

    While training they average over batches that older weights have seen. Once the weights stay as
    they are, one pass over the training data gives the statistics that belong to them:

    .. math::
        \mathrm{E}[x] = \frac{1}{B} \sum_{b=1}^{B} \mu_b \qquad
        \mathrm{Var}[x] = \frac{1}{B} \sum_{b=1}^{B} \sigma_b^2

    with the mean and the unbiased variance of each of the :math:`B` batches: the cumulative average
    of ``momentum=None``, in which a smaller last batch weighs as much as the others. So shuffle:
    batches of one class each have too small a variance. ``num_batches_tracked`` becomes :math:`B`.

    The work is that of :func:`torch.optim.swa_utils.update_bn`, one batch at a time, with sums in
    float64. What differs: in the pass only these batch norms are in train mode, all else is as in
    evaluation, which is what they are for (dropout is off, and without it they see another
    variance); if anything raises, nothing was changed; momenta and the mode of each module are
    given back; a layer that no batch reaches keeps what it had; and there may be several processes.

    A batch norm in eval mode within a model that trains is frozen: its statistics are what training
    used, and they stay. In a model that is in eval mode as a whole, as after validation, modes
    don't tell, and all are recomputed: call ``model.train()``, and your freezing, before this.

    Where ``torch.distributed`` is initialised all ranks have to call this, each with its own share
    of the batches, as many as it has, or none. All get the statistics of all batches, from one
    collective. A ``SyncBatchNorm`` takes a batch of all ranks for one: with it, as in training,
    each rank needs the same number of batches.

    Sources: "Batch normalization: ideal solution", lecture S3; Ioffe and Szegedy, 2015,
    arXiv:1502.03167, algorithm 2; Wu and Johnson, 2021, *Rethinking "Batch" in BatchNorm*,
    arXiv:2105.07576; on dropout Li et al., 2018, arXiv:1801.05134.

    Args:
        model: The model, with its final weights.
        loader: Batches of the training data, on the model's device or moved there by ``forward``.
        forward: Called with the model and a batch to run the one on the other. Default: the model
            is called with the batch, or with its first item if it is a list or tuple.

    Returns:
        The names of the batch norms that have new statistics. Without any to recompute, because
        none is there, tracks statistics or is not frozen, ``loader`` isn't touched.

    Raises:
        TypeError: If ``model`` is not a module, or without ``forward`` a batch is no tensor, nor a
            list or tuple that begins with one.
        ValueError: If no batch has reached a batch norm.
    """
    named = _to_recompute(model)
    if not named:
        return ()
    layers = list(named.values())
    run = forward or (lambda model, batch: model(input_of(batch)))
    with _given_back(model, layers):
        model.eval()
        totals = _add_up(loader, layers, lambda batch: run(model, batch))
    totals = _over_all_ranks(layers, totals)
    counts = [int(total[-1]) for total in totals]
    if not any(counts):
        raise ValueError(
            "no batch has reached a batch norm, whose statistics stay as they were: either the"
            " loader is empty (an iterator runs only once), or `forward` doesn't run the model"
        )
    for layer, total, count in zip(layers, totals, counts, strict=True):
        if count:
            _write(layer, total[:-1] / count, count)
    return tuple(name for name, count in zip(named, counts, strict=True) if count)


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
def _given_back(model: nn.Module, layers: Sequence[_BatchNorm]) -> Iterator[None]:
    """Leave modes, momenta and statistics as they were, whatever happens in between."""
    modes = [(module, module.training) for module in model.modules()]
    momenta = [layer.momentum for layer in layers]
    buffers = [buffer for layer in layers for buffer in _buffers(layer)]
    copies = [buffer.clone() for buffer in buffers]
    try:
        yield
    except BaseException as error:
        error.add_note("batch norm's running statistics were being recomputed: none has changed")
        raise
    finally:
        for module, mode in modes:
            module.training = mode
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for buffer, copy in zip(buffers, copies, strict=True):
            buffer.copy_(copy)


class _Narrowed(nn.Module):
    """What ``update_bn`` is shown of a model, so that it changes the mode of nothing else."""

    def __init__(self, layers: Iterable[_BatchNorm], run: Callable[[Any], Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.run = run

    @override
    def forward(self, batch: Any) -> None:
        self.run(batch)


def _add_up(
    loader: Iterable[Any], layers: Sequence[_BatchNorm], run: Callable[[Any], Any]
) -> list[Tensor]:
    """Return each layer's sums over the batches: of means, of variances, and their number."""
    narrowed = _Narrowed(layers, run)
    totals = [
        torch.zeros(2 * layer.num_features + 1, dtype=torch.float64, device="cpu")
        for layer in layers
    ]
    for batch in loader:
        update_bn([[batch]], narrowed)  # in a list, of which it takes the first
        for layer, total in zip(layers, totals, strict=True):
            mean, variance, count = _buffers(layer)
            # A layer that is shared has averaged over several batches: they count as such.
            values = torch.cat([mean, variance, mean.new_ones(1)]).cpu().double()
            total += values * count.item()
    return totals


def _over_all_ranks(layers: Sequence[_BatchNorm], totals: list[Tensor]) -> list[Tensor]:
    if not (dist.is_available() and dist.is_initialized()):
        return totals
    for layer, total in zip(layers, totals, strict=True):
        # Its group has shared each batch already, which then counts once.
        if isinstance(layer, _SYNCHRONISED) and dist.get_rank(layer.process_group) != 0:
            total.zero_()
    packed = torch.cat(totals).to(layers[0].running_mean.device)  # type: ignore[union-attr]
    dist.all_reduce(packed)
    return list(torch.split(packed.cpu(), [total.numel() for total in totals]))


def _write(layer: _BatchNorm, statistics: Tensor, count: int) -> None:
    mean, variance, tracked = _buffers(layer)
    mean.copy_(statistics[: mean.numel()])
    variance.copy_(statistics[mean.numel() :])
    tracked.fill_(count)
