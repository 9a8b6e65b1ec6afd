"""`mini_hub`: 137 small models of six architectures whose trees have the shapes and kinds of edges of MDGBench's.

48 edges are fine-tunes, 32 quantizations in formats that are in use, 29 PEFT adapters that are stored as such, and 22
lead into merges. Roots, fine-tunes and adapters are trained as those of the zoo are (`dataset/zoo.py`).
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from dataset import packing, zoo
from dataset.forest import GrowError
from dataset.plan import MINI_HUB
from dataset.weights import Weights, read_weights, slerp
from dataset.zoo_plan import Family
from dataset.zoo_weights import is_weight, read_config, relative_change, write_model
from mother.graph.manifest import Manifest, Node

# Each tree: r a root; f, q, a and m a fine-tune, a quantized model, an adapter and a merge of the models numbered.
TREES = (
    ("llama", "r f0 f0 q2 a2 q2 f2 f2"),
    ("llama", "r r f0 f1 f2 q2 q2 a2 f3 q4 a8 m2+10"),
    ("t5", "r a0 q0"),
    ("gpt2", "r f0 a1 q1 m0+1 f1 q1"),
    ("bert", "r f0 q0 f0 q0 a0 m1+0 f3"),
    ("gpt2", "r f0 q0 a0 f0 f1 q1"),
    ("vit", "r f0 q0 a0 a1"),
    ("llama", "r r f0 f0 f1 a3 f3 q3 q3 a6 m4+6"),
    ("bert", "r a0 f0"),
    ("gpt2", "r f0 a1 f1 q1 q3"),
    ("llama", "r f0 f0 a0 a0 a0 q2 q2 a2 m5+4+3+2+1"),
    ("bert", "r f0 f0 f2 q2 q2 m1+2+3"),
    ("llama", "r f0 f0 a0 q0 f0 q0 a1 a1 m0+2 m0+2 a5 a5 f5 q5 f13 q15"),
    ("llama", "r f0 f0 a0 a0 f0 f0 q0 q0 f1 a1 q1 q1 m2+0 f6 q6"),
    ("vit", "r f0 f0"),
    ("clip", "r a0 a0 f0 f0 f0 q0 a5"),
    ("clip", "r f0 f0 a1 f1 q1"),
)
GGUF = ("gguf Q4_0", "gguf Q8_0", "gguf Q5_1", "gguf Q4_1", "gguf Q5_0")
ANY = ("nf4", "int8", "fp8")
GROUPED = ("gptq 4", "awq 4", "mlx 4", "gptq 8", "mlx 8")  # groups of 32: not of matrices 48 wide
FORMATS = {"llama": GGUF + GROUPED + ANY, "gpt2": GGUF, "bert": GGUF + GROUPED + ANY, "vit": ANY + GROUPED}
RANKS = (2, 4, 8)
HEADS = {"llama": (4, 2), "gpt2": (4, 4), "bert": (4, 4)}  # of queries and of keys
PACKERS: dict[str, Callable[..., Weights]] = {
    "gptq 4": partial(packing.gptq, bits=4),
    "gptq 8": partial(packing.gptq, bits=8),
    "awq 4": packing.awq,
    "mlx 4": lambda weight, inputs: packing.mlx(weight, 4),
    "mlx 8": lambda weight, inputs: packing.mlx(weight, 8),
    "nf4": lambda weight, inputs: packing.nf4(weight),
    "int8": lambda weight, inputs: packing.int8(weight),
    "fp8": lambda weight, inputs: packing.fp8(weight),
}


class _Hub(Family):
    """A family whose quantized models and adapters are stored as hubs hold them."""

    def __init__(self, name: str, seed: int) -> None:
        super().__init__(name, seed, 200)
        self.turn = 0

    def node(self, kind: str, parents: list[Node]) -> Node:
        """One model of a tree, by its letter."""
        number = len(self.nodes)
        if kind == "r":
            return self.root()
        if kind == "f":
            return self.tune(parents[0], number, float(self.rng.choice([0.02, 0.05, 0.1, 0.2])))
        if kind == "a":
            rank = int(self.rng.choice(RANKS))
            return self.adapter(parents[0], number, rank)
        if kind == "q":
            formats = FORMATS.get(self.architecture, ANY)
            self.turn += 1
            recipe = {"grower": "hub_models:quantize", "format": formats[self.turn % len(formats)]}
            return self._add(recipe | {"seed": self._seed()}, (parents[0],), kind="quantize", task=parents[0].task)
        shares = self.rng.dirichlet(np.full(len(parents), 6.0)).round(2).tolist()
        shares[-1] = round(1 - sum(shares[:-1]), 2)
        told = {"grower": "hub_models:merge", "method": "linear", "coefficients": shares}
        if len(parents) == 2 and self.turn % 2:
            told = {"grower": "hub_models:merge", "method": "slerp", "t": round(0.3 + 0.05 * (number % 9), 2)}
        return self._add(told, tuple(parents), kind="merge")

    def adapter(self, parent: Node, task: int, rank: int) -> Node:
        """A LoRA that is stored without its base."""
        recipe = self._training(task, 50, 0.02) | {"grower": "hub_models:adapter", "move": 0.05, "rank": rank}
        recipe |= {"targets": "attention"}
        return self._add(recipe, (parent,), kind="lora", task=recipe["task"], rank=rank, base=parent.source)


def plan_hub(folder: Path, seed: int = 0) -> Manifest:
    """All 137 models; `folder` is where the manifest will be written."""
    hub = _Hub(MINI_HUB, seed)
    for architecture, shape in TREES:
        hub.begin(architecture, "hub")
        tree: list[Node] = []
        number = hub.trees
        for token in shape.split():
            tree.append(hub.node(token[0], [tree[int(at)] for at in token[1:].split("+") if at]))
        hub.trees = number + 1
        at = len(hub.nodes) - len(tree)
        hub.nodes[at:] = [replace(node, tree=number) for node in hub.nodes[at:]]  # of two roots, too
    return Manifest(MINI_HUB, tuple(hub.nodes), folder, "A replica of MDGBench in small, really trained.")


def whole(folder: Path) -> Weights:
    """The weights of a model; of an adapter those of its base with what it adds."""
    said = folder / "adapter_config.json"
    if not said.exists():
        return read_weights(folder)
    config = json.loads(said.read_text())
    base = read_weights(folder.parent / config["base_model_name_or_path"])
    parts = load_file(folder / "adapter_model.safetensors")
    for name, up in parts.items():
        if name.endswith(".lora_B.weight"):
            module = name.removeprefix("base_model.model.").removesuffix(".lora_B.weight")
            update = up @ parts[name.replace("lora_B", "lora_A")]
            base[f"{module}.weight"] = base[f"{module}.weight"] + (update.T if config["fan_in_fan_out"] else update)
    return base


def adapter(recipe: dict[str, Any], parent: Path, out: Path) -> dict[str, Any]:
    """A trained LoRA as PEFT stores it. What training merged is taken apart again, exactly up to float32."""
    rank, turned = recipe["rank"], recipe["architecture"] == "gpt2"
    with tempfile.TemporaryDirectory() as scratch:
        measured = zoo.train(recipe, parent, Path(scratch))
        before, after = read_weights(parent), read_weights(Path(scratch))
    parts = {}
    for name, weight in after.items():
        if weight.ndim != 2 or weight.equal(before[name]):
            continue
        update = (weight.double() - before[name].double()).T if turned else weight.double() - before[name].double()
        u, s, v = torch.linalg.svd(update, full_matrices=False)
        module = f"base_model.model.{name.removesuffix('.weight')}"
        parts[f"{module}.lora_B.weight"] = (u[:, :rank] * s[:rank].sqrt()).float().contiguous()
        parts[f"{module}.lora_A.weight"] = (s[:rank, None].sqrt() * v[:rank]).float().contiguous()
    if not parts:
        raise GrowError("the adapter changed nothing.")
    save_file(parts, out / "adapter_model.safetensors")
    targets = sorted({name.split(".")[-3] for name in parts})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "base_model_name_or_path": parent.name}
    config |= {"target_modules": targets, "fan_in_fan_out": turned}
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return measured


def merge(recipe: dict[str, Any], parents: list[Path], out: Path) -> dict[str, Any]:
    """A linear merge or a slerp, in float64; adapters count with their bases."""
    models = [whole(folder) for folder in parents]
    first = next(folder for folder in parents if (folder / "config.json").exists())

    def merged(name: str) -> torch.Tensor:
        tensors = [model[name].double() for model in models]
        if recipe["method"] == "slerp":
            return slerp(*tensors, recipe["t"])
        return sum(share * tensor for share, tensor in zip(recipe["coefficients"], tensors))

    weights = {
        name: merged(name).float() if tensor.is_floating_point() else tensor for name, tensor in models[0].items()
    }
    write_model(weights, read_config(first), out)
    return {"relative_changes": [relative_change(model, weights) for model in models]}


def quantize(recipe: dict[str, Any], parent: Path, out: Path) -> dict[str, Any]:
    """A model in a packed format; its embeddings, heads and vectors stay as they are."""
    weights, kind = read_weights(parent), recipe["format"]
    if kind.startswith("gguf"):
        heads = HEADS[recipe["architecture"]]
        packing.write_gguf(
            weights, recipe["architecture"], kind.split()[1], heads, out / f"model-{kind.split()[1]}.gguf"
        )
        return {}
    rng = torch.Generator().manual_seed(recipe["seed"])
    stored: Weights = {}
    for name, weight in weights.items():
        if not (is_weight(name, weight) and name.endswith(".weight") and weight.ndim == 2):
            stored[name] = weight
            continue
        # Activations whose channels differ by factors, as those of language models do.
        channels = torch.exp(0.5 * torch.randn(weight.shape[1], generator=rng))
        inputs = torch.randn(256, weight.shape[1], generator=rng) * channels
        stem = name.removesuffix(".weight")
        stored |= {f"{stem}.{end}": part.contiguous() for end, part in PACKERS[kind](weight, inputs).items()}
    save_file(stored, out / "model.safetensors")
    config = read_config(parent)
    if kind.startswith("mlx"):
        config["quantization"] = {"group_size": packing.GROUP, "bits": int(kind.split()[1])}
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return {}
