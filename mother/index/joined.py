"""Groups of an index whose models may be related: the same weights under other names, or with more or fewer matrices.

Each group is brought to one reference that shares half of the smaller one's weights, as a search brings its model to
other groups (mother/index/others.py): the models get signatures at the places of the reference, from their sketches.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from mother.evidence.alignment import renamed
from mother.evidence.matching import Match, match_models
from mother.evidence.sketch import Sketch, kept_sketch
from mother.index.build import tensor_numbers
from mother.index.casts import cast_numbers
from mother.index.engine import Engine
from mother.index.groups import DIGESTS
from mother.index.others import MATCHED, Shapes, group_shapes, likely_groups
from mother.index.signature import signature_of
from mother.index.store import Index, arrow, open_index, schema
from mother.io.files import write_atomically
from mother.io.runtime import code_digest

PART = 512  # budget: models of a job

Models = list[tuple[str, str]]  # id and key of the sketch


@dataclass
class Joined:
    """A group, how many models there are in it, and files with the models of other groups among these."""

    name: str
    models: int
    files: list[Path] = field(default_factory=list)


def joined_groups(index: Index, work: Path, engine: Engine) -> list[Joined]:
    """All groups of an index with those that were brought to them, largest first. Without sketches each is by itself.

    New signatures are kept in `work`.
    """
    members: dict[str, Models] = defaultdict(list)
    for table in index.tables(["group", "id", "key"]):
        for name, *model in zip(*(table[column].to_pylist() for column in ("group", "id", "key"))):
            members[name].append(tuple(model))
    found = {name: Joined(name, len(models)) for name, models in members.items()}
    jobs = []
    if index.keep and len(found) > 1:
        shapes = group_shapes(index)
        for name, (reference, match) in _references(index, members, shapes).items():
            one = found.pop(name)
            found[reference].models += one.models
            for at in range(0, one.models, PART):
                job = members[name][at : at + PART], sorted(match.items()), sorted(shapes[reference].items())
                digest = hashlib.sha256(repr((code_digest(), *job)).encode()).hexdigest()[:24]
                out = work / f"{digest}.signed.parquet"
                found[reference].files.append(out)
                if not out.exists():
                    jobs.append((str(index.folder), *job, str(out)))
    for _ in engine.run(sign_again, jobs):
        pass
    return sorted(found.values(), key=lambda one: (-one.models, one.name))


def _references(index: Index, members: dict[str, Models], shapes: dict[str, Shapes]) -> dict[str, tuple[str, Match]]:
    """Group -> the one that it is brought to, and which of its matrices has another name there."""

    @cache
    def some(name: str) -> list[Sketch]:
        models = members[name]
        kept = [_kept(index, key) for _, key in models[:: -(-len(models) // MATCHED)]]
        return [one for one in kept if one is not None]

    def order(name: str) -> tuple:
        # Only matrices of unknown names are kept turned round, too: those of known ones are what they are matched to.
        return max((len(one.facts.turned) for one in some(name)[:1]), default=0) > 0, -len(members[name]), name

    found: dict[str, tuple[str, Match]] = {}
    apart: dict[str, Shapes] = {}
    for name in sorted(members, key=order):
        same, alike = likely_groups(shapes[name], apart)
        if same:
            found[name] = same[0][1], {}
            continue
        for other in alike:
            match = match_models(some(name), some(other))[0] if some(name) and some(other) else {}
            if match:
                found[name] = other, match
                break
        else:
            apart[name] = shapes[name]
    return found


def _kept(index: Index, key: str) -> Sketch | None:
    return kept_sketch(index.sketches / f"{key}.safetensors", key)


def sign_again(folder: str, models: Models, match: Sequence[tuple], shapes: Sequence[tuple], out: str) -> str:
    """Write rows of models under other names, with signatures among other shapes; for a worker.

    A model whose sketch is gone has none.
    """
    index, names, among, rows = open_index(Path(folder)), dict(match), dict(shapes), []
    for model, key in models:
        sketch = _kept(index, key)
        if sketch is not None:
            sketch = renamed(sketch, names) if names else sketch
            values = signature_of(sketch, index.entries, index.samples, among)
            tensors = tensor_numbers(sketch.facts.digests)
            row = {"id": model, "key": key, "signature": values.astype("<f2").tobytes(), "tensors": tensors}
            rows.append(row | cast_numbers(sketch, among))
    pa, parquet = arrow()
    columns = pa.schema([schema().field(name) for name in ("id", "key", "signature", *DIGESTS)])
    table = pa.table({name: [row[name] for row in rows] for name in columns.names}, columns)
    write_atomically(Path(out), lambda file: parquet.write_table(table, file))
    return out
