"""Adapters among themselves: of one unknown base, or of one run, by what they add."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import networkx as nx
import numpy as np

from mother.collection.find import Source
from mother.errors import CheckpointError
from mother.evidence.adapter_pairs import Pair, Updates, compare
from mother.evidence.relatedness import significant
from mother.graph.model_graph import HIDDEN_EDGE, UNKNOWN_BASES, Edge, ModelGraph
from mother.io.adapted_checkpoint import AdaptedCheckpoint
from mother.io.open import open_checkpoint
from mother.io.spool import Spool

MOST = 100  # budget: adapters that are held against each other
ERROR = 1e-3  # probability that adapters of unrelated bases are said to have one
ONE_RUN = 0.5  # by eye: cosine of updates from which one may go on from the other
SAME = 1 - 1e-6  # cosine of updates that are equal but for rounding
NAMED = 4  # of adapters that may be of one run, before the last


@dataclass(frozen=True)
class Alike:
    """Two adapters whose bases are of one family."""

    one: str
    other: str
    pair: Pair


def runs_in_words(found: Sequence[Alike]) -> tuple[str, ...]:
    """What is said of adapters that may be of one run, a line for each group of them."""
    web = nx.Graph()
    web.add_weighted_edges_from((one.one, one.other, one.pair.cosine) for one in found if one.pair.cosine >= ONE_RUN)
    said = []
    for members in sorted(map(sorted, nx.connected_components(web))):
        cosines = [cosine for *_, cosine in web.subgraph(members).edges(data="weight")]
        some = f"{', '.join(members[:-1][:NAMED])}{', ...' if len(members) > NAMED + 1 else ''} and {members[-1]}"
        if len(members) > 2:
            some += f", {len(members)} adapters,"
        if min(cosines) > SAME:
            said.append(f"{some} add the same: they are one adapter")
            continue
        low, high = f"{min(cosines):.2f}", f"{max(cosines):.2f}"
        said.append(
            f"{some} agree (cosine {low if low == high else f'{low} to {high}'}): one goes on from the other, or both "
            "began with one draw; which came first is undecided"
        )
    return tuple(said)


def updates_of(adapter: AdaptedCheckpoint) -> Updates:
    """What an adapter adds, by layer, each as (outputs, inputs). Raises CheckpointError."""
    found = {}
    for layer, name in adapter.layers.items():
        update, delta = adapter.adapter.updates[adapter.update_of[name]], adapter.added(name)
        turned = delta.ndim == 2 and (update.transposed or update.embedding)
        found[layer] = delta.T.contiguous() if turned else delta.flatten(1)
    return found


def alike(sources: Sequence[Source], error: float = ERROR, spool: Spool | None = None) -> list[Alike]:
    """The pairs of adapters that share directions that those of unrelated bases have not; Holm's over all pairs."""
    opened: dict[str, Updates] = {}
    spool = spool or Spool()
    for source in sources[:MOST]:
        try:
            one = open_checkpoint(source.id, source.location)
            if isinstance(one, AdaptedCheckpoint):
                opened[source.id] = updates_of(spool.of(one))
        except CheckpointError:  # said where it is opened for the graph; factors are nothing alone
            continue
    pairs = [(one, other, compare(opened[one], opened[other])) for one, other in combinations(opened, 2)]
    held = [Alike(one, other, pair) for one, other, pair in pairs if pair is not None]
    marks = significant(np.array([one.pair.z for one in held], dtype=float), error).tolist()
    return [one for one, mark in zip(held, marks) if mark]


def adapters_alone(graph: ModelGraph, adapters: Sequence[str]) -> ModelGraph:
    """The graph of nothing but adapters without the edges of models: what one adds is no model that another comes from.

    Each has a tree of its own, until their bases are known to be relatives.
    """
    names = [name for name, facts in graph.nodes.items() if name in set(adapters)]
    nodes = {
        name: {**graph.nodes[name], "tree": str(at), "root": 1.0, "group": UNKNOWN_BASES}
        for at, name in enumerate(names)
    }
    return replace(graph, nodes=nodes, edges=())


def join_siblings(
    graph: ModelGraph, sources: Sequence[Source], adapters: Sequence[str], spool: Spool | None = None
) -> ModelGraph:
    """The graph with adapters of unknown bases under a hidden one where their bases are of one family.

    Of others, too, it is noted where two may be of one run: siblings, or parent and child, is undecided.
    """
    there = [source for source in sources if source.id in graph.nodes and source.id in set(adapters)]
    if len(there) < 2:
        return graph
    found = alike([replace(source, base=None) for source in there], spool=spool)
    unknown = {source.id for source in there if graph.nodes[source.id].get("group") == UNKNOWN_BASES}
    web = nx.Graph()
    web.add_edges_from((one.one, one.other) for one in found if {one.one, one.other} <= unknown)
    nodes, edges = dict(graph.nodes), list(graph.edges)
    for members in map(sorted, nx.connected_components(web)):
        hidden = f"base of {', '.join(members[:3])}{', ...' if len(members) > 3 else ''}"
        nodes[hidden] = {"tree": nodes[members[0]]["tree"], "root": 1.0, "group": UNKNOWN_BASES, "hidden": True}
        for model in members:
            nodes[model] = {**nodes[model], "tree": nodes[hidden]["tree"], "root": 0.0}
            edges.append(Edge(hidden, model, HIDDEN_EDGE | {"adjacency": 1 - ERROR}))
    skipped = () if len(there) <= MOST else (f"of {len(there)} adapters {MOST} were held against each other",)
    return replace(graph, nodes=nodes, edges=tuple(edges), notes=(*graph.notes, *runs_in_words(found), *skipped))
