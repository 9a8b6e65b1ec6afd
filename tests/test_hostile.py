"""What others wrote to mislead, to stall or to break a run: every case is read or left out with its reason, in time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, save_model, vit_weights

from mother.collection.find import find_models
from mother.errors import ManifestError
from mother.graph.manifest_io import read_manifest


def manifest(folder: Path, nodes: list, **more: object) -> Path:
    path = folder / "many.json"
    path.write_text(json.dumps({"format": "mother-manifest/1", "nodes": nodes} | more))
    return path


def node(name: str, **more: object) -> dict:
    return {"id": name, "source": f"models/{name}"} | more


MANY = 100_000
READ = """
import sys, time
from mother.collection.find import find_models
from mother.errors import ManifestError
started = time.process_time()
try:
    found = len(find_models(sys.argv[1:]))
except ManifestError as error:
    found = str(error)
print(time.process_time() - started, found)
"""


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
        find_models([str(path)])
    path = manifest(tmp_path, [{"id": "n", "source": "m/models/a"}])  # above both: the link stays inside
    assert [one.id for one in find_models([str(path)])] == ["n"]
    os.symlink(tmp_path / "m", tmp_path / "named")  # a link that the user names
    (tmp_path / "m" / "models" / "a").unlink()
    save_model(tmp_path / "m" / "models" / "a", vit_weights(1))
    manifest(tmp_path / "m", [{"id": "n", "source": "models/a"}])
    assert [one.id for one in find_models([str(tmp_path / "named" / "many.json")])] == ["n"]


def test_a_manifest_over_a_cache_of_the_hub(tmp_path: Path) -> None:
    repository = tmp_path / "models--o--n"
    (repository / "blobs").mkdir(parents=True)
    (repository / "snapshots" / "abc").mkdir(parents=True)
    save_model(tmp_path / "m", vit_weights(1))
    os.rename(tmp_path / "m" / "model.safetensors", repository / "blobs" / "1")
    os.symlink("../../blobs/1", repository / "snapshots" / "abc" / "model.safetensors")
    path = manifest(repository / "snapshots" / "abc", [{"id": "n", "source": "model.safetensors"}])
    assert [one.id for one in find_models([str(path)])] == ["n"]
    os.symlink("/etc/passwd", repository / "snapshots" / "abc" / "other")
    path = manifest(repository / "snapshots" / "abc", [{"id": "n", "source": "other"}])
    with pytest.raises(ManifestError, match="a link to /etc/passwd"):
        find_models([str(path)])


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
