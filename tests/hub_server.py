"""A small Hugging Face Hub on real sockets, so that the tests use the real client and real network failures.

Repositories are folders `folder/owner/name`. As on huggingface.co, a file above 1 KB is answered with a redirect to a
signed URL of a storage host. That host is a second port here: the client follows redirects within one origin and keeps
its token there, so a storage on the Hub's own port would be taken for the Hub.

    with HubServer(tmp_path / "hub") as server:
        use(server, monkeypatch, tmp_path)
        server.faults.append(Fault("reset", match="model.safetensors"))
"""

import gzip
import hashlib
import json
import os
import re
import socket
import socketserver
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import SplitResult, parse_qs, quote, unquote, urlsplit

import pytest

LARGE = 1024  # bytes: above this a file lives in the storage, as LFS and Xet files do
PIECE = 1 << 16
RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?")
# Asked once a process, for the user agent; neither recorded nor faulted, as no test means it.
HARNESSES = "/api/agent-harnesses"
NO_HARNESSES = {"standardEnvVars": [], "harnesses": {}}
PRIVATE = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE", "HF_TOKEN_PATH", "HF_HUB_OFFLINE")
CACHES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ASSETS_CACHE", "HF_XET_CACHE", "TRANSFORMERS_OFFLINE")
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
NEEDS_FILE = {"changed", "truncated", "no_etag"}
NEEDS_BODY = {"reset", "short", "stall"}
NEEDS_RANGE = {"ignore_range", "wrong_range"}
KINDS = {"status", "drop", "expired", "gzip"} | NEEDS_FILE | NEEDS_BODY | NEEDS_RANGE


@dataclass
class Request:
    """One request as it came and as it was answered."""

    method: str
    path: str  # without the query
    range: tuple[int, int] | None  # first and last byte asked for, within the file's size where it can be satisfied
    status: int  # 0 if the connection was dropped without an answer
    bytes_sent: int  # of the body, handed to the socket
    authorization: bool  # a token came along
    repo: str
    file: str  # what a /cdn/ address stands for, too
    fault: str  # the kind of fault it met, or nothing


@dataclass
class Fault:
    """What goes wrong, for which requests, and how often; consumed only by requests it can show on.

    `status`: answer `value`, or (`value`, Retry-After seconds). `reset` and `short`: the headers and `value` bytes
    (default: half), then RST or an ordinary close. `drop`: close without an answer. `stall`: the headers and a few
    bytes, then nothing for `value` seconds. `ignore_range`: 200 and the whole file. `wrong_range`: 206 from another
    start (`value`). `changed`: other content of the same size from now on. `truncated`: a file of `value` bytes, with
    its old ETag. `expired`: 403 from the storage. `no_etag`. `gzip`: compressed, if the client accepts that.
    """

    kind: str
    times: int = 1  # -1: always
    match: str = ""  # in the path; for the storage also in owner/name/file
    method: str | None = None
    value: Any = None
    after: int = 0  # matching requests that go well first
    met: int = field(default=0, init=False)  # matching requests so far

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown fault {self.kind!r}; known: {', '.join(sorted(KINDS))}")


@dataclass(frozen=True)
class Blob:
    """The content of one file, in memory or on disk, with its digests."""

    source: Path | bytes
    size: int
    sha256: str
    git: str  # the object id that git gives a small file

    @classmethod
    def of(cls, source: Path | bytes) -> Self:
        """Read the content once for its digests."""
        content = source if isinstance(source, bytes) else source.read_bytes()
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return cls(source, len(content), hashlib.sha256(content).hexdigest(), git)

    @property
    def large(self) -> bool:
        return self.size > LARGE

    @property
    def etag(self) -> str:
        """The sha256 of a large file, the git object id of a small one, in quotes."""
        return f'"{self.sha256 if self.large else self.git}"'

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from `start` up to `stop`, without reading the others."""
        if isinstance(self.source, bytes):
            yield from (self.source[at : min(at + PIECE, stop)] for at in range(start, stop, PIECE))
            return
        with self.source.open("rb") as file:
            file.seek(start)
            while start < stop and (piece := file.read(min(PIECE, stop - start))):
                start += len(piece)
                yield piece

    def read(self) -> bytes:
        return b"".join(self.pieces(0, self.size))


@dataclass
class Target:
    """What a request is about: a file, a redirect to a file, a repository's description, or a refusal."""

    repo: str = ""
    file: str = ""
    commit: str = ""
    blob: Blob | None = None
    etag: str = ""
    stored: bool = False  # asked of the storage, not of the Hub
    location: str = ""
    info: dict[str, Any] | None = None
    refusal: "Answer | None" = None

    @property
    def sends_file(self) -> bool:
        return self.blob is not None and not self.location


