"""Pickled checkpoints: the same values as torch reads, and not a line of an attacker's code."""

import inspect
import io
import os
import pickle
import pickletools
import re
import subprocess
import sys
import time
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, mutated, vit_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from test_checkpoints import assert_same, read_all

from mother.errors import CheckpointError
from mother.io import pickle_names, unpickler
from mother.io.open import open_checkpoint
from mother.io.pickles import parse_pickle


def parse(content: bytes) -> dict:
    return parse_pickle(lambda start, end: content[start:end], len(content))


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def archive(pickled: bytes, **members: bytes) -> bytes:
    """A checkpoint around any pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        for name, content in members.items():
            file.writestr(f"archive/data/{name}", content)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_values_equal_those_of_torch(dtype: torch.dtype, tmp_path: Path) -> None:
    weights = OrderedDict((name, weight.to(dtype)) for name, weight in vit_weights(1).items())
    shared = torch.randn(6, 8).to(dtype)
    weights["blocks.0.attn.proj.weight"] = shared[2:5]  # a part of a storage
    weights["blocks.1.attn.proj.weight"] = torch.nn.Parameter(shared)
    file = tmp_path / "pytorch_model.bin"
    torch.save(weights, file)
    checkpoint = open_checkpoint("m", tmp_path)
    expected = torch.load(file, weights_only=True)
    assert checkpoint.tensors.keys() == expected.keys()
    for name, value in checkpoint.read_tensors(list(expected)).items():
        assert torch.equal(value, expected[name].float()), name


@pytest.mark.parametrize("key", ["state_dict", "model", None])
def test_dictionaries_of_training_scripts(key: str | None, tmp_path: Path) -> None:
    weights = vit_weights(1)
    torch.save({key: weights, "epoch": 3, "args": {"lr": 0.1}} if key else weights, tmp_path / "last.ckpt")
    torch.save(weights, tmp_path / "plain.bin")
    assert_same(read_all(tmp_path / "plain.bin"), read_all(tmp_path / "last.ckpt"))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_views_are_put_in_order(dtype: torch.dtype, legacy: bool, tmp_path: Path) -> None:
    """What TensorFlow's weights become that were turned round, parts of columns, expanded vectors."""
    base = torch.randn(3, 5, 7, 4).to(dtype)
    weights: dict[str, torch.Tensor] = {
        "blocks.0.conv.weight": base.permute(3, 2, 0, 1),
        "blocks.0.attn.proj.weight": base[0, 0].T,
        "blocks.1.attn.proj.weight": base[1, :, 2:6, 1],
        "blocks.2.attn.proj.weight": base[0, 0, 0].expand(6, 4),
        "norm.weight": base[:, 0, 0, 0][:0],
    }
    file = tmp_path / "pytorch_model.bin"
    torch.save(weights, file, _use_new_zipfile_serialization=not legacy)
    checkpoint = open_checkpoint("m", tmp_path)
    for name, value in checkpoint.read_tensors(list(weights)).items():
        assert torch.equal(value, weights[name].float()) and value.is_contiguous(), name


def test_a_view_of_little_in_much_is_refused_by_name(tmp_path: Path) -> None:
    """Many of them would make a reader read a large storage over and over."""
    weights = vit_weights(1) | {"blocks.0.attn.proj.weight": torch.randn(400, 600)[::40, ::60]}
    torch.save(weights, tmp_path / "pytorch_model.bin")
    checkpoint = open_checkpoint("m", tmp_path)
    with pytest.raises(CheckpointError, match="attn.proj.weight is stored as view"):
        checkpoint.read_tensor("blocks.0.attn.proj.weight")


def test_ordered_dictionaries_of_python_2(tmp_path: Path) -> None:
    """Python 2 wrote an ordered dictionary as a call with the list of its pairs."""
    weights = vit_weights(1)

    class Ordered(dict):
        def __reduce__(self) -> tuple:
            return OrderedDict, ([[name, tensor] for name, tensor in self.items()],)

    torch.save(Ordered(weights), tmp_path / "old.pth", pickle_protocol=2, _use_new_zipfile_serialization=False)
    torch.save(weights, tmp_path / "plain.bin")
    assert_same(read_all(tmp_path / "plain.bin"), read_all(tmp_path / "old.pth"))


