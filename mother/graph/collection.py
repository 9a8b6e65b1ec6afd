"""The models of a manifest: found by its name, opened, sorted into their known trees."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from mother.errors import InputError, ManifestError
from mother.graph.manifest import Manifest
from mother.graph.manifest_io import read_manifest
from mother.io.checkpoint import Checkpoint
from mother.io.open import open_all

DATASETS = Path(__file__).parents[2] / "dataset"


def find_manifest(model_graph: str) -> Manifest:
    """The manifest of a split by its name in `dataset/`, or by its path."""
    path = Path(model_graph)
    if path.suffix != ".json":
        path = DATASETS / f"{model_graph}.json"
        if path.name not in {file.name for file in DATASETS.glob("*.json")}:
            known = ", ".join(sorted(file.stem for file in DATASETS.glob("*.json"))) or "none yet"
            raise ManifestError(
                model_graph,
                f"there is no such model graph in dataset/ (there: {known})",
                "Fetch the official truth with `python -m dataset.vthr`."
                if model_graph.startswith("vthr_")
                else "Grow the mini splits with `python -m dataset.grow`, or give the path of a manifest.",
            )
    return read_manifest(path)


def open_models(manifest: Manifest) -> tuple[list[Checkpoint], dict[str, str]]:
    """Open every model of a manifest; returns those that can be read and why the others cannot.

    Raises InputError where none can be.
    """
    models = [(node.id, manifest.location(node), manifest.base_location(node)) for node in manifest.present]
    opened, left_out = open_all(models)
    if not opened:
        reasons = "; ".join(list(left_out.values())[:2])
        raise InputError(
            f"none of the {len(left_out)} models of {manifest.name} can be read: {reasons} "
            "(The mini splits are grown with `python -m dataset.grow`.)"
        )
    return opened, left_out


def known_trees(manifest: Manifest) -> dict[str, list[str]]:
    """Ids of the models of each tree, as the manifest tells; raises ManifestError where it does not."""
    trees: dict[str, list[str]] = {}
    for node in manifest.present:
        if node.tree is None:
            raise ManifestError(
                manifest.name,
                f"it is not known to which tree node {node.id!r} belongs",
                "Give its tree, or run `python clustering.py` and then this with --clusters ward.",
            )
        trees.setdefault(str(node.tree), []).append(node.id)
    return trees


def read_digest(checkpoints: Sequence[Checkpoint]) -> str:
    """Digest of the fingerprints of all files of these models, in their order."""
    facts = [(checkpoint.model, checkpoint.fingerprint()) for checkpoint in checkpoints]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
