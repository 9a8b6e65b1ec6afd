"""What the two recovery scripts share: measure every tree, recover it, score it, keep and draw the results."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mother.errors import InputError
from mother.graph import figures
from mother.graph.collection import known_trees, open_models, read_digest
from mother.graph.manifest import Manifest
from mother.graph.model_graph import Edge, ModelGraph
from mother.graph.scores import directed_accuracy, kurtosis_accuracy, undirected_accuracy
from mother.io.files import write_atomically, write_figure
from mother.paper.direction import Stage, direction_kurtosis, kurtosis_direction
from mother.paper.distances import pairwise_differences
from mother.paper.measure import Measured, Statistic, measure
from mother.paper.statistics import moments
from mother.paper.tree import identical_models, recover_tree
from mother.runs.results import found_clusters, measure_once, run_facts, write_result


@dataclass(frozen=True)
class Method:
    """How one of the paper's scripts compares the models of a tree."""

    name: str  # of the script, without ".py"
    kinds: tuple[str, ...] | None  # layers that are read; None: all square ones
    direction_kind: str | None  # layers whose kurtosis is summed; None: all that are read
    statistics: dict[str, Statistic]
    # (measurements, group) -> distance and a matrix that is zero where two models do not differ
    distance: Callable[[Measured, str], tuple[np.ndarray, np.ndarray]]
    distance_label: str
    kept_as: str | None = None  # a script whose measurements these are, too; None: they are this script's own


# Stages 1 and 3a of full fine-tuning read the same layers: whichever runs first measures for both.
FULL_FINE_TUNING: dict[str, Statistic] = {"differences": pairwise_differences, "moments": moments}


def measurement_key(digest: str, kinds: Sequence[str] | None, statistics: dict[str, Statistic]) -> dict[str, Any]:
    """What measurements are kept under: equal for the same files, layers and statistics."""
    return {"read": digest, "kinds": list(kinds) if kinds else None, "statistics": sorted(statistics)}


@dataclass
class PaperTree:
    """One recovered tree (or cluster) and how it compares with the truth."""

    group: str
    models: list[str]
    distance: np.ndarray
    edges: list[Edge]
    truth: set[tuple[str, str]]
    seconds: float
    left_out: dict[str, str]
    notes: list[str] = field(default_factory=list)
    kurtosis: np.ndarray = field(default_factory=lambda: np.zeros(0))
    kurtosis_accuracy: float | None = None

    @property
    def pairs(self) -> set[tuple[str, str]]:
        """The recovered (parent, child) pairs."""
        return {(edge.parent, edge.child) for edge in self.edges}

    def row(self) -> dict[str, Any]:
        """The line of this tree in `accuracy.json` and in the tables."""
        return {
            "tree": self.group,
            "models": len(self.models),
            "true_edges": len(self.truth),
            "undirected_accuracy": undirected_accuracy(self.pairs, self.truth),
            "directed_accuracy": directed_accuracy(self.pairs, self.truth),
            "kurtosis_accuracy": self.kurtosis_accuracy,
            "seconds": round(self.seconds, 2),
        }


