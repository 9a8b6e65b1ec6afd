"""VTHR, the paper's data set: the official truth, fetched once and turned into manifests of ours.

The truth is three pickles in the authors' repository. They are theirs and not shipped here: this module fetches them
at a pinned commit (or takes a local copy), checks their digests, reads them with an unpickler that knows the six
classes in them and nothing else, and writes `dataset/vthr_ft.json`, `vthr_lora_v.json` and `vthr_lora_f.json`, which
git ignores. The models themselves stay on the Hugging Face Hub; the scripts read what they need of them.

    python -m dataset.vthr
    python MoTHer_FullFT.py --model-graph vthr_ft
"""

import hashlib
import io
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mother.cli.arguments import run
from mother.errors import ManifestError
from mother.graph.manifest import Manifest, Node
from mother.graph.manifest_io import write_manifest
from mother.io.places import HUB_SOURCE

DATASET = Path(__file__).parent
TRUTH = "https://raw.githubusercontent.com/eliahuhorwitz/MoTHer/9ac0d5d/dataset/{name}"
# split -> (file, sha256, kind of its edges)
SPLITS = {
    "vthr_ft": (
        "full_ft_model_graph.pkl",
        "cfe56238ffff147513c9b0c5252f083fb53eada9ffe5633347eade357784fb60",
        "fine-tune",
    ),
    "vthr_lora_v": (
        "lora_v_model_graph.pkl",
        "93e2542f5b4ffd13eb6ac9c9365f8eae77d36a6cfd63bee0573eb4ea6b685241",
        "lora",
    ),
    "vthr_lora_f": (
        "lora_f_model_graph.pkl",
        "f886609a144d9d4297b07e27f69edff25a66a542d2df21dd35d3f0818e05cf2f",
        "lora",
    ),
}
CLASSES = {"ModelGraph", "ModelGraphNode", "ModelGraphNodeMetadata"}
MAX_SIZE = 10_000_000  # bytes; the real ones have 16 kB
MAX_MODELS = 100_000
REMEDY = "Fetch it again with `python -m dataset.vthr`, or give another copy with --truth."


class _Record:
    """Stands for an object of the authors' classes: attributes, and no behaviour."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise pickle.UnpicklingError("an object without attributes")
        self.attributes = state

    def get(self, name: str) -> Any:
        """An attribute, or None."""
        return self.__dict__.get("attributes", {}).get(name)


class _Unpickler(pickle.Unpickler):
    """Builds records; the only names it knows are those of the authors' classes."""

    def find_class(self, module: str, name: str) -> type:
        known = (module == "model_graph" and name in CLASSES) or (
            module == "model_graph_lora" and name.removeprefix("LoRA") in CLASSES and name.startswith("LoRA")
        )
        if not known:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _Record


def _unpickle(content: bytes, source: object) -> _Record:
    if len(content) > MAX_SIZE:
        raise ManifestError(source, f"has {len(content)} bytes, more than any truth file", REMEDY)
    try:
        found = _Unpickler(io.BytesIO(content)).load()
    except Exception as error:  # noqa: BLE001  A hostile pickle raises nearly anything.
        words = " ".join(str(error).split()) if isinstance(error, pickle.UnpicklingError) else type(error).__name__
        raise ManifestError(source, f"is no truth file of VTHR: {words}", REMEDY) from None
    if not isinstance(found, _Record):
        raise ManifestError(source, "is no truth file of VTHR: it holds no Model Graph", REMEDY)
    return found


