"""Bytes from afar that a run needs twice: kept in a file without a name, which is gone when the run ends or is killed.

Method map looks at a matrix in its first pass, and again once it knows which pairs are near. At most half of the space
that is free, and LIMIT, is taken; what finds no place is fetched again.
"""

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

LIMIT = 32 << 30  # bytes; MOTHER_SPOOL gives another number, 0 keeps nothing

Span = tuple[str, int, int]  # file, start, end


class Spool:
    """Bytes by span. Many threads may use it at once; a disk that fails only makes it forget."""

    def __init__(self, folder: Path):
        self._lock = threading.Lock()
        self._places: dict[Span, int] = {}
        self._end = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)
            free = shutil.disk_usage(folder).free // 2
        except OSError:  # a folder that cannot be written
            self._file, free = tempfile.TemporaryFile(buffering=0), 0
        asked = os.environ.get("MOTHER_SPOOL", "")
        self._room = min(int(asked) if asked.isdecimal() else LIMIT, free)

    def keep(self, span: Span, content: bytes | memoryview) -> None:
        """Keep the bytes of a span, where there is room."""
        with self._lock:
            if span in self._places or self._end + len(content) > self._room:
                return
            place = self._end
            self._end += len(content)
        try:
            written = 0
            while written < len(content):
                written += os.pwrite(self._file.fileno(), content[written:], place + written)
        except OSError:  # the disk is full
            self._room = 0
            return
        self._places[span] = place

    def take(self, span: Span) -> bytes | None:
        """The bytes of a span, or None where they are not there."""
        if (place := self._places.get(span)) is None:
            return None
        parts, start, end = [], place, place + span[2] - span[1]
        with contextlib.suppress(OSError):
            while start < end and (part := os.pread(self._file.fileno(), end - start, start)):
                parts.append(part)
                start += len(part)
        return b"".join(parts) if start == end else None

    def close(self) -> None:
        """Give the space back."""
        self._file.close()


_used: Spool | None = None


def current() -> Spool | None:
    """The spool that is in use, if one is."""
    return _used


@contextlib.contextmanager
def spooled(folder: Path) -> Iterator[None]:
    """What is fetched inside is kept below `folder` until the outermost such block ends."""
    global _used
    if _used is not None:
        yield
        return
    _used = Spool(folder)
    try:
        yield
    finally:
        _used.close()
        _used = None
