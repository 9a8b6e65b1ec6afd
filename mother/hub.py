"""Files of the Hugging Face Hub, read by byte ranges: the header first, then the tensors that a method asks for.

The revision is pinned to a commit with the first request, so that an index and its shards agree. Each file is resolved
once; its address at the content network is used until it expires. What is transient is tried again, from where
the connection broke; what is final becomes one CheckpointError. What a header said is kept in a small cache, so that
with the measurements in `results/` a second run, or one without a network, reads nothing.
"""

import contextlib
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx2
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff, http_stream_backoff

from mother.errors import CheckpointError
from mother.files import write_atomically, write_json

RETRIES = 5  # tries in a row that bring hardly anything, after which a fault is final
WAIT = 1.0  # seconds before the second try; each further one waits twice as long
PROGRESS = 1 << 20  # bytes, or a good part of the range, that a try must bring to count as one that got on
HEAD_BYTES = 1 << 16  # read at once in the hope that the whole header is there
LATER = "Try again later: what was read is kept."
GAP_SHARE = 1 / 64  # ranges are joined across a gap of at most this part of the smaller one
LONGEST = 300.0  # seconds that a server may ask us to wait
BUSY = (408, 429, 500, 502, 503, 504)
ONCE: dict[str, Any] = {"max_retries": 0, "retry_on_exceptions": (), "retry_on_status_codes": ()}
TRANSIENT = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
STOP = threading.Event()  # set where a run is stopped, so that no thread waits for another try
T = TypeVar("T")


def cache_folder() -> Path:
    """Where headers are kept: MOTHER_CACHE, or `mother` in the Hugging Face home."""
    return Path(os.environ.get("MOTHER_CACHE") or Path(constants.HF_HOME) / "mother")


@dataclass(frozen=True)
class Repository:
    """A repository at one commit, with the names of its files."""

    model: str  # id in the manifest, for messages
    repo: str
    commit: str
    files: frozenset[str]

    def __str__(self) -> str:
        return f"hf://{self.repo}@{self.commit[:12]}"


class RangeRefused(Exception):
    """The server sends whole files only."""


def _answer(model: str, source: str, call: Callable[[], T], passed: tuple[type[Exception], ...] = ()) -> T:
    """Run a request; every way it may fail, but those `passed` on, becomes a CheckpointError that says what to do."""
    try:
        return call()
    except (CheckpointError, *passed):
        raise
    except GatedRepoError as error:
        repo = source.removeprefix("hf://").split("@")[0].split(":")[0]
        if error.response.status_code == 401:
            raise CheckpointError(
                model, source, "the repository is gated and you are not logged in", "Log in: `hf auth login`."
            ) from None
        page = f"{constants.ENDPOINT}/{'/'.join(repo.split('/')[:2])}"
        raise CheckpointError(
            model, source, "the repository is gated and your account has no access", f"Accept the licence at {page}."
        ) from None
    except RevisionNotFoundError:
        raise CheckpointError(model, source, "there is no such revision", "Name another branch or commit.") from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            model,
            source,
            "there is no such repository, or it is private",
            "Check the name, or log in: `hf auth login`.",
        ) from None
    except RemoteEntryNotFoundError:
        raise CheckpointError(model, source, "there is no such file in the repository", "Check the source.") from None
    except (OfflineModeIsEnabled, LocalEntryNotFoundError):
        raise CheckpointError(
            model,
            source,
            "it is not in the cache, and HF_HUB_OFFLINE is set or the Hub cannot be reached",
            "Run once with a network.",
            transient=True,
        ) from None
    except HFValidationError as error:
        raise CheckpointError(model, source, f"this is no name of a repository: {error}", "Check the source.") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status not in BUSY:
            raise CheckpointError(
                model, source, f"the server refuses (HTTP {status})", "Check the name and your access to it."
            ) from None
        reason = "the server asks us to come back later" if status == 429 else "the server answers"
        raise CheckpointError(
            model, source, f"{reason} (HTTP {status}) after {RETRIES} tries", LATER, transient=True
        ) from None
    except httpx2.TimeoutException:
        raise CheckpointError(
            model,
            source,
            "the connection stalls",
            "Try again later, or set HF_HUB_DOWNLOAD_TIMEOUT to more seconds.",
            True,
        ) from None
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            model, source, f"it cannot be fetched: {_without_query(reason)}", "Check the network, and try again.", True
        ) from None


