"""What others wrote to mislead, to stall or to break a run: every case is read or left out with its reason, in time."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import ROOT, run_here, save_model, vit_weights
from test_heritage import base, moved

from benchmarks import fuzz
from mother.cli.commands import main
from mother.collection.find import search
from mother.collection.workspace import Group
from mother.errors import CheckpointError, InputError, ManifestError
from mother.evidence.first_pass import FirstPass
from mother.graph.manifest_io import read_manifest
from mother.graph.model_graph import ModelGraph, read_model_graph
from mother.heritage.trees import Heritage
from mother.io.open import open_checkpoint
from mother.io.runtime import choose_device


def manifest(folder: Path, nodes: list, **more: object) -> Path:
    path = folder / "many.json"
    path.write_text(json.dumps({"format": "mother-manifest/1", "nodes": nodes} | more))
    return path


def node(name: str, **more: object) -> dict:
    return {"id": name, "source": f"models/{name}"} | more


MANY = 100_000
READ = """
import sys, time
from mother.collection.find import search
from mother.errors import ManifestError
started = time.process_time()
try:
    found = len(search(sys.argv[1:]).sources)
except ManifestError as error:
    found = str(error)
print(time.process_time() - started, found)
"""


def test_a_device_that_is_not_there_is_a_sentence_of_its_own() -> None:
    with pytest.raises(InputError, match=r"'nowhere' cannot be used: .*nowhere\. Use auto or cpu\.$"):
        choose_device("nowhere")


def test_distances_of_huge_weights_to_none_warn_nobody() -> None:
    """The distance of a model of zeros from one of weights near the end of float32 is infinite."""
    square, shared, size = np.array([[0.0, 1e74], [1e74, 0.0]]), np.ones((2, 2)), np.array([0.0, 1e74])
    first_pass = FirstPass(["none", "huge"], [], [], square, shared, square, size, np.zeros((2, 2)))
    distances = Group("two", [], Mock(spec=Heritage, first_pass=first_pass)).distances()
    assert np.isinf(distances[0, 1]) and distances[1, 1] == 0


@pytest.mark.slow  # 100,000 nodes are written and read; in a process of its own, where no types are checked
@pytest.mark.parametrize("kind", ["star", "chain", "circle", "one merge"])
def test_large_manifests_are_read_in_seconds(kind: str, tmp_path: Path) -> None:
    parents = {"star": lambda k: "0", "chain": lambda k: str(k - 1), "circle": lambda k: str((k - 1) % MANY)}
    nodes = [node(str(k)) for k in range(MANY)]
    for k, one in enumerate(nodes):
        if kind in parents and (k or kind == "circle"):
            one["parent"] = parents[kind](k)
    if kind == "one merge":
        nodes.append(node("merged", parents=[one["id"] for one in nodes], coefficients=[1.0] * MANY))
    command = [sys.executable, "-c", READ, str(manifest(tmp_path, nodes))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    seconds, _, said = done.stdout.partition(" ")
    assert float(seconds) < 20
    assert "cycle: 0 <- " in said and len(said) < 500 if kind == "circle" else int(said) == len(nodes)


@pytest.mark.parametrize("key", ["source", "base"])
def test_a_source_that_is_a_link_out_of_the_manifest(key: str, tmp_path: Path) -> None:
    save_model(tmp_path / "secret", vit_weights(1))
    (tmp_path / "m" / "models").mkdir(parents=True)
    os.symlink("../../secret", tmp_path / "m" / "models" / "a")
    path = manifest(tmp_path / "m", [{"id": "n", "source": "models", key: "models/a/model.safetensors"}])
    with pytest.raises(ManifestError, match=r"models/a/model.safetensors', a link to .*/secret/model.safetensors"):
        search([str(path)])
    path = manifest(tmp_path, [{"id": "n", "source": "m/models/a"}])  # above both: the link stays inside
    assert [one.id for one in search([str(path)]).sources] == ["n"]
    os.symlink(tmp_path / "m", tmp_path / "named")  # a link that the user names
    (tmp_path / "m" / "models" / "a").unlink()
    save_model(tmp_path / "m" / "models" / "a", vit_weights(1))
    manifest(tmp_path / "m", [{"id": "n", "source": "models/a"}])
    assert [one.id for one in search([str(tmp_path / "named" / "many.json")]).sources] == ["n"]


def test_a_manifest_over_a_cache_of_the_hub(tmp_path: Path) -> None:
    repository = tmp_path / "models--o--n"
    (repository / "blobs").mkdir(parents=True)
    (repository / "snapshots" / "abc").mkdir(parents=True)
    save_model(tmp_path / "m", vit_weights(1))
    os.rename(tmp_path / "m" / "model.safetensors", repository / "blobs" / "1")
    os.symlink("../../blobs/1", repository / "snapshots" / "abc" / "model.safetensors")
    path = manifest(repository / "snapshots" / "abc", [{"id": "n", "source": "model.safetensors"}])
    assert [one.id for one in search([str(path)]).sources] == ["n"]
    os.symlink("/etc/passwd", repository / "snapshots" / "abc" / "other")
    path = manifest(repository / "snapshots" / "abc", [{"id": "n", "source": "other"}])
    with pytest.raises(ManifestError, match="a link to /etc/passwd"):
        search([str(path)])


HALF = "\ud800"
MANIFESTS = {
    "half a character in a task": {"nodes": [node("a", task=HALF)]},
    "half a character in a description": {"nodes": [node("a")], "description": HALF},
    "half a character in a recipe": {"nodes": [node("a", recipe={"x": [HALF]})]},
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_manifests_that_could_not_be_written_again(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="not Unicode"):
        read_manifest(manifest(tmp_path, **MANIFESTS[kind]))


@pytest.mark.parametrize("text", ["", "9" * 5000, "[" * 100_000, '{"format": "mother-manifest/1"}'])
def test_damaged_manifests(text: str, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(ManifestError):
        read_manifest(tmp_path / "m.json")
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ManifestError, match="no regular file"):
        read_manifest(tmp_path / "pipe.json")


def run(*arguments: object, code: int = 0) -> str:
    """recover.py in this process: all that it says."""
    ended, out, err = run_here("recover.py", arguments, lambda: main(default="recover", name="recover.py"))
    assert ended == code, out[-2000:] + err[-2000:]
    return out + err


def recovered(folder: Path) -> tuple[ModelGraph, str]:
    """What recover.py finds among two good models, of which one is the other's child, and others beside them."""
    root = base(0)
    save_model(folder / "root", root)
    save_model(folder / "tuned", moved(root, 1))
    said = run(folder, "--out", folder.parent / "out")
    graph = read_model_graph(folder.parent / "out" / "model_graph.json")
    assert {"root", "tuned"} <= set(graph.nodes) and ("root", "tuned") in {
        (one.parent, one.child) for one in graph.edges
    }
    return graph, said


