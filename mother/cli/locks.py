"""One run at a time in a folder of results: a second one waits, so that nothing is lost and nothing mixed."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mother.errors import InputError
from mother.io.files import TEMPORARY

LOCK = ".lock"
# Where results are written in a folder. Nothing else in it is looked at: it may hold other folders of results.
PLACES = ("map", "map/figures", "figures", "models", "measurements", "measurements/*", "measurements/*/models")
PLACES += ("sketches", "shards", "traced")  # of an index, and of its graph


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other run writes into this folder.

    What killed runs have left half-written is removed. Raises InputError where there is a file in its place, and
    OSError where it cannot be written to.
    """
    from filelock import FileLock, Timeout

    if folder.exists() and not folder.is_dir():
        remedy = "Check path and space: name a folder that is new, or that of an earlier run."
        raise InputError(f"{folder} is a file. {remedy}")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting: another run writes into {folder}/", file=sys.stderr)
        lock.acquire()
    try:
        remove_leftovers(folder, alone=True)
        yield
    finally:
        lock.release()


def remove_leftovers(folder: Path, alone: bool) -> None:
    """Remove the temporary files of killed runs: all of them for one who is `alone`, else those of dead processes."""
    for place in [folder, *(path for pattern in PLACES for path in folder.glob(pattern))]:
        with suppress(OSError):  # it is no folder, or not to be changed: then they do no harm
            for name in os.listdir(place):
                match = TEMPORARY.fullmatch(name)
                if match is not None and (alone or not _is_alive(int(match["process"]))):
                    (place / name).unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:  # somebody else's
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True
