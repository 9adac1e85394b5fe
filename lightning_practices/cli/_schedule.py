"""``schedule``: pictures of learning rates, and schedules of unfreezing as files."""

import argparse
from pathlib import Path

from lightning_practices.cli._main import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the two kinds of schedule, with their options."""
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    rates = kinds.add_parser("lr", help="draw the learning rates of a fit")
    rates.add_argument("name", help="cosine, exponential, one_cycle, power or step")
    rates.add_argument("--lr", type=float, default=1e-3, help="the highest rate (%(default)s)")
    rates.add_argument("--steps", type=int, default=1000,
                       help="optimizer steps of the fit (%(default)s)")  # fmt: skip
    rates.add_argument("--warmup-steps", type=int, default=0, help="steps of linear warmup")
    rates.add_argument("--out", metavar="PICTURE", default="lr.png", help="(%(default)s)")
    order = kinds.add_parser("unfreezing", help="write a schedule of unfreezing for a model")
    order.add_argument("model", help="a class path, or a name of torchvision or timm")
    order.add_argument("--out", metavar="YAML", default="unfreezing.yaml", help="(%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Draw or write the schedule."""
    return _draw(arguments) if arguments.kind == "lr" else _write(arguments)


def _draw(arguments: argparse.Namespace) -> int:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise UsageError(
            "matplotlib is missing: pip install 'lightning-practices[plots]'"
        ) from None
    from lightning_practices.files import replacing
    from lightning_practices.pictures import COLOURS, dress
    from lightning_practices.schedules import learning_rate_factor

    try:
        factor = learning_rate_factor(
            arguments.name, arguments.steps, warmup_steps=arguments.warmup_steps
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    steps = range(arguments.steps)
    figure = Figure(figsize=(7, 3.5), dpi=200, layout="constrained")
    axis = figure.subplots()
    axis.plot(steps, [arguments.lr * factor(step) for step in steps], color=COLOURS[0])
    dress(axis)
    axis.set(xlabel="optimizer steps", ylabel="learning rate", ylim=(0, None))
    axis.set_title(f"{arguments.name}, {arguments.warmup_steps} steps of warmup", loc="left")
    with replacing(arguments.out) as part:
        figure.savefig(part)
    print(f"wrote {arguments.out}")
    return 0


def _write(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from lightning_practices.callbacks import unfreezing_schedule, write_schedule
    from lightning_practices.cli._places import model_of
    from lightning_practices.surgery import blocks

    model = model_of(arguments.model)
    write_schedule(unfreezing_schedule(model), Path(arguments.out))
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    table = Table("depth", "block", "parameters")
    for depth, block in enumerate(blocks(model)):
        size = sum(sizes[name] for name in block.parameters)
        table.add_row(str(depth), block.name, f"{size:,}")
    Console().print(table)
    print(f"wrote {arguments.out}: edit it, and give it to ProgressiveUnfreezing(schedule=...)")
    return 0
