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

from lightning_practices._arguments import check_callable, check_iterable
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

    In training, running statistics are averages over batches that passed through older weights. For
    the final weights one pass over the training data gives the matching statistics:

    .. math::
        \mathrm{E}[x] = \frac{1}{B} \sum_{b=1}^{B} \mu_b \qquad
        \mathrm{Var}[x] = \frac{1}{B} \sum_{b=1}^{B} \sigma_b^2

    where :math:`\mu_b` and :math:`\sigma_b^2` are the mean and the unbiased variance of batch
    :math:`b` of :math:`B`. This is the cumulative average of ``momentum=None``, in which a smaller
    last batch has the same weight as the other batches. Shuffle the data: the variance of a batch
    with only one class is too small. ``num_batches_tracked`` becomes :math:`B`.

    :func:`torch.optim.swa_utils.update_bn` does the work, one batch at a time, and sums are in
    float64. The differences from calling it directly are:

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
    batches, whose number may differ. One collective gives all ranks the statistics of all batches.
    A ``SyncBatchNorm`` joins one batch of each rank to one batch, so with such layers all ranks
    need the same number of batches, as in training.

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
        totals = _add_up(loader, layers, lambda batch: run(model, batch))
    totals = _over_all_ranks(layers, totals)
    counts = [int(total[-1]) for total in totals]
    if not any(counts):
        raise ValueError(
            "no batch has reached a batch norm, so statistics are unchanged: either the loader is"
            " empty (an iterator runs only once), or `forward` doesn't run the model"
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


class _Narrowed(nn.Module):
    """A module with only the batch norms, so that ``update_bn`` sets no other module's mode."""

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
    """Return for each layer the sums of means and variances over the batches, and their count."""
    narrowed = _Narrowed(layers, run)
    totals = [
        torch.zeros(2 * layer.num_features + 1, dtype=torch.float64, device="cpu")
        for layer in layers
    ]
    for batch in loader:
        update_bn([[batch]], narrowed)  # `update_bn` calls the module with the first item of a list
        for layer, total in zip(layers, totals, strict=True):
            mean, variance, count = _buffers(layer)
            # A layer that runs several times per batch has averaged over `count` inputs.
            values = torch.cat([mean, variance, mean.new_ones(1)]).cpu().double()
            total += values * count.item()
    return totals


def _over_all_ranks(layers: Sequence[_BatchNorm], totals: list[Tensor]) -> list[Tensor]:
    if not (dist.is_available() and dist.is_initialized()):
        return totals
    for layer, total in zip(layers, totals, strict=True):
        # The layer's process group has averaged already: count only the first rank of the group.
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
