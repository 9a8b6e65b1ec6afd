"""Which model of a collection a claim means: by owner and name, by its whole path, never by a part of a name alone.

The owner of a model on the Hub is known, and so is that of a folder of the Hugging Face cache. The owner of any other
folder is not: such a model may be the one that is meant, and the answer says that its owner is unknown.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mother.collection.claims import CONFIG, Claim
from mother.io.open import WEIGHT_FILES
from mother.io.places import HUB_SOURCE

_CACHED = re.compile(r"models--(?P<owner>[^/\\]+?)--(?P<name>[^/\\]+)")
_ADDRESS = re.compile(r"(?:hf://|https?://(?:www\.)?(?:huggingface\.co|hf\.co)/)")


@dataclass(frozen=True)
class Match:
    """The model that a claim means, and whether that is sure: its owner, or its whole path, is known to be right."""

    model: str
    sure: bool


@dataclass(frozen=True)
class _Known:
    """What is known of where a model comes from."""

    model: str
    repo: str | None  # owner/name, where the owner is known
    path: str | None  # absolute, of what is on disk
    parts: tuple[str, ...]  # of the path; a weight file of a usual name stands for its folder


def _known(model: str, location: str) -> _Known:
    match = HUB_SOURCE.fullmatch(location)
    if match is not None:
        return _Known(model, match["repo"], None, ())
    path = Path(os.path.realpath(location))
    place = path.parent if path.name in WEIGHT_FILES else path
    owner = next((found for part in Path(location).parts if (found := _CACHED.fullmatch(part))), None)
    repo = f"{owner['owner']}/{owner['name']}" if owner is not None else None
    parts = (*place.parts[:-1], place.stem if place.is_file() else place.name)
    return _Known(model, repo, str(path), parts)


class Names:
    """The models of a collection, to be found by what others call them."""

    def __init__(self, places: Iterable[tuple[str, str]]):
        """`places` are (id, location) of each model."""
        self.by_path: dict[str, list[_Known]] = defaultdict(list)
        self.by_repo: dict[str, list[_Known]] = defaultdict(list)
        self.by_name: dict[str, list[_Known]] = defaultdict(list)  # folders whose owner is unknown, by their own name
        for model, location in places:
            one = _known(model, location)
            if one.path is not None:
                self.by_path[one.path].append(one)
            if one.repo is not None:
                self.by_repo[one.repo].append(one)
            elif one.parts:
                self.by_name[one.parts[-1]].append(one)

    def find(self, claim: Claim, of: str) -> Match | None:
        """The model that a claim of the model `of` means, never that one itself; None where none here is meant.

        A configuration's path is one of somebody's machine: it must agree with all of its parts.
        """
        said = _ADDRESS.sub("", claim.parent.strip()).strip("/")
        exact = self.by_path.get(claim.path or "", []) + self.by_repo.get(said, [])
        for one in exact:
            if one.model != of:
                return Match(one.model, True)
        parts = tuple(part for part in said.split("/") if part not in ("", ".", ".."))
        if not parts:
            return None
        local = [one for one in self.by_name.get(parts[-1], ()) if one.model != of]
        whole = [one for one in local if one.parts[-len(parts) :] == parts]
        if len(whole) == 1:
            return Match(whole[0].model, False)
        if whole or claim.file == CONFIG or len(parts) != 2:
            return None
        # owner/name, and a folder called so that nobody says the owner of.
        named = [one for one in local if not self._has_owner(one)]
        return Match(named[0].model, False) if len(named) == 1 else None

    @staticmethod
    def _has_owner(one: _Known) -> bool:
        """Whether the id itself names an owner: two folders of one name have those above in front."""
        return "/" in one.model
