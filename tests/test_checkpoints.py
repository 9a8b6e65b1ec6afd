"""Opening and reading checkpoints: every form a collection may come in, and every way it may be broken."""

import json
import os
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import save_model, vit_weights
from hub_server import HubServer, use
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from mother.collection.find import search
from mother.errors import CheckpointError, InputError, ManifestError
from mother.io.checkpoint import Checkpoint
from mother.io.layers import Layer
from mother.io.open import open_checkpoint
from mother.paper.measure import square_layers


def shard(folder: Path, weights: dict[str, torch.Tensor], names: tuple[str, str] = ("a", "b")) -> Path:
    """Save a checkpoint in two shards with an index."""
    folder.mkdir(parents=True)
    parts = [dict(list(weights.items())[k::2]) for k in range(2)]
    files = [f"model-{name}.safetensors" for name in names]
    for part, file in zip(parts, files):
        save_file(part, folder / file)
    weight_map = {name: file for part, file in zip(parts, files) for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize(
    "error",
    [
        CheckpointError("m", "weights.bin", "tensor 'a' is cut off", "Fetch it again", transient=True),
        ManifestError("list.json", "node 'a' is there twice", "Remove one"),
    ],
)
def test_errors_come_back_from_a_worker_as_they_are(error: InputError) -> None:
    """A pool of processes breaks at an error that cannot be read again."""
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error) and vars(again) == vars(error)


def read_all(source: Path | str) -> dict[Layer, torch.Tensor]:
    checkpoint = open_checkpoint("m", source)
    return {layer: checkpoint.read(layer) for layer in checkpoint.layers}


def assert_same(first: dict[Layer, torch.Tensor], second: dict[Layer, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[layer], second[layer]) for layer in first)


def test_folder_file_shards_and_prefixes_are_the_same(tmp_path: Path) -> None:
    expected = read_all(save_model(tmp_path / "folder", vit_weights(1)))
    assert len(expected) == 10
    assert_same(expected, read_all(tmp_path / "folder" / "model.safetensors"))
    assert_same(expected, read_all(save_model(tmp_path / "vit", vit_weights(1, prefix="vit."))))
    assert_same(expected, read_all(save_model(tmp_path / "model", vit_weights(1, prefix="model.vit."))))
    assert_same(expected, read_all(shard(tmp_path / "shards", vit_weights(1))))
    (tmp_path / "other").mkdir()
    os.rename(tmp_path / "model" / "model.safetensors", tmp_path / "other" / "anything.safetensors")
    assert_same(expected, read_all(tmp_path / "other"))


def test_names_as_transformers_writes_and_loads_them(tmp_path: Path) -> None:
    """What save_pretrained writes, with and without a head, and the names of the loaded module."""
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=4, patch_size=2
    )
    model = ViTForImageClassification(config)
    model.save_pretrained(tmp_path / "head")
    model.vit.save_pretrained(tmp_path / "bare")
    save_model(tmp_path / "module", dict(model.vit.state_dict()))
    layers = [open_checkpoint("m", tmp_path / name).layers for name in ("head", "bare", "module")]
    raw = {names[Layer("1", "value")] for names in layers}
    assert len(raw) > 1, "transformers no longer renames on load; this test has lost its point"
    for kind in ("query", "key", "value", "output", "mlp_up", "mlp_down"):
        weights = [open_checkpoint("m", tmp_path / name).read(Layer("1", kind)) for name in ("head", "bare", "module")]
        assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])
    assert isinstance(model.vit, ViTModel)


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    weights = {name: weight.bfloat16() for name, weight in vit_weights(1).items()}
    for layer, weight in read_all(save_model(tmp_path / "m", weights)).items():
        assert weight.dtype == torch.float32
        assert weight.bfloat16().float().equal(weight), layer


