"""GGUF files: the same weights under the same names as what they were made from; hostile headers refused."""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_here, save_model
from hub_server import HubServer, use
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from mother.cli.commands import main
from mother.collection.find import search, with_claims
from mother.errors import CheckpointError
from mother.io.gguf import read_header
from mother.io.open import open_checkpoint

gguf = pytest.importorskip("gguf", reason="needs the package gguf: pip install gguf")
TYPES = gguf.GGMLQuantizationType
MADE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16", "F16", "F32")  # by the package; others only llama.cpp makes
READ = sorted(one.name for one in gguf.quants._type_traits)
HEADS, GROUPS, WIDTH = 8, 4, 64


def write(
    file: Path,
    family: str,
    tensors: dict[str, tuple[np.ndarray, gguf.GGMLQuantizationType]],
    facts: Callable[[gguf.GGUFWriter], object] = lambda writer: None,
) -> Path:
    """A file as the converter of llama.cpp writes it, by the package's own writer."""
    writer = gguf.GGUFWriter(file, family)
    writer.add_block_count(2)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_token_list([f"token {k}" for k in range(500)])
    facts(writer)
    for name, (values, kind) in tensors.items():
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def permuted(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows from halves to neighbours, as the converter turns queries and keys of Llama."""
    return values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def model(kind: str) -> torch.nn.Module:
    """A small model of a family, whose vectors are no constants."""
    torch.manual_seed(0)
    common = {"num_hidden_layers": 2, "hidden_size": WIDTH, "intermediate_size": 96, "vocab_size": 160}
    common |= {"num_attention_heads": HEADS, "max_position_embeddings": 32}
    made = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**common, num_key_value_heads=GROUPS)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**common, num_key_value_heads=GROUPS)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=WIDTH, n_head=HEADS, vocab_size=160)),
        "bert": lambda: BertModel(BertConfig(**common), add_pooling_layer=False),
    }[kind]()
    for parameter in made.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return made


def converted(
    weights: dict[str, torch.Tensor],
    family: str,
    kind: str,
    file: Path,
    facts: Callable[[gguf.GGUFWriter], object] = lambda writer: None,
) -> dict[str, torch.Tensor]:
    """Write a model as GGUF, matrices of a type; returns what should be read, under the names of transformers."""
    known = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    names, tensors, expected = gguf.get_tensor_name_map(known, 2), {}, {}
    for name, value in weights.items():
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        turned = family == "gpt2" and value.ndim == 2 and ".h." in name  # Conv1D
        values = (value.T if turned else value).float().contiguous().numpy()
        heads = {"q": HEADS, "k": GROUPS}.get(name.split(".")[-2][0]) if "_proj" in name and family == "llama" else None
        heads = heads if name.split(".")[-2] in ("q_proj", "k_proj") else None
        values = permuted(values, heads) if heads else values
        which = TYPES[kind] if values.ndim == 2 and values.shape[1] % 32 == 0 else TYPES.F32
        packed = gguf.quants.quantize(values, which)
        tensors[stored] = (packed, which)
        back = np.array(gguf.quants.dequantize(packed, which), dtype=np.float32).reshape(values.shape)
        if heads:
            back = back.reshape(heads, -1, 2, *back.shape[1:]).swapaxes(1, 2).reshape(back.shape)
        expected[name] = torch.from_numpy(back)
    write(file, family, tensors, facts)
    return expected


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_transformers_reads_the_same(family: str, tmp_path: Path) -> None:
    """Its own reader of GGUF, which is another one, gives these weights these names."""
    made = model(family)

    def facts(writer: gguf.GGUFWriter) -> None:
        writer.add_embedding_length(WIDTH)
        writer.add_feed_forward_length(96)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_vocab_size(160)
        writer.add_context_length(32)
        writer.add_tokenizer_model("gpt2")

    weights = {name: value.detach() for name, value in made.state_dict().items()}
    converted(weights, family, "F32", tmp_path / "model.gguf", facts)
    expected = type(made).from_pretrained(tmp_path, gguf_file="model.gguf").state_dict()
    found = read(open_checkpoint("m", tmp_path))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def read(checkpoint) -> dict[str, torch.Tensor]:
    return checkpoint.read_tensors(list(checkpoint.tensors))


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "bert"])
def test_names_and_rows_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    weights = {name: value.detach() for name, value in model(family).state_dict().items()}
    if family in ("gpt2", "bert"):
        weights.pop("lm_head.weight", None)  # tied
    converted(weights, family, "F32", tmp_path / "model.gguf")
    found = read(open_checkpoint("m", tmp_path))
    assert found.keys() == weights.keys()
    for name, value in found.items():
        turned = family == "gpt2" and value.ndim == 2 and ".h." in name
        assert torch.equal(value.T if turned else value, weights[name]), name


@pytest.mark.parametrize("kind", MADE)
def test_what_the_package_quantizes_is_undone(kind: str, tmp_path: Path) -> None:
    weights = {name: value.detach() for name, value in model("llama").state_dict().items()}
    expected = converted(weights, "llama", kind, tmp_path / "model.gguf")
    checkpoint = open_checkpoint("m", tmp_path / "model.gguf")
    for name, value in read(checkpoint).items():
        assert torch.equal(value, expected[name]), name
    storage = checkpoint.storage.get("model.layers.0.self_attn.q_proj.weight")
    assert str(storage) == ("None" if kind in ("F32", "F16", "BF16") else f"gguf {kind}")


@pytest.mark.parametrize("kind", READ)
def test_every_type_that_the_package_undoes_is_read(kind: str, tmp_path: Path) -> None:
    block, width = gguf.GGML_QUANT_SIZES[TYPES[kind]]
    stored = np.random.default_rng(1).integers(0, 0x38, (6, 2 * width)).astype(np.uint8)  # all scales are finite
    write(tmp_path / "model.gguf", "qwen2", {"blk.0.attn_q.weight": (stored, TYPES[kind])})
    checkpoint = open_checkpoint("m", tmp_path / "model.gguf")
    (name,) = checkpoint.tensors
    expected = np.asarray(gguf.quants.dequantize(stored, TYPES[kind]), dtype=np.float32)
    assert name == "model.layers.0.self_attn.q_proj.weight" and expected.shape == (6, 2 * block)
    assert np.array_equal(checkpoint.read_tensor(name).numpy(), expected)


def test_experts_heads_of_each_block_and_unknown_names(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((4, 8, 32)).astype(np.float32)
    queries = np.random.default_rng(1).standard_normal((16, 32)).astype(np.float32)
    tensors = {"blk.1.ffn_up_exps.weight": values, "rope_freqs.weight": values[0, 0], "blk.1.attn_q.weight": queries}
    tensors = {name: (value, TYPES.F32) for name, value in tensors.items()}
    write(tmp_path / "a.gguf", "deci", tensors | {"own.weight": (queries, TYPES.F32)})
    found = read(open_checkpoint("m", tmp_path / "a.gguf"))
    back = permuted(queries, HEADS)
    back = queries.reshape(HEADS, -1, 2, 32).swapaxes(1, 2).reshape(16, 32)
    assert np.array_equal(found["model.layers.1.self_attn.q_proj.weight"].numpy(), back)
    assert {"rope_freqs.weight", "own.weight"} <= found.keys()
    write(tmp_path / "b.gguf", "llama", {"blk.1.ffn_up_exps.weight": (values, TYPES.F32)})
    checkpoint = open_checkpoint("m", tmp_path / "b.gguf")
    assert list(checkpoint.tensors) == ["model.layers.1.mlp.experts.up_proj"]
    write(tmp_path / "c.gguf", "a family of its own", {"blk.1.attn_q.weight": (queries, TYPES.F32)})
    assert "model.layers.1.self_attn.q_proj.weight" in open_checkpoint("m", tmp_path / "c.gguf").tensors


def test_norms_of_gemma(tmp_path: Path) -> None:
    values = np.array([0.5, -0.25, 0.125], dtype=np.float32)
    tensors = {name: (values + 1, TYPES.F32) for name in ("blk.0.attn_norm.weight", "output_norm.weight")}
    write(tmp_path / "model.gguf", "gemma2", tensors)
    found = read(open_checkpoint("m", tmp_path))
    assert found.keys() == {"model.layers.0.input_layernorm.weight", "model.norm.weight"}
    assert all(np.array_equal(value.numpy(), values) for value in found.values())


def test_a_model_in_several_files(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((2, 64, 64)).astype(np.float32)
    for number in range(2):
        tensor = {f"blk.{number}.attn_v.weight": (values[number], TYPES.F32)}
        file = tmp_path / f"model-{number + 1:05}-of-00002.gguf"
        write(file, "llama", tensor, lambda writer: writer.add_uint16("split.count", 2))
    (source,) = search([str(tmp_path)]).sources
    assert len(open_checkpoint("m", source.location).tensors) == 2
    assert len(open_checkpoint("m", tmp_path).tensors) == 2
    (tmp_path / "model-00002-of-00002.gguf").unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        open_checkpoint("m", tmp_path)
    (tmp_path / "model-00001-of-00002.gguf").rename(tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match="one of 2 files, and its name does not say which"):
        open_checkpoint("m", tmp_path)


def test_an_adapter_is_named(tmp_path: Path) -> None:
    tensor = {"blk.0.attn_v.weight.lora_a": (np.zeros((4, 32), dtype=np.float32), TYPES.F32)}
    write(tmp_path / "a.gguf", "llama", tensor, lambda writer: writer.add_string("general.type", "adapter"))
    with pytest.raises(CheckpointError, match="an adapter in the form of llama.cpp, which is not read"):
        open_checkpoint("m", tmp_path)


@pytest.mark.slow
def test_a_quantized_file_is_a_child_of_what_it_was_made_from(tmp_path: Path) -> None:
    weights = {name: value.detach() for name, value in model("llama").state_dict().items()}
    save_model(tmp_path / "models" / "base", weights)
    for kind in ("Q8_0", "F16"):
        (tmp_path / "models" / kind).mkdir()
        converted(weights, "llama", kind, tmp_path / "models" / kind / f"model-{kind}.gguf")
    code, out, err = run_here("mother", ["recover", tmp_path / "models", "--out", tmp_path / "out"], main)
    assert code == 0, err
    assert "\nbase\n" in out and "Q8_0  (quantize, bits 8" in out and "F16  (cast, dtype float16" in out


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    (tmp_path / "hub" / "org" / "packed").mkdir(parents=True)
    with HubServer(tmp_path / "hub") as server:
        use(server, monkeypatch, tmp_path)
        yield server


def test_from_the_hub_by_ranges(hub: HubServer) -> None:
    rng = np.random.default_rng(0)
    tensors = {f"blk.{k}.attn_{part}.weight": rng.standard_normal((1024, 1024)) for k in range(2) for part in "qkvp"}
    packed = {name: gguf.quants.quantize(values.astype(np.float32), TYPES.Q8_0) for name, values in tensors.items()}
    folder = hub.folder / "org" / "packed"
    write(folder / "m.Q8_0.gguf", "llama", {name: (values, TYPES.Q8_0) for name, values in packed.items()})
    (folder / "m.Q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="2 weight files"):
        open_checkpoint("m", "hf://org/packed")
    hub.requests.clear()
    checkpoint = open_checkpoint("m", "hf://org/packed:m.Q8_0.gguf")
    wanted = [name for name in checkpoint.tensors if "layers.1" in name and "v_proj" in name]
    wanted += [name for name in checkpoint.tensors if "layers.1" in name and "_proj" in name and name not in wanted]
    assert len(wanted) == 3
    local = open_checkpoint("m", folder / "m.Q8_0.gguf")
    for name, value in checkpoint.read_tensors(wanted).items():
        assert torch.equal(value, local.read_tensor(name))
    needed = sum(packed[f"blk.1.attn_{part}.weight"].nbytes for part in "qkv")
    sent = sum(request.bytes_sent for request in hub.requests if request.file.endswith(".gguf"))
    assert needed < sent <= 1.05 * needed
    hub.requests.clear()
    open_checkpoint("m", "hf://org/packed:m.Q8_0.gguf")
    assert [request.path for request in hub.requests] == ["/api/models/org/packed/revision/main"]


def test_each_file_of_a_repository_is_a_model(hub: HubServer) -> None:
    values = np.random.default_rng(0).standard_normal((2, 64, 64)).astype(np.float32)
    folder = hub.folder / "org" / "packed"
    for kind in ("Q8_0", "F16"):
        packed = gguf.quants.quantize(values[0], TYPES[kind])
        write(folder / f"m.{kind}.gguf", "llama", {"blk.0.attn_v.weight": (packed, TYPES[kind])})
    for number in range(2):
        tensor = {f"blk.{number}.attn_v.weight": (values[number], TYPES.F32)}
        file = folder / f"m.F32-{number + 1:05}-of-00002.gguf"
        write(file, "llama", tensor, lambda writer: writer.add_uint16("split.count", 2))
    (folder / "README.md").write_text("---\nbase_model: org/base\n---\n")
    hub.requests.clear()
    found = with_claims(search(["hf://org/packed", "hf://org/packed:m.Q8_0.gguf"]))
    assert sum(request.path.startswith("/api/") for request in hub.requests) == 2  # one for each argument
    models = {source.id: source for source in found.sources}
    assert sorted(models) == [f"org/packed/m.{end}" for end in ("F16", "F32-00001-of-00002", "Q8_0")]
    assert all(source.claims[0].parent == "org/base" for source in models.values())
    assert not [path for path in found.gaps.not_read if "F16" in path or "00001" in path]
    opened = {name: open_checkpoint(*source.opened_by()) for name, source in models.items()}
    assert len(opened["org/packed/m.F32-00001-of-00002"].tensors) == 2
    for name, checkpoint in opened.items():
        (local,) = [open_checkpoint("m", path) for path in folder.glob("*.gguf") if path.stem == name.split("/")[-1]]
        assert checkpoint.tensors and all(map(torch.equal, read(checkpoint).values(), read(local).values()))


def test_one_file_of_a_repository_has_its_card(hub: HubServer) -> None:
    folder = hub.folder / "org" / "packed"
    for kind in ("a", "b"):
        values = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
        write(folder / f"{kind}.gguf", "llama", {"blk.0.attn_v.weight": (values, TYPES.F32)})
    (folder / "README.md").write_text("---\nbase_model: org/base\nlicense: mit\n---\n")
    found = with_claims(search(["hf://org/packed:a.gguf"]))
    (source,) = found.sources
    assert (source.location, source.licence) == ("hf://org/packed:a.gguf", "mit") and not found.gaps.not_read
    assert [claim.parent for claim in source.claims] == ["org/base"]


def test_weights_of_other_formats_are_not_taken_apart(hub: HubServer) -> None:
    for name in ("a.gguf", "b.gguf", "c.safetensors"):
        (hub.folder / "org" / "packed" / name).write_bytes(b"GGUF")
    assert [source.location for source in with_claims(search(["hf://org/packed"])).sources] == ["hf://org/packed"]


def text(value: bytes) -> bytes:
    return len(value).to_bytes(8, "little") + value


def header(tensors: list[bytes] = (), facts: list[bytes] = (), version: int = 3, **counts: int) -> bytes:
    count = {"n_tensors": len(tensors), "n_facts": len(facts)} | counts
    begin = b"GGUF" + struct.pack("<IQQ", version, count["n_tensors"], count["n_facts"])
    return begin + b"".join(facts) + b"".join(tensors)


def tensor(name: bytes = b"w", shape: tuple[int, ...] = (2, 2), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


DATA = bytes(64)
LISTS = b"".join(struct.pack("<IQ", 9, 1) for _ in range(40))
ATTACKS = {
    "empty": (b"GGUF", "truncated"),
    "version 1": (header(version=1) + DATA, "version 1"),
    "big-endian": (header(version=3 << 24) + DATA, "big-endian"),
    "tensors without end": (header(n_tensors=1 << 63) + DATA, "not usable"),
    "facts without end": (header(n_facts=1 << 63) + DATA, "twice"),
    "a text without end": (header(n_facts=1)[:24] + struct.pack("<Q", 1 << 62) + DATA, "truncated"),
    "a list without end": (header([], [text(b"k") + struct.pack("<IIQ", 9, 4, 1 << 61)]) + DATA, "truncated"),
    "texts without end": (header([], [text(b"k") + struct.pack("<IIQ", 9, 8, 1 << 61)]) + bytes(1 << 17), "truncated"),
    "lists in lists": (header([], [text(b"k") + struct.pack("<I", 9) + LISTS]) + DATA, "nested too deeply"),
    "unknown type of a fact": (header([], [text(b"k") + struct.pack("<I", 77)]) + DATA, "unknown type 77"),
    "key twice": (header([], 2 * [text(b"k") + struct.pack("<IB", 0, 1)]) + DATA, "twice"),
    "name twice": (header([tensor(), tensor(offset=32)]) + DATA, "twice"),
    "name not printable": (header([tensor(b"a\x1b[2J")]) + DATA, "not usable"),
    "name too long": (header([tensor(b"a" * 5000)]) + DATA, "not usable"),
    "dimensions": (header([tensor(shape=(1,) * 9)]) + DATA, "9 dimensions"),
    "shape overflow": (header([tensor(shape=(1 << 62, 1 << 62))]) + DATA, "has the shape"),
    "shape beside a zero": (header([tensor(shape=(0, 1 << 62, 1 << 62))]) + DATA, "has the shape"),
    "half a block": (header([tensor(shape=(33, 2), kind=2)]) + DATA, "whole blocks of 32"),
    "unknown type": (header([tensor(kind=99)]) + DATA, "unknown type 99"),
    "outside": (header([tensor(offset=1 << 40)]) + DATA, "truncated"),
    "cut off": (header([tensor(shape=(4, 8))]) + DATA, "truncated"),
    "not aligned": (header([tensor(offset=4)]) + DATA, "damaged"),
    "overlap": (header([tensor(), tensor(b"v")]) + DATA, "one before it"),
    "alignment 0": (header([tensor()], [text(b"general.alignment") + struct.pack("<II", 4, 0)]) + DATA, "alignment"),
    "alignment a text": (header([], [text(b"general.alignment") + struct.pack("<I", 8) + text(b"x")]) + DATA, "alignm"),
    "alignment huge": (header([], [text(b"general.alignment") + struct.pack("<II", 4, 1 << 31)]) + DATA, "alignment"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_hostile_headers_say_why(name: str, tmp_path: Path) -> None:
    content, words = ATTACKS[name]
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as error:
        open_checkpoint("victim", tmp_path / "model.gguf")
    assert len(str(error.value)) < 1000 and str(error.value).isprintable()


@pytest.mark.parametrize(("heads", "words"), [(3, "3 heads"), (-4, "-4 heads"), (1 << 30, "heads")])
def test_heads_that_do_not_fit(heads: int, words: str, tmp_path: Path) -> None:
    facts = [text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")]
    facts += [text(b"llama.attention.head_count") + struct.pack("<Iq", 11, heads)]
    content = header([tensor(b"blk.0.attn_q.weight", (4, 4))], facts)
    (tmp_path / "model.gguf").write_bytes(content + bytes(200))
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint("m", tmp_path / "model.gguf")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_files_never_raise_anything_else(data: st.DataObject) -> None:
    facts = [
        text(b"general.alignment") + struct.pack("<II", 4, 32),
        text(b"t") + struct.pack("<IIQ", 9, 8, 1) + text(b"a"),
    ]
    content = bytearray(header([tensor(), tensor(b"v", (32, 2), 2, 32)], facts) + bytes(128))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(4, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(4, len(content)))])
    try:
        _, rows = read_header(lambda start, end: content[start:end], len(content))
    except ValueError:
        return
    assert all(0 <= start <= end <= len(content) for _, _, _, start, end in rows)


def test_bytes_that_are_no_numbers(tmp_path: Path) -> None:
    """A scale that is NaN makes a tensor that is refused by its name; a type that nobody undoes is named."""
    stored = np.full((2, 34), 0xFF, dtype=np.uint8)
    write(tmp_path / "a.gguf", "llama", {"blk.0.attn_v.weight": (stored, TYPES.Q8_0)})
    with pytest.raises(CheckpointError, match="v_proj.weight holds NaN"):
        read(open_checkpoint("m", tmp_path / "a.gguf"))
    write(tmp_path / "b.gguf", "llama", {"blk.0.attn_v.weight": (np.zeros((2, 40), dtype=np.uint8), TYPES.Q8_1)})
    with pytest.raises(CheckpointError, match="stored as Q8_1"):
        read(open_checkpoint("m", tmp_path / "b.gguf"))


def test_its_content_decides(tmp_path: Path) -> None:
    values = np.ones((2, 32), dtype=np.float32)
    write(tmp_path / "weights.bin", "llama", {"blk.0.attn_v.weight": (values, TYPES.F32)})
    assert len(open_checkpoint("m", tmp_path / "weights.bin").tensors) == 1
    save_file({"w": torch.ones(2, 2)}, tmp_path / "other.gguf")
    assert list(open_checkpoint("m", tmp_path / "other.gguf").tensors) == ["w"]
