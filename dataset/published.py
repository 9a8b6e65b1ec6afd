"""Truths that others have published about real models: fetched, turned into manifests of ours, run, and scored.

    python -m dataset.published mdgbench                    write dataset/mdgbench.json, say what it would read
    python -m dataset.published mdgbench --run              and recover it, and score it as its authors do
    python -m dataset.published cisco --from FOLDER         from a local copy

* mdgbench: 137 models and 131 typed edges (TensorLock). Precision, recall and F1 of directed typed edges; ARI.
* cisco: 55 similar and 56 dissimilar pairs (model-provenance-kit). Precision, recall and F1 of pairs.
* lineagebench: 15 children with their parents, of which 13 are scored (modelDNA). Right parents; AUROC of pairs.

The files are their authors' and not shipped here: each is checked by its digest, and what is made of them git ignores.
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from mother.cli.arguments import run
from mother.cli.progress import progress
from mother.errors import InputError, ManifestError
from mother.graph.manifest import Manifest, Node
from mother.graph.manifest_io import write_manifest
from mother.graph.model_graph import ModelGraph
from mother.graph.typed_scores import pair_scores, parent_scores, typed_scores
from mother.io.files import write_json
from mother.io.places import HUB_SOURCE

DATASET = Path(__file__).parent
HOST = "https://raw.githubusercontent.com"
KINDS = {"finetune": "fine-tune", "qtz": "quantize", "peft": "lora", "merge": "merge"}
MAX_SIZE = 1_000_000  # bytes; the real ones have 50 kB at most
# Bytes a parameter, by what a name says; adapters have about a hundredth of the parameters.
WIDTHS = ((r"lora|adapter|peft", 0.02), (r"gptq|awq|4bit|int4|gguf|w4a16", 0.6), (r"q_?8|w8a8", 1.1), (r"", 2.0))
RATE = 50e6  # bytes a second that a network is taken to give


@dataclass(frozen=True)
class Published:
    """A published truth: its files with their digests, and where they are; None: only as a local copy."""

    files: dict[str, str]
    origin: str | None
    convert: Callable[[dict[str, bytes]], tuple[Manifest, list[Any]]]
    score: Callable[[ModelGraph, Manifest, list[Any]], dict[str, Any]]


def _json(content: bytes, name: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise ManifestError(name, "is not JSON", "Give another copy with --from.") from None


def _nodes(
    models: list[str],
    name: str,
    parents: dict[str, list[tuple[str, str]]] | None = None,
    trees: dict[str, int] | None = None,
) -> tuple[Node, ...]:
    """Nodes of models on the Hub, by owner and name; `parents` gives (kind, parent) of each child."""
    found = []
    for model in models:
        if not isinstance(model, str) or not HUB_SOURCE.fullmatch(f"hf://{model}"):
            raise ManifestError(name, f"names the model {ascii(model)[:100]}", "Give another copy with --from.")
        above = (parents or {}).get(model, [])
        kinds = {kind for kind, _ in above}
        if len(above) > 1 and kinds != {"merge"}:
            raise ManifestError(name, f"gives {model} several parents and no merge", "Give another copy with --from.")
        kind = next(iter(kinds), None)
        base = f"hf://{above[0][1]}" if kind == "lora" else None
        both = tuple(parent for _, parent in above) if len(above) > 1 else ()
        one = above[0][1] if len(above) == 1 else None
        tree = (trees or {}).get(model)
        found.append(Node(model, f"hf://{model}", one, tree, kind=kind, parents=both, base=base))
    return tuple(found)


def _mdgbench(files: dict[str, bytes]) -> tuple[Manifest, list[Any]]:
    """In its table the first "_" of a name stands for "/"."""
    models = _json(files["mdgbench/model_list.json"], "model_list.json")["models"]
    clusters = _json(files["mdgbench/cluster.json"], "cluster.json")
    trees = {model: number for number, members in enumerate(clusters) for model in members}
    table = csv.reader(io.StringIO(files["mdgbench/model_relation.csv"].decode("utf-8")))
    parents: dict[str, list[tuple[str, str]]] = {}
    edges = []
    for row in list(table)[1:]:
        if len(row) != 3 or row[1] not in KINDS:
            raise ManifestError("model_relation.csv", f"has the row {ascii(row)[:100]}", "Give another copy.")
        parent, child = (name.replace("_", "/", 1) for name in (row[0], row[2]))
        parents.setdefault(child, []).append((KINDS[row[1]], parent))
        edges.append([parent, child, KINDS[row[1]]])
    manifest = Manifest("mdgbench", _nodes(models, "model_list.json", parents, trees), DATASET, "MDGBench. Not ours.")
    return manifest, edges


def _cisco(files: dict[str, bytes]) -> tuple[Manifest, list[Any]]:
    content = _json(files["cisco/Benchmark_All.json"], "Benchmark_All.json")
    pairs = [[*pair["pair"], kind == "similar"] for kind in ("similar", "dissimilar") for pair in content[kind]]
    models = list(dict.fromkeys(model for one, other, _ in pairs for model in (one, other)))
    return Manifest("cisco", _nodes(models, "Benchmark_All.json"), DATASET, "Cisco's pairs. Not ours."), pairs


def _lineagebench(files: dict[str, bytes]) -> tuple[Manifest, list[Any]]:
    rows = _json(files["lineagebench.json"], "lineagebench.json")
    pairs = [[row["child"], row["parent"], row["kind"], row["scored"]] for row in rows]
    models = list(dict.fromkeys(model for child, parent, *_ in pairs for model in (parent, child)))
    return Manifest("lineagebench", _nodes(models, "lineagebench.json"), DATASET, "LineageBench. Not ours."), pairs


def _score_edges(graph: ModelGraph, manifest: Manifest, edges: list[Any]) -> dict[str, Any]:
    return typed_scores(graph, map(tuple, edges), {node.id: node.tree for node in manifest.nodes})


def _score_pairs(graph: ModelGraph, manifest: Manifest, pairs: list[Any]) -> dict[str, Any]:
    return pair_scores(graph, [(one, other, similar) for one, other, similar in pairs])


def _score_parents(graph: ModelGraph, manifest: Manifest, pairs: list[Any]) -> dict[str, Any]:
    return parent_scores(graph, [(child, parent) for child, parent, _, scored in pairs if scored])


SETS = {
    "mdgbench": Published(
        {
            "mdgbench/model_list.json": "7126cbfec5afd2e04985ad36f530d401e6150efd978243370261df10b533c00a",
            "mdgbench/model_relation.csv": "da243208040d7c542af8b3c194b8f87de94edf3032346523d89430e0c78895c0",
            "mdgbench/cluster.json": "e0921351a5ac872a36ee2bfd97733f5d5d7c636e5aa84adc5cb820dc2b53ad9a",
        },
        f"{HOST}/TensorLock/TensorLock/d2562ed/evaluation/Benchmark/",
        _mdgbench,
        _score_edges,
    ),
    "cisco": Published(
        {"cisco/Benchmark_All.json": "efa98d47281176afa63e642f77054d09379b87bcd70edd98a7207c6cb5c37443"},
        f"{HOST}/cisco-ai-defense/model-provenance-kit/9991417/benchmarks/",
        _cisco,
        _score_pairs,
    ),
    # Facts that were taken from benchmarks/lineagebench_pairs.json of AwaisAdilKhokhar/modelDNA at 0a4a655: its own
    # file is another one.
    "lineagebench": Published(
        {"lineagebench.json": "e98aa79058422616c990e9a0d0980b73c81575d725c124ecb652a75b6a2005a7"},
        None,
        _lineagebench,
        _score_parents,
    ),
}


def _content(published: Published, name: str, copy: Path | None) -> bytes:
    """A file of a truth, checked. Raises ManifestError where it cannot be had or is another file."""
    import httpx2
    from huggingface_hub import get_session

    source: Any = copy / name if copy is not None else f"{published.origin}{name.split('/')[-1]}"
    try:
        if copy is not None:
            content = source.read_bytes() if source.stat().st_size <= MAX_SIZE else b""
        elif published.origin is None:
            raise ManifestError(name, "is not published in this form", "Give a local copy with --from.")
        else:
            response = get_session().get(source, timeout=60, follow_redirects=True)
            response.raise_for_status()
            content = response.content
    except OSError as error:
        raise ManifestError(source, f"cannot be read: {error.strerror}", "Give its folder with --from.") from None
    except httpx2.HTTPError as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ManifestError(source, f"cannot be fetched: {reason}", "Give a local copy with --from.") from None
    if hashlib.sha256(content).hexdigest() != published.files[name]:
        raise ManifestError(source, "is not the published file: its sha256 differs", "Give another copy with --from.")
    return content


def fetch(name: str, copy: Path | None = None, folder: Path = DATASET) -> tuple[Manifest, list[Any]]:
    """The manifest and the pairs of a truth, written into `folder`; from a local copy where one is given."""
    published = SETS[name]
    manifest, pairs = published.convert({file: _content(published, file, copy) for file in published.files})
    write_manifest(folder / f"{name}.json", manifest)
    write_json(folder / f"{name}_pairs.json", pairs)
    return manifest, pairs


def expected_bytes(model: str) -> float | None:
    """Bytes of a model's weights as its name tells them; None where it tells none."""
    name = model.lower()
    said = re.findall(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)(b|m)(?![a-z0-9])", name.replace("_", "-"))
    if not said:
        return None
    parameters = float(said[-1][0]) * {"b": 1e9, "m": 1e6}[said[-1][1]]
    return parameters * next(width for words, width in WIDTHS if re.search(words, name))


