"""Combine the outputs of several models, stacked in dimension 0."""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

Task = Literal["binary", "multiclass", "regression"]
"""The kind of outputs, see :class:`~lightning_practices.ensembles.Ensemble`."""

Outputs = Literal["logits", "probabilities"]
"""What members return, see :class:`~lightning_practices.ensembles.Ensemble`."""

Vote = Literal["soft", "hard"]
"""How members are averaged, see :class:`~lightning_practices.ensembles.Ensemble`."""


def probabilities_of(outputs: Tensor, task: Task, kind: Outputs) -> Tensor:
    """Return the probabilities of each model, or its values for ``"regression"``."""
    if task == "regression" or kind == "probabilities":
        return outputs
    return outputs.softmax(2) if task == "multiclass" else outputs.sigmoid()


def logits_of(outputs: Tensor, task: Task, kind: Outputs) -> Tensor:
    """Return the logits of each model, or its values for ``"regression"``."""
    if task == "regression" or kind == "logits":
        return outputs
    return outputs.log() if task == "multiclass" else outputs.logit()


def mean_logits(outputs: Tensor, task: Task, kind: Outputs) -> Tensor:
    """Return the logits of the models' mean probabilities, without underflow."""
    if kind == "probabilities":
        return logits_of(outputs.mean(0), task, kind)
    if task == "multiclass":
        return outputs.log_softmax(2).logsumexp(0) - math.log(len(outputs))
    return F.logsigmoid(outputs).logsumexp(0) - F.logsigmoid(-outputs).logsumexp(0)


def shares_of_votes(outputs: Tensor, task: Task, kind: Outputs) -> Tensor:
    """Return the share of models that vote for each class: nan where a model's output is nan."""
    if task == "multiclass":
        unknown = outputs.isnan().any(2, keepdim=True)
        votes = F.one_hot(outputs.argmax(2), outputs.shape[2]).movedim(-1, 2).to(outputs.dtype)
    else:
        unknown = outputs.isnan()
        votes = (outputs > (0.5 if kind == "probabilities" else 0.0)).to(outputs.dtype)
    return votes.masked_fill(unknown, torch.nan).mean(0)
