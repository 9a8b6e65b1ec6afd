"""Which models a user means: folders, files, folders of folders, manifests, repositories, authors and collections."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from glob import glob
from pathlib import Path
from typing import Any

from mother.collection.claims import Claim, read_claims
from mother.collection.gaps import Gaps, is_state, read_files, summary
from mother.collection.names import Names
from mother.errors import InputError
from mother.graph.manifest_io import read_manifest
from mother.io.files import KEPT_TAG
from mother.io.places import HUB_SOURCE, LocalFolder
from mother.io.weights import ADAPTER_CONFIG, PICKLES, is_model

DEPTH = 5  # budget: folders below one another that are searched
MOST_FOLDERS = 100_000  # budget: folders that are searched at most
PIPELINE, MODULES = "model_index.json", "modules.json"  # of diffusers, of sentence-transformers
COMPONENTS = ("unet", "transformer", "prior")  # of a diffusers pipeline, the one that is trained


@dataclass(frozen=True)
class Source:
    """A model to be looked at: its id, where it is, and for an adapter where the model is that it belongs to."""

    id: str
    location: str  # absolute path, or hf://owner/name[@revision][:subfolder]
    base: str | None = None
    claims: tuple[Claim, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Source":
        """What `to_json` gave. Raises ValueError, KeyError or TypeError for anything else."""
        claims = tuple(Claim.from_json(claim) for claim in content["claims"])
        found = cls(content["id"], content["location"], content["base"], claims)
        if not isinstance(found.id, str) or not isinstance(found.location, str):
            raise ValueError("a model has no id or no location")
        if found.base is not None and not isinstance(found.base, str):
            raise ValueError(f"the base of {found.id} is no text")
        return found


@dataclass
class Found:
    """The models that a user means, what lies beside them and is not read, and what he should know."""

    sources: list[Source]
    gaps: Gaps = field(default_factory=Gaps)
    notes: list[str] = field(default_factory=list)


def _is_weights(name: str) -> bool:
    """Whether a file may be a model by itself: shards and the state of a training are none."""
    stem = name.lower()
    return stem.endswith((".safetensors", *PICKLES)) and not is_state(stem) and "-of-" not in stem


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


class _Search:
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
        if ADAPTER_CONFIG in files or is_model(LocalFolder(_printable(name), folder)):
            self._note(folder, files, read_files(folder, list(files)))
            return [(name, folder), *self._inside(folder, name, folders, depth, parts=MODULES in files)]
        if PIPELINE in files:
            return self._pipeline(folder, name, files, folders)
        weights = [file for file in files if _is_weights(file)]
        inside = self._inside(folder, name, folders, depth)
        self._note(folder, files, weights)
        if len(weights) == 1 and not inside:  # a model under a name of its own
            return [(name, folder)]
        return [(f"{name}/{Path(file).stem}", folder / file) for file in weights] + inside

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
                        self.gaps.not_read[_printable(entry.path)] = f"cannot be read: {error.strerror}"
        except OSError as error:
            self.gaps.not_read[f"{_printable(str(folder))}/"] = f"cannot be read: {error.strerror}"
            return None
        return files, folders

    def _note(self, folder: Path, files: dict[str, int], read: Iterable[str]) -> None:
        """Note the files of a folder that no model is read from."""
        for file in files.keys() - {*read}:
            self.gaps.note(_printable(str(folder / file)), file, files[file])

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
                    self.gaps.not_read[f"{_printable(str(path))}/"] = reason
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
                self.gaps.not_read[f"{_printable(str(folder / inner))}/"] = reason
        return self.below(folder / component, name, 0) if component is not None else []


def _printable(name: str) -> str:
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in name)


def _find_one(argument: str, search: _Search, notes: list[str]) -> list[Source]:
    """The models that one argument names; raises InputError where there is none."""
    path = Path(argument).expanduser()
    try:
        there = path.exists()
    except OSError:  # a name that no file can have
        there = False
    if not there:
        return [_on_hub(argument, notes)]
    path = Path(os.path.abspath(path))
    if path.suffix == ".json" and not path.name.endswith(".index.json"):
        manifest = read_manifest(path)
        return [
            Source(
                node.id,
                str(manifest.location(node)),
                str(manifest.base_location(node)) if node.base is not None else None,
            )
            for node in manifest.present
        ]
    if path.is_file():
        name = path.name.removesuffix(".index.json")
        return [Source(_printable(Path(name).stem if name == path.name else path.parent.name), str(path))]
    found = search.below(path, path.name)
    if not found:
        unread = summary(item for item in search.gaps.not_read.items() if item[0].startswith(_printable(str(path))))
        raise InputError(
            f"{_printable(argument)}: there is no model in this folder. A model is a folder with model.safetensors, "
            "pytorch_model.bin, an index of shards or adapter_config.json, or a weight file."
            + (f" Not read: {unread}." if unread else "")
        )
    # The name of the folder that was given says nothing about those in it.
    found = [(name.removeprefix(f"{path.name}/"), place) for name, place in found]
    return [Source(_printable(name), str(place)) for name, place in found]


def _on_hub(argument: str, notes: list[str]) -> Source:
    """The repository that an argument names which is no path; raises InputError where it names none."""
    source = argument if argument.startswith("hf://") else f"hf://{argument}"
    first = Path(argument).expanduser().parts[:1]
    mistyped = not argument.startswith("hf://") and bool(first) and os.path.isdir(first[0])
    usable = HUB_SOURCE.fullmatch(source) and ".." not in source and not argument.startswith((".", "/", "~"))
    if mistyped or not usable:
        raise InputError(
            f"{_printable(argument)}: there is no such file or folder"
            + (f" in {first[0]}/" if mistyped and usable else ", and it names no repository")
            + ". Give a path, or owner/name[@revision][:subfolder]"
            + (f", with hf:// in front if you mean {argument} on the Hub." if mistyped and usable else ".")
        )
    if not argument.startswith("hf://"):
        notes.append(f"{argument}: there is no such path here, so it is looked up on the Hub")
    return Source(source.removeprefix("hf://"), source)


def _unfolded(arguments: Iterable[str]) -> list[str]:
    """Arguments with patterns such as models/*/final, which a shell left as they are, replaced by what fits them."""
    found = []
    for argument in arguments:
        is_pattern = any(letter in argument for letter in "*?[") and not os.path.lexists(argument)
        fitting = sorted(glob(str(Path(argument).expanduser()), recursive=True)) if is_pattern else []
        found += fitting or [argument]
    return found


def search(arguments: Iterable[str], strict: bool = False) -> Found:
    """The models that a user names, each once, with ids of their own. Raises InputError where there is none.

    An argument among several that names no model is left out with the reason; `strict` makes it an error. An id is the
    name of the repository, or of the folder below the one that was given; where two are the same, folders above are put
    in front.
    """
    names, looking, notes = _unfolded(arguments), _Search(), []
    found: dict[str, Source] = {}
    for argument in names:
        try:
            sources = _find_one(argument, looking, notes)
        except InputError as error:
            if strict or len(names) == 1:
                raise
            looking.gaps.unusable[_printable(argument)] = str(error)
            continue
        for source in sources:
            key = source.location if source.location.startswith("hf://") else os.path.realpath(source.location)
            found.setdefault(key, source)
    if not found:
        reasons = " ".join(list(looking.gaps.unusable.values())[:3])
        raise InputError(f"none of the {len(names)} arguments names a model. {reasons}")
    return Found(_told_apart(list(found.values())), looking.gaps, notes)


def _told_apart(sources: list[Source]) -> list[Source]:
    """The same with an id of its own for each: folders above in front, else numbers behind."""
    for above in range(1, 20):
        count = Counter(source.id for source in sources)
        if max(count.values()) == 1:
            return sources
        for at, source in enumerate(sources):
            parts = Path(source.location).parts
            if count[source.id] > 1 and len(parts) > above + 1:
                sources[at] = replace(source, id=_printable("/".join(parts[-above - 1 :])))
    count, seen = Counter(source.id for source in sources), Counter[str]()
    for at, source in enumerate(sources):
        if count[source.id] > 1:
            seen[source.id] += 1
            sources[at] = replace(source, id=f"{source.id} ({seen[source.id]})")
    return sources


def with_claims(sources: Sequence[Source], known: Sequence[Source] = ()) -> list[Source]:
    """The same with what each says of its origin, and adapters with their base if that is among them or `known`."""
    read = [
        source if source.claims else replace(source, claims=read_claims(source.id, source.location))
        for source in sources
    ]
    everyone = [*known, *read]
    names = Names((source.id, source.location) for source in everyone)
    locations = {source.id: source.location for source in everyone}
    result = []
    for source in read:
        base = source.base
        for claim in source.claims:
            if claim.file == ADAPTER_CONFIG and base is None:
                match = names.find(claim, source.id)
                base = locations[match.model] if match is not None else None
        result.append(replace(source, base=base))
    return result
