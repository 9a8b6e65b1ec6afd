"""Licences that model cards declare, and what changes along a line of descent: facts, no advice.

What a licence asks for is given in the words of this table, each with the text that it was taken from. A licence that
is not in it is "not known here". Nothing is said of whether a licence is valid, or applies to weights at all.
"""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from mother.collection.claims import card_of, front_matter
from mother.collection.find import Source
from mother.errors import escaped
from mother.graph.certainty import sure
from mother.graph.model_graph import ModelGraph
from mother.io.runtime import IN_FLIGHT

LONGEST = 100  # characters of the name of a licence

NONCOMMERCIAL = "forbids commercial use"
SAME = "asks that what is made from it be under the same licence"
NO_CHANGES = "forbids to share what is made from it"
USES = "forbids a list of uses, and asks to pass that list on"
SCALE = "asks those with more than 700 million monthly users to ask for a licence"
OUTPUTS = "forbids to improve other language models with its outputs"
NAME = 'asks that the name of what is made from it begin with "Llama"'


@dataclass(frozen=True)
class Licence:
    """What a licence asks for beyond naming its authors, and where that is written."""

    asks: tuple[str, ...]
    source: str


def _cc(name: str) -> str:
    return f"https://creativecommons.org/licenses/{name}/4.0/legalcode"


RAIL = "https://www.licenses.ai/"
LICENCES = {
    "apache-2.0": Licence((), "https://www.apache.org/licenses/LICENSE-2.0"),
    "mit": Licence((), "https://opensource.org/license/mit"),
    "bsd-3-clause": Licence((), "https://opensource.org/license/bsd-3-clause"),
    "cc0-1.0": Licence((), "https://creativecommons.org/publicdomain/zero/1.0/legalcode"),
    "cc-by-4.0": Licence((), _cc("by")),
    "cc-by-sa-4.0": Licence((SAME,), _cc("by-sa")),
    "cc-by-nc-4.0": Licence((NONCOMMERCIAL,), _cc("by-nc")),
    "cc-by-nc-sa-4.0": Licence((NONCOMMERCIAL, SAME), _cc("by-nc-sa")),
    "cc-by-nc-nd-4.0": Licence((NONCOMMERCIAL, NO_CHANGES), _cc("by-nc-nd")),
    "cc-by-nd-4.0": Licence((NO_CHANGES,), _cc("by-nd")),
    "gpl-3.0": Licence((SAME,), "https://www.gnu.org/licenses/gpl-3.0.html"),
    "agpl-3.0": Licence((SAME,), "https://www.gnu.org/licenses/agpl-3.0.html"),
    "openrail": Licence((USES,), RAIL),
    "creativeml-openrail-m": Licence((USES,), RAIL),
    "bigscience-openrail-m": Licence((USES,), RAIL),
    "llama2": Licence((USES, SCALE, OUTPUTS), "https://ai.meta.com/llama/license/"),
    "llama3": Licence((USES, SCALE, OUTPUTS, NAME), "https://www.llama.com/llama3/license/"),
    "llama3.1": Licence((USES, SCALE, NAME), "https://www.llama.com/llama3_1/license/"),
    "llama3.2": Licence((USES, SCALE, NAME), "https://www.llama.com/llama3_2/license/"),
    "llama3.3": Licence((USES, SCALE, NAME), "https://www.llama.com/llama3_3/license/"),
    "gemma": Licence((USES,), "https://ai.google.dev/gemma/terms"),
}
UNKNOWN = "not known here"


def declared_in(card: str | None) -> str | None:
    """The licence that a card declares, in lower case; None where it declares none or cannot be read."""
    try:
        facts = front_matter(card or "")
    except ValueError:
        return None
    said = facts.get("license")
    if isinstance(said, str) and said.strip().lower() == "other":
        said = facts.get("license_name") or said
    names = said if isinstance(said, list) else [said]
    found = [name.strip().lower() for name in names if isinstance(name, str) and name.strip()]
    return escaped(" and ".join(found))[:LONGEST] or None


def declared(
    sources: Sequence[Source], unread: Collection[str] = (), before: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:
    """The licence of each model whose card declares one.

    Of models on the Hub that are `unread` it is the one that was found `before`; cards on disk are read again.
    """

    def one(source: Source) -> str | None:
        if source.id in unread and source.location.startswith("hf://"):
            return before.get(source.id)
        return declared_in(card_of(source.id, source.location))

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        found = list(pool.map(one, sources))
    return {source.id: licence for source, licence in zip(sources, found) if licence}


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
        words += f", which {', and '.join(entry['asks'])}"
    return f"{words}. The way between them is {sure(entry['probability'])}."


def licence_facts(graph: ModelGraph, licences: Mapping[str, str]) -> dict[str, Any]:
    """All that a report says of licences: what is declared, what changes, what is known of each, with its source."""
    known = {}
    for name in sorted(set(licences.values())):
        entry = LICENCES.get(name)
        asks = None if entry is None else list(entry.asks)
        known[name] = {"asks": asks, "source": entry.source if entry is not None else None}
    return {"declared": dict(licences), "changes": licence_changes(graph, licences), "known": known}