def group_models(manifest: Manifest, clusters: str, folder: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Which models are taken for one tree: known ("truth") or found by `clustering.py` ("ward").

    Also returns why `clustering.py` left models out.
    """
    return (known_trees(manifest), {}) if clusters == "truth" else found_clusters(manifest, folder)


def recover_model_graph(
    manifest: Manifest,
    method: Method,
    folder: Path,
    flags: dict[str, Any],
    device: torch.device,
    progress: Callable[[str], Callable[[int], Callable[[], object]]],
) -> list[PaperTree]:
    """Recover every tree of a collection and write all results into `folder`.

    `flags` are those of the script: clusters, stage, direction_weight and overwrite are used here, all are
    recorded. `progress(title)` is given to `measure`. Raises InputError where nothing can be recovered.
    """
    if not np.isfinite(flags["direction_weight"]) or flags["direction_weight"] < 0:
        raise InputError(f"the direction weight must be at least 0 and finite, not {flags['direction_weight']}.")
    checkpoints, unreadable = open_models(manifest)
    by_id = {checkpoint.model: checkpoint for checkpoint in checkpoints}
    trees = []
    digests = {}
    groups, unclustered = group_models(manifest, flags["clusters"], folder)
    if unclustered:
        trees.append(PaperTree("-", [], np.zeros((0, 0)), [], set(), 0.0, unclustered))
    for group, members in groups.items():
        opened = [by_id[model] for model in members if model in by_id]
        if not opened:
            trees.append(PaperTree(group, [], np.zeros((0, 0)), [], set(), 0.0, {m: unreadable[m] for m in members}))
            continue
        digests[group] = read_digest(opened)
        key = measurement_key(digests[group], method.kinds, method.statistics)
        measured, seconds, _ = measure_once(
            folder / "measurements" / f"{method.kept_as or method.name}_{group}.npz",
            key,
            lambda snapshot: measure(
                opened, method.kinds, method.statistics, device, progress(f"{manifest.name} tree {group}"), snapshot
            ),
            flags["overwrite"],
        )
        measured.left_out |= {model: unreadable[model] for model in members if model in unreadable}
        trees.append(_recover_one(manifest, method, group, measured, seconds, flags))
    if not any(tree.models for tree in trees):
        reason = next(iter(trees[0].left_out.values()))
        raise InputError(f"no model of {manifest.name} can be used. {reason}")
    write_results(manifest, method, folder, flags, trees, digests)
    return trees


def _recover_one(
    manifest: Manifest, method: Method, group: str, measured: Measured, seconds: float, flags: dict[str, Any]
) -> PaperTree:
    """Matrices to tree to score, for one group of models."""
    started = time.perf_counter()
    if not measured.models:
        return PaperTree(group, [], np.zeros((0, 0)), [], set(), seconds, measured.left_out)
    measured, sums = direction_kurtosis(measured, method.direction_kind)
    if not measured.models:
        return PaperTree(group, [], np.zeros((0, 0)), [], set(), seconds, measured.left_out)
    distance, difference = method.distance(measured, group)
    stage: Stage = flags["stage"]
    edges = recover_tree(measured.models, distance, sums, stage, flags["direction_weight"])
    present = set(measured.models)
    truth = {(parent, child) for parent, child in manifest.edges if parent in present and child in present}
    notes = [*measured.notes, *identical_models(difference, measured.models)]
    right = kurtosis_accuracy(kurtosis_direction(sums, stage), measured.models, truth)
    seconds += time.perf_counter() - started
    return PaperTree(group, measured.models, distance, edges, truth, seconds, measured.left_out, notes, sums, right)


def overall(manifest: Manifest, trees: list[PaperTree]) -> dict[str, Any]:
    """Scores of the whole graph, over all true edges between models that could be used."""
    present = {model for tree in trees for model in tree.models}
    truth = {(parent, child) for parent, child in manifest.edges if parent in present and child in present}
    pairs = set().union(*(tree.pairs for tree in trees))
    scored = [tree for tree in trees if tree.kurtosis_accuracy is not None]
    weights = [len(tree.truth) for tree in scored]
    return {
        "models": len(present),
        "true_edges": len(truth),
        "undirected_accuracy": undirected_accuracy(pairs, truth),
        "directed_accuracy": directed_accuracy(pairs, truth),
        "kurtosis_accuracy": float(np.average([t.kurtosis_accuracy for t in scored], weights=weights))
        if scored
        else None,
        "seconds": round(sum(tree.seconds for tree in trees), 2),
    }


def write_results(
    manifest: Manifest,
    method: Method,
    folder: Path,
    flags: dict[str, Any],
    trees: list[PaperTree],
    digests: dict[str, str],
) -> None:
    """Write `model_graph.json`, `accuracy.json`, the distance matrices and the figures."""
    left_out = {model: reason for tree in trees for model, reason in tree.left_out.items()}
    nodes = {
        model: {"tree": tree.group, "kurtosis": float(value)}
        for tree in trees
        for model, value in zip(tree.models, tree.kurtosis)
    }
    edges = tuple(edge for tree in trees for edge in tree.edges)
    notes = tuple(note for tree in trees for note in tree.notes)
    run = run_facts(f"{method.name}.py", flags, " ".join(digests.values()))
    ModelGraph(manifest.name, nodes, edges, left_out, notes).write(folder / "model_graph.json")
    matrices = {f"tree_{tree.group}": tree.distance for tree in trees}
    names = {f"models_{tree.group}": np.array(tree.models) for tree in trees}
    write_atomically(folder / "distances.npz", lambda file: np.savez(file, **matrices, **names))
    shown = {f"tree {tree.group}": (tree.distance, tree.models, tree.truth) for tree in trees if len(tree.models) > 1}
    if shown:
        figure = figures.draw_matrices(shown, method.distance_label)
        write_figure(folder / "figures" / "distances.png", figure, dpi=200)
    for tree in trees:
        if tree.truth:
            name = f"{manifest.name}, tree {tree.group}"
            figure = figures.draw_trees(name, tree.models, tree.truth, tree.pairs)
            write_figure(folder / "figures" / f"tree_{tree.group}.png", figure, dpi=200)
            write_figure(folder / "figures" / f"tree_{tree.group}.pdf", figure)
    # Last: it says that the rest is there.
    accuracy = {
        "model_graph": manifest.name,
        "method": "mother",
        "trees": [tree.row() for tree in trees],
        "overall": overall(manifest, trees),
        "left_out": left_out,
        "notes": list(notes),
    }
    write_result(folder / "accuracy.json", run, accuracy)
