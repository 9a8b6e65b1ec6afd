"""A file of the Hub, read by byte ranges: resolved once, tried again from where the connection broke."""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

from mother.errors import CheckpointError
from mother.io import hub, traffic
from mother.io.files import write_atomically, write_json
from mother.io.hub import BUSY, LATER, ONCE, TRANSIENT, answer, folder_of, patiently, retry_after, stall_limit
from mother.io.places import Repository
from mother.io.runtime import STOP

PROGRESS = 1 << 20  # bytes, or a good part of the range, that a try must bring to count as one that got on
HEAD_BYTES = 1 << 16  # read at once in the hope that the whole header is there
GAP_SHARE = 1 / 64  # ranges are joined across a gap of at most this part of the smaller one
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class RangeRefused(Exception):
    """The server sends whole files only."""


@dataclass
class RemoteFile:
    """A file of a repository at a commit. `size` and `etag` are asked for once and then kept in the cache."""

    repository: Repository
    path: str
    remote = True
    size: int = -1
    etag: str = ""
    _location: str | None = field(default=None, repr=False)  # may hold a signature: never printed
    _served: str | None = None  # etag of the bytes that we were sent first
    _local: Path | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def __post_init__(self) -> None:
        kept = self._kept()
        try:
            content = json.loads(kept.read_text())
            self.size, self.etag = int(content["size"]), str(content["etag"])
        except (OSError, ValueError, KeyError, TypeError):
            self._resolve()
            with contextlib.suppress(OSError):
                write_json(kept, {"size": self.size, "etag": self.etag})

    def __str__(self) -> str:
        return f"{self.repository}/{self.path}"

    def __hash__(self) -> int:
        return hash(str(self))

    def _kept(self, suffix: str = "json") -> Path:
        digest = hashlib.sha256(self.path.encode()).hexdigest()[:16]
        return folder_of(self.repository.repo) / self.repository.commit / f"{digest}.{suffix}"

    def fingerprint(self) -> tuple[str, int, int, str]:
        """Name, size and etag at a commit: nothing has to be read to know that a file is the same."""
        return (f"hf://{self.repository.repo}@{self.repository.commit}/{self.path}", self.size, 0, self.etag)

    def digest(self) -> str | None:
        """SHA-256 where the Hub has told it: the etag of a file in its large storage is that; no request is made."""
        return self.etag if re.fullmatch("[0-9a-f]{64}", self.etag) else None

    def _resolve(self) -> str:
        """Ask where the bytes are. Raises CheckpointError where the file is not what it was."""
        model, source = self.repository.model, str(self)
        url = hf_hub_url(self.repository.repo, self.path, revision=self.repository.commit)
        asked = partial(traffic.counted, get_hf_file_metadata, url, timeout=stall_limit())
        found = answer(model, source, partial(patiently, asked))
        if found.size is None:
            raise CheckpointError(model, source, "the Hub does not tell its size", "Try again later.")
        if self.size >= 0 and (found.size, found.etag or "") != (self.size, self.etag):
            raise self._changed()
        self.size, self.etag, self._location = found.size, found.etag or "", found.location
        return found.location

    def _changed(self) -> CheckpointError:
        for suffix in ("json", "head", "table2"):  # what is kept is of another file
            with contextlib.suppress(OSError):
                self._kept(suffix).unlink()
        return CheckpointError(
            self.repository.model, self, "the file has changed while it was read", "Run again to read the new one."
        )

    def head(self, count: int) -> bytes:
        """The first `count` bytes or fewer; kept in the cache, so that no second run asks for them."""
        kept, count = self._kept("head"), min(count, self.size)
        try:
            content = kept.read_bytes()
            if len(content) >= count:
                return content[:count]
        except OSError:  # not kept
            pass
        (content,) = self.read([(0, min(self.size, max(count, HEAD_BYTES)))])
        with contextlib.suppress(OSError):
            write_atomically(kept, lambda file: file.write(content))
        return bytes(content[:count])

    def expect(self, start: int, end: int) -> None:
        """Nothing: bytes from afar are asked for when they are read."""

    def read(
        self, spans: Sequence[tuple[int, int]], into: Sequence[memoryview | None] = ()
    ) -> list[bytes | memoryview]:
        """The bytes of each (start, end), never in `into`; neighbours come with one request. Raises CheckpointError."""
        joined: list[list[int]] = []
        order = sorted(range(len(spans)), key=lambda k: spans[k])
        inside: dict[int, int] = {}
        for k in order:
            start, end = spans[k]
            if joined and start - joined[-1][1] <= GAP_SHARE * min(end - start, joined[-1][1] - joined[-1][0]):
                joined[-1][1] = max(end, joined[-1][1])
            else:
                joined.append([start, end])
            inside[k] = len(joined) - 1
        parts = [memoryview(self._fetch(start, end)) for start, end in joined]
        result = []
        for k, (start, end) in enumerate(spans):
            base = joined[inside[k]][0]
            result.append(parts[inside[k]][start - base : end - base])
        return result

    def _fetch(self, start: int, end: int) -> bytes | bytearray:
        """Bytes start to end, tried again from where the connection broke."""
        if start == end:
            return b""
        if self._local is not None:
            return self._read_local(start, end)
        model, source = self.repository.model, str(self)
        buffer, wait, idle, renewed = bytearray(), hub.WAIT, 0, False
        while len(buffer) < end - start:
            before = len(buffer)
            try:
                answer(model, source, lambda: self._request(start + before, end, buffer, end - start), TRANSIENT)
            except RangeRefused:
                return self._read_local(start, end)
            except _Expired:
                if renewed:
                    reason = "the server refuses access to the data"
                    raise CheckpointError(model, source, reason, "Try again.") from None
                renewed = True
                with self._lock:
                    self._location = None
                continue
            except (_Broken, *TRANSIENT) as error:
                enough = min(PROGRESS, (end - start) // (2 * hub.RETRIES))
                idle = 0 if len(buffer) - before > enough else idle + 1
                if idle > hub.RETRIES:
                    raise CheckpointError(
                        model,
                        source,
                        f"the transfer breaks again and again at byte {start + len(buffer)} ({_cause(error)})",
                        LATER,
                        transient=True,
                    ) from None
                hub.pause(max(wait if idle else 0.0, getattr(error, "wait", 0.0)))
                wait = wait * 2 if idle else hub.WAIT
        return buffer

    def _request(self, start: int, end: int, buffer: bytearray, most: int) -> None:
        """One GET of a range; appends to `buffer` what comes, until it has `most` bytes."""
        with self._lock:
            location = self._location or self._resolve()
        ours = urlsplit(location).netloc == urlsplit(constants.ENDPOINT).netloc
        # A signed address needs no token, and must not get one.
        signed = not ours or "/resolve/" not in urlsplit(location).path
        headers = {} if signed else build_hf_headers()
        headers |= {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        traffic.count(1)
        with http_stream_backoff("GET", location, headers=headers, timeout=stall_limit(), **ONCE) as response:
            if response.status_code in (401, 403, 404, 410) and signed:
                raise _Expired
            if response.status_code == 200:
                raise RangeRefused
            if response.status_code == 416:
                raise self._changed()
            if response.status_code in BUSY:
                raise _Broken(f"HTTP {response.status_code}", retry_after(response))
            hf_raise_for_status(response)
            self._check(response, start, end)
            try:
                for part in response.iter_raw():
                    if STOP.is_set():
                        raise KeyboardInterrupt
                    if len(buffer) + len(part) > most:
                        raise _Broken("more came than was asked for")
                    buffer += part
                    traffic.count(received=len(part))
            except TRANSIENT as error:
                raise _Broken(type(error).__name__) from None
        if len(buffer) < most:
            raise _Broken("the answer is too short")

    def _check(self, response: httpx2.Response, start: int, end: int) -> None:
        """Refuse an answer that is not what was asked for."""
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status_code != 206 or match is None:
            raise _Broken(f"HTTP {response.status_code} without a range")
        first, last, size = map(int, match.groups())
        if size != self.size:
            raise self._changed()
        if (first, last) != (start, end - 1):
            raise _Broken(f"asked for bytes {start}-{end - 1}, sent {first}-{last}")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise _Broken("the body is compressed")
        etag = response.headers.get("ETag")
        with self._lock:
            if etag and self._served not in (None, etag):
                raise self._changed()
            self._served = etag or self._served

    def _read_local(self, start: int, end: int) -> bytes:
        """Where ranges are refused: fetch the whole file once into the Hugging Face cache, and read it there."""
        with self._lock:
            if self._local is None:
                repository = self.repository
                place = {"repo_id": repository.repo, "filename": self.path, "revision": repository.commit}
                traffic.count(1, self.size)
                self._local = Path(answer(repository.model, str(self), lambda: hf_hub_download(**place)))
        try:
            with open(self._local, "rb") as file:
                file.seek(start)
                return file.read(end - start)
        except OSError as error:
            reason = f"its copy in the Hugging Face cache cannot be read: {error.strerror}"
            raise CheckpointError(self.repository.model, self, reason, "Run again to fetch it.") from None

    def remembered(self, make: Callable[[], Any]) -> Any:
        """JSON that `make()` found in the file, kept in the cache: what lies where in a pickle takes many requests."""
        kept = self._kept("table2")
        try:
            return json.loads(kept.read_text())
        except (OSError, ValueError):
            found = make()
        with contextlib.suppress(OSError):
            write_json(kept, found, indent=None)
        return found


class _Expired(Exception):
    """A signed address is not valid any more."""


class _Broken(Exception):
    """A transfer that may be tried again, after so many seconds."""

    def __init__(self, reason: str, wait: float = 0):
        self.wait = wait
        super().__init__(reason)


def _cause(error: Exception) -> str:
    """What broke a transfer, without an address."""
    return str(error) if isinstance(error, _Broken) else type(error).__name__


@dataclass(frozen=True)
class RemoteFolder:
    """A repository of the Hub at a commit, or a folder in it."""

    model: str
    repository: Repository
    subfolder: str | None

    def __str__(self) -> str:
        return str(self.repository) + (f":{self.subfolder}" if self.subfolder else "")

    def _path(self, name: str) -> str:
        return f"{self.subfolder}/{name}" if self.subfolder else name

    def has(self, name: str) -> bool:
        """See LocalFolder."""
        return self._path(name) in self.repository.files

    def open(self, name: str) -> RemoteFile:
        """See LocalFolder."""
        return RemoteFile(self.repository, self._path(name))

    def names(self) -> list[str]:
        """See LocalFolder."""
        return sorted({name.split("/")[0] for name in self.below()})

    def below(self) -> list[str]:
        """Paths of all files in it and in its folders."""
        start = self._path("")
        return sorted(name.removeprefix(start) for name in self.repository.files if name.startswith(start))
