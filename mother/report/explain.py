"""What is known of two models of a result, or of one and its ancestors, from what is kept."""

from collections import deque
from typing import Any

from mother.errors import InputError
from mother.graph.certainty import KNOWN, percent, sure
from mother.graph.model_graph import UNKNOWN_BASES, Edge, ModelGraph, standing_for
from mother.report.kept import Evidence, GroupEvidence
from mother.report.names import find_model
from mother.report.reasons import reasons, ruled_out, strongest, wrong_if
from mother.report.words import sentence

ALIKE = 0.5  # share of the weights that two models must have in equal shapes to be compared
TRAINED = ("relatedness", "distance", "compared", "equal", "layers_changed", "layers_compared")


def told(
    group: GroupEvidence | None, graph: ModelGraph, edge: Edge, parents: list[str] | None = None
) -> dict[str, Any]:
    """All that is said of an edge: its sentence, its reasons, its figures, and what would refute it.

    `parents` are all of the child, where they are known already.
    """
    if parents is None:
        parents = sorted(one.parent for one in graph.edges if one.child == edge.child)
    facts = dict(edge.attributes)
    if facts.get("kind") == "merge":
        facts["parents"] = parents
    figures: dict[str, Any] = {}
    if group is not None and edge.parent in group.place and edge.child in group.place:
        figures = group.pair(edge.parent, edge.child)
    words = sentence(facts, edge.parent, edge.child, parents, bool(graph.nodes[edge.child].get("hidden")))
    by = strongest(facts, figures, edge.parent, edge.child)
    return {
        "summary": f"{words} {by}".strip(),
        "why": reasons(facts, figures, edge.parent, edge.child),
        "wrong_if": wrong_if(facts, figures, edge.parent, edge.child),
        "evidence": took_part(figures, facts.get("kind")),
    }


def took_part(figures: dict[str, Any], kind: str | None = "fine-tune") -> dict[str, Any]:
    """Those figures of a pair that bear on what is said: no newness where an exact relation settles it."""
    if kind in ("fine-tune", "lora"):
        return figures
    found = {name: value for name, value in figures.items() if name in TRAINED}
    layers = [{name: row[name] for name in ("layer", "change", "rank")} for row in figures.get("layers", ())]
    return found | ({"layers": layers} if layers else {})


def _unrelated(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: figures[name] for name in ("relatedness", "distance", "compared")}


def explain(graph: ModelGraph, evidence: Evidence, one: str, other: str) -> dict[str, Any]:
    """All that is known of two models of a result: whether they are related, how, which came first, how sure.

    Raises InputError where one of them is not in it.
    """
    one, other = find_model(graph, evidence, one), find_model(graph, evidence, other)
    result: dict[str, Any] = {"models": [one, other]}
    if one == other:
        raise InputError(f"{one} is one model: name two.")
    place = standing_for(graph.nodes)
    nodes = [place.get(model, model) for model in (one, other)]
    for edge in graph.edges:
        if edge.attributes.get("kind") == "adapter" and {edge.parent, edge.child} == set(nodes):
            ends = {"parent": edge.parent, "child": edge.child, "edge": edge.attributes}
            return result | {"related": True} | ends | told(None, graph, edge)
    group = evidence.group_of(one)
    if not evidence.groups:
        return result | _by_graph(graph, nodes)
    if None in (group, evidence.group_of(other)):
        return result | _of_adapters(graph, nodes)
    if group is not evidence.group_of(other):
        return result | {"related": None, "summary": "They cannot be compared: their weights have other shapes."}
    if nodes[0] == nodes[1]:
        return result | {"related": True, "summary": f"Their weights are equal: {one} and {other} are copies."}
    if graph.nodes[nodes[0]].get("tree") != graph.nodes[nodes[1]].get("tree"):
        figures = _unrelated(group.pair(*nodes))
        if figures["compared"] < ALIKE:
            share = percent(figures["compared"])
            summary = f"They cannot be compared: only {share} of their weights have equal names and shapes."
            return result | {"related": None, "summary": summary, "evidence": figures}
        z = figures["relatedness"]
        summary = f"No sign that they are related: z = {z:.1f}, and models initialised independently have 0 ± 1."
        return result | {"related": False, "summary": summary, "evidence": figures}
    for edge in graph.edges:
        if {edge.parent, edge.child} == set(nodes):
            ends = {"parent": edge.parent, "child": edge.child, "edge": edge.attributes}
            return result | {"related": True} | ends | told(group, graph, edge)
    return result | {"related": True} | _relatives(graph, group, nodes)


def _of_adapters(graph: ModelGraph, nodes: list[str]) -> dict[str, Any]:
    """What is known of two models of which one is an adapter without its base: there are no pairs with these."""
    facts = [graph.nodes[node] for node in nodes]
    if facts[0].get("tree") == facts[1].get("tree"):
        return {"related": True} | _relatives(graph, None, nodes)
    for node, one in zip(nodes, facts):
        if one.get("group") == UNKNOWN_BASES:
            summary = f"Nothing is known of the two: {node} is an adapter of an unknown base."
            return {"related": None, "summary": summary}
    bases = {edge.child: edge.parent for edge in graph.edges if edge.attributes.get("kind") == "adapter"}
    adapter = next(node for node in nodes if node in bases)
    family = f"the update of {adapter} belongs to the family of {bases[adapter]}"
    return {"related": False, "summary": f"No sign that they are related: {family}."}


