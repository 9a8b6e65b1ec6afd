"""What is known of one model by itself: digests, stored precision, grids, zeros; and which part of a matrix is kept."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mother.evidence.grids import Grid, find_grid, find_turned_grid
from mother.evidence.keys import RUN, SKETCH_ENTRIES
from mother.io.checkpoint import Checkpoint
from mother.io.layers import Layer, canonical_name
from mother.numeric.floats import MANTISSA, cast

HALVES = ("bfloat16", "float16")
FLOAT8 = ("float8_e4m3fn", "float8_e5m2")  # that models are cast to without scales, by torch's rounding
WHOLE = ("I64", "I32", "U64", "U32")
CASTS = (*HALVES, *FLOAT8)
GRIDS = 8  # budget: matrices of each model that are searched for a grid
COUNTER = "num_batches_tracked"  # of batch norm: the batches that a layer was trained on, which only grow
COUNTERS = 4  # budget: counters of each model that are read
SAMPLE_BITS = (10, 5)  # budget: of a table at most so many rows and columns, as powers of two, are kept


@dataclass
class Facts:
    """What is known of one model by itself."""

    digests: dict[str, str] = field(default_factory=dict)  # of the values of each tensor
    # of the part of each tensor that is kept: as it is, and as it would be after a cast
    part_digests: dict[str, dict[str, str]] = field(default_factory=lambda: {name: {} for name in ("float32", *CASTS)})
    # of matrices and tables that may stand the other way round, once turned: "whole", and of the part as above
    turned: dict[str, dict[str, str]] = field(default_factory=dict)
    fits: set[str] = field(default_factory=lambda: set(HALVES))  # half precisions that hold all matrices exactly
    grids: list[Grid | None] = field(default_factory=list)  # of the first matrices inside the blocks
    turned_grids: list[Grid | None] = field(default_factory=list)  # of the first of those that may be turned, so turned
    tables: dict[tuple, Tensor] = field(default_factory=dict)  # samples of embeddings and other tables
    counted: dict[str, int] = field(default_factory=dict)  # batches, by batch norms from the first to the last
    storage: dict[str, list] = field(default_factory=dict)  # of matrices that are packed: the fields of their Storage
    matrices: int = 0  # that are compared
    zeros: int = 0
    entries: int = 0  # of the matrices that are compared
    weights: int = 0  # entries of all tensors of two or more dimensions but embeddings and heads, read or not

    def to_json(self) -> dict[str, Any]:
        """All but the tables as JSON values."""
        content = asdict(replace(self, tables={}))
        return content | {"fits": sorted(self.fits), "tables": [list(key) for key in self.tables]}

    @classmethod
    def from_json(cls, content: dict[str, Any], tables: Sequence[Tensor]) -> "Facts":
        """What `to_json` gave, with the tables in its order."""
        keys = [(name, tuple(steps), columns) for name, steps, columns in content["tables"]]
        grids, back = ([grid and Grid(**grid) for grid in content[name]] for name in ("grids", "turned_grids"))
        return cls(
            **content
            | {"fits": set(content["fits"]), "grids": grids, "turned_grids": back, "tables": dict(zip(keys, tables))}
        )


def kept_shape(rows: int, columns: int, limit: int = SKETCH_ENTRIES) -> tuple[int, int]:
    """How many rows and columns of a matrix are kept: all, or a part as square as can be."""
    if rows * columns <= limit:
        return rows, columns
    side = int(limit**0.5)
    if columns <= max(side, RUN):
        return max(1, limit // columns), columns
    wide = side if rows > side else max(side, limit // rows)
    wide = min(columns, max(RUN, wide // RUN * RUN))
    return min(rows, max(1, limit // wide)), wide


def part(weight: Float[Tensor, "rows columns"], limit: int = SKETCH_ENTRIES) -> Float[Tensor, "some few"]:
    """The part of a matrix that is kept: which rows and columns follows from its shape alone.

    Rows are drawn one by one; columns in runs, each from a stretch of its own, which start at a multiple of RUN.
    """
    rows, columns = weight.shape
    some, few = kept_shape(rows, columns, limit)
    if some < rows:
        chosen = np.sort(np.random.default_rng([rows, columns]).permutation(rows)[:some])
        weight = weight[torch.from_numpy(chosen)]
    if few < columns:
        draw, runs = np.random.default_rng([columns, rows]), few // RUN
        ends = np.linspace(0, columns // RUN, runs + 1).astype(int)
        starts = [int(draw.integers(low, high)) * RUN for low, high in zip(ends, ends[1:])]
        weight = torch.cat([weight[:, start : start + RUN] for start in starts], dim=1)
    return weight.contiguous()


def _digest(values: Tensor) -> str:
    """Digest of a tensor's float32 values: equal for equal values, whatever type they are stored in."""
    return hashlib.sha256((values + 0.0).contiguous().numpy().data).hexdigest()[:16]