def describe(manifest: Manifest) -> str:
    """What recovering a truth would read, estimated from the names of its models."""
    sizes = [expected_bytes(node.id) for node in manifest.present]
    known = [size for size in sizes if size is not None]
    total = sum(known) * len(sizes) / max(1, len(known))
    return (
        f"{manifest.name}: {len(sizes)} models, about {total / 1e9:,.0f} GB by the names of {len(known)}: "
        f"{total / RATE / 3600:.1f} h at {RATE / 1e6:.0f} MB/s"
    )


def recover(manifest: Manifest, folder: Path) -> ModelGraph:
    """The graph of a manifest, as `recover.py --manifest` makes it; what was measured is kept in `folder`."""
    from mother.collection.find import search
    from mother.collection.workspace import recover_sources
    from mother.io.runtime import choose_device

    path = manifest.folder / f"{manifest.name}.json"
    found = search([str(path)])
    recovered = recover_sources(found.sources, folder, choose_device()[0], name=manifest.name, progress=progress)
    recovered.graph.write(folder / "model_graph.json")
    return recovered.graph


@dataclass
class Args:
    """Make manifests of truths that others published; recover and score them."""

    names: Positional[tuple[str, ...]]
    """which: mdgbench, lineagebench, cisco"""
    copy: Annotated[Path | None, arg(name="from")] = None
    """folder with a copy of the files, to take instead of fetching them"""
    run: bool = False
    """read the models and score what is recovered; else only say how much that would read"""
    out: Path = Path("results")
    """where measurements and graphs are kept, in a folder for each truth"""


def main(args: Args) -> None:
    """Fetch, check, convert; with --run recover and score."""
    for name in args.names:
        if name not in SETS:
            raise InputError(f"{name!r} is no published truth. Choose from {', '.join(SETS)}.")
        manifest, pairs = fetch(name, args.copy)
        print(describe(manifest))
        if args.run:
            scores = SETS[name].score(recover(manifest, args.out / name), manifest, pairs)
            write_json(args.out / name / "scores.json", scores)
            print(json.dumps(scores, indent=1))


if __name__ == "__main__":
    run(main, Args)
