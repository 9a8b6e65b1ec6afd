"""Where results live, what may be kept, and what a run must say about itself.

`results/<model graph>/` holds the measurements (one .npz a tree, so that an interrupted run goes on), matrices,
`model_graph.json`, `accuracy.json` and figures; what belongs to method map is in `map/` in it. Each file is written
atomically and says which run made it: flags, versions, code, and digests of all that was read. While a run would say
the same, its result stays as it is, and only that is shown.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mother.errors import InputError
from mother.graph.collection import known_trees, read_digest
from mother.graph.manifest import Manifest
from mother.io.checkpoint import Checkpoint
from mother.io.files import is_sealed, sealed, sha256, write_json
from mother.io.runtime import code_digest, versions

COMPARED = ("model graph", "method", "undirected", "direction", "directed", "kinds", "clusters", "seconds")


# progress(title)(total)(count): how much of the total has been done since the last call, 1 where it does not say
Progress = Callable[[str], Callable[[int], Callable[..., object]]]


@dataclass(frozen=True)
class Run:
    """One method on the models of one manifest: what goes in, where results go, and what they say about it."""

    manifest: Manifest
    checkpoints: list[Checkpoint]
    unreadable: dict[str, str]  # models that could not be opened, and why
    folder: Path  # of the results
    flags: dict[str, Any] = field(default_factory=dict)  # those that the result depends on
    facts: dict[str, Any] = field(default_factory=dict)  # see `run_facts`
    overwrite: bool = False  # measure again what is kept
    device: "torch.device | None" = None
    progress: Progress = lambda title: lambda total: lambda count=1: None


def run_facts(
    script: str,
    flags: dict[str, Any],
    manifest: Manifest,
    checkpoints: Sequence[Checkpoint],
    inputs: Iterable[Path] = (),
) -> dict[str, Any]:
    """What a result says about the run that made it: equal runs give equal results.

    `flags` are those that the result depends on, `inputs` files of earlier stages that it was made from.
    """
    return {
        "script": script,
        "flags": flags,
        "versions": versions(),
        "code": code_digest(),
        "manifest": hashlib.sha256(repr((manifest.nodes, manifest.read)).encode()).hexdigest()[:16],
        "read": read_digest(checkpoints),
        "inputs": {path.name: sha256(path) for path in inputs if path.exists()},
    }


def write_result(path: Path, run: dict[str, Any], content: dict[str, Any], files: Iterable[Path] = ()) -> None:
    """Write a JSON result with the facts of its run; `files` are the others that belong to it, written before."""
    digests = {
        file.relative_to(path.parent).as_posix(): sha256(file) if file.suffix in (".json", ".npz") else None
        for file in files
    }
    write_json(path, sealed({**content, "run": run, "files": digests}))


def read_result(path: Path) -> dict[str, Any] | None:
    """A JSON result as it was written, or None where the script that writes it has not run.

    Raises InputError for a damaged one.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be used ({error}). Run the scripts again.") from None
    if not is_sealed(content):
        raise InputError(f"{path} cannot be used (it is not as it was written). Run the scripts again.")
    return content


def is_kept(path: Path, run: dict[str, Any]) -> bool:
    """Whether the result at `path` is whole and was made by such a run."""
    try:
        found = read_result(path)
    except InputError:
        return False
    if found is None or found["run"] != json.loads(json.dumps(run)):
        return False
    files = {path.parent / name: digest for name, digest in found["files"].items()}
    return all(file.is_file() and digest in (None, sha256(file)) for file, digest in files.items())


def found_clusters(manifest: Manifest, folder: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Ids of the models of each cluster that `clustering.py` found, and why models are in none.

    Raises InputError where there are no clusters, or not those of this manifest.
    """
    path = folder / "clusters.json"
    content = read_result(path)
    if content is None:
        raise InputError(f"{path} is missing. Run `python clustering.py` first.")
    labels, left_out = content["clusters"], content["left_out"]
    if labels.keys() | left_out.keys() != {node.id for node in manifest.present}:
        raise InputError(f"{path} is of other models than the manifest has now. Run `python clustering.py` again.")
    clusters: dict[str, list[str]] = {}
    for model, label in labels.items():
        clusters.setdefault(str(label), []).append(model)
    return dict(sorted(clusters.items())), left_out


def group_models(manifest: Manifest, clusters: str, folder: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Which models are taken for one tree: known ("truth") or found by `clustering.py` ("ward").

    Also returns why `clustering.py` left models out.
    """
    return (known_trees(manifest), {}) if clusters == "truth" else found_clusters(manifest, folder)


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
