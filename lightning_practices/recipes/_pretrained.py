"""Pretrained weights: of torchvision by name, or of a file."""

import pickle
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import get_model, get_model_weights, list_models

from lightning_practices._names import some
from lightning_practices.recipes._errors import DataError
from lightning_practices.surgery import replace_head

# What torch.load raises for a file of another kind.
_UNREADABLE = (pickle.UnpicklingError, EOFError, LookupError, RuntimeError, ValueError)
_PREFIX = "network."  # of the weights in a checkpoint of a Classifier
_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # of torchvision's weights


def architecture_of(name: str, num_classes: int) -> nn.Module:
    """Return a network of torchvision with random weights.

    Raises:
        DataError: If torchvision has no network of this name.
    """
    _check_name(name)
    network: nn.Module = get_model(name, num_classes=num_classes)
    return network


def pretrained(architecture: str, weights: str, num_classes: int) -> nn.Module:
    """Return a network of torchvision with pretrained weights and a new head.

    Args:
        architecture: The name of the network.
        weights: The name of torchvision's weights, such as ``"DEFAULT"``, which are downloaded
            once; or a file, see :func:`load_weights`.
        num_classes: Classes of the new head.

    Raises:
        DataError: If there are no such weights, or they can't be had.
    """
    _check_name(architecture)
    names = [one.name for one in get_model_weights(architecture)]
    if weights in (*names, "DEFAULT"):
        try:
            network: nn.Module = get_model(architecture, weights=weights)
        except OSError as error:
            raise DataError(
                f"torchvision could not download the weights {weights} of {architecture} ({error}):"
                " give the path of a file of weights instead, as in --model.weights=resnet18.pt"
            ) from error
        replace_head(network, num_classes)
        return network
    if not Path(weights).is_file():
        raise DataError(
            f"{weights!r} is neither a file nor weights of {architecture}: give a path, or"
            f" {' or '.join(['DEFAULT', *names])}"
        )
    network = get_model(architecture)
    head = replace_head(network, num_classes)
    load_weights(network, Path(weights), head)
    return network


def normalization(architecture: str, weights: str) -> tuple[list[float], list[float]]:
    """Return the mean and the standard deviation of each channel that weights were trained with.

    For weights of a file, they are those of ImageNet.

    Raises:
        DataError: If torchvision has no network of this name.
    """
    _check_name(architecture)
    kinds = get_model_weights(architecture)
    if weights in (*(one.name for one in kinds), "DEFAULT"):
        preset: Any = kinds[weights].transforms()
        return preset.mean, preset.std
    return _IMAGENET


def load_weights(network: nn.Module, file: Path, new: tuple[str, ...] = ()) -> None:
    """Load the weights of a file into a network, in place.

    Args:
        network: The network.
        file: A ``state_dict`` of the network saved by ``torch.save``; or a checkpoint of a
            :class:`Classifier`, such as those in ``lightning_logs``, whose network is of the same
            architecture.
        new: Names of the modules that keep their own weights, such as a new head.

    Raises:
        DataError: If the file holds no weights, or weights of another architecture.
    """
    try:
        found: Any = torch.load(file, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise DataError(
            f"{file} holds no weights that torch.load(weights_only=True) reads: {error}"
        ) from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        inside = found["state_dict"].items()
        found = {k.removeprefix(_PREFIX): v for k, v in inside if k.startswith(_PREFIX)}
    if not isinstance(found, dict) or not found:
        raise DataError(
            f"{file} holds no weights: save them by torch.save(network.state_dict(), FILE)"
        )
    kept = tuple(f"{name}." for name in new)
    own = {k: v for k, v in network.state_dict().items() if not k.startswith(kept)}
    given = {k: v for k, v in found.items() if not k.startswith(kept)}
    missing, unexpected = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    differ = sorted(k for k in own.keys() & given.keys() if own[k].shape != given[k].shape)
    problems = [
        f"{len(names)} {what} ({some(names)})"
        for names, what in (
            (missing, "are missing"), (unexpected, "are unknown"), (differ, "have another shape"),
        )
        if names
    ]  # fmt: skip
    if problems:
        raise DataError(
            f"the weights of {file} are not those of this {type(network).__name__}:"
            f" {', '.join(problems)}: choose the architecture that they were trained with"
        )
    network.load_state_dict(given, strict=False)


def _check_name(architecture: str) -> None:
    known = list_models()
    if architecture not in known:
        near = get_close_matches(architecture, known, 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see torchvision.models"
        raise DataError(f"torchvision has no network {architecture!r}: {hint}")
