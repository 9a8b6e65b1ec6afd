"""The Hub of the tests is proven by the real client; its faults by plain requests that hide nothing."""

import gzip
import http.client
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import huggingface_hub
import pytest
from hub_server import Fault, HubServer, accepts_gzip, environment, parse_range, use
from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff, http_stream_backoff

REPO = "org/model"
SMALL, LARGE = b'{"model_type": "vit"}', bytes(range(256)) * 1000
FILES = {"config.json": SMALL, "model.safetensors": LARGE, "unet/a file.bin": LARGE[::-1], "empty.txt": b""}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub with one repository, to which the client of this process talks."""
    for name, content in FILES.items():
        file = tmp_path / "hub" / REPO / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    with HubServer(tmp_path / "hub") as server:
        use(server, monkeypatch, tmp_path)
        yield server


@dataclass
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


def ask(url: str, method: str = "GET", timeout: float = 5, **headers: str) -> Reply:
    """One request without a client's help: no redirects, no retries, no unpacking."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.netloc, timeout=timeout)
    try:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, f"{place.path}?{place.query}", headers=names)
        answer = connection.getresponse()
        return Reply(answer.status, answer.headers, answer.read())
    finally:
        connection.close()


def stored(server: HubServer, file: str = "model.safetensors") -> str:
    """The storage's address of a large file; the requests that led to it are forgotten."""
    location = ask(server.url(REPO, file), "HEAD").headers["Location"]
    server.requests.clear()
    return location


@pytest.mark.parametrize("cdn", [True, False])
@pytest.mark.parametrize("file", FILES)
def test_files_are_downloaded(file: str, cdn: bool, server: HubServer, tmp_path: Path) -> None:
    server.cdn = cdn
    path = Path(hf_hub_download(REPO, file))
    assert path.read_bytes() == FILES[file] and path.is_relative_to(tmp_path / "hf")
    assert server.commit(REPO) in path.parts
    assert sum(request.bytes_sent for request in server.requests) == len(FILES[file])
    assert any(request.path.startswith("/cdn/") for request in server.requests) == (cdn and len(FILES[file]) > 1024)
    assert {(request.repo, request.file, request.authorization) for request in server.requests} == {(REPO, file, False)}


@pytest.mark.parametrize("cdn", [True, False])
def test_metadata_names_size_etag_and_commit(cdn: bool, server: HubServer) -> None:
    server.cdn = cdn
    large = get_hf_file_metadata(hf_hub_url(REPO, "model.safetensors"))
    small = get_hf_file_metadata(hf_hub_url(REPO, "config.json"))
    assert (large.size, small.size) == (len(LARGE), len(SMALL))
    assert large.commit_hash == small.commit_hash == server.commit(REPO)
    assert len(large.etag) == 64 and len(small.etag) == 40
    assert large.location.startswith(server.cdn_address if cdn else server.address)
    assert [request.status for request in server.requests] == [302 if cdn else 200, 200]


def test_description_lists_files_and_sizes(server: HubServer) -> None:
    info = HfApi().model_info(REPO)
    assert info.id == REPO and info.sha == server.commit(REPO) and info.gated is False
    assert {sibling.rfilename: sibling.size for sibling in info.siblings} == dict.fromkeys(FILES)
    info = huggingface_hub.model_info(REPO, revision="main", files_metadata=True)
    assert {sibling.rfilename: sibling.size for sibling in info.siblings} == {n: len(c) for n, c in FILES.items()}
    assert {sibling.rfilename for sibling in info.siblings if sibling.lfs} == {"model.safetensors", "unet/a file.bin"}


def test_revisions_are_branches_tags_and_commits(server: HubServer, tmp_path: Path) -> None:
    first = server.commit(REPO)
    server.revisions[REPO] = {"v1": first, "refs/pr/1": "a" * 40}
    for revision, commit in {"v1": first, "refs/pr/1": "a" * 40, first: first, "main": first}.items():
        assert HfApi().model_info(REPO, revision=revision).sha == commit
        assert get_hf_file_metadata(hf_hub_url(REPO, "config.json", revision=revision)).commit_hash == commit
    (tmp_path / "hub" / REPO / "new.json").write_bytes(SMALL)
    assert server.commit(REPO) == first
    server.touch(REPO)
    assert server.commit(REPO) != first and len(server.commit(REPO)) == 40
    assert get_hf_file_metadata(hf_hub_url(REPO, "config.json", revision=first)).commit_hash == first


