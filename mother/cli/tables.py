"""Results on the terminal, read from their files: trees, tables, what was left out, the next command."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from mother.errors import InputError
from mother.graph.manifest import Manifest
from mother.graph.model_graph import read_model_graph
from mother.graph.text import format_table, graph_text, tree_text
from mother.runs.results import COMPARED, compare_methods, read_result

LISTED = 20  # changes of licences


def announce_device(device: str) -> "torch.device":
    """Choose the device and say which and why."""
    from mother.io.runtime import choose_device

    chosen, reason = choose_device(device)
    print(f"device: {chosen} ({reason})")
    return chosen


def announce_traffic(recovered: "Recovered") -> None:
    """Say what was asked of the Hub, and which files were equal to others and read once."""
    if recovered.traffic.requests:
        print(f"Hub: {recovered.traffic}")
    if recovered.copied:
        count = len(recovered.copied)
        print(f"read once: {count} model{'s have' if count > 1 else ' has'} the files of another one")


def announce_kept(folder: Path) -> None:
    """Say that nothing was computed."""
    print(f"kept: {folder}/ is of the same models, settings and code (--overwrite makes it again)")


def report_next(command: str) -> None:
    """The next command of the sequence."""
    print(f"next: {command}\n")


def report_left_out(left_out: dict[str, str], notes: Iterable[str] = ()) -> None:
    """Say which models have no place in the result and why, and what else a reader should know."""
    if left_out:
        print(f"left out: {len(left_out)} {'model' if len(left_out) == 1 else 'models'}")
        for reason in left_out.values():
            print(f"  {reason}")
    for note in notes:
        print(f"note: {note}")


def report_licences(folder: Path) -> None:
    """What changes of the licences that cards declare, along lines of descent; nothing where none declares any."""
    try:
        found = json.loads((folder / "summary.json").read_text(encoding="utf-8")).get("licences", {})
    except (OSError, ValueError, AttributeError, RecursionError):  # of an older result, or damaged: all else is there
        return
    if not found.get("declared"):
        return
    changes = [one["words"] for one in found["changes"]]
    print(f"licences: {len(found['declared'])} declared, changes along lines of descent: {len(changes) or 'none'}")
    for words in changes[:LISTED]:
        print(f"  {words}")
    if len(changes) > LISTED:
        print(f"  ... and {len(changes) - LISTED} more: see summary.json")


def report_statistics(folder: Path) -> None:
    """What stage 1 wrote: the range of differences in each tree."""
    found = read_result(folder / "layer_statistics.json") or {}
    rows = [
        [one["tree"], one["models"], one["layers"], f"{one['min']:.4g}", f"{one['max']:.4g}"] for one in found["trees"]
    ]
    print(format_table(("tree", "models", "layers", "smallest difference", "largest difference"), rows))
    single = [f"tree {tree} has no two models to compare, so no statistics" for tree in found["single"]]
    report_left_out(found["left_out"], single)
    print(f"results: {folder / 'layer_statistics.csv'}")


def report_trees(manifest: Manifest, folder: Path, show_trees: bool) -> None:
    """The paper's method: the recovered trees if asked for, then accuracy for each tree and overall."""
    found, graph = read_result(folder / "accuracy.json") or {}, read_model_graph(folder / "model_graph.json")
    if show_trees:
        for tree in found["trees"]:
            models = [model for model, facts in graph.nodes.items() if facts["tree"] == tree["tree"]]
            inside = set(models)
            edges = {(edge.parent, edge.child) for edge in graph.edges if edge.child in inside}
            truth = {edge for edge in manifest.edges if {*edge} <= inside}
            print(f"\n{manifest.name}, tree {tree['tree']}\n{tree_text(models, edges, truth)}")
    keys = ("models", "true_edges", "undirected_accuracy", "directed_accuracy", "kurtosis_accuracy", "seconds")
    rows = [[manifest.name, tree["tree"], *(tree[key] for key in keys)] for tree in found["trees"]]
    rows.append([manifest.name, "all", *(found["overall"][key] for key in keys)])
    head = ("model graph", "tree", "models", "edges", "undirected", "directed", "kurtosis", "seconds")
    print("\n" + format_table(head, rows))
    print("mother; kurtosis: share of the true edges whose arrow it points right by itself")
    report_left_out(found["left_out"], found["notes"])
    print(f"results: {folder}/")


def report_graph(manifest: Manifest, folder: Path, show_trees: bool) -> None:
    """Method map: the typed Model Graph as text if asked for, and how many edges of each kind."""
    graph = read_model_graph(folder / "map" / "model_graph.json")
    scores = read_result(folder / "map" / "accuracy.json") or {}
    if show_trees:
        print(graph_text(graph))
    kinds = Counter(edge.attributes["kind"] or "hidden" for edge in graph.edges)
    hidden = sum(bool(facts.get("hidden")) for facts in graph.nodes.values())
    aliases = sum(len(facts.get("aliases", ())) for facts in graph.nodes.values())
    trees = len({facts["tree"] for facts in graph.nodes.values()})
    unknown = sum(edge.attributes["direction"] == "unknown" for edge in graph.edges)
    print(f"\nmap, {manifest.name}: {len(graph.nodes) - hidden + aliases} models in {trees} trees; {aliases} copies,")
    print(f"{hidden} hidden ancestors; arrows unknown: {unknown} of {len(graph.edges)}")
    print("edges: " + (", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none"))
    if scores["true_edges"]:
        print(f"{scores['true_edges']} true edges", end="")
        print(f"; ranks of LoRA right: {scores['ranks']:.3f}" if scores["ranks"] is not None else "")
    report_left_out(graph.left_out)
    print(f"results: {folder / 'map'}/")


def report_clusters(manifest: Manifest, path: Path, method: str) -> None:
    """Clusters that one method found, with the paper's accuracy on subsets where it was measured."""
    found = read_result(path)
    if found is None:
        raise InputError(f"{path} is gone. Run the script again.")
    labels = found["clusters"]
    print(f"{method}, {manifest.name}: {len(labels)} models in {len({*labels.values()})} clusters, ", end="")
    print(f"{found['seconds']:.1f} s")
    if found.get("subsets"):
        rows = [[row[key] for key in ("share", "models", "mean", "deviation")] for row in found["subsets"]]
        print(format_table(("share", "models", "accuracy", "deviation"), rows))
    if found.get("adjusted_rand") is None:
        print("the manifest does not say to which tree every model belongs, so there is nothing to score against")
    report_left_out(found["left_out"])
    print(f"results: {path.parent}/")


def report_methods(name: str, folder: Path) -> None:
    """The scores of both methods on this model graph, as far as both have run."""
    rows = compare_methods(name, folder)
    if all(value is None for row in rows for value in row[2:7]):
        return  # no truth to score against
    print("\n" + format_table(COMPARED, rows))
    print("both methods, each as last run (dashes: not known, or not yet). direction: arrows right where the edge")
    print("is; clusters: adjusted Rand index, K given to mother only")
