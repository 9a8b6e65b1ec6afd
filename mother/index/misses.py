"""Near misses of signatures: pairs that these hardly tell from strangers are looked at by all that sketches keep.

A sketch has a hundred times the samples of a signature, and its test knows rows, columns and their order
(mother/evidence/permutation.py).
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from mother.evidence.alignment import align
from mother.evidence.first_pass import of_both
from mother.evidence.permutation import permuted
from mother.evidence.sketch import kept_sketch
from mother.index.engine import Engine
from mother.index.related import significant
from mother.index.store import Index, arrow, open_index, read_rows
from mother.io.files import write_atomically
from mother.io.runtime import code_digest

AT_ONCE = 128  # budget: pairs of a job

Look = Callable[[Int[np.ndarray, "pairs"], Int[np.ndarray, "pairs"]], Bool[np.ndarray, "pairs"]]


def look_again(folder: str, pairs: Sequence[tuple[str, str]], out: str) -> str:
    """Scores of pairs, given as the keys of their sketches, into the file `out`; for a worker. Of no sketch: 0."""
    index, z = open_index(Path(folder)), []
    for pair in pairs:
        found = [kept_sketch(index.sketches / f"{key}.safetensors", key) for key in pair]
        both = align([one for one in found if one is not None]).sketches
        z.append(permuted(of_both(*both)).score if len(both) == 2 else 0.0)
    pa, parquet = arrow()
    write_atomically(Path(out), lambda file: parquet.write_table(pa.table({"z": pa.array(z, pa.float64())}), file))
    return out


def by_sketches(
    index: Index, keys: Sequence[str], work: Path, engine: Engine, tests: float, error: float, control: str
) -> Look:
    """A function of pairs of places in `keys`: which are related by their sketches, if `tests` could have been tested.

    What was looked at is kept in `work`. Raises InputError where that is damaged.
    """

    def look(first: Int[np.ndarray, "pairs"], second: Int[np.ndarray, "pairs"]) -> Bool[np.ndarray, "pairs"]:
        pairs = [(keys[i], keys[j]) for i, j in zip(first.tolist(), second.tolist())]
        jobs, outs = [], []
        for at in range(0, len(pairs), AT_ONCE):
            some = pairs[at : at + AT_ONCE]
            digest = hashlib.sha256(repr((code_digest(), some)).encode()).hexdigest()[:24]
            outs.append(work / f"{digest}.z.parquet")
            if not outs[-1].exists():
                jobs.append((str(index.folder), some, str(outs[-1])))
        for _ in engine.run(look_again, jobs):
            pass
        z = np.concatenate([np.zeros(0), *(read_rows(out)["z"].to_numpy() for out in outs)])
        return significant(z, tests, error, control)

    return look
