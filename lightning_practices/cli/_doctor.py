"""``doctor``: versions, devices, routes and caches, and what is missing."""

import argparse
import importlib.metadata
import platform
from collections.abc import Iterator
from pathlib import Path

_NEEDED = ("torch", "lightning", "torchvision", "torchmetrics", "jsonargparse")
# Packages that some functions need, with the extra that installs each.
_OPTIONAL = {
    "triton": "torch for Linux brings it; without it, torch's own operators run",
    "matplotlib": "pip install 'lightning-practices[plots]'",
    "scikit-learn": "pip install 'lightning-practices[recipes]'",
    "timm": "pip install timm",
    "transformers": "pip install transformers",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command: none."""


def run(arguments: argparse.Namespace) -> int:
    """Show the state of the installation; the status is 1 if something needed is missing."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "", show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, text in _lines():
        table.add_row(name, text)
    Console().print(table)
    return int(any(_version(name) is None for name in _NEEDED))


def _lines() -> Iterator[tuple[str, str]]:
    import platformdirs
    import torch

    import lightning_kernels
    from lightning_practices import __version__

    yield "lightning-practices", __version__
    yield "Python", f"{platform.python_version()}, {platform.platform()}"
    for name in _NEEDED:
        yield name, _version(name) or "[red]missing[/]: pip install lightning-practices"
    for name, remedy in _OPTIONAL.items():
        yield name, _version(name) or f"[yellow]not installed[/]: {remedy}"
    if not torch.cuda.is_available():
        yield "GPU", "none that torch can use"
    for index in range(torch.cuda.device_count()):
        own = torch.cuda.get_device_properties(index)
        memory = f"{own.total_memory / 2**30:.0f} GiB"
        yield f"GPU {index}", f"{own.name}, compute capability {own.major}.{own.minor}, {memory}"
    yield "a CPU tensor", f"is computed by {lightning_kernels.route(torch.zeros(4))}"
    if torch.cuda.is_available():
        yield "a GPU tensor", f"is computed by {lightning_kernels.route(torch.zeros(4).cuda())}"
    yield "layers", f"policy of kernels: {lightning_kernels.get_kernel_policy()}"
    yield "measured times", _folder(Path(platformdirs.user_cache_dir("lightning-practices")))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _folder(path: Path) -> str:
    if not path.is_dir():
        return f"{path} (none yet)"
    files = [file for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    return f"{path} ({len(files)} files, {size / 1024:.0f} KiB)"
