"""How well `mini_hub` is recovered, by the score of MDGBench: python -m benchmarks.mini_hub [folder of dataset/].

Exits with 1 where a target is missed.
"""

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from dataset.hub_models import plan_hub
from dataset.published import DATASET, recover
from mother.graph.manifest import Manifest
from mother.graph.model_graph import ModelGraph
from mother.graph.typed_scores import typed_edges, typed_scores

SAID = {"gptq": "gptq {} bit", "awq": "awq {} bit", "mlx": "mlx {} bit", "int8": "bnb int8", "fp8": "fp8", "nf4": "nf4"}

# Targets: least F1 of directed edges with their kinds, adjusted Rand index of the families, and share of the quantized
# models whose edge has the right kind and format.
F1, ARI, FORMATS = 0.93, 0.98, 0.95


def is_format(recipe: str, said: str) -> bool:
    """Whether an edge says the format that its child was made in."""
    kind, *bits = recipe.split()
    return said == recipe if kind == "gguf" else said.startswith(SAID[kind].format(*bits))


def score(graph: ModelGraph, manifest: Manifest) -> dict[str, Any]:
    """The score of MDGBench, and how many quantized models have the right kind, format and parent."""
    truth = [(parent, node.id, node.kind) for node in manifest.nodes for parent in node.all_parents]
    found = typed_scores(graph, truth, {node.id: node.tree for node in manifest.nodes})
    edges = {edge.child: edge for edge in graph.edges}
    packed = [node for node in manifest.nodes if node.kind == "quantize"]
    right: Counter[str] = Counter()
    for node in packed:
        edge = edges.get(node.id)
        if edge is None:
            continue
        named = is_format(node.recipe["format"], str(edge.attributes.get("format", "")))
        right["kind"] += edge.attributes["kind"] == "quantize"
        right["format"] += named
        right["kind and format"] += named and edge.attributes["kind"] == "quantize"
        right["parent"] += edge.parent == node.parent
    return found | {"quantized": {"models": len(packed), **right}}


def missed(graph: ModelGraph, manifest: Manifest) -> list[str]:
    """What is wrong, a line for each true edge that was not recovered with its kind."""
    kinds = {(parent, child): kind for parent, child, kind in typed_edges(graph)}
    incoming: dict[str, list[str]] = {}
    for (parent, child), kind in kinds.items():
        incoming.setdefault(child, []).append(f"{kind} of {parent}")
    return [
        f"{node.recipe['architecture']}: {node.kind} {node.id} of {parent} {node.recipe.get('format', '')}"
        f" -> {incoming.get(node.id, graph.left_out.get(node.id, 'a root'))}"
        for node in manifest.nodes
        for parent in node.all_parents
        if kinds.get((parent, node.id)) != node.kind
    ]


def below(scores: dict[str, Any]) -> list[str]:
    """The targets that are missed, a line for each."""
    quantized = scores["quantized"]
    share = quantized.get("kind and format", 0) / max(1, quantized["models"])
    reached = {"F1": (scores["f1"], F1), "ARI": (scores["ari"], ARI), "quantized, kind and format": (share, FORMATS)}
    return [f"{name} is {is_:.3f}, less than {least}" for name, (is_, least) in reached.items() if not is_ >= least]


def main(folder: Path = DATASET, out: Path = Path("results/mini_hub")) -> int:
    """Recover the split and print its scores; 1 where a target is missed."""
    manifest, started = plan_hub(folder), time.perf_counter()
    graph = recover(manifest, out)
    print("\n".join(missed(graph, manifest)))
    scores = score(graph, manifest)
    print(json.dumps(scores, indent=1))
    print(f"{time.perf_counter() - started:.0f} s")
    print("\n".join(missed_targets := below(scores)) or "all targets are reached")
    return int(bool(missed_targets))


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