def _walk(graph: _Record, source: object) -> Iterator[tuple[_Record, _Record | None]]:
    """Every node with its parent, parents first; raises ManifestError for anything but a set of trees."""

    def refuse(reason: str) -> ManifestError:
        return ManifestError(source, f"is no truth file of VTHR: {reason}", REMEDY)

    roots = graph.get("roots")
    if not isinstance(roots, list):
        raise refuse("it has no roots")
    waiting: list[tuple[Any, _Record | None]] = [(root, None) for root in reversed(roots)]
    seen: set[int] = set()
    while waiting:
        node, parent = waiting.pop()
        if not isinstance(node, _Record) or not isinstance(node.get("metadata"), _Record):
            raise refuse("a node has no metadata")
        if id(node) in seen or len(seen) > MAX_MODELS:
            raise refuse("a node hangs below two others")
        seen.add(id(node))
        yield node, parent
        children = node.get("children") or []
        if not isinstance(children, list):
            raise refuse("the children of a node are no list")
        waiting += [(child, node) for child in reversed(children)]


def convert(split: str, content: bytes, source: object = "truth") -> Manifest:
    """The manifest of a truth file. A node's id is the name of its repository without the owner.

    Raises ManifestError where the content is anything else; nothing in it is executed.
    """
    kind = SPLITS[split][2]
    names: dict[int, str] = {}
    nodes = []
    for node, parent in _walk(_unpickle(content, source), source):
        facts = node.get("metadata")
        repo, tree, task, rank = (
            facts.get(key) for key in ("model_path", "component_id", "dataset_short_name", "lora_rank")
        )
        if not isinstance(repo, str) or not HUB_SOURCE.fullmatch(f"hf://{repo}"):
            raise ManifestError(source, f"a node has the model_path {ascii(repo)[:100]}", REMEDY)
        # The pretrained roots carry the data set's defaults in these places.
        rank = rank if isinstance(rank, int) and rank > 0 and parent is not None else None
        names[id(node)] = repo.split("/")[-1]
        nodes.append(
            Node(
                names[id(node)],
                f"hf://{repo}",
                names[id(parent)] if parent is not None else None,
                tree if isinstance(tree, int) else None,
                task if isinstance(task, str) else None,
                rank,
                kind=kind if parent is not None else None,
            )
        )
    description = (
        "VTHR (arXiv 2405.18432), made from the authors' truth file by `python -m dataset.vthr`. Not ours to ship."
    )
    return Manifest(split, tuple(nodes), DATASET, description, "attention")


def fetch(split: str, folder: Path = DATASET, truth: Path | None = None) -> Path:
    """Write the manifest of a split into `folder` from the official truth, or from a local copy of it.

    `truth` is the file or a folder with it. Raises ManifestError where it cannot be had or is another file.
    """
    import httpx2
    from huggingface_hub import get_session

    name, digest, _ = SPLITS[split]
    source: Any = TRUTH.format(name=name)
    try:
        if truth is not None:
            source = truth / name if truth.is_dir() else truth
            content = source.read_bytes()
        else:
            response = get_session().get(source, timeout=60, follow_redirects=True)
            response.raise_for_status()
            content = response.content
    except OSError as error:
        raise ManifestError(
            source, f"cannot be read: {error.strerror}", "Give a file or a folder with --truth."
        ) from None
    except httpx2.HTTPError as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ManifestError(source, f"cannot be fetched: {reason}", "Give a local copy with --truth.") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise ManifestError(source, "is not the official file: its sha256 differs", REMEDY)
    path = folder / f"{split}.json"
    write_manifest(path, convert(split, content, source))
    return path


@dataclass
class Args:
    """Make the manifests of the official VTHR splits."""

    splits: tuple[str, ...] = tuple(SPLITS)
    """which of them"""
    truth: Path | None = None
    """file, or folder with the files, to take instead of fetching them"""


def main(args: Args) -> None:
    """Fetch, check, convert."""
    for split in args.splits:
        if split not in SPLITS:
            raise ManifestError(split, "is no split of VTHR", f"Choose from {', '.join(SPLITS)}.")
        path = fetch(split, DATASET, args.truth)
        print(f"{split}: {path.relative_to(DATASET.parent)}")


if __name__ == "__main__":
    run(main, Args)
