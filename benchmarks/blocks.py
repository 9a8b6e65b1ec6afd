"""Does the sparse path find what the dense one finds? Every split, traced as a whole and block by block.

    python -m benchmarks.blocks [--splits mini_ft ...] [--core 6] [--block 120]

Both are of one index. The dense path compares all models of a family with each other, as recover.py does; for the
sparse one even small families are cut, into small blocks. An edge that is in no candidate pair cannot be found by it.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from mother.collection.find import search
from mother.graph.model_graph import Edge
from mother.graph.text import format_table
from mother.index.build import build
from mother.index.engine import Engine
from mother.index.graph import Found, Sizes, index_graph
from mother.index.groups import group_names, load_group
from mother.index.store import Index, create_index

SPLITS = ("mini_ft", "mini_lora_v", "mini_lora_f", "mini_wild", "mini_zoo")
SAMPLES = 4096
SURE = 0.75  # probability from which an edge must be the same; below, another one is nearly as probable


def candidates(index: Index) -> set[frozenset[str]]:
    """The pairs of models that may be edges, copies under the name of their original."""
    names = group_names(index)
    tests = sum(size * (size - 1) / 2 for _, size in names)
    found = set()
    for name, _ in names:
        group = load_group(index, name, tests, 0.01, "family")
        found |= {frozenset((group.ids[i], group.ids[j])) for i, j in zip(group.near.first, group.near.second)}
    return found


def edges(found: Found) -> dict[tuple[str, str], Edge]:
    """Edges to models that are there by their ends; of those whose parent is not there one end is the same."""
    there = [edge for edge in found.edges if not found.nodes[edge.child].get("hidden")]
    return {("" if edge.attributes.get("hidden") else edge.parent, edge.child): edge for edge in there}


def probability(edge: Edge) -> float:
    """That an edge is there as it is drawn."""
    facts = edge.attributes
    return facts.get("adjacency", 1.0) * facts.get("arrow", 1.0)


def is_sure(edge: Edge) -> bool:
    """Whether an edge and its arrow are SURE or more."""
    facts = edge.attributes
    return facts.get("adjacency", 1.0) >= SURE and facts["direction"] == "known" and not facts.get("or")


def compare(split: str, folder: Path, sizes: Sizes) -> tuple[list[object], list[str], bool]:
    """A row of a table, the differences in words, and whether all sure edges among candidates are the same."""
    index = create_index(folder / split, SAMPLES, 1 << 16, True)
    build(index, search([f"dataset/{split}.json"]).sources, Engine())
    took = []
    for one in (Sizes(whole=10**9), sizes):
        started = time.process_time()
        took.append((index_graph(index, folder / "traced", Engine(), sizes=one), time.process_time() - started))
    (dense, _), (sparse, _) = took
    there, found = candidates(index), edges(sparse)
    expected = {ends: edge for ends, edge in edges(dense).items() if not ends[0] or frozenset(ends) in there}
    missed = expected.keys() - found.keys()
    turned = {ends for ends in missed if ends[::-1] in found}
    kinds = [
        ends
        for ends in expected.keys() & found.keys()
        if expected[ends].attributes["kind"] != found[ends].attributes["kind"]
    ]
    words = [f"{split}: {ends} {expected[ends].attributes} is not found" for ends in sorted(missed)]
    words += [
        f"{split}: {ends} {found[ends].attributes} is found instead" for ends in sorted(found.keys() - expected.keys())
    ]
    words += [
        f"{split}: {ends} is {expected[ends].attributes['kind']}, found as {found[ends].attributes['kind']}"
        for ends in kinds
    ]
    far = [abs(probability(expected[ends]) - probability(found[ends])) for ends in expected.keys() & found.keys()]
    lost = sum(is_sure(expected[ends]) for ends in missed)
    same = len(expected) - len(missed)
    row = [split, len(dense.nodes), len(edges(dense)), len(expected), same, lost, len(turned), len(kinds)]
    row += [f"{max(far, default=0):.2f}", f"{np.mean(far or [0]):.4f}"]
    return [*row, *(f"{seconds:.0f}" for _, seconds in took)], words, lost == 0


def main() -> bool:
    """All splits; whether the sparse path has all sure edges of the dense one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", nargs="*", default=SPLITS)
    parser.add_argument("--core", type=int, default=6)
    parser.add_argument("--block", type=int, default=120)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows, kept = [], True
    with tempfile.TemporaryDirectory(prefix="blocks.") as scratch:
        for split in args.splits:
            row, words, same = compare(split, Path(scratch), Sizes(whole=0, core=args.core, block=args.block))
            rows.append(row)
            kept &= same
            print("\n".join(words), file=sys.stderr, flush=True)
    head = ["split", "nodes", "dense edges", "among candidates", "the same", "sure but missed", "turned", "other kind"]
    head += ["probability differs by at most", "in the mean"]
    print(format_table([*head, "seconds dense", "sparse"], rows))
    return kept


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
