"""Keras files: numbered and named variables as Keras and h5py write them, turned as torch holds them, by ranges."""

import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from conftest import save_model
from hub_server import HubServer, use
from hypothesis import given, settings
from hypothesis import strategies as st

from mother.collection.find import search
from mother.errors import CheckpointError
from mother.evidence.sketch import matrices
from mother.io.open import open_checkpoint

# Keras 3.15 with numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

MODULE = "encoder.layer.{}.intermediate.dense"


def some(count: int = 2, width: int = 12) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((width, 2 * width)).astype(np.float32) for _ in range(count)]


def named(file: Path, kernels: list[np.ndarray], above: str = "") -> None:
    """As transformers saved models of TensorFlow, and Keras 2 all of them: a group for a layer, and names below it."""
    with h5py.File(file, "w") as opened:
        for k, kernel in enumerate(kernels):
            layer = f"{above}bert/tf_bert_model/bert/encoder/layer_._{k}/intermediate/dense"
            opened[f"{layer}/kernel:0"], opened[f"{layer}/bias:0"] = kernel, np.ones(kernel.shape[1], np.float32)
        opened["optimizer_weights/adam/m"] = kernels[0]


def numbered(file: Path, kernels: list[np.ndarray]) -> None:
    """As Keras 3 saves variables: a group for a layer, and numbers below it; with metadata in an archive."""
    inside = file.with_name("model.weights.h5")
    with h5py.File(inside, "w") as opened:
        for k, kernel in enumerate(kernels):
            layer = f"encoder/layer/{k}/intermediate/dense/vars"
            opened[f"{layer}/0"], opened[f"{layer}/1"] = kernel, np.ones(kernel.shape[1], np.float32)
        opened["optimizer/vars/0"] = kernels[0]
    if file.suffix == ".keras":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("metadata.json", "{}")
            archive.writestr("config.json", "{}")
            archive.write(inside, "model.weights.h5")
        inside.unlink()


def read(file: Path | str) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint("m", file)
    return checkpoint.read_tensors(list(checkpoint.tensors))


@pytest.mark.parametrize("name", ["tf_model.h5", "whole.h5", "model.weights.h5", "model.keras"])
def test_kernels_are_turned_and_optimizers_left_aside(name: str, tmp_path: Path) -> None:
    kernels = some()
    if name in ("tf_model.h5", "whole.h5"):
        named(tmp_path / name, kernels, "model_weights/" if name == "whole.h5" else "")
    else:
        numbered(tmp_path / name, kernels)
    found, aside = read(tmp_path), open_checkpoint("m", tmp_path).aside
    bert = "bert." if name in ("tf_model.h5", "whole.h5") else ""
    assert found.keys() == {f"{bert}{MODULE.format(k)}.{what}" for k in range(2) for what in ("weight", "bias")}
    for k, kernel in enumerate(kernels):
        assert np.array_equal(found[f"{bert}{MODULE.format(k)}.weight"].numpy(), kernel.T)
    assert aside == ("optimizer_weights" if bert else "optimizer",)


@pytest.mark.parametrize("name", ["tf_model.h5", "model.keras"])
def test_its_matrices_are_those_of_the_safetensors_it_came_from(name: str, tmp_path: Path) -> None:
    kernels = some()
    (named if name == "tf_model.h5" else numbered)(tmp_path / name, kernels)
    save_model(tmp_path / "torch", {f"{MODULE.format(k)}.weight": torch.from_numpy(v.T) for k, v in enumerate(kernels)})
    one, other = (matrices(open_checkpoint("m", place)) for place in (tmp_path / name, tmp_path / "torch"))
    assert other and other.keys() <= one.keys()
    assert [source.id for source in search([str(tmp_path / name)]).sources]


