"""Method map for the scripts: trace a whole collection, or only its clusters; score it, keep and draw the results."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mother.errors import InputError
from mother.evidence.alignment import align
from mother.evidence.first_pass import take_first_pass
from mother.evidence.relatedness import pairs_that_count, related_components
from mother.evidence.sketch import sketch_models
from mother.graph.drawing import draw_once
from mother.graph.manifest import Manifest
from mother.graph.model_graph import ModelGraph, standing_for
from mother.graph.scores import adjusted_rand, models_above, present_parents, score_graph
from mother.heritage.trace import first_pass_snapshot, trace
from mother.heritage.trees import Heritage
from mother.heritage.typed_graph import build_graph
from mother.io.adapted_checkpoint import AdaptedCheckpoint
from mother.io.checkpoint import Checkpoint
from mother.runs.results import Run, write_result


@dataclass
class ScoredGraph:
    """A recovered Model Graph with its scores, and what it was made from."""

    graph: ModelGraph
    scores: dict[str, Any]
    heritage: Heritage
    seconds: float


def _prepare(run: Run) -> tuple[list[Checkpoint], Path]:
    """The models, without the matrices that are not to be read, and the folder of the measurements."""
    if not 0 < run.flags["error"] < 1:
        raise InputError(f"the error level must be between 0 and 1, not {run.flags['error']}.")
    opened = run.checkpoints
    if (run.manifest.read if run.flags["read"] == "manifest" else run.flags["read"]) == "attention":
        opened = [checkpoint.attention_only() for checkpoint in opened]
    keep = run.folder / "measurements" / "map"
    if run.overwrite:
        shutil.rmtree(keep, ignore_errors=True)
    return opened, keep


def recover_by_map(run: Run) -> ScoredGraph:
    """Recover the whole collection at once, trees and all, and write all results into map/ of the run's folder.

    Nothing of the manifest is used but where the models are and which matrices are to be read; the rest is for scoring.
    The flag `error` bounds the probability of a false relation; `read` is "manifest", "attention" or "all". Raises
    InputError where nothing can be recovered.
    """
    started = time.perf_counter()
    manifest = run.manifest
    opened, keep = _prepare(run)
    based = applied_to(manifest)
    heritage = trace(opened, run.device, run.flags["error"], progress=run.progress, keep=keep, based=based)
    if not heritage.first_pass.models:
        reason = next(iter(heritage.left_out.values()))
        raise InputError(f"no model of {manifest.name} can be used. {reason}")
    graph = called_adapters(build_graph(manifest.name, heritage), opened)
    graph.left_out.update(run.unreadable)
    seconds = time.perf_counter() - started + heritage.reused
    scores = score_graph(graph, manifest) | {"seconds": round(seconds, 2)}
    folder = run.folder / "map"
    graph.write(folder / "model_graph.json")
    files = [folder / "model_graph.json"]
    for name, content in figures_of(graph, manifest).items():
        files += draw_once(folder / "figures" / name, ("png", "pdf"), "draw_trees", *content)
    content = {"model_graph": manifest.name, "method": "map", **scores, "left_out": graph.left_out}
    write_result(folder / "accuracy.json", run.facts, content, files)  # last: where it is, all other files are
    return ScoredGraph(graph, scores, heritage, seconds)


def applied_to(manifest: Manifest) -> dict[str, str]:
    """The base that each adapter of a manifest is applied to, where that is a model of the manifest."""
    places = {node.source: node.id for node in manifest.nodes}
    return {node.id: places[node.base] for node in manifest.nodes if node.base in places}


def called_adapters(graph: ModelGraph, opened: Sequence[Checkpoint]) -> ModelGraph:
    """The graph in which an update of low rank that is stored as an adapter has the kind "adapter"."""
    stored = {checkpoint.model for checkpoint in opened if isinstance(checkpoint, AdaptedCheckpoint)}
    edges = tuple(
        replace(edge, attributes=edge.attributes | {"kind": "adapter"})
        if edge.child in stored and edge.attributes.get("kind") == "lora"
        else edge
        for edge in graph.edges
    )
    return replace(graph, edges=edges)


def cluster_by_map(run: Run) -> None:
    """Components of related models, scored where the manifest knows the trees; writes map/clusters.json.

    Flags and errors as of `recover_by_map`.
    """
    started = time.perf_counter()
    opened, keep = _prepare(run)
    taken = sketch_models(opened, keep / "models", progress=run.progress("reading"))
    sketches = align(sorted(taken.sketches, key=lambda sketch: sketch.model)).sketches
    snapshot = first_pass_snapshot(sketches, keep)
    found = take_first_pass(sketches, run.device, run.progress("first pass"), snapshot)
    left_out = run.unreadable | taken.left_out
    if not found.models:
        raise InputError(f"no model of {run.manifest.name} can be clustered. {next(iter(left_out.values()))}")
    counted = pairs_that_count(found.models, applied_to(run.manifest))
    labels = related_components(found.relatedness, run.flags["error"], counted)
    seconds = time.perf_counter() - started + snapshot.before + taken.reused
    trees = {node.id: node.tree for node in run.manifest.nodes}
    truth = [str(trees[model]) for model in found.models if trees[model] is not None]
    agreement = adjusted_rand(truth, labels) if len(truth) == len(labels) else None
    content = {"clusters": dict(zip(found.models, labels.tolist())), "adjusted_rand": agreement}
    content |= {"seconds": round(seconds, 2), "left_out": left_out}
    write_result(run.folder / "map" / "clusters.json", run.facts, content)


def figures_of(graph: ModelGraph, manifest: Manifest) -> dict[str, tuple]:
    """What `draw_trees` draws of each recovered tree of two or more models, beside what is known of the truth."""
    drawn = {}
    true_parents, hidden = present_parents(manifest), models_above(graph)
    place = standing_for(graph.nodes)
    trees: dict[str, list[str]] = {}
    for model, facts in graph.nodes.items():
        trees.setdefault(facts["tree"], []).append(model)
    for tree, members in trees.items():
        if len(members) < 2:
            continue
        models = [model for model in members if not graph.nodes[model].get("hidden")]
        truth = {
            (place.get(parent, parent), model)
            for model in models
            for parent in true_parents[model]
            if place.get(parent, parent) in models and place.get(parent, parent) != model
        }
        recovered = {(edge.parent, edge.child) for edge in graph.edges if edge.child in members}
        drawn[f"tree_{tree}"] = (f"{manifest.name}, tree {tree}", models, truth, recovered, hidden)
    return drawn
