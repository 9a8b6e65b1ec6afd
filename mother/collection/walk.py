"""Models in a folder and below it, and what else lies there."""

import os
from collections.abc import Iterable
from pathlib import Path

from mother.collection.gaps import LOOKED_INTO, Gaps, is_state, read_files, reason_of
from mother.io.files import KEPT_TAG
from mother.io.places import LocalFolder
from mother.io.reader import HEAD
from mother.io.readers import SUFFIXES, recognised, stem_of
from mother.io.weights import ADAPTER_CONFIG, is_model

DEPTH = 5  # budget: folders below one another that are searched
MOST_FOLDERS = 100_000  # budget: folders that are searched at most
PIPELINE, MODULES = "model_index.json", "modules.json"  # of diffusers, of sentence-transformers
COMPONENTS = ("unet", "transformer", "prior")  # of a diffusers pipeline, the one that is trained


def _is_weights(folder: Path, name: str, size: int) -> bool:
    """Whether a file may be a model by itself: shards and the state of a training are none.

    By its name, or by its content where the name says nothing, or something else.
    """
    lower = name.lower()
    first = lower.endswith(".gguf") and "-00001-of-" in lower  # which leads to the others
    if is_state(lower) or ("-of-" in lower and not first):
        return False
    if lower.endswith(SUFFIXES):
        return True
    return reason_of(name, size) in LOOKED_INTO and is_recognised(folder / name)


def is_recognised(path: Path) -> bool:
    """Whether a file begins as those of a format that is read."""
    try:
        with open(path, "rb") as file:
            return recognised(file.read(HEAD)) is not None
    except OSError:  # said where it is listed or opened
        return False


def _snapshot(folder: Path) -> Path | None:
    """The snapshot of `main`, or else the newest, in a repository of the Hugging Face cache."""
    snapshots = folder / "snapshots"
    try:
        commit = (folder / "refs" / "main").read_text().strip()
        if commit.isalnum() and (snapshots / commit).is_dir():
            return snapshots / commit
    except (OSError, UnicodeDecodeError):
        pass
    found = [path for path in snapshots.glob("*") if path.is_dir()]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


class Search:
    """Looks for models in folders, and notes what else is there. Links are followed, but no folder is entered twice."""

    def __init__(self) -> None:
        self.gaps = Gaps()
        self.seen: set[str] = set()

    def below(self, folder: Path, name: str, depth: int = DEPTH) -> list[tuple[str, Path]]:
        """(id, path) of every model in a folder and below it."""
        real = os.path.realpath(folder)
        if real in self.seen:
            return []
        self.seen.add(real)
        if folder.name.startswith("models--") and (snapshot := _snapshot(folder)) is not None:
            above = name.rpartition("/")[0]
            repo = folder.name.removeprefix("models--").replace("--", "/")
            return self.below(snapshot, f"{above}/{repo}" if above else repo, depth)
        listed = self._entries(folder)
        if listed is None:
            return []
        files, folders = listed
        if KEPT_TAG in files:  # sketches of an earlier run
            return []
        if ADAPTER_CONFIG in files or is_model(LocalFolder(printable(name), folder)):
            self._note(folder, files, read_files(LocalFolder(printable(name), folder), files))
            return [(name, folder), *self._inside(folder, name, folders, depth, parts=MODULES in files)]
        if PIPELINE in files:
            return self._pipeline(folder, name, files, folders)
        weights = [file for file, size in files.items() if _is_weights(folder, file, size)]
        inside = self._inside(folder, name, folders, depth)
        self._note(folder, files, weights)
        if len(weights) == 1 and not inside:  # a model under a name of its own
            return [(name, folder if weights[0].lower().endswith(SUFFIXES) else folder / weights[0])]
        return [(f"{name}/{stem_of(file)}", folder / file) for file in weights] + inside

    def _entries(self, folder: Path) -> tuple[dict[str, int], list[str]] | None:
        """Names of the files in a folder with their sizes, and of the folders, sorted; None where it cannot be read."""
        files, folders = {}, []
        try:
            with os.scandir(folder) as found:
                for entry in sorted(found, key=lambda entry: entry.name):
                    try:
                        if entry.is_dir():
                            folders.append(entry.name)
                        else:
                            files[entry.name] = entry.stat().st_size
                    except OSError as error:  # a link in a circle, or to nowhere
                        self.gaps.not_read[printable(entry.path)] = f"cannot be read: {error.strerror}"
        except OSError as error:
            self.gaps.not_read[f"{printable(str(folder))}/"] = f"cannot be read: {error.strerror}"
            return None
        return files, folders

    def beside(self, location: str | Path) -> None:
        """Note what lies beside the weights of a model that a manifest names, if it is a folder here."""
        folder = Path(location)
        if os.path.isdir(folder) and (listed := self._entries(folder)) is not None:
            self._note(folder, listed[0], read_files(LocalFolder(printable(folder.name), folder), listed[0]))

    def _note(self, folder: Path, files: dict[str, int], read: Iterable[str]) -> None:
        """Note the files of a folder that no model is read from."""
        for file in files.keys() - {*read}:
            self.gaps.note(printable(str(folder / file)), file, files[file])

    def _inside(
        self, folder: Path, name: str, folders: list[str], depth: int, parts: bool = False
    ) -> list[tuple[str, Path]]:
        """The models below a folder. `parts`: what is there belongs to the model that the folder is."""
        found = []
        for inner in folders:
            path = folder / inner
            reason = "a hidden folder" if inner.startswith(".") else f"more than {DEPTH} folders deep"
            reason = "a part of the model above it" if parts else reason
            if inner.startswith(".") or not depth or parts or len(self.seen) > MOST_FOLDERS:
                if inner != "__pycache__":
                    self.gaps.not_read[f"{printable(str(path))}/"] = reason
            else:
                found += self.below(path, f"{name}/{inner}", depth - 1)
        return found

    def _pipeline(self, folder: Path, name: str, files: dict[str, int], folders: list[str]) -> list[tuple[str, Path]]:
        """The part of a diffusers pipeline that fine-tunes change."""
        self._note(folder, files, ())
        component = next((part for part in COMPONENTS if part in folders), None)
        for inner in folders:
            if inner != component:
                reason = "a part of a pipeline that fine-tunes rarely change"
                self.gaps.not_read[f"{printable(str(folder / inner))}/"] = reason
        return self.below(folder / component, name, 0) if component is not None else []


def printable(name: str) -> str:
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in name)
