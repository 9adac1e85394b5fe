"""Files of tests, written for ``lightning.pytorch``, as files for ``pytorch_lightning``.

``python -m tests.twins FOLDER`` writes all of them to a folder, from which pytest runs them.
"""

import importlib
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]


def in_twin(source: str) -> str:
    """Return the source with the names of the twin's packages.

    The errors of this package remain those of ``lightning``, and so do the reasons for stopping.
    """
    source = re.sub(
        r"lightning\.pytorch(?!\.callbacks\.early_stopping)", "pytorch_lightning", source
    )
    return re.sub(r"lightning\.fabric(?!\.utilities\.exceptions)", "lightning_fabric", source)


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


def write(folder: Path) -> None:
    """Write the files of tests, and what they need, in the twin's names."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("tests", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in folder.rglob("*.py"):
        path.write_text(in_twin(path.read_text()))
    shutil.copy(ROOT / "pyproject.toml", folder)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
