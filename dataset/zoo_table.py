"""Print how far the models of a grown zoo moved, by plot, and whether that is what their recipes ask for.

python -m dataset.zoo_table
"""

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from dataset.forest import read_record
from mother.graph.manifest import Manifest, Node
from mother.graph.manifest_io import read_manifest


def records_of(manifest: Manifest) -> list[tuple[Node, dict[str, Any]]]:
    """The nodes of a manifest that are grown, with their training records."""
    found = [(node, read_record(manifest.folder / node.source)) for node in manifest.nodes]
    return [(node, record) for node, record in found if record is not None]


def moves_table(manifest: Manifest) -> list[str]:
    """Lines of text: for each plot and kind of model how many there are and how far they moved."""
    moves: dict[tuple[str, str], list[float]] = defaultdict(list)
    missed, fell, roots = [], 0, 0
    for node, record in records_of(manifest):
        plot, move, change = node.recipe["plot"], node.recipe.get("move"), record.get("relative_change")
        if not node.all_parents:
            roots, fell = roots + 1, fell + (record["loss_after"] < record["loss_before"])
        elif change is not None:
            moves[plot, node.kind].append(change)
        if move and not 0.7 <= change / move <= 1.4:
            missed.append(f"{node.id} ({node.recipe['architecture']}, {plot}): {change:.4f}, planned {move}")
    lines = [f"{'plot':<11} {'kind':<10} {'models':>6}  moves in %: least, quartiles, most"]
    for (plot, kind), values in sorted(moves.items()):
        shares = "  ".join(f"{100 * share:7.3f}" for share in np.quantile(values, [0, 0.25, 0.5, 0.75, 1]))
        lines.append(f"{plot:<11} {kind:<10} {len(values):>6}  {shares}")
    return [*lines, f"losses of {fell} of {roots} roots fell", f"{len(missed)} moves missed their plan", *missed]


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "mini_zoo.json"
    print("\n".join(moves_table(read_manifest(path))))
