"""Build an index: every model is read once, in shards that workers write by themselves.

A shard that is written stays. A run that was killed, and one with more models, goes through the headers of all, and
reads those that are new or changed.
"""

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mother.collection.find import Source
from mother.errors import CheckpointError
from mother.evidence.keys import sketch_key
from mother.evidence.sketch import Sketch, kept_sketch, sketch_models
from mother.index.casts import cast_numbers, number_of
from mother.index.engine import Engine
from mother.index.others import shapes_text
from mother.index.signature import group_of, signature_of
from mother.index.stale import ON_HUB, moved_away, no_longer_there, place_of, remove_sketches
from mother.index.store import Index, open_index
from mother.io.checkpoint import Checkpoint
from mother.io.open import open_each

SHARD = 64  # budget: models of a shard: what a killed run, or a worker that dies, reads again


@dataclass(frozen=True)
class Built:
    """What a build did: how many models it read, how many were there already, and why others could not be read.

    `gone` are models that have left the index.
    """

    read: int
    there: int
    left_out: dict[str, str]
    gone: frozenset[str] = frozenset()


def build(
    index: Index,
    sources: Sequence[Source],
    engine: Engine,
    progress: Callable[[int], Callable[..., object]] = lambda total: lambda count=1: None,
    named: Iterable[str] = (),
    only: bool = False,
) -> Built:
    """Read the models that an index lacks, or has otherwise. Those that cannot be read are said, and tried again.

    Models leave that the folders in `named` no longer have, see mother/index/stale.py, or with `only` all but these.
    """
    known = index.known()
    gone = no_longer_there(known, sources, named, only)
    here = name_apart(sources, {one: row for one, row in known.items() if one not in gone})
    _take_out(index, gone - {one.id for one in here})
    first, jobs = index.next_number(), []
    for at in range(0, len(here), SHARD):
        some = here[at : at + SHARD]
        before = {one.id: known[one.id] for one in some if one.id in known and one.id not in gone}
        jobs.append((str(index.folder), first + len(jobs), [one.to_json() for one in some], before))
    step, read, there, left_out = progress(len(here)), 0, 0, {}
    for done in engine.run(read_shard, jobs):
        read, there = read + done["read"], there + done["there"]
        left_out |= done["left_out"]
        step(done["read"] + done["there"] + len(done["left_out"]))
    moved = moved_away(index, index.known(), {one.id for one in here})
    _take_out(index, moved)
    index.compact()
    remove_sketches(index, {row["key"] for row in index.known().values()})
    return Built(read, there, left_out, frozenset(gone | moved))


def _take_out(index: Index, models: Collection[str]) -> None:
    """Let models leave the index."""
    if models:
        index.write(index.next_number(), [{"id": one} for one in sorted(models)])


def name_apart(sources: Sequence[Source], known: dict[str, dict[str, Any]]) -> list[Source]:
    """Sources with ids that no other model of the index has; one that is there at the same place keeps its id."""
    by_place = {place_of(row["location"]): one for one, row in known.items()}
    taken, named = set(known), []
    for source in sources:
        if (place := place_of(source.location)) in by_place:
            named.append(replace(source, id=by_place[place]))
            continue
        name, number = source.id, 2
        while name in taken:
            name, number = f"{source.id} ({number})", number + 1
        taken.add(name)
        named.append(replace(source, id=name))
    return named


def read_shard(folder: str, number: int, sources: list[dict], before: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Read some models into one shard of an index; `before` is what the index knows of them. For a worker."""
    index = open_index(Path(folder))
    chosen = [Source.from_json(one) for one in sources]
    by_id = {one.id: one for one in chosen}
    opened, failed = open_each(one.opened_by() for one in chosen)
    left_out = {model: str(error) for model, error in failed.items()}
    passing = {model for model, error in failed.items() if error.transient}
    missing = [one for one in opened if not _is_there(one, by_id[one.model], index, before.get(one.model))]
    with nullcontext(folder) if index.keep else TemporaryDirectory() as room:
        taken = sketch_models(missing, Path(room) / "sketches", index.entries)
        rows = []
        for sketch in taken.sketches:
            try:
                rows.append(row_of(sketch, by_id[sketch.model], index))
            except CheckpointError as error:
                left_out[sketch.model] = str(error)
    left_out |= taken.left_out
    read = len(rows)
    # One that failed before, too, has its row; so has one that was read, and cannot be while a fault lasts.
    stay = {one for one, row in before.items() if row["key"] is None or one in passing | taken.passing}
    rows += [_place(by_id[one]) | {"error": why} for one, why in left_out.items() if one not in stay]
    if rows:
        index.write(number, rows)
    return {"read": read, "there": len(opened) - len(missing), "left_out": left_out}


def _is_there(checkpoint: Checkpoint, source: Source, index: Index, row: dict[str, Any] | None) -> bool:
    """Whether an index has a model as it is. What changed beside its weights is written anew from the kept sketch."""
    key, place = (row or {}).get("key"), _place(source)
    if not source.claims and source.location.startswith(ON_HUB):  # its card may be out of reach for now
        place.pop("claims")
    try:
        if row is None or key is None or sketch_key(checkpoint, index.entries) != key:
            return False
        if any(row[name] != value for name, value in place.items()):
            return False
    except CheckpointError:  # it has gone meanwhile: reading it says so
        return False
    return not index.keep or kept_sketch(index.sketches / f"{key}.safetensors", key) is not None


def _place(source: Source) -> dict[str, Any]:
    claims = json.dumps([vars(claim) for claim in source.claims])
    place = {"id": source.id, "location": source.location, "base": source.base, "state": source.state}
    return place | {"claims": claims}


def tensor_numbers(digests: Mapping[str, str]) -> list[int]:
    """Of each tensor 64 bits of the digest of its name and its values."""
    return sorted(number_of(name, digest) for name, digest in digests.items())


def row_of(sketch: Sketch, source: Source, index: Index) -> dict[str, Any]:
    """The row of a model in an index. Raises CheckpointError."""
    facts = sketch.facts
    said = {"fits": sorted(facts.fits), "zeros": facts.zeros, "entries": facts.entries, "weights": facts.weights}
    return (
        _place(source)
        | cast_numbers(sketch)
        | {
            "key": sketch.key,
            "group": group_of(sketch.shapes),
            "shapes": shapes_text(sketch.shapes),
            "signature": signature_of(sketch, index.entries, index.samples),
            "tensors": tensor_numbers(facts.digests),
            "facts": json.dumps(said),
            "files": json.dumps(sketch.files),
        }
    )
