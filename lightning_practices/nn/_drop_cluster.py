"""Dropout of clusters of positions with correlated activations. The layer learns the clusters."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_practices._arguments import check_callable, check_iterable, check_whole
from lightning_practices._names import check_module
from lightning_practices.nn._dropout import FusedDropout

_MAX_ROUNDS = 100  # rounds of k-means, which mostly converges within twenty


class DropCluster2d(FusedDropout):
    r"""Zero clusters of positions whose activations correlate, and rescale the other positions.

    .. math::
        y_{nchw} = x_{nchw} \, m_{n k(h, w)} \frac{N H W}{\sum_{nhw} m_{n k(h, w)}}, \qquad
        m_{nk} \sim \mathrm{Bernoulli}(1 - p)

    where :math:`k(h, w)` is the cluster of a position. :class:`DropBlock2d` drops squares, on the
    assumption that neighbouring positions hold similar information. Here the training data
    determine which positions hold similar information. The layer learns its clusters from
    activations, by :meth:`fit` or, for all layers of a model, by :func:`fit_drop_clusters`, and
    keeps them in its ``state_dict``. Without clusters it can train only if ``p`` is 0. Clusters
    suit the weights that produced the activations: fit them once the weights are no longer random,
    and if needed again later. In evaluation the input is returned unchanged. All channels share the
    clusters and the mask.

    After Chen et al., 2020, *DropCluster: A structured dropout for convolutional networks*,
    arXiv:2002.02997.

    Args:
        p: Probability that a cluster is zeroed in a sample. May be assigned at any time.
        num_clusters: Largest number of clusters to learn.
        inplace: Whether to overwrite the input.

    Attributes:
        clusters: The cluster index of each position, int64 of shape ``(H, W)``; empty before the
            fit.

    Shape:
        - Input: :math:`(N, C, H, W)`, any floating dtype, with the height and width of the
          activations in the fit.
        - Output: shape and dtype of the input.

    Raises:
        ValueError: If ``p`` is outside ``[0, 1]`` or ``num_clusters`` below 1; from ``forward``, if
            the input has another shape or dtype.
        RuntimeError: From ``forward`` in training, if ``p`` is not 0 and there are no clusters.

    Example:
        >>> from lightning_practices.nn import DropCluster2d
        >>> drop = DropCluster2d(0.5, num_clusters=2)
        >>> halves = torch.randn(64, 3, 1, 2).repeat_interleave(2, dim=3)  # of rows of four pixels
        >>> drop.fit([halves]).clusters
        tensor([[0, 0, 1, 1]])
    """

    clusters: Tensor

    def __init__(self, p: float, num_clusters: int, inplace: bool = False) -> None:
        super().__init__(p, inplace)
        self.num_clusters = check_whole("num_clusters", num_clusters, 1)
        self.register_buffer("clusters", torch.empty(0, 0, dtype=torch.int64))

    @override
    def forward(self, input: Tensor) -> Tensor:
        fitted = self.clusters.numel() > 0
        rate = self.current_rate() if fitted else self.p
        # A rate of 0 needs no clusters: a model may train before the fit.
        if not self.training or (not isinstance(rate, Tensor) and rate == 0):
            return input
        self._check(input, rate)
        draws = torch.rand(len(input), self.num_clusters, device=input.device)
        mask = (draws >= rate)[:, self.clusters]  # (N, H, W)
        wide = torch.float64 if input.dtype == torch.float64 else torch.float32
        # The clamp gives 0 instead of 0 / 0 if no position is kept.
        factor = mask.to(wide) * mask.numel() / mask.sum().clamp(min=1)
        factor = factor.to(input.dtype).unsqueeze(1)
        return input.mul_(factor) if self.inplace else input * factor

    def _check(self, input: Tensor, rate: float | Tensor) -> None:
        if self.clusters.numel() == 0:
            raise RuntimeError(
                "DropCluster2d has no clusters yet: before it trains with p above 0, call"
                " fit_drop_clusters(model, batches), or the layer's fit(activations)"
            )
        if not isinstance(rate, Tensor) and not 0 <= rate <= 1:
            raise ValueError(f"DropCluster2d's p has to be between 0 and 1, but got {rate}")
        if input.dim() != 4 or input.shape[2:] != self.clusters.shape:
            height, width = self.clusters.shape
            raise ValueError(
                f"DropCluster2d was fitted to maps of {height} x {width} and expects an input of"
                f" (N, C, {height}, {width}), but got {list(input.shape)}: fit it again"
            )
        if not input.is_floating_point():
            raise ValueError(f"DropCluster2d expects a floating-point input, got {input.dtype}")

    @torch.no_grad()
    def fit(self, activations: Tensor | Iterable[Tensor]) -> Self:
        """Learn the clusters from the layer's input on training data.

        The correlation of each pair of positions is computed over the samples, with each channel
        centred at its own mean, and summed over the channels. K-means groups positions with similar
        rows of this matrix into clusters. It is deterministic: its first centres are rows that are
        far apart. Positions whose value never changes have no correlation with any position. The
        matrix has ``(H * W) ** 2`` elements of float64 on the device of the activations, and is
        freed afterwards.

        Args:
            activations: A tensor of shape ``(N, C, H, W)``, or several with the same C, H and W.

        Returns:
            The layer.

        Raises:
            TypeError: If an item of ``activations`` is not a tensor.
            ValueError: If an item of ``activations`` has another shape or is not finite. If no
                position changes, as with a single sample. If there are more clusters than
                positions. After an error the layer keeps its previous clusters.
        """
        correlation = _Correlation()
        for batch in [activations] if isinstance(activations, Tensor) else activations:
            correlation.add(batch)
        self._take(correlation.clusters(self.num_clusters))
        return self

    def _take(self, clusters: Tensor) -> None:
        with torch.inference_mode(False):  # a checkpoint can't be loaded into an inference tensor
            self.clusters = clusters.to(self.clusters.device, copy=True)

    @override
    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        """Load clusters of any height and width. Report an error for any other tensor."""
        key = f"{prefix}clusters"
        found = state_dict.get(key)
        if isinstance(found, Tensor):
            if reason := self._why_not(found):
                error_msgs.append(f"{key} can't be loaded: {reason}")
                return
            if found.shape != self.clusters.shape:
                self.clusters = self.clusters.new_zeros(found.shape)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _why_not(self, found: Tensor) -> str | None:
        """Return why ``found`` can't be this layer's clusters, or ``None`` if it can."""
        if found.dim() != 2 or found.dtype != torch.int64:
            return f"expected (H, W) of torch.int64, got {list(found.shape)} of {found.dtype}"
        if found.numel() > 0 and not 0 <= found.min() <= found.max() < self.num_clusters:
            return (
                f"expected values from 0 to {self.num_clusters - 1}, for num_clusters="
                f"{self.num_clusters}, got {found.min()} to {found.max()}"
            )
        return None

    @override
    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_clusters={self.num_clusters}"


@torch.no_grad()
def fit_drop_clusters(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Callable[[Any, Any], Any] | None = None,
) -> tuple[str, ...]:
    """Learn the clusters of every :class:`DropCluster2d` in ``model``, in one pass over batches.

    The model runs in eval mode without gradients, and each layer learns from its own inputs, see
    :meth:`DropCluster2d.fit`. Afterwards each module has its previous mode. After an error all
    layers keep their previous clusters. A few hundred samples are enough. With several processes,
    give all of them the same batches, since each process learns from its own batches.

    Args:
        model: The model, best after some training.
        batches: Batches of training data. They are on the model's device, or ``forward`` moves
            them.
        forward: Function of the model and a batch that runs the model on the batch. Default: call
            the model with the batch, or with its first item if the batch is a list or tuple.

    Returns:
        The names of the layers. Without such layers ``batches`` is not read.

    Raises:
        ValueError: If no batch reaches a layer, or for the reasons given in
            :meth:`DropCluster2d.fit`.

    Example:
        >>> from lightning_practices.nn import DropCluster2d, fit_drop_clusters
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), DropCluster2d(0.1, num_clusters=5))
        >>> fit_drop_clusters(model, [torch.randn(32, 3, 8, 8) for _ in range(4)])
        ('2',)
        >>> model[2].clusters.shape, model[2].clusters.unique()
        (torch.Size([6, 6]), tensor([0, 1, 2, 3, 4]))
    """
    check_module(model)
    check_iterable("batches", batches, "batches of training data")
    if forward is not None:
        check_callable("forward", forward, "a function of the model and a batch")
    layers = {name: m for name, m in model.named_modules() if isinstance(m, DropCluster2d)}
    if not layers:
        return ()
    seen = {name: _Correlation() for name in layers}
    modes = [(module, module.training) for module in model.modules()]
    hooks = [
        layer.register_forward_hook(partial(_add_output, seen[name]))
        for name, layer in layers.items()
    ]
    try:
        model.eval()
        for batch in batches:
            if forward is not None:
                forward(model, batch)
            else:
                model(batch[0] if isinstance(batch, list | tuple) else batch)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    learnt = {}
    for name, layer in layers.items():
        try:
            learnt[name] = seen[name].clusters(layer.num_clusters)
        except ValueError as error:
            error.add_note(f"of layer {name!r}; no layer has changed")
            raise
    for name, layer in layers.items():
        layer._take(learnt[name])
    return tuple(layers)


def _add_output(correlation: "_Correlation", layer: nn.Module, _: Any, output: Tensor) -> None:
    correlation.add(output)  # in eval mode the output is the input


class _Correlation:
    """Correlation of positions over batches, with each channel centred at its own mean."""

    shape: torch.Size  # (C, H, W). `shape`, `mean` and `products` are set with the first batch
    mean: Tensor
    products: Tensor

    def __init__(self) -> None:
        self.count = 0

    def add(self, batch: Tensor) -> None:
        """Add a batch to the sums of products about the mean (Chan et al., 1979)."""
        if not isinstance(batch, Tensor):
            raise TypeError(f"activations are tensors (N, C, H, W), got {type(batch).__name__}")
        if batch.dim() != 4 or not batch.is_floating_point():
            raise ValueError(
                f"activations are floating point (N, C, H, W), got {list(batch.shape)}"
                f" of {batch.dtype}"
            )
        if len(batch) == 0:
            return
        samples = batch.flatten(2).double()
        mean = samples.mean(0)  # (C, H * W)
        centred = (samples - mean).flatten(0, 1)
        products = centred.T @ centred
        if self.count == 0:
            self.shape, self.mean, self.products = batch.shape[1:], mean, products
        elif batch.shape[1:] != self.shape:
            raise ValueError(
                f"activations have to be of one shape (C, H, W), got {list(batch.shape[1:])}"
                f" after {list(self.shape)}"
            )
        else:
            shift, share = mean - self.mean, len(batch) / (self.count + len(batch))
            self.products += products + self.count * share * shift.T @ shift
            self.mean += share * shift
        self.count += len(batch)

    def result(self) -> Tensor:
        """Return the correlations: H * W rows. Rows of positions that never change are zero."""
        if self.count == 0:
            raise ValueError("there are no activations to learn clusters from")
        if not self.products.isfinite().all():
            raise ValueError("the activations to learn clusters from hold nan or infinity")
        variance = self.products.diagonal()
        # Smaller variances are rounding errors of float64.
        changes = variance > self.count * (1e-12 * self.mean).square().sum(0)
        if not changes.any():
            raise ValueError(
                f"no position changes over {self.count} sample(s), so none correlate: learn"
                " clusters from several different samples"
            )
        scale = torch.where(changes, variance, torch.inf).rsqrt()
        return self.products * scale * scale[:, None]

    def clusters(self, count: int) -> Tensor:
        """Return the cluster index of each position, of shape (H, W)."""
        correlation = self.result()
        _, height, width = self.shape
        if count > height * width:
            raise ValueError(f"num_clusters={count} is more than the {height} x {width} positions")
        return _k_means(correlation, count).view(height, width)


def _k_means(rows: Tensor, count: int) -> Tensor:
    """Return the cluster of each row, by Lloyd's algorithm from initial centres far apart."""
    centres = rows[:1]
    nearest = torch.full_like(rows[:, 0], torch.inf)
    while len(centres) < count:
        nearest = torch.minimum(nearest, (rows - centres[-1]).norm(dim=1))
        centres = torch.cat([centres, rows[nearest.argmax()][None]])
    labels = torch.cdist(rows, centres).argmin(1)
    for _ in range(_MAX_ROUNDS):
        members = nn.functional.one_hot(labels, count).to(rows.dtype)
        sizes = members.sum(0)[:, None]
        # A cluster without members keeps its centre.
        centres = torch.where(sizes > 0, members.T @ rows / sizes.clamp(min=1), centres)
        previous, labels = labels, torch.cdist(rows, centres).argmin(1)
        if torch.equal(labels, previous):
            break
    return labels
