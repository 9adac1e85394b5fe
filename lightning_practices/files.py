"""Files that are written beside their place and then renamed, so that no reader sees half a file.

This module is not private, so that scripts, benchmarks and examples can use it too.
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing", "write_file"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give the path of a temporary file, which replaces the file at ``path`` if nothing fails.

    At each moment ``path`` has the whole old or the whole new content, even if this process is
    killed. If the block raises, the old file stays unchanged and the temporary file is removed. ::

        with replacing("curves.png") as part:
            figure.savefig(part)

    The temporary file is in the folder of ``path``, since only there it can be renamed in one step.
    It has a random name, so that threads and processes may write the same ``path``, and it ends in
    the suffix of ``path``, since many libraries choose the format by the suffix. The new file has
    the permissions of the old file. A symbolic link keeps pointing to the file, which is replaced.
    A device or a pipe, such as ``/dev/stdout``, can't be replaced, and is written directly.

    Only a process that is killed while it writes leaves a temporary file, ``.part-*``, behind.

    Args:
        path: The path of the file. Its folder has to exist.

    Yields:
        The path to write to. The file there is empty.

    Raises:
        OSError: If the temporary file can't be made or renamed.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file() and not target.is_dir():
        yield target
        return
    part = target.with_name(f".part-{secrets.token_hex(8)}{target.suffix}")
    try:
        # Python's `tempfile` would let only this user read the file.
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        if target.is_file():
            shutil.copymode(target, part)
        yield part
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def write_file(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a whole file by :func:`replacing`; text is encoded as UTF-8.

    Args:
        path: The path of the file. Its folder has to exist.
        content: The new content.

    Raises:
        OSError: If the file can't be written. The old file is unchanged.
    """
    with replacing(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
