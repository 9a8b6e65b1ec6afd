"""SHA-256 of the files that a model was read from, so that a result says which bytes it is of."""

import threading
from typing import Any

from mother.io.checkpoint import Checkpoint
from mother.io.places import File, LocalFile

MOST_KEPT = 4096  # digests that are remembered: a base is read for each of its adapters

_Key = tuple[str, tuple[int, int, int]]  # path; size, time and inode
_kept: dict[_Key, str] = {}
_lock = threading.Lock()


def digest_of(file: File) -> str | None:
    """SHA-256 of a file as it was opened; None for one afar whose Hub has not told it.

    A local file is read whole, once while it stays the same. Raises CheckpointError where it is not what was opened.
    """
    if not isinstance(file, LocalFile) or file.state is None:
        return file.digest()
    key = (str(file.path), file.state)
    with _lock:
        known = _kept.get(key)
    if known is not None and file.unchanged():
        return known
    found = file.digest()
    with _lock:
        while len(_kept) >= MOST_KEPT:
            _kept.pop(next(iter(_kept)))
        _kept[key] = found
    return found


def digests(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Name, size and SHA-256 of each file that a model was read from; with an adapter its configuration and its base.

    Raises CheckpointError where a file has gone or changed.
    """
    return [{"file": str(file), "size": file.size, "sha256": digest_of(file)} for file in checkpoint.files()]
