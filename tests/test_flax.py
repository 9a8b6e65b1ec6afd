"""Flax files: the arrays that their writer packed, under torch's names and shapes; damaged files refused."""

from pathlib import Path

import msgpack
import numpy as np
import pytest
import torch
from hub_server import HubServer, use
from hypothesis import given, settings
from hypothesis import strategies as st

from mother.errors import CheckpointError
from mother.io.checkpoint import Checkpoint
from mother.io.open import open_checkpoint


def packed(tree: dict) -> bytes:
    """A state as flax.serialization.msgpack_serialize writes it."""

    def array(value: np.ndarray) -> msgpack.ExtType:
        content = (value.shape, value.dtype.name, value.tobytes())
        return msgpack.ExtType(1, msgpack.packb(content, use_bin_type=True))

    return msgpack.packb(tree, default=array, strict_types=True)


def state() -> dict:
    rng = np.random.default_rng(0)
    dense = {"kernel": rng.standard_normal((40, 24)).astype(np.float32), "bias": np.ones(24, dtype=np.float16)}
    conv = {"kernel": rng.standard_normal((3, 3, 8, 16)).astype(np.float32)}
    return {"step": 7, "name": "a", "params": {"layers": {"0": {"fc": dense}}, "conv": conv}}


def test_kernels_are_turned_as_torch_holds_them(tmp_path: Path) -> None:
    tree = state()
    (tmp_path / "flax_model.msgpack").write_bytes(packed(tree))
    checkpoint = open_checkpoint("m", tmp_path)
    read = checkpoint.read_tensors(list(checkpoint.tensors))
    assert set(read) == {"layers.0.fc.weight", "layers.0.fc.bias", "conv.weight"}
    dense, conv = tree["params"]["layers"]["0"]["fc"]["kernel"], tree["params"]["conv"]["kernel"]
    assert torch.equal(read["layers.0.fc.weight"], torch.from_numpy(dense.T.copy()))
    assert torch.equal(read["conv.weight"], torch.from_numpy(conv.transpose(3, 2, 0, 1).copy()))
    assert read["layers.0.fc.bias"].eq(1).all()


def test_dense_layers_over_heads(tmp_path: Path) -> None:
    """Attention of Flax: (inputs, heads, entries) makes queries, (heads, entries, outputs) what comes of values."""
    rng, heads, size, width = np.random.default_rng(0), 4, 6, 24
    kernels = {name: rng.standard_normal((width, heads, size)).astype(np.float32) for name in ("query", "key", "value")}
    kernels["out"] = rng.standard_normal((heads, size, width)).astype(np.float32)
    conv = rng.standard_normal((heads, size, width)).astype(np.float32)  # (steps, inputs, outputs)
    layers = {name: {"kernel": kernel} for name, kernel in kernels.items()}
    tree = {"attention": layers, "out": {"kernel": conv}, "head": {"key": {"kernel": conv}}}
    (tmp_path / "flax_model.msgpack").write_bytes(packed({"params": tree}))
    checkpoint = open_checkpoint("m", tmp_path)
    read = {name.removesuffix(".weight"): value.numpy() for name, value in _all(checkpoint).items()}
    x = rng.standard_normal(width)
    for name in ("query", "key", "value"):
        wanted = np.einsum("i,ihd->hd", x, kernels[name]).reshape(-1)
        assert np.allclose(read[f"attention.{name}"] @ x, wanted, atol=1e-5)
    values = rng.standard_normal((heads, size))
    assert np.allclose(read["attention.out"] @ values.reshape(-1), np.einsum("hd,hdo->o", values, kernels["out"]))
    for name in ("out", "head.key"):  # no queries beside them: convolutions
        assert np.array_equal(read[name], conv.transpose(2, 1, 0))


def _all(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return checkpoint.read_tensors(list(checkpoint.tensors))


@pytest.mark.parametrize("content", [packed({"step": 7}), packed({}), b"\x07", packed({"params": {"a": "b" * 9000}})])
def test_a_file_without_arrays_says_so(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.msgpack").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"holds no arrays.*model\.msgpack.*Fetch or save"):
        open_checkpoint("m", tmp_path)


def array(shape: object, dtype: object, count: int) -> msgpack.ExtType:
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, bytes(count))))


