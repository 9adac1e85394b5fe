"""``profile``: trace one op of ours and of peers with torch's profiler, and print tables."""

import argparse
import sys

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

import lightning_kernels
from benchmarks.cases import Case, make_calls
from benchmarks.ops import DTYPES, OPS
from benchmarks.options import quoted
from benchmarks.providers import Provider
from benchmarks.results import add_out
from benchmarks.rows import EAGER, OURS, first_line
from lightning_practices.files import replacing, write_file

_STEPS = 5  # traced steps, after as many warm-up steps
_CPU_ELEMENTS = 1 << 20
_ROWS = 30  # rows of a printed table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``profile``."""
    add = parser.add_argument
    ops = [name for name, op in OPS.items() if op.shapes]
    add("op", choices=ops, metavar="OP", help=f"one of {quoted(ops)}")
    add("--shape", metavar="NAME", help="(default: the op's first of a quick run)")
    add("--dtype", choices=list(DTYPES), default="bf16", help="(default: %(default)s)")
    add("--layout", metavar="LAYOUT", help="(default: the shape's first)")
    add("--peers", nargs="+", default=[EAGER], metavar="NAME", help="(default: eager)")
    add_out(parser, "the traces and tables")


def main(arguments: argparse.Namespace) -> int:
    """Profile; return 1 if a provider failed, 2 if an argument is unknown."""
    try:
        case = case_of(arguments)
        providers = providers_named(arguments.op, [OURS, *arguments.peers])
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        print("No GPU: the CPU's operators, not the kernels, on a shape made small.")
    lightning_kernels.set_kernel_policy("always")
    arguments.out.mkdir(parents=True, exist_ok=True)
    failed = False
    for provider in providers:
        stem = f"profile-{case.name}-{provider.name}"
        try:
            profiler = _profile(case, provider, device)
        except Exception as error:
            failed = True
            print(f"{provider.name}: {first_line(error)}", file=sys.stderr)
            continue
        table = _table(profiler)
        trace = arguments.out / f"{stem}.json"
        with replacing(trace) as part:
            profiler.export_chrome_trace(str(part))
        write_file(trace.with_suffix(".txt"), table + "\n")
        print(f"{provider.name}, {' '.join(case.key().values())}\n{table}\n{trace}")
    return 1 if failed else 0


def case_of(arguments: argparse.Namespace) -> Case:
    """Return the case that the command line specifies.

    Raises:
        ValueError: If the op doesn't have the given shape, or the shape the given layout.
    """
    shapes = {shape.name: shape for shape in OPS[arguments.op].shapes}
    first = next(iter(shapes.values()))
    default = next((shape for shape in shapes.values() if shape.quick), first)
    shape = default if arguments.shape is None else shapes.get(arguments.shape)
    if shape is None:
        raise ValueError(f"{arguments.op} has no shape {arguments.shape}, but {', '.join(shapes)}")
    layout = arguments.layout or shape.layouts[0]
    if layout not in shape.layouts:
        raise ValueError(f"{shape.name} has no layout {layout}, but {', '.join(shape.layouts)}")
    if not torch.cuda.is_available():
        shape = shape.shrunk(_CPU_ELEMENTS)
    return Case(arguments.op, shape, arguments.dtype, layout)


def providers_named(op: str, names: list[str]) -> list[Provider]:
    """Return the providers of ``op`` with the given names.

    Raises:
        ValueError: If ``op`` has no provider with a given name.
    """
    known = {provider.name: provider for provider in OPS[op].providers}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{op} has no provider {unknown[0]}, but {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)]


def _profile(case: Case, provider: Provider, device: torch.device) -> profile:
    """Trace forward and backward passes, each with its own label."""
    torch.manual_seed(0)
    function = provider.make()
    inputs = provider.prepare(case.draw(device))
    grad = torch.randn_like(function(*inputs))
    passes = {
        direction: make_calls(function, [inputs], [grad], direction)[0]
        for direction in ("forward", "backward")
        if direction in case.op.directions
    }
    on_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    plan = schedule(wait=0, warmup=_STEPS, active=_STEPS, repeat=1)
    profiler = profile(activities=activities, schedule=plan, profile_memory=True, acc_events=True)
    with profiler:
        for _ in range(2 * _STEPS):
            for direction, call in passes.items():
                with record_function(f"{provider.name} {direction}"):
                    call()
            if on_cuda:
                torch.cuda.synchronize(device)
            profiler.step()
    return profiler


def _table(profiler: profile) -> str:
    """Return a table of the operators that took most time, on the GPU if there is one."""
    key = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    table: str = profiler.key_averages().table(sort_by=key, row_limit=_ROWS)
    return table
