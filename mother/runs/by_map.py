"""Method "map" for the scripts: trace a whole collection, score it, keep and draw the results."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from mother.errors import InputError
from mother.graph import figures
from mother.graph.collection import open_models, read_digest
from mother.graph.manifest import Manifest
from mother.graph.model_graph import ModelGraph
from mother.graph.scores import models_above, present_parents, score_graph
from mother.heritage.trace import Progress, trace
from mother.heritage.trees import Heritage
from mother.heritage.typed_graph import build_graph
from mother.io.files import write_figure
from mother.runs.results import run_facts, write_result


@dataclass
class ScoredGraph:
    """A recovered Model Graph with its scores, and what it was made from."""

    graph: ModelGraph
    scores: dict[str, Any]
    heritage: Heritage
    seconds: float


def recover_typed_graph(
    manifest: Manifest,
    script: str,
    folder: Path,
    flags: dict[str, Any],
    device: torch.device,
    progress: Progress,
) -> ScoredGraph:
    """Recover the whole collection at once, trees and all, and write all results into `folder`/map.

    Nothing of the manifest is used but where the models are and which matrices are to be read; the rest is for scoring.
    `flags["error"]` bounds the probability of a false relation; `flags["read"]` is "manifest", "attention" or "all".
    Raises InputError where nothing can be recovered.
    """
    if not 0 < flags["error"] < 1:
        raise InputError(f"the error level must be between 0 and 1, not {flags['error']}.")
    started = time.perf_counter()
    checkpoints, unreadable = open_models(manifest)
    if (manifest.read if flags["read"] == "manifest" else flags["read"]) == "attention":
        checkpoints = [checkpoint.attention_only() for checkpoint in checkpoints]
    keep = folder / "measurements" / "map"
    if flags["overwrite"]:
        shutil.rmtree(keep, ignore_errors=True)
    heritage = trace(checkpoints, device, flags["error"], progress=progress, keep=keep)
    if not heritage.first_pass.models:
        reason = next(iter(heritage.left_out.values()))
        raise InputError(f"no model of {manifest.name} can be used. {reason}")
    graph = build_graph(manifest.name, heritage)
    graph.left_out.update(unreadable)
    seconds = time.perf_counter() - started + heritage.reused
    scores = score_graph(graph, manifest) | {"seconds": round(seconds, 2)}
    folder = folder / "map"
    graph.write(folder / "model_graph.json")
    for name, figure in draw_graph(graph, manifest).items():
        write_figure(folder / "figures" / f"{name}.png", figure, dpi=200)
        write_figure(folder / "figures" / f"{name}.pdf", figure)
    run = run_facts(f"{script}.py", flags, read_digest(checkpoints))
    content = {"model_graph": manifest.name, "method": "map", **scores, "left_out": graph.left_out}
    write_result(folder / "accuracy.json", run, content)  # last: it says that the rest is there
    return ScoredGraph(graph, scores, heritage, seconds)


def draw_graph(graph: ModelGraph, manifest: Manifest) -> dict[str, Figure]:
    """A figure for each recovered tree of two or more models, beside what is known of the truth."""
    drawn = {}
    true_parents, hidden = present_parents(manifest), models_above(graph)
    place = {alias: model for model, facts in graph.nodes.items() for alias in facts.get("aliases", ())}
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
        drawn[f"tree_{tree}"] = figures.draw_trees(f"{manifest.name}, tree {tree}", models, truth, recovered, hidden)
    return drawn
