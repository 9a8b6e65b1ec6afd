"""The Model Graph of all models in an index: groups, candidates, families, evidence on candidates, sparse trees.

Nothing is kept for every two models. A family of at most WHOLE models is traced as `recover.py` would; a larger one
block by block, and the weights of all blocks make one sparse graph. Without sketches distances of signatures alone are
the weights: kinds and arrows are unknown then.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mother.errors import InputError
from mother.graph.model_graph import Edge, ModelGraph, standing_for
from mother.graph.sparse import EXACT, Edges
from mother.heritage.calibration import read_coefficients
from mother.index.blocks import BLOCK, CORE, cut
from mother.index.candidates import Near
from mother.index.engine import Engine
from mother.index.groups import Group, load_group, members_of
from mother.index.joined import joined_groups
from mother.index.misses import Look, by_sketches
from mother.index.store import Index, arrow
from mother.index.traced import ALIAS, EDGE, GONE, LEFT_OUT, NODE, OFFER, trace_models, trace_schema
from mother.index.trees import best_edges
from mother.io.runtime import code_digest

if TYPE_CHECKING:
    import pyarrow as pa

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
    index = index.as_it_is()
    groups = joined_groups(index, work, engine)
    if not groups:
        raise InputError(f"{index.folder} holds no models that could be read.")
    sizes = sizes or Sizes()
    tests = sum(one.models * (one.models - 1) / 2 for one in groups)
    known = index.known()
    found = Found(left_out={one: row["error"] for one, row in known.items() if row["error"] is not None})
    step = progress(sum(one.models for one in groups))

    def looking(keys: list[str]) -> Look:
        return by_sketches(index, keys, work, engine, tests, error / 2, control)

    for one in groups:
        group = load_group(index, one.name, tests, error, control, one.files, looking if index.keep else None)
        found.recall = min(found.recall, group.near.recall)
        _add_models(found, group)
        for ids, table in _traced(index, group, work, engine, error, sizes):
            _add_family(found, group.name, ids, table, sizes)
        step(one.models)
    there = {*standing_for(found.nodes), *found.left_out}
    found.left_out |= {one: GONE for one in known if one not in there}
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
) -> Iterator[tuple[list[str], "pa.Table"]]:
    """(ids, what was traced) of each family of a group; traces those that are not in `work` yet."""
    jobs, of_family = [], []
    for members, near in members_of(group):
        ids = [group.ids[place] for place in members]
        if not index.keep:
            yield ids, signature_offers(group.ids, near)
            continue
        parts, outs = [(None, members.tolist())], []
        if len(members) > sizes.whole:
            parts = [(block.core, block.models) for block in cut(near, members, sizes.core, sizes.block, group.casts)]
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
    pa, _ = arrow()
    for ids, outs in of_family:
        yield ids, pa.concat_tables([read_traced(out) for out in outs])


def read_traced(path: Path) -> "pa.Table":
    """What `trace_models` wrote. Raises InputError where it is damaged."""
    pa, parquet = arrow()
    try:
        return parquet.read_table(path, schema=trace_schema())
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read ({error}). Remove it, and run again.") from None


def signature_offers(ids: Sequence[str], near: Near) -> "pa.Table":
    """Offers of parents from distances of signatures alone, both ways alike: nothing here tells arrows or kinds."""
    pa, _ = arrow()
    slope = read_coefficients().structure[0]  # of the log of a squared distance
    weight = slope * np.log(near.square.clip(1e-12))
    ends = [[ids[place] for place in some.tolist()] for some in (near.first, near.second)]
    count, nothing = 2 * len(weight), np.zeros(2 * len(weight))
    columns = {
        "what": [OFFER] * count,
        "parent": ends[0] + ends[1],
        "child": ends[1] + ends[0],
        "weight": np.r_[weight, weight],
        "beside": nothing - np.inf,
        "between": nothing,
        "private": nothing,
        "arrow": nothing,
        "most": nothing,
        "own": nothing == 0,
        "facts": ["{}"] * count,
    }
    return pa.table(columns, trace_schema())


def _add_family(found: Found, group: str, ids: list[str], table: "pa.Table", sizes: Sizes) -> None:
    """Put what was traced of a family into the graph: as it is, or as the most probable tree of all offers."""
    is_offer = np.array([one == OFFER for one in table["what"].to_pylist()], dtype=bool)
    rows = table.take(np.flatnonzero(~is_offer)).to_pylist()
    copies = {row["child"]: row["parent"] for row in rows if row["what"] == ALIAS}
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
            _make_alias(found, row["child"], _original(row["parent"], copies))
    if is_offer.any():
        there = [one for one in ids if one in found.nodes]
        named = {copy: _original(copy, copies) for copy in copies}
        found.edges += best_edges(found.nodes, there, table, sizes.exact, named)
    else:
        found.edges += [
            Edge(row["parent"], row["child"], json.loads(row["facts"])) for row in rows if row["what"] == EDGE
        ]


def _original(model: str, copies: dict[str, str]) -> str:
    """What a model is a copy of, where blocks tell this of others one after the other."""
    while model in copies:
        model = copies[model]
    return model


def _make_alias(found: Found, copy: str, original: str) -> None:
    """A copy is another name of a node, and no node."""
    if copy in found.nodes and original in found.nodes and copy != original:
        more = found.nodes.pop(copy).get("aliases", [])
        found.nodes[original]["aliases"] = sorted({*found.nodes[original].get("aliases", []), copy, *more})
