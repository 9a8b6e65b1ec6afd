"""Trace some models of an index by their sketches: the whole of a small family, or a block of a large one.

The functions are those of method "map" for any collection. What a worker finds is a file of its own.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mother.evidence.sketch import Sketch, kept_sketch
from mother.heritage.calibration import log_weights
from mother.heritage.trace import trace_sketches
from mother.heritage.trees import Cluster, Heritage
from mother.heritage.typed_graph import build_graph
from mother.index.store import arrow, open_index
from mother.io.files import write_atomically

OFFER, EDGE, NODE, ALIAS, LEFT_OUT = "offer", "edge", "node", "alias", "left out"  # what a row of a trace is

GONE = "its sketch is damaged or gone. Remove its shard, and build the index again."


def trace_schema() -> Any:
    """The columns of what is traced: `weight` is the log weight of an offer, `facts` are JSON."""
    pa, _ = arrow()
    text = pa.string()
    return pa.schema([("what", text), ("parent", text), ("child", text), ("weight", pa.float64()), ("facts", text)])


def trace_models(folder: str, models: list[tuple[str, str]], core: list[str] | None, error: float, out: str) -> str:
    """Trace models, given as (id, key of the sketch), and write what was found to `out`; for a worker.

    Without a core they are a whole family: its nodes and edges are final. Else for each model of the core the parents
    that it may have, with their log weights.
    """
    index = open_index(Path(folder))
    sketches, rows = [], []
    for model, key in models:
        sketch = kept_sketch(index.sketches / f"{key}.safetensors", key)
        if sketch is None:
            rows.append(
                _row(LEFT_OUT, child=model, facts={"why": "its sketch is damaged or gone. Build the index again."})
            )
        else:
            sketches.append(replace(sketch, model=model))
    if sketches:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            heritage = trace_sketches(sketches, torch.device("cpu"), error)
        finally:
            torch.set_num_threads(threads)
        rows += whole_rows(heritage) if core is None else core_rows(heritage, sketches, set(core))
    pa, parquet = arrow()
    columns = {name: [row.get(name) for row in rows] for name in trace_schema().names}
    table = pa.table(columns, trace_schema())
    write_atomically(Path(out), lambda file: parquet.write_table(table, file, compression="zstd"))
    return out


def _row(what: str, parent: str | None = None, child: str = "", weight: float | None = None, facts: Any = None) -> dict:
    return {"what": what, "parent": parent, "child": child, "weight": weight, "facts": json.dumps(facts or {})}


def whole_rows(heritage: Heritage) -> list[dict]:
    """Nodes and edges of a family that was traced as a whole."""
    graph = build_graph("family", heritage)
    rows = [_row(NODE, child=model, facts=facts) for model, facts in graph.nodes.items()]
    return rows + [_row(EDGE, edge.parent, edge.child, facts=edge.attributes) for edge in graph.edges]


def core_rows(heritage: Heritage, sketches: Sequence[Sketch], core: set[str]) -> list[dict]:
    """The parents that the models of the core may have, with log weights; and of merges and copies what is exact."""
    models, rows = heritage.first_pass.models, []
    for copy, original in heritage.aliases.items():
        if models[copy] in core:
            rows.append(_row(ALIAS, models[original], models[copy]))
    for cluster in heritage.clusters:
        weights = log_weights(cluster.evidence, cluster.coefficients, cluster.forced).parent
        for i, j in zip(*np.nonzero(np.isfinite(weights))):
            child = cluster.members[j]
            looked = cluster.evidence.candidate[i, j] or cluster.forced.get(int(j)) == i
            if looked and models[child] in core:
                parent = cluster.members[i]
                rows.append(_row(OFFER, models[parent], models[child], float(weights[i, j])))
    offered = [(row["parent"], row["child"]) for row in rows if row["what"] == OFFER]
    kinds = pair_facts(heritage, offered)
    for row in rows:
        if row["what"] == OFFER:
            row["facts"] = json.dumps(kinds.get((row["parent"], row["child"]), {}))
    for child, relation in heritage.relations.items():
        if models[child] in core:
            for parent in relation.parents:
                facts = {"kind": relation.kind, **relation.attributes}
                if len(relation.parents) > 1 and "coefficients" in facts:
                    facts["coefficient"] = facts["coefficients"][relation.parents.index(parent)]
                rows.append(_row(EDGE, models[parent], models[child], facts=facts))
    return rows


def pair_facts(heritage: Heritage, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    """What the typed graph would say of each of these edges if training had made it: kind, rank, relative change."""
    place = {model: at for at, model in enumerate(heritage.first_pass.models)}
    by_parent: dict[int, list[int]] = defaultdict(list)
    for parent, child in pairs:
        by_parent[place[parent]].append(place[child])
    found = {}
    for parent, children in by_parent.items():
        cluster = next(one for one in heritage.clusters if parent in one.members)
        star = replace(cluster, parents={child: parent for child in children if child != parent}, hidden=[])
        graph = build_graph("star", replace(heritage, clusters=[star], relations={}))
        for edge in graph.edges:
            chosen = ("kind", "rank", "ranks", "dora", "relative_change", "compared", "note")
            found[edge.parent, edge.child] = {name: edge.attributes[name] for name in chosen if name in edge.attributes}
    return found


def odds(cluster: Cluster, one: int, other: int) -> tuple[float, float]:
    """P(one -> other) and P(other -> one) of two members of a cluster."""
    i, j = cluster.members.index(one), cluster.members.index(other)
    return float(cluster.probability[i, j]), float(cluster.probability[j, i])
