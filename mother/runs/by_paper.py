"""The paper's method for the scripts: measure every tree, recover it, score it, keep and draw the results."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mother.errors import InputError
from mother.graph.collection import read_digest
from mother.graph.drawing import draw_once
from mother.graph.manifest import Manifest
from mother.graph.model_graph import Edge, ModelGraph
from mother.graph.scores import directed_accuracy, kurtosis_accuracy, undirected_accuracy
from mother.io.files import write_atomically
from mother.paper.direction import Stage, direction_kurtosis, kurtosis_direction
from mother.paper.distances import pairwise_differences
from mother.paper.measure import Measured, Statistic, measure, measure_once
from mother.paper.statistics import moments
from mother.paper.tree import identical_models, recover_tree
from mother.runs.results import Run, group_models, write_result


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


def empty_tree(group: str, left_out: dict[str, str], seconds: float = 0.0) -> PaperTree:
    """A group of which no model could be used."""
    return PaperTree(group, [], np.zeros((0, 0)), [], set(), seconds, left_out)


@dataclass(frozen=True)
class MeasuredGroup:
    """The measurements of the models of one tree, the digest of what was read, and the seconds that it took."""

    group: str
    measured: Measured
    read: str
    seconds: float


def measure_groups(
    run: Run, groups: dict[str, list[str]], kept_as: str, kinds: Sequence[str] | None, statistics: dict[str, Statistic]
) -> Iterator[MeasuredGroup]:
    """Measure the models of each group that could be opened, or take what an earlier run kept."""
    by_id = {checkpoint.model: checkpoint for checkpoint in run.checkpoints}
    for group, members in groups.items():
        opened = [by_id[model] for model in members if model in by_id]
        if not opened:
            continue
        read, bar = read_digest(opened), run.progress(f"{run.manifest.name} tree {group}")
        measured, seconds, _ = measure_once(
            run.folder / "measurements" / f"{kept_as}_{group}.npz",
            {"read": read, "kinds": list(kinds) if kinds else None, "statistics": sorted(statistics)},
            lambda part, opened=opened, bar=bar: measure(opened, kinds, statistics, run.device, bar, part),
            run.overwrite,
        )
        yield MeasuredGroup(group, measured, read, seconds)


def recover_by_paper(run: Run, method: Method) -> list[PaperTree]:
    """Recover every tree of a collection and write all results into the run's folder.

    Of the flags clusters, stage and direction_weight are used. Raises InputError where nothing can be recovered.
    """
    weight = run.flags["direction_weight"]
    if not np.isfinite(weight) or weight < 0:
        raise InputError(f"the direction weight must be at least 0 and finite, not {weight}.")
    manifest = run.manifest
    groups, unclustered = group_models(manifest, run.flags["clusters"], run.folder)
    trees = []
    found = measure_groups(run, groups, method.kept_as or method.name, method.kinds, method.statistics)
    measured = {one.group: one for one in found}
    for group, members in groups.items():
        missing = {model: run.unreadable[model] for model in members if model in run.unreadable}
        if group not in measured:
            trees.append(empty_tree(group, missing))
            continue
        measured[group].measured.left_out |= missing
        trees.append(_recover_one(manifest, method, measured[group], run.flags))
    if not any(tree.models for tree in trees):
        reason = next(iter({**unclustered, **_left_out(trees)}.values()))
        raise InputError(f"no model of {manifest.name} can be used. {reason}")
    write_results(run, method, trees, unclustered)
    return trees


def _recover_one(manifest: Manifest, method: Method, found: MeasuredGroup, flags: dict[str, Any]) -> PaperTree:
    """Matrices to tree to score, for one group of models."""
    started = time.perf_counter()
    measured = found.measured
    if measured.models:
        measured, sums = direction_kurtosis(measured, method.direction_kind)
    if not measured.models:
        return empty_tree(found.group, measured.left_out, found.seconds)
    distance, difference = method.distance(measured, found.group)
    stage: Stage = flags["stage"]
    edges = recover_tree(measured.models, distance, sums, stage, flags["direction_weight"])
    present = set(measured.models)
    truth = {(parent, child) for parent, child in manifest.edges if parent in present and child in present}
    notes = [*measured.notes, *identical_models(difference, measured.models)]
    right = kurtosis_accuracy(kurtosis_direction(sums, stage), measured.models, truth)
    seconds = found.seconds + time.perf_counter() - started
    return PaperTree(
        found.group, measured.models, distance, edges, truth, seconds, measured.left_out, notes, sums, right
    )


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


def _left_out(trees: list[PaperTree]) -> dict[str, str]:
    return {model: reason for tree in trees for model, reason in tree.left_out.items()}


def write_results(run: Run, method: Method, trees: list[PaperTree], unclustered: dict[str, str]) -> None:
    """Write `model_graph.json`, `accuracy.json`, the distance matrices and the figures.

    `unclustered` are models that stage 2 left out, and why.
    """
    manifest, folder = run.manifest, run.folder
    left_out = unclustered | _left_out(trees)
    nodes = {
        model: {"tree": tree.group, "kurtosis": float(value)}
        for tree in trees
        for model, value in zip(tree.models, tree.kurtosis)
    }
    edges = tuple(edge for tree in trees for edge in tree.edges)
    notes = tuple(note for tree in trees for note in tree.notes)
    ModelGraph(manifest.name, nodes, edges, left_out, notes).write(folder / "model_graph.json")
    matrices = {f"tree_{tree.group}": tree.distance for tree in trees}
    names = {f"models_{tree.group}": np.array(tree.models) for tree in trees}
    write_atomically(folder / "distances.npz", lambda file: np.savez(file, **matrices, **names))
    files = [folder / "model_graph.json", folder / "distances.npz", *_draw(manifest, method, folder / "figures", trees)]
    accuracy = {
        "model_graph": manifest.name,
        "method": "mother",
        "trees": [tree.row() for tree in trees],
        "overall": overall(manifest, trees),
        "left_out": left_out,
        "notes": list(notes),
    }
    write_result(folder / "accuracy.json", run.facts, accuracy, files)  # last: where it is, all other files are


def _draw(manifest: Manifest, method: Method, folder: Path, trees: list[PaperTree]) -> list[Path]:
    """Draw distances and trees, where they have changed; returns the files."""
    files = []
    shown = {f"tree {tree.group}": (tree.distance, tree.models, tree.truth) for tree in trees if len(tree.models) > 1}
    if shown:
        files += draw_once(folder / "distances", ("png",), "draw_matrices", shown, method.distance_label)
    for tree in trees:
        if tree.truth:
            content = f"{manifest.name}, tree {tree.group}", tree.models, tree.truth, tree.pairs
            files += draw_once(folder / f"tree_{tree.group}", ("png", "pdf"), "draw_trees", *content)
    return files
