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
from mother.io.places import HUB_SOURCE, LocalFolder, Place, RemoteFolder

CARD, CONFIG = "README.md", "config.json"
MOST_BYTES = 1 << 20  # budget: bytes of a card or configuration that are looked at

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
    names: tuple[str, ...] = ()  # by which the parent may be known here


def names_of(model: str, location: str) -> list[str]:
    """What a model may be called by others: its id, its repository, its path, and the last part of these."""
    match = HUB_SOURCE.fullmatch(location)
    names = [model, match["repo"]] if match else [model, os.path.realpath(location), location]
    return list(dict.fromkeys(name for name in names if name))


def open_place(model: str, location: str) -> Place | None:
    """The folder that a model's card and configuration lie in, or None. Raises CheckpointError."""
    if location.startswith("hf://"):
        match = HUB_SOURCE.fullmatch(location)
        if match is None:
            return None
        from mother.io.hub import open_repository  # the client of the Hub is slow to import

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


class _PlainLoader(yaml.SafeLoader):
    """Builds nothing but plain values, and follows no aliases, which may multiply without end."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not followed")
        return super().compose_node(parent, index)


def front_matter(text: str) -> dict[str, Any]:
    """The YAML block at the head of a card; {} where there is none or it is damaged."""
    match = re.match(r"\ufeff?\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    if match is None:
        return {}
    try:
        content = yaml.load(match[1], Loader=_PlainLoader)  # noqa: S506  a safe loader, made safer
    except (yaml.YAMLError, ValueError, RecursionError, TypeError):
        return {}
    return content if isinstance(content, dict) else {}


def _as_claim(file: str, parent: Any, place: Place, relation: Any = None) -> Claim | None:
    """A claim, unless it says nothing or names the model itself."""
    if not isinstance(parent, str) or not parent.strip() or len(parent) > 500:
        return None
    parent = "".join(letter if letter.isprintable() else "\ufffd" for letter in parent.strip())
    names = [parent, parent.rstrip("/")]
    own: set[str] = set()
    if isinstance(place, LocalFolder):
        own = {os.path.realpath(place.path), str(place.path)}
        try:
            names.append(os.path.realpath(place.path / Path(parent).expanduser()))
        except (OSError, ValueError, RuntimeError):
            pass
    else:
        own = {place.repository.repo}
    names = list(dict.fromkeys([*names, parent.rstrip("/").rsplit("/", 1)[-1]]))
    if own & set(names):
        return None
    known = relation if isinstance(relation, str) and relation in RELATIONS else None
    return Claim(file, parent, known, tuple(names))


def read_claims(model: str, location: str) -> tuple[Claim, ...]:
    """All that a model says of its origin, each parent once; nothing where it says nothing or cannot be read."""
    try:
        place = open_place(model, location)
    except CheckpointError:
        place = None
    if place is None:
        return ()
    card = front_matter(_read_text(place, CARD) or "")
    parents = card.get("base_model")
    parents = parents if isinstance(parents, list) else [parents]
    claims = [_as_claim(CARD, parent, place, card.get("base_model_relation")) for parent in parents[:100]]
    adapter = _read_object(_read_text(place, ADAPTER_CONFIG))
    claims.append(_as_claim(ADAPTER_CONFIG, adapter.get("base_model_name_or_path"), place))
    claims.append(_as_claim(CONFIG, _read_object(_read_text(place, CONFIG)).get("_name_or_path"), place))
    return tuple(claim for claim in claims if claim is not None)
