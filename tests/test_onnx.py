"""ONNX files: the tensors that the package onnx writes and reads, by ranges; data outside only in the same folder."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import save_model
from hub_server import HubServer, use
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from benchmarks.fuzz import small_onnx
from mother.collection.find import search
from mother.errors import CheckpointError
from mother.evidence.sketch import matrices
from mother.heritage.trace import trace
from mother.heritage.typed_graph import build_graph
from mother.io.onnx import read_table
from mother.io.open import open_checkpoint

onnx = pytest.importorskip("onnx", reason="needs the package onnx: pip install onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402


def graph(tensors: list[Any], nodes: list[Any] = ()) -> Any:
    """A model around initializers; nothing runs it."""
    return helper.make_model(helper.make_graph(list(nodes), "g", [], [], tensors))


def stored(values: dict[str, np.ndarray]) -> list[Any]:
    return [numpy_helper.from_array(value, name) for name, value in values.items()]


def some(seed: int = 0, width: int = 12) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    names = [f"encoder.layer.{k}.attention.{part}.weight" for k in range(2) for part in ("query", "output.dense")]
    return {name: rng.standard_normal((width, 2 * width)).astype(np.float32) for name in names}


def read(file: Path | str) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint("m", file)
    return checkpoint.read_tensors(list(checkpoint.tensors))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_values_are_those_of_the_package(dtype: str, tmp_path: Path) -> None:
    values = {name: value.astype(dtype) for name, value in some().items()}
    onnx.save(graph(stored(values)), tmp_path / "model.onnx")
    found = read(tmp_path)
    assert found.keys() == values.keys()
    for name, value in found.items():
        assert np.array_equal(value.numpy(), values[name].astype(np.float32))


def test_every_way_to_hold_numbers(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensors = [helper.make_tensor("listed", TensorProto.FLOAT, (2, 3), values.flatten().tolist())]
    tensors += [helper.make_tensor("doubles", TensorProto.DOUBLE, (2, 3), values.flatten().tolist())]
    tensors += [
        helper.make_tensor("scalar", TensorProto.FLOAT, (), [2.5]),
        numpy_helper.from_array(np.arange(3), "ids"),
    ]
    tensors += [helper.make_tensor("halves", TensorProto.FLOAT16, (2, 3), values.flatten().tolist())]
    tensors += [helper.make_tensor("empty", TensorProto.FLOAT, (0, 3), [])]
    brain = helper.make_tensor(
        "brain", TensorProto.BFLOAT16, (2,), np.array([0x3F80, 0x4000], "<u2").tobytes(), raw=True
    )
    constant = helper.make_node("Constant", [], ["made"], value=numpy_helper.from_array(values))
    onnx.save(graph([*tensors, brain], [constant]), tmp_path / "model.onnx")
    checkpoint = open_checkpoint("m", tmp_path / "model.onnx")
    kinds = {name: info.dtype for name, (_, info) in checkpoint.tensors.items()}
    assert kinds["ids"] == "I64" and kinds["halves"] == "a list of numbers" and kinds["brain"] == "BF16"
    for name in ("listed", "doubles", "made"):
        assert np.array_equal(checkpoint.read_tensor(name).numpy(), values)
    assert checkpoint.read_tensor("brain").tolist() == [1, 2] and "scalar" not in kinds  # a constant, no weight
    assert checkpoint.read_tensor("empty").shape == (0, 3)


def test_a_matrix_whose_name_is_lost_has_that_of_its_node(tmp_path: Path) -> None:
    """As torch's exporter turns the weights of linear layers without a bias round, and gives them numbers."""
    values = some()
    lost = {f"onnx::MatMul_{100 + k}": np.ascontiguousarray(value.T) for k, value in enumerate(values.values())}
    nodes = [
        helper.make_node(
            "MatMul", ["x", number], ["y"], name="/" + name.removesuffix(".weight").replace(".", "/") + "/MatMul"
        )
        for name, number in zip(values, lost)
    ]
    onnx.save(graph(stored(lost | {"onnx::MatMul_7": np.ones((2, 2), np.float32)}), nodes), tmp_path / "model.onnx")
    found = read(tmp_path)
    assert found.keys() == values.keys() | {"onnx::MatMul_7"}  # which no node uses
    for name, value in values.items():
        assert np.array_equal(found[name].numpy(), value)
    save_model(tmp_path / "other", {name: torch.from_numpy(value) for name, value in values.items()})
    one, other = (matrices(open_checkpoint("m", place)) for place in (tmp_path, tmp_path / "other"))
    assert other.keys() <= one.keys()


