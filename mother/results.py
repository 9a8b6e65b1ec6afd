"""Where results live, what may be reused, and what a run must say about itself.

`results/<model graph>/` holds the measurements (one .npz a tree, so that an interrupted run goes on),
matrices, `model_graph.json`, `accuracy.json` and figures. Each file is written atomically and carries the
flags, the versions and a digest of the files that were read; measurements are reused while these agree.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mother.checkpoints import Checkpoint, open_checkpoint
from mother.errors import CheckpointError, InputError, ManifestError
from mother.files import write_atomically, write_json
from mother.layers import Layer
from mother.measurements import Measured, versions
from mother.model_graph import Manifest, Node, read_manifest
from mother.snapshots import Snapshot
from mother.streaming import IN_FLIGHT

SCHEMA = 1  # raise it when a statistic changes its meaning: what was measured before is measured again
DATASETS = Path(__file__).parent.parent / "dataset"


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
    """Open every model of a manifest; returns those that can be read and why the others cannot."""

    def look(node: Node) -> Checkpoint | CheckpointError:
        try:
            return open_checkpoint(node.id, manifest.location(node), manifest.base_location(node))
        except CheckpointError as error:
            return error

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        found = list(pool.map(look, manifest.present))
    opened = [one for one in found if isinstance(one, Checkpoint)]
    left_out = {one.model: str(one) for one in found if isinstance(one, CheckpointError)}
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


def found_clusters(manifest: Manifest, folder: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Ids of the models of each cluster that `clustering.py` found, and why models are in none.

    Raises InputError where there are no clusters, or not those of this manifest.
    """
    path = folder / "clusters.json"
    try:
        content = json.loads(path.read_text())
        labels, left_out = dict(content["clusters"]), dict(content["left_out"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be used ({error}). Run `python clustering.py` first.") from None
    if labels.keys() | left_out.keys() != {node.id for node in manifest.present}:
        raise InputError(f"{path} is of other models than the manifest has now. Run `python clustering.py` again.")
    clusters: dict[str, list[str]] = {}
    for model, label in labels.items():
        clusters.setdefault(str(label), []).append(model)
    return dict(sorted(clusters.items())), left_out


def read_digest(checkpoints: Sequence[Checkpoint]) -> str:
    """Digest of the fingerprints of all files of these models, in their order."""
    facts = [(checkpoint.model, checkpoint.fingerprint()) for checkpoint in checkpoints]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def run_facts(script: str, flags: dict[str, Any], digest: str) -> dict[str, Any]:
    """What every result says about the run that made it."""
    return {"script": script, "flags": flags, "versions": versions(), "read": digest}


def measure_once(
    path: Path, key: dict[str, Any], compute: Callable[[], Measured], overwrite: bool = False
) -> tuple[Measured, float, bool]:
    """Load the measurements in `path` if they were made with the same key, else compute and keep them.

    `compute` is given a snapshot beside `path` that holds what an interrupted run had found.
    Returns (measurements, seconds that computing took, whether they were reused).
    """
    key = key | {"versions": versions(), "schema": SCHEMA}
    if not overwrite:
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                about = json.loads(str(stored["about"]))
                if about["key"] == key:
                    arrays = {name: stored[name] for name in stored.files if name != "about"}
                    layers = [Layer(*layer) for layer in about["layers"]]
                    kept = about["models"], layers, arrays, about["left_out"], about["notes"], key["read"]
                    measured = Measured(*kept)
                    return measured, about["seconds"], True
        except Exception:  # noqa: BLE001  A damaged archive raises nearly anything; then we measure again.
            pass
    started = time.perf_counter()
    snapshot = Snapshot(path.with_suffix(".part.npz"), key)
    if overwrite:
        snapshot.clear()
    measured = compute(snapshot)
    measured.read = key["read"]
    seconds = time.perf_counter() - started
    if measured.transient:  # the next run tries again
        return measured, seconds, False
    about = {
        "key": key,
        "models": measured.models,
        "layers": measured.layers,
        "left_out": measured.left_out,
        "notes": measured.notes,
        "seconds": seconds,
    }
    write_atomically(path, lambda file: np.savez(file, about=np.array(json.dumps(about)), **measured.arrays))
    snapshot.clear()
    return measured, seconds, False


def write_result(path: Path, run: dict[str, Any], content: dict[str, Any]) -> None:
    """Write a JSON result with the facts of its run beside it."""
    write_json(path, {**content, "run": run})


COMPARED = ("model graph", "method", "undirected", "direction", "directed", "kinds", "clusters", "seconds")


def read_result(path: Path) -> dict[str, Any] | None:
    """A JSON result, or None where the script that writes it has not run. Raises InputError for a damaged one."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be used ({error}). Run the scripts again.") from None


def compare_methods(name: str, folder: Path) -> list[list[Any]]:
    """Rows of COMPARED for both methods, from what the scripts last wrote in `folder`; dashes where one has not run."""
    mother, clusters = read_result(folder / "accuracy.json"), read_result(folder / "clusters.json")
    row: list[Any] = [name, "mother", *[None] * 6]
    if mother is not None:
        total = mother["overall"]
        undirected, directed = total["undirected_accuracy"], total["directed_accuracy"]
        row[2:5] = undirected, directed / undirected if undirected else None, directed
        row[7] = total["seconds"]
    if clusters is not None:
        row[6] = clusters.get("adjusted_rand")
        row[7] = round((row[7] or 0) + clusters["seconds"], 2)
    found = read_result(folder / "map" / "accuracy.json") or read_result(folder / "map" / "clusters.json") or {}
    kept = ("undirected", "direction", "directed", "kinds", "clusters", "seconds")
    values = [found.get(key) for key in kept]
    if "adjusted_rand" in found:
        values[4] = found["adjusted_rand"]
    return [row, [name, "map", *values]]


def format_table(head: Sequence[str], rows: Sequence[Sequence[Any]], left: bool = False) -> str:
    """Plain text table; shares with three decimals, None as a dash, all to the right, or to the `left`."""

    def cell(value: Any) -> str:
        if value is None:
            return "-"
        return f"{value:.3f}" if isinstance(value, float) else str(value)

    lines = [list(map(str, head)), *([cell(value) for value in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    align = str.ljust if left else str.rjust
    texts = ["  ".join(align(text, width) for text, width in zip(line, widths)).rstrip() for line in lines]
    return "\n".join([texts[0], "  ".join("-" * width for width in widths), *texts[1:]])
