"""Files of tests, written for ``lightning.pytorch``, as files for ``pytorch_lightning``."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]


def in_twin(source: str) -> str:
    """Return the source with the names of the twin's packages."""
    source = source.replace("lightning.pytorch", "pytorch_lightning")
    return source.replace("lightning.fabric", "lightning_fabric")


def twin_module(name: str) -> ModuleType:
    """Return the module of tests ``name`` (without ``tests.``) in the twin's names."""
    twin = f"tests.twin_{name}"
    if twin not in sys.modules:
        path = ROOT / "tests" / f"{name}.py"
        module = ModuleType(twin)
        module.__file__ = str(path)
        sys.modules[twin] = module
        source = path.read_text().replace("tests.refits", "tests.twin_refits")
        exec(compile(in_twin(source), path, "exec"), vars(module))
    return importlib.import_module(twin)