def test_data_outside(tmp_path: Path) -> None:
    values = some(width=64)
    save = {"save_as_external_data": True, "all_tensors_to_one_file": True, "size_threshold": 0}
    onnx.save(graph(stored(values)), tmp_path / "model.onnx", location="model.onnx_data", **save)
    assert (tmp_path / "model.onnx").stat().st_size < 2000
    found = read(tmp_path)
    for name, value in values.items():
        assert np.array_equal(found[name].numpy(), value)
    assert len(open_checkpoint("m", tmp_path).files()) == len(open_checkpoint("m", tmp_path).fingerprint()) == 2
    assert [source.id for source in search([str(tmp_path)]).sources] == [tmp_path.name]
    content = (tmp_path / "model.onnx_data").read_bytes()
    (tmp_path / "model.onnx_data").write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match="truncated: tensor"):
        open_checkpoint("m", tmp_path)
    (tmp_path / "model.onnx_data").unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        open_checkpoint("m", tmp_path)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/b", "..", "", "a\0b", "x" * 5000])
def test_data_outside_of_the_folder_is_refused(location: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(1 << 16))
    (tmp_path / "m").mkdir()
    tensor = stored(some())[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    onnx.save(graph([tensor]), tmp_path / "m" / "model.onnx")
    with pytest.raises(CheckpointError, match="outside its folder|a name is none"):
        open_checkpoint("m", tmp_path / "m")


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    save = {"save_as_external_data": True, "all_tensors_to_one_file": True, "size_threshold": 0}
    onnx.save(graph(stored(some(width=64))), tmp_path / "m" / "model.onnx", location="data", **save)
    shutil.move(tmp_path / "m" / "data", tmp_path / "data")
    (tmp_path / "m" / "data").symlink_to(tmp_path / "data")
    with pytest.raises(CheckpointError, match="a link to .*outside its folder"):
        open_checkpoint("m", tmp_path / "m")


@pytest.mark.parametrize(
    ("key", "value"), [("offset", "-1"), ("offset", "9" * 30), ("offset", "x"), ("length", "7"), ("length", "")]
)
def test_places_outside_that_lie(key: str, value: str, tmp_path: Path) -> None:
    tensor = stored(some())[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="data")
    tensor.external_data.add(key=key, value=value)
    (tmp_path / "data").write_bytes(bytes(1 << 16))
    onnx.save(graph([tensor]), tmp_path / "model.onnx")
    with pytest.raises(CheckpointError, match="bytes at|ends at byte"):
        open_checkpoint("m", tmp_path / "model.onnx")


def field(number: int, value: bytes) -> bytes:
    assert len(value) < 128
    return bytes([number << 3 | 2, len(value)]) + value


BEGIN = b"\x08\x08\x12\x01a"
TENSOR = b"\x08\x02\x10\x01" + field(8, b"w") + field(9, bytes(8))
HOSTILE = {
    "no graph": (BEGIN, "0 graphs"),
    "two graphs": (BEGIN + 2 * field(7, field(5, TENSOR)), "2 graphs"),
    "empty graph": (BEGIN + field(7, b""), "no tensors"),
    "a number without end": (BEGIN + b"\xff" * 20, "does not end"),
    "a field without end": (BEGIN + b"\x3a\xff\xff\xff\xff\xff\xff\xff\x7f", "a field ends"),
    "a group": (BEGIN + b"\x3b", "begins no field"),
    "name twice": (BEGIN + field(7, 2 * field(5, TENSOR)), "twice"),
    "name not printable": (BEGIN + field(7, field(5, field(8, b"\x1b[2J"))), "not usable"),
    "no name": (BEGIN + field(7, field(5, b"\x10\x01" + field(8, b""))), "no name"),
    "negative size": (BEGIN + field(7, field(5, b"\x08" + b"\xff" * 9 + b"\x01" + TENSOR)), "has the shape"),
    "overflow": (BEGIN + field(7, field(5, 8 * (b"\x08" + b"\xff" * 8 + b"\x7f") + TENSOR)), "has the shape"),
    "other length": (BEGIN + field(7, field(5, b"\x08\x02" + TENSOR)), "cannot have 8 bytes"),
    "name a number": (BEGIN + field(7, field(5, b"\x40\x01")), "a name is none"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_say_why(name: str, tmp_path: Path) -> None:
    content, words = HOSTILE[name]
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as error:
        open_checkpoint("victim", tmp_path / "model.onnx")
    assert len(str(error.value)) < 1000 and str(error.value).isprintable()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_files_never_raise_anything_else(data: st.DataObject) -> None:
    content = bytearray(CONTENT)
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(4, len(content)))])
    try:
        rows = read_table(lambda start, end: content[start:end], len(content))
    except ValueError:
        return
    assert all(0 <= start <= end <= len(content) for *_, start, end, outside, _ in rows if outside is None)


CONTENT = small_onnx()


