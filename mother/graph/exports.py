"""A Model Graph for other programs: GraphML, Newick, Mermaid and DOT. All text from outside is quoted."""

import json

import networkx as nx

from mother.graph.certainty import both
from mother.graph.model_graph import ModelGraph

# Colours of the kinds of edges: those of Okabe and Ito, which the colour-blind can tell apart.
COLOURS = {
    "fine-tune": "#0072b2",
    "lora": "#009e73",
    "cast": "#999999",
    "prune": "#cc79a7",
    "quantize": "#e69f00",
    "merge": "#d55e00",
    None: "#777777",
}
# Their dashes, in lengths of line and gap: what is printed in grey can still be told apart. A fine-tune has none.
DASHES = {"lora": "9 3", "cast": "2 3", "prune": "6 3 2 3", "quantize": "4 3", "merge": "12 3 2 3", "hidden": "1 4"}
ALIKE = {"adapter": "lora", "dora": "lora"}  # kinds that are drawn as another


def base_kind(kind: str | None) -> str:
    """The word by which a kind is drawn: "quantize (gguf Q4_K)" as "quantize", no kind as "hidden"."""
    word = (kind or "hidden").split()[0].strip("():,").lower()
    return ALIKE.get(word, word)


def colour_of(kind: str | None) -> str:
    """The colour of a kind of edge; grey where none is known."""
    return COLOURS.get(base_kind(kind), COLOURS[None])


def share_text(coefficient: float) -> str:
    """The share of a parent in a merge in the one way in which readers see it: two digits that count."""
    return f"{coefficient:#.2g}".removesuffix(".")


def describe(facts: dict) -> str:
    """Kind and probabilities of an edge in a few words."""
    if facts.get("kind") is None:
        return f"hidden, {both(facts)}" if "adjacency" in facts else "hidden"
    words = [facts["kind"], *(f"{key} {facts[key]}" for key in ("rank", "bits", "format", "dtype") if key in facts)]
    if facts["kind"] == "adapter" and "rank" in facts:
        words[:2] = [f"adapter (rank {facts['rank']})"]
    return f"{' '.join(words)}, {both(facts)}"


def to_graphml(graph: ModelGraph) -> str:
    """GraphML with all attributes; those that are no plain values as JSON."""
    flat = nx.DiGraph(name=graph.name)

    def plain(facts: dict) -> dict:
        return {
            key: value if isinstance(value, str | int | float | bool) else json.dumps(value, ensure_ascii=False)
            for key, value in facts.items()
            if value is not None
        }

    for key, facts in graph.nodes.items():
        flat.add_node(_xml(key), **{name: _xml(value) for name, value in plain(facts).items()})
    for edge in graph.edges:
        facts = {name: _xml(value) for name, value in plain(edge.attributes).items()}
        flat.add_edge(_xml(edge.parent), _xml(edge.child), **facts)
    return "\n".join(nx.generate_graphml(flat)) + "\n"


def _xml(value: object) -> object:
    """Text without the characters that no XML file may hold, in whatever way they are written."""
    if not isinstance(value, str):
        return value

    def allowed(c: str) -> bool:
        return c in "\t\n\r" or " " <= c < "\ud800" or "\ue000" <= c < "\ufffe" or c > "\uffff"

    return "".join(c if allowed(c) else "\ufffd" for c in value)


def first_parents(graph: ModelGraph) -> dict[str, list[str]]:
    """Children of each model, a merge under the first of its parents only."""
    children: dict[str, list[str]] = {model: [] for model in graph.nodes}
    placed: set[str] = set()
    for edge in sorted(graph.edges, key=lambda edge: (edge.parent, edge.child)):
        if edge.child not in placed:
            placed.add(edge.child)
            children[edge.parent].append(edge.child)
    return children


def roots(graph: ModelGraph) -> list[str]:
    """Models without a parent, in the order of their trees."""
    below = {edge.child for edge in graph.edges}
    return [model for model in graph.nodes if model not in below]


