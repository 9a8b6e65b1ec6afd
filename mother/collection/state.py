"""What a result folder says of its collection, so that models can be added, and that nothing is made twice.

`collection.json` names the models, where they are, what they claim, and the settings. `run.json` is written when all
files of a result are there: it says from which files, settings and code they were made.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mother.collection.find import Source
from mother.collection.gaps import Gaps, aside_of
from mother.errors import CheckpointError, InputError, ManifestError
from mother.evidence.keys import sketch_key
from mother.graph.model_graph import GRAPH, ModelGraph, read_model_graph
from mother.io.files import sha256, write_json
from mother.io.open import open_all
from mother.io.runtime import code_digest, versions

FORMAT = "mother-collection/1"
STATE, RUN = "collection.json", "run.json"
AUDIT, EVIDENCE = "audit.json", "evidence.safetensors"
DIGESTED = (GRAPH, AUDIT, EVIDENCE)  # files of a result that are read again


@dataclass(frozen=True)
class State:
    """The models of a result, the key of each one's sketch (None: it could not be used), and the settings."""

    sources: list[Source]
    keys: dict[str, str | None]
    error: float
    sketch: int
    gaps: Gaps = field(default_factory=Gaps)  # what was found beside the models

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        sources = [{**source.to_json(), "sketch": self.keys.get(source.id)} for source in self.sources]
        return {"error": self.error, "sketch": self.sketch, "sources": sources, "gaps": self.gaps.to_json()}


def write_state(folder: Path, state: State) -> None:
    """Keep which models a result is of."""
    write_json(folder / STATE, {"format": FORMAT, **state.to_json()})


def read_state(folder: Path) -> State:
    """What `write_state` kept in a result folder. Raises InputError where there is none."""
    try:
        content = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f'it does not say "format": "{FORMAT}"')
        sources = [Source.from_json({k: v for k, v in one.items() if k != "sketch"}) for one in content["sources"]]
        keys = {source.id: one["sketch"] for source, one in zip(sources, content["sources"])}
        if any(key is not None and not (isinstance(key, str) and key.isalnum()) for key in keys.values()):
            raise ValueError("a sketch has an odd name")
        if not sources or len(keys) < len(sources):
            raise ValueError("it names no model, or one twice")
        if not (isinstance(content["error"], float) and 0 < content["error"] < 1):
            raise ValueError("its error level is none")
        if type(content["sketch"]) is not int or content["sketch"] < 1024:
            raise ValueError("its size of a sketch is none")
        if not all(map(_is_sound, sources)):
            raise ValueError("a value is of a wrong type")
        gaps = Gaps.from_json(content["gaps"])
        return State(sources, keys, content["error"], content["sketch"], gaps)
    except FileNotFoundError:
        raise InputError(f"{folder} holds no result. Run `python recover.py MODEL ... --out {folder}` first.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as reason:
        remedy = f"Run `python recover.py MODEL ... --out {folder}` again."
        raise InputError(f"{folder / STATE} cannot be used ({reason}). {remedy}") from None


def _is_sound(source: Source) -> bool:
    """Whether the values of a source that was kept are of their types."""
    values = [value for claim in source.claims for value in vars(claim).values()]
    texts = isinstance(source.id, str) and isinstance(source.location, str) and isinstance(source.base, str | None)
    return texts and all(isinstance(value, str | int | None) for value in values)


def collection_facts(state: State, title: str) -> dict[str, Any]:
    """What a result was made from: equal facts give equal files."""
    return {"code": code_digest(), "versions": versions(), "title": title, **state.to_json()}


def finish_result(folder: Path, facts: dict[str, Any], files: Sequence[str]) -> None:
    """Say that all files of a result are there, and what those hold that are read again."""
    digests = {name: sha256(folder / name) for name in DIGESTED if name in files}
    write_json(folder / RUN, {"facts": facts, "files": list(files), "digests": digests})


def begin_result(folder: Path) -> None:
    """Take back what `finish_result` said: files are about to change."""
    (folder / RUN).unlink(missing_ok=True)


def kept_result(
    folder: Path, sources: Sequence[Source], gaps: Gaps, error: float, sketch: int, title: str, audited: bool
) -> ModelGraph | None:
    """The Model Graph in a folder, where all of it was made from these very models, settings and code; else None.

    Models are opened, headers only; none of their weights is read.
    """
    try:
        kept = json.loads((folder / RUN).read_text(encoding="utf-8"))
        facts, files = kept["facts"], set(kept["files"])
        whole = all((folder / name).exists() for name in files)
        digests = {name: digest for name, digest in kept["digests"].items() if name in DIGESTED}
        whole &= all(sha256(folder / name) == digest for name, digest in digests.items())
        before = read_state(folder)  # what adding and explaining need belongs to the result
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not whole or not {GRAPH, EVIDENCE} <= digests.keys() or (audited and AUDIT not in digests):
        return None
    opened, _ = open_all(source.opened_by() for source in sources)
    keys: dict[str, str | None] = {source.id: None for source in sources}
    try:
        keys |= {checkpoint.model: sketch_key(checkpoint, sketch) for checkpoint in opened}
        # A model that opens and still was left out is one whose weights could not be used: try again.
        state = State(list(sources), keys, error, sketch, gaps.joined(aside_of(opened)))
        same = state.to_json() == before.to_json() and json.loads(json.dumps(collection_facts(state, title))) == facts
        return read_model_graph(folder / GRAPH) if same else None
    except (CheckpointError, ManifestError):
        return None
