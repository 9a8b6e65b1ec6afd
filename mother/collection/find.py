"""Which models a user means: folders, files, folders of folders, manifests, repositories, authors and collections."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mother.collection.claims import Claim, read_claims
from mother.collection.names import Names
from mother.errors import InputError
from mother.graph.manifest_io import read_manifest
from mother.io.files import KEPT_TAG
from mother.io.open import ADAPTER_CONFIG, PICKLES, WEIGHT_FILES
from mother.io.places import HUB_SOURCE

DEPTH = 5  # budget: folders below one another that are searched
MOST_FOLDERS = 100_000  # budget: folders that are searched at most
PIPELINE = "model_index.json"
COMPONENTS = ("unet", "transformer", "prior")  # of a diffusers pipeline, the one that is trained
TRAINING_STATE = (
    "optimizer",
    "scheduler",
    "training_args",
    "rng_state",
    "scaler",
    "trainer_state",
)  # of training, not models


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
        """What `to_json` gave."""
        claims = tuple(Claim(**claim) for claim in content["claims"])
        return cls(content["id"], content["location"], content["base"], claims)


def _is_weights(name: str) -> bool:
    """Whether a file may be a model by itself: shards and the state of a training are none."""
    stem = name.lower()
    shard = "-of-" in stem
    return stem.endswith((".safetensors", *PICKLES)) and not stem.startswith(TRAINING_STATE) and not shard


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the files and folders in a folder, sorted; raises InputError."""
    try:
        with os.scandir(folder) as found:
            entries = sorted((entry.name, entry.is_dir()) for entry in found)
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}. Check the path and its permissions.") from None
    return [name for name, is_dir in entries if not is_dir], [name for name, is_dir in entries if is_dir]


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


def _below(folder: Path, name: str, depth: int, seen: set[str]) -> list[tuple[str, Path]]:
    """(id, path) of every model in a folder and below it. Links are followed, but no folder is entered twice."""
    real = os.path.realpath(folder)
    if real in seen or len(seen) > MOST_FOLDERS:
        return []
    seen.add(real)
    if folder.name.startswith("models--") and (snapshot := _snapshot(folder)) is not None:
        above = name.rpartition("/")[0]
        repo = folder.name.removeprefix("models--").replace("--", "/")
        return _below(snapshot, f"{above}/{repo}" if above else repo, depth, seen)
    files, folders = _entries(folder)
    if KEPT_TAG in files:  # sketches of an earlier run
        return []
    if ADAPTER_CONFIG in files or any(file in files for file in WEIGHT_FILES):
        return [(name, folder)]
    if PIPELINE in files:
        component = next((part for part in COMPONENTS if part in folders), None)
        return [(name, folder / component)] if component is not None else []
    weights = [file for file in files if _is_weights(file)]
    inside = [
        one
        for inner in (folders if depth else ())
        if not inner.startswith(".")
        for one in _below(folder / inner, f"{name}/{inner}", depth - 1, seen)
    ]
    if len(weights) == 1 and not inside:  # a model under a name of its own
        return [(name, folder)]
    return [(f"{name}/{Path(file).stem}", folder / file) for file in weights] + inside


def _printable(name: str) -> str:
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in name)


def _find_one(argument: str) -> list[Source]:
    """The models that one argument names; raises InputError where there is none."""
    path = Path(argument).expanduser()
    try:
        there = path.exists()
    except OSError:  # a name that no file can have
        there = False
    if not there:
        source = argument if argument.startswith("hf://") else f"hf://{argument}"
        if HUB_SOURCE.fullmatch(source) and ".." not in source and not argument.startswith((".", "/", "~")):
            return [Source(source.removeprefix("hf://"), source)]
        raise InputError(
            f"{_printable(argument)}: there is no such file or folder, and it names no repository. "
            "Give a path, or owner/name[@revision][:subfolder]."
        )
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
    found = _below(path, path.name, DEPTH, set())
    if not found:
        raise InputError(
            f"{_printable(argument)}: there is no model in this folder. A model is a folder with model.safetensors, "
            "pytorch_model.bin, an index of shards or adapter_config.json, or a weight file."
        )
    # The name of the folder that was given says nothing about those in it.
    found = [(name.removeprefix(f"{path.name}/"), place) for name, place in found]
    return [Source(_printable(name), str(place)) for name, place in found]


def find_models(arguments: Iterable[str]) -> list[Source]:
    """The models that a user names, each once, with ids of their own. Raises InputError.

    An id is the name of the repository, or of the folder below the one that was given; where two are the same, folders
    above are put in front.
    """
    found: dict[str, Source] = {}
    for argument in arguments:
        for source in _find_one(argument):
            key = source.location if source.location.startswith("hf://") else os.path.realpath(source.location)
            found.setdefault(key, source)
    sources = list(found.values())
    for above in range(1, 20):
        names = [source.id for source in sources]
        twice = {name for name in names if names.count(name) > 1}
        if not twice:
            break
        for at, source in enumerate(sources):
            parts = Path(source.location).parts
            if source.id in twice and len(parts) > above + 1:
                sources[at] = replace(source, id=_printable("/".join(parts[-above - 1 :])))
    names = [source.id for source in sources]
    return [
        replace(source, id=f"{source.id} ({names[: at + 1].count(source.id)})")
        if names.count(source.id) > 1
        else source
        for at, source in enumerate(sources)
    ]


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