def test_what_is_fuzzed_is_sound(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(CONTENT)
    (tmp_path / "data").write_bytes(bytes(256))
    onnx.load(tmp_path / "model.onnx")
    recurrent = {f"rnn.{part}_{of}_l0" for part in ("weight", "bias") for of in ("ih", "hh")}
    assert read(tmp_path).keys() == recurrent | {f"block.{name}.weight" for name in ("0.up", "0.down", "1.up")}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    (tmp_path / "hub" / "org" / "graph").mkdir(parents=True)
    with HubServer(tmp_path / "hub") as server:
        use(server, monkeypatch, tmp_path)
        yield server


@pytest.mark.parametrize("outside", [False, True])
def test_from_the_hub_by_ranges(outside: bool, hub: HubServer) -> None:
    values = some(width=512)
    folder = hub.folder / "org" / "graph"
    save = {"save_as_external_data": outside, "all_tensors_to_one_file": True, "location": "model.onnx_data"}
    onnx.save(graph(stored(values)), folder / "model.onnx", **save)
    checkpoint = open_checkpoint("m", "hf://org/graph")
    for name, value in checkpoint.read_tensors(list(values)).items():
        assert np.array_equal(value.numpy(), values[name])
    needed = sum(value.nbytes for value in values.values())
    sent = sum(request.bytes_sent for request in hub.requests if "model.onnx" in request.file)
    assert needed < sent <= 1.05 * needed
    hub.requests.clear()
    open_checkpoint("m", "hf://org/graph")
    assert [request.path for request in hub.requests] == ["/api/models/org/graph/revision/main"]


def test_tensors_in_the_branches_of_a_node(tmp_path: Path) -> None:
    """A model that holds two sets of weights and chooses one when it runs."""

    def branch(values: np.ndarray) -> onnx.GraphProto:
        weight = numpy_helper.from_array(values, "layer.weight")
        constant = helper.make_node("Constant", [], ["made"], value=numpy_helper.from_array(values + 1))
        inner = helper.make_node("If", ["which"], [], then_branch=helper.make_graph([constant], "inner", [], []))
        return helper.make_graph([inner], "branch", [], [], [weight])

    one, other = (np.random.default_rng(seed).normal(size=(3, 4)).astype(np.float32) for seed in (0, 1))
    node = helper.make_node("If", ["which"], [], then_branch=branch(one), else_branch=branch(other))
    onnx.save(graph([numpy_helper.from_array(one * 2, "top.weight")], [node]), tmp_path / "model.onnx")
    checkpoint = open_checkpoint("m", tmp_path / "model.onnx")
    read = {name: weight.numpy() for name, weight in checkpoint.read_tensors(list(checkpoint.tensors)).items()}
    expected = {"top.weight": one * 2, "layer.weight": other, "branch 2.layer.weight": one}  # else before then
    expected |= {"made": other + 1, "branch 4.made": one + 1}
    assert read.keys() == expected.keys()
    for name, values in read.items():
        assert np.array_equal(values, expected[name]), name


def test_a_head_whose_name_is_lost_makes_no_other_model_of_a_copy(tmp_path: Path) -> None:
    """Matrices, and the head, are turned round; the names of all are lost, and a half of them is another type."""
    rng = np.random.default_rng(0)
    inside = {f"model.layers.{k}.mlp.up_proj.weight": rng.standard_normal((48, 40)).astype("f4") for k in range(4)}
    rest = {
        "model.embed_tokens.weight": rng.standard_normal((99, 40)).astype("f4"),
        "model.norm.weight": rng.random(40).astype("f4"),
        "lm_head.weight": rng.standard_normal((99, 40)).astype("f4"),
    }
    weights = inside | rest
    for name in ("a", "half", "other", "z"):
        (tmp_path / name).mkdir()
    save_file(weights, tmp_path / "z" / "model.safetensors")
    another = weights | {"lm_head.weight": rng.standard_normal((99, 40)).astype("f4")}
    for folder, some in (("a", weights), ("half", {k: v.astype("f2") for k, v in weights.items()}), ("other", another)):
        lost = [
            numpy_helper.from_array(np.ascontiguousarray(value.T), f"onnx::MatMul_{at}")
            if name in inside or name.startswith("lm_head")
            else numpy_helper.from_array(value, f"c_{at}" if value.ndim == 1 else name)
            for at, (name, value) in enumerate(some.items())
        ]
        onnx.save(graph(lost), tmp_path / folder / "model.onnx")
    opened = [open_checkpoint(folder.name, folder) for folder in sorted(tmp_path.iterdir())]
    found = build_graph("test", trace(opened, torch.device("cpu")))
    assert {frozenset({name, *facts.get("aliases", ())}) for name, facts in found.nodes.items()} == {
        frozenset({"a", "z"}),
        frozenset({"half"}),
        frozenset({"other"}),
    }
    kinds = {edge.child: edge.attributes["kind"] for edge in found.edges}
    assert kinds["half"] == "cast"