@dataclass
class Answer:
    """Status, headers and the part of a blob that is the body."""

    status: int
    headers: dict[str, str]
    body: Blob
    start: int = 0
    stop: int = 0

    @classmethod
    def text(cls, status: int, text: str, headers: dict[str, str] | None = None, kind: str = "text/plain") -> Self:
        """An answer that is no file."""
        body = text.encode()
        return cls(status, {"Content-Type": kind, **(headers or {})}, Blob(body, len(body), "", ""), 0, len(body))

    @classmethod
    def refuse(cls, status: int, code: str, message: str, commit: str = "") -> Self:
        """A refusal as the Hub words it; the client picks its exception by `X-Error-Code`."""
        headers = {"X-Error-Code": code, "X-Error-Message": message} | ({"X-Repo-Commit": commit} if commit else {})
        return cls.text(status, json.dumps({"error": message}), headers, "application/json")


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First and last byte of a `Range` header within `size` bytes; last < first or first >= size: unsatisfiable."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", (header or "").strip())
    if not found or found[0].strip() == "bytes=-":
        return None
    first, last = found.groups()
    if not first:
        return (max(size - int(last), 0), size - 1) if int(last) else (size, size - 1)
    if int(first) >= size:
        return int(first), int(last or first)
    end = min(int(last), size - 1) if last else size - 1
    return (int(first), end) if int(first) <= end else None


def accepts_gzip(header: str) -> bool:
    """Whether `Accept-Encoding` names gzip without refusing it."""
    return any(re.fullmatch(r"(gzip|\*)(;q=(?!0(\.0*)?$).*)?", part.replace(" ", "")) for part in header.split(","))


class Listener(ThreadingHTTPServer):
    """One port, whose connections end with it."""

    request_queue_size = 128

    def __init__(self, hub: "HubServer") -> None:
        self.hub, self.connections = hub, set[socket.socket]()
        super().__init__(("127.0.0.1", 0), Handler)

    def server_bind(self) -> None:
        # HTTPServer would ask a name server for the host's name, which takes seconds on some machines.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[0], self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that goes away in the middle is no error of the server's.
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def hang_up(self) -> None:
        """End what is open: a pooled connection would otherwise outlive the server."""
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


