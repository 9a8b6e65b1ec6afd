"""What models say of their origin: cards, configurations.

Three places hold claims: the front matter of README.md (`base_model`, `base_model_relation`), `adapter_config.json`
(`base_model_name_or_path`) and `config.json` (`_name_or_path`). They are text that anybody may write: nothing in them
is executed, nor believed.
"""

import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from mother.errors import CheckpointError, escaped
from mother.io.open import ADAPTER_CONFIG, WEIGHT_FILES
from mother.io.places import HUB_SOURCE, LocalFolder, Place

CARD, CONFIG = "README.md", "config.json"
PARENT = "base_model"  # of a card
MOST_BYTES = 1 << 20  # budget: bytes of a card or configuration that are looked at
MOST_FRONT = 1 << 17  # budget: characters of the front matter of a card
NOTHING = ("", "~", "null", "Null", "NULL")  # as YAML writes it
MOST_CHARACTERS = 500  # of the name of a parent
MOST_PARENTS = 100  # of a card that are looked at
MOST_LICENCE = 100  # characters of the name of a licence

RELATIONS = {  # base_model_relation of a card -> kinds that fit it
    "finetune": ("fine-tune", "lora", "adapter", "prune", "cast", "copy"),
    "adapter": ("adapter", "lora", "fine-tune"),
    "merge": ("merge",),
    "quantized": ("quantize", "cast", "copy"),
}


@dataclass(frozen=True)
class Claim:
    """A model says that it came from another one."""

    file: str  # that says so
    parent: str  # as it is written there
    relation: str | None = None  # one of RELATIONS, or None
    path: str | None = None  # what it would be on this machine, if it is a path
    unread: str | None = None  # why what the file says could not be read; `parent` is empty then
    line: int | None = None  # of the file, counted from 1, where the parent is named

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Claim":
        """A claim from its fields as JSON values. Raises TypeError or ValueError where they are none."""
        claim = cls(**content)
        texts = (claim.relation, claim.path, claim.unread)
        if not isinstance(claim.file, str) or not isinstance(claim.parent, str):
            raise ValueError("a claim has no file or no parent")
        if not all(text is None or isinstance(text, str) for text in texts):
            raise ValueError(f"a claim in {claim.file} holds something else than text")
        if claim.relation is not None and claim.relation not in RELATIONS:
            raise ValueError(f"a claim in {claim.file} has the relation {claim.relation!r}")
        if claim.line is not None and type(claim.line) is not int:
            raise ValueError(f"a claim in {claim.file} has no line number")
        return claim


def open_place(model: str, location: str) -> Place | None:
    """The folder that a model's card and configuration lie in, or None. Raises CheckpointError."""
    if location.startswith("hf://"):
        match = HUB_SOURCE.fullmatch(location)
        if match is None:
            return None
        from mother.io.hub import open_repository  # the client of the Hub is slow to import
        from mother.io.remote import RemoteFolder

        repository, folder = open_repository(model, match["repo"], match["revision"]), match["subfolder"]
        if folder in repository.files:  # one file: the card is that of the folder
            folder = folder.rpartition("/")[0] or None
        return RemoteFolder(model, repository, folder)
    path = Path(location)
    if path.is_dir():
        return LocalFolder(model, path)
    return LocalFolder(model, path.parent) if path.name in WEIGHT_FILES else None


def _read_text(place: Place, name: str) -> str | None:
    try:
        if not place.has(name):
            return None
        file = place.open(name)
        return file.head(min(file.size, MOST_BYTES)).decode("utf-8", errors="replace")
    except CheckpointError:
        return None


def _read_object(text: str | None) -> dict[str, Any]:
    try:
        content = json.loads(text) if text else None
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


