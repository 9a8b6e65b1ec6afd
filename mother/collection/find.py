"""Which models a user means: folders, files, folders of folders, manifests, repositories, authors and collections."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from glob import glob
from pathlib import Path
from typing import Any

from mother.collection.claims import Claim, place_of, read_said
from mother.collection.gaps import Gaps, holds_no_weights, read_files, summary
from mother.collection.names import Names
from mother.collection.walk import Search, is_recognised, printable
from mother.errors import InputError
from mother.graph.manifest_io import read_manifest
from mother.io.places import HUB_SOURCE, LocalFolder, Place
from mother.io.readers import SUFFIXES, stem_of
from mother.io.runtime import IN_FLIGHT
from mother.io.weights import ADAPTER_CONFIG, is_later_shard, is_model


@dataclass(frozen=True)
class Source:
    """A model to be looked at: its id, where it is, and for an adapter where the model is that it belongs to."""

    id: str
    location: str  # absolute path, or hf://owner/name[@revision][:subfolder]
    base: str | None = None
    claims: tuple[Claim, ...] = ()
    state: str | None = None  # of several in a checkpoint of a training, such as "ema"
    licence: str | None = None  # that its card declares

    def opened_by(self) -> tuple[str, str, str | None, str | None]:
        """The arguments of `open_checkpoint`."""
        return self.id, self.location, self.base, self.state

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Source":
        """What `to_json` gave. Raises ValueError, KeyError or TypeError for anything else."""
        claims = tuple(Claim.from_json(claim) for claim in content["claims"])
        rest = content.get("state"), content.get("licence")
        found = cls(content["id"], content["location"], content["base"], claims, *rest)
        if not isinstance(found.id, str) or not isinstance(found.location, str):
            raise ValueError("a model has no id or no location")
        if not all(isinstance(text, str | None) for text in (found.base, found.state, found.licence)):
            raise ValueError(f"the base, the state or the licence of {found.id} is no text")
        return found


@dataclass
class Found:
    """The models that a user means, what lies beside them and is not read, and what he should know."""

    sources: list[Source]
    gaps: Gaps = field(default_factory=Gaps)
    notes: list[str] = field(default_factory=list)


def _find_one(argument: str, search: Search, notes: list[str]) -> list[Source]:
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
        for node in manifest.present:
            search.beside(manifest.location(node))
        return [
            Source(
                node.id,
                str(manifest.location(node)),
                str(manifest.base_location(node)) if node.base is not None else None,
            )
            for node in manifest.present
        ]
    # A pattern fits such files, too.
    if path.is_file() and holds_no_weights(path.name, path.stat().st_size) and not is_recognised(path):
        search.gaps.note(printable(str(path)), path.name, 0)
        return []
    if path.is_file():
        name = path.name.removesuffix(".index.json")
        return [Source(printable(stem_of(name) if name == path.name else path.parent.name), str(path))]
    if os.path.realpath(path) in search.seen:  # named twice, or with the folder that it is in
        return []
    found = search.below(path, path.name)
    if not found:
        unread = summary(item for item in search.gaps.not_read.items() if item[0].startswith(printable(str(path))))
        raise InputError(
            f"{printable(argument)}: there is no model in this folder. A model is a folder with model.safetensors, "
            "pytorch_model.bin, an index of shards or adapter_config.json, or a weight file."
            + (f" Not read: {unread}." if unread else "")
        )
    # The name of the folder that was given says nothing about those in it.
    found = [(name.removeprefix(f"{path.name}/"), place) for name, place in found]
    return [Source(printable(name), str(place)) for name, place in found]


def _on_hub(argument: str, notes: list[str]) -> Source:
    """The repository that an argument names which is no path; raises InputError where it names none."""
    source = argument if argument.startswith("hf://") else f"hf://{argument}"
    first = Path(argument).expanduser().parts[:1]
    mistyped = not argument.startswith("hf://") and bool(first) and os.path.isdir(first[0])
    usable = HUB_SOURCE.fullmatch(source) and ".." not in source and not argument.startswith((".", "/", "~"))
    if mistyped or not usable:
        raise InputError(
            f"{printable(argument)}: there is no such file or folder"
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


def search(arguments: Iterable[str], strict: bool = False, state: str | None = None) -> Found:
    """The models that a user names, each once, with ids of their own. Raises InputError where there is none.

    An argument among several that names no model is left out with the reason; `strict` makes it an error. An id is the
    name of the repository, or of the folder below the one that was given; where two are the same, folders above are put
    in front. `state` names the weights that are taken where a checkpoint of a training holds several.
    """
    names, looking, notes = _unfolded(arguments), Search(), []
    found: dict[str, Source] = {}
    for argument in names:
        try:
            sources = _find_one(argument, looking, notes)
        except InputError as error:
            if strict or len(names) == 1:
                raise
            looking.gaps.unusable[printable(argument)] = str(error)
            continue
        for source in sources:
            key = source.location if source.location.startswith("hf://") else os.path.realpath(source.location)
            found.setdefault(key, replace(source, state=state))
    if not found:
        reasons = " ".join(list(looking.gaps.unusable.values())[:3])
        reasons = reasons or f"{names[0] if names else 'No argument'} holds no weights."
        raise InputError(f"none of the {len(names)} arguments names a model. {printable(reasons)}")
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
                sources[at] = replace(source, id=printable("/".join(parts[-above - 1 :])))
    count, seen = Counter(source.id for source in sources), Counter[str]()
    for at, source in enumerate(sources):
        if count[source.id] > 1:
            seen[source.id] += 1
            sources[at] = replace(source, id=f"{source.id} ({seen[source.id]})")
    return sources


def _gguf_files(place: Place) -> list[str]:
    """The GGUF files of a repository of the Hub, where there are several and no loader takes one; else [].

    Such files are quantizations of one model. On disk each of them is a model, too.
    """
    if isinstance(place, LocalFolder) or place.has(ADAPTER_CONFIG):
        return []
    # Other weights are no quantizations of each other: which of them is meant must be said.
    weights = [name for name in place.names() if name.lower().endswith(SUFFIXES) and not is_later_shard(name)]
    several = len(weights) > 1 and all(name.lower().endswith(".gguf") for name in weights)
    return weights if several and not is_model(place) else []


def with_claims(found: Found, known: Sequence[Source] = ()) -> Found:
    """The same with what each model says of itself, and adapters with their base if it is among them or `known`.

    Several are looked at at once: they may be on the Hub, whose other files of a repository are noted here.
    """

    def look(source: Source) -> tuple[list[Source], Gaps]:
        gaps = Gaps()
        place = place_of(source.id, source.location)
        if place is None:
            return [source], gaps
        one_file = source.location.lower().endswith(SUFFIXES)
        parts = [] if one_file else _gguf_files(place)
        if not isinstance(place, LocalFolder) and not one_file:
            for path in {*place.below()} - {*(parts or read_files(place, place.names()))}:
                gaps.note(f"{source.location}/{printable(path)}", path.rpartition("/")[2], 0)
        source = source if source.claims else replace(source, **vars(read_said(place)))
        inside = source.location + ("/" if ":" in source.location.removeprefix("hf://") else ":")
        apart = [replace(source, id=f"{source.id}/{stem_of(name)}", location=inside + name) for name in parts]
        return apart or [source], gaps

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        found_by = list(pool.map(look, found.sources))
    gaps, each = found.gaps, dict[str, Source]()
    for some, more in found_by:
        gaps = gaps.joined(more) if more != Gaps() else gaps
        for source in some:  # a file that is named beside its repository comes once
            each.setdefault(source.location, source)
    looked = _told_apart(list(each.values()))
    everyone = [*known, *looked]
    names = Names((source.id, source.location) for source in everyone)
    locations = {source.id: source.location for source in everyone}
    sources = []
    for source in looked:
        base = source.base
        for claim in source.claims:
            if claim.file == ADAPTER_CONFIG and base is None:
                match = names.find(claim, source.id)
                base = locations[match.model] if match is not None else None
        sources.append(replace(source, base=base))
    return Found(sources, gaps, found.notes)