class Call:
    """Pickles as a call of anything."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def attacks(marker: Path) -> dict[str, bytes]:
    """Payloads that would create `marker`, in the ways that have been seen in the wild."""
    command, code = f"touch {marker}", f"__import__('pathlib').Path({str(marker)!r}).touch()"
    nested = pickle.dumps(Call(os.system, command))
    return {
        "os.system": pickle.dumps(Call(os.system, command)),
        "exec": pickle.dumps(Call(exec, code)),
        "eval in a state dict": pickle.dumps({"w": Call(eval, code)}),
        "protocol 0": f"cposix\nsystem\n(S'{command}'\ntR.".encode(),
        "INST": f"(S'{command}'\nios\nsystem\n.".encode(),
        "OBJ": f"(cos\nsystem\nS'{command}'\no.".encode(),
        "pickle in a pickle": pickle.dumps(Call(pickle.loads, nested)),
        "getattr chain": b"cbuiltins\ngetattr\n(cos\n__dict__\nS'system'\ntR.",
        "dotted name": b"\x80\x04\x8c\x0btorch._utils\x8c\x0fos.system.thing\x93.",
        "torch.load": pickle.dumps(Call(torch.load, str(marker))),
        "numpy load": b"cnumpy\nload\n(S'x'\ntR.",
        "runpy": f"crunpy\n_run_code\n(S'{code}'\n}}tR.".encode(),
        "build": b"ctorch\nSize\n)R}(S'__class__'\ncos\nsystem\nub.",
        "persistent id": b"(S'storage'\ncos\nsystem\nS'0'\nS'cpu'\nI1\ntQ.",
        "extension": b"\x80\x02\x82\x01.",
    }


@pytest.mark.parametrize("name", attacks(Path("x")))
def test_malicious_pickles_execute_nothing(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    content = archive(attacks(marker)[name])
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match="refused|damaged|no dictionary") as error:
        open_checkpoint("victim", tmp_path)
    assert "model victim" in str(error.value) and "\n" not in str(error.value)
    assert not marker.exists()


def test_the_attacks_are_real(tmp_path: Path) -> None:
    """With the pickle module of the library several of them would have run."""
    done = 0
    for number, name in enumerate(attacks(Path("x"))):
        marker = tmp_path / str(number)
        try:
            pickle.loads(attacks(marker)[name])
        except Exception:  # noqa: BLE001, S110
            pass
        done += marker.exists()
    assert done >= 6


BROKEN = {
    "empty": (b"", "no zip archive"),
    "legacy": (pickle.dumps(0x1950A86A20F9469CFC6C), "no zip archive"),
    "cut off": (saved(vit_weights(1))[:-300], "damaged"),
    "no pickle": (archive(b"")[:0] + b"PK\x03\x04" + b"\0" * 50, "damaged"),
    "no tensors": (saved({"a": 1}), "no tensors"),
    "a list": (saved([torch.zeros(2)]), "no dictionary"),
    "missing storage": (archive(pickle.dumps({})), "no tensors"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_archives_say_why(kind: str) -> None:
    content, words = BROKEN[kind]
    with pytest.raises(ValueError, match=words):
        parse(content)


def test_storages_that_lie(tmp_path: Path) -> None:
    whole = saved({"w": torch.zeros(4, 4)})
    with zipfile.ZipFile(io.BytesIO(whole)) as file:
        pickled = file.read(next(name for name in file.namelist() if name.endswith("data.pkl")))
    with pytest.raises(ValueError, match="storage of tensor w is missing"):
        parse(archive(pickled))
    with pytest.raises(ValueError, match="truncated: tensor w"):
        parse(archive(pickled, **{"0": b"\0" * 60}))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/data/0", b"\0" * 64)
    with pytest.raises(ValueError, match="compressed"):
        parse(buffer.getvalue())


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_archives_never_raise_anything_else(data: st.DataObject) -> None:
    content = mutated(data, saved({"a": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}))
    try:
        tensors = parse(content)
    except ValueError:
        return
    for info in tensors.values():
        assert 0 <= info.start <= info.end <= len(content)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutated_pickles_never_raise_anything_else(data: st.DataObject) -> None:
    whole = saved({"a": torch.ones(2, 3), "b": torch.ones(4)})
    with zipfile.ZipFile(io.BytesIO(whole)) as file:
        pickled = bytearray(file.read(next(name for name in file.namelist() if name.endswith("data.pkl"))))
    assert list(pickletools.genops(bytes(pickled)))
    for _ in range(data.draw(st.integers(1, 4))):
        pickled[data.draw(st.integers(0, len(pickled) - 1))] = data.draw(st.integers(0, 255))
    try:
        parse(archive(bytes(pickled), **{"0": b"\0" * 24, "1": b"\0" * 16}))
    except ValueError:
        pass


TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n"
    b"((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI2\ntQI0\n(I2\nt(I1\ntI00\n}tR"
)
BOMBS = {
    "a memo of 64 GB": b"\x80\x02}r\xff\xff\xff\xff.",
    "a key whose hash never ends": b"\x80\x02})" + b"2\x86" * 60 + b"K\x01s.",
    "a storage whose name never ends": b"\x80\x02}X\x01\x00\x00\x00w(S'storage'\nctorch\nFloatStorage\n)"
    + b"2\x86" * 60
    + b"S'cpu'\nI2\ntQs.",
    "a set": b"\x80\x04\x8f(K\x01\x90.",
    "another offset": b"}S'w'\n" + TENSOR + b"}S'offset'\nI-1000000000000000\nsb(I0\ntb0s.",
    "another dtype": b"}S'w'\n(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI2\ntQ}S'dtype'\nS'XX'\nsbs.",
    "another function": b"ctorch._utils\n_rebuild_tensor_v2\n}S'__defaults__'\n(I1\ntsb0}.",
    "another dictionary": b"ccollections\nOrderedDict\n)R}S'values'\nS'x'\nsb.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_do_nothing_and_take_no_time(name: str, tmp_path: Path) -> None:
    started = time.monotonic()
    (tmp_path / "pytorch_model.bin").write_bytes(archive(BOMBS[name]))
    with pytest.raises(CheckpointError, match="refused|damaged|no dictionary|no tensors|missing"):
        open_checkpoint("victim", tmp_path)
    assert time.monotonic() - started < 1 and not pickle_names._rebuild_tensor.__defaults__


PRIME = (1 << 61) - 1  # Python takes numbers modulo this one as their hash
MANY = 1 << 18


def text(content: bytes) -> bytes:
    return b"X" + len(content).to_bytes(4, "little") + content


def megabyte(name: str) -> bytes:
    """A pickle of about a megabyte that asks for more time or memory than it has bytes."""
    one, long = b"\x80\x04", text(b"k" * MANY)
    return {
        "a bytearray of a terabyte": one + b"\x96" + (1 << 40).to_bytes(8, "little"),
        "bytes of a terabyte": one + b"\x8e" + (1 << 40).to_bytes(8, "little") + b".",
        "a text of a terabyte": one + b"\x8d" + (1 << 40).to_bytes(8, "little") + b".",
        "a number of two gigabytes": one + b"\x8b" + b"\xff\xff\xff\x7f" + b"\1" * MANY + b".",
        "a frame of a terabyte": one + b"\x95" + (1 << 40).to_bytes(8, "little") + b"}.",
        "frames without end": one + (b"\x95" + bytes(8)) * (MANY // 4) + b"}.",
        "marks": b"(" * 4 * MANY + b".",
        "dictionaries": b"}" * 4 * MANY + b".",
        "one dictionary again and again": b"}" + b"2" * 4 * MANY + b".",
        "tuples of tuples": b")" + b"2\x86" * 2 * MANY + b".",
        "sizes of sizes": b"ctorch\nSize\nq\0" + b"h\0" * MANY + b")" + b"\x85R" * MANY + b".",
        "a long size again and again": b"ctorch\nSize\nq\0("
        + b"K\1" * MANY
        + b"tq\1"
        + b"0h\0h\1\x85R" * (MANY // 4)
        + b".",
        "a long call again and again": b"ctorch\ndevice\nq\0("
        + b"K\1" * MANY
        + b"tq\1"
        + b"0h\0h\1R" * (MANY // 4)
        + b".",
        "numbers of one hash": b"}(" + b"".join(b"L%dL\nN" % (k * PRIME) for k in range(MANY // 6)) + b"u.",
        "floats of one hash": b"}(" + b"".join(b"F%d.0\nN" % (k * PRIME) for k in range(MANY // 6)) + b"u.",
        "places of one hash": b"N" + b"".join(b"p%d\n" % (k * PRIME) for k in range(MANY // 6)) + b".",
        "long texts that are equal": one + long + b"q\0" + long + b"q\1}(" + b"h\0Nh\1N" * (MANY // 12) + b"u.",
        "a long name of a storage": long
        + b"q\0ctorch\nFloatStorage\nq\1}("
        + b"N(X\x07\0\0\0storageh\1h\0NNtQ" * (MANY // 20)
        + b"u.",
        "a long name of a function": b"c" + b"m" * MANY + b"\n" + b"n" * MANY + b"\n.",
    }[name]


READ = """
import resource, sys, time
from pathlib import Path
from mother.io.pickles import parse_pickle
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
for name in sys.argv[1:]:
    content, started = Path(name).read_bytes(), time.process_time()
    try:
        said = len(parse_pickle(lambda start, end: content[start:end], len(content)))
    except ValueError as error:
        said = error
    print(time.process_time() - started, said, sep="|")