def _patiently(call: Callable[[], T]) -> T:
    """Make a request, and make it again while what it meets is transient.

    The client can do that, too, but says so on the terminal with whole addresses, whose signatures are secrets.
    """
    wait, asked = WAIT, 0.0
    for left in range(RETRIES, -1, -1):
        try:
            return call()
        except TRANSIENT:
            if not left:
                raise
        except HfHubHTTPError as error:
            if not left or error.response.status_code not in BUSY:
                raise
            asked = _retry_after(error.response)
        pause(max(wait, asked))
        wait, asked = wait * 2, 0.0
    raise AssertionError("unreachable")


def pause(seconds: float) -> None:
    """Wait before another try, unless somebody has asked to stop."""
    if STOP.wait(seconds):
        raise KeyboardInterrupt


def _retry_after(response: httpx2.Response) -> float:
    """Seconds that the server asks us to wait, at most LONGEST; 0 if it does not say."""
    value = response.headers.get("Retry-After", "")
    return min(float(value), LONGEST) if value.isdecimal() else 0.0


def _without_query(text: str) -> str:
    """A message without what follows '?' in addresses: signatures are secrets."""
    return re.sub(r"\?\S+", "?...", text)


def _folder_of(repo: str) -> Path:
    # Another Hub, or a mirror, may serve other bytes under the same name.
    hub = hashlib.sha256(constants.ENDPOINT.encode()).hexdigest()[:8]
    return cache_folder() / hub / repo.replace("/", "--")


def open_repository(model: str, repo: str, revision: str | None) -> Repository:
    """The commit that a revision is at, and its files, with one request; raises CheckpointError.

    Without a network (HF_HUB_OFFLINE=1) the commit that was seen last is taken.
    """
    source = f"hf://{repo}" + (f"@{revision}" if revision else "")
    kept = _folder_of(repo) / "revisions" / f"{hashlib.sha256((revision or 'main').encode()).hexdigest()[:16]}.json"
    if constants.is_offline_mode():
        try:
            content = json.loads(kept.read_text())
            return Repository(model, repo, content["commit"], frozenset(content["files"]))
        except (OSError, ValueError, KeyError, TypeError):
            return _answer(model, source, _raise_offline)

    def ask() -> dict[str, Any]:
        url = f"{constants.ENDPOINT}/api/models/{repo}/revision/{quote(revision or 'main', safe='')}"
        response = http_backoff("GET", url, headers=build_hf_headers(), timeout=_timeout(), **ONCE)
        hf_raise_for_status(response)
        return response.json()

    found = _answer(model, source, lambda: _patiently(ask))
    try:
        commit, files = found["sha"], [entry["rfilename"] for entry in found["siblings"]]
        if not re.fullmatch("[0-9a-f]{40}", commit) or not all(isinstance(name, str) for name in files):
            raise ValueError(commit)
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(model, source, "the Hub gives no commit or no files", "Try again later.") from None
    with contextlib.suppress(OSError):  # a cache that cannot be written is none
        write_json(kept, {"commit": commit, "files": sorted(files)})
    return Repository(model, repo, commit, frozenset(files))


def _raise_offline() -> Any:
    raise OfflineModeIsEnabled("offline")


