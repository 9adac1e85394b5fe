"""Layers take and refuse the shapes that torch's layers do."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_practices.nn
from tests.kernels.torch_cases import SHAPES, outcome

_DROPOUTS = (
    "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout",
)  # fmt: skip
_NORMS = [f"{kind}{rank}d" for kind in ("BatchNorm", "InstanceNorm") for rank in (1, 2, 3)]


def _arguments(name: str) -> Iterator[dict[str, Any]]:
    if name in _DROPOUTS:
        yield from ({"p": p} for p in (0.0, 1.0))
    elif name == "GroupNorm":
        yield from ({"num_groups": n, "num_channels": 2} for n in (1, 2))
    elif name in ("LayerNorm", "RMSNorm"):
        yield from ({"normalized_shape": size} for size in ((2,), (0,), (2, 2)))
    else:
        for affine, tracks in itertools.product((True, False), repeat=2):
            yield {"num_features": 2, "affine": affine, "track_running_stats": tracks}


@pytest.mark.plain
@pytest.mark.parametrize("name", [*_DROPOUTS, "GroupNorm", "LayerNorm", "RMSNorm", *_NORMS])
@pytest.mark.filterwarnings("ignore:dropout", "ignore:input's size at dim")
def test_shapes_are_taken_and_refused_as_by_torchs_layers(name: str) -> None:
    for options, training in itertools.product(_arguments(name), (True, False)):
        for shape in SHAPES:
            x = torch.linspace(-1, 2, torch.Size(shape).numel()).reshape(shape)
            theirs, ours = (
                outcome(getattr(module, name)(**options).train(training), x)
                for module in (nn, lightning_practices.nn)
            )
            where = shape, options, training, ours, theirs
            no_samples = name.startswith("InstanceNorm") and 0 in shape[:1]
            if no_samples and isinstance(theirs, IndexError):  # torch's own fault, with a weight
                assert isinstance(ours, Tensor), where
            elif no_samples and isinstance(ours, RuntimeError):
                # Torch writes nan to all running statistics if there is one channel.
                assert training, where
                assert options["track_running_stats"], where
            elif isinstance(theirs, Tensor):
                assert isinstance(ours, Tensor), where
                assert ours.shape == theirs.shape, where
                if not torch.equal(ours, theirs):
                    torch.testing.assert_close(ours, theirs, equal_nan=True)
            else:
                assert isinstance(ours, (ValueError, RuntimeError, type(theirs))), where
