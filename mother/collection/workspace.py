"""Anybody's models: opened, sorted into groups that can be compared, traced, and kept so that more can be added.

A result folder holds `collection.json` (which models, where they are, what they claim, the settings), the sketches in
`models/` and the measurements of each group in `measurements/`. With these a model is added without reading the others,
and two models are explained without reading any.
"""

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import combinations, count
from pathlib import Path
from tempfile import TemporaryDirectory

import networkx as nx
import numpy as np
import torch
from jaxtyping import Float

from mother.collection.adapted import check_bases
from mother.collection.copies import sketch_once
from mother.collection.find import Found, Source
from mother.collection.gaps import Gaps, aside_of
from mother.collection.lone import hang, is_lone, set_aside
from mother.collection.siblings import adapters_alone, join_siblings
from mother.collection.state import State, read_state, write_state
from mother.errors import InputError
from mother.evidence.alignment import align, notes
from mother.evidence.candidates import comparable_square
from mother.evidence.facts import SKETCH_ENTRIES
from mother.evidence.sketch import Sketch, kept_sketch, sketch_key
from mother.graph.model_graph import Edge, ModelGraph
from mother.heritage.trace import Progress, trace_sketches
from mother.heritage.trees import Heritage
from mother.heritage.typed_graph import build_graph
from mother.io.open import open_all
from mother.io.spool import Spool
from mother.io.traffic import Traffic, taken

ALIKE = 0.5  # share of the smaller model's entries that two must have in equal shapes to be compared


@dataclass
class Group:
    """Models of one architecture, and what was found about them. Places are those of `heritage.first_pass.models`."""

    name: str
    sketches: list[Sketch]
    heritage: Heritage

    def distances(self) -> Float[np.ndarray, "models models"]:
        """Distance over the root of the product of the two norms: 0 for equal, about 1.4 for unrelated models."""
        size = np.sqrt(self.heritage.first_pass.size)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # huge weights beside none
            return np.sqrt(comparable_square(self.heritage.first_pass) / np.maximum(np.outer(size, size), 1e-300))

    def adjacency(self, one: str, other: str) -> float | None:
        """Probability that two models are parent and child; None where it was not asked. Copies stand for another."""
        place = {model: at for at, model in enumerate(self.heritage.first_pass.models)}
        if one not in place or other not in place:
            return None
        first, second = (self.heritage.aliases.get(place[model], place[model]) for model in (one, other))
        for cluster in self.heritage.clusters:
            if first in cluster.members and second in cluster.members and first != second:
                i, j = cluster.members.index(first), cluster.members.index(second)
                return float(min(1.0, cluster.probability[i, j] + cluster.probability[j, i]))
        return 0.0 if first != second else None


@dataclass
class Recovered:
    """What was found about a collection."""

    graph: ModelGraph
    groups: list[Group]
    state: State
    traffic: Traffic = Traffic()  # with the Hub
    copied: dict[str, str] = field(default_factory=dict)  # models with the files of another one, which were read once
    listed: dict[str, list[dict]] = field(default_factory=dict)  # of models that are in no group: their files

    @property
    def files(self) -> dict[str, list[dict]]:
        """The files that each model was read from: name, size, SHA-256."""
        return self.listed | {one.model: one.files for group in self.groups for one in group.sketches}

    @property
    def sources(self) -> list[Source]:
        """The models that it is of."""
        return self.state.sources

    def group_of(self, model: str) -> Group:
        """The group that a model is in; raises InputError, with why it is in none."""
        for group in self.groups:
            if model in group.heritage.first_pass.models:
                return group
        if model in self.graph.left_out:
            raise InputError(f"{model} was left out. {self.graph.left_out[model]}")
        close = [source.id for source in self.sources if source.id.endswith(f"/{model}")]
        hint = f" Do you mean {close[0]}?" if close else " Ids are those that the tree shows."
        raise InputError(f"no model here is called {model!r}.{hint}")


