"""Whether the weights agree with what models say of their origin."""

from collections.abc import Callable, Sequence

import networkx as nx

from mother.collection.claims import CONFIG, RELATIONS, Claim
from mother.collection.names import Names
from mother.collection.verdicts import ABSENT, AGREES, CONTRADICTED, UNSUPPORTED, Audit, Verdict
from mother.collection.workspace import Recovered
from mother.graph.model_graph import ModelGraph

SURE_PROBABILITY = 0.95  # probability from which the weights contradict a claim, or settle an arrow


def _line(graph: nx.DiGraph, parent: str, child: str) -> str:
    facts = graph.edges[parent, child]
    kind = facts.get("kind") or "unknown kind"
    return f"{kind}, edge {facts.get('adjacency', 1):.2f}, arrow {facts.get('arrow', 1):.2f}"


def _judge(
    graph: nx.DiGraph, model: str, parent: str, claim: Claim, adjacency: Callable[[str, str], float | None]
) -> tuple[str, str]:
    """Verdict and reason on a claim between two models of the graph. Copies stand for one another."""
    node = {alias: key for key, facts in graph.nodes.items() for alias in (key, *facts.get("aliases", ()))}
    child, above = node[model], node[parent]
    if child == above:
        return AGREES, f"{model} and {parent} have equal weights"
    if graph.nodes[child].get("group") != graph.nodes[above].get("group"):
        return UNSUPPORTED, "their shapes cannot be compared"
    if graph.nodes[child]["tree"] != graph.nodes[above]["tree"]:
        return CONTRADICTED, "their weights are unrelated: they do not differ from independently initialised models"
    if graph.has_edge(above, child):
        facts = graph.edges[above, child]
        if claim.relation and facts.get("kind") and facts["kind"] not in RELATIONS[claim.relation]:
            exact = facts["kind"] in ("merge", "quantize", "prune", "cast") or claim.relation in ("merge", "quantized")
            return (CONTRADICTED if exact else UNSUPPORTED), f"it says {claim.relation}, the weights {facts['kind']}"
        if facts.get("direction") == "unknown":
            return (
                UNSUPPORTED,
                f"they are parent and child, but which is which is not sure: {_line(graph, above, child)}",
            )
        return AGREES, _line(graph, above, child)
    if nx.has_path(graph, above, child):
        way = nx.shortest_path(graph, above, child)
        return AGREES, "through " + ", ".join(way[1:-1])
    if graph.has_edge(child, above) or nx.has_path(graph, child, above):
        way = nx.shortest_path(graph, child, above)
        arrow = 1.0
        for one, other in zip(way, way[1:]):
            arrow = min(arrow, graph.edges[one, other].get("arrow", 1.0))
        words = f"the weights say the reverse: {model} came first (arrow {arrow:.2f})"
        return (CONTRADICTED if arrow >= SURE_PROBABILITY else UNSUPPORTED), words
    probability = adjacency(parent, model)
    own = next(iter(graph.predecessors(child)), None)
    instead = f"; the weights name {own} ({_line(graph, own, child)})" if own is not None else "; it has no parent here"
    words = f"they are related, but the probability of this edge is {probability or 0:.2f}{instead}"
    sure = (
        own is not None
        and graph.edges[own, child].get("adjacency", 0) >= SURE_PROBABILITY
        and (probability or 0) <= 1 - SURE_PROBABILITY
    )
    return (CONTRADICTED if sure else UNSUPPORTED), words


def audit(
    graph: ModelGraph,
    claims: dict[str, Sequence[Claim]],
    names: Names,
    adjacency: Callable[[str, str], float | None],
) -> Audit:
    """Hold what models claim against a Model Graph.

    `claims` are those of each model, `names` says which model a claim means, and `adjacency(i, j)` is the
    probability that two models are parent and child, where it is known.
    """
    known = graph.to_networkx()
    there = set(known) | {alias for facts in graph.nodes.values() for alias in facts.get("aliases", ())}
    place = {alias: key for key, facts in graph.nodes.items() for alias in (key, *facts.get("aliases", ()))}
    verdicts, undeclared = [], {}
    for model, said in claims.items():
        decided: set[str] = set()
        # A configuration's path is one of the machine that trained: it counts where nobody says anything else.
        spoken = [claim for claim in said if claim.file != CONFIG]
        for claim in spoken or said:
            if claim.unread is not None:
                reason = f"what it says could not be read: {claim.unread}"
                verdicts.append(Verdict(model, claim, None, UNSUPPORTED, reason))
                continue
            match = names.find(claim, model)
            parent = match.model if match is not None else None
            if parent in decided:
                continue
            if model not in there:
                verdicts.append(
                    Verdict(model, claim, parent, UNSUPPORTED, "it could not be used (see what was left out)")
                )
            elif parent is None or parent not in there:
                reason = "it could not be used" if parent is not None else "no model here has this name"
                verdicts.append(Verdict(model, claim, parent, ABSENT, reason))
            else:
                verdict, reason = _judge(known, model, parent, claim, adjacency)
                if not match.sure:
                    reason = f"{parent}, whose owner is unknown: {reason}"
                verdicts.append(Verdict(model, claim, parent, verdict, reason))
                decided.add(parent)
        if not said and model in place:
            parents = [one for one in known.predecessors(place[model]) if not known.nodes[one].get("hidden")]
            if parents and place[model] == model:
                undeclared[model] = "; ".join(f"{parent} ({_line(known, parent, model)})" for parent in parents)
    return Audit(verdicts, undeclared)


def audit_of(recovered: Recovered) -> Audit:
    """What the models of a result claim, held against it."""
    names = Names((source.id, source.location) for source in recovered.sources)
    groups = {model: group for group in recovered.groups for model in group.heritage.first_pass.models}

    def adjacency(one: str, other: str) -> float | None:
        return groups[one].adjacency(one, other) if one in groups and groups[one] is groups.get(other) else None

    claims = {source.id: source.claims for source in recovered.sources}
    return audit(recovered.graph, claims, names, adjacency)
