"""Which models a user means, whatever way they are named."""

import json
import os
from pathlib import Path

import pytest
import torch
from conftest import save_model, vit_weights
from hub_server import HubServer, use

from mother.collection.claims import Claim
from mother.collection.find import Source, search, with_claims
from mother.collection.hub_lists import models_of_author, models_of_collection
from mother.errors import InputError
from mother.graph.manifest import Manifest, Node
from mother.graph.manifest_io import write_manifest


def ids(*arguments: object) -> list[str]:
    return [source.id for source in search(map(str, arguments)).sources]


def test_folders_files_and_folders_of_folders(tmp_path: Path) -> None:
    for name in ("b", "a", "deep/er/c", "ünï cøde"):
        save_model(tmp_path / "all" / name, vit_weights(1))
    torch.save(vit_weights(1), tmp_path / "all" / "single.bin")
    torch.save({}, tmp_path / "all" / "optimizer.pt")
    (tmp_path / "all" / ".hidden").mkdir()
    save_model(tmp_path / "all" / ".hidden" / "x", vit_weights(1))
    (tmp_path / "all" / "empty").mkdir()
    assert ids(tmp_path / "all" / "a") == ["a"]
    assert ids(tmp_path / "all" / "a" / "model.safetensors") == ["model"]
    assert ids(tmp_path / "all") == ["single", "a", "b", "deep/er/c", "ünï cøde"]
    # A single file in a folder is the folder's model, if there is no other.
    (tmp_path / "one").mkdir()
    torch.save(vit_weights(1), tmp_path / "one" / "epoch 3.pt")
    assert ids(tmp_path / "one") == ["one"]
    assert ids(tmp_path / "all", tmp_path / "all" / "a") == ids(tmp_path / "all")  # each once
    assert not search(list(map(str, (tmp_path / "all", tmp_path / "all" / "a", tmp_path / "all")))).gaps.unusable


def test_links_are_followed_but_not_for_ever(tmp_path: Path) -> None:
    save_model(tmp_path / "store" / "real", vit_weights(1))
    (tmp_path / "all" / "inner").mkdir(parents=True)
    os.symlink(tmp_path / "store" / "real", tmp_path / "all" / "link")
    os.symlink(tmp_path / "all", tmp_path / "all" / "inner" / "back")
    os.symlink(tmp_path / "nowhere", tmp_path / "all" / "dangling")
    assert ids(tmp_path / "all") == ["link"]


def test_equal_names_get_their_folders_in_front(tmp_path: Path) -> None:
    for run in ("one", "two"):
        save_model(tmp_path / run / "checkpoint", vit_weights(1))
    assert ids(tmp_path / "one" / "checkpoint", tmp_path / "two" / "checkpoint") == ["one/checkpoint", "two/checkpoint"]


def test_pipelines_and_the_hub_cache(tmp_path: Path) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    save_model(tmp_path / "pipeline" / "unet", vit_weights(1))
    save_model(tmp_path / "pipeline" / "vae", vit_weights(1))
    (source,) = search([str(tmp_path / "pipeline")]).sources
    assert source.id == "pipeline" and source.location.endswith("/unet")
    cache = tmp_path / "hub" / "models--org--name"
    for commit in ("aaa", "bbb"):
        save_model(cache / "snapshots" / commit, vit_weights(1))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("aaa")
    (source,) = search([str(tmp_path / "hub")]).sources
    assert source.id == "org/name" and source.location.endswith("/aaa")


def test_manifests_and_repositories(tmp_path: Path) -> None:
    nodes = (
        Node("base", "x/base"),
        Node("tuned", "hf://o/n@v1:unet", base="hf://o/base"),
        Node("gone", "y", absent=True),
    )
    write_manifest(tmp_path / "m.json", Manifest("m", nodes, tmp_path))
    first, second = search([str(tmp_path / "m.json")]).sources
    assert first.location == str(tmp_path / "x" / "base") and second == Source(
        "tuned", "hf://o/n@v1:unet", "hf://o/base"
    )
    assert ids("org/name", "hf://org/other@v2") == ["org/name", "org/other@v2"]


@pytest.mark.parametrize(
    "argument", ["./absent", "/absent/path", "a/b/c/d", "nothing", "../x", "x" * 5000, "a\0b", "hf://a", "org/na me"]
)
def test_what_names_nothing_is_one_clear_error(argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # who knows what is beside this clone
    with pytest.raises(InputError, match="no such file or folder"):
        search([argument])
    with pytest.raises(InputError, match="no model in this folder"):
        search([str(tmp_path)])


def test_authors_and_collections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("acme/b", "acme/a", "other/c"):
        save_model(tmp_path / "hub" / name, vit_weights(1))
    with HubServer(tmp_path / "hub") as server:
        use(server, monkeypatch, tmp_path, timeout=2)
        server.collections["acme/set-1"] = ["acme/b", "other/c"]
        assert models_of_author("acme") == ["hf://acme/a", "hf://acme/b"]
        assert models_of_collection("acme/set-1") == ["hf://acme/b", "hf://other/c"]
        with pytest.raises(InputError, match="lists no model"):
            models_of_author("nobody")
        with pytest.raises(InputError, match="does not know the collection"):
            models_of_collection("acme/set-2")


def test_adapters_find_their_base_among_the_models(tmp_path: Path) -> None:
    save_model(tmp_path / "base", vit_weights(1))
    adapter = save_model(tmp_path / "adapter", {"x": torch.zeros(2)})
    (adapter / "model.safetensors").rename(adapter / "adapter_model.safetensors")
    for said in ("../base", str(tmp_path / "base"), "base"):
        (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": said}))
        found, base = with_claims(search([str(tmp_path)])).sources
        assert base.base is None and found.base == base.location
        assert found.claims == (Claim("adapter_config.json", said, None, found.claims[0].path, line=1),)
        assert Source.from_json(json.loads(json.dumps(found.to_json()))).to_json() == found.to_json()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/base"}))
    assert with_claims(search([str(tmp_path)])).sources[0].base is not None  # its owner is not known here
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/else"}))
    assert all(one.base is None for one in with_claims(search([str(tmp_path)])).sources)
