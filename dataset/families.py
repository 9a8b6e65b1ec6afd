"""Miniatures of two families in the wild: a Llama (chat, code -> instruct, python) and a UNet (continued training).

The trees are those of the paper's examples. Growers take (recipe, parent's folder or None, output
folder), as in `vit.py`; the figure recorded as accuracy is the one that training improves.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from transformers import LlamaConfig, LlamaForCausalLM

from dataset.forest import GrowError
from dataset.tasks import scenes
from dataset.vit import seed, train_step, warm_up_cosine

LLAMA = {
    "vocab_size": 128,  # ASCII
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,  # as in the 7B models, so that key and value are square
    "intermediate_size": 256,
    "max_position_embeddings": 64,
    "initializer_range": 0.06,
}
UNET = {
    "sample_size": 12,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (32, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}

PEOPLE, VERBS = ("anna", "boris", "chen", "dara", "emil"), ("sees", "finds", "likes", "paints", "moves")
THINGS, COLOURS = ("ball", "tree", "house", "boat", "cup"), ("red", "green", "old", "tiny", "blue")
NAMES = ("x", "y", "n", "total", "item")


def write_text(domain: str, length: int, rng: np.random.Generator) -> str:
    """At least `length` characters of one domain: prose, chat, code, python or instruct."""

    def pick(words: tuple[str, ...]) -> str:
        return words[rng.integers(len(words))]

    def sentence() -> str:
        return f"{pick(PEOPLE)} {pick(VERBS)} the {pick(COLOURS)} {pick(THINGS)}"

    def expression() -> str:
        return f"{pick(NAMES)} {pick(('+', '-', '*'))} {rng.integers(10)}"

    def python() -> str:
        return f"def {pick(VERBS)}({pick(NAMES)}):\n    {pick(NAMES)} = {expression()}\n    return {expression()}\n"

    pieces, size = [], 0
    while size < length:
        if domain == "prose":
            piece = sentence() + ". "
        elif domain == "chat":
            thing = pick(THINGS)
            piece = f"user: who {pick(VERBS)} the {thing}? bot: {pick(PEOPLE)} {pick(VERBS)} the {thing}!\n"
        elif domain == "code":
            piece = f"if ({pick(NAMES)} < {rng.integers(10)}) {{ {pick(NAMES)} = {expression()}; }}\n"
        elif domain == "python":
            piece = python()
        else:
            piece = f"[task] write {pick(VERBS)} [code] {{ {pick(NAMES)} = {expression()}; }} [end]\n"
        pieces.append(piece)
        size += len(piece)
    return "".join(pieces)


def _windows(domain: str, count: int, rng: np.random.Generator) -> torch.Tensor:
    """`count` random windows of 48 characters, int64."""
    text = torch.tensor(list(write_text(domain, 20_000, rng).encode()))
    starts = torch.from_numpy(rng.integers(0, len(text) - 48, count))
    return text[starts[:, None] + torch.arange(48)]


def train_on_text(
    model: nn.Module, recipe: dict[str, Any], rng: np.random.Generator, prepare=warm_up_cosine
) -> dict[str, Any]:
    """Train what requires gradients on text of `recipe["domain"]`; accuracy is that of the next character.

    `prepare(parameters, recipe, steps)` gives optimizer and schedule. GrowError if accuracy does not rise by 0.05,
    unless the recipe says "exempt".
    """
    held_out = _windows(recipe["domain"], 64, np.random.default_rng(recipe["seed"] + 1))

    def logits(windows: torch.Tensor) -> torch.Tensor:
        return model(input_ids=windows[:, :-1]).logits.flatten(0, 1)

    @torch.no_grad()
    def accuracy() -> float:
        return float((logits(held_out).argmax(1) == held_out[:, 1:].flatten()).float().mean())

    before = accuracy()
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer, schedule = prepare(parameters, recipe, recipe["steps"])
    for windows in _windows(recipe["domain"], recipe["steps"] * 16, rng).split(16):
        train_step(cross_entropy(logits(windows), windows[:, 1:].flatten()), parameters, optimizer, schedule)
    after = accuracy()
    if after < before + 0.05 and not recipe.get("exempt"):
        raise GrowError(f"training on {recipe['domain']} went from {before:.3f} to {after:.3f}. Raise its steps.")
    return {"steps": recipe["steps"], "accuracy_before": before, "accuracy_after": after}


def load_llama(parent: Path | None) -> LlamaForCausalLM:
    """The parent in float32, or an untrained model."""
    if parent is None:
        return LlamaForCausalLM(LlamaConfig(**LLAMA, bos_token_id=0, eos_token_id=0))
    return LlamaForCausalLM.from_pretrained(parent, dtype=torch.float32)


def train_llama(recipe: dict[str, Any], parent: Path | None, out: Path) -> dict[str, Any]:
    """Train (or fine-tune) a small Llama on a domain; saved in bfloat16 and in shards, as the real ones are."""
    rng = seed(recipe)
    model = load_llama(parent)
    measured = train_on_text(model, recipe, rng)
    model.to(torch.bfloat16).save_pretrained(out, max_shard_size="400KB")
    return measured


def train_unet(recipe: dict[str, Any], parent: Path | None, out: Path) -> dict[str, Any]:
    """Train a small denoising UNet, or go on training it; saved like the `unet` of a diffusers pipeline.

    Variance-preserving diffusion with a cosine schedule, predicting the noise, conditioned on hue and
    tone. Recorded is the share of the noise's variance that is explained.
    """
    rng = seed(recipe)
    model = UNet2DConditionModel(**UNET) if parent is None else UNet2DConditionModel.from_pretrained(parent)
    codes = torch.randn(2, 8, UNET["cross_attention_dim"], generator=torch.Generator().manual_seed(7))

    def batch(n: int, rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
        drawn = scenes(n, rng)
        images = torch.from_numpy(drawn.images[:, :, ::2, ::2].copy())
        condition = torch.stack([codes[k, drawn.labels[name]] for k, name in enumerate(("hue", "tone"))], dim=1)
        time = torch.from_numpy(rng.uniform(0.05, 0.95, n)).float()
        noise = torch.from_numpy(rng.standard_normal(images.shape, dtype=np.float32))
        angle = (time * math.pi / 2)[:, None, None, None]
        return images * angle.cos() + noise * angle.sin(), time * 1000, condition, noise

    def loss_of(noisy: torch.Tensor, time: torch.Tensor, condition: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return mse_loss(model(noisy, time, encoder_hidden_states=condition).sample, noise)

    held_out = batch(128, np.random.default_rng(5))

    @torch.no_grad()
    def explained() -> float:
        return 1 - float(loss_of(*held_out))

    before = explained()
    parameters = list(model.parameters())
    optimizer, schedule = warm_up_cosine(parameters, recipe, recipe["steps"])
    for _ in range(recipe["steps"]):
        train_step(loss_of(*batch(16, rng)), parameters, optimizer, schedule)
    after = explained()
    if after <= before:
        raise GrowError(f"continued training went from {before:.4f} to {after:.4f}. Raise its steps.")
    model.save_pretrained(out)
    return {"steps": recipe["steps"], "accuracy_before": before, "accuracy_after": after}
