"""Models with equal files: one is read, the others get its sketch."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import run_here, save_model, vit_weights
from hub_server import HubServer, use
from test_packed import NAME
from test_packed import save as save_packed

from mother.cli.commands import main
from mother.collection import copies as module
from mother.collection.copies import copies, sketch_once
from mother.io.checkpoint import Checkpoint
from mother.io.open import open_all, open_checkpoint

QUIET = lambda total: lambda count: None  # noqa: E731


def family(folder: Path) -> list[Path]:
    """Two equal models, one with another entry in the middle, one of another size."""
    weights = vit_weights(1, 4, 96)
    places = [save_model(folder / name, weights) for name in ("a", "b")]
    middle = {name: value.clone() for name, value in weights.items()}
    next(value for name, value in middle.items() if "layer.2.attention" in name)[48, 48] += 1
    return [*places, save_model(folder / "c", middle), save_model(folder / "d", vit_weights(1, 3, 96))]


def opened(places: Sequence[Path]) -> list[Checkpoint]:
    found, left_out = open_all((place.name, place) for place in places)
    assert not left_out
    return found


def test_copies_are_found_by_their_bytes(tmp_path: Path) -> None:
    assert {model: one.model for model, one in copies(opened(family(tmp_path))).items()} == {"b": "a"}


def test_a_copy_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, read = opened(family(tmp_path)), []
    real = Checkpoint.read_tensors

    def watched(self: Checkpoint, *arguments: object) -> dict:
        read.append(self.model)
        return real(self, *arguments)

    monkeypatch.setattr(Checkpoint, "read_tensors", watched)
    taken = sketch_once(found, tmp_path / "kept", 1 << 12, QUIET)
    assert [sketch.model for sketch in taken.sketches] == ["a", "b", "c", "d"] and not taken.left_out
    assert "b" not in read and {"a", "c", "d"} <= set(read)
    one, other = taken.sketches[:2]
    assert one.key != other.key and other.files[0]["file"] == str(tmp_path / "b" / "model.safetensors")
    layer = next(iter(one.shapes))
    assert torch.equal(one.read(layer), other.read(layer)) and one.facts == other.facts


def test_a_copy_that_cannot_be_copied_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(module, "_copy", fail)
    assert len(sketch_once(opened(family(tmp_path)), tmp_path / "kept", 1 << 12, QUIET).sketches) == 4


def test_equal_files_of_other_meaning_are_no_copies(tmp_path: Path) -> None:
    """Another state of one file; other settings of packed weights; an adapter on another base."""
    torch.save({"model": vit_weights(1), "ema": vit_weights(2)}, tmp_path / "a.ckpt")
    shutil.copy(tmp_path / "a.ckpt", tmp_path / "b.ckpt")
    pair = [
        open_checkpoint(name, tmp_path / f"{name}.ckpt", state=state) for name, state in (("a", None), ("b", "ema"))
    ]
    assert not copies(pair)
    tensors = {"weight": torch.ones(4, 8).to(torch.float8_e4m3fn), "weight_scale_inv": torch.rand(2, 2)}
    sizes = ([2, 4], [3, 4])
    places = [
        save_packed(tmp_path / f"block{size[0]}", tensors, quantization_config={"weight_block_size": size})
        for size in sizes
    ]
    found = opened(places)
    assert not copies(found)
    assert not torch.equal(*(one.read_tensor(f"{NAME}.weight") for one in found))


@pytest.mark.slow
def test_recovering_reads_equal_files_of_the_hub_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for repo in ("one", "two"):
        save_model(tmp_path / "hub" / "org" / repo, vit_weights(1, 4, 256))
    size = (tmp_path / "hub" / "org" / "one" / "model.safetensors").stat().st_size
    with HubServer(tmp_path / "hub") as server:
        use(server, monkeypatch, tmp_path)
        code, _, err = run_here("mother", ["recover", "org/one", "org/two", "--out", tmp_path / "out"], main)
        sent = sum(request.bytes_sent for request in server.requests if request.file.endswith(".safetensors"))
    assert code == 0, err
    assert sent < 1.1 * size
    (node,) = json.loads((tmp_path / "out" / "model_graph.json").read_text())["nodes"]
    assert node["aliases"] == ["org/two"]
