"""Stage 2: which models share a tree.

Method "map" (the default): connected components of the pairs that cannot be independent, no K; `--error`
bounds the probability of a single false relation. Method "mother", as in the paper: Ward's clusters on pairwise
distances over all square layers; the sum of ranks for LoRA, the sum of mean absolute differences for full
fine-tuning; it ends with the accuracy over random subsets of 100 % to 10 % of the models. `--lora` (the
default) and `--no-lora` choose the split.

    python clustering.py
    python clustering.py --no-lora --method mother
"""

import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from console import announce_device, progress, report_left_out, report_methods, run
from mother.errors import InputError
from mother.evidence.first_pass import take_first_pass
from mother.evidence.relatedness import related_components
from mother.evidence.sketch import sketch_models
from mother.graph import figures
from mother.graph.collection import find_manifest, open_models, read_digest
from mother.graph.manifest import Manifest
from mother.graph.scores import adjusted_rand, cluster_accuracy, match_labels
from mother.graph.text import format_table
from mother.heritage.trace import first_pass_snapshot
from mother.io.checkpoint import Checkpoint
from mother.io.files import write_atomically, write_figure
from mother.io.layers import ATTENTION
from mother.paper.clusters import ward_clusters
from mother.paper.distances import pairwise_mean_absolute_difference, sum_over_layers
from mother.paper.measure import measure
from mother.paper.ranks import pairwise_rank
from mother.runs.results import measure_once, run_facts, write_result


