"""What was read of files afar, kept on this machine while the same is looked at again and again."""

import shutil
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, TypeVar

from mother.io.adapted_checkpoint import AdaptedCheckpoint
from mother.io.checkpoint import Checkpoint
from mother.io.packed import PackedCheckpoint
from mother.io.places import File

C = TypeVar("C", bound=Checkpoint)


class SpooledFile:
    """A file each range of which is asked for once. Other ranges that overlap it are asked for anew."""

    remote = True

    def __init__(self, file: File, kept: Path):
        self.file, self.kept, self.size = file, kept, file.size
        self.known: set[tuple[int, int]] = set()
        self.lock = threading.Lock()

    def __str__(self) -> str:
        return str(self.file)

    def read(self, spans: Sequence[tuple[int, int]], into: Sequence[memoryview | None] = ()) -> list[Any]:
        """See File; never in `into`."""
        with self.lock:
            missing = [span for span in dict.fromkeys(spans) if span not in self.known]
            fetched = dict(zip(missing, self.file.read(missing))) if missing else {}
            for span, part in fetched.items():
                self._keep(span, part)
            return [fetched[span] if span in fetched else self._again(span) for span in spans]

    def _keep(self, span: tuple[int, int], part: Any) -> None:
        if len(part) < span[1] - span[0]:
            return
        with suppress(OSError), open(self.kept, "r+b" if self.kept.exists() else "w+b") as file:
            file.seek(span[0])  # what was not read takes no room
            file.write(part)
            self.known.add(span)

    def _again(self, span: tuple[int, int]) -> Any:
        try:
            with open(self.kept, "rb") as file:
                file.seek(span[0])
                return memoryview(file.read(span[1] - span[0]))
        except OSError:
            return self.file.read([span])[0]

    def expect(self, start: int, end: int) -> None:
        """See File."""
        self.file.expect(start, end)

    def head(self, count: int) -> bytes:
        """See File."""
        return self.file.head(count)

    def fingerprint(self) -> tuple[str, int, int, str]:
        """See File."""
        return self.file.fingerprint()

    def digest(self) -> str | None:
        """See File."""
        return self.file.digest()

    def remembered(self, make: Callable[[], Any]) -> Any:
        """See File."""
        return self.file.remembered(make)


class Spool:
    """A temporary folder with what was read of files afar; it goes with this object."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.files: dict[str, SpooledFile] = {}

    def of(self, checkpoint: C) -> C:
        """The same model, of which nothing comes over a network twice."""
        if not any(file.remote for file in checkpoint.files()):
            return checkpoint
        tensors = {name: (self._file(file), info) for name, (file, info) in checkpoint.tensors.items()}
        found = replace(checkpoint, tensors=tensors)
        if isinstance(found, PackedCheckpoint):
            return replace(found, raw=self.of(found.raw))
        if isinstance(found, AdaptedCheckpoint):
            base = self.of(found.base) if found.base is not None else None
            return replace(found, parts=self.of(found.parts), base=base)
        return found

    def _file(self, file: File) -> File:
        if not file.remote or isinstance(file, SpooledFile):
            return file
        if self.folder is None:
            self.folder = Path(mkdtemp(prefix="mother-"))
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        return self.files.setdefault(str(file), SpooledFile(file, self.folder / str(len(self.files))))