def test_only_square_layers_of_the_kinds_asked_for(tmp_path: Path) -> None:
    weights = vit_weights(1) | {
        "classifier.weight": torch.zeros(4, 4),
        "time_embedding.linear_2.weight": torch.ones(4, 4),
    }
    checkpoint = open_checkpoint("m", save_model(tmp_path / "m", weights))
    assert set(square_layers(checkpoint, ("value",))) == {Layer("0", "value"), Layer("1", "value")}
    everything = square_layers(checkpoint, None)
    assert len(everything) == 9 and Layer("", "time_embedding.linear_2") in everything


BROKEN = {
    "missing": "no such file",
    "empty": "no weights, only nothing",
    "pickled": "no zip archive",
    "adapter": "damaged",
    "several": "2 weight files",
    "text": "no format that is read",
    "missing_shard": "no such file",
    "escaping_shard": "outside its folder",
    "absolute_shard": "outside its folder",
    "index_without_map": "weight_map",
    "index_not_json": "weight_map",
    "twice": "two shards",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_models_get_one_clear_error(kind: str, tmp_path: Path) -> None:
    source = tmp_path / kind
    if kind == "text":
        source.write_text("hello")
    elif kind != "missing":
        source.mkdir()
    if kind == "pickled":
        (source / "pytorch_model.bin").write_bytes(b"\x80\x02")
    elif kind == "adapter":
        (source / "adapter_config.json").write_text("{}")
        save_file({"x": torch.zeros(1)}, source / "adapter_model.safetensors")
    elif kind == "several":
        for name in "ab":
            save_file({"x": torch.zeros(1)}, source / f"{name}.safetensors")
    elif kind == "twice":
        for name in "ab":
            save_file({"x.weight": torch.zeros(1)}, source / f"{name}.safetensors")
        index = {"weight_map": {"x.weight": "a.safetensors", "y": "b.safetensors"}}
        (source / "model.safetensors.index.json").write_text(json.dumps(index))
    elif "shard" in kind or "index" in kind:
        name = {"escaping_shard": "../x.safetensors", "absolute_shard": "/etc/passwd"}.get(kind, "gone.safetensors")
        text = json.dumps({} if kind == "index_without_map" else {"weight_map": {"w": name}})
        (source / "model.safetensors.index.json").write_text("{" if kind == "index_not_json" else text)
    with pytest.raises(CheckpointError, match=BROKEN[kind]) as error:
        open_checkpoint("victim", source)
    assert "model victim" in str(error.value) and str(source) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("value, words", [(float("nan"), "holds NaN"), (float("-inf"), "holds infinity")])
def test_nan_and_infinity_name_the_tensor(value: float, words: str, tmp_path: Path) -> None:
    weights = vit_weights(1)
    name = "encoder.layer.1.attention.attention.value.weight"
    weights[name][3, 3] = value
    checkpoint = open_checkpoint("victim", save_model(tmp_path / "m", weights))
    checkpoint.read(Layer("0", "value"))
    with pytest.raises(CheckpointError, match=f"tensor {name} {words}"):
        checkpoint.read(Layer("1", "value"))


def test_values_whose_differences_overflow_are_refused(tmp_path: Path) -> None:
    weights = {"blocks.0.attn.proj.weight": torch.full((4, 4), 3e38)}
    checkpoint = open_checkpoint("m", save_model(tmp_path / "m", weights))
    with pytest.raises(CheckpointError, match="blocks.0.attn.proj.weight holds values above"):
        checkpoint.read(Layer("0", "output"))


def test_a_name_that_no_file_can_have() -> None:
    with pytest.raises(CheckpointError, match="cannot be read: File name too long"):
        open_checkpoint("m", "x" * 300)


def test_fingerprint_tells_equal_sizes_and_times_apart(tmp_path: Path) -> None:
    prints = set()
    for seed in range(2):
        folder = save_model(tmp_path / "m", vit_weights(seed))
        os.utime(folder / "model.safetensors", ns=(10**18, 10**18))
        prints.add(str(open_checkpoint("m", folder).fingerprint()))
    assert len(prints) == 2


def test_integers_are_refused_by_name(tmp_path: Path) -> None:
    weights = {"blocks.0.attn.proj.weight": torch.ones(4, 4, dtype=torch.int8)}
    checkpoint = open_checkpoint("m", save_model(tmp_path / "m", weights))
    with pytest.raises(CheckpointError, match="blocks.0.attn.proj.weight is stored as I8"):
        checkpoint.read(Layer("0", "output"))


def test_a_file_that_shrinks_after_opening(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m", vit_weights(1))
    checkpoint = open_checkpoint("m", folder)
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        for layer in checkpoint.layers:
            checkpoint.read(layer)
    file.unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoint.read(next(iter(checkpoint.layers)))


def test_a_file_that_is_replaced_after_opening(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m", vit_weights(1))
    checkpoint = open_checkpoint("m", folder)
    first, second, *_ = checkpoint.layers
    checkpoint.read(first)
    save_model(tmp_path / "other", vit_weights(2))
    os.replace(tmp_path / "other" / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="changed while it was read"):
        checkpoint.read(second)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_reading_into_memory_that_is_there(dtype: torch.dtype, tmp_path: Path) -> None:
    weights = {name: weight.to(dtype) for name, weight in vit_weights(1).items()}
    checkpoint = open_checkpoint("m", save_model(tmp_path / "m", weights))
    rooms = {name: torch.full(weight.shape, torch.nan) for name, weight in list(weights.items())[::2]}
    found = checkpoint.read_tensors(list(weights), rooms)
    for name, weight in weights.items():
        assert torch.equal(found[name], weight.float())
        assert name not in rooms or found[name] is rooms[name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value, said", [(torch.nan, "NaN"), (torch.inf, "infinity"), (3e38, "differences overflow")])
def test_bad_values_are_found_whatever_they_are_read_into(
    dtype: torch.dtype, value: float, said: str, tmp_path: Path
) -> None:
    weights = {name: weight.to(dtype) for name, weight in vit_weights(1).items()}
    name = "encoder.layer.0.attention.attention.value.weight"
    weights[name][1, 2] = value
    checkpoint = open_checkpoint("m", save_model(tmp_path / "m", weights))
    for into in ({}, {name: torch.zeros(weights[name].shape)}):
        with pytest.raises(CheckpointError, match=f"{name} holds .*{said}"):
            checkpoint.read_tensors([name], into)
    large = {name: torch.full((4, 4), 3e19)}  # its squares overflow, it does not
    checkpoint = open_checkpoint("m", save_model(tmp_path / "large", large))
    assert torch.equal(checkpoint.read_tensors([name])[name], large[name])


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="no regular file"):
        open_checkpoint("m", tmp_path)


def vit(seed: int) -> ViTModel:
    """A tiny model as transformers makes it."""
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=4, patch_size=2
    )
    return ViTModel(config, add_pooling_layer=False)


def is_in(checkpoint: Checkpoint, model: torch.nn.Module) -> bool:
    """Whether an opened checkpoint holds the values of a model that was loaded, whatever the names are."""
    (found,) = (checkpoint.read(layer) for layer in checkpoint.layers if layer.kind == "value")
    return any(torch.equal(found, value) for value in model.state_dict().values())


SAVED = {  # name -> how it is saved; a number stands for the seed of its weights
    "model.safetensors": 1,
    "model.safetensors.index.json": 2,
    "pytorch_model.bin": 3,
    "pytorch_model.bin.index.json": 4,
    "model.fp16.safetensors": 5,
    "other.safetensors": 6,
}


def lay(folder: Path, names: Sequence[str], explicit: str | None = None) -> None:
    """Lay different weights under these names into one folder, with a configuration of transformers."""
    vit(0).save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    if explicit is not None:
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(content | {"transformers_weights": explicit}))
    for name in names:
        vit(SAVED[name]).save_pretrained(folder / name)
        weights = load_file(folder / name / "model.safetensors")
        shutil.rmtree(folder / name)
        suffix = ".bin" if ".bin" in name else ".safetensors"
        file = folder / (f"shard-{SAVED[name]}{suffix}" if name.endswith(".json") else name)
        torch.save(weights, file) if suffix == ".bin" else save_file(weights, file, {"format": "pt"})
        if name.endswith(".json"):
            index = {"metadata": {}, "weight_map": dict.fromkeys(weights, file.name)}
            (folder / name).write_text(json.dumps(index))


LAID = {
    "whole before index": (["model.safetensors", "model.safetensors.index.json"], None),
    "index before pickles": (["model.safetensors.index.json", "pytorch_model.bin"], None),
    "pickle before its index": (["pytorch_model.bin", "pytorch_model.bin.index.json"], None),
    "index of pickles": (["pytorch_model.bin.index.json", "model.fp16.safetensors"], None),
    "pickle before a variant": (["pytorch_model.bin", "model.fp16.safetensors"], None),
    "all": (list(SAVED), None),
    "named": (list(SAVED), "other.safetensors"),
    "named index": (list(SAVED), "model.safetensors.index.json"),
    "named variant": (["model.safetensors", "model.fp16.safetensors"], "model.fp16.safetensors"),
}


@pytest.mark.parametrize("kind", LAID)
def test_what_is_opened_is_what_transformers_loads(kind: str, tmp_path: Path) -> None:
    lay(tmp_path, *LAID[kind])
    loaded = ViTModel.from_pretrained(tmp_path, add_pooling_layer=False)
    assert is_in(open_checkpoint("m", tmp_path), loaded)
    (source,) = search([str(tmp_path)]).sources
    assert source.location == str(tmp_path)


def test_tensors_that_an_index_does_not_name_are_loaded_and_read(tmp_path: Path) -> None:
    """transformers reads whole shards: an upload must not hide a tensor from us by leaving it out of its index."""
    lay(tmp_path, ["model.safetensors.index.json"])
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    hidden = [name for name in content["weight_map"] if "value" in name or "v_proj" in name]
    for name in hidden:
        del content["weight_map"][name]
    index.write_text(json.dumps(content))
    assert hidden and is_in(open_checkpoint("m", tmp_path), ViTModel.from_pretrained(tmp_path, add_pooling_layer=False))


def test_a_variant_is_read_where_it_is_the_only_one(tmp_path: Path) -> None:
    weights = vit_weights(1)
    save_file(weights, tmp_path / "model.fp16-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(weights, "model.fp16-00001-of-00001.safetensors")}
    (tmp_path / "model.safetensors.index.fp16.json").write_text(json.dumps(index))
    expected = read_all(save_model(tmp_path.parent / "whole", weights))
    assert_same(read_all(tmp_path), expected)
    assert_same(read_all(tmp_path / "model.safetensors.index.fp16.json"), expected)
    assert [one.location for one in search([str(tmp_path)]).sources] == [str(tmp_path)]
    (tmp_path / "model.safetensors.index.fp8.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="2 indices of variants"):
        open_checkpoint("m", tmp_path)


@pytest.mark.parametrize("index", [False, True])
def test_diffusers_takes_an_index_first(index: bool, tmp_path: Path) -> None:
    """Its own names, also where weights for transformers lie beside them."""
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    for seed, name in enumerate(("model", "diffusion_pytorch_model", "shard")):
        save_file(vit_weights(seed), tmp_path / f"{name}.safetensors")
    if index:
        content = {"weight_map": dict.fromkeys(vit_weights(2), "shard.safetensors")}
        (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(content))
    expected = read_all(tmp_path / ("shard.safetensors" if index else "diffusion_pytorch_model.safetensors"))
    assert_same(read_all(tmp_path), expected)


NAMED = {
    "../x.safetensors": "outside its folder",
    "/etc/x.safetensors": "outside its folder",
    "a/b.safetensors": "outside its folder",
    "a\0.safetensors": "outside its folder",
    "\ud800.safetensors": "outside its folder",
    "pytorch_model.bin": "no safetensors file",
    "gone.safetensors": "no such file",
    "link.safetensors": "link to .*secret.safetensors'?, outside its folder",
    7: "outside its folder",
}


@pytest.mark.parametrize("name", NAMED)
def test_weights_that_a_configuration_must_not_name(name: object, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m", vit_weights(1))
    save_file(vit_weights(2), tmp_path / "secret.safetensors")
    os.symlink(tmp_path / "secret.safetensors", folder / "link.safetensors")
    (folder / "config.json").write_text(json.dumps({"transformers_weights": name}))
    with pytest.raises(CheckpointError, match=NAMED[name]) as error:
        open_checkpoint("victim", folder)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "9" * 5000, '"\\ud800"', '{"transformers_weights": null}'])
def test_a_configuration_that_no_loader_reads_changes_nothing(text: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m", vit_weights(1))
    (folder / "config.json").write_text(text)
    assert len(read_all(folder)) == 10


@pytest.mark.parametrize("there", ["nowhere", "in the other shard"])
def test_an_index_that_names_what_its_shard_lacks(there: str, tmp_path: Path) -> None:
    folder = shard(tmp_path / "m", vit_weights(1))
    path = folder / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    name = "absent.weight" if there == "nowhere" else next(iter(content["weight_map"]))
    content["weight_map"][name] = "model-b.safetensors"
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=f"the index names tensor {name}, which shard model-b.safetensors lacks"):
        open_checkpoint("m", folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "9" * 5000, "[" * 100_000, '{"weight_map": {}}', '{"weight_map": {"a": []}}']
)
def test_a_damaged_index_says_so(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="the index (has no weight_map|names no shard)"):
        open_checkpoint("m", tmp_path)


def test_a_shard_that_is_a_link_out_of_its_folder(tmp_path: Path) -> None:
    folder = shard(tmp_path / "m", vit_weights(1))
    os.rename(folder / "model-a.safetensors", tmp_path / "outside.safetensors")
    os.symlink("../outside.safetensors", folder / "model-a.safetensors")
    for source in (folder, folder / "model.safetensors.index.json"):
        with pytest.raises(CheckpointError, match="model-a.safetensors', a link to .*/outside.safetensors', out"):
            open_checkpoint("m", source)


def test_links_of_the_hugging_face_cache_stay_inside_it(tmp_path: Path) -> None:
    """A folder that the user names may be a link itself, and the links from a snapshot to its blobs are usual."""
    expected = read_all(shard(tmp_path / "plain", vit_weights(1)))
    repository = tmp_path / "disk" / "models--org--name"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(sorted((tmp_path / "plain").iterdir())):
        os.rename(file, repository / "blobs" / str(number))
        os.symlink(f"../../blobs/{number}", snapshot / file.name)
    os.symlink(tmp_path / "disk", tmp_path / "hub")
    for source in (snapshot, tmp_path / "hub" / "models--org--name" / "snapshots" / "abc"):
        assert_same(read_all(source), expected)
    (found,) = search([str(tmp_path / "hub")]).sources
    assert_same(read_all(Path(found.location)), expected)


def test_a_repository_is_read_as_transformers_loads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_model(tmp_path / "hub" / "org" / "m", vit_weights(1))
    save_file(vit_weights(2), folder / "other.safetensors")
    expected = {name: read_all(folder / name) for name in ("model.safetensors", "other.safetensors")}
    with HubServer(tmp_path / "hub") as server:
        use(server, monkeypatch, tmp_path, timeout=2)
        assert_same(read_all("hf://org/m"), expected["model.safetensors"])
    (folder / "config.json").write_text(json.dumps({"transformers_weights": "other.safetensors"}))
    with HubServer(tmp_path / "hub") as server:
        use(server, monkeypatch, tmp_path, timeout=2)
        assert_same(read_all("hf://org/m"), expected["other.safetensors"])
