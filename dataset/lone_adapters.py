"""Families with adapters that PEFT trained, to ask each adapter for its base: roots, relatives, ranks and targets.

Of each architecture two roots that have nothing in common, ten models of the first root's family, and LoRA adapters of
several of these, by rank and by which weights they change. Draw 0 is what the method was made on, draw 1 is fresh:
other trees, weights, tasks, bases and two more architectures.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from dataset.vit import schedule_of
from dataset.zoo import BATCH, POOL, train
from dataset.zoo_data import draw_data, loss_of, tasks_of
from dataset.zoo_models import build

ROOT, TUNE, ADAPT = 300, 60, 120  # steps
LINEAR = {  # by architecture: what PEFT is told to adapt of attention, and beside it
    "llama": (["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]),
    "bert": (["query", "key", "value", "attention.output.dense"], ["intermediate.dense", "output.dense"]),
    "gpt2": (["c_attn", "attn.c_proj"], ["c_fc", "mlp.c_proj"]),
    "vit": (["q_proj", "k_proj", "v_proj", "o_proj"], ["fc1", "fc2"]),
    "resnet": (["conv2"], ["conv1"]),
}
FRESH = LINEAR | {"t5": (["q", "k", "v", "o"], ["wi", "wo"]), "unet": (["conv2"], ["conv1"])}
DRAWS = (LINEAR, FRESH, FRESH)
SEEDS = 3
RELATIVES = 10  # of a family, the root among them
RATES = (1e-3, 2e-3, 3e-3)


def plan_family(architecture: str, draw: int = 0) -> dict[str, tuple[str | None, int, float]]:
    """A drawn tree: model -> (parent, number of its task, rate). No two architectures have one tree."""
    rng = np.random.default_rng(1000 * draw + sorted(DRAWS[draw]).index(architecture))
    found: dict[str, tuple[str | None, int, float]] = {"root": (None, 0, 3e-3)}
    while len(found) < RELATIVES:
        parent = str(rng.choice(list(found)))
        found[f"model{len(found)}"] = (parent, int(rng.integers(0, 5)), float(rng.choice(RATES)))
    return found | {"other": (None, 0, 3e-3)}


@dataclass(frozen=True)
class Lone:
    """An adapter of a known base."""

    name: str
    folder: Path
    base: str
    rank: int
    targets: str  # "attention" or "all"
    seed: int


def recipe_of(architecture: str, task: int, rate: float, steps: int, seed: int) -> dict[str, Any]:
    names = tasks_of(architecture)
    return {
        "architecture": architecture,
        "task": names[task % len(names)],
        "seed": seed,
        "optimizer": "adamw",
        "learning_rate": rate,
        "schedule": "cosine",
        "steps": steps,
        "dtype": "float32",
        "decay": 0.01,
    }


def _once(out: Path, grow: Any) -> Path:
    """A folder that is filled by `grow(part)` and moved into place when it is complete."""
    if not out.exists():
        part = out.with_name(f"{out.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        grow(part)
        part.rename(out)
    return out


def grow_models(architecture: str, folder: Path, draw: int = 0) -> dict[str, Path]:
    """The family of "root", and "other", which is unrelated to it: by name, where each is."""
    found: dict[str, Path] = {}
    # With one seed a BERT and a ViT of these shapes begin with the same random numbers, which makes them relatives.
    # In draw 0, which the coefficients were fitted on, they still do.
    first = 1000 * (1 + draw) + 50 * draw * sorted(FRESH).index(architecture)
    for number, (name, (parent, task, rate)) in enumerate(plan_family(architecture, draw).items()):
        steps = TUNE if parent else ROOT * (2 if architecture == "bert" else 1)
        recipe = recipe_of(architecture, task, rate, steps, first + number)
        above = found[parent] if parent else None
        found[name] = _once(folder / name, lambda part: train(recipe, above, part))
    return found


def grow_roots(architecture: str, folder: Path, count: int) -> list[Path]:
    """So many models of one architecture that have nothing in common with each other, nor with any family."""
    first = 70_000 + 100 * sorted(FRESH).index(architecture)
    return [
        _once(
            folder / f"root{k}",
            lambda part: train(recipe_of(architecture, k, 3e-3, ROOT, first + 1000 * k), None, part),  # noqa: B023
        )
        for k in range(count)
    ]


def adapt(
    architecture: str, base: Path, targets: list[str], rank: int, seed: int, out: Path, steps: int = ADAPT
) -> None:
    """Train a LoRA adapter with PEFT, and save it as PEFT does."""
    import peft

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = build(architecture)
    model.load_state_dict(load_file(base / "model.safetensors"), strict=False)
    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=targets, fan_in_fan_out=architecture == "gpt2", bias="none"
    )
    adapted = peft.get_peft_model(model, config)
    weights = [weight for weight in adapted.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=5e-3, weight_decay=0.0)
    schedule = schedule_of(optimizer, steps, "cosine")
    tasks = tasks_of(architecture)
    data = draw_data(architecture, str(rng.choice(tasks)), POOL, rng)
    for _ in range(steps):
        rows = torch.from_numpy(rng.integers(0, len(data[0]), BATCH))
        loss_of(architecture, adapted.base_model.model, tuple(part[rows] for part in data)).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    adapted.save_pretrained(str(out))


def grow_adapters(
    architecture: str, models: dict[str, Path], folder: Path, draw: int = 0, ranks: tuple[int, ...] = (1, 4, 16)
) -> list[Lone]:
    """Adapters of each rank on attention alone and on all linear layers, with three seeds; the bases are drawn."""
    attention, others = DRAWS[draw][architecture]
    rng = np.random.default_rng(1000 * draw + 100 + sorted(DRAWS[draw]).index(architecture))
    family = [name for name in models if name != "other"]
    found = []
    for rank in ranks:
        for targets, names in (("attention", attention), ("all", attention + others)):
            for seed, base in enumerate(rng.choice(family, SEEDS, replace=False).tolist()):
                name, number = f"{targets}-r{rank}-s{seed}", 10_000 * draw + 77 * rank + seed
                out = _once(folder / name, lambda part: adapt(architecture, models[base], names, rank, number, part))
                found.append(Lone(name, out, base, rank, targets, seed))
    return found
