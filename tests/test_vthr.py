"""The official truth of VTHR becomes a manifest of ours, and a split of its shape runs from a Hub to the tree."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
import threading
import types
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_model
from hub_server import HubServer, environment

from dataset import vthr
from mother.errors import ManifestError
from mother.graph.manifest import Manifest, Node
from mother.graph.manifest_io import read_manifest, write_manifest
from mother.graph.model_graph import read_model_graph

ROOT = Path(__file__).parent.parent
OFFICIAL = ROOT.parent / "shared" / "vthr"
needs_official = pytest.mark.skipif(not OFFICIAL.is_dir(), reason="needs a copy of the authors' truth files")


def truth(lora: bool, trees: int = 2, width: int = 2) -> bytes:
    """A pickle as the authors write it, of classes of their names."""
    name, prefix = ("model_graph_lora", "LoRA") if lora else ("model_graph", "")
    module = types.ModuleType(name)
    classes = {}
    for base in ("ModelGraph", "ModelGraphNode", "ModelGraphNodeMetadata"):
        classes[base] = type(prefix + base, (), {"__module__": name})
        setattr(module, prefix + base, classes[base])

    def make(kind: str, **attributes: Any) -> Any:
        made = classes[kind]()
        made.__dict__.update(attributes)
        return made

    def grow(tree: int, depth: int, path: str) -> Any:
        facts = {"component_id": tree, "depth": depth, "dataset_short_name": f"task{depth}"}
        facts |= {"model_path": f"MoTHer-VTHR/VTHR-X-ModelTree_{tree}-Depth_{depth}-Node_{path}"}
        if lora:
            facts["lora_rank"] = 8 * (depth + 1)
        children = [grow(tree, depth + 1, f"{path}{k}") for k in range(width)] if depth < 2 else []
        node = make("ModelGraphNode", metadata=make("ModelGraphNodeMetadata", **facts), children=children)
        for child in children:
            child.parent = node
        return node

    sys.modules[name] = module
    try:
        return pickle.dumps(make("ModelGraph", roots=[grow(tree, 0, f"n{tree}") for tree in range(trees)]))
    finally:
        del sys.modules[name]


@needs_official
@pytest.mark.parametrize("split", vthr.SPLITS)
def test_the_official_files(split: str, tmp_path: Path) -> None:
    manifest = read_manifest(vthr.fetch(split, tmp_path, OFFICIAL))
    assert len(manifest.nodes) == 105 and len(manifest.edges) == 100
    assert Counter(node.tree for node in manifest.nodes) == dict.fromkeys(range(5), 21)
    children = Counter(node.parent for node in manifest.nodes if node.parent is not None)
    assert len(children) == 25 and set(children.values()) == {4}
    assert all(node.source.startswith("hf://MoTHer-VTHR/VTHR-") for node in manifest.nodes)
    ranks = {node.rank for node in manifest.nodes if node.parent is not None}
    assert ranks == {"vthr_ft": {None}, "vthr_lora_v": {8, 16, 32, 64}, "vthr_lora_f": {16}}[split]


@pytest.mark.parametrize("split", ["vthr_ft", "vthr_lora_v"])
def test_trees_kinds_and_ranks(split: str, tmp_path: Path) -> None:
    manifest = vthr.convert(split, truth("lora" in split))
    assert len(manifest.nodes) == 14 and len(manifest.edges) == 12
    kinds = Counter(node.kind for node in manifest.nodes)
    assert kinds == {None: 2, "lora" if "lora" in split else "fine-tune": 12}
    by_id = {node.id: node for node in manifest.nodes}
    leaf = by_id["VTHR-X-ModelTree_1-Depth_2-Node_n101"]
    assert leaf.parent == "VTHR-X-ModelTree_1-Depth_1-Node_n10" and leaf.tree == 1 and leaf.task == "task2"
    assert leaf.rank == (24 if "lora" in split else None)
    write_manifest(tmp_path / "m.json", manifest)
    assert read_manifest(tmp_path / "m.json").nodes == manifest.nodes


def hostile(marker: Path) -> dict[str, bytes]:
    good = truth(False, 1, 1)
    return {
        "os.system": f"cposix\nsystem\n(S'touch {marker}'\ntR.".encode(),
        "eval": f"cbuiltins\neval\n(S'open({str(marker)!r}, \"w\")'\ntR.".encode(),
        "nested name": b"\x80\x04\x8c\x0bmodel_graph\x8c\x09os.system\x93.",
        "other class": b"cmodel_graph\nsystem\n(tR.",
        "lora class of the other module": b"cmodel_graph\nLoRAModelGraph\n)\x81.",
        "persistent id": b"Pid\n.",
        "state that is no dictionary": b"\x80\x02cmodel_graph\nModelGraph\n)\x81K\x01b.",
        "class in the state": b"\x80\x02cmodel_graph\nModelGraph\n)\x81}X\t\x00\x00\x00__class__K\x01sb.",
        "no roots": b"\x80\x02cmodel_graph\nModelGraph\n)\x81}X\x01\x00\x00\x00aK\x01sb.",
        "a number": pickle.dumps(3),
        "cut off": good[: len(good) // 2],
        "empty": b"",
        "odd path": good.replace(b"MoTHer-VTHR/VTHR-X-ModelTree_0-Depth_0", b"MoTHer-VTHR:VTHR-X-ModelTree_0-Depth_0"),
    }


@pytest.mark.parametrize("name", hostile(Path("x")))
def test_hostile_truth_executes_nothing(name: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as error:
        vthr.convert("vthr_ft", hostile(tmp_path / "executed")[name], "there.pkl")
    assert "there.pkl" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()


def test_a_cycle_is_refused() -> None:
    class Graph(vthr._Record):
        pass

    graph, node = Graph(), Graph()
    node.attributes = {"metadata": Graph(), "children": []}
    node.attributes["children"].append(node)
    graph.attributes = {"roots": [node]}
    with pytest.raises(ManifestError, match="hangs below two"):
        list(vthr._walk(graph, "x"))


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """The authors' repository, on this machine."""
    files: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = files.get(self.path.strip("/"))
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setattr(vthr, "TRUTH", f"http://127.0.0.1:{server.server_port}/{{name}}")
        yield files
        server.shutdown()
        thread.join()


