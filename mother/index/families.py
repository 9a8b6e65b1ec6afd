"""One family of an index as a collection of its own: all that recover.py writes, from the sketches that are kept."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch

from mother.collection.find import Source
from mother.collection.workspace import Recovered, recover_sources
from mother.errors import InputError
from mother.graph.model_graph import standing_for
from mother.index.graph import Found
from mother.index.store import Index

LARGEST = 2000  # budget: models of a family that is recovered whole: what it does to all pairs is quadratic


def check_families(index: Index, models: Iterable[str]) -> None:
    """Raises InputError where an index has no model of these names, or no sketches to recover families from."""
    known = index.known()
    for model in models:
        if model not in known:
            raise InputError(f"no model of {index.folder} is called {model!r}.")
    if not index.keep:
        raise InputError(f"{index.folder} keeps no sketches. Build one without --no-keep.")


def recover_family(index: Index, found: Found, model: str, folder: Path, error: float) -> Recovered:
    """The family of a model, recovered in `folder` without reading a model. Raises InputError where that cannot be."""
    check_families(index, [model])
    names = standing_for(found.nodes)
    if model not in names:
        raise InputError(f"{model} was left out of the graph. {found.left_out.get(model, '')}".strip())
    tree = found.nodes[names[model]]["tree"]
    members = {one for one, node in names.items() if found.nodes[node]["tree"] == tree}
    if len(members) > LARGEST:
        raise InputError(f"the family of {model} has {len(members)} models, and {LARGEST} are recovered whole at most.")
    known = []
    (folder / "models").mkdir(parents=True, exist_ok=True)
    for row in index.rows(["id", "location", "base", "state", "key"]):
        if row["id"] in members:
            known.append((Source(row["id"], row["location"], row["base"], (), row["state"]), row["key"]))
            for suffix in (".safetensors", ".json"):
                _lend(index.sketches / f"{row['key']}{suffix}", folder / "models" / f"{row['key']}{suffix}")
    return recover_sources([], folder, torch.device("cpu"), error, index.entries, known=known)


def _lend(kept: Path, place: Path) -> None:
    """The same file at another place: a link where the disk has them, else a copy."""
    if place.exists() or not kept.exists():
        return
    try:
        os.link(kept, place)
    except OSError:
        shutil.copyfile(kept, place)