@pytest.fixture
def keras(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    return pytest.importorskip("keras", reason="needs the package keras: pip install keras")


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".weights.h5"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_keras_writes(dtype: str, suffix: str, keras: Any, tmp_path: Path) -> None:
    conv, fc = keras.layers.Conv2D(5, 3, dtype=dtype), keras.layers.Dense(7, dtype=dtype)
    model = keras.Sequential([keras.Input((8, 8, 3)), conv, keras.layers.Flatten(), fc])
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    (model.save_weights if suffix == ".weights.h5" else model.save)(tmp_path / f"model{suffix}")
    found = read(tmp_path / f"model{suffix}")
    (own,), (other,) = ([name for name in found if part in name and "weight" in name] for part in ("conv2d", "dense"))
    assert torch.equal(found[own], conv.kernel.value.detach().float().permute(3, 2, 0, 1))
    assert torch.equal(found[other], fc.kernel.value.detach().float().T)
    assert len(found) == 4 and open_checkpoint("m", tmp_path / f"model{suffix}").aside


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_attention_of_keras_is_dense_over_heads(suffix: str, keras: Any, tmp_path: Path) -> None:
    layer, tokens = keras.layers.MultiHeadAttention(2, 3), keras.Input((6, 8))
    keras.Model(tokens, layer(tokens, tokens)).save(tmp_path / f"model{suffix}")
    found = {
        name.split(".")[-2]: value for name, value in read(tmp_path / f"model{suffix}").items() if "weight" in name
    }
    query, out = (dense.kernel.value.detach() for dense in (layer.query_dense, layer.output_dense))
    reads, writes = ("query_dense", "output_dense") if suffix == ".keras" else ("query", "attention_output")
    assert torch.equal(found[reads], query.reshape(8, 6).T)
    assert torch.equal(found[writes], out.reshape(6, 8).T)


def test_embeddings_and_recurrent_kernels(keras: Any, tmp_path: Path) -> None:
    table, cell = keras.layers.Embedding(11, 8), keras.layers.LSTM(4)
    keras.Sequential([keras.Input((6,)), table, cell]).save(tmp_path / "model.keras")
    found = read(tmp_path / "model.keras")
    assert torch.equal(found["layers.embedding.weight"], table.embeddings.value.detach())
    assert torch.equal(found["layers.lstm.cell.weight"], cell.cell.kernel.value.detach().T)
    assert torch.equal(found["layers.lstm.cell.1"], cell.cell.recurrent_kernel.value.detach().T)


@pytest.mark.parametrize("name", ["tf_model.h5", "model.keras"])
def test_from_the_hub_by_ranges(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, kernels = tmp_path / "hub" / "org" / "keras", some(4, 512)
    folder.mkdir(parents=True)
    (named if name == "tf_model.h5" else numbered)(folder / name, kernels)
    with HubServer(tmp_path / "hub") as server:
        use(server, monkeypatch, tmp_path)
        checkpoint = open_checkpoint("m", "hf://org/keras")
        opened = sum(request.bytes_sent for request in server.requests if request.file.endswith(name))
        server.requests.clear()
        (wanted,) = [one for one in checkpoint.tensors if one.endswith("layer.2.intermediate.dense.weight")]
        found = checkpoint.read_tensor(wanted)
        sent = sum(request.bytes_sent for request in server.requests if request.file.endswith(name))
    assert torch.equal(found, torch.from_numpy(kernels[2].T.copy()))
    assert found.numel() * 4 <= sent <= 1.05 * found.numel() * 4
    assert opened < 300_000  # of 10 MB


def test_two_layers_of_one_name_keep_their_paths(tmp_path: Path) -> None:
    kernels = some()
    with h5py.File(tmp_path / "model.h5", "w") as opened:
        opened["one/dense/kernel:0"], opened["two/dense/kernel:0"] = kernels
    assert read(tmp_path).keys() == {"one.dense.kernel", "two.dense.kernel"}


def test_data_beside_a_model_is_not_in_its_way(tmp_path: Path) -> None:
    numbered(tmp_path / "model.keras", some())
    with h5py.File(tmp_path / "train.h5", "w") as opened:
        opened["images"] = np.ones((2, 2), np.float32)
    assert "encoder.layer.1.intermediate.dense.weight" in read(tmp_path)


def test_arrays_in_pieces_or_outside_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(64))
    with h5py.File(tmp_path / "model.h5", "w") as opened:
        opened["a/whole/kernel"] = some()[0]
        opened.create_dataset("a/chunked/kernel", data=some()[0], compression="gzip")
        opened.create_dataset(
            "a/outside/kernel", shape=(4, 4), dtype="f4", external=[(str(tmp_path / "secret"), 0, 64)]
        )
        opened["a/linked"] = h5py.ExternalLink(str(tmp_path / "secret"), "/x")
        opened["a/words"] = "text"
    checkpoint = open_checkpoint("m", tmp_path)
    assert checkpoint.read_tensor("whole.weight").shape == (24, 12) and "a.linked" not in checkpoint.tensors
    for name in ("chunked.weight", "outside.weight"):
        with pytest.raises(CheckpointError, match="stored as several pieces"):
            checkpoint.read_tensor(name)


def test_a_compressed_archive_says_so(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("model.weights.h5", bytes(1000))
    with pytest.raises(CheckpointError, match=r"compressed.*model\.keras.*Fetch or save"):
        open_checkpoint("m", tmp_path)


HOSTILE = {
    "nothing": (b"", "neither an HDF5 file nor an archive"),
    "random bytes": (np.random.default_rng(1).bytes(5000), "neither an HDF5 file nor an archive"),
    "magic alone": (b"\x89HDF\r\n\x1a\n", "no sound Keras file"),
    "random bytes behind it": (b"\x89HDF\r\n\x1a\n" + np.random.default_rng(0).bytes(5000), "no sound Keras file"),
    "an empty archive": (b"PK\x05\x06" + bytes(18), "neither an HDF5 file nor an archive"),
    "the beginning of an archive": (b"PK\x03\x04" + bytes(26) + b"metadata.json", "no sound Keras file"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_say_why(name: str, tmp_path: Path) -> None:
    content, words = HOSTILE[name]
    (tmp_path / "model.keras").write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as error:
        open_checkpoint("victim", tmp_path / "model.keras")
    assert "model.keras" in str(error.value) and "Fetch or save" in str(error.value)


def test_an_archive_without_weights_says_so(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        archive.writestr("metadata.json", "{}")
    with pytest.raises(CheckpointError, match=r"no item named 'model.weights.h5'.*model\.keras.*Fetch or save"):
        open_checkpoint("m", tmp_path)


def deep(opened: h5py.File) -> None:
    group: Any = opened
    for _ in range(3000):
        group = group.create_group("g")


def twice(opened: h5py.File) -> None:
    opened["layer/a.b/kernel"] = opened["layer/a/b.kernel"] = np.ones((2, 2), np.float32)


def control(opened: h5py.File) -> None:
    opened["\x1b[2J/kernel"] = np.ones((2, 2), np.float32)


def huge(opened: h5py.File) -> None:
    opened.create_dataset("a/kernel", shape=(1 << 30, 1 << 30), dtype="f4", chunks=(1, 1 << 10))


@pytest.mark.parametrize(
    ("make", "words"),
    [(deep, "too deep"), (twice, "have one name"), (control, "is not usable"), (huge, "is not usable")],
)
def test_hostile_groups_say_why(make: Callable[[h5py.File], None], words: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "model.h5", "w", libver="latest") as opened:
        make(opened)
    started = time.process_time()
    with pytest.raises(CheckpointError, match=f"{words}.*model\\.h5.*Fetch or save") as error:
        open_checkpoint("victim", tmp_path)
    assert time.process_time() - started < 2 and str(error.value).isprintable() and len(str(error.value)) < 1000


def test_a_circle_of_groups_ends(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "model.h5", "w") as opened:
        opened["a/kernel"] = np.ones((2, 3), np.float32)
        opened["a/up"] = opened["/"]
    assert read(tmp_path)["a.weight"].shape == (3, 2)


def test_a_file_without_arrays_says_so(tmp_path: Path) -> None:
    h5py.File(tmp_path / "model.h5", "w").close()
    with pytest.raises(CheckpointError, match=r"holds no arrays.*model\.h5.*Fetch or save"):
        open_checkpoint("m", tmp_path)


@pytest.mark.parametrize("name", ["tf_model.h5", "model.keras"])
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_mutated_files_never_raise_anything_else(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("mutated") / name
    (named if name == "tf_model.h5" else numbered)(file, some())
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content[: data.draw(st.integers(8, len(content)))])
    try:
        checkpoint = open_checkpoint("m", file)
        checkpoint.read_tensors([one for one, (_, info) in checkpoint.tensors.items() if info.dtype == "F32"])
    except CheckpointError:
        pass