class HubServer:
    """A Hub below `address`, whose large files lie below `cdn_address`; settings may change while it runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.revisions: dict[str, dict[str, str]] = {}  # repo -> branch or tag -> commit
        self.collections: dict[str, list[str]] = {}  # slug -> repositories
        self.gated: dict[str, str] = {}  # repo -> "token" (any token will do) or "licence" (none will)
        self.cdn = True
        self.hide_missing = False  # as huggingface.co does: 401 without a token where a repository is missing
        self.stopped = threading.Event()
        self.closing = ExitStack()
        self._lock = threading.RLock()
        self._commits: dict[str, str] = {}
        self._past: dict[str, set[str]] = {}
        self._changed: dict[tuple[str, str], Blob] = {}
        self._blobs: dict[tuple[Path, int, int], Blob] = {}
        self._stored: dict[str, tuple[str, str]] = {}
        self._listeners = [Listener(self), Listener(self)]
        self._threads: list[threading.Thread] = []
        self.address, self.cdn_address = (f"http://127.0.0.1:{port.server_port}" for port in self._listeners)

    def start(self) -> Self:
        """Answer from now on, in threads of this process."""
        for listener in self._listeners:
            # The interval is how long `stop` may take.
            self._threads.append(threading.Thread(target=listener.serve_forever, args=(0.02,), daemon=True))
            self._threads[-1].start()
        return self

    def stop(self) -> None:
        """End stalls, hang up on everybody and free the ports; a second call does nothing."""
        self.stopped.set()
        self.closing.close()
        for listener in self._listeners:
            if self._threads:
                listener.shutdown()
            listener.hang_up()
            listener.server_close()
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def url(self, repo: str, file: str, revision: str = "main") -> str:
        """The Hub's address of a file."""
        return f"{self.address}/{repo}/resolve/{quote(revision, safe='')}/{quote(file)}"

    def files(self, repo: str) -> dict[str, Path]:
        """The files of a repository by their names in it."""
        root = self.folder / repo
        return {file.relative_to(root).as_posix(): file for file in sorted(root.rglob("*")) if file.is_file()}

    def commit(self, repo: str) -> str:
        """The commit of `main`: a digest of names, sizes and contents, which stays until `touch`."""
        with self._lock:
            if repo not in self._commits:
                lines = [f"{name}\0{(blob := self.blob(repo, name)).size}\0{blob.sha256}" for name in self.files(repo)]
                self._commits[repo] = hashlib.sha1("\n".join([repo, *lines]).encode()).hexdigest()
                self._past.setdefault(repo, set()).add(self._commits[repo])
            return self._commits[repo]

    def touch(self, repo: str) -> None:
        """Somebody pushed: `main` moves with the next request. Old commits stay, but serve what the folder holds."""
        with self._lock:
            self._commits.pop(repo, None)

    def blob(self, repo: str, file: str) -> Blob | None:
        """The present content of a file, or nothing."""
        root = (self.folder / repo).resolve()
        path = (root / file).resolve()
        with self._lock:
            if (repo, file) in self._changed:
                return self._changed[repo, file]
            if not path.is_relative_to(root) or not path.is_file():
                return None
            key = (path, path.stat().st_mtime_ns, path.stat().st_size)
            if key not in self._blobs:
                self._blobs[key] = Blob.of(path)
            return self._blobs[key]

    def change(self, repo: str, file: str, content: bytes | None) -> None:
        """Serve other content for a file from now on; by default its bytes inverted."""
        if content is None:
            content = self.blob(repo, file).read().translate(bytes(255 - byte for byte in range(256)))
        with self._lock:
            self._changed[repo, file] = Blob.of(content)

    def listing(self, url: SplitResult) -> Answer | None:
        """What lists repositories: those of an author, or of a collection."""
        if url.path == "/api/models":
            author = parse_qs(url.query).get("author", [""])[0]
            found = [f"{author}/{path.name}" for path in sorted((self.folder / author).glob("*"))] if author else []
            return Answer.text(200, json.dumps([{"id": repo, "tags": []} for repo in found]), kind="application/json")
        if url.path.startswith("/api/collections/"):
            slug = url.path.removeprefix("/api/collections/")
            if slug not in self.collections:
                return Answer.refuse(404, "RepoNotFound", "Collection not found")
            about = {"slug": slug, "title": slug, "owner": {}, "lastUpdated": "2025-01-01T00:00:00.000Z", "position": 0}
            about |= {"private": False, "theme": "blue", "upvotes": 0}
            items = [{"_id": "0", "id": repo, "type": "model", "position": 0} for repo in self.collections[slug]]
            return Answer.text(200, json.dumps(about | {"items": items}), kind="application/json")
        return None

    def find(self, url: SplitResult, token: bool) -> Target:
        """What a URL stands for."""
        if url.path.startswith("/cdn/"):
            return self._find_stored(url)
        if found := RESOLVE.fullmatch(url.path):
            repo, revision, file = map(unquote, found.groups())
            return self._find_file(repo, revision, file, token)
        if found := API.fullmatch(url.path):
            return self._describe(unquote(found[1]), unquote(found[2] or "main"), "blobs" in parse_qs(url.query), token)
        return Target(refusal=Answer.text(404, "Sorry, we can't find the page you are looking for."))

    def take(self, method: str, path: str, target: Target, headers: Any) -> Fault | None:
        """The first fault that this request meets, counted down."""
        names = f"{path} {target.repo}/{target.file}" if target.stored else path
        with self._lock:
            for fault in self.faults:
                if not fault.times or fault.match not in unquote(names) or fault.method not in (None, method):
                    continue
                if not can_show(fault.kind, method, target, headers):
                    continue
                fault.met += 1
                if fault.met > fault.after:
                    fault.times -= fault.times > 0
                    return fault
        return None

    def record(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)

    def _revision(self, repo: str, revision: str) -> str | None:
        """The commit of a branch, tag or commit, or nothing."""
        named = {"main": self.commit(repo), **self.revisions.get(repo, {})}
        known = {*named.values(), *self._past[repo]}
        return named.get(revision, revision if revision in known else None)

    def _find_commit(self, repo: str, revision: str, token: bool) -> Target:
        """The commit of a revision, or the refusal of repository or revision."""
        if not (self.folder / repo).is_dir() or ".." in repo:
            hidden = self.hide_missing and not token
            message = "Invalid username or password." if hidden else "Repository not found"
            return Target(repo, refusal=Answer.refuse(401 if hidden else 404, "RepoNotFound", message))
        if not (commit := self._revision(repo, revision)):
            return Target(repo, refusal=Answer.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}"))
        return Target(repo, commit=commit)

    def _find_file(self, repo: str, revision: str, file: str, token: bool) -> Target:
        target = self._find_commit(repo, revision, token)
        target.file = file
        if target.refusal:
            return target
        gate = self.gated.get(repo)
        if gate and not token:
            message = f"Access to model {repo} is restricted. You must be authenticated to access it. Please log in."
            target.refusal = Answer.refuse(401, "GatedRepo", message)
        elif gate == "licence":
            message = f"Access to model {repo} is restricted and you are not in the authorized list."
            target.refusal = Answer.refuse(403, "GatedRepo", message)
        elif not (blob := self.blob(repo, file)):
            target.refusal = Answer.refuse(404, "EntryNotFound", "Entry not found", target.commit)
        else:
            target.blob, target.etag = blob, blob.etag
            target.location = self._sign(repo, file) if self.cdn and blob.large else ""
        return target

    def _sign(self, repo: str, file: str) -> str:
        """The storage's address of a file; it names neither repository nor file and needs no token."""
        name = hashlib.sha256(f"{repo}/{file}".encode()).hexdigest()[:24]
        with self._lock:
            self._stored[name] = repo, file
        return f"{self.cdn_address}/cdn/{name}?signature={name[::-1]}&Expires=4102444800"

    def _find_stored(self, url: SplitResult) -> Target:
        name = url.path.removeprefix("/cdn/")
        repo, file = self._stored.get(name, ("", ""))
        blob = self.blob(repo, file) if repo else None
        if not blob or parse_qs(url.query).get("signature") != [name[::-1]]:
            return Target(repo, file, stored=True, refusal=forbidden())
        # The storage has a tag of its own (S3 an MD5, Xet its hash): no client may compare it with the Hub's.
        return Target(repo, file, blob=blob, etag=f'"{blob.sha256[:32]}"', stored=True)

    def _describe(self, repo: str, revision: str, sizes: bool, token: bool) -> Target:
        """The repository's description, which is public for gated ones too."""
        target = self._find_commit(repo, revision, token)
        if not target.refusal:
            gate = {"token": "auto", "licence": "manual"}.get(self.gated.get(repo, ""), False)
            siblings = [{"rfilename": name} | (self._sizes(repo, name) if sizes else {}) for name in self.files(repo)]
            names = {"_id": target.commit[:24], "id": repo, "modelId": repo, "author": repo.split("/")[0]}
            state = {"sha": target.commit, "private": False, "gated": gate, "disabled": False}
            counts = {"tags": [], "downloads": 0, "likes": 0, "lastModified": "2025-01-01T00:00:00.000Z"}
            target.info = names | state | counts | {"siblings": siblings}
        return target

    def _sizes(self, repo: str, name: str) -> dict[str, Any]:
        blob = self.blob(repo, name)
        pointer = {"sha256": blob.sha256, "size": blob.size, "pointerSize": 134}
        return {"size": blob.size, "blobId": blob.git} | ({"lfs": pointer} if blob.large else {})


