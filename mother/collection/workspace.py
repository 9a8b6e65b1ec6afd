"""Anybody's models: opened, sorted into groups that can be compared, traced, and kept so that more can be added.

A result folder holds `collection.json` (which models, where they are, what they claim, the settings), the sketches in
`models/` and the measurements of each group in `measurements/`. With these a model is added without reading the others,
and two models are explained without reading any.
"""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from jaxtyping import Float

from mother.collection.find import Source
from mother.errors import CheckpointError, InputError
from mother.evidence.candidates import comparable_square
from mother.evidence.facts import SKETCH_ENTRIES
from mother.evidence.sketch import Sketch, kept_sketch, sketch_models
from mother.graph.model_graph import Edge, ModelGraph
from mother.heritage.trace import Progress, trace_sketches
from mother.heritage.trees import Heritage
from mother.heritage.typed_graph import build_graph
from mother.io.checkpoint import Checkpoint
from mother.io.files import write_json
from mother.io.open import open_checkpoint
from mother.io.runtime import IN_FLIGHT

FORMAT = "mother-collection/1"

STATE = "collection.json"

ALIKE = 0.5  # share of the smaller model's entries that two must have in equal shapes to be compared


@dataclass
class Group:
    """Models of one architecture, and what was found about them. Places are those of `heritage.survey.models`."""

    name: str
    sketches: list[Sketch]
    heritage: Heritage

    def distances(self) -> Float[np.ndarray, "models models"]:
        """Distance over the root of the product of the two norms: 0 for equal, about 1.4 for unrelated models."""
        size = np.sqrt(self.heritage.first_pass.size)
        with np.errstate(divide="ignore", invalid="ignore"):
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
    sources: list[Source]
    settings: dict[str, float | int] = field(default_factory=dict)

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

    merged: list[tuple[list[frozenset], list[Sketch]]] = []
    for signature, members in signatures.items():
        joined = [signature], list(members)
        apart = []
        for kinds, others in merged:
            like = any(entries(signature & kind) >= ALIKE * min(entries(signature), entries(kind)) for kind in kinds)
            if like:
                joined = joined[0] + kinds, joined[1] + others
            else:
                apart.append((kinds, others))
        merged = [*apart, joined]
    order = {sketch.model: at for at, sketch in enumerate(sketches)}
    found = [sorted(members, key=lambda sketch: order[sketch.model]) for _, members in merged]
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
    return f"{blocks} blocks, width {max(set(widths), key=widths.count)}, {size} weights in {len(common)} matrices"


def open_sources(sources: Sequence[Source]) -> tuple[list[Checkpoint], dict[str, str]]:
    """Open models, headers only; returns those that can be read and why the others cannot."""

    def look(source: Source) -> Checkpoint | CheckpointError:
        try:
            return open_checkpoint(source.id, source.location, source.base)
        except CheckpointError as error:
            return error

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        found = list(pool.map(look, sources))
    left_out = {one.model: str(one) for one in found if isinstance(one, CheckpointError)}
    return [one for one in found if isinstance(one, Checkpoint)], left_out


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
) -> Recovered:
    """Open, read, group and trace models, and keep what was measured in `folder`.

    `known` are models of an earlier run with the keys of their sketches in `folder`: they are not opened. Models that
    cannot be used are left out with the reason; raises InputError where none can be used.
    """
    if not 0 < error < 1:
        raise InputError(f"the error level must be between 0 and 1, not {error}.")
    if sketch < 1024:
        raise InputError(f"a sketch must have at least 1024 entries of a matrix, not {sketch}.")
    with nullcontext(folder) if folder is not None else TemporaryDirectory() as there:
        there = Path(there)
        before = {source.id: kept_sketch(there / "models" / f"{key}.safetensors", key) for source, key in known}
        again = [source for source, _ in known if before[source.id] is None]  # their sketches are gone
        opened, left_out = open_sources([*again, *sources])
        taken = sketch_models(opened, there / "models", sketch, progress("reading"))
        left_out |= taken.left_out
        new = {one.model: one for one in taken.sketches}
        everyone = [source for source, _ in known] + list(sources)
        sketches = [one for source in everyone if (one := before.get(source.id) or new.get(source.id)) is not None]
        if not sketches:
            raise InputError(f"none of the {len(everyone)} models can be used. {next(iter(left_out.values()))}")
        sketches.sort(key=lambda one: one.model)
        found = group_by_shapes(sketches)
        tests = max(1, sum(len(members) > 1 for members in found))
        groups: list[Group] = []
        for members in found:
            title = _title(members)
            while title in {group.name for group in groups}:
                title += " "
            keep = None
            if folder is not None:
                digest = hashlib.sha256(repr(sorted(members[0].shapes.items())).encode()).hexdigest()[:12]
                keep = there / "measurements" / digest
            heritage = trace_sketches(members, device, error / tests, progress=progress, keep=keep)
            groups.append(Group(title.strip(), sorted(members, key=lambda one: one.model), heritage))
        recovered = Recovered(_join(groups, left_out, name), groups, everyone, {"error": error, "sketch": sketch})
        if folder is not None:
            write_state(there, recovered, {one.model: one.key for one in sketches})
    return recovered


def write_state(folder: Path, recovered: Recovered, keys: dict[str, str]) -> None:
    """Keep which models a result is of, so that it can be added to."""
    sources = [{**source.to_json(), "sketch": keys.get(source.id)} for source in recovered.sources]
    write_json(folder / STATE, {"format": FORMAT, **recovered.settings, "sources": sources})


def read_state(folder: Path) -> tuple[list[tuple[Source, str | None]], float, int]:
    """(sources with the keys of their sketches, error level, entries of a sketch) of a result folder.

    Raises InputError where there is none.
    """
    try:
        content = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f'it does not say "format": "{FORMAT}"')
        sources = [
            (Source.from_json({k: v for k, v in one.items() if k != "sketch"}), one["sketch"])
            for one in content["sources"]
        ]
        if any(key is not None and not (isinstance(key, str) and key.isalnum()) for _, key in sources):
            raise ValueError("a sketch has an odd name")
        return sources, float(content["error"]), int(content["sketch"])
    except FileNotFoundError:
        raise InputError(f"{folder} holds no result. Run `python recover.py MODEL ... --out {folder}` first.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as reason:
        raise InputError(f"{folder / STATE} cannot be used ({reason}). Run `python recover.py` again.") from None


def reopen(
    folder: Path,
    device: torch.device,
    add: Sequence[Source] = (),
    progress: Progress = lambda title: lambda total: lambda *count: None,
) -> Recovered:
    """A kept result, with more models in it if there are any to add. Models of it whose sketch is kept are not read."""
    kept, error, sketch = read_state(folder)
    there = {source.id: source for source, _ in kept}
    places = {source.location: source.id for source, _ in kept}
    more = []
    for source in add:
        if source.location in places:
            continue  # it is there already
        number = 2
        while source.id in there:
            source = replace(source, id=f"{source.id.rsplit(' (', 1)[0] if number > 2 else source.id} ({number})")
            number += 1
        there[source.id] = source
        more.append(source)
    known = [(source, key) for source, key in kept if key is not None]
    again = [source for source, key in kept if key is None]  # left out then: perhaps they can be read now
    return recover_sources([*again, *more], folder, device, error, sketch, progress, known)
