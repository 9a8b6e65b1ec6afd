"""Break valid files of every kind that is read, again and again, and see that each is read or refused with its reason.

    python -m benchmarks.fuzz --seconds 60 --seed 0

Cases are tried in a child process whose address space and time are limited. What ends in anything but success or an
error that a user can mend is a finding: its bytes are written to tests/hostile/, where `tests/test_hostile.py` tries
them again. Exits with 1 where there is one.
"""

import hashlib
import json
import multiprocessing
import os
import random
import resource
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import h5py
import msgpack
import numpy as np
import torch
import tyro
from safetensors.torch import save, save_file

from mother.cli.tables import format_table
from mother.collection.claims import Claim, front_matter, place_of, read_claims
from mother.collection.find import Source, search
from mother.collection.gaps import Gaps
from mother.collection.state import (
    GRAPH,
    RUN,
    STATE,
    State,
    collection_facts,
    finish_result,
    kept_result,
    read_state,
    write_state,
)
from mother.errors import InputError
from mother.evidence.sketch import kept_sketch, sketch_models
from mother.graph.manifest_io import read_manifest
from mother.graph.model_graph import Edge, ModelGraph, read_model_graph
from mother.io.digests import digests
from mother.io.files import SEAL, sealed
from mother.io.open import open_checkpoint
from mother.io.safetensors import DTYPES

HOSTILE = Path(__file__).parent.parent / "tests" / "hostile"
SECONDS = 5.0  # that a case may take
ROOM = 1 << 30  # bytes of address space that cases may take together, above what the libraries take
KEY = "0123456789abcdef01234567"
RESULTS = ["model_graph.json", "report.html"]

WEIGHTS = {f"encoder.layer.{k}.attention.output.dense.weight": torch.full((4, 4), 1.0 + k) for k in range(2)}
ADAPTER = {"m.lora_A.weight": torch.ones(2, 4), "m.lora_B.weight": torch.ones(4, 2)}


@dataclass
class Args:
    """Break files of every kind and see what comes of it."""

    seconds: float = 60.0
    """for which cases are tried, over all kinds"""
    seed: int = 0
    """of what is broken"""


def _open(folder: Path) -> None:
    """Open a model, read what can be read, and name its files' digests."""
    checkpoint = open_checkpoint("m", folder)
    for name, (_, info) in list(checkpoint.tensors.items())[:20]:
        if info.dtype in DTYPES:
            checkpoint.read_tensor(name)
    digests(checkpoint)


def _try_weights(name: str) -> Callable[[Path, bytes], None]:
    def attempt(folder: Path, content: bytes) -> None:
        (folder / name).write_bytes(content)
        _open(folder)

    return attempt


