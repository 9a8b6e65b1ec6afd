"""The Model Graph of an index as Parquet and JSON."""

import json
from pathlib import Path

from mother.index.graph import Found
from mother.index.store import arrow
from mother.io.files import write_atomically

NAME = "index"
NUMBERS = ("adjacency", "arrow")
TEXTS = ("kind", "direction", "how")


def write_graph(found: Found, folder: Path) -> None:
    """Write nodes.parquet, edges.parquet and model_graph.json: what is rare of an edge is JSON in `facts`."""
    pa, parquet = arrow()
    nodes = [
        {"id": one, **{key: facts.get(key) for key in ("tree", "group", "root", "how")}, "facts": json.dumps(facts)}
        for one, facts in found.nodes.items()
    ]
    edges = [
        {"parent": edge.parent, "child": edge.child}
        | {key: edge.attributes.get(key) for key in (*TEXTS, *NUMBERS)}
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
