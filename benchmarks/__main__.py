"""``python -m benchmarks COMMAND``: measure the kernels and whole fits against their peers."""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

COMMANDS = {
    "kernels": "time every op against its peers on this GPU",
    "fit": "time whole training steps, and what each practice adds to a step",
    "cpu": "time the CPU route of every function against its peers",
    "surgery": "count what is folded in known networks, and time what fusing costs on the CPU",
    "advisor": "time advise next to a step, and what watching a fit adds to a step",
    "augmentation": "time batches augmented at once against a loop over their samples",
    "preprocessing": "time standardised batches, and fitting against reading the training split",
    "static": "report the machine code of every kernel without a GPU, and predict its time",
    "profile": "trace one op under torch.profiler",
    "compare": "compare two files of results, flag regressions",
    "report": "write the Markdown table and the plots of files of results",
    "readme": "write the figures of README.md and docs/kernels.md from the committed results",
    "gpu-check": "run tests and benchmarks within minutes, when a GPU is at hand",
}
INTERRUPTED = 130  # 128 + SIGINT, the convention of shells


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    The status is 0 after success, 1 if the command ran and found a regression, a wrong result or a
    spill, 2 if it could not run, and 130 if it was interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        return _run_default()
    arguments = argparse.Namespace()
    try:
        arguments, run = _parse(argv)
        return run(arguments)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in {"benchmarks", "lightning_kernels"}:
            raise  # a bug of this project, not a missing package
        print(f"{argv[0]} needs {error.name}, which is not installed", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        out = getattr(arguments, "out", None)
        kept = "" if out is None else f": kept what was finished in {out}"
        print(f"\ninterrupted{kept}", file=sys.stderr)
        return INTERRUPTED


def _parse(
    argv: Sequence[str],
) -> tuple[argparse.Namespace, Callable[[argparse.Namespace], int]]:
    """Parse ``argv``. Import only the module of the chosen command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="Without a command: kernels --shapes quick on a GPU, else static and cpu.",
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True, dest="command")
    main_of_command: Callable[[argparse.Namespace], int] | None = None
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=f"{summary}.")
        if name == argv[0]:
            module = import_module(f"benchmarks.{name.replace('-', '_')}")
            module.add_arguments(subparser)
            main_of_command = module.main
    arguments = parser.parse_args(argv)
    assert main_of_command is not None  # parse_args exits if the command is unknown
    return arguments, main_of_command


def _run_default() -> int:
    """Run ``kernels`` on a GPU; without one, ``static`` and ``cpu``."""
    import torch

    if torch.cuda.is_available():
        commands = [["kernels", "--shapes", "quick"]]
    else:
        commands = [["static"], ["cpu"]]
    names = " and ".join(" ".join(command) for command in commands)
    print(f"{'a' if len(commands) == 1 else 'no'} GPU here: running {names} (--help for more)")
    worst = 0
    for command in commands:
        worst = max(worst, main(command))
        if worst == INTERRUPTED:
            break
    return worst


if __name__ == "__main__":
    raise SystemExit(main())
