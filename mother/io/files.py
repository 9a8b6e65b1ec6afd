"""Write results so that a killed run leaves either the whole file or none."""

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

KEPT_TAG = ".mother-kept"  # marks a folder of what was measured: it holds no models, whatever its files are called

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a disk, a quota, a file system
SEAL = "seal"  # the digest in a JSON object of all else in it
# The names of temporary files, which a killed run leaves behind.
TEMPORARY = re.compile(r"\..+\.(?P<process>[0-9]+)\.[0-9]+\.tmp", re.DOTALL)


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Call `write(file)` on a temporary binary file beside `path`, then move it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in FULL and not error.filename:  # it does not say which file there is no room for
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):  # it must not hide the first error
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def json_text(value: Any, indent: int | None = 1) -> str:
    """A value as JSON in which letters that cannot be shown are escaped; so are the bytes of a name that is no UTF-8.

    NaN is refused, because no other reader would take it.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    # Outside of strings there is nothing but ASCII, so that an escape is always inside one.
    return re.sub(r"[^ -~\n]", lambda c: c[0] if c[0].isprintable() else json.dumps(c[0])[1:-1], text)


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Write `json_text` atomically."""
    write_text(path, json_text(value, indent) + "\n")


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with a digest of itself, so that damage of any kind is seen when it is read again."""
    return content | {SEAL: _seal(content)}


def is_sealed(content: Any) -> bool:
    """Whether this is what `sealed` gave, unchanged."""
    if not isinstance(content, dict):
        return False
    return content.get(SEAL) == _seal({key: value for key, value in content.items() if key != SEAL})


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def write_figure(path: Path, figure: Any, **options: Any) -> None:
    """Save a matplotlib figure atomically in the format of the path's suffix."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:], **options)
    write_atomically(path, lambda file: file.write(buffer.getvalue()))


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