class _Lines(yaml.BaseLoader):
    """Builds nothing but text, lists and tables, and knows the place of each value: of an alias, where it is used."""

    def __init__(self, text: str):
        super().__init__(text)
        self.places: dict[tuple[int, int], tuple[int, bool]] = {}  # (parent, index) -> (character, is an alias)

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next node, as the child `index` of its parent: a number in a list, a key in a table."""
        if parent is not None:
            place = index if isinstance(index, int) else id(index)
            self.places[id(parent), place] = (self.peek_event().start_mark.index, self.check_event(yaml.AliasEvent))
        return super().compose_node(parent, index)

    def places_of(self, root: Any, name: str) -> list[int]:
        """The character at which each value under a name of a table begins."""
        pairs = root.value if isinstance(root, yaml.MappingNode) else []
        found = next(((key, value) for key, value in reversed(pairs) if key.value == name), None)  # the last one counts
        if found is None:
            return []
        key, value = found
        place, alias = self.places[id(root), id(key)]
        if alias or not isinstance(value, yaml.SequenceNode):
            return [place] * (len(value.value) if isinstance(value, yaml.SequenceNode) else 1)
        return [self.places[id(value), at][0] for at in range(len(value.value))]


def front_matter(text: str) -> dict[str, Any]:
    """The YAML block at the head of a card, all values as strings; {} where there is none.

    No type but strings is read, no tag is followed and nothing is merged, so that nothing multiplies. Raises ValueError
    where the block is damaged, nested too deeply or too long to be looked at.
    """
    return _front_matter(text)[0]


def _front_matter(text: str) -> tuple[dict[str, Any], list[int]]:
    """The same, and the line of the card that each of the parents stands in."""
    match = re.match(r"\ufeff?\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    if match is None:
        if re.match(r"\ufeff?\s*---[ \t]*\r?\n", text) and len(text) >= MOST_FRONT:
            raise ValueError("its front matter does not end")
        return {}, []
    if len(match[1]) > MOST_FRONT:
        raise ValueError(f"its front matter has {len(match[1])} characters")
    try:
        loader = _Lines(match[1])
        root = loader.get_single_node()
        content = loader.construct_document(root) if root is not None else None
        places = loader.places_of(root, PARENT)
    except (yaml.YAMLError, TypeError) as error:
        raise ValueError(f"its front matter is damaged: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise ValueError("its front matter is nested too deeply") from None
    if not isinstance(content, dict):
        return {}, []
    return content, [text.count("\n", 0, match.start(1) + place) + 1 for place in places]


_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]]', re.DOTALL)
_COLON = re.compile(r"\s*:")


def _line_of(text: str, name: str) -> int | None:
    """The line of a JSON object, which can be read, in which one of its own names stands: the last one counts."""
    depth, line = 0, None
    for match in _STRING_OR_BRACKET.finditer(text):
        if match[0] in "{[":
            depth += 1
        elif match[0] in "}]":
            depth -= 1
        elif depth == 1 and _COLON.match(text, match.end()) and json.loads(match[0]) == name:
            line = text.count("\n", 0, match.start()) + 1
    return line


def _as_claim(file: str, parent: Any, place: Place, relation: Any = None, line: int | None = None) -> Claim | None:
    """A claim, unless it says nothing or names the model itself."""
    if not isinstance(parent, str) or parent.strip() in NOTHING or len(parent) > MOST_CHARACTERS:
        return None
    parent = "".join(letter if letter.isprintable() else "\ufffd" for letter in parent.strip())
    path = None
    if isinstance(place, LocalFolder):
        try:
            path = os.path.realpath(place.path / Path(parent).expanduser())
        except (OSError, ValueError, RuntimeError):
            pass
        if path == os.path.realpath(place.path):
            return None
    elif parent == place.repository.repo:
        return None
    known = relation if isinstance(relation, str) and relation in RELATIONS else None
    return Claim(file, parent, known, path, line=line)


def place_of(model: str, location: str) -> Place | None:
    """The same, and None where it cannot be opened: what opens the weights says why."""
    try:
        return open_place(model, location)
    except CheckpointError:
        return None


def card_of(model: str, location: str) -> str | None:
    """The beginning of a model's card, or None where there is none that can be read."""
    place = place_of(model, location)
    return _read_text(place, CARD) if place is not None else None


@dataclass(frozen=True)
class Said:
    """What a model says of itself."""

    claims: tuple[Claim, ...] = ()
    licence: str | None = None


def declared_licence(card: dict[str, Any]) -> str | None:
    """The licence that the front matter of a card declares, in lower case; None where it declares none."""
    said = card.get("license")
    if isinstance(said, str) and said.strip().lower() == "other":
        said = card.get("license_name") or said
    names = said if isinstance(said, list) else [said]
    found = [name.strip().lower() for name in names if isinstance(name, str) and name.strip()]
    return escaped(" and ".join(found))[:MOST_LICENCE] or None


def read_said(place: Place) -> Said:
    """All that a model says of its origin, each parent once, and its licence; nothing where it says nothing."""
    claims: list[Claim | None] = []
    try:
        card, lines = _front_matter(_read_text(place, CARD) or "")
    except ValueError as error:
        card, lines = {}, []
        claims.append(Claim(CARD, "", unread=str(error)))
    said = card.get(PARENT)
    parents = said if isinstance(said, list) else [said]
    for parent, line in zip(parents[:MOST_PARENTS], lines):
        claims.append(_as_claim(CARD, parent, place, card.get("base_model_relation"), line))
    for file, key in ((ADAPTER_CONFIG, "base_model_name_or_path"), (CONFIG, "_name_or_path")):
        text = _read_text(place, file)
        claim = _as_claim(file, _read_object(text).get(key), place)
        claims.append(replace(claim, line=_line_of(text or "", key)) if claim is not None else None)
    return Said(tuple(claim for claim in claims if claim is not None), declared_licence(card))


def read_claims(place: Place) -> tuple[Claim, ...]:
    """What it says of its origin alone."""
    return read_said(place).claims
