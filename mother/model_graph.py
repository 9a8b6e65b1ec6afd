"""The Model Graph: which models there are, and who was trained from whom.

Two JSON formats live here. A *manifest* names a collection of models and what is known of their
heritage; it is the input. A *Model Graph* (the paper's term) holds the recovered edges; it is the
output. Both are plain enough to be written by hand or read by another program.

Manifest::

    {"format": "mother-manifest/1",
     "name": "my_models",
     "nodes": [{"id": "a", "source": "models/a", "parent": null, "tree": 0, "task": null, "rank": null},
               {"id": "b", "source": "hf://org/name@main:unet", "parent": "a", "tree": 0}]}

`source` is a folder or a weight file relative to the manifest and inside its folder, or
`hf://owner/name[@revision][:subfolder]`. `parent` is null where it is unknown or where there is none;
so are `tree`, `task` and `rank`.

`base` is the source of the model that a PEFT adapter belongs to; without it an adapter is only what it adds.
`"read": "attention"` beside the name says that of the matrices inside the blocks only those of attention are to be
read (the paper's experiments), `"all"`, the default, that all are.

Four more keys say what a real collection may know. They may be left out, as may `base`, and are written only when set:
`kind`, how the model was made from its parent (one of `NODE_KINDS`); `parents`, two or more, in place of
`parent` for a merge; `coefficients`, one for each of them where the merge is linear; `absent`, true for a model
that belongs to the truth but not to the collection, so that nobody opens it.
"""

import json
import math
import re
from dataclasses import asdict, dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath
from typing import Any

import networkx as nx

from mother.errors import ManifestError
from mother.files import write_json, write_text

MANIFEST_FORMAT = "mother-manifest/1"
GRAPH_FORMAT = "mother-model-graph/1"

READ = ("all", "attention")
NODE_KINDS = ("fine-tune", "lora", "cast", "prune", "quantize", "merge", "copy")

NAME = r"\w[\w. -]{0,63}"
NAME_REMEDY = "Use at most 64 letters, digits, '_', '-', '.' and spaces."

HUB_SOURCE = re.compile(
    r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?(:(?P<subfolder>[\w.-]+(/[\w.-]+)*))?"
)


@dataclass(frozen=True)
class Node:
    """A model of a collection and what is known about it (None: unknown)."""

    id: str
    source: str
    parent: str | None = None
    tree: int | str | None = None
    task: str | None = None
    rank: int | None = None  # of the LoRA update that made it
    recipe: dict[str, Any] | None = None  # how `dataset/` grows it
    kind: str | None = None  # one of NODE_KINDS; None where unknown, and for a root
    parents: tuple[str, ...] = ()  # of a merge, two or more; `parent` is None then
    coefficients: tuple[float, ...] | None = None  # of a linear merge, in the order of `parents`
    absent: bool = False  # part of the truth, not of the collection
    base: str | None = None  # of an adapter: where the model is that it belongs to

    @property
    def all_parents(self) -> tuple[str, ...]:
        """The parents of a merge, the parent of another model, or nothing."""
        return self.parents or ((self.parent,) if self.parent is not None else ())


@dataclass(frozen=True)
class Manifest:
    """A named collection of models. `folder` is what relative sources start from."""

    name: str
    nodes: tuple[Node, ...]
    folder: Path
    description: str = ""
    read: str = "all"  # one of READ: which matrices inside the blocks

    @property
    def edges(self) -> set[tuple[str, str]]:
        """The known (parent, child) pairs; a merge has one with each of its parents."""
        return {(parent, node.id) for node in self.nodes for parent in node.all_parents}

    @property
    def present(self) -> tuple[Node, ...]:
        """The nodes of the collection: all but the absent ones."""
        return tuple(node for node in self.nodes if not node.absent)

    def location(self, node: Node) -> str | Path:
        """Where a node's weights are: a path, or the `hf://` source itself."""
        return self._locate(node.source)

    def base_location(self, node: Node) -> str | Path | None:
        """Where the model is that an adapter belongs to, or None."""
        return None if node.base is None else self._locate(node.base)

    def _locate(self, source: str) -> str | Path:
        return source if source.startswith("hf://") else self.folder / source


