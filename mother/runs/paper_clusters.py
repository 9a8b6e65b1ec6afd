"""The paper's clusters for the script: Ward's linkage on pairwise distances, scored on all models and on subsets."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from mother.errors import InputError
from mother.graph.collection import read_digest
from mother.graph.drawing import draw_once
from mother.graph.manifest import Manifest
from mother.graph.scores import adjusted_rand, cluster_accuracy, match_labels
from mother.io.files import write_atomically
from mother.paper.clusters import ward_clusters
from mother.paper.distances import pairwise_mean_absolute_difference, sum_over_layers
from mother.paper.measure import Measured, measure, measure_once
from mother.paper.ranks import pairwise_rank
from mother.runs.results import Run, write_result

SHARES = np.linspace(1, 0.1, 10).round(1)  # of the models, in the random subsets


def subset_size(models: int, share: float) -> int:
    """Number of models in a random subset: rounded down, as in the authors' code, but at least one."""
    return max(1, int(models * share))


def subset_accuracies(
    distance: np.ndarray, truth: np.ndarray, clusters: int, share: float, iterations: int, rng: np.random.Generator
) -> list[float]:
    """Accuracy on random subsets of a share of the models, drawn without replacement."""
    size = subset_size(len(distance), share)
    accuracies = []
    for _ in range(iterations):
        chosen = np.sort(rng.choice(len(distance), size, replace=False))
        labels = ward_clusters(distance[np.ix_(chosen, chosen)], clusters)
        accuracies.append(cluster_accuracy(labels, truth[chosen]))
    return accuracies


def cluster_by_paper(run: Run) -> None:
    """Measure all pairs, cluster, score and draw; writes `clusters.json` into the run's folder.

    Of the flags lora, clusters, kinds, iterations and seed are used.
    """
    manifest, folder, flags, checkpoints = run.manifest, run.folder, run.flags, run.checkpoints
    if flags["clusters"] < 1 or flags["iterations"] < 1 or flags["seed"] < 0:
        raise InputError("clusters and iterations must be at least 1, seed at least 0.")
    name, pairwise = (
        ("pair_rank", pairwise_rank) if flags["lora"] else ("pair_difference", pairwise_mean_absolute_difference)
    )
    bar = run.progress(f"{manifest.name} all pairs")
    measured, seconds, _ = measure_once(
        folder / "measurements" / f"clustering_{name}.npz",
        {"read": read_digest(checkpoints), "kinds": list(flags["kinds"])},
        lambda snapshot: measure(checkpoints, flags["kinds"], {name: pairwise}, run.device, bar, snapshot),
        run.overwrite,
    )
    left_out = run.unreadable | measured.left_out
    if not measured.models:
        raise InputError(f"no model of {manifest.name} can be clustered. {next(iter(left_out.values()))}")
    started = time.perf_counter()
    distance = sum_over_layers(measured.arrays[name])
    labels = ward_clusters(distance, flags["clusters"])
    seconds += time.perf_counter() - started
    scores = _scores(manifest, measured, distance, labels, flags)
    models = np.array(measured.models)
    write_atomically(folder / "cluster_distances.npz", lambda file: np.savez(file, distance=distance, models=models))
    files = [folder / "cluster_distances.npz", *_draw(manifest, measured, distance, scores, folder, flags["lora"])]
    content = {"clusters": dict(zip(measured.models, labels.tolist())), **scores}
    content |= {"seconds": round(seconds, 2), "left_out": left_out}
    write_result(folder / "clusters.json", run.facts, content, files)


def _scores(
    manifest: Manifest, measured: Measured, distance: np.ndarray, labels: np.ndarray, flags: dict[str, Any]
) -> dict[str, Any]:
    """Agreement with the true trees, on all models and on random subsets; nothing where a tree is not known."""
    trees = {node.id: node.tree for node in manifest.present}
    if any(trees[model] is None for model in measured.models):
        return {}
    names = sorted({str(trees[model]) for model in measured.models})
    truth = np.array([names.index(str(trees[model])) for model in measured.models])
    matched = match_labels(labels, truth)
    rng, subsets = np.random.default_rng(flags["seed"]), []
    for share in SHARES:
        drawn = subset_accuracies(distance, truth, flags["clusters"], share, flags["iterations"], rng)
        facts = float(share), subset_size(len(distance), share), float(np.mean(drawn)), float(np.std(drawn))
        subsets.append(dict(zip(("share", "models", "mean", "deviation"), facts)))
    return {
        "accuracy": cluster_accuracy(labels, truth),
        "adjusted_rand": adjusted_rand(truth, labels),
        "by_tree": {tree: float((matched == k)[truth == k].mean()) for k, tree in enumerate(names)},
        "subsets": subsets,
    }


def _draw(
    manifest: Manifest,
    measured: Measured,
    distance: np.ndarray,
    scores: dict[str, Any],
    folder: Path,
    lora: bool,
) -> list[Path]:
    """Draw the distances, and the accuracy on subsets; returns the files."""
    edges = {(parent, child) for parent, child in manifest.edges if {parent, child} <= set(measured.models)}
    label = "sum of ranks" if lora else "sum of mean |difference|"
    shown = {f"{manifest.name}, all models": (distance, measured.models, edges)}
    files = draw_once(folder / "figures" / "clusters", ("png",), "draw_matrices", shown, label)
    if scores:
        shares, means, deviations = (
            np.array([row[key] for row in scores["subsets"]]) for key in ("share", "mean", "deviation")
        )
        content = shares, means, deviations, manifest.name
        files += draw_once(folder / "figures" / "cluster_accuracy", ("png",), "draw_cluster_accuracy", *content)
    return files
