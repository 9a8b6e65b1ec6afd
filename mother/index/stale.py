"""What an index holds of models that are no longer there, and of sketches that none of its models has any more.

An index keeps what it has read: a model may be removed once it is in it. Models leave it that a folder no longer has
which is named again, those that were moved, and, if asked for, all that are not named.
"""

import hashlib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from mother.collection.find import Source
from mother.index.store import Index

ON_HUB = "hf://"


def place_of(location: str) -> str:
    """A location such that equal ones are the same model: of files where links lead to."""
    return location if location.startswith(ON_HUB) else os.path.realpath(location)


def no_longer_there(
    known: Mapping[str, Mapping[str, Any]], sources: Sequence[Source], named: Iterable[str], only: bool = False
) -> set[str]:
    """Ids of the models that the folders in `named` had and have no longer; with `only` all but `sources`.

    A folder in which no model is found now may be on a disk that is not there: what it had stays.
    """
    now = {place_of(source.location) for source in sources}
    rest = {one: place for one, row in known.items() if (place := place_of(row["location"])) not in now}
    if only:
        return set(rest)
    folders = {os.path.join(os.path.realpath(os.path.expanduser(name)), "") for name in named}
    has = {folder for folder in folders if any(place.startswith(folder) for place in now)}
    return {one for one, place in rest.items() if any(place.startswith(folder) for folder in has)}


def moved_away(index: Index, known: Mapping[str, Mapping[str, Any]], named: Collection[str]) -> set[str]:
    """Ids of models that are at another place now: their files are gone, and a `named` one has all their tensors."""
    gone = {
        one
        for one, row in known.items()
        if one not in named and not row["location"].startswith(ON_HUB) and not os.path.lexists(row["location"])
    }
    content: dict[str, bytes] = {}
    for table in index.tables(["id", "group", "tensors"]) if gone else ():
        for one, group, tensors in zip(*(table[name].to_pylist() for name in ("id", "group", "tensors"))):
            if one in gone or one in named:
                content[one] = hashlib.sha256(repr((group, tensors)).encode()).digest()
    here = {content[one] for one in named if one in content}
    return {one for one in gone if content.get(one) in here}


def remove_sketches(index: Index, keys: Collection[str | None]) -> None:
    """Remove the sketches of other keys: those of models that have changed or gone."""
    for path in index.sketches.iterdir() if index.sketches.is_dir() else ():
        if path.suffix in (".safetensors", ".json") and path.stem not in keys:
            path.unlink(missing_ok=True)
