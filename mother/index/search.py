"""What is one model made from? Its nearest relatives in an index, from signatures first, then from sketches.

The model is read. Of the index the signatures of models of its shapes are gone through twice, some at a time, those of
a few groups of other names or shapes as well (mother/index/others.py), and the sketches of the candidates are opened:
of all that are related by their signatures, and of near misses. A candidate whose sketch is not kept is read, if that
can be; else signatures alone speak of it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from jaxtyping import Float

from mother.collection.find import Source
from mother.errors import CheckpointError, InputError
from mother.evidence.sketch import Sketch, kept_sketch, sketch_models
from mother.heritage.trace import trace_sketches
from mother.index.build import tensor_numbers
from mother.index.candidates import NEAR_MISS
from mother.index.casts import cast_numbers
from mother.index.others import other_groups
from mother.index.related import scores, significant
from mother.index.relatives import ORDER, Relative, by_signature, share_compared, told
from mother.index.signature import group_of, signature_of
from mother.index.store import Index, digests, signatures
from mother.io.open import open_all

K, HUBS = 12, 4  # budget: nearest models, and models nearest to most of these, that are candidates
PROBES = 32  # budget: nearest models whose own neighbours are looked for hubs among
SHARING = 3  # budget: models that share most tensors, that it may be a cast of, that may be its casts
VOTED = 1024  # budget: values of signatures by which these are found
VOTES = 4  # budget: neighbours of each of these that count
SHOWN = 10  # relatives that are told
CACHED = 1 << 28  # budget: values in float16 that are kept between the passes of a search
ROWS = 1024  # budget: signatures that are held in float32 at a time


@dataclass
class Scan:
    """The signatures of a group, block by block; those of a group of up to CACHED values are read once."""

    index: Index
    group: str
    kept: list[Float[np.ndarray, "_ _"]] = field(default_factory=list)
    whole: bool = False  # whether `kept` is all

    def stored(self) -> Iterator[Float[np.ndarray, "_ _"]]:
        """The signatures as they are stored."""
        if self.whole:
            yield from self.kept
            return
        size, self.kept = 0, []
        for table in self.index.tables(["signature"], self.group):
            values = signatures(table)
            size += values.size
            self.kept = [*self.kept, values] if size <= CACHED else []
            yield values
        self.whole = size <= CACHED

    def blocks(self, width: int | None = None) -> Iterator[tuple[int, Float[np.ndarray, "models values"]]]:
        """Unit signatures of some models, of the first `width` values or all, and the place of the first."""
        start = 0
        for values in self.stored():
            for at in range(0, len(values), ROWS):
                yield start + at, unit_of(values[at : at + ROWS, :width])
            start += len(values)

    def units(self, places: list[int]) -> Float[np.ndarray, "places samples"]:
        """Unit signatures of these models."""
        start, found = 0, {}
        for values in self.stored():
            here = [place for place in places if start <= place < start + len(values)]
            found |= dict(zip(here, unit_of(values[np.array(here, dtype=int) - start])))
            start += len(values)
        return np.stack([found[place] for place in places])

    def sharing(self, wanted: Mapping[str, list[int]]) -> list[int]:
        """Places of models of which digests tell: of each column the SHARING ones that have most of what is wanted."""
        start, count = 0, {column: Counter[int]() for column in wanted}
        for table in self.index.tables(list(wanted), self.group):
            for column, some in wanted.items():
                found, owner = digests(table, column)
                count[column].update((start + owner[np.isin(found, np.array(some, dtype=np.uint64))]).tolist())
            start += len(table)
        return [place for some in count.values() for place, _ in some.most_common(SHARING)]

    def nearest(
        self, probes: Float[np.ndarray, "probes samples"], count: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(places, squared distances, units) of the `count` nearest models of each probe, nearest first."""
        places, square = np.zeros((len(probes), 0), int), np.zeros((len(probes), 0))
        units = np.zeros((len(probes), 0, probes.shape[1]), np.float32)
        for start, part in self.blocks(probes.shape[1]):
            far = (2 - 2 * probes @ part.T).clip(0).astype(np.float64)
            some = np.argsort(far, axis=1, kind="stable")[:, :count]
            places = np.concatenate([places, start + some], axis=1)
            square = np.concatenate([square, np.take_along_axis(far, some, 1)], axis=1)
            # Units are needed of the nearest of a single probe alone.
            units = np.concatenate([units, part[some] if len(probes) == 1 else units[:, :0]], axis=1)
            best = np.argsort(square, axis=1, kind="stable")[:, :count]
            places, square = np.take_along_axis(places, best, 1), np.take_along_axis(square, best, 1)
            units = np.take_along_axis(units, best[:, :, None], 1) if len(probes) == 1 else units
        return places, square, units


def unit_of(values: Float[np.ndarray, "models samples"]) -> Float[np.ndarray, "models samples"]:
    """Signatures of length 1 in float32."""
    unit = values.astype(np.float32)
    return unit / np.sqrt(np.einsum("ij,ij->i", unit, unit)).clip(1e-30)[:, None]


def search_index(
    index: Index, source: Source, error: float = 0.01, control: str = "family", by_sketch: bool = True
) -> tuple[str, int, list[Relative]]:
    """(id of the model, models of the index that it was compared with, its relatives, likeliest first).

    Raises InputError where the model cannot be read.
    """
    with TemporaryDirectory() as room:
        sketch = _read([source], Path(room), index.entries)[0]
        tests, found = search_sketch(index, sketch, Path(room), error, control, by_sketch)
    return sketch.model, tests, found


