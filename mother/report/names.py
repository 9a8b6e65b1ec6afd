"""Which model of a result a reader means."""

import os
from difflib import get_close_matches

from mother.errors import InputError, escaped
from mother.graph.model_graph import ModelGraph
from mother.report.kept import Evidence


def _all_names(evidence: Evidence) -> list[str]:
    return [model for group in evidence.groups for model in group.models] or list(evidence.locations)


def find_model(graph: ModelGraph, evidence: Evidence, name: str) -> str:
    """The id of the model that is meant: an id, a unique ending of one, or where the model lies.

    Raises InputError where it was left out, where several fit, or none does, with the ids that are nearest.
    """
    known = _all_names(evidence)
    if name in known or (name in graph.nodes and not graph.nodes[name].get("hidden")):
        return name
    if name in graph.left_out:
        raise InputError(f"{escaped(name)} was left out. {graph.left_out[name]}")
    place = name if name.startswith("hf://") else os.path.abspath(os.path.expanduser(name)) if name else ""
    at = [model for model, location in evidence.locations.items() if place == location and model in known]
    if len(at) == 1:
        return at[0]
    whole = [model for model in known if model.endswith(f"/{name}")]  # a part of the id, rather than of a word
    close = whole or [model for model in known if name and model.endswith(name)]
    if len(close) == 1:
        return close[0]
    if close:
        some = ", ".join(map(escaped, close[:3]))
        raise InputError(f"{len(close)} models end in {escaped(name)!r}: {some}. Name one of them.")
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    lower = [model for model in known if name and name.lower() in model.lower()]
    hints = list(dict.fromkeys([*lower[:3], *near]))[:3]
    hint = f" Do you mean {' or '.join(map(escaped, hints))}?" if hints else ""
    raise InputError(f"no model here is called {escaped(name)!r}.{hint} Ids are those that the tree shows.")
