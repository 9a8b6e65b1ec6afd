"""The Model Graph of an index as Parquet and JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mother.graph.model_graph import Edge
from mother.index.graph import Found
from mother.index.store import arrow
from mother.io.files import write_atomically

NAME = "index"
NUMBERS = ("adjacency", "arrow")
TEXTS = ("kind", "direction", "how")


def _how(facts: Mapping[str, Any]) -> str | None:
    """Whether the probabilities of a node are exact, as those of a family that was traced as a whole are, or local."""
    return None if facts.get("hidden") else facts.get("how", "exact")


def _how_of_edge(edge: Edge, found: Found) -> str | None:
    """The same of an edge, or that it has none because an exact relation told it."""
    facts = edge.attributes
    if "how" not in facts and "adjacency" not in facts and not facts.get("hidden"):
        return "exact relation"
    return facts.get("how") or _how(found.nodes[edge.child])


def write_graph(found: Found, folder: Path) -> None:
    """Write nodes.parquet, edges.parquet and model_graph.json: what is rare of an edge is JSON in `facts`."""
    pa, parquet = arrow()
    nodes = [
        {"id": one, **{key: facts.get(key) for key in ("tree", "group", "root")}, "facts": json.dumps(facts)}
        | {"how": _how(facts)}
        for one, facts in found.nodes.items()
    ]
    edges = [
        {"parent": edge.parent, "child": edge.child}
        | {key: edge.attributes.get(key) for key in (*TEXTS, *NUMBERS)}
        | {"how": _how_of_edge(edge, found)}
        | {"facts": json.dumps(edge.attributes)}
        for edge in found.edges
    ]
    text, number = pa.string(), pa.float64()
    of_nodes = {"id": text, "tree": text, "group": text, "root": number, "how": text, "facts": text}
    of_edges = {"parent": text, "child": text} | dict.fromkeys(TEXTS, text) | dict.fromkeys(NUMBERS, number)
    for name, rows, schema in (("nodes", nodes, of_nodes), ("edges", edges, of_edges | {"facts": text})):
        table = pa.Table.from_pylist(rows, pa.schema(list(schema.items())))
        write_atomically(folder / f"{name}.parquet", lambda file, table=table: parquet.write_table(table, file))
    found.model_graph(NAME).write(folder / "model_graph.json")
