"""``fuse``: what could be fused in a model."""

import argparse

from lightning_practices.cli._main import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("model", help="a class path, or the name of a model of torchvision or timm")
    parser.add_argument("--input", metavar="SIZES",
                        help="sizes of an input of floats, such as 8,3,224,224")  # fmt: skip
    parser.add_argument("--measure", action="store_true",
                        help="time each layer both ways on this device; needs --input")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Fuse the model and show the report."""
    import torch
    from rich.console import Console

    from lightning_practices.cli._places import model_of
    from lightning_practices.surgery import fuse

    batch = None
    if arguments.measure and not arguments.input:
        raise UsageError("--measure needs --input, such as --input 8,3,224,224")
    if arguments.input:
        try:
            sizes = [int(size) for size in arguments.input.split(",")]
        except ValueError:
            raise UsageError(
                f"--input has to be whole numbers with commas between them, but got"
                f" {arguments.input!r}"
            ) from None
        batch = torch.randn(*sizes)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model_of(arguments.model).to(device)
    given = batch.to(device) if batch is not None and arguments.measure else None
    Console().print(fuse(model, given))
    return 0