def _check_source(path: Path, node: Node, source: str) -> None:
    """Refuse a source that is neither a Hub repository nor a path inside the manifest's folder."""
    if source.startswith("hf://"):
        # ".." would pass for a name of dots, and would leave the repository's folder.
        if HUB_SOURCE.fullmatch(source) and ".." not in source:
            return
        raise ManifestError(
            path, f"node {node.id!r} has the source {source!r}", "Write hf://owner/name[@revision][:subfolder]."
        )
    pure = PurePosixPath(source)
    if pure.is_absolute() or ".." in pure.parts or "\\" in source or "\0" in source or not pure.parts:
        raise ManifestError(
            path,
            f"node {node.id!r} has the source {source!r}, which is outside the manifest's folder",
            "Give a path relative to the manifest, without '..', or hf://owner/name.",
        )


def _node(path: Path, position: int, entry: Any) -> Node:
    """Check the types of one entry of `nodes`."""
    if not isinstance(entry, dict):
        raise ManifestError(path, f"node number {position} is not an object", 'Write {"id": ..., "source": ...}.')
    for key in ("id", "source"):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise ManifestError(path, f"node number {position} has no {key}", f'Give "{key}" as a non-empty string.')
        if not entry[key].isprintable():
            raise ManifestError(
                path, f"node number {position} has the {key} {ascii(entry[key])[:100]}", "Use printable characters."
            )
    types = {"parent": str, "tree": int | str, "task": str, "rank": int, "recipe": dict}
    for key, kind in types.items():
        value = entry.get(key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise ManifestError(
                path, f"node {entry['id']!r} has {key} = {value!r}", "Write null where it is not known."
            )
    tree = entry.get("tree")
    # A tree's name becomes part of the names of its results.
    if isinstance(tree, str) and not re.fullmatch(NAME, tree):
        raise ManifestError(path, f"node {entry['id']!r} has the tree {ascii(tree)[:100]}", NAME_REMEDY)
    if isinstance(tree, int) and not 0 <= tree < 1 << 31:
        raise ManifestError(path, f"node {entry['id']!r} has the tree number {tree}", "Count trees from 0.")
    base = entry.get("base")
    if base is not None and not (isinstance(base, str) and base.strip() and base.isprintable()):
        raise ManifestError(
            path, f"node {entry['id']!r} has base = {ascii(base)[:100]}", "Give a source, or leave it out."
        )
    return Node(entry["id"], entry["source"], *(entry.get(key) for key in types), *_heritage(path, entry), base)


def _heritage(path: Path, entry: dict[str, Any]) -> tuple[str | None, tuple[str, ...], tuple[float, ...] | None, bool]:
    """Check the types of kind, parents, coefficients and absent, the keys that may be left out."""
    kind, parents, coefficients, absent = map(entry.get, ("kind", "parents", "coefficients", "absent"))
    expected = {
        "kind": (kind is None or kind in NODE_KINDS, f"Choose from {', '.join(NODE_KINDS)}, or null."),
        "parents": (parents is None or _is_list(parents, str), "Write a list of ids."),
        "coefficients": (
            coefficients is None or _is_list(coefficients, int | float),
            "Write a list of numbers, or null where the merge is not linear.",
        ),
        "absent": (absent is None or isinstance(absent, bool), "Write true or false."),
    }
    for key, (good, remedy) in expected.items():
        if not good:
            raise ManifestError(path, f"node {entry['id']!r} has {key} = {ascii(entry[key])[:100]}", remedy)
    try:
        weights = None if coefficients is None else tuple(map(float, coefficients))
    except OverflowError:  # an integer of hundreds of digits
        weights = (math.inf,)
    return kind, tuple(parents or ()), weights, bool(absent)


def _is_list(value: Any, kind: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) and not isinstance(item, bool) for item in value)


def _check_parents(path: Path, node: Node) -> None:
    """Refuse parents, coefficients and kinds that contradict one another."""

    def refuse(reason: str, remedy: str) -> None:
        raise ManifestError(path, f"node {node.id!r} {reason}", remedy)

    if node.kind is not None and node.kind not in NODE_KINDS:
        refuse(f"has kind = {node.kind!r}", f"Choose from {', '.join(NODE_KINDS)}, or null.")
    if node.parents and node.parent is not None:
        refuse("has both parent and parents", "Give `parents` for a merge and `parent` for anything else.")
    if len(node.parents) == 1:
        refuse("has a list of one parent", "Give it as `parent`.")
    if len(set(node.parents)) < len(node.parents):
        refuse("names a parent twice", "Name each parent once.")
    if node.parents and node.kind not in (None, "merge"):
        refuse(f"has several parents and the kind {node.kind!r}", 'Only the kind "merge" has `parents`.')
    if node.kind == "merge" and not node.parents:
        refuse("is a merge without parents", "Give two or more `parents`, or null as kind.")
    if node.coefficients is not None:
        if len(node.coefficients) != len(node.parents):
            refuse(
                f"has {len(node.coefficients)} coefficients for {len(node.parents)} parents",
                "Give one for each of `parents`, or null where the merge is not linear.",
            )
        if not all(map(math.isfinite, node.coefficients)):
            refuse("has a coefficient that is not finite", "Give finite numbers.")