def group_by_shapes(sketches: Sequence[Sketch]) -> list[list[Sketch]]:
    """Models that can be compared: connected by having half of their entries, or more, in layers of equal shapes.

    Largest group first; models in each in their order.
    """
    signatures: dict[frozenset, list[Sketch]] = {}
    for sketch in sketches:
        signatures.setdefault(frozenset(sketch.shapes.items()), []).append(sketch)

    def entries(signature: frozenset) -> int:
        return sum(rows * columns for _, (rows, columns) in signature)

    alike = nx.Graph()
    alike.add_nodes_from(signatures)
    for one, other in combinations(signatures, 2):
        if entries(one & other) >= ALIKE * min(entries(one), entries(other)):
            alike.add_edge(one, other)
    merged = [[one for kind in kinds for one in signatures[kind]] for kinds in nx.connected_components(alike)]
    order = {sketch.model: at for at, sketch in enumerate(sketches)}
    found = [sorted(members, key=lambda sketch: order[sketch.model]) for members in merged]
    return sorted(found, key=lambda members: (-len(members), order[members[0].model]))


def _title(members: Sequence[Sketch]) -> str:
    """A name for a group, by the shapes that most of it have."""
    shapes = [tuple(sorted(sketch.shapes.items())) for sketch in members]
    common = dict(max(shapes, key=lambda one: (shapes.count(one), one)))
    entries = sum(rows * columns for rows, columns in common.values())
    size = next(
        f"{entries / unit:.3g}{name}" for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k"), (1, "")) if entries >= unit
    )
    widths = [columns for _, columns in common.values()]
    blocks = len({layer.block for layer in common if layer.block})
    deep = f"{blocks} {'blocks' if blocks > 1 else 'block'}, " if blocks else ""
    matrices = f"{len(common)} {'matrices' if len(common) > 1 else 'matrix'}"
    return f"{deep}width {max(set(widths), key=widths.count)}, {size} weights in {matrices}"


def _join(groups: Sequence[Group], left_out: dict[str, str], name: str) -> ModelGraph:
    """One graph of all groups: trees are numbered through, and each node knows its group."""
    nodes: dict[str, dict] = {}
    edges: list[Edge] = []
    trees = 0
    for number, group in enumerate(groups):
        graph = build_graph(name, group.heritage)
        renamed = {key: key for key in graph.nodes}
        for key, facts in graph.nodes.items():
            if facts.get("hidden") and key in nodes:  # the same children's names cannot be, but be safe
                renamed[key] = f"{key} ({number})"
            nodes[renamed[key]] = {**facts, "tree": str(trees + int(facts["tree"])), "group": group.name}
        edges += [Edge(renamed[edge.parent], renamed[edge.child], edge.attributes) for edge in graph.edges]
        trees += len(group.heritage.clusters)
    return ModelGraph(name, nodes, tuple(edges), left_out)


def recover_sources(
    sources: Sequence[Source],
    folder: Path | None,
    device: torch.device,
    error: float = 0.01,
    sketch: int = SKETCH_ENTRIES,
    progress: Progress = lambda title: lambda total: lambda *count: None,
    known: Sequence[tuple[Source, str]] = (),
    name: str = "recover",
    gaps: Gaps | None = None,
) -> Recovered:
    """Open, read, group and trace models, and keep what was measured in `folder`.

    `known` are models of an earlier run with the keys of their sketches in `folder`: they are not opened. Models that
    cannot be used are left out with the reason; raises InputError where none can be used. `gaps` are what was found
    beside the models.
    """
    gaps = gaps or Gaps()
    if not 0 < error < 1:
        raise InputError(f"the error level must be between 0 and 1, not {error}.")
    if sketch < 1024:
        raise InputError(f"a sketch must have at least 1024 entries of a matrix, not {sketch}.")
    with nullcontext(folder) if folder is not None else TemporaryDirectory() as there:
        everyone = [source for source, _ in known] + list(sources)
        models = Path(there) / "models"
        sketches, left_out, aside, lone, alone, copied = _sketches_of(known, sources, models, sketch, progress)
        gaps = gaps.joined(aside)
        if not sketches:
            raise InputError(f"none of the {len(everyone)} models can be used. {next(iter(left_out.values()))}")
        keep = Path(there) / "measurements" if folder is not None else None
        aligned = align(sketches)
        places = {source.location: source.id for source in everyone}
        bases = {source.id: places[source.base] for source in everyone if source.base in places}
        groups = _trace_groups(aligned.sketches, device, error, progress, keep, bases)
        # What is made of adapters without a base depends on what else is there: they are opened again.
        keys = {one.model: one.key for one in sketches if one.model not in alone} | lone
        said = gaps.notes() + notes(aligned.matched)
        graph = replace(_join(groups, left_out | gaps.unusable, name), notes=said, not_read=gaps.not_read)
        spool = Spool()  # adapters and their bases are looked at several times
        graph = check_bases(adapters_alone(graph, alone) if alone else graph, everyone, error, spool)
        graph = hang(graph, sorted(lone), everyone, error, spool)
        based = [source.id for source in everyone if source.base is not None]
        graph = join_siblings(graph, everyone, [*lone, *alone, *based], spool)
        recovered = Recovered(graph, groups, State(everyone, keys, error, sketch, gaps), taken(), copied)
        if folder is not None:
            write_state(folder, recovered.state)
    return recovered


