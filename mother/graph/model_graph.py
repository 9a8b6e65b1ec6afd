"""The Model Graph (the paper's term): the recovered edges, as JSON that other programs can read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mother.errors import ManifestError
from mother.graph.certainty import KNOWN
from mother.io.files import write_json

GRAPH_FORMAT = "mother-model-graph/1"
PROBABILITIES = ("adjacency", "arrow", "compared")  # of an edge; all may be lacking
GRAPH = "model_graph.json"  # its file in a folder of results
UNKNOWN_BASES = "adapters of unknown bases"  # the group of those that nothing in a graph is related to


@dataclass(frozen=True)
class Edge:
    """`child` was trained from `parent`; `attributes` are JSON values such as the distance."""

    parent: str
    child: str
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelGraph:
    """Recovered heritage of a collection: a set of Model Trees (the paper's term)."""

    name: str
    nodes: dict[str, dict[str, Any]]  # id -> JSON attributes, such as the cluster
    edges: tuple[Edge, ...]
    left_out: dict[str, str] = field(default_factory=dict)  # id -> why it has no place in the graph
    notes: tuple[str, ...] = ()
    not_read: dict[str, str] = field(default_factory=dict)  # files and folders that were found -> why they are not read

    def to_networkx(self) -> "networkx.DiGraph":
        """The same graph with the same attributes, edges pointing from parent to child."""
        import networkx as nx

        graph = nx.DiGraph(name=self.name)
        graph.add_nodes_from(self.nodes.items())
        graph.add_edges_from((edge.parent, edge.child, edge.attributes) for edge in self.edges)
        return graph

    def write(self, path: Path) -> None:
        """Write `model_graph.json` atomically."""
        write_json(
            path,
            {
                "format": GRAPH_FORMAT,
                "name": self.name,
                "nodes": [{"id": key, **attributes} for key, attributes in self.nodes.items()],
                "edges": [{"parent": edge.parent, "child": edge.child, **edge.attributes} for edge in self.edges],
                "left_out": self.left_out,
                "notes": list(self.notes),
                "not_read": self.not_read,
            },
        )


# Attributes of an edge from a model that is not there, but for its adjacency: by what it is it came first.
HIDDEN_EDGE: dict[str, Any] = {"kind": None, "arrow": 1.0, "direction": "known", "hidden": True}


def stated(adjacency: float, arrow: float) -> dict[str, Any]:
    """The attributes of an edge that say how sure it is, and whether its direction is known."""
    direction = "known" if arrow >= KNOWN else "unknown"
    return {"adjacency": round(adjacency, 4), "arrow": round(arrow, 4), "direction": direction}


def above_hidden(adjacency: float, arrow: float, there: float) -> dict[str, Any]:
    """Attributes of an edge to a model that is not there, by those of the first of its children from the same parent.

    `there` is the probability that there is such a model.
    """
    return HIDDEN_EDGE | stated(adjacency * there, arrow)


def hidden_called(children: Sequence[str]) -> str:
    """Id of a model that is not there, by its children."""
    return f"hidden parent of {', '.join(children[:3])}"


def standing_for(nodes: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The node that stands for each model of a graph's nodes: itself, or the one that it is a copy of."""
    return {name: node for node, facts in nodes.items() for name in (node, *facts.get("aliases", ()))}


def read_model_graph(path: Path) -> ModelGraph:
    """Read what `ModelGraph.write` wrote; raises ManifestError if it is something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != GRAPH_FORMAT:
            raise ValueError(f'does not say "format": "{GRAPH_FORMAT}"')
        nodes = {entry["id"]: {k: v for k, v in entry.items() if k != "id"} for entry in content["nodes"]}
        edges = tuple(
            Edge(entry["parent"], entry["child"], {k: v for k, v in entry.items() if k not in ("parent", "child")})
            for entry in content["edges"]
        )
        lists = dict(content["left_out"]), tuple(content["notes"]), dict(content.get("not_read", {}))
        graph = ModelGraph(content["name"], nodes, edges, *lists)
        texts = [graph.name, *nodes, *graph.left_out, *graph.left_out.values(), *graph.notes]
        texts += [*graph.not_read, *graph.not_read.values()]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a name or a reason is no text")
        if any(end not in nodes for edge in edges for end in (edge.parent, edge.child)):
            raise ValueError("an edge ends nowhere")
        numbers = [edge.attributes[name] for edge in edges for name in PROBABILITIES if name in edge.attributes]
        if not all(isinstance(number, (int, float)) for number in numbers):
            raise ValueError("a probability is no number")
        return graph
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ManifestError(path, f"is not a Model Graph: {error}", "Run the script that writes it again.") from None
