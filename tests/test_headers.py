"""Headers of safetensors files: the reference implementation's files are read, hostile ones refused."""

import json
import time
from pathlib import Path

import pytest
import torch
from conftest import mutated
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mother.errors import CheckpointError
from mother.io.open import open_checkpoint
from mother.io.safetensors import TensorInfo, header_length, parse_header


def build(header: object, data: bytes = b"\0" * 8) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def parse(content: bytes) -> dict[str, TensorInfo]:
    length = header_length(content[:8], len(content))
    return parse_header(content[8 : 8 + length], len(content))


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_a_plain_header() -> None:
    content = build({"a": entry(), "__metadata__": {"format": "pt"}})
    assert parse(content) == {"a": TensorInfo("F32", (2,), len(content) - 8, len(content))}


ATTACKS = {
    "empty": (b"", "truncated"),
    "no header": (b"\0\0\0", "truncated"),
    "huge header": (b"\xff" * 8 + b"{}", "no safetensors"),
    "header beyond the end": (build({"a": entry()})[:30], "truncated"),
    "data cut off": (build({"a": entry()})[:-1], "truncated"),
    "not UTF-8": (build(b'{"\xff": 1}'), "UTF-8"),
    "not JSON": (build(b"{"), "JSON"),
    "a list": (build([1]), "object"),
    "nested": (build(b"[" * 100_000), "nested"),
    "key twice": (build(b'{"a": {}, "a": {}}'), "twice"),
    "entry not an object": (build({"a": 3}), "not an object"),
    "unknown type": (build({"a": entry("X9")}), "unknown type"),
    "type not a string": (build({"a": entry(3)}), "unknown type"),
    "type a list": (build({"a": entry([])}), "unknown type"),
    "number too long": (build(b'{"a": ' + b"9" * 5000 + b"}"), "not usable"),
    "name not printable": (build(b'{"\\ud800": {}}'), "not printable"),
    "name too long": (build({"a" * 5000: entry()}), "5000 characters"),
    "negative size": (build({"a": entry(shape=(-2,))}), "shape"),
    "size not a number": (build({"a": entry(shape="ab")}), "shape"),
    "boolean size": (build({"a": entry(shape=(True, 2))}), "shape"),
    "shape overflow": (build({"a": entry(shape=(1 << 62, 1 << 62))}), "has the shape"),
    "shape overflow beside a zero": (build({"a": entry(shape=(0, 1 << 62, 1 << 62), offsets=(0, 0))}), "has the shape"),
    "many dimensions": (build({"a": entry(shape=((1 << 63) - 1,) * 50_000)}), "has the shape"),
    "reversed": (build({"a": entry(offsets=(8, 0))}), "cannot have"),
    "out of range": (build({"a": entry(shape=(1000,), offsets=(0, 4000))}), "truncated"),
    "huge offset": (build({"a": entry(offsets=(0, 1 << 80))}), "offsets"),
    "overlap": (build({"a": entry(), "b": entry()}), "starts at"),
    "hole": (build({"a": entry(shape=(1,), offsets=(4, 8))}), "starts at"),
    "data after the end": (build({"a": entry()}, b"\0" * 9), "end at"),
    "wrong size": (build({"a": entry(shape=(3,))}), "cannot have"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_hostile_headers_are_refused(name: str, tmp_path: Path) -> None:
    content, words = ATTACKS[name]
    with pytest.raises(ValueError, match=words):
        parse(content)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as error:
        open_checkpoint("victim", tmp_path)
    assert "model victim" in str(error.value) and "model.safetensors" in str(error.value)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_files_never_raise_anything_else(data: st.DataObject) -> None:
    content = mutated(data, build({"a": entry(), "b": entry("BF16", (2, 2), (8, 16))}, b"\0" * 16), most=4)
    content += data.draw(st.binary(max_size=4))
    try:
        tensors = parse(content)
    except ValueError:
        return
    for info in tensors.values():
        assert 8 <= info.start <= info.end <= len(content)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_values_equal_those_of_the_reference_implementation(dtype: torch.dtype, tmp_path: Path) -> None:
    weights = {f"blocks.{k}.attn.proj.weight": torch.randn(5, 3 + k).to(dtype) for k in range(3)}
    file = tmp_path / "model.safetensors"
    save_file(weights, file)
    checkpoint = open_checkpoint("m", file)
    for layer, name in checkpoint.layers.items():
        assert torch.equal(checkpoint.read(layer), load_file(file)[name].float())


LARGE = {
    "many tensors": b"{"
    + b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % k for k in range(20_000))
    + b"}",
    "one key again and again": b'{"a":1' + b',"a":1' * 160_000 + b"}",
    "many empty entries": b'{"a":[' + b"[]," * 300_000 + b"0]}",
    "a deep shape": b'{"a":{"dtype":"F32","data_offsets":[0,0],"shape":' + b"[" * 500 + b"]" * 500 + b"}}",
    "a deep type": b'{"a":{"shape":[],"data_offsets":[0,0],"dtype":' + b"[" * 900 + b"]" * 900 + b"}}",
    "deeper than Python goes": b'{"a":' * 150_000,
    "a long number": b'{"a":{"dtype":"F32","data_offsets":[0,0],"shape":[' + b"9" * 1_000_000 + b"]}}",
    "a long name": b'{"' + b"a" * 1_000_000 + b'":{}}',
}


@pytest.mark.parametrize("kind", LARGE)
def test_a_megabyte_of_header_takes_seconds_at_most(kind: str) -> None:
    started = time.process_time()
    try:
        assert len(parse(build(LARGE[kind], b""))) == 20_000
    except ValueError as error:
        assert kind != "many tensors" and len(str(error)) < 1000
    assert time.process_time() - started < 10  # of which the checks of types in the tests take most