@pytest.mark.parametrize(
    ("repo", "file", "revision", "error"),
    [
        ("org/absent", "config.json", "main", RepositoryNotFoundError),
        (REPO, "config.json", "absent", RevisionNotFoundError),
        (REPO, "config.json", "f" * 40, RevisionNotFoundError),
        (REPO, "absent.json", "main", RemoteEntryNotFoundError),
    ],
)
def test_what_is_missing_is_named(repo: str, file: str, revision: str, error: type, server: HubServer) -> None:
    with pytest.raises(error):
        hf_hub_download(repo, file, revision=revision)
    with pytest.raises(error):
        get_hf_file_metadata(hf_hub_url(repo, file, revision=revision))
    if error is not RemoteEntryNotFoundError:
        with pytest.raises(error):
            HfApi().model_info(repo, revision=revision)
    assert {request.status for request in server.requests} == {404}


def test_missing_repositories_may_be_hidden(server: HubServer) -> None:
    server.hide_missing = True
    for token, status in ((None, 401), ("hf_x", 404)):
        with pytest.raises(RepositoryNotFoundError) as error:
            hf_hub_download("org/absent", "config.json", token=token)
        assert error.value.response.status_code == status


def test_gated_repositories_want_a_token_or_more(server: HubServer) -> None:
    for gate, gated in (("token", "auto"), ("licence", "manual")):
        server.gated[REPO] = gate
        with pytest.raises(GatedRepoError) as error:
            hf_hub_download(REPO, "config.json")
        assert error.value.response.status_code == 401
        assert HfApi().model_info(REPO).gated == gated
    with pytest.raises(GatedRepoError) as error:
        hf_hub_download(REPO, "config.json", token="hf_x")
    assert error.value.response.status_code == 403
    server.gated[REPO] = "token"
    server.requests.clear()
    assert Path(hf_hub_download(REPO, "model.safetensors", token="hf_x")).read_bytes() == LARGE
    assert [request.authorization for request in server.requests] == [True, False]


def test_nothing_outside_the_repository_is_served(server: HubServer, tmp_path: Path) -> None:
    (tmp_path / "hub" / "secret").write_text("secret")
    for path in (f"/{REPO}/resolve/main/../../../secret", f"/{REPO}/resolve/main/%2e%2e/%2e%2e/secret", "/absent"):
        assert ask(server.address + path).status == 404
    assert ask(server.address + "/../hub/resolve/main/secret").status == 404


RANGES = {
    "bytes=0-9": (0, 9),
    "bytes=100000-170000": (100000, 170000),
    "bytes=255990-": (255990, 255999),
    "bytes=-5": (255995, 255999),
    "bytes=255999-999999": (255999, 255999),
    "bytes=-999999": (0, 255999),
}


@pytest.mark.parametrize("cdn", [True, False])
@pytest.mark.parametrize("asked", RANGES)
def test_ranges_are_answered(asked: str, cdn: bool, server: HubServer) -> None:
    server.cdn = cdn
    first, last = RANGES[asked]
    headers = build_hf_headers(token="hf_x") | {"Range": asked, "Accept-Encoding": "identity"}
    with http_stream_backoff("GET", hf_hub_url(REPO, "model.safetensors"), headers=headers) as response:
        hf_raise_for_status(response)
        assert response.read() == LARGE[first : last + 1] and response.status_code == 206
    assert response.headers["Content-Range"] == f"bytes {first}-{last}/{len(LARGE)}"
    assert response.headers["Content-Length"] == str(last - first + 1)
    assert response.headers["Accept-Ranges"] == "bytes" and response.headers["ETag"]
    request = server.requests[-1]
    assert (request.range, request.bytes_sent, request.status) == ((first, last), last - first + 1, 206)
    # The real client's transport leaves the token behind when it follows a redirect to the storage.
    assert [request.authorization for request in server.requests] == ([True, False] if cdn else [True])


def test_unsatisfiable_and_odd_ranges(server: HubServer) -> None:
    for file, asked in (("config.json", "bytes=21-30"), ("config.json", "bytes=-0"), ("empty.txt", "bytes=0-0")):
        reply = ask(server.url(REPO, file), Range=asked)
        assert reply.status == 416 and reply.headers["Content-Range"] == f"bytes */{len(FILES[file])}"
    with pytest.raises(HfHubHTTPError, match="416"):
        hf_raise_for_status(http_backoff("GET", hf_hub_url(REPO, "config.json"), headers={"Range": "bytes=99-"}))
    for asked in ("bytes=0-1,4-5", "bytes=5-2", "bytes=-", "lines=1-2"):
        assert ask(server.url(REPO, "config.json"), Range=asked).body == SMALL
    assert ask(server.url(REPO, "config.json"), Range="bytes=0-1", If_Range='"other"').status == 200
    assert parse_range(None, 5) is None and parse_range("bytes=1-", 5) == (1, 4)


