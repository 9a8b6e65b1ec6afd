"""What models say of their origin: cards, configurations.

Three places hold claims: the front matter of README.md (`base_model`, `base_model_relation`), `adapter_config.json`
(`base_model_name_or_path`) and `config.json` (`_name_or_path`). They are text that anybody may write: nothing in them
is executed, nor believed.
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mother.errors import CheckpointError
from mother.io.open import ADAPTER_CONFIG, WEIGHT_FILES
from mother.io.places import HUB_SOURCE, LocalFolder, Place

CARD, CONFIG = "README.md", "config.json"
MOST_BYTES = 1 << 20  # budget: bytes of a card or configuration that are looked at
MOST_FRONT = 1 << 17  # budget: characters of the front matter of a card
NOTHING = ("", "~", "null", "Null", "NULL")  # as YAML writes it
MOST_CHARACTERS = 500  # of the name of a parent

RELATIONS = {  # base_model_relation of a card -> kinds that fit it
    "finetune": ("fine-tune", "lora", "prune", "cast", "copy"),
    "adapter": ("lora", "fine-tune"),
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


def open_place(model: str, location: str) -> Place | None:
    """The folder that a model's card and configuration lie in, or None. Raises CheckpointError."""
    if location.startswith("hf://"):
        match = HUB_SOURCE.fullmatch(location)
        if match is None:
            return None
        from mother.io.hub import open_repository  # the client of the Hub is slow to import
        from mother.io.remote import RemoteFolder

        return RemoteFolder(model, open_repository(model, match["repo"], match["revision"]), match["subfolder"])
    path = Path(location)
    if path.is_dir():
        return LocalFolder(model, path)
    return LocalFolder(model, path.parent) if path.name in WEIGHT_FILES else None


def _read_text(place: Place, name: str) -> str | None:
    try:
        if not place.has(name):
            return None
        file = place.open(name)
        return bytes(file.read([(0, min(file.size, MOST_BYTES))])[0]).decode("utf-8", errors="replace")
    except CheckpointError:
        return None


def _read_object(text: str | None) -> dict[str, Any]:
    try:
        content = json.loads(text) if text else None
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def front_matter(text: str) -> dict[str, Any]:
    """The YAML block at the head of a card, all values as strings; {} where there is none.

    No type but strings is read, no tag is followed and nothing is merged, so that nothing multiplies. Raises ValueError
    where the block is damaged, nested too deeply or too long to be looked at.
    """
    match = re.match(r"\ufeff?\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    if match is None:
        if re.match(r"\ufeff?\s*---[ \t]*\r?\n", text) and len(text) >= MOST_FRONT:
            raise ValueError("its front matter does not end")
        return {}
    if len(match[1]) > MOST_FRONT:
        raise ValueError(f"its front matter has {len(match[1])} characters")
    try:
        content = yaml.load(match[1], Loader=yaml.BaseLoader)  # noqa: S506  builds nothing but text, lists and tables
    except (yaml.YAMLError, TypeError) as error:
        raise ValueError(f"its front matter is damaged: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise ValueError("its front matter is nested too deeply") from None
    return content if isinstance(content, dict) else {}


def _as_claim(file: str, parent: Any, place: Place, relation: Any = None) -> Claim | None:
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
    return Claim(file, parent, known, path)


def read_claims(model: str, location: str) -> tuple[Claim, ...]:
    """All that a model says of its origin, each parent once; nothing where it says nothing or cannot be read."""
    try:
        place = open_place(model, location)
    except CheckpointError:
        place = None
    if place is None:
        return ()
    unread: list[Claim | None] = []
    try:
        card = front_matter(_read_text(place, CARD) or "")
    except ValueError as error:
        card, unread = {}, [Claim(CARD, "", unread=str(error))]
    parents = card.get("base_model")
    parents = parents if isinstance(parents, list) else [parents]
    claims = unread + [_as_claim(CARD, parent, place, card.get("base_model_relation")) for parent in parents[:100]]
    adapter = _read_object(_read_text(place, ADAPTER_CONFIG))
    claims.append(_as_claim(ADAPTER_CONFIG, adapter.get("base_model_name_or_path"), place))
    claims.append(_as_claim(CONFIG, _read_object(_read_text(place, CONFIG)).get("_name_or_path"), place))
    return tuple(claim for claim in claims if claim is not None)