def check_nodes(path: Path, nodes: tuple[Node, ...]) -> None:
    """Raise ManifestError on duplicate ids, unusable sources, and unknown, contradictory or circular parents."""
    if not nodes:
        raise ManifestError(path, "there is no node in it", "List at least one model.")
    parents: dict[str, tuple[str, ...]] = {}
    for node in nodes:
        if node.id in parents:
            raise ManifestError(path, f"two nodes have the id {node.id!r}", "Give every node an id of its own.")
        _check_parents(path, node)
        _check_source(path, node, node.source)
        if node.base is not None:
            _check_source(path, node, node.base)
        parents[node.id] = node.all_parents
    for node in nodes:
        for parent in node.all_parents:
            if parent not in parents:
                raise ManifestError(
                    path,
                    f"node {node.id!r} has the parent {parent!r}, which is not in it",
                    "Add the parent as a node, or write null if it is not in the collection.",
                )
    try:
        TopologicalSorter(parents).prepare()
    except CycleError as error:
        cycle = " <- ".join(reversed(error.args[1]))
        raise ManifestError(path, f"the parents form a cycle: {cycle}", "Mend one of them.") from None


def read_manifest(path: str | Path) -> Manifest:
    """Read and check a manifest; raises ManifestError with the reason and the remedy."""
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ManifestError(path, "there is no such file", "Give the path of a manifest.") from None
    except OSError as error:
        raise ManifestError(path, f"cannot be read: {error.strerror}", "Give the path of a manifest.") from None
    except (ValueError, RecursionError) as error:
        raise ManifestError(path, f"is not JSON: {error}", "Mend the file.") from None
    if not isinstance(content, dict) or content.get("format") != MANIFEST_FORMAT:
        raise ManifestError(
            path, f'does not say "format": "{MANIFEST_FORMAT}"', "See mother/model_graph.py for the format."
        )
    entries = content.get("nodes")
    if not isinstance(entries, list):
        raise ManifestError(path, "has no list of nodes", 'Write "nodes": [...].')
    nodes = tuple(_node(path, position, entry) for position, entry in enumerate(entries))
    check_nodes(path, nodes)
    name = content.get("name", path.stem)
    # The name becomes a folder under results/.
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise ManifestError(path, f"has the name {ascii(name)[:100]}", NAME_REMEDY)
    names = {node.tree for node in nodes if node.tree is not None}
    if len({str(tree) for tree in names}) < len(names):
        raise ManifestError(path, "has a tree whose number is another tree's name", "Use numbers or names, not both.")
    read = content.get("read", "all")
    if read not in READ:
        raise ManifestError(path, f"has read = {ascii(read)[:100]}", f"Choose from {', '.join(READ)}.")
    return Manifest(name, nodes, path.parent, str(content.get("description", "")), read)


def _entry(node: Node) -> dict[str, Any]:
    """A node as it is written: what is unknown as null, what may be left out only when set, the recipe last."""
    optional = ("base", "kind", "parents", "coefficients", "absent", "recipe")
    entry = asdict(node)
    extra = {key: value for key in optional if (value := entry.pop(key))}
    return entry | extra


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Check a manifest and write it atomically."""
    check_nodes(path, manifest.nodes)
    nodes = [_entry(node) for node in manifest.nodes]
    content = {"format": MANIFEST_FORMAT, "name": manifest.name, "description": manifest.description}
    content |= {"read": manifest.read} if manifest.read != "all" else {}
    lines = ",\n  ".join(json.dumps(node, ensure_ascii=False) for node in nodes)
    head = json.dumps(content, indent=1, ensure_ascii=False)[:-2]
    write_text(path, f'{head},\n "nodes": [\n  {lines}\n ]\n}}\n')


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

    def to_networkx(self) -> nx.DiGraph:
        """The same graph with the same attributes, edges pointing from parent to child."""
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
            },
        )


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
        return ModelGraph(content["name"], nodes, edges, content["left_out"], tuple(content["notes"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ManifestError(path, f"is not a Model Graph: {error}", "Run the script that writes it again.") from None
