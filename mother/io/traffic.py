"""What was asked of the Hub: requests and bytes, counted where they are made and stated with a result."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Traffic:
    """Requests to the Hub, tries that failed among them, and the bytes that came."""

    requests: int = 0
    bytes: int = 0

    def __str__(self) -> str:
        return f"{self.requests:,} request{'' if self.requests == 1 else 's'}, {self.bytes / 1e6:,.1f} MB"


_lock = threading.Lock()
_so_far = Traffic()


def count(requests: int = 0, received: int = 0) -> None:
    """Add to what was asked so far; from any thread."""
    global _so_far
    with _lock:
        _so_far = Traffic(_so_far.requests + requests, _so_far.bytes + received)


def counted(call: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Make a request that brings no more than a head, and count it."""
    count(1)
    return call(*arguments, **options)


def taken() -> Traffic:
    """What was asked since the last call of this."""
    global _so_far
    with _lock:
        found, _so_far = _so_far, Traffic()
    return found
