"""Trace some models of an index by their sketches: the whole of a small family, or a block of a large one.

The functions are those of method "map" for any collection. What a worker finds is a file of its own.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mother.evidence.alignment import align
from mother.evidence.candidates import comparable_square
from mother.evidence.edges import DECISIVE, STRUCTURE, Evidence
from mother.evidence.facts import mantissa
from mother.evidence.sketch import Sketch
from mother.heritage import typed_graph
from mother.heritage.calibration import Weights, blocked, counted_odds, own_weights, read_coefficients
from mother.heritage.merged import SPARSE, merges_of, sparse_merge
from mother.heritage.quantized import is_quantized
from mother.heritage.relation import Relation
from mother.heritage.trace import measure, row_scaled_ranks, trace_sketches
from mother.heritage.trees import Cluster, Heritage, gather_all
from mother.index.held import held_sketch
from mother.index.store import arrow, open_index
from mother.io.files import write_atomically
from mother.io.snapshots import Snapshot

# What a row of a trace is.
OFFER, EDGE, MERGE, NODE = "offer", "edge", "merge", "node"
ALIAS, STORED, TWIN, LEFT_OUT = "alias", "stored", "twin", "left out"
GONE = "its sketch is damaged or gone. Build the index again."
OPTIONS = 8  # budget: combinations of parts of updates that a merge may be
LIKELY = 2  # budget: offers of each model of a core whose update is searched for the form of DoRA


def trace_schema() -> Any:
    """The columns of what is traced. Of an offer, a parent that a model may have:

    weight, beside   log weights that it is the parent, and that both have one that is not there, without these four:
    between          what models in the middle take from both
    private          share of directions that one of the two has for itself, see Evidence; it takes from the first
    arrow            log odds of its direction; nan where something exact decides
    most             log of how many entries the model has in common with the one that it shares most with, there
    own              whether the child is of the core of its block: what others say of it is for want of more

    Of a merge there is a row for each parent of each combination that it may be: which of these it is depends on what
    made its parents, and another block may know that. Its `weight` is the number of likelier ones. Of a twin, a cast or
    a quantized model, it is the log odds that the child was trained from it, and not from its original.
    """
    pa, _ = arrow()
    numbers = ("weight", "beside", "between", "private", "arrow", "most")
    columns = [("what", pa.string()), ("parent", pa.string()), ("child", pa.string())]
    columns += [(name, pa.float64()) for name in numbers]
    return pa.schema([*columns, ("own", pa.bool_()), ("facts", pa.string())])


def trace_models(folder: str, models: list[tuple[str, str]], core: list[str] | None, error: float, out: str) -> str:
    """Trace models, given as (id, key of the sketch), and write what was found to `out`; for a worker.

    Without a core they are a whole family: its nodes and edges are final. Else for each model of the core the parents
    and children that it may have, with their log weights.
    """
    index = open_index(Path(folder))
    sketches, rows = [], []
    for model, key in models:
        sketch = held_sketch(index.sketches / f"{key}.safetensors", key)
        if sketch is None:
            rows.append(_row(LEFT_OUT, child=model, facts={"why": GONE}))
        else:
            sketches.append(replace(sketch, model=model))
    if sketches:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            if core is None:
                rows += whole_rows(trace_sketches(sketches, torch.device("cpu"), error))
            else:
                rows += core_rows(sketches, set(core), error)
        finally:
            torch.set_num_threads(threads)
    pa, parquet = arrow()
    columns = {name: [row.get(name) for row in rows] for name in trace_schema().names}
    table = pa.table(columns, trace_schema())
    write_atomically(Path(out), lambda file: parquet.write_table(table, file, compression="zstd"))
    return out


def _row(what: str, parent: str | None = None, child: str = "", facts: Any = None, **values: Any) -> dict:
    return {"what": what, "parent": parent, "child": child, "facts": json.dumps(facts or {}), **values}


def whole_rows(heritage: Heritage) -> list[dict]:
    """Nodes and edges of a family that was traced as a whole."""
    graph = typed_graph.build_graph("family", heritage)
    rows = [_row(NODE, child=model, facts=facts) for model, facts in graph.nodes.items()]
    return rows + [_row(EDGE, edge.parent, edge.child, facts=edge.attributes) for edge in graph.edges]


def core_rows(sketches: Sequence[Sketch], chosen: set[str], error: float) -> list[dict]:
    """Offers to and from the models that are chosen for the core; and of merges and copies what is exact."""
    sketches = align(sorted(sketches, key=lambda sketch: sketch.model)).sketches
    models = [sketch.model for sketch in sketches]
    core = {place for place, model in enumerate(models) if model in chosen}
    heritage, _ = measure(sketches, torch.device("cpu"), error, core=core)
    first, copies = heritage.first_pass, heritage.aliases
    rows = [_row(ALIAS, models[original], models[copy]) for copy, original in copies.items() if copy in core]
    rows += [_stored_row(heritage, place) for place in sorted(core)]
    members = [place for place in range(len(models)) if place not in copies]
    square = comparable_square(first, turned=True)
    evidence, forced = gather_all(heritage, square, members, core)
    merges = _merge_options(sketches, heritage, core)
    # Which parents a merge has is told of all blocks together, see mother/index/exact.py.
    alone = {child: parent for child, parent in forced.items() if members[child] not in merges}
    weights = own_weights(evidence, read_coefficients(), alone)
    inside = [at for at, member in enumerate(members) if member in core]
    place = {member: at for at, member in enumerate(members)}
    firsts = [(place[one.parents[0]], place[child]) for child, options in merges.items() for one in options]
    known = [*((parent, child) for child, parent in alone.items()), *firsts]
    some = list(_offered(evidence, weights, known, set(inside)))
    likely = [
        (members[i], members[j])
        for j in inside
        for i in np.argsort(-weights.parent[:, j], kind="stable")[:LIKELY].tolist()
        if np.isfinite(weights.parent[i, j])
    ]
    heritage.row_scaled = row_scaled_ranks(heritage, sketches, likely, Snapshot(None, {}))
    middle = blocked(evidence, read_coefficients())
    at = STRUCTURE.index("private")
    private, worth = evidence.structure[..., at], read_coefficients().structure[at]
    told = evidence.direction @ read_coefficients().direction + counted_odds(evidence)
    arrow_odds = np.where(np.abs(evidence.exact) > DECISIVE, np.nan, told)
    for i, j in some:
        values = {
            "weight": float(weights.parent[i, j] + middle[i, j] - worth * private[i, j]),
            "beside": float(weights.beside[i, j] + middle[i, j]),
            "between": float(middle[i, j]),
            "private": float(private[i, j]),
            "arrow": float(arrow_odds[i, j]),
            "most": float(evidence.most[j]),
            "own": members[j] in core,
        }
        facts = typed_graph.pair_facts(heritage, members[i], members[j])
        rows.append(_row(OFFER, models[members[i]], models[members[j]], facts, **values))
    return [*rows, *_relation_rows(heritage, core, merges), *_twin_rows(heritage)]


def _stored_row(heritage: Heritage, place: int) -> dict:
    """In how many mantissa bits a model is stored, whether it is quantized, and how it is packed."""
    facts = heritage.first_pass.facts[place]
    told = {"quantized": is_quantized(facts), "packed": typed_graph.packed_facts(heritage, place)}
    return _row(STORED, child=heritage.first_pass.models[place], weight=float(mantissa(facts)), facts=told)


def _offered(
    evidence: Evidence, weights: Weights, known: Iterable[tuple[int, int]], inside: set[int]
) -> Iterator[tuple[int, int]]:
    """Which edges to and from models of a core are possible, as places among the members; `known` are exact."""
    looked = evidence.candidate.copy()
    for parent, child in known:
        looked[parent, child] = True
    for i, j in np.argwhere(looked & np.isfinite(weights.best)).tolist():
        if i in inside or j in inside:
            yield i, j


def _merge_options(sketches: Sequence[Sketch], heritage: Heritage, core: set[int]) -> dict[int, list[Relation]]:
    """Of each merge of a core all that it may have been merged from, the most likely first."""
    found = {}
    for child, relation in heritage.relations.items():
        if child in core and relation.kind == "merge":
            found[child] = list(merges_of(sketches, heritage.first_pass, heritage.second_pass, child))
            if relation.attributes["method"] == SPARSE:
                found[child] += _sparse_options(sketches, heritage, child)
    return found


def _sparse_options(sketches: Sequence[Sketch], heritage: Heritage, child: int) -> list[Relation]:
    """What parts of updates may make a model, by which of the models that these are of turn out to be merges."""
    first, second = heritage.first_pass, heritage.second_pass
    place = {model: at for at, model in enumerate(first.models)}
    made = {one for one, relation in heritage.relations.items() if relation.attributes.get("method") != SPARSE}
    found: list[Relation] = []
    left: list[set[int]] = [set()]  # of models to do without, fewest first
    for without in left:
        if len(found) == OPTIONS:
            break
        one = sparse_merge(sketches, first, second, child, made | without, {})
        if one is not None and one not in found:
            found.append(one)
            left += [without | {other} for other in (*one.parents, place[one.attributes["base"]])]
    return found


def _relation_rows(heritage: Heritage, core: set[int], merges: dict[int, list[Relation]]) -> Iterator[dict]:
    """What made models of the core by exact operations."""
    for child, relation in heritage.relations.items():
        if child in core and child not in merges:
            yield from _parent_rows(heritage, EDGE, child, relation)
    for child, options in merges.items():
        for rank, option in enumerate(options):
            yield from _parent_rows(heritage, MERGE, child, option, weight=float(rank))


def _twin_rows(heritage: Heritage) -> Iterator[dict]:
    """Which rounding models of the core hold."""
    models = heritage.first_pass.models
    for (twin, original, child), ratio in heritage.twins.items():
        if ratio:
            yield _row(TWIN, models[twin], models[child], {"original": models[original]}, weight=ratio)


def _parent_rows(heritage: Heritage, what: str, child: int, relation: Relation, **values: float) -> Iterator[dict]:
    """A row for each parent that a relation names."""
    models, told = heritage.first_pass.models, replace(heritage, relations={child: relation})
    for parent in relation.parents:
        yield _row(what, models[parent], models[child], typed_graph.relation_facts(told, parent, child), **values)


def pair_facts(heritage: Heritage, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    """What the typed graph would say of each of these edges if training had made it: kind, rank, relative change."""
    place = {model: at for at, model in enumerate(heritage.first_pass.models)}
    return {(one, other): typed_graph.pair_facts(heritage, place[one], place[other]) for one, other in pairs}


def odds(cluster: Cluster, one: int, other: int) -> tuple[float, float]:
    """P(one -> other) and P(other -> one) of two members of a cluster."""
    i, j = cluster.members.index(one), cluster.members.index(other)
    return float(cluster.probability[i, j]), float(cluster.probability[j, i])
