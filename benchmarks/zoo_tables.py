"""Tables of their own on the zoo: families whose root was never annealed, and merges with their children."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from benchmarks.honest import GROWN, PLAN, grow_unannealed
from benchmarks.traced import traced_manifest
from mother.graph.manifest import Manifest, Node
from mother.graph.model_graph import Edge, ModelGraph
from mother.graph.text import format_table
from mother.heritage.calibration import Coefficients
from mother.heritage.trees import Heritage, recover_clusters
from mother.heritage.typed_graph import build_graph

EXACT = 0.01  # largest error of a coefficient


def unannealed_families(coefficients: Coefficients) -> dict[str, tuple[Manifest, ModelGraph]]:
    """Small language models: children of very different moves under roots that were never annealed."""
    found = {}
    for name, parents in grow_unannealed(GROWN).items():
        nodes = [
            Node(
                model,
                f"{name}/{model}",
                of[0] if of else None,
                0,
                kind="fine-tune" if of else None,
                recipe={"architecture": "llama", "plot": name} | PLAN[model][1],
            )
            for model, of in parents.items()
        ]
        manifest = Manifest(name, tuple(nodes), GROWN)
        heritage = recover_clusters(traced_manifest(manifest), coefficients)
        found[name] = manifest, build_graph(name, heritage)
    return found


def without_roots(manifest: Manifest) -> Manifest:
    """The same models, but for the root of each family, its copies, and what arithmetic alone made of it."""
    roots = {node.id for node in manifest.nodes if not node.all_parents}
    gone = roots | {
        n.id for n in manifest.nodes if n.parent in roots and n.kind in ("copy", "cast", "prune", "quantize")
    }
    nodes = tuple(replace(node, absent=node.absent or node.id in gone) for node in manifest.nodes)
    return replace(manifest, name=f"{manifest.name}_without_roots", nodes=nodes)


def named_parents(manifest: Manifest, graph: ModelGraph) -> float:
    """Share of the models whose true parent is named, as the parent, its child, or one that it may be as well."""
    edges = {edge.child: edge for edge in graph.edges}
    right = []
    for parent, child in manifest.edges:
        edge = edges.get(child)
        back = edges.get(parent)
        named = {edge.parent, *edge.attributes.get("or", ())} if edge else set()
        turned = {back.parent, *back.attributes.get("or", ())} if back else set()
        right.append(parent in named or child in turned)
    return float(np.mean(right))


def _incoming(graph: ModelGraph) -> dict[str, list[Edge]]:
    found: dict[str, list[Edge]] = defaultdict(list)
    for edge in graph.edges:
        found[edge.child].append(edge)
    return found


def _largest_error(node: Node, edges: list[Edge]) -> float:
    """Of the coefficients of a linear merge; 1 where the parents are others."""
    stated = {edge.parent: edge.attributes.get("coefficient", 1.0) for edge in edges}
    if stated.keys() != {*node.parents}:
        return 1.0
    return max(abs(stated[parent] - share) for parent, share in zip(node.parents, node.coefficients or ()))


def merge_table(zoos: Iterable[tuple[Manifest, Heritage]], coefficients: dict[str, Coefficients]) -> str:
    """Merges found by method and type, coefficients of linear ones, and edges to children of merges.

    Each architecture with the coefficients that never saw it.
    """
    counts: dict[tuple[str, str], list[tuple[bool, bool, bool]]] = defaultdict(list)
    lines: dict[str, list[bool]] = {"children": [], "grandchildren": []}
    for manifest, heritage in zoos:
        _count_merges(manifest, _unseen_edges(manifest, heritage, coefficients), counts, lines)
    rows = []
    for (method, dtype), some in sorted(counts.items()):
        found, right, exact = np.mean(np.array(some, dtype=float), axis=0)
        rows.append([method, dtype, len(some), found, right, exact if method == "linear" else "-"])
    head = ("merge", "type", "count", "called a merge", "parents right", f"coefficients within {EXACT}")
    below = [
        f"{line} of merges with the right parent: "
        + (f"{np.mean(right):.3f} of {len(right)}" if right else "there are none")
        for line, right in lines.items()
    ]
    return "\n".join([format_table(head, rows), *below])


def _unseen_edges(
    manifest: Manifest, heritage: Heritage, coefficients: dict[str, Coefficients]
) -> dict[str, list[Edge]]:
    """Edges by child, each architecture with the coefficients that never saw it."""
    edges: dict[str, list[Edge]] = {}
    for architecture, values in coefficients.items():
        graph = build_graph(manifest.name, recover_clusters(heritage, values))
        own = {node.id for node in manifest.nodes if node.recipe["architecture"] == architecture}
        edges |= {child: some for child, some in _incoming(graph).items() if child in own}
    return edges


def _count_merges(
    manifest: Manifest,
    edges: dict[str, list[Edge]],
    counts: dict[tuple[str, str], list[tuple[bool, bool, bool]]],
    lines: dict[str, list[bool]],
) -> None:
    """Add what was found of the merges of one zoo, and of what was made from these."""
    nodes = {node.id: node for node in manifest.nodes}
    for node in manifest.present:
        if node.kind == "merge":
            own = edges.get(node.id, [])
            kinds = {edge.attributes.get("kind") for edge in own}
            # The base of task vectors is no parent of its own, but may be called one.
            parents = {edge.parent for edge in own} - {node.recipe.get("base")}
            linear = node.coefficients is not None
            exact = linear and _largest_error(node, own) <= EXACT
            counts[node.recipe["method"], node.recipe["dtype"]].append(
                (kinds == {"merge"}, kinds == {"merge"} and parents == {*node.parents}, exact)
            )
        elif node.parent is not None and (line := _from_merge(nodes[node.parent], nodes)):
            lines[line].append({edge.parent for edge in edges.get(node.id, [])} == {node.parent})


def _from_merge(parent: Node, nodes: dict[str, Node]) -> str:
    """What a model of this parent is to a merge."""
    if parent.kind == "merge":
        return "children"
    return "grandchildren" if parent.parent is not None and nodes[parent.parent].kind == "merge" else ""