def huge(folder: Path, dtype: str, width: int) -> None:
    """A sparse file with one tensor that no machine can hold."""
    shape, size = [10_000_000_000, 5], 10_000_000_000 * 5 * width
    header = json.dumps({"layers.0.mlp.up_proj.weight": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}})
    folder.mkdir(parents=True)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.truncate(8 + len(header) + size)


def odd(kind: str, folder: Path) -> None:
    """A model with something odd about it."""
    weights = moved(base(0), 3)
    if kind == "a huge tensor":
        huge(folder, "F32", 4)
    elif kind == "a huge tensor of half precision":
        huge(folder, "BF16", 2)
    elif kind.startswith("a pickle"):
        folder.mkdir(parents=True)
        more = {"a pickle with a scalar": torch.tensor(2.5), "a pickle with nothing": torch.zeros(0, 4)}[kind]
        torch.save(weights | {"logit_scale": more}, folder / "pytorch_model.bin")
    elif kind == "an adapter whose file is gone":
        save_model(folder, weights)
        (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    elif kind == "an adapter without anything":
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    elif kind == "an empty file":
        folder.mkdir(parents=True)
        (folder / "model.safetensors").touch()
    else:
        more = {
            "a scalar": {"logit_scale": torch.tensor(2.5)},
            "a scalar in half precision": {"logit_scale": torch.tensor(2.5).half()},
            "a whole number": {"num_batches_tracked": torch.tensor(7)},
            "a scalar that is NaN": {"logit_scale": torch.tensor(torch.nan)},
            "no rows": {"layers.9.mlp.up_proj.weight": torch.zeros(0, 8)},
            "no columns": {"layers.9.mlp.up_proj.weight": torch.zeros(8, 0)},
            "a stale adapter_config.json": {},
            "a scalar alone": {},
        }[kind]
        save_model(folder, more | ({"x.weight": torch.tensor(1.0)} if kind == "a scalar alone" else weights))
        if kind == "a stale adapter_config.json":
            (folder / "adapter_config.json").write_text("{}")


ODD = {  # kind -> why it is left out; "" where it is read
    "a scalar": "",
    "a scalar in half precision": "",
    "a whole number": "",
    "a scalar that is NaN": "tensor logit_scale holds NaN",
    "no rows": "",
    "no columns": "",
    "a scalar alone": "has no weight matrix",
    "a pickle with a scalar": "",
    "a pickle with nothing": "",
    "a huge tensor": "needs 200.0 GB of memory, and this process can have at most",
    "a huge tensor of half precision": "needs 200.0 GB of memory",
    "a stale adapter_config.json": "",
    "an adapter whose file is gone": "",
    "an adapter without anything": "is an adapter without adapter_model.safetensors",
    "an empty file": "truncated: it has 0 bytes",
}


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_model_is_read_or_left_out_with_its_reason(kind: str, tmp_path: Path) -> None:
    odd(kind, tmp_path / "models" / "odd")
    graph, said = recovered(tmp_path / "models")
    if ODD[kind]:
        assert set(graph.left_out) == {"odd"} and ODD[kind] in graph.left_out["odd"] and ODD[kind] in said
    else:
        assert not graph.left_out and any("odd" in (edge.parent, edge.child) for edge in graph.edges)


def test_a_tensor_for_which_memory_is_short_may_be_read_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint("m", save_model(tmp_path / "m", vit_weights(1)))
    monkeypatch.setattr("mother.io.checkpoint.SURE", 100)
    name = next(iter(checkpoint.layers.values()))
    assert checkpoint.read_tensor(name).ndim == 2
    monkeypatch.setattr("mother.io.checkpoint.free_memory", lambda: 200)
    with pytest.raises(CheckpointError, match="can now have 0.0 GB") as error:
        checkpoint.read_tensor(name)
    assert error.value.transient


FOUND = sorted((ROOT / "tests" / "hostile").iterdir())


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_what_fuzzing_found_stays_mended(path: Path) -> None:
    """`benchmarks/fuzz.py` wrote them, and still would."""
    assert fuzz.attempt(path.name.partition("-")[0], path.read_bytes()) == ""


def test_fuzzing_finds_what_is_broken_and_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fault, a process that ends and one that hangs are findings; what can be mended is none."""

    def attempt(folder: Path, content: bytes) -> None:
        if content[:1] == b"n" or content == fuzz.valid()["card"]:
            raise CheckpointError("m", "x", "it is broken", "Mend it.")
        if len(content) % 3 == 0:
            os._exit(1)
        time.sleep(60 if len(content) % 3 == 1 else 0)
        raise KeyError(content)

    sound = {"card": fuzz.valid()["card"]}
    monkeypatch.setattr(fuzz, "HOSTILE", tmp_path / "hostile")
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)
    monkeypatch.setattr(fuzz, "TRY", {"card": attempt})
    monkeypatch.setattr(fuzz, "valid", lambda: sound)
    with pytest.raises(SystemExit) as ended:
        fuzz.main(fuzz.Args(seconds=4))
    said = capsys.readouterr().out
    assert ended.value.code == 1 and "KeyError in test_hostile.py" in said
    assert "the process ended" in said and "more than 0 s" in said
    assert 3 <= len(list((tmp_path / "hostile").glob("card-*"))) <= 4
