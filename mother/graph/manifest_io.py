"""Read, check and write manifests: types, sources inside their folder, parents that form no circle."""

import json
import math
import re
from dataclasses import asdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath
from typing import Any

from mother.errors import ManifestError, shown
from mother.graph.manifest import MANIFEST_FORMAT, NAME, NAME_REMEDY, NODE_KINDS, READ, Manifest, Node
from mother.io.files import write_text
from mother.io.places import HUB_SOURCE, leads_out

SHOWN = 300  # characters of a value that an error shows


def _check_source(path: Path, node: Node, source: str, links: dict[str, bool]) -> None:
    """Refuse a source that is neither a Hub repository nor a path inside the manifest's folder, links followed."""
    if source.startswith("hf://"):
        # ".." would pass for a name of dots, and would leave the repository's folder.
        if HUB_SOURCE.fullmatch(source) and ".." not in source:
            return
        raise ManifestError(
            path,
            f"node {node.id!r} has the source {source!r:.{SHOWN}}",
            "Write hf://owner/name[@revision][:subfolder].",
        )
    pure = PurePosixPath(source)
    if pure.is_absolute() or ".." in pure.parts or "\\" in source or "\0" in source or not pure.parts:
        raise ManifestError(
            path,
            f"node {node.id!r} has the source {source!r}, which is outside the manifest's folder",
            "Give a path relative to the manifest, without '..', or hf://owner/name.",
        )
    target = leads_out(path.parent, pure, links)
    if target is not None:
        raise ManifestError(
            path,
            f"node {node.id!r} has the source {source!r}, a link to {ascii(target)[1:-1][:SHOWN]}, "
            "which is outside the manifest's folder",
            "Move the manifest above both, or name the model itself on the command line.",
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
                path, f"node number {position} has the {key} {shown(entry[key])}", "Use printable characters."
            )
    types = {"parent": str, "tree": int | str, "task": str, "rank": int, "recipe": dict}
    for key, kind in types.items():
        value = entry.get(key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise ManifestError(
                path, f"node {entry['id']!r} has {key} = {shown(value)}", "Write null where it is not known."
            )
    tree = entry.get("tree")
    # A tree's name becomes part of the names of its results.
    if isinstance(tree, str) and not re.fullmatch(NAME, tree):
        raise ManifestError(path, f"node {entry['id']!r} has the tree {shown(tree)}", NAME_REMEDY)
    if isinstance(tree, int) and not 0 <= tree < 1 << 31:
        raise ManifestError(path, f"node {entry['id']!r} has the tree number {tree}", "Count trees from 0.")
    base = entry.get("base")
    if base is not None and not (isinstance(base, str) and base.strip() and base.isprintable()):
        raise ManifestError(path, f"node {entry['id']!r} has base = {shown(base)}", "Give a source, or leave it out.")
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
            raise ManifestError(path, f"node {entry['id']!r} has {key} = {shown(entry[key])}", remedy)
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
    links: dict[str, bool] = {}  # which places are links, each asked once
    for node in nodes:
        if node.id in parents:
            raise ManifestError(path, f"two nodes have the id {node.id!r}", "Give every node an id of its own.")
        _check_parents(path, node)
        _check_source(path, node, node.source, links)
        if node.base is not None:
            _check_source(path, node, node.base, links)
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
        around = error.args[1][::-1]
        cycle = " <- ".join([*around[:5], "...", around[-1]] if len(around) > 7 else around)
        raise ManifestError(path, f"the parents form a cycle: {cycle}", "Mend one of them.") from None


def read_manifest(path: str | Path) -> Manifest:
    """Read and check a manifest; raises ManifestError with the reason and the remedy."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # a pipe would wait for somebody to write
            raise ManifestError(path, "cannot be read: it is no regular file", "Give the path of a manifest.")
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except ManifestError:
        raise
    except FileNotFoundError:
        raise ManifestError(path, "there is no such file", "Give the path of a manifest.") from None
    except OSError as error:
        raise ManifestError(path, f"cannot be read: {error.strerror}", "Give the path of a manifest.") from None
    except (ValueError, RecursionError) as error:
        raise ManifestError(path, f"is not JSON: {error}", "Mend the file.") from None
    if not isinstance(content, dict) or content.get("format") != MANIFEST_FORMAT:
        raise ManifestError(
            path, f'does not say "format": "{MANIFEST_FORMAT}"', "See mother/graph/manifest.py for the format."
        )
    entries = content.get("nodes")
    if not isinstance(entries, list):
        raise ManifestError(path, "has no list of nodes", 'Write "nodes": [...].')
    nodes = tuple(_node(path, position, entry) for position, entry in enumerate(entries))
    check_nodes(path, nodes)
    if "\\ud" in text.lower():  # half of a character, which no result could be written with
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeError:
            raise ManifestError(path, "holds text that is not Unicode", "Mend the file.") from None
    name = content.get("name", path.stem)
    # The name becomes a folder under results/.
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise ManifestError(path, f"has the name {shown(name)}", NAME_REMEDY)
    names = {node.tree for node in nodes if node.tree is not None}
    if len({str(tree) for tree in names}) < len(names):
        raise ManifestError(path, "has a tree whose number is another tree's name", "Use numbers or names, not both.")
    read = content.get("read", "all")
    if read not in READ:
        raise ManifestError(path, f"has read = {shown(read)}", f"Choose from {', '.join(READ)}.")
    description = content.get("description", "")
    return Manifest(name, nodes, path.parent, description if isinstance(description, str) else shown(description), read)


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
