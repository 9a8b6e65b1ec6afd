"""The edge from a base to a model that an adapter was merged into, where that is so entry by entry."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import networkx as nx

from mother.collection.whose import Answer
from mother.graph.model_graph import Edge, ModelGraph, hidden_called

EXACT = ("cast", "prune", "quantize", "merge", "adapter")  # kinds of edges that say as much of a model already


def first_step(edges: Iterable[Edge], start: str, end: str) -> Edge | None:
    """The first edge on the way from a model down to another one; None where there is no way."""
    web = nx.DiGraph()
    web.add_edges_from((edge.parent, edge.child, {"edge": edge}) for edge in edges)
    if not (web.has_node(start) and web.has_node(end) and nx.has_path(web, start, end)):
        return None
    return web.edges[nx.shortest_path(web, start, end)[:2]]["edge"]


def turned_way(edges: Sequence[Edge], start: str, end: str, own: Sequence[Edge]) -> list[Edge]:
    """The edges, where no way leads from a model down to the one that it is hung under now.

    The first step of that way goes to what the model hung from, the first of its `own` edges, or is gone without one.
    """
    edges = list(edges)
    if step := first_step(edges, start, end):
        edges.remove(step)
        edges += [Edge(edge.parent, step.child, step.attributes | edge.attributes) for edge in own[:1]]
    return edges


def hang_merged(graph: ModelGraph, answer: Answer | None) -> ModelGraph:
    """The graph with each model that is a base with this adapter under that base, as a LoRA; others as they were.

    A distance cannot tell the base from its cast, which is as near: the rounded sum can. What was made of the model by
    another exact operation, such as a cast of one that is there, stays so.
    """
    done: set[str] = set()
    for base, merged in answer.exact if answer is not None else ():
        own = [edge for edge in graph.edges if edge.child == merged]
        there = {base, merged} <= graph.nodes.keys() and graph.nodes[base]["tree"] == graph.nodes[merged]["tree"]
        if not there or merged in done or any(edge.attributes.get("kind") in EXACT for edge in own):
            continue
        done.add(merged)
        graph = _under(graph, base, merged, own, _facts(answer, base, own))
    return graph


def _facts(answer: Answer, base: str, own: list[Edge]) -> dict[str, Any]:
    """The attributes of the edge from a base; what was measured of it before stays."""
    kept = {key: value for edge in own for key, value in edge.attributes.items() if edge.parent == base}
    facts: dict[str, Any] = {key: kept[key] for key in ("relative_change", "compared") if key in kept}
    facts |= {"kind": "lora", "adapter": answer.adapter, "exact": True}
    facts |= {"rank": answer.ranks[-1]} if answer.ranks else {}
    same = sorted(other for other, merged in answer.exact if other != base and (base, merged) in answer.exact)
    return facts | {"adjacency": 1.0, "arrow": 1.0, "direction": "known"} | ({"or": same} if same else {})


def _under(graph: ModelGraph, base: str, merged: str, own: list[Edge], facts: dict[str, Any]) -> ModelGraph:
    """The graph with one model under another. What hung between the two the other way round goes to those above."""
    edges = turned_way([edge for edge in graph.edges if edge.child != merged], merged, base, own)
    nodes = {name: dict(values) for name, values in graph.nodes.items()}
    nodes[merged]["root"] = 0.0
    graph = replace(graph, nodes=nodes, edges=(*edges, Edge(base, merged, facts)))
    for edge in own:
        if nodes[edge.parent].get("hidden"):
            graph = without_child(graph, edge.parent)
    return graph


def without_child(graph: ModelGraph, hidden: str) -> ModelGraph:
    """The graph after a model that is not there lost a child: gone where nothing speaks for it, else named anew."""
    own = [edge for edge in graph.edges if hidden in (edge.parent, edge.child)]
    children = [edge.child for edge in own if edge.parent == hidden]
    if len(own) < 2 or not children:
        nodes = {name: facts for name, facts in graph.nodes.items() if name != hidden}
        return replace(graph, nodes=nodes, edges=tuple(edge for edge in graph.edges if edge not in own))
    name = hidden_called(children)

    def called(one: str) -> str:
        return name if one == hidden else one

    edges = tuple(replace(edge, parent=called(edge.parent), child=called(edge.child)) for edge in graph.edges)
    return replace(graph, nodes={called(one): facts for one, facts in graph.nodes.items()}, edges=edges)
