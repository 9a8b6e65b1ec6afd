"""One run at a time in a folder of results: a second one waits, so that nothing is lost and nothing mixed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other run writes into this folder. Raises OSError where the folder cannot be written to."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting: another run writes into {folder}/", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
