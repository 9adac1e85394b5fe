"""Hyperparameters that are one argument of the class after the mixins, such as a config."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningModule
from torch import nn

from lightning_practices import mixins
from tests.mixins.test_saved_arguments import KEY, held, same, saved


class Configured(LightningModule):
    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.save_hyperparameters(cfg)
        self.net = nn.Linear(self.hparams["hidden"], 1)


class Later(Configured):
    """A class that gives the config to a base, by position and under another name."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)


class Through(mixins.CheckpointMixin, mixins.OptimizerMixin, mixins.EarlyStoppingMixin, Configured):
    pass


class ThroughLater(mixins.OptimizerMixin, mixins.EarlyStoppingMixin, Later):
    pass


class Naming(Through):
    def __init__(self, cfg: Any, **practices: Any) -> None:
        super().__init__(cfg=cfg, **practices)


class Deriving(Through):
    def __init__(self, width: int = 4, **practices: Any) -> None:
        super().__init__(cfg={"hidden": width}, **practices)


CONFIGS = [{"hidden": 4}, Namespace(hidden=4)]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("kind", [Through, Naming, Deriving, ThroughLater])
def test_a_config_of_the_next_class(kind: Any, config: Any, tmp_path: Path) -> None:
    given = [] if kind is Deriving else [config]
    name = "config" if kind is ThroughLater else "cfg"
    base: Any = Later if kind is ThroughLater else Configured
    off = {} if kind is ThroughLater else {"checkpoint": None}
    module = kind(*given, early_stopping=7, optimizer="sgd", **off)
    if kind is not ThroughLater:
        loaded = kind.load_from_checkpoint(saved(module, tmp_path))
        assert loaded.checkpoint is None
    # Lightning notes the name of the argument of the innermost class.
    again: dict[str, Any] = {name: config} if kind is ThroughLater else {}
    for _ in range(2):  # the loaded module saves it too
        path = saved(module, tmp_path)
        assert held(path)[KEY] == {"hidden": 4}
        module = kind.load_from_checkpoint(path, weights_only=True, **again)
        assert (module.early_stopping.patience, module._optimizer.name) == (7, "sgd")
        assert module.net.in_features == 4
    plain = base.load_from_checkpoint(path, **{name: config})
    assert same(plain, module)
    assert same(Configured.load_from_checkpoint(path, cfg=config), module)
    if kind is ThroughLater:
        with pytest.raises(TypeError, match="missing 1 required positional argument: 'config'"):
            kind.load_from_checkpoint(path)
    if kind is Deriving:
        assert same(kind.load_from_checkpoint(path, width=4), module)
    else:
        assert same(kind.load_from_checkpoint(path, **{name: config}), module)
        with pytest.raises(RuntimeError, match="size mismatch"):
            kind.load_from_checkpoint(path, **{name: {"hidden": 5}})
    path = saved(base(config), tmp_path)
    loaded = kind.load_from_checkpoint(path, early_stopping=3, **again)
    assert (loaded.early_stopping.patience, loaded.net.in_features) == (3, 4)
