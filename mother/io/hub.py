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
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2
from huggingface_hub import constants
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
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

from mother.errors import CheckpointError
from mother.io import traffic
from mother.io.files import write_json
from mother.io.places import Repository
from mother.io.runtime import STOP

RETRIES = 5  # tries in a row that bring hardly anything, after which a fault is final
WAIT = 1.0  # seconds before the second try; each further one waits twice as long
LATER = "Try again later: what was read is kept."
LONGEST = 300.0  # seconds that a server may ask us to wait
BUSY = (408, 429, 500, 502, 503, 504)
ONCE: dict[str, Any] = {"max_retries": 0, "retry_on_exceptions": (), "retry_on_status_codes": ()}
TRANSIENT = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError)
T = TypeVar("T")


def cache_folder() -> Path:
    """Where headers are kept: MOTHER_CACHE, or `mother` in the Hugging Face home."""
    return Path(os.environ.get("MOTHER_CACHE") or Path(constants.HF_HOME) / "mother")


# Errors of the client that say all by their kind: (reason, remedy, whether the same may go well later).
FINAL: dict[type[Exception], tuple[str, str, bool]] = {
    RevisionNotFoundError: ("there is no such revision", "Name another branch or commit.", False),
    RepositoryNotFoundError: (
        "there is no such repository, or it is private",
        "Check the name, or log in: `hf auth login`.",
        False,
    ),
    RemoteEntryNotFoundError: ("there is no such file in the repository", "Check the source.", False),
    OfflineModeIsEnabled: (
        "it is not in the cache, and HF_HUB_OFFLINE is set or the Hub cannot be reached",
        "Run once with a network.",
        True,
    ),
}
FINAL[LocalEntryNotFoundError] = FINAL[OfflineModeIsEnabled]


def _gated(model: str, source: str, error: GatedRepoError) -> CheckpointError:
    """Not logged in, or without access."""
    if error.response.status_code == 401:
        return CheckpointError(
            model, source, "the repository is gated and you are not logged in", "Log in: `hf auth login`."
        )
    repo = source.removeprefix("hf://").split("@")[0].split(":")[0]
    page = f"{constants.ENDPOINT}/{'/'.join(repo.split('/')[:2])}"
    return CheckpointError(
        model, source, "the repository is gated and your account has no access", f"Accept the licence at {page}."
    )


def answer(model: str, source: str, call: Callable[[], T], passed: tuple[type[Exception], ...] = ()) -> T:
    """Run a request; every way it may fail, but those `passed` on, becomes a CheckpointError that says what to do."""
    try:
        return call()
    except (CheckpointError, *passed):
        raise
    except GatedRepoError as error:
        raise _gated(model, source, error) from None
    except tuple(FINAL) as error:
        reason, remedy, transient = next(words for kind, words in FINAL.items() if isinstance(error, kind))
        raise CheckpointError(model, source, reason, remedy, transient) from None
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


def patiently(call: Callable[[], T]) -> T:
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
            asked = retry_after(error.response)
        pause(max(wait, asked))
        wait, asked = wait * 2, 0.0
    raise AssertionError("unreachable")


def pause(seconds: float) -> None:
    """Wait before another try, unless somebody has asked to stop."""
    if STOP.wait(seconds):
        raise KeyboardInterrupt


def retry_after(response: httpx2.Response) -> float:
    """Seconds that the server asks us to wait, at most LONGEST; 0 if it does not say."""
    value = response.headers.get("Retry-After", "")
    return min(float(value), LONGEST) if value.isdecimal() else 0.0


def _without_query(text: str) -> str:
    """A message without what follows '?' in addresses: signatures are secrets."""
    return re.sub(r"\?\S+", "?...", text)


def folder_of(repo: str) -> Path:
    # Another Hub, or a mirror, may serve other bytes under the same name.
    hub = hashlib.sha256(constants.ENDPOINT.encode()).hexdigest()[:8]
    return cache_folder() / hub / repo.replace("/", "--")


def open_repository(model: str, repo: str, revision: str | None) -> Repository:
    """The commit that a revision is at, and its files, with one request; raises CheckpointError.

    Without a network (HF_HUB_OFFLINE=1) the commit that was seen last is taken.
    """
    source = f"hf://{repo}" + (f"@{revision}" if revision else "")
    kept = folder_of(repo) / "revisions" / f"{hashlib.sha256((revision or 'main').encode()).hexdigest()[:16]}.json"
    if constants.is_offline_mode():
        try:
            content = json.loads(kept.read_text())
            return Repository(model, repo, content["commit"], frozenset(content["files"]))
        except (OSError, ValueError, KeyError, TypeError):
            return answer(model, source, _raise_offline)

    def ask() -> dict[str, Any]:
        traffic.count(1)
        url = f"{constants.ENDPOINT}/api/models/{repo}/revision/{quote(revision or 'main', safe='')}"
        response = http_backoff("GET", url, headers=build_hf_headers(), timeout=stall_limit(), **ONCE)
        traffic.count(received=len(response.content))
        hf_raise_for_status(response)
        return response.json()

    found = answer(model, source, lambda: patiently(ask))
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


def stall_limit() -> float:
    """Seconds without a byte after which a connection counts as stalled."""
    return float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
