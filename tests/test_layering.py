"""The order of the layers (each imports only what stands above it), and what an import may do."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the ground up; rooms of one line may import each other. A new room is one more word here.
ORDER: list[list[str]] = [
    ["lightning_kernels"],
    ["lightning_practices"],  # its own files: the version, and helpers for every room
    ["lightning_practices.nn"],
    [
        "lightning_practices.surgery",
        "lightning_practices.ensembles",
        "lightning_practices.init",
        "lightning_practices.optim",
        "lightning_practices.schedules",
        "lightning_practices.data",
    ],
    ["lightning_practices.advisor"],
    ["lightning_practices.callbacks", "lightning_practices.plugins", "lightning_practices.modules"],
    ["lightning_practices.mixins"],
    ["lightning_practices.recipes"],
    ["lightning_practices.cli"],
]
LEVELS = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
LIGHTNING_FROM = LEVELS["lightning_practices.advisor"]  # below it, nothing of Lightning
LIGHTNING = ("lightning", "lightning_fabric", "pytorch_lightning")

SOURCES = sorted([*ROOT.glob("kernels/**/*.py"), *ROOT.glob("lightning_practices/**/*.py")])


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "kernels" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """Return the room that ``module`` is in; the package itself is the one for its own files."""
    top, *rest = module.split(".")
    if rest == ["__main__"]:  # of ``python -m lightning_practices``
        return "lightning_practices.cli"
    if top == "lightning_practices" and rest and f"{top}.{rest[0]}" in LEVELS:
        return f"{top}.{rest[0]}"
    return top


def imported(tree: ast.AST) -> set[str]:
    """Return every module that the source imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are banned"
            module = node.module or ""
            names.add(module)
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def violations(module: str, source: str) -> set[str]:
    """Return what ``module`` imports and should not."""
    level = LEVELS[room_of(module)]
    wrong = set()
    for name in imported(ast.parse(source)):
        top = name.partition(".")[0]
        too_early = top in LIGHTNING and level < LIGHTNING_FROM
        if too_early or (
            top in ("lightning_kernels", "lightning_practices") and above(name, level)
        ):
            wrong.add(name)
    return wrong


def above(name: str, level: int) -> bool:
    return LEVELS[room_of(name)] > level


def run(code: str, **environment: str) -> str:
    """Run ``code`` in a fresh process and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


ROOMS = sorted({room_of(module_name(path)) for path in SOURCES}, key=lambda r: (LEVELS[r], r))
# The rooms of each level, and whether they may import Lightning.
IMPORTS = [
    ([room for room in ROOMS if LEVELS[room] == level], level >= LIGHTNING_FROM)
    for level in range(len(ORDER))
]


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_no_file_imports_a_layer_above_its_own(path: Path) -> None:
    module = module_name(path)
    assert violations(module, path.read_text()) == set()


def test_every_room_has_its_place() -> None:
    rooms = {module_name(path) for path in SOURCES if path.name == "__init__.py"}
    public = {n for n in rooms if n.count(".") == 1 and "._" not in n} | {"lightning_kernels"}
    assert public <= LEVELS.keys()


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("lightning_kernels._x", "import lightning_practices", {"lightning_practices"}),
        ("lightning_kernels._x", "import torch, triton", set()),
        ("lightning_practices.nn._x", "import lightning_kernels", set()),
        (
            "lightning_practices.nn._x",
            "from lightning_practices import surgery",
            {"lightning_practices.surgery"},
        ),
        ("lightning_practices.surgery._x", "import lightning.fabric", {"lightning.fabric"}),
        (
            "lightning_practices.callbacks._x",
            "def f():\n  from lightning_practices.mixins._x import X",
            {"lightning_practices.mixins._x", "lightning_practices.mixins._x.X"},
        ),
        ("lightning_practices.mixins._x", "import lightning.pytorch", set()),
        ("lightning_practices._x", "import lightning_practices.nn", {"lightning_practices.nn"}),
    ],
)
def test_the_rule_itself(module: str, source: str, wrong: set[str]) -> None:
    assert violations(module, source) == wrong


@pytest.fixture(scope="module")
def loaded_by() -> dict[str, list[str]]:
    """Return the modules that are loaded once a room is imported, for each room.

    Each import has a fresh process, forked from one that has imported only what the room may.
    """
    code = f"""
