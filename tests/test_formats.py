"""Every format from the test Hub as from disk, and by ranges: the bytes of what is asked for, and hardly more."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from conftest import save_model
from hub_server import HubServer, use
from safetensors.torch import save_file
from test_flax import packed as flax_bytes
from test_gguf import write as write_gguf
from test_keras import named, numbered

from dataset import packing
from mother.errors import CheckpointError
from mother.heritage.trace import trace
from mother.heritage.typed_graph import build_graph
from mother.io.checkpoint import Checkpoint
from mother.io.open import open_checkpoint
from mother.io.packed import PackedCheckpoint

WIDTH, LAYERS = 512, 4
NAME = "model.layers.{}.mlp.up_proj"


def weights() -> dict[str, torch.Tensor]:
    """Four square matrices."""
    rng = np.random.default_rng(0)
    draw = {NAME.format(k): rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) for k in range(LAYERS)}
    return {name: torch.from_numpy(values) for name, values in draw.items()}


def by_parts(pack: Callable[[torch.Tensor], dict[str, torch.Tensor]], config: str, folder: Path) -> None:
    """A safetensors file of weights in parts, as a library names them."""
    parts = {f"{name}.{end}": one for name, value in weights().items() for end, one in pack(value).items()}
    save_file({name: one.contiguous() for name, one in parts.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(config)


def plain() -> dict[str, torch.Tensor]:
    return {f"{name}.weight": value for name, value in weights().items()}


def torchscript(folder: Path) -> None:
    model = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS))
    holder = torch.nn.Module()
    holder.layers = model
    torch.jit.save(torch.jit.script(holder), folder / "model.pt")


def flax(folder: Path) -> None:
    layers = {str(k): {"up_proj": {"kernel": value.T.numpy()}} for k, value in enumerate(weights().values())}
    (folder / "flax_model.msgpack").write_bytes(flax_bytes({"params": {"layers": layers}}))


def onnx_file(folder: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the package onnx: pip install onnx")
    tensors = [onnx.numpy_helper.from_array(value.numpy(), name) for name, value in plain().items()]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], tensors)), folder / "model.onnx")


def of_gguf(kind: str, folder: Path) -> None:
    which = gguf.GGMLQuantizationType[kind]
    stored = {
        f"blk.{k}.ffn_up.weight": (gguf.quants.quantize(value.numpy(), which), which)
        for k, value in enumerate(weights().values())
    }
    write_gguf(folder / "model.gguf", "llama", stored)


def keras(name: str, folder: Path) -> None:
    (named if name == "tf_model.h5" else numbered)(folder / name, [value.numpy() for value in weights().values()])


def lora(folder: Path) -> None:
    """An adapter alone of so high a rank that its factors are large."""
    config = '{"peft_type": "LORA", "r": 256, "lora_alpha": 256}'
    factors = {}
    for name, value in weights().items():
        factors[f"base_model.model.{name}.lora_A.weight"] = value[:256].contiguous()
        factors[f"base_model.model.{name}.lora_B.weight"] = value[:, :256].contiguous()
    save_file(factors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(config)


def legacy(folder: Path) -> None:
    torch.save(plain(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


INPUTS = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(7))
MLX = '{"quantization": {"group_size": 32, "bits": 4}}'
FORMATS: dict[str, Callable[[Path], object]] = {
    "safetensors": lambda folder: save_model(folder, plain()),
    "zip pickle": lambda folder: torch.save(plain(), folder / "pytorch_model.bin"),
    "legacy pickle": legacy,
    "TorchScript": torchscript,
    "GGUF F16": partial(of_gguf, "F16"),
    "GGUF Q8_0": partial(of_gguf, "Q8_0"),
    "GGUF Q4_0": partial(of_gguf, "Q4_0"),
    "ONNX": onnx_file,
    "Flax": flax,
    "Keras archive": partial(keras, "model.keras"),
    "Keras .h5": partial(keras, "tf_model.h5"),
    "LoRA": lora,
    "GPTQ": partial(by_parts, partial(packing.gptq, inputs=INPUTS), "{}"),
    "AWQ": partial(by_parts, partial(packing.awq, inputs=INPUTS), "{}"),
    "MLX": partial(by_parts, packing.mlx, MLX),
    "nf4": partial(by_parts, packing.nf4, "{}"),
    "int8": partial(by_parts, packing.int8, "{}"),
    "FP8": partial(by_parts, packing.fp8, "{}"),
    "FP8 of ComfyUI": partial(by_parts, packing.comfy_fp8, "{}"),
    "FP8 cast": partial(by_parts, lambda weight: {"weight": weight.to(torch.float8_e4m3fn)}, "{}"),
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    (tmp_path / "hub" / "org" / "model").mkdir(parents=True)
    with HubServer(tmp_path / "hub") as server:
        use(server, monkeypatch, tmp_path)
        yield server


def needed(checkpoint: Checkpoint, name: str) -> int:
    """The bytes of the parts of a tensor as they are stored."""
    if isinstance(checkpoint, PackedCheckpoint) and name in checkpoint.packed:
        infos = [checkpoint.raw.tensors[part][1] for part in checkpoint.packed[name].parts.values()]
    else:
        infos = [checkpoint.tensors[name][1]]
    return sum(info.end - info.start for info in infos)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("name", FORMATS)
def test_from_the_hub_as_from_disk_and_by_ranges(name: str, hub: HubServer) -> None:
    folder = hub.folder / "org" / "model"
    FORMATS[name](folder)
    local = open_checkpoint("m", folder)
    checkpoint = open_checkpoint("m", "hf://org/model")
    assert checkpoint.tensors.keys() == local.tensors.keys()
    (wanted,) = [one for one in local.tensors if "2." in one and one.endswith("weight") and "norm" not in one]
    hub.requests.clear()
    assert torch.equal(checkpoint.read_tensor(wanted), local.read_tensor(wanted))
    sent = sum(request.bytes_sent for request in hub.requests)
    if name == "LoRA":  # both factors
        least = 4 * 2 * 256 * WIDTH
    else:
        least = needed(local, wanted)
    assert least <= sent <= 1.05 * least


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "a.ckpt", "a.gguf", "model.onnx", "a.h5", "flax_model.msgpack"]
)
def test_a_pointer_of_git_lfs_is_told(name: str, tmp_path: Path) -> None:
    """What a clone without Git LFS has in place of each large file."""
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"
    (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=f"pointer of Git LFS.*{name}.*Run git lfs pull"):
        open_checkpoint("m", tmp_path)


def test_the_same_weights_in_other_formats_are_copies(tmp_path: Path) -> None:
    """A family of two in safetensors, Keras and Flax: two nodes with aliases, and one edge."""
    rng = np.random.default_rng(0)
    root = [rng.standard_normal((64, 128)).astype(np.float32) for _ in range(LAYERS)]
    tuned = [kernel + np.float32(0.05) * rng.standard_normal(kernel.shape).astype(np.float32) for kernel in root]
    for name in ("root-keras", "root-flax", "tuned-tf"):
        (tmp_path / name).mkdir()
    for name, kernels in (("root", root), ("tuned", tuned)):
        stem = "encoder.layer.{}.intermediate.dense.weight"
        whole = {stem.format(k): torch.from_numpy(kernel.T.copy()) for k, kernel in enumerate(kernels)}
        save_model(tmp_path / name, whole)
    numbered(tmp_path / "root-keras" / "model.keras", root)
    named(tmp_path / "tuned-tf" / "tf_model.h5", tuned)
    layers = {str(k): {"intermediate": {"dense": {"kernel": kernel}}} for k, kernel in enumerate(root)}
    (tmp_path / "root-flax" / "flax_model.msgpack").write_bytes(flax_bytes({"params": {"encoder": {"layer": layers}}}))
    opened = [open_checkpoint(folder.name, folder) for folder in sorted(tmp_path.iterdir())]
    graph = build_graph("test", trace(opened, torch.device("cpu")))
    assert {frozenset({name, *facts.get("aliases", ())}) for name, facts in graph.nodes.items()} == {
        frozenset({"root", "root-keras", "root-flax"}),
        frozenset({"tuned", "tuned-tf"}),
    }
    (edge,) = graph.edges
    assert edge.attributes["kind"] == "fine-tune"
