"""What is private stays private: which of our modules and names a file may import."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("lightning_kernels", "lightning_practices", "benchmarks")
FOLDERS = ("kernels/lightning_kernels", "lightning_practices", "examples", "benchmarks")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

# Packages whose files every neighbour imports, since they are one tool each.
SHARED = ("lightning_kernels._core", "lightning_practices.callbacks._trainer")

# Files that may look into the private parts of `lightning_kernels`, and why.
EXCEPTIONS = {
    "benchmarks.machine_code": "it records launches of kernels on a machine without a GPU",
    "benchmarks.readme": "it writes the table of crossovers to the documents",
    "benchmarks.ptx.on_cpu": "it executes compiled kernels on a machine without a GPU",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "kernels" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {module_name(path): path for path in SOURCES}
PACKAGES = {name for name, path in PATHS.items() if path.name == "__init__.py"}


def is_in(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


def package_of(module: str) -> str:
    return module if module in PACKAGES else module.rpartition(".")[0]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


@cache
def triton_functions(module: str) -> frozenset[str]:
    """Return the names of the functions that ``module`` decorates with ``triton.jit``."""
    tree = ast.parse(PATHS[module].read_text())
    return frozenset(
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and any("triton.jit" in ast.unparse(decorator) for decorator in node.decorator_list)
    )


@cache
def exports(package: str) -> frozenset[str]:
    """Return the names that ``package`` imports: a function may be called as its file is."""
    tree = ast.parse(PATHS[package].read_text())
    return frozenset(
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    )


def imports(tree: ast.AST) -> Iterator[tuple[str, str, str]]:
    """Yield each of our modules that a source imports, the name of it, and what it is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, "", alias.asname or alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in PATHS and alias.name not in exports(node.module or ""):
                    yield full, "", alias.asname or alias.name
                else:
                    yield node.module or "", alias.name, alias.asname or alias.name


def violations(module: str, source: str) -> list[str]:
    """Return the violations of ``module`` that are no exceptions, see :func:`all_violations`."""
    found = all_violations(module, source)
    if module in EXCEPTIONS:
        return [text for text in found if not text.startswith("lightning_kernels.")]
    return found


def all_violations(module: str, source: str) -> list[str]:
    """Return what ``module`` imports although it is private to others.

    - ``a._b`` is private to the package ``a``.
    - What is outside the package ``a._b`` imports it, and no file of it, but for ``SHARED``.
    - A name that begins with an underscore is private to its file. Functions of Triton are private
      to their package, since a kernel calls its helpers by name.
    """
    tree = ast.parse(source)
    wrong: list[str] = []
    modules: dict[str, str] = {}
    for target, name, called in imports(tree):
        if target.partition(".")[0] not in OURS or target == module:
            continue
        if reason := _why_private(module, target):
            wrong.append(f"{target} {reason}")
        if not name:
            modules[called] = target
        elif is_private(name) and not _is_own_kernel(module, target, name):
            wrong.append(f"{target}.{name} is private to its file")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            target = modules.get(ast.unparse(node.value), "")
            if target and f"{target}.{node.attr}" not in PATHS:
                wrong.append(f"{target}.{node.attr} is private to its file")
    return list(dict.fromkeys(wrong))


def _why_private(module: str, target: str) -> str | None:
    parts = target.split(".")
    for depth, part in enumerate(parts):
        owner, package = ".".join(parts[:depth]), ".".join(parts[: depth + 1])
        if not is_private(part):
            continue
        if not is_in(module, owner):
            return f"is private to {owner}"
        if package != target and package not in SHARED and not is_in(module, package):
            return f"is a file of {package}, which has to export what {module} needs"
    return None


def _is_own_kernel(module: str, target: str, name: str) -> bool:
    return (
        package_of(module) == package_of(target)
        and target in PATHS
        and name in triton_functions(target)
    )


@pytest.mark.parametrize("module", PATHS)
def test_no_file_imports_what_is_private_to_others(module: str) -> None:
    assert violations(module, PATHS[module].read_text()) == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("examples.digits", "from lightning_practices.nn import LayerNorm", ""),
        ("examples.digits", "import lightning_kernels._core.random", "to lightning_kernels"),
        ("examples.digits", "from lightning_kernels._core import random", "to lightning_kernels"),
        (
            "lightning_practices.mixins._optimizer",
            "def f():\n  from lightning_practices.callbacks._trainer.ranks import mean_over_ranks",
            "lightning_practices.callbacks._trainer.ranks is private to lightning_practices.cal",
        ),
        (
            "lightning_practices.callbacks._penalty",
            "from lightning_practices.callbacks._trainer.ranks import mean_over_ranks",
            "",
        ),
        (
            "lightning_practices.callbacks._penalty",
            "from lightning_practices.callbacks._clipping.clipper import Clipper",
            "is a file of lightning_practices.callbacks._clipping",
        ),
        (
            "lightning_practices.callbacks._penalty",
            "from lightning_practices.callbacks._clipping import GradientClipping",
            "",
        ),
        (
            "lightning_practices.surgery",
            "from lightning_practices.surgery._blocks.blocks import blocks",
            "is a file of lightning_practices.surgery._blocks",
        ),
        (
            "lightning_practices.surgery._transfer.freeze",
            "from lightning_practices._names import _WRAPPERS",
            "lightning_practices._names._WRAPPERS is private to its file",
        ),
        (
            "lightning_practices.surgery._transfer.freeze",
            "from lightning_practices import _names as names\nnames._WRAPPERS",
            "lightning_practices._names._WRAPPERS is private to its file",
        ),
        (
            "lightning_kernels._row_norm.operator",
            "from lightning_kernels._row_norm.kernels import _row_norm_forward_kernel",
            "",
        ),
        (
            "lightning_kernels._core.tiles",
            "from lightning_kernels._row_norm.kernels import _row_norm_forward_kernel",
            "_row_norm_forward_kernel is private to its file",
        ),
    ],
)
def test_the_rule_itself(module: str, source: str, wrong: str) -> None:
    found = violations(module, source)
    assert wrong in " ".join(found) if wrong else found == []


@pytest.mark.parametrize("module", EXCEPTIONS)
def test_exceptions_are_needed(module: str) -> None:
    assert all_violations(module, PATHS[module].read_text()) != []
