"""Parts of the mini splits that grow in minutes: the same models, fewer of them. `make recover` uses these.

Two trees of each plain split, each with a root, three of its children and two children of each; and a third of
`mini_wild`, which still holds every kind of edge. The models are those of the mini splits, byte for byte, so that
growing these later grows only the others.
"""

from dataclasses import replace
from pathlib import Path

from dataset.plan import plan
from dataset.wild_plan import WILD, plan_wild
from mother.graph.manifest import Manifest, Node

SMALL = {"small_ft": "mini_ft", "small_lora_v": "mini_lora_v", "small_lora_f": "mini_lora_f", "small_wild": WILD}
TREES = (0, 1)  # of the plain splits
CHILDREN, GRANDCHILDREN = 3, 2
WILD_TREES = (1, 2, 7)  # language models, many generations of ViTs, and a loner


def _first(nodes: tuple[Node, ...], parent: str | None, tree: int, counts: tuple[int, ...]) -> list[Node]:
    """The first nodes below a parent, and below each of them, as many as `counts` says of each generation."""
    if not counts:
        return []
    chosen = [node for node in nodes if node.parent == parent and node.tree == tree][: counts[0]]
    return [one for node in chosen for one in (node, *_first(nodes, node.id, tree, counts[1:]))]


def plan_small(name: str, folder: Path) -> Manifest:
    """The manifest of a part; `folder` is where it will be written, and where the models of the whole split are."""
    if SMALL[name] == WILD:
        whole = plan_wild(folder)
        nodes = [node for node in whole.nodes if node.tree in WILD_TREES]
    else:
        whole = plan(SMALL[name], folder)
        nodes = [one for tree in TREES for one in _first(whole.nodes, None, tree, (1, CHILDREN, GRANDCHILDREN))]
    description = f"{len(nodes)} of the {len(whole.nodes)} models of {whole.name}."
    return replace(whole, name=name, nodes=tuple(nodes), description=description)