def test_storage_wants_its_signature_and_no_token(server: HubServer) -> None:
    location = stored(server)
    assert "model" not in location and ask(location).body == LARGE
    assert ask(location.split("?")[0]).status == ask(location.replace("signature=", "signature=0")).status == 403
    ask(location, Authorization="Bearer hf_x")
    assert [request.authorization for request in server.requests] == [False, False, False, True]


def test_connections_are_kept_and_requests_run_side_by_side(server: HubServer) -> None:
    place = urlsplit(server.address).netloc
    connection = http.client.HTTPConnection(place, timeout=5)
    for _ in range(3):
        connection.request("GET", f"/{REPO}/resolve/main/config.json")
        assert connection.getresponse().read() == SMALL
        assert connection.sock is not None
    connection.close()
    server.requests.clear()
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda _: ask(server.url(REPO, "config.json")), range(64)))
    assert all(reply.body == SMALL for reply in replies) and len(server.requests) == 64


def test_faults_are_counted_and_matched(server: HubServer) -> None:
    url = server.url(REPO, "config.json")
    server.faults += [Fault("status", 2, "config", "GET", 500, after=1), Fault("status", match="empty", value=418)]
    assert [ask(url).status for _ in range(4)] == [200, 500, 500, 200]
    assert ask(url, "HEAD").status == 200 and ask(server.url(REPO, "empty.txt")).status == 418
    assert [request.fault for request in server.requests] == ["", "status", "status", "", "", "status"]
    server.faults[:] = [Fault("status", times=-1, value=503), Fault("drop")]
    assert [ask(url).status for _ in range(5)] == [503] * 5
    with pytest.raises(ValueError, match="unknown fault"):
        Fault("typo")


def test_faults_are_counted_once_under_many_threads(server: HubServer) -> None:
    server.faults.append(Fault("status", times=7, value=500))
    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(lambda _: ask(server.url(REPO, "config.json")).status, range(40)))
    assert statuses.count(500) == 7


def test_fault_status_with_retry_after(server: HubServer) -> None:
    server.faults.append(Fault("status", value=(429, 0)))
    start = time.monotonic()
    assert http_backoff("GET", hf_hub_url(REPO, "config.json"), base_wait_time=30).content == SMALL
    assert [request.status for request in server.requests] == [429, 200]
    assert 1 <= time.monotonic() - start < 10  # the client adds a second to Retry-After
    server.faults.append(Fault("status", value=(429, 7)))
    assert ask(server.url(REPO, "config.json")).headers["Retry-After"] == "7"


def test_fault_drop(server: HubServer) -> None:
    server.faults.append(Fault("drop"))
    with pytest.raises(http.client.RemoteDisconnected):
        ask(server.url(REPO, "config.json"))
    assert server.requests[-1].status == server.requests[-1].bytes_sent == 0


def test_fault_reset(server: HubServer) -> None:
    server.faults.append(Fault("reset", match="model.safetensors"))
    location = stored(server)  # the redirect has no body to break, so the fault waits
    with pytest.raises(ConnectionResetError):
        ask(location)
    assert server.requests[-1].bytes_sent == len(LARGE) // 2 and ask(location).body == LARGE


