"""The YAML of the documents: classes and options exist, and take the values.

A block is checked if its first line is ``# config for:`` and what reads it: ``lightning-practices
fit``, or the class whose arguments it holds.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from sybil import Example

MARK = "# config for: "
FIT = "lightning-practices fit"
BORING = "lightning.pytorch.demos.boring_classes.BoringModel"  # for a block without a model


def check_config(example: Example) -> None:
    """Make what a block describes."""
    first, _, rest = str(example.parsed).partition("\n")
    if not first.startswith(MARK):
        return
    reader = first.removeprefix(MARK).strip()
    own = sys.modules["__main__"]  # the names of the page
    added = stand_in(own, yaml.safe_load(rest))
    try:
        if reader == FIT:
            make_fit(rest)
        else:
            make(found(reader, own), rest)
    finally:
        for name in added:
            del sys.modules[name]


class QuietCLI(LightningCLI):
    """Lightning's command line, in a process that has arguments of its own."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # Lightning's own warns if the process has other arguments, and here it has pytest's.
        self.config = parser.parse_args(args)


def make_fit(text: str) -> None:
    """Make the Trainer, the module and the data, as the command does before the fit."""
    Path("config.yaml").write_text(text, "utf-8")
    model = [] if "model" in yaml.safe_load(text) else [f"--model={BORING}"]
    QuietCLI(
        args=["--config=config.yaml", *model],
        run=False,
        save_config_callback=None,
        seed_everything_default=0,
    )


def make(cls: Any, text: str) -> None:
    """Make an object of a class by the arguments in a block."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, sub_configs=True)
    cls(**vars(parser.instantiate(parser.parse_string(text))))


def found(path: str, own: ModuleType) -> Any:
    """Return a class of the page or of a module."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module) if module else own, name)


def stand_in(own: ModuleType, config: Any) -> list[str]:
    """Let the page stand in for modules that it says its classes are in, such as ``train``."""
    added = []
    for path in class_paths(config):
        module, _, name = path.rpartition(".")
        if module and hasattr(own, name) and module not in sys.modules and not find_spec(module):
            sys.modules[module] = own
            added.append(module)
    return added


def class_paths(config: Any) -> list[str]:
    """Return every ``class_path`` of a configuration."""
    if isinstance(config, list):
        return [path for item in config for path in class_paths(item)]
    if not isinstance(config, dict):
        return []
    here = [config["class_path"]] if "class_path" in config else []
    return here + class_paths(list(config.values()))