def search_sketch(
    index: Index, sketch: Sketch, room: Path, error: float = 0.01, control: str = "family", by_sketch: bool = True
) -> tuple[int, list[Relative]]:
    """The same of a model that was read; `room` is a folder for models of the index that are read.

    Without `by_sketch` none is: signatures speak, and the sketches that an index keeps match other names alone.
    """
    index, group = index.as_it_is(), group_of(sketch.shapes)
    groups = [(group, sketch, sketch.shapes)]
    groups += other_groups(index, sketch, group, lambda name, most: _some_of(index, name, most, room, by_sketch))
    rows, z, square, tests = _candidates(index, groups)
    if not tests:
        return 0, []
    related = significant(z, tests, error, control)
    fitting = [row for row, fits, score in zip(rows, related, z) if fits or score > NEAR_MISS]
    known = _by_sketch(index, sketch, fitting, room, error / tests) if by_sketch else {}
    found = [known.get(row["id"]) or by_signature(row, bool(fits)) for row, fits in zip(rows, related)]
    found = [
        replace(one, z=round(float(score), 2), distance=round(float(far) ** 0.5, 6))
        for one, score, far in zip(found, z, square)
    ]
    found.sort(key=lambda one: (ORDER[one.verdict], -(one.probability or 0) * (one.arrow or 0), one.distance))
    return tests, found[:SHOWN]


def _candidates(
    index: Index, groups: Sequence[tuple[str, Sketch, dict]]
) -> tuple[list[dict], Float[np.ndarray, "chosen"], Float[np.ndarray, "chosen"], int]:
    """Rows of the candidates of all groups, scores and squared distances; and how many models there are in these.

    `compared` of a row is the share of weights that signatures are of, see `share_compared`.
    """
    rows, z, square, tests = [], [np.zeros(0)], [np.zeros(0)], 0
    for name, sketch, shapes in groups:
        there = index.rows(["id", "location", "base", "state", "key", "facts"], name)
        if there:
            own = signature_of(sketch, index.entries, index.samples, shapes).astype(np.float32)
            one = cast_numbers(sketch, shapes)
            # What it is a cast of would have its parts, and its own casts would have what was cast from it.
            exact = {"tensors": tensor_numbers(sketch.facts.digests), "casts": one["parts"], "parts": one["casts"]}
            chosen, score, far = candidates_of(Scan(index, name), own, exact)
            rows += [there[place] | {"compared": share_compared(sketch, shapes, there[place])} for place in chosen]
            z.append(score)
            square.append(far)
            tests += len(there)
    return rows, np.concatenate(z), np.concatenate(square), tests


def _some_of(index: Index, group: str, most: int, room: Path, may_read: bool) -> list[Sketch]:
    """Sketches of some models of a group, evenly over it: those that are kept, else of one that can and may be read."""
    rows = index.rows(["id", "location", "base", "state", "key"], group)
    kept = [_kept(index, row) for row in rows[:: -(-len(rows) // most)]]
    if found := [one for one in kept if one is not None]:
        return found
    for row in rows[:most] if may_read else ():
        try:
            return _read([_source(row)], room, index.entries)
        except (InputError, CheckpointError, OSError):
            continue
    return []


def _kept(index: Index, row: dict) -> Sketch | None:
    return kept_sketch(index.sketches / f"{row['key']}.safetensors", row["key"])


def _source(row: dict) -> Source:
    return Source(row["id"], row["location"], row["base"], (), row["state"])


def _read(sources: Sequence[Source], room: Path, entries: int) -> list[Sketch]:
    """Sketches of models that are read now. Raises InputError where one cannot be."""
    opened, left_out = open_all(one.opened_by() for one in sources)
    taken = sketch_models(opened, room, entries)
    for why in (left_out | taken.left_out).values():
        raise InputError(why)
    return taken.sketches


def candidates_of(
    scan: Scan, own: Float[np.ndarray, "samples"], exact: Mapping[str, list[int]]
) -> tuple[list[int], Float[np.ndarray, "chosen"], Float[np.ndarray, "chosen"]]:
    """Places of the models that may be relatives, with scores and squared distances."""
    unit = unit_of(own[None])[0]
    places, _, units = scan.nearest(unit[None], PROBES)
    near = places[0].tolist()
    votes: Counter[int] = Counter()
    for row, probe in zip(scan.nearest(unit_of(units[0][:, :VOTED]), VOTES + 1)[0].tolist(), near):
        votes.update(one for one in row if one != probe)
    chosen = near[:K] + [one for one, _ in votes.most_common(HUBS)]
    chosen += scan.sharing(exact)
    chosen = list(dict.fromkeys(chosen))
    theirs = scan.units(chosen)
    return chosen, scores(theirs, unit[None]), np.square(theirs - unit).sum(axis=1, dtype=np.float64)


def _by_sketch(index: Index, sketch: Sketch, rows: list[dict], room: Path, error: float) -> dict[str, Relative]:
    """What sketches say of the model and each of its candidates; those that cannot be had are left out."""
    sketches = []
    for row in rows:
        kept = _kept(index, row)
        if kept is None:
            try:
                kept = _read([_source(row)], room, index.entries)[0]
            except (InputError, CheckpointError, OSError):
                continue
        sketches.append(replace(kept, model=row["id"]))
    if not sketches:
        return {}
    name = "\0"  # no id in an index is this: the model may be in it
    heritage = trace_sketches([replace(sketch, model=name), *sketches], torch.device("cpu"), error)
    models = heritage.first_pass.models
    by_id = {row["id"]: row for row in rows}
    return {one: told(heritage, models.index(name), models.index(one), by_id[one]) for one in models if one != name}
