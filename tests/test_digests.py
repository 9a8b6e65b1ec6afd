"""SHA-256 of what was read: of every file of a model, and of the bytes that were opened."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from conftest import save_model, vit_weights
from hub_server import HubServer, use
from safetensors.torch import save_file
from test_checkpoints import shard

from mother.errors import CheckpointError
from mother.io import places
from mother.io.digests import digest_of, digests
from mother.io.open import open_checkpoint


def expected(*files: Path) -> list[dict]:
    contents = [(file, file.read_bytes()) for file in files]
    return [
        {"file": str(file), "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for file, content in contents
    ]


def test_every_file_of_a_model(tmp_path: Path) -> None:
    whole = save_model(tmp_path / "whole", vit_weights(1))
    assert digests(open_checkpoint("m", whole)) == expected(whole / "model.safetensors")
    shards = shard(tmp_path / "shards", vit_weights(1))
    names = ("model.safetensors.index.json", "model-a.safetensors", "model-b.safetensors")
    opened = open_checkpoint("m", shards)
    assert digests(opened) == expected(*(shards / name for name in names))
    assert [str(file) for file in opened.attention_only().files()] == [str(shards / name) for name in names]


def test_an_adapter_has_its_configuration_and_its_base(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", vit_weights(1))
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    module = "encoder.layer.0.attention.attention.query"
    parts = {f"{module}.lora_A.weight": torch.ones(2, 12), f"{module}.lora_B.weight": torch.ones(12, 2)}
    save_file(parts, folder / "adapter_model.safetensors")
    own = [folder / "adapter_config.json", folder / "adapter_model.safetensors"]
    assert digests(open_checkpoint("m", folder)) == expected(*own)
    assert digests(open_checkpoint("m", folder, base)) == expected(*own, base / "model.safetensors")


def test_a_file_is_read_once_while_it_stays_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_model(tmp_path / "m", vit_weights(1))
    (file,) = open_checkpoint("m", folder).files()
    first = digest_of(file)
    with monkeypatch.context() as patch:
        patch.setattr(places.hashlib, "file_digest", lambda *_: pytest.fail("it was read again"))
        assert digest_of(file) == first == digest_of(open_checkpoint("other", folder).files()[0])
    status = (folder / "model.safetensors").stat()
    save_model(folder, vit_weights(2))
    os.utime(folder / "model.safetensors", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    (again,) = open_checkpoint("m", folder).files()
    assert digest_of(again) == expected(folder / "model.safetensors")[0]["sha256"] != first
    with pytest.raises(CheckpointError, match="changed while it was read"):
        digest_of(file)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        digest_of(again)


def test_what_the_hub_has_told_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shard(tmp_path / "hub" / "org" / "m", vit_weights(1))
    with HubServer(tmp_path / "hub") as server:
        use(server, monkeypatch, tmp_path, timeout=2)
        opened = open_checkpoint("m", "hf://org/m")
        server.requests.clear()
        found = digests(opened)
        assert not server.requests
    local = expected(*(folder / Path(one["file"]).name for one in found))
    assert [one["size"] for one in found] == [one["size"] for one in local] and len(found) == 3
    # An index is a small file, of which the Hub tells a digest of git's; weights have theirs.
    assert [one["sha256"] for one in found] == [None, *(one["sha256"] for one in local[1:])]
    assert all(one["file"].startswith("hf://org/m@") for one in found)