def _try_pickle(folder: Path, content: bytes) -> None:
    """The pickle inside an archive that is whole."""
    with ZipFile(folder / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", content)
        for number in range(3):
            archive.writestr(f"archive/data/{number}", bytes(64))
    _open(folder)


def _try_beside(name: str, weights: str, tensors: dict[str, torch.Tensor]) -> Callable[[Path, bytes], None]:
    """A file of text beside weights that are whole."""

    def attempt(folder: Path, content: bytes) -> None:
        save_file(tensors, folder / weights)
        (folder / name).write_bytes(content)
        _open(folder)

    return attempt


def _try_card(folder: Path, content: bytes) -> None:
    (folder / "README.md").write_bytes(content)
    (folder / "config.json").write_bytes(content)
    read_claims(place_of("m", str(folder)))
    try:
        front_matter(content.decode("utf-8", errors="replace"))
    except ValueError:  # what read_claims turns into a claim that was not read
        pass


def _try_manifest(folder: Path, content: bytes) -> None:
    (folder / "m.json").write_bytes(content)
    json.dumps([node.source for node in read_manifest(folder / "m.json").nodes], ensure_ascii=False).encode()
    search([str(folder / "m.json")])


def _try_state(folder: Path, content: bytes) -> None:
    (folder / STATE).write_bytes(content)
    read_state(folder).to_json()


def _try_run(folder: Path, content: bytes) -> None:
    (folder / RUN).write_bytes(content)
    _graph().write(folder / GRAPH)
    (folder / "report.html").touch()
    write_state(folder, _state())
    kept_result(folder, _state().sources, _state().gaps, 0.05, 1024, "title", False)


def _try_graph(folder: Path, content: bytes) -> None:
    (folder / GRAPH).write_bytes(content)
    read_model_graph(folder / GRAPH)


def _try_sketch(folder: Path, content: bytes) -> None:
    about = json.loads((_sketch() / "sketch.json").read_text())
    (folder / "sketch.safetensors").write_bytes((_sketch() / "sketch.safetensors").read_bytes())
    try:  # damage is seen by the seal: what lies behind it is tried with a whole one
        damaged = json.loads(content)
        content = json.dumps(sealed({key: value for key, value in damaged.items() if key != SEAL})).encode()
    except (ValueError, AttributeError, TypeError, RecursionError):
        pass
    (folder / "sketch.json").write_bytes(content)
    kept_sketch(folder / "sketch.safetensors", about["key"])


def _try_packed(folder: Path, content: bytes) -> None:
    usual = {"group_size": 32, "bits": 4}
    (folder / "config.json").write_text(json.dumps({"quantization": usual | {"mx": usual | {"mode": "mxfp4"}}}))
    (folder / "model.safetensors").write_bytes(content)
    _open(folder)


def _try_onnx(folder: Path, content: bytes) -> None:
    (folder / "data").write_bytes(bytes(256))
    (folder / "model.onnx").write_bytes(content)
    _open(folder)


TRY: dict[str, Callable[[Path, bytes], None]] = {
    "safetensors": _try_weights("model.safetensors"),
    "packed": _try_packed,
    "archive": _try_weights("pytorch_model.bin"),
    "pickle": _try_pickle,
    "legacy": _try_weights("old.pth.tar"),
    "gguf": _try_weights("model.gguf"),
    "onnx": _try_onnx,
    "flax": _try_weights("flax_model.msgpack"),
    "hdf5": _try_weights("tf_model.h5"),
    "keras": _try_weights("model.keras"),
    "index": _try_beside("model.safetensors.index.json", "shard.safetensors", WEIGHTS),
    "config": _try_beside("config.json", "model.safetensors", WEIGHTS),
    "adapter": _try_beside("adapter_config.json", "adapter_model.safetensors", ADAPTER),
    "card": _try_card,
    "manifest": _try_manifest,
    "collection": _try_state,
    "run": _try_run,
    "graph": _try_graph,
    "sketch": _try_sketch,
}


def _state() -> State:
    claim = Claim("README.md", "o/base", "finetune", None)
    sources = [Source("base", "/nowhere/base"), Source("b", "/nowhere/b", "/nowhere/base", (claim,))]
    return State(sources, {"base": KEY, "b": None}, 0.05, 1024, Gaps({"x.onnx": "not read"}, {".md": 1}))


def _graph() -> ModelGraph:
    edge = Edge("base", "b", {"kind": "fine-tune", "adjacency": 0.9})
    return ModelGraph("g", {"base": {"group": 0}, "b": {"group": 0}}, (edge,), {"c": "why"}, ("a note",))


_made: list[tempfile.TemporaryDirectory] = []


def _sketch() -> Path:
    """A folder with a sketch of a model; made once for each process."""
    if not _made:
        _made.append(tempfile.TemporaryDirectory())
        folder = Path(_made[0].name)
        save_file(WEIGHTS, folder / "model.safetensors")
        sketch_models([open_checkpoint("m", folder)], folder / "kept")
        for path in list((folder / "kept").glob("*.*")):
            path.rename(folder / f"sketch{path.suffix}")
    return Path(_made[0].name)


def _gguf() -> bytes:
    """A small file of llama.cpp, with facts of every type."""

    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    facts = [("general.architecture", 8, text(b"llama")), ("llama.attention.head_count", 4, struct.pack("<I", 2))]
    facts += [("tokens", 9, struct.pack("<IQ", 8, 2) + text(b"a") + text(b"bc")), ("rope", 6, struct.pack("<f", 1e4))]
    facts += [("types", 9, struct.pack("<IQ2i", 5, 2, 1, 1)), ("general.alignment", 4, struct.pack("<I", 32))]
    head = b"GGUF" + struct.pack("<IQQ", 3, 2, len(facts))
    head += b"".join(text(key.encode()) + struct.pack("<I", kind) + value for key, kind, value in facts)
    for name, kind, offset in ((b"blk.0.attn_q.weight", 0, 0), (b"blk.0.attn_v.weight", 8, 512)):
        head += text(name) + struct.pack("<IQQIQ", 2, 32, 4, kind, offset)
    return head + bytes(-len(head) % 32) + bytes(512 + 4 * 34)


def _packed() -> dict[str, torch.Tensor]:
    """Weights as several libraries pack them."""
    words, halves = torch.ones(4, 8, dtype=torch.int32), torch.ones(2, 8).half()
    state = json.dumps({"quant_type": "nf4", "blocksize": 64, "shape": [4, 32]}).encode()
    modules: dict[str, dict[str, torch.Tensor]] = {
        "gptq": {"qweight": words, "qzeros": words[:2, :1], "scales": halves, "g_idx": torch.arange(32).int() // 16},
        "ct": {"weight_packed": words, "weight_scale": torch.ones(4, 2), "weight_shape": torch.tensor([4, 64])},
        "mlx": {"weight": words[:, :4].view(torch.uint32), "scales": torch.ones(4, 1), "biases": torch.ones(4, 1)},
        "fp8": {"weight": torch.ones(4, 4).to(torch.float8_e4m3fn), "weight_scale_inv": torch.ones(1, 1)},
        "comfy": {"weight": torch.ones(4, 4).to(torch.float8_e4m3fn), "scale_weight": torch.ones(())},
        "mx": {"weight": words[:, :4].view(torch.uint32), "scales": torch.ones(4, 1).byte()},
        "groups": {"weight": torch.ones(4, 8, dtype=torch.int8), "weight_scale": torch.ones(4, 2)},
        "experts": {"up": torch.ones(2, 4, 4).to(torch.float8_e4m3fn), "up_scale_inv": torch.ones(2, 1, 1)},
    }
    modules["groups"]["weight_zero_point"] = torch.ones(4, 2, dtype=torch.int8)
    for name, stored in (("nf4", torch.zeros(64, 1).byte()), ("wide", torch.zeros(32, 1).bfloat16())):
        modules[name] = {"weight": stored, "weight.absmax": torch.ones(2), "weight.quant_map": torch.ones(16)}
        modules[name]["weight.quant_state.bitsandbytes__nf4"] = torch.frombuffer(bytearray(state), dtype=torch.uint8)
    return {f"{name}.{end}": part.clone() for name, parts in modules.items() for end, part in parts.items()}


def small_onnx() -> bytes:
    """A small graph: a matrix whose name is lost, one of a name, one in another file, a recurrent layer."""

    def part(number: int, value: bytes | int) -> bytes:
        if isinstance(value, int):
            return bytes([number << 3, value])
        length = bytes([len(value)]) if len(value) < 128 else bytes([len(value) & 127 | 128, len(value) >> 7])
        return bytes([number << 3 | 2]) + length + value

    def tensor(name: bytes, more: bytes, shape: tuple[int, ...] = (4, 4)) -> bytes:
        return part(5, b"".join(part(1, size) for size in shape) + part(2, 1) + part(8, name) + more)

    place = [(b"location", b"data"), (b"offset", b"64"), (b"length", b"64")]
    away = b"".join(part(13, part(1, key) + part(2, value)) for key, value in place) + part(14, 1)
    node = (
        part(1, b"x") + part(1, b"onnx::MatMul_3") + part(2, b"y") + part(3, b"/block.0/up/MatMul") + part(4, b"MatMul")
    )
    scopes = part(1, b"pkg.torch.onnx.name_scopes") + part(2, b"['', 'rnn', 'lstm']")
    recurrent = b"".join(part(1, name) for name in (b"x", b"W", b"R", b"B")) + part(4, b"LSTM") + part(9, scopes)
    weights = tensor(b"W", part(9, bytes(32)), (1, 4, 2)) + tensor(b"R", part(9, bytes(16)), (1, 4, 1))
    weights += tensor(b"B", part(9, bytes(32)), (1, 8))
    graph = (
        part(1, node)
        + part(1, recurrent)
        + weights
        + tensor(b"onnx::MatMul_3", part(9, bytes(64)))
        + tensor(b"block.0.down.weight", away)
    )
    return part(1, 8) + part(2, b"pytorch") + part(7, graph + tensor(b"block.1.up.weight", part(4, bytes(64))))


def _flax() -> bytes:
    """A small state of Flax with what an optimizer keeps, and an extension of another kind."""
    array = msgpack.ExtType(1, msgpack.packb(((4, 3), "float32", bytes(48))))
    tree = {"params": {"layers": {"0": {"kernel": array, "bias": None}}}, "opt": [array, 7, "x" * 300]}
    return msgpack.packb(tree | {"time": msgpack.Timestamp(1)})


def _hdf5(path: str) -> bytes:
    """A small file with arrays at places that a format names, in one piece, in several, and elsewhere."""
    buffer = BytesIO()
    with h5py.File(buffer, "w") as opened:
        for name in ("kernel", "bias"):
            opened[path.format(name if "dense" in path else int(name == "bias"))] = np.ones((3, 4), dtype=np.float32)
        opened["optimizer/vars/0"] = np.ones((2, 2))
        opened.create_dataset("pieces/kernel", data=np.ones((64, 4)), chunks=(8, 4), compression="gzip")
        opened["away"], opened.attrs["backend"] = h5py.ExternalLink("other.h5", "/x"), "torch"
    return buffer.getvalue()


def _keras() -> bytes:
    """A small archive of Keras."""
    buffer = BytesIO()
    with ZipFile(buffer, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("model.weights.h5", _hdf5("layers/linear/vars/{}"))
    return buffer.getvalue()


CARD = """---
base_model:
- o/base
- &a ../base
- *a
base_model_relation: finetune
tags: [x, "y", {z: w}]
text: |
  long
---
# A card
"""


def valid() -> dict[str, bytes]:
    """A sound file of each kind."""
    buffer = BytesIO()
    torch.save({"state_dict": WEIGHTS, "epoch": 3, "args": {"lr": 0.1}}, buffer)
    with ZipFile(BytesIO(buffer.getvalue())) as archive:
        pickled = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    old = BytesIO()
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    torch.save({"net": module, "ema": {"w": torch.ones(2, 2)}}, old, _use_new_zipfile_serialization=False)
    node = {"id": "a", "source": "models/a", "parent": None, "tree": 0, "task": "t", "rank": None, "recipe": {"x": [1]}}
    merge = {"id": "m", "source": "hf://o/m@main:unet", "parents": ["a", "b"], "coefficients": [0.5, 0.5]}
    adapter = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": False, "init_lora_weights": True}
    adapter |= {"rank_pattern": {r".*\.q_(proj|lin)": 3, "layers.0.m": 2}, "alpha_pattern": {"m": 1.5}}
    texts: dict[str, Any] = {
        "index": {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(WEIGHTS, "shard.safetensors")},
        "config": {"model_type": "vit", "transformers_weights": "model.safetensors", "_name_or_path": "o/base"},
        "adapter": adapter,
        "manifest": {
            "format": "mother-manifest/1",
            "name": "m",
            "nodes": [node, {"id": "b", "source": "b", "parent": "a", "kind": "fine-tune", "base": "a"}, merge],
        },
    }
    found = {kind: json.dumps(value).encode() for kind, value in texts.items()}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_state(folder, _state())
        _graph().write(folder / GRAPH)
        finish_result(folder, collection_facts(_state(), "title"), RESULTS)
        for kind, name in (("collection", STATE), ("run", RUN), ("graph", GRAPH)):
            found[kind] = (folder / name).read_bytes()
    found |= {"safetensors": save(WEIGHTS, {"format": "pt"}), "archive": buffer.getvalue(), "pickle": pickled}
    found |= {"legacy": old.getvalue(), "gguf": _gguf(), "onnx": small_onnx()}
    found["packed"] = save(_packed())
    found |= {"flax": _flax(), "hdf5": _hdf5("dense/dense/{}:0"), "keras": _keras()}
    return found | {"card": CARD.encode(), "sketch": (_sketch() / "sketch.json").read_bytes()}


NESTED: Any = []
for _ in range(700):
    NESTED = [NESTED]
VALUES: list[Any] = [None, True, False, 0, 1, -1, 7, 1 << 31, 1 << 63, -(1 << 63), 1 << 200, 10**4000, 0.5, -0.0]
VALUES += [float("nan"), float("inf"), 1e308, "", " ", "a", "..", "../x", "/etc/passwd", "hf://o/n", "hf://../n"]
VALUES += ["\0", "\ud800", "\u202e", "x" * 5000, "(a*)*b", "[", "a{999}", [], {}, [None], {"": None}, [[], {}], NESTED]
PIECES = [b"\0", b"\xff", b"\n", b'"', b"{", b"}", b"[", b"]", b":", b",", b"-", b"9" * 40, b"\\ud800", b"null", b"NaN"]
PIECES += [b"[" * 2000, b"&a ", b"*a", b"!!python/object ", b"? ", b"- ", b"  ", b"<<: *a", b"---\n", b"\xef\xbb\xbf"]
PIECES += [
    b"}(",
    b"2\x86",
    b")",
    b"\x85R",
    b"q\0",
    b"h\0",
    b"\x8b\xff\xff\xff\x7f",
    b"ctorch\nSize\n",
    b"u.",
    b"0",
    b"t",
]
PIECES += [b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x07", b"\xff\xff\xff\xff", b"(", b"."]


def _break_value(value: Any, moments: random.Random) -> Any:
    """JSON with one part of it changed."""
    if isinstance(value, dict | list) and value and moments.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key, copy = moments.choice(keys), value.copy()
        chance = moments.random()
        if chance < 0.1:
            del copy[key]
        elif chance < 0.2 and isinstance(copy, dict):
            copy[str(moments.choice([one for one in VALUES if isinstance(one, str)]))] = copy.pop(key)
        else:
            copy[key] = _break_value(value[key], moments)
        return copy
    return moments.choice(VALUES)


def _break_bytes(content: bytes, moments: random.Random) -> bytes:
    """Bytes with one place of them changed."""
    at, to = sorted((moments.randint(0, len(content)), moments.randint(0, len(content))))
    to = min(to, at + 40)
    chance = moments.randrange(6)
    if chance == 0:
        return content[:at] + bytes([moments.randrange(256)]) + content[at + 1 :]
    if chance == 1:
        return content[:at] + moments.choice(PIECES) + content[at:]
    if chance == 2:
        return content[:at] + content[to:]
    if chance == 3:
        return content[:at] + content[at:to] * moments.randint(2, 20) + content[to:]
    if chance == 4:
        return content[:at] if moments.random() < 0.3 else content[:at] + moments.choice(PIECES) + content[to:]
    return content[:at] + moments.randbytes(moments.randint(1, 8)) + content[to:]


def broken(kind: str, content: bytes, moments: random.Random) -> bytes:
    """A sound file of a kind, broken in one to five places."""
    head = b""
    if kind in ("safetensors", "packed"):  # what is broken is its header, mostly
        length = int.from_bytes(content[:8], "little")
        head, content, data = content[:8], content[8 : 8 + length], content[8 + length :]
    for _ in range(moments.randint(1, 5)):
        if (
            kind not in ("card", "archive", "pickle", "legacy", "gguf", "onnx", "flax", "hdf5", "keras")
            and moments.random() < 0.6
        ):
            try:
                content = json.dumps(_break_value(json.loads(content), moments)).encode()
                continue
            except (ValueError, RecursionError):
                pass
        content = _break_bytes(content, moments)
    if kind in ("safetensors", "packed"):
        head = head if moments.random() < 0.05 else len(content).to_bytes(8, "little")
        content = head + content + (data if moments.random() < 0.9 else _break_bytes(data, moments))
    return content


def attempt(kind: str, content: bytes) -> str:
    """Try one case; returns what is wrong with how it ended, or nothing."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            TRY[kind](Path(folder), content)
        except InputError as error:
            said = str(error)
            return "" if len(said) < 20_000 else f"its message has {len(said)} characters"
        except BaseException as error:  # noqa: BLE001  That is what is looked for.
            frame = traceback.extract_tb(error.__traceback__)[-1]
            return f"{type(error).__name__} in {Path(frame.filename).name}:{frame.lineno}"
    return ""


def _work(pipe: Connection) -> None:
    """Try cases as they come, within ROOM."""
    _sketch()
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, taken + ROOM))
    while True:
        kind, content = pipe.recv()
        started = time.perf_counter()
        wrong = attempt(kind, content)
        pipe.send((wrong, time.perf_counter() - started))


class Worker:
    """A child process that tries cases, and another one after it where it was killed."""

    def __init__(self) -> None:
        self.process: Any = None

    def attempt(self, kind: str, content: bytes) -> tuple[str, float]:
        """(what is wrong, seconds)."""
        if self.process is None:
            self.pipe, there = multiprocessing.Pipe()
            self.process = multiprocessing.get_context("fork").Process(target=_work, args=(there,), daemon=True)
            self.process.start()
            there.close()
        try:
            self.pipe.send((kind, content))
            if self.pipe.poll(SECONDS):
                return self.pipe.recv()
            wrong = f"more than {SECONDS:.0f} s"
        except (EOFError, OSError):
            wrong = "the process ended"
        self.process.kill()
        self.process.join()
        self.process = None
        return wrong, SECONDS


@dataclass
class Count:
    """Of a kind: cases, findings, and seconds of the slowest case."""

    cases: int = 0
    findings: int = 0
    slowest: float = 0.0


def main(args: Args) -> None:
    """Try cases of all kinds in turn; exits with 1 where there is a finding."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # a case may name a repository
    torch.set_num_threads(1)
    sound, counts, found = valid(), {kind: Count() for kind in TRY}, set()
    for kind, content in sound.items():
        if wrong := attempt(kind, content):
            sys.exit(f"the sound {kind} ends in {wrong}")
    worker, number, until = Worker(), 0, time.monotonic() + args.seconds
    while time.monotonic() < until:
        for kind, count in counts.items():
            content = broken(kind, sound[kind], random.Random(f"{args.seed} {kind} {number}"))
            wrong, seconds = worker.attempt(kind, content)
            count.cases, count.slowest = count.cases + 1, max(count.slowest, seconds)
            if wrong:
                count.findings += 1
                if (kind, wrong) not in found:  # of one fault one case
                    found.add((kind, wrong))
                    HOSTILE.mkdir(exist_ok=True)
                    path = HOSTILE / f"{kind}-{hashlib.sha256(content).hexdigest()[:12]}"
                    path.write_bytes(content)
                    print(f"{path.name}: {wrong}")
        number += 1
    rows = [[kind, one.cases, one.cases - one.findings, one.findings, one.slowest] for kind, one in counts.items()]
    print(format_table(("kind", "cases tried", "handled", "findings", "slowest case in seconds"), rows))
    if found:
        sys.exit(1)


if __name__ == "__main__":
    main(tyro.cli(Args))
