"""Where results live, what may be reused, and what a run must say about itself.

`results/<model graph>/` holds the measurements (one .npz a tree, so that an interrupted run goes on),
matrices, `model_graph.json`, `accuracy.json` and figures. Each file is written atomically and carries the
flags, the versions and a digest of the files that were read; measurements are reused while these agree.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mother.errors import InputError
from mother.graph.manifest import Manifest
from mother.io.files import write_atomically, write_json
from mother.io.layers import Layer
from mother.io.runtime import versions
from mother.io.snapshots import Snapshot
from mother.paper.measure import Measured

STATISTICS_SCHEMA = 1  # raise it when a statistic changes its meaning: what was measured before is measured again


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
    key = key | {"versions": versions(), "schema": STATISTICS_SCHEMA}
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
