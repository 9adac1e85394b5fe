"""A variational autoencoder whose divergence is summed and whose reconstruction is averaged."""

import math
from collections.abc import Iterator

from torch import Tensor
from torch.nn import functional

from lightning_practices.advisor._divergences import base_of, divergences_of
from lightning_practices.advisor._element_weights import element_weight, loss_weight
from lightning_practices.advisor._observation import Observation, Step
from lightning_practices.advisor._outputs import layer_of
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Loss, Value

_KINDS = frozenset({"mse", "l1", "bce", "bce_logits"})
_LEAST = 1.2  # nats; standardised features, averaged beside a sum over the code, are worth 1
_FEWEST = 8  # samples, and features
_CLOSE = 1e-3


@rule(
    "LP283", "warning",
    practice="Reconstruction and divergence of a variational autoencoder are sums over a sample",
    measures="the factors of an element's error and of the divergence, and what all of the data's"
    " variance is worth in nats by them, where errors are averaged over the elements of a sample"
    " and the divergence is summed over the code",
    healthy="more than 1.2 nats; chosen factors, and means on both sides",
    source="Kingma and Welling, 2014, arXiv:1312.6114, equation 10: both terms are sums over a"
    " sample; reports of codes that equal the prior",
)  # fmt: skip
def divergence_outweighs(seen: Observation) -> Iterator[Evidence]:
    step = seen.step
    for found in divergences_of(step):
        weight = element_weight(step, found.mean)
        code = found.mean.shape
        loss = _reconstruction(step, base_of(found.variance))
        if weight is None or loss is None or len(code) < 2 or loss.target.tensor is None:
            continue
        target, error = loss.target.tensor, loss_weight(step, loss)
        if error is None or error <= 0 or len(target) != code[0] or len(target) < _FEWEST:
            continue
        features = target.numel() // len(target)
        is_sum = weight * code[0] > 0.5 - _CLOSE
        is_mean = error * target.numel() < 1 + _CLOSE and features >= _FEWEST
        if is_sum and is_mean and (nats := error * _worth(loss, target) / (2 * weight)) < _LEAST:
            yield Evidence(
                f"{loss.call} is averaged over the {features} elements of a sample, and the"
                f" divergence, {found.call}, is summed over the {math.prod(code[1:])} numbers of"
                f" its code: all that a reconstruction can gain is worth {nats:.2g} nats, so that"
                " a code which says nothing has about the least loss",
                'recon = mse_loss(x_hat, x, reduction="sum") / len(x), beside'
                " kl.sum(dim=1).mean(); or both averaged over the elements of x",
                tuple(filter(None, [layer_of(found.variance)])),
                {"nats": nats, "elements": features},
            )
        return


def _reconstruction(step: Step, variance: Value) -> Loss | None:
    """Return the loss of a reconstruction from a code, if no other loss depends on the code."""
    encoder = next((call for call in variance.before() if call.is_layer), None)
    decoded = [
        loss for loss in step.losses if any(call is encoder for call in loss.prediction.before())
    ]
    if len(decoded) != 1 or decoded[0].kind not in _KINDS or decoded[0].target.depth:
        return None
    return decoded[0]


def _worth(loss: Loss, target: Tensor) -> float:
    """Return the error of the best constant prediction, less that of a perfect one.

    It is summed over the elements of a sample, and averaged over the samples.
    """
    return _excess(loss, target) / len(target)


def _excess(loss: Loss, target: Tensor) -> float:
    x = target.detach().double()
    if loss.kind == "mse":
        return float((x - x.mean(dim=0)).square().sum())
    if loss.kind == "l1":
        return float((x - x.median(dim=0).values).abs().sum())
    x = x.clamp(0, 1)
    mean = x.mean(dim=0).expand_as(x)
    least = functional.binary_cross_entropy(x, x, reduction="sum")
    return float(functional.binary_cross_entropy(mean, x, reduction="sum") - least)