ONE = msgpack.packb(array([2], "float32", 8))
HOSTILE = {
    "a map without end": (b"\xdf\xff\xff\xff\xff\xa1a\xc0", "truncated"),
    "deep maps": (b"\x81\xa1a" * 100_000, "no usable name"),
    "deep lists": (b"\x81\xa1a" + b"\x91" * 100_000, "no usable name"),
    "a longer array": (b"\x81\xa1a\xc9\xff\xff\xff\xff\x01" + bytes(100), "truncated"),
    "overflow": (msgpack.packb({"a": array([1 << 40, 1 << 40], "float32", 0)}), "has the shape"),
    "overflow beside a zero": (msgpack.packb({"a": array([0, 1 << 61], "float32", 0)}), "has the shape"),
    "a negative shape": (msgpack.packb({"a": array([-2], "float32", 8)}), "has the shape"),
    "a deep shape": (b"\x81\xa1a\xc8\x03\xe8\x01\x93" + b"\x91" * 1000, "truncated or damaged"),
    "objects": (msgpack.packb({"a": array([2], "object", 16)}), "type 'object'"),
    "a list for a type": (msgpack.packb({"a": array([2], [], 8)}), "type \\[\\]"),
    "a long name": (msgpack.packb({"k" * 100_000: None}), "truncated or damaged"),
    "a name not printable": (msgpack.packb({"\x1b[2J": array([2], "float32", 8)}), "is not usable"),
    "a number for a name": (msgpack.packb({7: array([2], "float32", 8)}), "no usable name"),
    "a name twice": (b"\x82" + 2 * (b"\xa1a" + ONE), "are called a"),
    "bytes behind it": (b"\x81\xa1a" + ONE + b"xyz", "it ends at byte 27 of 30"),
    "too many values": (b"\x81\xa1a\xdd\x00\x1e\x84\x80" + b"\xc0" * 2_000_000, "more than 200000 values"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_say_why(name: str, tmp_path: Path) -> None:
    content, words = HOSTILE[name]
    (tmp_path / "model.msgpack").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{words}.*model\\.msgpack.*Fetch or save") as error:
        open_checkpoint("victim", tmp_path)
    assert len(str(error.value)) < 1000 and str(error.value).isprintable()


@pytest.mark.parametrize("seed", range(40))
def test_random_bytes_are_refused_by_name(seed: int, tmp_path: Path) -> None:
    (tmp_path / "model.msgpack").write_bytes(np.random.default_rng(seed).bytes(1 + 100 * seed))
    with pytest.raises(CheckpointError, match=r"model\.msgpack\)\. (Fetch|Save) ") as error:
        open_checkpoint("victim", tmp_path)
    assert "holds no arrays" in str(error.value)


def test_what_an_optimizer_keeps_is_left_aside(tmp_path: Path) -> None:
    tree = state()
    tree |= {"opt_state": {"0": {"mu": tree["params"]}}, "batch_stats": {"norm": {"mean": np.ones(4, np.float32)}}}
    (tmp_path / "flax_model.msgpack").write_bytes(packed(tree))
    checkpoint = open_checkpoint("m", tmp_path)
    assert checkpoint.aside == ("opt_state",)
    assert len(checkpoint.tensors) == 4


def test_from_the_hub_by_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, folder = np.random.default_rng(0), tmp_path / "hub" / "org" / "flax"
    folder.mkdir(parents=True)
    layers = {str(k): {"kernel": rng.standard_normal((512, 512)).astype(np.float32)} for k in range(4)}
    (folder / "flax_model.msgpack").write_bytes(packed({"params": {"layers": layers}}))
    with HubServer(tmp_path / "hub") as server:
        use(server, monkeypatch, tmp_path)
        checkpoint = open_checkpoint("m", "hf://org/flax")
        server.requests.clear()
        read = checkpoint.read_tensor("layers.2.weight")
        sent = sum(request.bytes_sent for request in server.requests if request.file.endswith(".msgpack"))
    assert torch.equal(read, torch.from_numpy(layers["2"]["kernel"].T.copy()))
    assert read.numel() * 4 <= sent <= 1.05 * read.numel() * 4


def test_its_content_decides(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(packed(state()))
    assert "conv.weight" in open_checkpoint("m", tmp_path / "weights.bin").tensors


@pytest.mark.parametrize("end", [1, 9, 60, 2000])
def test_truncated_files_say_so(end: int, tmp_path: Path) -> None:
    file = tmp_path / "flax_model.msgpack"
    file.write_bytes(packed(state())[:end])
    with pytest.raises(CheckpointError):
        open_checkpoint("m", file)


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 200), value=st.integers(0, 255))
def test_mutated_files_never_raise_anything_else(at: int, value: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    content = bytearray(packed(state()))
    content[at] = value
    file = tmp_path_factory.mktemp("mutated") / "flax_model.msgpack"
    file.write_bytes(content)
    try:
        checkpoint = open_checkpoint("m", file)
        checkpoint.read_tensors([name for name, (_, info) in checkpoint.tensors.items() if info.dtype[0] in "FB"])
    except CheckpointError:
        pass
