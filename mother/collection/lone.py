"""Adapters without their base among other models: set aside before models are compared, then hung under their base."""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

from mother.collection.find import Source
from mother.collection.merged_edges import hang_merged
from mother.collection.whose import ABSENT, Answer, Candidates
from mother.errors import InputError
from mother.graph.model_graph import UNKNOWN_BASES, Edge, ModelGraph
from mother.io.adapted_checkpoint import AdaptedCheckpoint
from mother.io.checkpoint import Checkpoint
from mother.io.spool import Spool

POSSIBLE = 0.05  # probability from which another base is named


def is_lone(checkpoint: Checkpoint) -> bool:
    """Whether this is an adapter whose base nobody gave."""
    return isinstance(checkpoint, AdaptedCheckpoint) and checkpoint.base is None


def set_aside(opened: Sequence[Checkpoint], others: int) -> tuple[list[Checkpoint], list[Checkpoint]]:
    """(models that are compared, adapters that are asked for their base).

    Where there is nothing but adapters, and no `others` either, they are compared with one another by what they add.
    """
    models = [one for one in opened if not is_lone(one)]
    return (models, [one for one in opened if is_lone(one)]) if models or others else (list(opened), [])


def hang(
    graph: ModelGraph, lone: Sequence[str], sources: Sequence[Source], error: float, spool: Spool | None = None
) -> ModelGraph:
    """The graph with adapters in it: each under the most probable base, or in a tree of its own."""
    if not lone:
        return graph
    named = {name for name, facts in graph.nodes.items() if not facts.get("hidden")}
    known = {source.id: source for source in sources}
    candidates = Candidates([known[name] for name in graph.nodes if name in named and name in known], spool)
    nodes, edges, left_out = dict(graph.nodes), list(graph.edges), dict(graph.left_out)
    notes, answers = list(graph.notes), []
    for name in lone:
        try:
            answer = candidates.answer(known[name], error / len(lone))
        except InputError as reason:
            left_out[name] = str(reason)
            continue
        if answer.family or answer.twins:
            base = answer.candidates[0].model
            nodes[name] = {**{key: graph.nodes[base][key] for key in ("tree", "group")}, "root": _root(answer)}
            edges.append(Edge(base, name, _facts(answer)))
        else:
            trees = [int(facts["tree"]) for facts in nodes.values()]
            nodes[name] = {"tree": str(max(trees, default=-1) + 1), "root": 1.0, "group": UNKNOWN_BASES}
            notes.append(f"{name} is an {answer.kind} of an unknown base: {_unknown(answer)}")
        notes += answer.merged
        answers.append(answer)
    graph = replace(graph, nodes=nodes, edges=tuple(edges), left_out=left_out, notes=tuple(notes))
    return reduce(hang_merged, answers, graph)


def _unknown(answer: Answer) -> str:
    """Why an adapter is of an unknown base."""
    if any(one.z is not None for one in answer.candidates):
        return "no model here is related to it"
    return next((one.why for one in answer.candidates if "does not fit" not in one.why), "it fits no model here")


def _root(answer: Answer) -> float:
    """Probability that the base is not here."""
    return 0.0 if answer.twins else ABSENT


def _facts(answer: Answer) -> dict[str, Any]:
    """The attributes of an edge from a base to its adapter; that the base came first needs no evidence."""
    first = answer.candidates[0]
    facts: dict[str, Any] = {"kind": "adapter", "inferred": not answer.twins}
    if answer.ranks:
        facts["rank"] = answer.ranks[-1]
    facts |= {"adjacency": round(first.probability, 4), "arrow": 1.0, "direction": "known"}
    if first.z is not None:
        facts["fit"] = round(first.z, 2)
    others = [one.model for one in answer.candidates[1:] if one.probability >= POSSIBLE]
    return facts | ({"or": others} if others else {})