def test_fault_short(server: HubServer) -> None:
    server.faults += [Fault("short"), Fault("short", value=100)]
    for sent in (len(LARGE) // 2, 100):
        with pytest.raises(http.client.IncompleteRead) as error:
            ask(stored(server))
        assert len(error.value.partial) == server.requests[-1].bytes_sent == sent


def test_fault_stall_ends_with_the_server(server: HubServer) -> None:
    server.faults.append(Fault("stall", times=-1, value=60))
    with pytest.raises(TimeoutError):
        ask(stored(server), timeout=0.3)
    threading.Timer(0.2, server.stopped.set).start()
    start = time.monotonic()
    with pytest.raises(http.client.IncompleteRead) as error:
        ask(stored(server))
    assert len(error.value.partial) == 16 and time.monotonic() - start < 4


@pytest.mark.parametrize("cdn", [True, False])
def test_faults_of_ranges(cdn: bool, server: HubServer) -> None:
    server.cdn = cdn
    url = stored(server) if cdn else server.url(REPO, "model.safetensors")
    server.faults += [Fault("ignore_range"), Fault("wrong_range"), Fault("wrong_range", value=7)]
    assert ask(url).body == LARGE  # asks for no range: no fault shows
    whole = ask(url, Range="bytes=10-19")
    assert whole.status == 200 and whole.body == LARGE and "Content-Range" not in whole.headers
    for first in (9, 7):
        other = ask(url, Range="bytes=10-19")
        assert other.status == 206 and other.body == LARGE[first : first + 10]
        assert other.headers["Content-Range"] == f"bytes {first}-{first + 9}/{len(LARGE)}"


@pytest.mark.parametrize("value", [None, b"x" * len(LARGE)])
def test_fault_changed(value: bytes | None, server: HubServer) -> None:
    before = get_hf_file_metadata(hf_hub_url(REPO, "model.safetensors"))
    old = ask(before.location)
    server.faults.append(Fault("changed", match="/cdn/", value=value))
    new = ask(before.location)
    after = get_hf_file_metadata(hf_hub_url(REPO, "model.safetensors"))
    assert new.body == (value or bytes(255 - byte for byte in LARGE)) and new.headers["ETag"] != old.headers["ETag"]
    assert after.size == before.size and after.etag != before.etag and after.commit_hash == before.commit_hash
    assert ask(before.location).body == new.body


def test_fault_truncated(server: HubServer) -> None:
    etag = get_hf_file_metadata(hf_hub_url(REPO, "model.safetensors")).etag
    server.faults.append(Fault("truncated", -1, "model.safetensors", value=5000))
    metadata = get_hf_file_metadata(hf_hub_url(REPO, "model.safetensors"))
    assert metadata.size == 5000 and metadata.etag == etag
    assert ask(metadata.location).body == LARGE[:5000]
    assert ask(metadata.location, Range="bytes=4990-6000").headers["Content-Range"] == "bytes 4990-4999/5000"
    assert ask(metadata.location, Range="bytes=5000-6000").status == 416


def test_fault_expired(server: HubServer) -> None:
    server.faults.append(Fault("expired"))
    location = stored(server)
    assert ask(location).status == 403 and ask(location).status == 200


def test_fault_no_etag(server: HubServer) -> None:
    server.faults.append(Fault("no_etag", -1))
    for file in FILES:
        reply = ask(server.url(REPO, file), "HEAD")
        assert "ETag" not in reply.headers and "X-Linked-Etag" not in reply.headers
    with pytest.raises(LocalEntryNotFoundError, match="ETag"):
        hf_hub_download(REPO, "config.json")


def test_fault_gzip(server: HubServer) -> None:
    server.faults.append(Fault("gzip", -1))
    url = stored(server)
    assert ask(url, Accept_Encoding="identity", Range="bytes=0-9").body == LARGE[:10]
    packed = ask(url, Accept_Encoding="gzip, br", Range="bytes=0-9")
    assert packed.headers["Content-Encoding"] == "gzip" and gzip.decompress(packed.body) == LARGE
    assert packed.status == 200 and len(packed.body) == server.requests[-1].bytes_sent < len(LARGE)
    assert http_backoff("GET", url).content == LARGE  # unpacked by the client
    assert accepts_gzip("*") and accepts_gzip("br;q=1, gzip;q=0.5") and not accepts_gzip("gzip;q=0, br")


@pytest.mark.parametrize(
    ("fault", "recovers"),
    [
        (Fault("short", match="/cdn/"), True),
        (Fault("gzip", match="/cdn/"), True),
        (Fault("drop", match="/cdn/"), True),
        (Fault("reset", match="/cdn/"), False),  # a ReadError is not among what the client resumes after
        (Fault("status", match="/cdn/", value=503), False),
        (Fault("expired"), False),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_what_the_client_recovers_from(fault: Fault, recovers: bool, server: HubServer) -> None:
    server.faults.append(fault)
    with nullcontext() if recovers else pytest.raises((httpx2.HTTPError, HfHubHTTPError)):
        assert Path(hf_hub_download(REPO, "model.safetensors")).read_bytes() == LARGE
    assert any(request.fault == fault.kind for request in server.requests)


def test_subprocess_talks_to_the_server(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    code = f"from huggingface_hub import hf_hub_download as get; print(get({REPO!r}, 'model.safetensors'))"
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment(server, tmp_path), capture_output=True, text=True, timeout=60
    )
    assert Path(run.stdout.strip()).read_bytes() == LARGE, run.stderr
    assert Path(run.stdout.strip()).is_relative_to(tmp_path / "hf")
    assert [request.authorization for request in server.requests] == [False, False]


def test_stopped_server_answers_nobody(tmp_path: Path) -> None:
    HubServer(tmp_path).stop()  # never started
    with HubServer(tmp_path) as server:
        connection = http.client.HTTPConnection(urlsplit(server.address).netloc, timeout=5)
        connection.request("GET", "/absent")
        assert connection.getresponse().read()
    with pytest.raises(OSError):
        connection.request("GET", "/absent")
        connection.getresponse()
    connection.close()
    server.stop()


def test_client_is_itself_again_afterwards() -> None:
    assert constants.ENDPOINT == huggingface_hub.hf_api.api.endpoint == "https://huggingface.co"