@dataclass
class Args:
    """Cluster a Model Graph into its trees."""

    lora: bool = True
    """distance by ranks, on mini_lora_v; otherwise by mean absolute differences, on mini_ft"""
    model_graph: str | None = None
    """name of a split in dataset/, or path of a manifest; by default the one that goes with --lora"""
    method: Literal["map", "mother"] = "map"
    """map: components of related models, without K; mother: the paper's"""
    error: float = 0.01
    """map: probability of a single false relation among independently initialised models"""
    read: Literal["manifest", "attention", "all"] = "manifest"
    """map: matrices inside the blocks that are read: as the manifest says, only those of attention, or all"""
    clusters: int = 5
    """mother: K, the number of trees"""
    kinds: tuple[str, ...] = ATTENTION
    """kinds of layers, of which the square ones are read"""
    iterations: int = 100
    """random subsets for each share of the models"""
    seed: int = 0
    """of the random subsets"""
    results: Path = Path("results")
    """results go to a folder of the model graph's name in it"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    overwrite: bool = False
    """measure again instead of reusing results"""


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


def report_components(
    args: Args, manifest: Manifest, checkpoints: list[Checkpoint], left_out: dict[str, str], device: torch.device
) -> None:
    """Method "map": components of related models, scored where the manifest knows the trees."""
    if not 0 < args.error < 1:
        raise InputError(f"the error level must be between 0 and 1, not {args.error}.")
    started = time.perf_counter()
    if (manifest.read if args.read == "manifest" else args.read) == "attention":
        checkpoints = [checkpoint.attention_only() for checkpoint in checkpoints]
    keep = args.results / manifest.name / "measurements" / "map"
    if args.overwrite:
        shutil.rmtree(keep, ignore_errors=True)
    taken = sketch_models(checkpoints, keep / "models", progress=progress("reading"))
    sketches = sorted(taken.sketches, key=lambda sketch: sketch.model)
    snapshot = first_pass_snapshot(sketches, keep)
    found = take_first_pass(sketches, device, progress("first pass"), snapshot)
    left_out |= taken.left_out
    if not found.models:
        raise InputError(f"no model of {manifest.name} can be clustered. {next(iter(left_out.values()))}")
    labels = related_components(found.relatedness, args.error)
    seconds = time.perf_counter() - started + snapshot.before + taken.reused
    trees = {node.id: node.tree for node in manifest.nodes}
    truth = [str(trees[model]) for model in found.models if trees[model] is not None]
    agreement = adjusted_rand(truth, labels) if len(truth) == len(labels) else None
    flags = asdict(args) | {"results": str(args.results)}
    content = {"clusters": dict(zip(found.models, labels.tolist())), "adjusted_rand": agreement}
    content |= {"seconds": round(seconds, 2), "left_out": left_out}
    run_of = run_facts(Path(__file__).name, flags, read_digest(checkpoints))
    write_result(args.results / manifest.name / "map" / "clusters.json", run_of, content)
    print(f"{manifest.name}: {len(labels)} models in {labels.max() + 1} clusters, {seconds:.1f} s")
    if agreement is None:
        print("the true trees are not known, so there is nothing to score against")
    else:
        report_methods(manifest.name, args.results / manifest.name)
    report_left_out(left_out)
    print(f"results: {args.results / manifest.name / 'map'}/\n")


def main(args: Args) -> None:
    """Measure all pairs, cluster, score and draw."""
    if args.clusters < 1 or args.iterations < 1 or args.seed < 0:
        raise InputError("clusters and iterations must be at least 1, seed at least 0.")
    manifest = find_manifest(args.model_graph or ("mini_lora_v" if args.lora else "mini_ft"))
    folder = args.results / manifest.name
    device = announce_device(args.device)
    checkpoints, left_out = open_models(manifest)
    if args.method == "map":
        report_components(args, manifest, checkpoints, left_out, device)
        return
    name, pairwise = (
        ("pair_rank", pairwise_rank) if args.lora else ("pair_difference", pairwise_mean_absolute_difference)
    )
    digest = read_digest(checkpoints)
    measured, seconds, _ = measure_once(
        folder / "measurements" / f"clustering_{name}.npz",
        {"read": digest, "kinds": list(args.kinds)},
        lambda snapshot: measure(
            checkpoints, args.kinds, {name: pairwise}, device, progress(f"{manifest.name} all pairs"), snapshot
        ),
        args.overwrite,
    )
    left_out |= measured.left_out
    if not measured.models:
        raise InputError(f"no model of {manifest.name} can be clustered. {next(iter(left_out.values()))}")
    started = time.perf_counter()
    distance = sum_over_layers(measured.arrays[name])
    labels = ward_clusters(distance, args.clusters)
    seconds += time.perf_counter() - started

    trees = {node.id: node.tree for node in manifest.present}
    known = all(trees[model] is not None for model in measured.models)
    rows, scores = [], {}
    if known:
        names = sorted({str(trees[model]) for model in measured.models})
        truth = np.array([names.index(str(trees[model])) for model in measured.models])
        matched = match_labels(labels, truth)
        scores["accuracy"] = cluster_accuracy(labels, truth)
        scores["adjusted_rand"] = adjusted_rand(truth, labels)
        scores["by_tree"] = {tree: float((matched == k)[truth == k].mean()) for k, tree in enumerate(names)}
        rng = np.random.default_rng(args.seed)
        for share in tqdm(np.linspace(1, 0.1, 10).round(1), desc="random subsets", unit="share", leave=False):
            drawn = subset_accuracies(distance, truth, args.clusters, share, args.iterations, rng)
            rows.append([float(share), subset_size(len(distance), share), float(np.mean(drawn)), float(np.std(drawn))])
        scores["subsets"] = [dict(zip(("share", "models", "mean", "deviation"), row)) for row in rows]

    edges = {(parent, child) for parent, child in manifest.edges if {parent, child} <= set(measured.models)}
    label = "sum of ranks" if args.lora else "sum of mean |difference|"
    figure = figures.draw_matrices({f"{manifest.name}, all models": (distance, measured.models, edges)}, label)
    write_figure(folder / "figures" / "clusters.png", figure, dpi=200)
    if known:
        figure = figures.draw_cluster_accuracy(*np.array(rows).T[[0, 2, 3]], manifest.name)
        write_figure(folder / "figures" / "cluster_accuracy.png", figure, dpi=200)
    models = np.array(measured.models)
    write_atomically(folder / "cluster_distances.npz", lambda file: np.savez(file, distance=distance, models=models))
    flags = asdict(args) | {"results": str(args.results)}
    content = {"clusters": {model: int(value) for model, value in zip(measured.models, labels)}, **scores}
    content |= {"seconds": round(seconds, 2), "left_out": left_out}
    write_result(folder / "clusters.json", run_facts(Path(__file__).name, flags, digest), content)

    print(f"{manifest.name}: {len(models)} models in {len(set(labels.tolist()))} clusters, {seconds:.1f} s")
    if known:
        print(format_table(("share", "models", "accuracy", "deviation"), rows))
        report_methods(manifest.name, folder)
    else:
        print("the manifest does not say to which tree every model belongs, so there is nothing to score against")
    report_left_out(left_out)
    print(f"results: {folder}/\n")


if __name__ == "__main__":
    run(main, Args)