def _sketches_of(
    known: Sequence[tuple[Source, str]], sources: Sequence[Source], folder: Path, entries: int, progress: Progress
) -> tuple[list[Sketch], dict[str, str], Gaps, dict[str, str], list[str], dict[str, str]]:
    """Sketches sorted by id: those of `known` models from the folder, the others from the models; who has none, why.

    Also what lies beside the weights of those that were opened, adapters without a base, with their keys, adapters that
    are compared as there is nothing else, and which have the files of another one.
    """
    before = {source.id: kept_sketch(folder / f"{key}.safetensors", key) for source, key in known}
    again = [source for source, _ in known if before[source.id] is None]  # their sketches are gone
    opened, left_out = open_all(one.opened_by() for one in [*again, *sources])
    compared, lone = set_aside(opened, sum(one is not None for one in before.values()))
    read = sketch_once(compared, folder, entries, progress("reading"))
    found = [one for one in before.values() if one is not None] + read.sketches
    keys = {one.model: sketch_key(one, entries) for one in lone}
    alone = [one.model for one in compared if is_lone(one)]
    return (
        sorted(found, key=lambda one: one.model),
        left_out | read.left_out,
        aside_of(opened),
        keys,
        alone,
        read.copied,
    )


def _trace_groups(
    sketches: Sequence[Sketch],
    device: torch.device,
    error: float,
    progress: Progress,
    keep: Path | None,
    bases: dict[str, str],
) -> list[Group]:
    """The heritage of each group of comparable models; all groups together share the probability of an error."""
    found = group_by_shapes(sketches)
    tests = max(1, sum(len(members) > 1 for members in found))
    groups: list[Group] = []
    for members in found:
        # Groups that look alike are still different: no two have one name.
        title = plain = _title(members)
        for number in count(2):
            if title not in {group.name for group in groups}:
                break
            title = f"{plain} ({number})"
        digest = hashlib.sha256(repr(sorted(members[0].shapes.items())).encode()).hexdigest()[:12]
        kept = keep / digest if keep is not None else None
        heritage = trace_sketches(members, device, error / tests, progress=progress, keep=kept, based=bases)
        groups.append(Group(title, sorted(members, key=lambda one: one.model), heritage))
    return groups


def reopen(
    folder: Path,
    device: torch.device,
    add: Found | None = None,
    progress: Progress = lambda title: lambda total: lambda *count: None,
) -> Recovered:
    """A kept result, with more models in it if there are any to add.

    Models of it whose sketch is kept are not read; those that are named in `add` are looked at again.
    """
    state = read_state(folder)
    there = {source.id: source for source in state.sources}
    places = {source.location: source.id for source in state.sources}
    more, named = [], set()
    for source in add.sources if add is not None else ():
        if source.location in places:  # its weights or its card may be others now
            model = places[source.location]
            there[model] = replace(source, id=model)
            named.add(model)
            continue
        number = 2
        while source.id in there:
            source = replace(source, id=f"{source.id.rsplit(' (', 1)[0] if number > 2 else source.id} ({number})")
            number += 1
        there[source.id] = source
        more.append(source)
    known, again = [], []  # those left out then are looked at again: perhaps they can be read now
    for one in state.sources:
        source, key = there[one.id], state.keys[one.id]
        if key is None or one.id in named:
            again.append(source)
        else:
            known.append((source, key))
    gaps = state.gaps.joined(add.gaps) if add is not None else state.gaps
    return recover_sources([*again, *more], folder, device, state.error, state.sketch, progress, known, gaps=gaps)
