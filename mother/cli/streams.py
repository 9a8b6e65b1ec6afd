"""Standard output and error that never end a run: a reader that has gone, or a letter that a terminal does not know."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mother.errors import escaped
from mother.io.files import json_text


class Steady:
    """A text stream that writes as long as somebody reads, and nowhere after.

    What the terminal cannot show is escaped: other letters than its encoding has, and control characters, which could
    move its cursor or hide text. They come from names of files, tensors and cards.
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be shown of a text."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        shown = "".join(letter if letter in "\n\t" else escaped(letter) for letter in text)
        self._try(lambda: self._stream.write(shown.encode(encoding, "backslashreplace").decode(encoding)))
        return len(text)

    def flush(self) -> None:
        """Write what is waiting."""
        self._try(self._stream.flush)

    def _try(self, call: Any) -> None:
        try:
            call()
        except (OSError, ValueError):  # the reader has gone, or the stream was closed
            nowhere = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nowhere, self._stream.fileno())
            except (OSError, ValueError):
                pass
            finally:
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def write_as_json(value: Any) -> None:
    """Write JSON to standard output that stays JSON, whatever letters its encoding has."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    text = json_text(value)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = json.dumps(value, indent=1, allow_nan=False)
    sys.stdout.write(text + "\n")


@contextmanager
def steady_streams() -> Iterator[None]:
    """Let nothing that becomes of standard output or error end this program; all is written when this ends."""
    before = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    try:
        for name, stream in before.items():
            if stream is None:  # closed before the program began
                stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  open until the program ends
            setattr(sys, name, Steady(stream))
        yield
    finally:
        for name, stream in before.items():
            getattr(sys, name).flush()
            setattr(sys, name, stream)