"""


def test_a_megabyte_takes_no_more_than_it_justifies(tmp_path: Path) -> None:
    """About half a second and a gigabyte; in a process of its own, where no types are checked."""
    names = re.findall(r'^        "([^"]+)":', inspect.getsource(megabyte), re.MULTILINE)
    assert len(names) > 15
    for name in names:
        (tmp_path / name).write_bytes(archive(megabyte(name)))
        assert (tmp_path / name).stat().st_size < 1_300_000
    command = [sys.executable, "-c", READ, *(str(tmp_path / name) for name in names)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    for name, line in zip(names, done.stdout.splitlines(), strict=True):
        seconds, _, said = line.partition("|")
        assert re.search("refused|damaged|no dictionary|no tensors", said) and len(said) < 500, name
        assert float(seconds) < 3, name


def test_too_many_operations_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pickled = saved({f"layer {k}": torch.zeros(1) for k in range(20)})
    assert len(parse(pickled)) == 20
    monkeypatch.setattr(unpickler, "MOST_OPERATIONS", 200)
    with pytest.raises(ValueError, match="more than 200 operations"):
        parse(pickled)


@pytest.mark.parametrize("second", ["archive/data.pkl", "archive/DATA.PKL", "archive/data/0", "archive/Data/0"])
def test_members_of_one_name_are_refused(second: str, tmp_path: Path) -> None:
    """Each reader takes another one, and torch does not look at their case."""
    whole = saved({"w": torch.zeros(2, 2)})
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as before, zipfile.ZipFile(buffer, "w") as after:
        for name in before.namelist():
            after.writestr("archive/" + name.partition("/")[2], before.read(name))
        with warnings.catch_warnings(action="ignore"):  # of the library that writes it
            after.writestr(second, after.read("archive/data/0"))
    with pytest.raises(ValueError, match=f"two members {second}"):
        parse(buffer.getvalue())


def test_an_archive_with_two_directories_is_refused() -> None:
    """Python finds the last one, torch the one that the end names."""
    benign, hidden = saved({"w": torch.zeros(2, 2)}), saved({"w": torch.ones(2, 2)})
    end = benign[-22:]
    assert end[:4] == b"PK\x05\x06"
    with pytest.raises(ValueError, match="directory is not where its end says"):
        parse(hidden + benign)
    with pytest.raises(ValueError, match="comment"):
        parse(benign[:-2] + b"\1\0x")


def test_a_pickle_of_training_is_read_beside_its_numbers(tmp_path: Path) -> None:
    """Keys that are numbers, as optimizers have, are no names of tensors, and do no harm."""
    weights = vit_weights(1)
    state = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}, 1: 2, 0.5: "x", None: None}
    torch.save({"model": weights, "optimizer": state, "shape": torch.Size([2, 3])}, tmp_path / "last.ckpt")
    torch.save({0: torch.zeros(2, 2)}, tmp_path / "numbered.ckpt")
    assert len(read_all(tmp_path / "last.ckpt")) == 10
    with pytest.raises(CheckpointError, match="of a tensor is not usable"):
        open_checkpoint("m", tmp_path / "numbered.ckpt")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_compressed_pickle_is_refused(method: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w", method) as file:
        file.writestr("archive/data.pkl", b"}." * 100)
    with pytest.raises(CheckpointError, match="compressed"):
        open_checkpoint("victim", tmp_path)
