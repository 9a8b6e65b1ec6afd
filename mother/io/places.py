"""Where the files of a model are: on disk, or in a repository of the Hugging Face Hub."""

import hashlib
import os
import re
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path, PurePath
from typing import Any, Protocol, runtime_checkable

from mother.errors import CheckpointError, shown

ENDS = 65536  # bytes of a file that its fingerprint reads at either end


@runtime_checkable
class File(Protocol):
    """A file that is read by byte ranges, wherever it is: LocalFile here, RemoteFile in `mother.io.remote`."""

    size: int
    remote: bool  # whether its bytes come over a network

    def read(self, spans: Sequence[tuple[int, int]], into: Sequence[memoryview | None] = ()) -> list[Any]:
        """The bytes of each (start, end), in the memory of `into` where that can be; raises CheckpointError."""

    def expect(self, start: int, end: int) -> None:
        """Say that these bytes will be read soon."""

    def head(self, count: int) -> bytes:
        """The first `count` bytes or fewer."""

    def fingerprint(self) -> tuple[str, int, int, str]:
        """What changes whenever the file does."""

    def digest(self) -> str | None:
        """SHA-256 of its bytes, or None where that would have to be asked for."""

    def remembered(self, make: Callable[[], Any]) -> Any:
        """JSON that `make()` finds in the file, kept where finding it is slow."""


@dataclass(frozen=True)
class Repository:
    """A repository at one commit, with the names of its files."""

    model: str  # id in the manifest, for messages
    repo: str
    commit: str
    files: frozenset[str]

    def __str__(self) -> str:
        return f"hf://{self.repo}@{self.commit[:12]}"


@dataclass(frozen=True)
class LocalFile:
    """A file on disk. It is opened anew for each look, so that none of thousands stays open."""

    model: str
    path: Path
    size: int
    state: tuple[int, int, int] | None = None  # size, time and inode when it was opened
    remote = False

    @classmethod
    def open(cls, model: str, path: Path) -> "LocalFile":
        """Look at a file; raises CheckpointError."""
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would wait for somebody to write
                raise CheckpointError(model, path, "it is no regular file", "Give a file.")
            with open(path, "rb") as stream:
                status = os.fstat(stream.fileno())
                return cls(model, path, status.st_size, (status.st_size, status.st_mtime_ns, status.st_ino))
        except OSError as error:
            raise unreadable(model, path, error) from None

    def __str__(self) -> str:
        return str(self.path)

    def read(self, spans: Sequence[tuple[int, int]], into: Sequence[memoryview | None] = ()) -> list[memoryview]:
        """The bytes of each (start, end), fewer where the file ends; in the memory of `into` where it has some.

        Raises CheckpointError.
        """
        parts = []
        try:
            with open(self.path, "rb", buffering=0) as stream:
                self._check(os.fstat(stream.fileno()))
                for (start, end), given in zip_longest(spans, into):
                    buffer, filled = memoryview(bytearray(end - start)) if given is None else given, 0
                    stream.seek(start)
                    while filled < len(buffer) and (count := stream.readinto(buffer[filled:])):
                        filled += count
                    parts.append(buffer[:filled])
        except OSError as error:
            raise unreadable(self.model, self.path, error) from None
        return parts

    def _is(self, status: os.stat_result) -> bool:
        return self.state in (None, (status.st_size, status.st_mtime_ns, status.st_ino))

    def _check(self, status: os.stat_result) -> None:
        if not self._is(status):
            raise CheckpointError(
                self.model, self.path, "the file has changed while it was read", "Run again to read the new one."
            )

    def unchanged(self) -> bool:
        """Whether it is still the file that was opened."""
        try:
            return self._is(os.stat(self.path))
        except OSError:
            return False

    def digest(self) -> str:
        """SHA-256 of the file that was opened, which is read whole. Raises CheckpointError."""
        try:
            with open(self.path, "rb", buffering=0) as stream:
                self._check(os.fstat(stream.fileno()))
                found = hashlib.file_digest(stream, "sha256").hexdigest()
                self._check(os.fstat(stream.fileno()))
        except OSError as error:
            raise unreadable(self.model, self.path, error) from None
        return found

    def expect(self, start: int, end: int) -> None:
        """Let the system bring these bytes from the disk while something else is done, where it can."""
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError), open(self.path, "rb", buffering=0) as stream:
                os.posix_fadvise(stream.fileno(), start, end - start, os.POSIX_FADV_WILLNEED)

    def head(self, count: int) -> bytes:
        """The first `count` bytes or fewer."""
        return bytes(self.read([(0, min(count, self.size))])[0])

    def fingerprint(self) -> tuple[str, int, int, str]:
        """Path, size, modification time and digest of both ends. Raises CheckpointError where the file has gone."""
        try:
            with open(self.path, "rb") as stream:
                status = os.fstat(stream.fileno())
                ends = stream.read(ENDS)
                stream.seek(max(0, status.st_size - ENDS))
                digest = hashlib.sha256(ends + stream.read(ENDS)).hexdigest()
        except OSError as error:
            raise unreadable(self.model, self.path, error) from None
        return (str(self.path), status.st_size, status.st_mtime_ns, digest)

    def remembered(self, make: Callable[[], Any]) -> Any:
        """What `make()` finds: looking again is quick."""
        return make()