def test_the_truth_is_fetched_and_checked(
    site: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name, digest, kind = vthr.SPLITS["vthr_ft"]
    with pytest.raises(ManifestError, match="cannot be fetched.*404"):
        vthr.fetch("vthr_ft", tmp_path)
    site[name] = truth(False)
    with pytest.raises(ManifestError, match="sha256 differs"):
        vthr.fetch("vthr_ft", tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(vthr.SPLITS, "vthr_ft", (name, hashlib.sha256(site[name]).hexdigest(), kind))
    assert len(read_manifest(vthr.fetch("vthr_ft", tmp_path)).nodes) == 14
    with pytest.raises(ManifestError, match="cannot be read"):
        vthr.fetch("vthr_ft", tmp_path, tmp_path / "absent.pkl")


# A split of VTHR's shape, from a Hub to the tree


def vit_file(width: int, blocks: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """The tensors of a ViTForImageClassification under the names that files have."""

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * shape[-1] ** -0.5

    stem = "vit.embeddings"
    weights = {f"{stem}.cls_token": draw(1, 1, width), f"{stem}.position_embeddings": draw(1, 197, width)}
    weights |= {f"{stem}.patch_embeddings.projection.weight": draw(width, 3, 16, 16)}
    for block in range(blocks):
        stem = f"vit.encoder.layer.{block}"
        shapes = {f"attention.attention.{name}": (width, width) for name in ("query", "key", "value")}
        shapes |= {"attention.output.dense": (width, width)}
        shapes |= {"intermediate.dense": (4 * width, width), "output.dense": (width, 4 * width)}
        for name, shape in shapes.items():
            weights |= {f"{stem}.{name}.weight": draw(*shape), f"{stem}.{name}.bias": torch.zeros(shape[0])}
        for name in ("layernorm_before", "layernorm_after"):
            weights |= {f"{stem}.{name}.weight": torch.ones(width), f"{stem}.{name}.bias": torch.zeros(width)}
    return weights | {"vit.layernorm.weight": torch.ones(width), "classifier.weight": draw(5, width)}


def step_from(weights: dict[str, torch.Tensor], rank: int | None, generator: torch.Generator) -> dict:
    """A fine-tune (rank None) or a merged LoRA on query and value, along directions that are new."""
    result = dict(weights)
    for name, weight in weights.items():
        touched = "encoder" in name and weight.ndim == 2 and (rank is None or "query" in name or "value" in name)
        if touched:
            rows, columns = weight.shape
            inner = rank or 4
            step = torch.randn(rows, inner, generator=generator) @ torch.randn(inner, columns, generator=generator)
            if rank is None:
                step = step + 0.3 * torch.randn(rows, columns, generator=generator)
            result[name] = weight + 0.08 * weight.norm() * step / step.norm()
    return result | {"classifier.weight": torch.randn(7, weights["classifier.weight"].shape[1], generator=generator)}


def serve_split(server: HubServer, manifest: Manifest, width: int, blocks: int) -> None:
    """Put a model for each node of a manifest on a Hub."""
    weights: dict[str, dict[str, torch.Tensor]] = {}
    for number, node in enumerate(manifest.nodes):
        generator = torch.Generator().manual_seed(number)
        if node.parent is None:
            weights[node.id] = vit_file(width, blocks, generator)
        else:
            weights[node.id] = step_from(weights[node.parent], node.rank, generator)
        save_model(server.folder / node.source.removeprefix("hf://"), weights[node.id])


def split_manifest(split: str, folder: Path) -> Manifest:
    """The official manifest where the truth is at hand, else one of the same shape."""
    if OFFICIAL.is_dir():
        return read_manifest(vthr.fetch(split, folder, OFFICIAL))
    nodes: list[Node] = []
    for tree in range(5):
        for depth, k in [(0, 0), *((1, k) for k in range(4)), *((2, k) for k in range(16))]:
            name = f"VTHR-{split}-ModelTree_{tree}-Depth_{depth}-Node_{k:08}"
            above = f"VTHR-{split}-ModelTree_{tree}-Depth_{depth - 1}-Node_{k // 4:08}" if depth else None
            rank = 4 if depth and "lora" in split else None
            nodes.append(Node(name, f"hf://MoTHer-VTHR/{name}", above, tree, None, rank))
    manifest = Manifest(split, tuple(nodes), folder, read="attention")
    write_manifest(folder / f"{split}.json", manifest)
    return manifest


@pytest.mark.parametrize("split", ["vthr_ft", pytest.param("vthr_lora_f", marks=pytest.mark.slow)])
def test_a_split_of_vthr_from_the_hub_by_both_methods(split: str, tmp_path: Path) -> None:
    manifest = split_manifest(split, tmp_path)
    lora = "lora" in split
    width, blocks = (40, 2) if lora else (24, 3)
    where = ["--results", str(tmp_path / "results")]
    graphs = "--model-graphs" if lora else "--model-graph"
    script = ["MoTHer_LoRA.py" if lora else "MoTHer_FullFT.py", graphs, str(tmp_path / f"{split}.json"), *where]
    with HubServer(tmp_path / "hub") as server:
        serve_split(server, manifest, width, blocks)
        whole = environment(server, tmp_path) | {"PATH": os.environ["PATH"]}

        def call(*command: str, offline: bool = False) -> None:
            settings = whole | ({"HF_HUB_OFFLINE": "1"} if offline else {})
            done = subprocess.run(
                [sys.executable, *command], cwd=ROOT, env=settings, capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, done.stderr[-2000:]

        def sent() -> int:
            """Bytes of the weight files that were sent, headers aside."""
            data = [one for one in server.requests if one.path.startswith("/cdn") and one.method == "GET"]
            return sum(request.bytes_sent for request in data if request.range and request.range[0] > 0)

        kinds = 1 if lora else 4
        wanted = 105 * blocks * kinds * width * width * 4
        if not lora:
            call("get_vit_layer_statistics.py", "--model-graph", str(tmp_path / f"{split}.json"), *where)
            assert sent() <= 1.02 * wanted
        call(*script, "--method", "mother")
        assert sent() <= 1.02 * wanted  # stage 3a reads what stage 1 measured
        assert len(server.requests) <= 105 * (4 + blocks * kinds)
        server.requests.clear()
        accuracy = json.loads((tmp_path / "results" / split / "accuracy.json").read_text())
        assert accuracy["overall"]["models"] == 105 and not accuracy["left_out"]
        assert accuracy["overall"]["undirected_accuracy"] > 0.5

        call(*script)
        one = save_model(tmp_path / "one", vit_file(width, blocks, torch.Generator())) / "model.safetensors"
        feed_forward = blocks * 2 * 4 * width * width * 4
        assert sent() <= 1.02 * 105 * (one.stat().st_size - feed_forward)  # each byte once, in two passes
        found = json.loads((tmp_path / "results" / split / "map" / "accuracy.json").read_text())
        assert found["models"] == 105 and found["clusters"] == 1
        assert found["undirected"] == 1 and found["directed"] >= 0.95 and found["kinds"] >= 0.95
        graph = (tmp_path / "results" / split / "map" / "model_graph.json").read_bytes()
        assert len(read_model_graph(tmp_path / "results" / split / "map" / "model_graph.json").edges) == 100

        # A second run, without a network, reads nothing and says the same.
        server.requests.clear()
        call(*script, "--method", "mother", offline=True)
        call(*script, offline=True)
        assert (tmp_path / "results" / split / "map" / "model_graph.json").read_bytes() == graph
        assert not server.requests