import importlib, os, sys, torch
for rooms, may_import_lightning in {IMPORTS}:
    if may_import_lightning:
        import lightning.pytorch
    for room in rooms:
        child = os.fork()
        if child == 0:
            importlib.import_module(room)
            print(room, *sys.modules, flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, room
    for room in rooms:
        importlib.import_module(room)
"""
    return {room: loaded for room, *loaded in map(str.split, run(code).splitlines())}


@pytest.mark.parametrize("room", ROOMS)
def test_importing_a_room_loads_nothing_above_it(
    room: str, loaded_by: dict[str, list[str]]
) -> None:
    level, loaded = LEVELS[room], loaded_by[room]
    ours = [
        m for m in loaded if m.partition(".")[0] in ("lightning_kernels", "lightning_practices")
    ]
    assert room in ours
    assert [m for m in ours if above(m, level)] == []
    if level < LIGHTNING_FROM:
        assert [m for m in loaded if m.partition(".")[0] in LIGHTNING] == []
    assert [m for m in loaded if m.partition(".")[0] == "pytorch_lightning"] == []


def test_importing_everything_touches_no_gpu_and_patches_nothing() -> None:
    code = f"""
import importlib, torch, lightning.pytorch as pl
from torch.nn.utils import clip_grad_norm_
def functions():
    places = [torch, torch.nn, torch.nn.functional, torch.nn.init, torch.nn.utils, torch.optim]
    places += [torch.Tensor, torch.nn.Module, torch.nn.LayerNorm, torch.nn.Dropout, pl]
    places += [pl.LightningModule, pl.LightningDataModule, pl.Trainer, pl.Callback]
    return {{(str(p), name): id(value) for p in places for name, value in vars(p).items()}}
threads, state = torch.get_num_threads(), torch.get_rng_state()
before = functions()
for room in {ROOMS}:
    importlib.import_module(room)
after = functions()
changed = [key for key in before if after.get(key) != before[key]]
assert not changed, changed
assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
assert torch.get_default_dtype() is torch.float32
assert not torch.cuda.is_initialized()
print(type(torch.nn.LayerNorm(4)).__module__)
"""
    assert run(code, CUDA_VISIBLE_DEVICES="0") == "torch.nn.modules.normalization"


def test_everything_imports_and_runs_without_triton() -> None:
    code = f"""
import importlib, sys
sys.modules["triton"] = None  # as where it is not installed
import torch
for room in {ROOMS}:
    importlib.import_module(room)
import lightning_kernels
from lightning_practices import nn
x = torch.randn(4, 8, requires_grad=True)
expected = torch.nn.functional.layer_norm(x, (8,))
assert torch.equal(lightning_kernels.layer_norm(x, (8,)), expected)
assert torch.equal(nn.LayerNorm(8)(x), expected)
torch.manual_seed(0)
dropped = torch.nn.functional.dropout(x, 0.5)
torch.manual_seed(0)
assert torch.equal(lightning_kernels.dropout(x, 0.5), dropped)
torch.nn.Sequential(nn.LayerNorm(8), nn.Dropout(0.5))(x).sum().backward()
assert x.grad is not None and lightning_kernels.route(x) == "aten"
print("ran")
"""
    assert run(code, TRITON_INTERPRET="0") == "ran"


@pytest.mark.parametrize("version", ["3.5.1", "unknown"])
def test_a_triton_that_is_too_old_is_left_alone(version: str) -> None:
    code = f"""
import warnings
import torch, triton
triton.__version__ = {version!r}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import lightning_kernels
    import lightning_practices.nn
(message,) = [str(one.message) for one in caught if "Triton" in str(one.message)]
assert "needs Triton 3.6 or newer, but found {version}" in message, message
assert "pip install --upgrade torch triton" in message, message
x = torch.randn(4, 8)
assert lightning_kernels.route(x) == "aten"
assert torch.equal(lightning_kernels.layer_norm(x, (8,)), torch.layer_norm(x, (8,)))
assert not torch.cuda.is_initialized()
print("ran")
"""
    assert run(code, TRITON_INTERPRET="1") == "ran"


def test_versions_of_triton_are_compared_as_numbers() -> None:
    code = """
import triton
triton.__version__ = "3.10.0"
import torch, lightning_kernels
print(lightning_kernels.route(torch.ones(2)))
"""
    assert run(code, TRITON_INTERPRET="1") == "interpreter"
