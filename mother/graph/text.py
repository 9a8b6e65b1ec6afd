"""Trees and tables as plain text."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from mother.graph.certainty import both
from mother.graph.model_graph import Edge, ModelGraph
from mother.graph.scores import EdgeSet


def depths(models: Sequence[str], edges: EdgeSet) -> dict[str, int]:
    """Number of edges between each model and its root."""
    parent = {child: parent for parent, child in edges}
    depth: dict[str, int] = {}
    for model in models:
        line = [model]
        while line[-1] in parent:
            line.append(parent[line[-1]])
        depth[model] = len(line) - 1
    return depth


def tree_order(models: Sequence[str], edges: EdgeSet) -> list[str]:
    """Models depth first, children by name: relatives stand together."""
    children: dict[str, list[str]] = {}
    for parent, child in sorted(edges):
        children.setdefault(parent, []).append(child)
    has_parent = {child for _, child in edges}
    order: list[str] = []
    stack = sorted((model for model in models if model not in has_parent), reverse=True)
    while stack:
        order.append(stack.pop())
        stack.extend(reversed(children.get(order[-1], [])))
    return order


def tree_text(models: Sequence[str], edges: EdgeSet, truth: EdgeSet) -> str:
    """The recovered trees as indented text; a wrong edge is followed by what is wrong with it."""
    children: dict[str, list[str]] = {}
    for parent, child in sorted(edges):
        children.setdefault(parent, []).append(child)
    true_parent = {child: parent for parent, child in truth}

    def verdict(parent: str | None, child: str) -> str:
        if not truth or true_parent.get(child) == parent:
            return ""
        if parent is not None and true_parent.get(parent) == child:
            return f"   <- reversed: {child} is the parent of {parent}"
        return f"   <- wrong: {f'child of {true_parent[child]}' if child in true_parent else 'a root'}"

    lines: list[str] = []
    has_parent = {child for _, child in edges}
    stack = [(model, None, "", "") for model in sorted(set(models) - has_parent, reverse=True)]
    while stack:
        model, parent, lead, branch = stack.pop()
        lines.append(f"{lead}{branch}{model}{verdict(parent, model)}")
        lead += {"": "", "├─ ": "│  ", "└─ ": "   "}[branch]
        offspring = children.get(model, [])
        for child in reversed(offspring):
            stack.append((child, model, lead, "└─ " if child == offspring[-1] else "├─ "))
    return "\n".join(lines)


def merge_text(edges: Sequence[Edge]) -> str:
    """A merge by its parents, each with its own coefficient where it has one, the largest first."""
    known = {edge.parent: edge.attributes.get("coefficient") for edge in edges}
    if any(value is None for value in known.values()):
        return f"merge of {', '.join(sorted(known))}"
    parts = sorted(known.items(), key=lambda item: (-item[1], item[0]))
    return "merge " + " + ".join(f"{value:g} {parent}" for parent, value in parts)


def graph_text(graph: ModelGraph) -> str:
    """A typed Model Graph as indented text: kind, probability of the edge and of its arrow behind each model."""
    incoming: dict[str, list[Edge]] = {}
    children: dict[str, list[Edge]] = {}
    for edge in sorted(graph.edges, key=lambda edge: (edge.parent, edge.child)):
        incoming.setdefault(edge.child, []).append(edge)
        children.setdefault(edge.parent, []).append(edge)

    def describe(edge: Edge) -> str:
        facts = edge.attributes
        if facts["kind"] is None:
            return f"  ({both(facts)})" if "adjacency" in facts else ""
        words = [merge_text(incoming[edge.child]) if facts["kind"] == "merge" else facts["kind"]]
        words += [
            f"{key} {facts[key]}" for key in ("rank", "dtype", "except", "bits", "format", "zeros") if key in facts
        ]
        if facts["kind"] == "adapter" and "rank" in facts:  # a model of its own, and no model with a merged update
            words[:2] = [f"adapter (rank {facts['rank']})"]
        if facts.get("tested") is False:
            words.append("base as it says, untested")
        words.append(both(facts))
        return "  (" + ", ".join(words) + ")"

    lines: list[str] = []
    roots = sorted((model for model in graph.nodes if model not in incoming), reverse=True)
    stack: list[tuple[str, Edge | None, str, str]] = [(model, None, "", "") for model in roots]
    while stack:
        model, edge, lead, branch = stack.pop()
        aliases = graph.nodes[model].get("aliases")
        copies = f" = {', '.join(aliases)}" if aliases else ""
        lines.append(f"{lead}{branch}{model}{copies}{describe(edge) if edge is not None else ''}")
        lead += {"": "", "├─ ": "│  ", "└─ ": "   "}[branch]
        # A merge is shown under the first of its parents only.
        offspring = [child for child in children.get(model, []) if incoming[child.child][0] is child]
        for child in reversed(offspring):
            stack.append((child.child, child, lead, "└─ " if child is offspring[-1] else "├─ "))
    return "\n".join(lines)


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def head_line(graph: ModelGraph) -> str:
    """What a Model Graph has, in a line: models, copies, edges by kind, trees, architectures."""
    there = [facts for facts in graph.nodes.values() if not facts.get("hidden")]
    copies = sum(len(facts.get("aliases", ())) for facts in there)
    kinds = Counter(edge.attributes["kind"] for edge in graph.edges if edge.attributes.get("kind"))
    edges = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items())) or "no parent and child"
    if kinds:
        trees = len({graph.nodes[edge.child]["tree"] for edge in graph.edges})
        edges = f"{_count(sum(kinds.values()), 'edge', 'edges')} in {_count(trees, 'tree', 'trees')} ({edges})"
    hidden = len(graph.nodes) - len(there)
    parts = [_count(copies, "exact copy", "exact copies")] if copies else []
    parts += [edges, *([_count(hidden, "hidden ancestor", "hidden ancestors")] if hidden else [])]
    groups = len({facts.get("group") for facts in there})
    models = _count(len(there) + copies, "model", "models")
    return f"{models}: {', '.join(parts)}; {_count(groups, 'architecture', 'architectures')}"


def format_table(head: Sequence[str], rows: Sequence[Sequence[Any]], left: bool = False) -> str:
    """Plain text table; shares with three decimals, None as a dash, all to the right, or to the `left`."""

    def cell(value: Any) -> str:
        if value is None:
            return "-"
        return f"{value:.3f}" if isinstance(value, float) else str(value)

    lines = [list(map(str, head)), *([cell(value) for value in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    align = str.ljust if left else str.rjust
    texts = ["  ".join(align(text, width) for text, width in zip(line, widths)).rstrip() for line in lines]
    return "\n".join([texts[0], "  ".join("-" * width for width in widths), *texts[1:]])
