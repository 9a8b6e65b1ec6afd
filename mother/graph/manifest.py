"""A manifest names a collection of models and what is known of their heritage; it is the input, as JSON::

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

from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST_FORMAT = "mother-manifest/1"
READ = ("all", "attention")
NODE_KINDS = ("fine-tune", "lora", "adapter", "cast", "prune", "quantize", "merge", "copy")
NAME = r"\w[\w. -]{0,63}"
NAME_REMEDY = "Use at most 64 letters, digits, '_', '-', '.' and spaces."


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