def to_newick(graph: ModelGraph) -> str:
    """One tree a line; inner nodes named; the length of a branch is the relative change, 0 where it is exact.

    What else is known of an edge stands in a comment. A merge is shown under the first of its parents.
    """
    children = first_parents(graph)
    incoming = {}
    for edge in sorted(graph.edges, key=lambda edge: (edge.parent, edge.child), reverse=True):
        incoming[edge.child] = edge
    lines, below = [], nx.DiGraph(children)
    for root in roots(graph):
        text: dict[str, str] = {}
        for model in reversed(list(nx.dfs_preorder_nodes(below, root))):
            inner = ",".join(text.pop(child) for child in children[model])
            label = "'" + model.replace("'", "''") + "'"
            edge = incoming.get(model)
            tail = ""
            if edge is not None:
                facts = {key: edge.attributes.get(key) for key in ("kind", "adjacency", "arrow", "rank", "bits")}
                known = ":".join(f"{key}={value}" for key, value in facts.items() if value is not None)
                tail = f":{edge.attributes.get('relative_change', 0.0):g}" + (f"[&&NHX:{known}]" if known else "")
            text[model] = (f"({inner})" if inner else "") + label + tail
        lines.append(text[root] + ";")
    return "\n".join(lines) + "\n"


def _mermaid_text(text: str) -> str:
    """Text inside quotes: Mermaid reads #name; as a character, and HTML in labels."""
    return "".join(c if c.isalnum() or c in " .,-_/()=+%@:" else f"#{ord(c)};" for c in text)


def to_mermaid(graph: ModelGraph) -> str:
    """A Mermaid flowchart, to be pasted into a model card between ```mermaid and ```."""
    number = {model: f"n{at}" for at, model in enumerate(graph.nodes)}
    lines = ["flowchart LR"]
    for model, facts in graph.nodes.items():
        names = " = ".join([model, *facts.get("aliases", ())])
        shape = '("{}")' if facts.get("hidden") else '["{}"]'
        lines.append(f"  {number[model]}{shape.format(_mermaid_text('hidden' if facts.get('hidden') else names))}")
    for at, edge in enumerate(graph.edges):
        known = edge.attributes.get("direction") != "unknown"
        line = "-.->" if edge.attributes.get("hidden") else "-->" if known else "---"
        lines.append(
            f'  {number[edge.parent]} {line}|"{_mermaid_text(describe(edge.attributes))}"| {number[edge.child]}'
        )
        lines.append(f"  linkStyle {at} stroke:{colour_of(edge.attributes.get('kind'))}")
    return "\n".join(lines) + "\n"


def _dot_text(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def to_dot(graph: ModelGraph) -> str:
    """A Graphviz digraph: colour by kind, width by probability, dashed where the arrow is unknown."""
    lines = [f"digraph {_dot_text(graph.name)} {{", "  rankdir=LR;", '  node [shape=box, fontname="sans-serif"];']
    for model, facts in graph.nodes.items():
        names = "hidden" if facts.get("hidden") else " = ".join([model, *facts.get("aliases", ())])
        style = ", style=dashed" if facts.get("hidden") else ""
        lines.append(f"  {_dot_text(model)} [label={_dot_text(names)}{style}];")
    for edge in graph.edges:
        facts = edge.attributes
        colour = colour_of(facts.get("kind"))
        style = [f'color="{colour}"', f"penwidth={0.5 + 2 * facts.get('adjacency', 1):.2f}"]
        style += ["style=dashed", "dir=none"] if facts.get("direction") == "unknown" else []
        label = _dot_text(describe(facts))
        lines.append(f"  {_dot_text(edge.parent)} -> {_dot_text(edge.child)} [label={label}, {', '.join(style)}];")
    return "\n".join([*lines, "}"]) + "\n"
