"""What a long measurement has found so far, kept on disk, so that a killed run goes on where it was.

One file holds everything up to some step: numbers exactly as they are in memory, so that the result of an interrupted
run is that of an undisturbed one, bit by bit. A finished measurement may stay: the next run reads it, not the models.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mother.io.files import write_atomically

SPACING = 2.0  # seconds between snapshots, at least
SHARE = 20.0  # times what writing the last one took


class Snapshot:
    """A file that holds a step, arrays and JSON facts, valid for one key; without a path nothing is kept."""

    def __init__(self, path: Path | None, key: dict[str, Any]):
        self.path, self.key = path, key
        self.before = 0.0  # seconds that earlier runs took for what was loaded
        self._started = time.monotonic()
        self._next = self._started + SPACING

    def load(self) -> tuple[int, dict[str, np.ndarray], Any] | None:
        """(steps done, arrays, facts), or None where there is nothing, something damaged, or of another key."""
        if self.path is None:
            return None
        try:
            with open(self.path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                about = json.loads(str(stored["about"]))
                if about["key"] != json.loads(json.dumps(self.key)):
                    return None
                arrays = {name: stored[name] for name in stored.files if name != "about"}
                self.before = float(about["seconds"])
                return int(about["step"]), arrays, about["facts"]
        except Exception:  # noqa: BLE001  A damaged archive raises nearly anything; then we measure again.
            return None

    def save(
        self,
        step: int,
        content: Callable[[], tuple[dict[str, np.ndarray], Any]],
        now: bool = False,
        seconds: float | None = None,
    ) -> None:
        """Keep what `content()` gives, if the last snapshot is long enough ago, or `now`.

        `seconds` is what it took, where that is not the time since this object was made.
        """
        if self.path is None or (not now and time.monotonic() < self._next):
            return
        started = time.monotonic()
        arrays, facts = content()
        spent = self.before + started - self._started if seconds is None else seconds
        about = np.array(json.dumps({"key": self.key, "step": step, "facts": facts, "seconds": spent}))
        write_atomically(self.path, lambda file: np.savez(file, about=about, **arrays))
        ended = time.monotonic()
        self._next = ended + max(SPACING, SHARE * (ended - started))

    def clear(self) -> None:
        """Forget it."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