@dataclass
class RemoteFile:
    """A file of a repository at a commit. `size` and `etag` are asked for once and then kept in the cache."""

    repository: Repository
    path: str
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
        return _folder_of(self.repository.repo) / self.repository.commit / f"{digest}.{suffix}"

    def fingerprint(self) -> tuple[str, int, int, str]:
        """Name, size and etag at a commit: nothing has to be read to know that a file is the same."""
        return (f"hf://{self.repository.repo}@{self.repository.commit}/{self.path}", self.size, 0, self.etag)

    def _resolve(self) -> str:
        """Ask where the bytes are. Raises CheckpointError where the file is not what it was."""
        model, source = self.repository.model, str(self)
        url = hf_hub_url(self.repository.repo, self.path, revision=self.repository.commit)

        found = _answer(model, source, lambda: _patiently(lambda: get_hf_file_metadata(url, timeout=_timeout())))
        if found.size is None:
            raise CheckpointError(model, source, "the Hub does not tell its size", "Try again later.")
        if self.size >= 0 and (found.size, found.etag or "") != (self.size, self.etag):
            raise self._changed()
        self.size, self.etag, self._location = found.size, found.etag or "", found.location
        return found.location

    def _changed(self) -> CheckpointError:
        for suffix in ("json", "head", "table"):  # what is kept is of another file
            with contextlib.suppress(OSError):
                self._kept(suffix).unlink()
        return CheckpointError(
            self.repository.model, self, "the file has changed while it was read", "Run again to read the new one."
        )

    def head(self, count: int) -> bytes:
        """The first `count` bytes or fewer; kept in the cache, so that no second run asks for them."""
        kept = self._kept("head")
        count = min(count, self.size)
        try:
            content = kept.read_bytes()
            if len(content) >= count:
                return content[:count]
        except OSError:
            pass
        (content,) = self.read([(0, min(self.size, max(count, HEAD_BYTES)))])
        with contextlib.suppress(OSError):
            write_atomically(kept, lambda file: file.write(content))
        return bytes(content[:count])

    def read(self, spans: Sequence[tuple[int, int]]) -> list[bytes | memoryview]:
        """The bytes of each (start, end); neighbours come with one request. Raises CheckpointError."""
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
        buffer, wait, idle, renewed = bytearray(), WAIT, 0, False
        while len(buffer) < end - start:
            before = len(buffer)
            try:
                _answer(model, source, lambda: self._request(start + before, end, buffer, end - start), TRANSIENT)
            except RangeRefused:
                return self._read_local(start, end)
            except _Expired:
                if renewed:
                    raise CheckpointError(
                        model, source, "the server refuses access to the data", "Try again."
                    ) from None
                renewed = True
                with self._lock:
                    self._location = None
                continue
            except (_Broken, *TRANSIENT) as error:
                enough = min(PROGRESS, (end - start) // (2 * RETRIES))
                idle = 0 if len(buffer) - before > enough else idle + 1
                if idle > RETRIES:
                    raise CheckpointError(
                        model,
                        source,
                        f"the transfer breaks again and again at byte {start + len(buffer)} ({_cause(error)})",
                        LATER,
                        transient=True,
                    ) from None
                pause(max(wait if idle else 0.0, getattr(error, "wait", 0.0)))
                wait = wait * 2 if idle else WAIT
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
        with http_stream_backoff("GET", location, headers=headers, timeout=_timeout(), **ONCE) as response:
            if response.status_code in (401, 403, 404, 410) and signed:
                raise _Expired
            if response.status_code == 200:
                raise RangeRefused
            if response.status_code == 416:
                raise self._changed()
            if response.status_code in BUSY:
                raise _Broken(f"HTTP {response.status_code}", _retry_after(response))
            hf_raise_for_status(response)
            self._check(response, start, end)
            try:
                for part in response.iter_raw():
                    if STOP.is_set():
                        raise KeyboardInterrupt
                    if len(buffer) + len(part) > most:
                        raise _Broken("more came than was asked for")
                    buffer += part
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
                self._local = Path(_answer(repository.model, str(self), lambda: hf_hub_download(**place)))
        try:
            with open(self._local, "rb") as file:
                file.seek(start)
                return file.read(end - start)
        except OSError as error:
            reason = f"its copy in the Hugging Face cache cannot be read: {error.strerror}"
            raise CheckpointError(self.repository.model, self, reason, "Run again to fetch it.") from None

    def remembered(self, make: Callable[[], Any]) -> Any:
        """JSON that `make()` found in the file, kept in the cache: what lies where in a pickle takes many requests."""
        kept = self._kept("table")
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


def _timeout() -> float:
    """Seconds without a byte after which a connection counts as stalled."""
    return float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
