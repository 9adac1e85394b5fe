"""``bench``: the benchmarks, which a checkout has and an installed package doesn't."""

from collections.abc import Sequence
from importlib.util import find_spec

from lightning_practices.cli._main import UsageError

_MODULE = "benchmarks.gpu_check"  # tells them from a package of the same name


def run(argv: Sequence[str]) -> int:
    """Run ``python -m benchmarks`` with the arguments."""
    if find_spec("benchmarks") is None or find_spec(_MODULE) is None:
        raise UsageError(
            "the benchmarks aren't part of the installed package, and there is no folder"
            " `benchmarks` here: check out the repository, or unpack the source distribution"
            " (lightning_practices-VERSION.tar.gz), and call the command in that folder"
        )
    from benchmarks.__main__ import main

    return main(argv)
