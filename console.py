"""What the scripts have in common on the terminal: progress bars, tables, one line for a user's mistake."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import tyro
from tqdm import tqdm

from mother.errors import InputError
from mother.graph.manifest import Manifest
from mother.graph.text import format_table, graph_text, tree_text
from mother.io.runtime import choose_device
from mother.runs.by_map import ScoredGraph
from mother.runs.by_paper import PaperTree
from mother.runs.results import COMPARED, compare_methods


def run(main: Callable[[Any], None], arguments: type) -> None:
    """Parse the flags, run `main`, and turn what a user can mend into one line and exit code 2."""
    try:
        main(tyro.cli(arguments))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(
            f"error: {error.filename or 'a result'}: {error.strerror or error}. Check path and space.", file=sys.stderr
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped; what was finished is kept, and the next run goes on from there", file=sys.stderr)
        sys.exit(130)


def progress(title: str) -> Callable[[int], Callable[..., object]]:
    """A progress bar in the form that `mother/` takes: over the bytes of models while these are read, else tensors."""

    def start(total: int) -> Callable[..., object]:
        in_bytes = title == "reading"
        bar = tqdm(total=total, desc=title, unit="B" if in_bytes else "tensor", unit_scale=in_bytes, leave=False)

        def step(count: int = 1) -> None:
            bar.update(count)
            if bar.n >= total:
                bar.close()

        return step

    return start


def announce_device(device: str) -> torch.device:
    """Choose the device and say which and why."""
    chosen, reason = choose_device(device)
    print(f"device: {chosen} ({reason})")
    return chosen


def report_left_out(left_out: dict[str, str], notes: Iterable[str] = ()) -> None:
    """Say which models have no place in the result and why, and what else a reader should know."""
    if left_out:
        print(f"left out: {len(left_out)} models")
        for reason in left_out.values():
            print(f"  {reason}")
    for note in notes:
        print(f"note: {note}")


def report_trees(name: str, trees: list[PaperTree], total: dict[str, Any], folder: Path, show_trees: bool) -> None:
    """Print the recovered trees if asked for, then the paper's figures: accuracy for each tree and overall."""
    if show_trees:
        for tree in trees:
            print(f"\n{name}, tree {tree.group}\n{tree_text(tree.models, tree.pairs, tree.truth)}")
    keys = ("models", "true_edges", "undirected_accuracy", "directed_accuracy", "kurtosis_accuracy", "seconds")
    rows = [[name, tree.group, *(tree.row()[key] for key in keys)] for tree in trees]
    rows.append([name, "all", *(total[key] for key in keys)])
    head = ("model graph", "tree", "models", "edges", "undirected", "directed", "kurtosis", "seconds")
    print("\n" + format_table(head, rows))
    print("kurtosis: share of the true edges whose arrow it points right by itself")
    report_left_out(
        {model: reason for tree in trees for model, reason in tree.left_out.items()},
        [note for tree in trees for note in tree.notes],
    )
    report_methods(name, folder)
    print(f"results: {folder}/\n")


def report_methods(name: str, folder: Path) -> None:
    """Print the scores of both methods on this model graph, as far as both have run."""
    print("\n" + format_table(COMPARED, compare_methods(name, folder)))
    print("both methods, each as last run (dashes: not yet; --method chooses). direction: arrows right where the edge")
    print("is; clusters: adjusted Rand index, K given to mother only")


def report_graph(manifest: Manifest, recovery: ScoredGraph, folder: Path, show_trees: bool) -> None:
    """Print a typed Model Graph: as text if asked for, how many edges of each kind, and the scores."""
    graph = recovery.graph
    if show_trees:
        print(graph_text(graph))
    kinds = Counter(edge.attributes["kind"] or "hidden" for edge in graph.edges)
    hidden = sum(bool(facts.get("hidden")) for facts in graph.nodes.values())
    aliases = sum(len(facts.get("aliases", ())) for facts in graph.nodes.values())
    trees = len({facts["tree"] for facts in graph.nodes.values()})
    unknown = sum(edge.attributes["direction"] == "unknown" for edge in graph.edges)
    print(f"\n{manifest.name}: {len(graph.nodes) - hidden + aliases} models in {trees} trees; {aliases} copies,")
    print(f"{hidden} hidden ancestors; arrows unknown: {unknown} of {len(graph.edges)}")
    print("edges: " + (", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none"))
    if recovery.scores["true_edges"]:
        print(f"{recovery.scores['true_edges']} true edges", end="")
        ranks = recovery.scores["ranks"]
        print(f"; ranks of LoRA right: {ranks:.3f}" if ranks is not None else "")
        report_methods(manifest.name, folder)
    report_left_out(graph.left_out)
    print(f"results: {folder / 'map'}/\n")