def unreadable(model: str, file: object, error: OSError) -> CheckpointError:
    if isinstance(error, FileNotFoundError):
        return CheckpointError(model, file, "there is no such file", "Fetch or save the model again.")
    return CheckpointError(model, file, f"cannot be read: {error.strerror}", "Check the path and its permissions.")


@runtime_checkable
class Place(Protocol):
    """A folder with the files of a model: LocalFolder here, RemoteFolder in `mother.io.remote`."""

    model: str

    def has(self, name: str) -> bool:
        """Whether there is such a file."""

    def open(self, name: str) -> File:
        """Open a file; raises CheckpointError."""

    def names(self) -> list[str]:
        """Names of its files and folders."""


@dataclass(frozen=True)
class LocalFolder:
    """A folder on disk."""

    model: str
    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        path = self.path / name
        return path.exists() and not path.is_dir()

    def open(self, name: str) -> LocalFile:
        """Open a file; raises CheckpointError."""
        return LocalFile.open(self.model, self.path / name)

    def names(self) -> list[str]:
        """Names of its files and folders."""
        return sorted(entry.name for entry in self.path.iterdir())


def leads_out(folder: Path, inside: PurePath, links: dict[str, bool] | None = None) -> str | None:
    """Where a path inside a folder leads if a link on its way leads out of that folder; else None.

    The Hugging Face cache is made of links from the snapshots of a repository to its blobs: these stay inside. What
    `links` says of places is not asked again.
    """
    links, place, linked = {} if links is None else links, str(folder), None
    for part in inside.parts:
        around, place = place, f"{place}/{part}"
        if place not in links:
            links[place] = os.path.islink(place)
        if links[place] and linked is None:
            linked = Path(os.path.realpath(around))
    if linked is None:
        return None
    target, roots = Path(os.path.realpath(place)), [Path(os.path.realpath(folder))]
    # The repository of the cache that the link lies in.
    roots += [one for one in (linked, *linked.parents) if one.name.startswith("models--")][:1]
    return None if any(target.is_relative_to(root) for root in roots) else str(target)


def is_plain(name: object) -> bool:
    """Whether this is a name of a file in the folder at hand, and no path to another one."""
    return (
        isinstance(name, str)
        and name.isprintable()
        and name not in ("", ".", "..")
        and not any(part in name for part in ("/", "\\", "\0"))
    )


def check_inside(place: Place, said: object, name: str) -> None:
    """Refuse a file that `said` names and that is a link out of the folder of both."""
    target = leads_out(place.path, PurePath(name)) if isinstance(place, LocalFolder) else None
    if target is not None:
        reason = f"it names {shown(name, 300)}, a link to {shown(target, 300)}, outside its folder"
        raise CheckpointError(place.model, said, reason, "Put the file itself there, if you trust it.")


HUB_SOURCE = re.compile(
    r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?(:(?P<subfolder>[\w.-]+(/[\w.-]+)*))?"
)
