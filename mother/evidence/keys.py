"""What a sketch is kept under: equal for equal files, settings and versions. Known without reading a weight."""

import hashlib
import json

from mother.io.checkpoint import Checkpoint
from mother.io.runtime import versions

SKETCH_ENTRIES = 1 << 16  # budget: entries of a matrix that are kept
RUN = 128  # budget: columns that are kept come in runs of so many: quantizers give as many one scale
SKETCH_SCHEMA = 13  # raise it when a fact, or the choice of matrices or entries, changes its meaning


def sketch_key(checkpoint: Checkpoint, limit: int) -> str:
    """What a sketch is kept under. Raises CheckpointError where a file has gone."""
    what = [checkpoint.model, checkpoint.fingerprint(), list(checkpoint.tensors), versions(), limit, RUN, SKETCH_SCHEMA]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:24]