def keep_sample(facts: Facts, name: str, values: Tensor) -> None:
    """Keep rows and columns of a table at equal steps: the same ones of a resized table, unless its steps differ."""
    if values.ndim == 2:
        steps = tuple(1 << max(0, (size - 1).bit_length() - bits) for size, bits in zip(values.shape, SAMPLE_BITS))
        facts.tables[name, steps, values.shape[1]] = values[:: steps[0], :: steps[1]].clone()


def as_stored(kept: Tensor, dtype: torch.dtype) -> Tensor:
    """A part in the type that its model is stored in, where that holds it exactly."""
    exact = dtype.itemsize < 4 and torch.equal(kept.to(dtype).float(), kept)
    return kept.to(dtype) if exact else kept.clone()


def note_counters(facts: Facts, checkpoint: Checkpoint) -> None:
    """Read how many batches some batch norms of a model have counted. Raises CheckpointError."""
    names = sorted(
        name
        for name, (_, info) in checkpoint.tensors.items()
        if name.rpartition(".")[2] == COUNTER and info.dtype in WHOLE and math.prod(info.shape) == 1
    )
    some = [names[at] for at in sorted({*np.linspace(0, len(names) - 1, COUNTERS).astype(int)})] if names else []
    for name, value in checkpoint.read_stored(some).items():
        facts.counted[canonical_name(name)] = int(value.reshape(()))


def batches_later(first: Facts, second: Facts) -> int:
    """1 where the second model's batch norms counted on from the first model's, -1 the reverse, else 0.

    Training counts batches, and who loads a model goes on counting from there. A norm that counted none, because it is
    frozen or came from another framework, says nothing; where norms contradict each other none does.
    """
    shared = [(first.counted[name], second.counted[name]) for name in first.counted.keys() & second.counted.keys()]
    signs = {int(np.sign(after - before)) for before, after in shared if before > 0 and after > 0} - {0}
    return signs.pop() if len(signs) == 1 else 0


def note_digests(facts: Facts, name: str, values: Tensor, limit: int) -> Tensor:
    """Digests of a tensor, and of its part as it would be after a cast: equal ones are an exact relation.

    Returns the part.
    """
    kept = values if values.numel() <= limit else part(values.reshape(len(values), -1), limit)
    facts.digests[name] = _digest(values)
    facts.part_digests["float32"][name] = facts.digests[name] if kept is values else _digest(kept)
    for kind in CASTS:
        facts.part_digests[kind][name] = _digest(cast(kept, kind))
    return kept


def _turn(facts: Facts, name: str, weight: Float[Tensor, "rows columns"], limit: int) -> tuple[Tensor, Tensor]:
    """Note the digests of a matrix or table once it is turned round; returns it so, and the part that is kept of it."""
    turned = weight.T.contiguous()
    kept = part(turned, limit)
    facts.turned[name] = {"whole": _digest(turned), "float32": _digest(kept)}
    facts.turned[name] |= {kind: _digest(cast(kept, kind)) for kind in CASTS}
    return turned, kept


def note_table(facts: Facts, name: str, values: Tensor, limit: int, nameless: bool) -> None:
    """Add a vector, or a table, to what is known of its model: a `nameless` table may be a head turned round."""
    note_digests(facts, name, values, limit)
    keep_sample(facts, name, values)
    if nameless and values.ndim == 2 and min(values.shape) > 1:
        _turn(facts, name, values, limit)


def note_turned(facts: Facts, name: str, weight: Float[Tensor, "rows columns"], limit: int) -> Tensor:
    """Digests of a matrix turned round, so that it is found in models that store it so. Returns the part of that."""
    turned, kept = _turn(facts, name, weight, limit)
    if len(facts.turned_grids) < GRIDS and facts.turned_grids.count(None) <= GRIDS // 2:
        facts.turned_grids.append(find_grid(turned))
    return kept


def note_matrix(
    facts: Facts, layer: Layer, weight: Float[Tensor, "rows columns"], limit: int, inside: bool = True
) -> Tensor:
    """Add one matrix to what is known of its model, of the first `inside` the blocks their grids. Returns its part."""
    kept = note_digests(facts, str(layer), weight, limit)
    of_part = facts.part_digests
    facts.fits = {
        name
        for name in facts.fits
        if of_part[name][str(layer)] == of_part["float32"][str(layer)]
        and (kept is weight or torch.equal(cast(weight, name), weight))
    }
    facts.zeros += weight.numel() - int(weight.count_nonzero())
    facts.entries += weight.numel()
    facts.matrices += 1
    if inside and len(facts.grids) < GRIDS and facts.grids.count(None) <= GRIDS // 2:  # else most have none
        facts.grids.append(find_grid(weight) or find_turned_grid(weight))
    return kept


def common_grid(grids: list[Grid | None]) -> Grid | None:
    """The grid of a model: that of most of its matrices, or None."""
    found = [grid for grid in grids if grid is not None]
    return max(found, key=found.count) if len(found) > len(grids) / 2 else None


def mantissa(facts: Facts) -> int:
    """Mantissa bits of the coarsest type that holds a model's matrices exactly."""
    return min((MANTISSA[half] for half in facts.fits), default=MANTISSA["float32"])