def forbidden() -> Answer:
    """The storage's answer to a signature that is wrong or too old, in S3's words."""
    error = "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
    return Answer.text(403, error, kind="application/xml")


def can_show(kind: str, method: str, target: Target, headers: Any) -> bool:
    """Whether a request would notice this kind of fault; one that would not leaves it for the next."""
    if kind == "expired":
        return target.stored
    if kind in NEEDS_FILE:
        return target.blob is not None
    if kind in NEEDS_BODY:
        return method == "GET" and (target.sends_file or target.info is not None)
    if kind in NEEDS_RANGE:
        return method == "GET" and target.sends_file and "Range" in headers
    if kind == "gzip":
        return method == "GET" and target.sends_file and accepts_gzip(headers.get("Accept-Encoding", ""))
    return True


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection, which stays open as long as the client likes."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: the second would wait 40 ms for the first's ACK
    server: Listener

    def do_HEAD(self) -> None:
        self.serve()

    def do_GET(self) -> None:
        self.serve()

    def serve(self) -> None:
        """Find what is asked for, let a fault have its way, answer."""
        hub, url = self.server.hub, urlsplit(self.path)
        request = Request(self.command, url.path, None, 0, 0, "Authorization" in self.headers, "", "", "")
        if url.path == HARNESSES:
            self.send(Answer.text(200, json.dumps(NO_HARNESSES), kind="application/json"), request, None)
            return
        if (listed := hub.listing(url)) is not None:
            self.send(listed, request, None)
            return
        target = hub.find(url, request.authorization)
        fault = hub.take(self.command, url.path, target, self.headers)
        if fault and fault.kind == "changed":
            hub.change(target.repo, target.file, fault.value)
            target = hub.find(url, request.authorization)
        if fault and fault.kind == "truncated":
            target.blob = replace(target.blob, size=min(fault.value, target.blob.size))
        request.repo, request.file, request.fault = target.repo, target.file, fault.kind if fault else ""
        request.range = parse_range(self.headers.get("Range"), target.blob.size) if target.blob else None
        answer = self.answer(target, fault, request.range)
        request.status = 0 if request.fault == "drop" else answer.status
        hub.record(request)  # before the answer, so that a client that has it finds it recorded
        self.send(answer, request, fault)

    def answer(self, target: Target, fault: Fault | None, wanted: tuple[int, int] | None) -> Answer:
        kind = fault.kind if fault else ""
        if kind == "status":
            return failure(fault.value)
        if kind == "expired":
            return forbidden()
        if target.refusal:
            return target.refusal
        if target.info is not None:
            return Answer.text(200, json.dumps(target.info), {"X-Repo-Commit": target.commit}, "application/json")
        answer = redirect(target) if target.location else self.file(target, fault, wanted)
        if kind == "no_etag":
            for name in ("ETag", "X-Linked-Etag"):
                answer.headers.pop(name, None)
        return answer

    def file(self, target: Target, fault: Fault | None, wanted: tuple[int, int] | None) -> Answer:
        """A file or the part of it that is wanted."""
        kind, blob = fault.kind if fault else "", target.blob
        headers = {"ETag": target.etag, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if target.commit:
            headers["X-Repo-Commit"] = target.commit
        if kind == "gzip":
            # The whole file, as CloudFront does: a range of compressed bytes would be of use to nobody.
            packed = Blob.of(gzip.compress(blob.read(), mtime=0))
            headers |= {"Content-Encoding": "gzip", "ETag": f"W/{target.etag}"}
            return Answer(200, headers, packed, 0, packed.size)
        stale = self.headers.get("If-Range", target.etag) != target.etag
        if wanted is None or stale or kind == "ignore_range" or self.command == "HEAD":
            return Answer(200, headers, blob, 0, blob.size)
        first, last = shift(wanted, blob.size, fault.value) if kind == "wrong_range" else wanted
        if first >= blob.size:
            return Answer.text(416, "Requested Range Not Satisfiable", {"Content-Range": f"bytes */{blob.size}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{blob.size}"
        return Answer(206, headers, blob, first, last + 1)

    def send(self, answer: Answer, request: Request, fault: Fault | None) -> None:
        """Send the answer, or as much of it as the fault allows, and keep or end the connection."""
        kind, length = fault.kind if fault else "", answer.stop - answer.start
        cut = kind in NEEDS_BODY or kind == "drop"
        self.close_connection = self.close_connection or cut
        if kind == "drop":
            return
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if cut:
            part = 16 if kind == "stall" else fault.value
            length = min(length // 2 if part is None else part, length - 1)
        for piece in answer.body.pieces(answer.start, answer.start + length):
            request.bytes_sent += len(piece)
            self.wfile.write(piece)
        if kind == "stall":
            self.server.hub.stopped.wait(fault.value)
        if kind == "reset":
            self.reset()

    def reset(self) -> None:
        """Close with RST, which discards what the network still holds."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()  # holds the socket open otherwise
        self.connection.close()

    def log_message(self, *_: object) -> None:
        pass


def redirect(target: Target) -> Answer:
    """The Hub's pointer to the storage, with what the client must know of the file."""
    linked = {"X-Linked-Size": str(target.blob.size), "X-Linked-Etag": target.etag, "Accept-Ranges": "bytes"}
    headers = {"Location": target.location, "X-Repo-Commit": target.commit, **linked}
    return Answer.text(302, f"Found. Redirecting to {target.location}", headers)


def failure(value: int | tuple[int, int]) -> Answer:
    """An error of the service, with the seconds to wait if it names them."""
    status, wait = value if isinstance(value, tuple) else (value, None)
    headers = {} if wait is None else {"Retry-After": str(wait)}
    return Answer.text(status, json.dumps({"error": f"fault {status}"}), headers, "application/json")


def shift(wanted: tuple[int, int], size: int, start: int | None) -> tuple[int, int]:
    """A range of the same length that starts elsewhere, where the file has room for one."""
    first = start if start is not None else (wanted[0] - 1 if wanted[0] else 1)
    return first, min(first + wanted[1] - wanted[0], size - 1)


def use(server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, timeout: int = 5) -> None:
    """Point the client inside this process at the server, with an empty cache and no token."""
    import huggingface_hub
    from huggingface_hub import constants, hf_api
    from huggingface_hub.utils import _cache_manager, _detect_agent

    home, cache = tmp_path / "hf", str(tmp_path / "hf" / "hub")
    values = {
        "ENDPOINT": server.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": cache,
        "HUGGINGFACE_HUB_CACHE": cache,
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_ETAG_TIMEOUT": timeout,
        "HF_HUB_DOWNLOAD_TIMEOUT": timeout,
    }
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value)
    # Copies made when the modules were imported: the functions huggingface_hub.model_info etc. belong to this instance.
    monkeypatch.setattr(hf_api.api, "endpoint", server.address)
    monkeypatch.setattr(_cache_manager, "HF_HUB_CACHE", cache)
    # Otherwise the client would keep this server's list of harnesses in the user's own cache.
    monkeypatch.setattr(_detect_agent, "_registry", NO_HARNESSES)
    for name in (*PRIVATE, *PROXIES):
        monkeypatch.delenv(name, raising=False)
    huggingface_hub.close_session()
    server.closing.callback(huggingface_hub.close_session)


def environment(server: HubServer, tmp_path: Path, timeout: int = 5) -> dict[str, str]:
    """A whole environment for a subprocess that does what `use` does here."""
    kept = {name: value for name, value in os.environ.items() if name not in (*PRIVATE, *CACHES, *PROXIES)}
    return kept | {
        "HF_ENDPOINT": server.address,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_ETAG_TIMEOUT": str(timeout),
        "HF_HUB_DOWNLOAD_TIMEOUT": str(timeout),
    }
