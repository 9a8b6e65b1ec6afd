"""Whether the weights agree with what models say of their origin.

A claim agrees where the graph has the way from the parent to the model. It is contradicted only where a test excludes
it (`mother/collection/exclusion.py`). Anything else is not confirmed, with what would confirm it.
"""

from collections.abc import Sequence

import networkx as nx

from mother.collection.claims import CONFIG, RELATIONS, Claim
from mother.collection.exclusion import LEAST_SHARE, TUNED_SHARE, Exclusion
from mother.collection.names import Names
from mother.collection.verdicts import ABSENT, AGREES, CONTRADICTED, NOT_CONFIRMED, Audit, Verdict
from mother.collection.workspace import Recovered
from mother.graph.certainty import KNOWN, both, sure
from mother.graph.model_graph import ModelGraph, standing_for

SURE_EDGE = 0.5  # by eye: probability of each edge of a way that agrees, as that of an arrow that counts as known
UNMIXED = ("finetune", "adapter", "quantized")  # relations of one parent
MORE = "more models of the family (other children of the parent, snapshots of the training) may tell"


def _line(graph: nx.DiGraph, parent: str, child: str) -> str:
    facts = graph.edges[parent, child]
    kind = facts.get("kind") or "unknown kind"
    return f"{kind}, {both(facts)}"


def _judge(
    graph: nx.DiGraph,
    place: dict[str, str],
    model: str,
    parent: str,
    claim: Claim,
    several: bool,
    exclusion: Exclusion | None,
) -> tuple[str, str]:
    """Verdict and reason on a claim between two models, each of which has its `place`, a node of the graph.

    `several`: the model claims several parents, or that it is a merge.
    """
    child, above = place[model], place[parent]
    if child == above:
        return AGREES, f"{model} and {parent} have equal weights"
    if reason := graph.nodes[child].get("not_from", {}).get(above):
        return CONTRADICTED, reason
    if graph.nodes[child]["tree"] != graph.nodes[above]["tree"]:
        excluded = exclusion.unrelated(child, above) if exclusion is not None else None
        if excluded is None:
            return NOT_CONFIRMED, "they are in different trees"
        return (CONTRADICTED if excluded.sure else NOT_CONFIRMED), excluded.reason
    if nx.has_path(graph, above, child):
        return _judge_way(graph, nx.shortest_path(graph, above, child), claim)
    least = 0.0 if several else TUNED_SHARE if claim.relation in UNMIXED else LEAST_SHARE
    excluded = exclusion.elsewhere(child, above, least) if exclusion is not None else None
    if excluded is not None:
        return CONTRADICTED, excluded
    if nx.has_path(graph, child, above):
        way = nx.shortest_path(graph, child, above)
        arrow = min(graph.edges[edge].get("arrow", 1.0) for edge in zip(way, way[1:]))
        return (
            NOT_CONFIRMED,
            f"the graph has {model} above it ({model} first: {sure(arrow)}), but no test excludes the claim; {MORE}",
        )
    own = next(iter(graph.predecessors(child)), None)
    instead = f"the graph has it below {own} ({_line(graph, own, child)})" if own is not None else "no edge here"
    return NOT_CONFIRMED, f"they are related; {instead}, but no test excludes the claim; {MORE}"


def _judge_way(graph: nx.DiGraph, way: list[str], claim: Claim) -> tuple[str, str]:
    """Verdict and reason on a claim that the graph has a way for, from the parent to the model."""
    between = f"through {', '.join(way[1:-1])}: " if len(way) > 2 else ""
    for edge in zip(way, way[1:]):
        if graph.edges[edge].get("direction") == "unknown":
            be = "are" if graph.edges[edge].get("adjacency", 1.0) >= KNOWN else "may be"
            words = f"{between}{' and '.join(edge)} {be} parent and child, but which is which is not sure"
            return NOT_CONFIRMED, f"{words} ({_line(graph, *edge)}); {MORE}"
    for edge in zip(way, way[1:]):
        if graph.edges[edge].get("adjacency", 1.0) < SURE_EDGE:
            words = f"{between}{' and '.join(edge)} may be parent and child"
            return NOT_CONFIRMED, f"{words} ({_line(graph, *edge)}); {MORE}"
    if graph.edges[way[-2], way[-1]].get("tested") is False:
        return NOT_CONFIRMED, f"the base is {way[-2]}, as it says; the adapter's weights do not tell ({MORE})"
    kind = graph.edges[way[-2], way[-1]].get("kind")
    if claim.relation and kind and len(way) == 2 and kind not in RELATIONS[claim.relation]:
        return NOT_CONFIRMED, f"it is from that parent, but says {claim.relation} where the weights show {kind}"
    return AGREES, between.removesuffix(": ") or _line(graph, *way)


def audit(
    graph: ModelGraph,
    claims: dict[str, Sequence[Claim]],
    names: Names,
    exclusion: Exclusion | None = None,
) -> Audit:
    """Hold what models claim against a Model Graph.

    `claims` are those of each model, `names` says which model a claim means, and `exclusion` tests what the graph does
    not show; without it nothing is contradicted.
    """
    known = graph.to_networkx()
    place = standing_for(graph.nodes)
    verdicts, undeclared = [], {}
    for model, said in claims.items():
        decided: set[str] = set()
        # A configuration's path is one of the machine that trained: it counts where nobody says anything else.
        spoken = [claim for claim in said if claim.file != CONFIG]
        several = len({claim.parent for claim in spoken}) > 1 or any(claim.relation == "merge" for claim in said)
        for claim in spoken or said:
            if claim.unread is not None:
                reason = f"what it says could not be read: {claim.unread}"
                verdicts.append(Verdict(model, claim, None, NOT_CONFIRMED, reason))
                continue
            match = names.find(claim, model)
            parent = match.model if match is not None else None
            if parent in decided:
                continue
            if model not in place:
                verdicts.append(
                    Verdict(model, claim, parent, NOT_CONFIRMED, "it could not be used (see what was left out)")
                )
            elif parent is None or parent not in place:
                reason = (
                    "it could not be used"
                    if parent is not None
                    else "no model here has this name: name it, too, to check"
                )
                verdicts.append(Verdict(model, claim, parent, ABSENT, reason))
            else:
                verdict, reason = _judge(known, place, model, parent, claim, several, exclusion)
                if not match.sure:
                    reason = f"{parent}, whose owner is unknown: {reason}"
                verdicts.append(Verdict(model, claim, parent, verdict, reason))
                decided.add(parent)
        if not said and model in place:
            # Where nobody can say which of two came first, the one that says nothing may be the original.
            parents = [
                one
                for one in known.predecessors(place[model])
                if not known.nodes[one].get("hidden") and known.edges[one, place[model]].get("direction") != "unknown"
            ]
            if parents and place[model] == model:
                undeclared[model] = "; ".join(f"{parent} ({_line(known, parent, model)})" for parent in parents)
    return Audit(verdicts, undeclared)


def audit_of(recovered: Recovered) -> Audit:
    """What the models of a result claim, held against it."""
    names = Names((source.id, source.location) for source in recovered.sources)
    claims = {source.id: source.claims for source in recovered.sources}
    return audit(recovered.graph, claims, names, Exclusion(recovered))