def _by_graph(graph: ModelGraph, nodes: list[str]) -> dict[str, Any]:
    """What the graph alone says of two models, where there are too many for evidence on pairs to be kept."""
    if nodes[0] == nodes[1]:
        return {"related": True, "summary": "Their weights are equal: they are copies."}
    if graph.nodes[nodes[0]].get("tree") != graph.nodes[nodes[1]].get("tree"):
        groups = {graph.nodes[node].get("group") for node in nodes}
        if len(groups) == 2:
            return {"related": None, "summary": "They were not compared: their matrices have other names or shapes."}
        summary = "They are in different trees: no relation was found. Evidence on pairs of so many models is not kept."
        return {"related": None, "summary": summary}
    for edge in graph.edges:
        if {edge.parent, edge.child} == set(nodes):
            ends = {"parent": edge.parent, "child": edge.child, "edge": edge.attributes}
            return {"related": True} | ends | told(None, graph, edge)
    return {"related": True} | _relatives(graph, None, nodes)


def _way(ways: dict[str, list[str]], start: str, end: str) -> list[str]:
    """The shortest way between two nodes, [] where there is none."""
    before: dict[str, str | None] = {start: None}
    queue = deque([start])
    while queue and end not in before:
        at = queue.popleft()
        for there in ways.get(at, ()):
            if there not in before:
                before[there] = at
                queue.append(there)
    if end not in before:
        return []
    path: list[str] = []
    node: str | None = end
    while node is not None:
        path.append(node)
        node = before[node]
    return path[::-1]


def _relatives(graph: ModelGraph, group: GroupEvidence | None, nodes: list[str]) -> dict[str, Any]:
    """Two models of one family without an edge between them."""
    down: dict[str, list[str]] = {}
    both: dict[str, list[str]] = {}
    for edge in graph.edges:
        down.setdefault(edge.parent, []).append(edge.child)
        both.setdefault(edge.parent, []).append(edge.child)
        both.setdefault(edge.child, []).append(edge.parent)
    for parent, child in (nodes, nodes[::-1]):
        if path := _way(down, parent, child):
            summary = f"{child} descends from {parent}: {' -> '.join(path)}."
            break
    else:
        path = _way(both, *nodes)
        above = next((model for model in path if all(one == model or _way(down, model, one) for one in path)), None)
        summary = f"They are relatives, neither of the other: {' - '.join(path)}"
        summary += f"; both come from {above}." if above else "."
    arrows = {(edge.parent, edge.child): edge.attributes.get("arrow", 1.0) for edge in graph.edges}
    on_it = [arrows[ends] for pair in zip(path, path[1:]) for ends in (pair, pair[::-1]) if ends in arrows]
    if min(on_it) < KNOWN:
        summary += f" The least known arrow on the way is {sure(min(on_it))}."
    if group is None:
        return {"path": path, "summary": summary, "adjacency": None}
    adjacency = group.adjacency(*nodes)
    figures = group.pair(*nodes)  # as they were named
    found = {"path": path, "summary": summary, "evidence": figures, "why": ruled_out(figures, *nodes)}
    return found | {"adjacency": round(adjacency, 4) if adjacency is not None else None}


def lineage(graph: ModelGraph, evidence: Evidence, name: str) -> dict[str, Any]:
    """The line of descent of one model, from itself to its root: at each step the parent that counts most.

    Raises InputError where the model is not in the result.
    """
    model = find_model(graph, evidence, name)
    first = standing_for(graph.nodes).get(model, model)
    node, steps, seen = first, [], set()
    into: dict[str, list[Edge]] = {}
    for edge in graph.edges:
        into.setdefault(edge.child, []).append(edge)
    while node in into and node not in seen:
        seen.add(node)
        edges = sorted(into[node], key=lambda edge: (-_weight(edge), edge.parent))
        said = told(evidence.group_of(node), graph, edges[0])
        others = [edge.parent for edge in edges[1:]]
        steps.append({"parent": edges[0].parent, "child": node, "other_parents": others, **edges[0].attributes, **said})
        node = edges[0].parent
    facts = graph.nodes[node]
    if facts.get("group") == UNKNOWN_BASES and not facts.get("hidden"):  # its base is, and nobody knows which that is
        facts = facts | {"root": None}
    return {
        "model": model,
        "copies": [one for one in (first, *graph.nodes[first].get("aliases", ())) if one != model],
        "root": node,
        "root_probability": facts.get("root"),
        "steps": steps,
    }


def _weight(edge: Edge) -> float:
    return float(edge.attributes.get("coefficient") or 0) + float(edge.attributes.get("adjacency", 1.0))
