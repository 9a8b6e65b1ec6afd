"""Licences that model cards declare, and what changes along a line of descent: facts, no advice.

What a licence asks for is given in the words of `licence_table`, each with the section that says so. A licence that is
not in it is "not known here", and so is one that names a family of texts, such as "openrail". Nothing is said of
whether a licence is valid, or applies to weights at all.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from mother.collection.licence_table import LICENCES
from mother.graph.certainty import sure
from mother.graph.model_graph import ModelGraph

UNKNOWN = "not known here"


def _above(up: Mapping[str, Sequence[tuple[str, float]]], model: str) -> list[tuple[str, float]]:
    """All ancestors of a node, nearest first, each with the least probability on the way to it."""
    found: dict[str, float] = {}
    queue = deque([(model, 1.0)])
    while queue:
        at, least = queue.popleft()
        for parent, probability in up.get(at, ()):
            if parent not in found and parent != model:
                found[parent] = min(least, probability)
                queue.append((parent, found[parent]))
    return list(found.items())


def licence_changes(graph: ModelGraph, licences: Mapping[str, str]) -> list[dict[str, Any]]:
    """What each model's licence changes against its nearest ancestors that declare one, and what theirs ask beyond it.

    `asks` are those of the ancestor's licence that the model's own does not have, None where one of the two is not in
    the table. `probability` is the least of an edge and its arrow on the way between the two.
    """
    up: dict[str, list[tuple[str, float]]] = {}
    for edge in graph.edges:
        sure_by = min(float(edge.attributes.get("adjacency", 1.0)), float(edge.attributes.get("arrow", 1.0)))
        up.setdefault(edge.child, []).append((edge.parent, sure_by))
    found = []
    for node, facts in graph.nodes.items():
        if facts.get("hidden"):  # nobody can say what it declares
            continue
        above = _above(up, node)
        for model in (node, *facts.get("aliases", ())):
            own, told, first = licences.get(model), set(), True
            for parent, probability in above:
                theirs = licences.get(parent)
                if theirs is None:
                    continue
                asks = LICENCES[theirs].asks if theirs in LICENCES else None
                has = LICENCES[own].asks if own in LICENCES else () if own is None else None
                more = None if asks is None or has is None else [one for one in asks if one not in {*has, *told}]
                if (first and own != theirs) or more:
                    entry = {"model": model, "licence": own, "ancestor": parent, "ancestor_licence": theirs}
                    entry |= {"asks": more, "probability": round(probability, 4)}
                    found.append(entry | {"words": _words(entry)})
                told |= set(asks or ())
                first = False
    return found


def _words(entry: Mapping[str, Any]) -> str:
    own = f"declares {entry['licence']}" if entry["licence"] else "declares no licence"
    words = f"{entry['model']} {own}; its ancestor {entry['ancestor']} declares {entry['ancestor_licence']}"
    if entry["asks"] is None:
        names = [name for name in (entry["licence"], entry["ancestor_licence"]) if name and name not in LICENCES]
        words += f" (what {' and '.join(names)} asks for is {UNKNOWN})"
    elif entry["asks"]:
        asks = LICENCES[entry["ancestor_licence"]].asks
        words += f", which {', and '.join(f'{one} (section {asks[one]})' for one in entry['asks'])}"
    return f"{words}. The way between them is {sure(entry['probability'])}."


def licence_facts(graph: ModelGraph, licences: Mapping[str, str]) -> dict[str, Any]:
    """All that a report says of licences: what is declared, what changes, and what each asks, with its section."""
    known = {}
    for name in sorted(set(licences.values())):
        entry = LICENCES.get(name)
        asks = None if entry is None else dict(entry.asks)
        known[name] = {"asks": asks, "source": entry.source if entry is not None else None}
    return {"declared": dict(licences), "changes": licence_changes(graph, licences), "known": known}
