"""The Model Graph of all models in an index: groups, candidates, families, evidence on candidates, sparse trees.

Nothing is kept for every two models. A family of at most WHOLE models is traced as `recover.py` would; a larger one
block by block, and the weights of all blocks make one sparse graph. Without sketches distances of signatures alone are
the weights: kinds and arrows are unknown then.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mother.errors import InputError
from mother.graph.acyclic import find_circle
from mother.graph.model_graph import Edge, ModelGraph
from mother.graph.sparse import EXACT, Edges, Forest, most_probable_forest
from mother.heritage.calibration import read_coefficients
from mother.heritage.typed_graph import KNOWN
from mother.index.blocks import BLOCK, CORE, cut
from mother.index.candidates import Near
from mother.index.engine import Engine
from mother.index.groups import Group, group_names, load_group, members_of
from mother.index.store import Index, arrow
from mother.index.traced import ALIAS, EDGE, LEFT_OUT, NODE, OFFER, trace_models
from mother.io.runtime import code_digest

WHOLE = 200  # budget: models of a family that is traced as a whole, as by recover.py


@dataclass(frozen=True)
class Sizes:
    """What bounds memory and time: models of a whole family, of a core, of a block, of exact probabilities."""

    whole: int = WHOLE
    core: int = CORE
    block: int = BLOCK
    exact: int = EXACT


@dataclass
class Found:
    """Nodes and edges of all groups, with their attributes."""

    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    recall: float = 1.0  # the least of the searches

    def model_graph(self, name: str) -> ModelGraph:
        """As recover.py writes it."""
        return ModelGraph(name, self.nodes, tuple(self.edges), self.left_out)


def index_graph(
    index: Index,
    work: Path,
    engine: Engine,
    error: float = 0.01,
    control: str = "family",
    sizes: Sizes | None = None,
    progress: Callable[[int], Callable[..., object]] = lambda total: lambda count=1: None,
) -> Found:
    """The Model Graph of an index. What is traced is kept in `work`, so that an interrupted run goes on.

    Raises InputError where nothing is in the index.
    """
    names = group_names(index)
    if not names:
        raise InputError(f"{index.folder} holds no models that could be read.")
    sizes = sizes or Sizes()
    tests = sum(size * (size - 1) / 2 for _, size in names)
    found = Found(left_out={one: row["error"] for one, row in index.known().items() if row["error"] is not None})
    step = progress(sum(size for _, size in names))
    for name, size in names:
        group = load_group(index, name, tests, error, control)
        found.recall = min(found.recall, group.near.recall)
        _add_models(found, group)
        for ids, rows in _traced(index, group, work, engine, error, sizes):
            _add_family(found, group.name, ids, rows, sizes)
        step(size)
    _number_trees(found)
    return found


def _number_trees(found: Found) -> None:
    """Number the trees: what edges join."""
    place = {one: at for at, one in enumerate(found.nodes)}
    ends = np.array([(place[edge.parent], place[edge.child]) for edge in found.edges], dtype=np.int64).reshape(-1, 2)
    trees = Edges(len(place), ends[:, 0], ends[:, 1], np.zeros(len(ends))).components()
    for facts, tree in zip(found.nodes.values(), trees.tolist()):
        facts["tree"] = str(tree)


def _add_models(found: Found, group: Group) -> None:
    """A node for each model of a group; those of copies hold their names."""
    for place, one in enumerate(group.ids):
        if place not in group.copies:
            found.nodes[one] = {"tree": "", "group": group.name, "root": 1.0}
    for copy, original in sorted(group.copies.items()):
        found.nodes[group.ids[original]].setdefault("aliases", []).append(group.ids[copy])


def _traced(
    index: Index, group: Group, work: Path, engine: Engine, error: float, sizes: Sizes
) -> Iterator[tuple[list[str], list[dict]]]:
    """(ids, rows) of each family of a group; traces those that are not in `work` yet."""
    jobs, of_family = [], []
    for members, near in members_of(group):
        ids = [group.ids[place] for place in members]
        if not index.keep:
            yield ids, signature_rows(group.ids, near)
            continue
        parts, outs = [(None, members.tolist())], []
        if len(members) > sizes.whole:
            parts = [(block.core, block.models) for block in cut(near, members, sizes.core, sizes.block)]
        for core, models in parts:
            what = [(group.ids[place], group.keys[place]) for place in models]
            inside = None if core is None else [group.ids[place] for place in core]
            digest = hashlib.sha256(repr((code_digest(), what, inside, error)).encode()).hexdigest()[:24]
            outs.append(work / f"{digest}.parquet")
            if not outs[-1].exists():
                jobs.append((str(index.folder), what, inside, error, str(outs[-1])))
        of_family.append((ids, outs))
    for _ in engine.run(trace_models, jobs):
        pass
    for ids, outs in of_family:
        yield ids, [row for out in outs for row in read_rows(out)]


def read_rows(path: Path) -> list[dict]:
    """What `trace_models` wrote. Raises InputError where it is damaged."""
    pa, parquet = arrow()
    try:
        return parquet.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read ({error}). Remove it, and run again.") from None


def signature_rows(ids: Sequence[str], near: Near) -> list[dict]:
    """Offers of parents from distances of signatures alone, both ways alike: nothing here tells arrows or kinds."""
    slope = read_coefficients().structure[0]  # of the log of a squared distance
    rows = []
    for i, j, square in zip(near.first.tolist(), near.second.tolist(), near.square.tolist()):
        for parent, child in ((i, j), (j, i)):
            weight = float(slope * np.log(max(square, 1e-12)))
            offer = {"what": OFFER, "parent": ids[parent], "child": ids[child], "weight": weight, "facts": "{}"}
            rows.append(offer)
    return rows


def _add_family(found: Found, group: str, ids: list[str], rows: list[dict], sizes: Sizes) -> None:
    """Put what was traced of a family into the graph: as it is, or as the most probable tree of all offers."""
    for row in rows:
        facts = json.loads(row["facts"])
        if row["what"] == NODE:
            below = {key: value for key, value in facts.items() if key not in ("tree", "aliases")}
            node = found.nodes.setdefault(row["child"], {"tree": "", "group": group})
            node |= below
            for alias in facts.get("aliases", ()):
                _make_alias(found, alias, row["child"])
        elif row["what"] == LEFT_OUT:
            found.left_out[row["child"]] = facts["why"]
            found.nodes.pop(row["child"], None)
        elif row["what"] == ALIAS:
            _make_alias(found, row["child"], row["parent"])
    if any(row["what"] == OFFER for row in rows):
        found.edges += best_edges(found, [one for one in ids if one in found.nodes], rows, sizes)
    else:
        found.edges += [
            Edge(row["parent"], row["child"], json.loads(row["facts"])) for row in rows if row["what"] == EDGE
        ]


def _make_alias(found: Found, copy: str, original: str) -> None:
    """A copy is another name of a node, and no node."""
    if copy in found.nodes and original in found.nodes and copy != original:
        more = found.nodes.pop(copy).get("aliases", [])
        found.nodes[original]["aliases"] = sorted({*found.nodes[original].get("aliases", []), copy, *more})


def best_edges(found: Found, ids: list[str], rows: list[dict], sizes: Sizes) -> list[Edge]:
    """The edges of the most probable forest of a family by its offers, typed, and the further parents of merges."""
    place = {one: at for at, one in enumerate(ids)}
    rows = [row for row in rows if row["parent"] in place and row["child"] in place]
    offers = {(place[row["parent"]], place[row["child"]]): row for row in rows if row["what"] == OFFER}
    exact: dict[int, dict[int, dict]] = defaultdict(dict)
    for row in rows:
        if row["what"] == EDGE:
            exact[place[row["child"]]][place[row["parent"]]] = json.loads(row["facts"])
    forest = _without_circles(offers, exact, len(ids), sizes)
    edges = []
    for at, one in enumerate(ids):
        found.nodes[one] |= {"root": round(float(forest.root[at]), 4), "how": how(forest, at)}
        parent = int(forest.parent[at])
        if parent in exact[at]:
            sure = {"adjacency": 1.0, "arrow": 1.0, "direction": "known", "how": "exact relation"}
            edges += [Edge(ids[other], one, facts | sure) for other, facts in exact[at].items()]
        elif parent >= 0:
            edges.append(Edge(ids[parent], one, tree_facts(forest, at, json.loads(offers[parent, at]["facts"]))))
    return edges


def _without_circles(
    offers: dict[tuple[int, int], dict], exact: dict[int, dict[int, dict]], models: int, sizes: Sizes
) -> Forest:
    """The most probable forest that closes no circle with the further parents of merges.

    Of each circle the least sure of the tree's edges is taken out of `offers`.
    """
    while True:
        pairs = np.array(list(offers), dtype=np.int64).reshape(-1, 2)
        values = np.array([row["weight"] for row in offers.values()], dtype=np.float64)
        forest = most_probable_forest(Edges(models, pairs[:, 0], pairs[:, 1], values), sizes.exact)
        tree = [(int(parent), child) for child, parent in enumerate(forest.parent) if parent >= 0]
        merged = [(other, child) for parent, child in tree if parent in exact[child] for other in exact[child]]
        circle = find_circle([*tree, *merged])
        if not circle:
            return forest
        drop = [edge for edge in circle if edge in offers and edge[0] not in exact[edge[1]]] or circle
        drop = [edge for edge in drop if forest.parent[edge[1]] == edge[0]]
        if not drop:  # merges of each other: no more than one parent of theirs is told
            for _, child in circle:
                exact[child] = {}
            continue
        del offers[min(drop, key=lambda edge: forest.adjacency[edge[1]])]


def how(forest: Forest, at: int) -> str:
    """Whether probabilities are exact or local."""
    return "exact" if forest.exact[at] else "local"


def tree_facts(forest: Forest, at: int, facts: dict[str, Any]) -> dict[str, Any]:
    """The attributes of the edge into a model."""
    adjacency, arrow_ = round(float(forest.adjacency[at]), 4), round(float(forest.arrow[at]), 4)
    direction = "known" if arrow_ >= KNOWN else "unknown"
    said = {"kind": None, "adjacency": adjacency, "arrow": arrow_, "direction": direction, "how": how(forest, at)}
    return said | facts
