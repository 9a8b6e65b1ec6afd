"""Small ViTs that are really trained: two kinds of pre-training, full fine-tuning, and LoRA.

Every grower takes (recipe, parent's folder or None, output folder), saves an ordinary Hugging Face
folder there, and returns what it measured.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from dataset.forest import GrowError
from dataset.tasks import FACTORS, IMAGE_SIZE, TASKS, Batch, draw, render, scenes

# The width is about an eighth of ViT-B's; initialisation is scaled to it (0.8 / sqrt(96)).
ARCHITECTURE = {
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 384,
    "image_size": IMAGE_SIZE,
    "patch_size": 8,
    "initializer_range": 0.08,
}

# Position embeddings start as large as the patch embeddings: drowned by them (transformers' default),
# position is not learned within two thousand steps at this size.
POSITION_STD = 0.4

ROUNDS = 10  # of the planned length, before a fine-tune counts as failed
HELD_OUT = 512  # images in every evaluation
PRETRAINING_FACTORS = {name: classes for name, classes in FACTORS.items() if name != "count"}


def seed(recipe: dict[str, Any]) -> np.random.Generator:
    """Seed torch; returns the generator that data are drawn with."""
    torch.manual_seed(recipe["seed"])
    return np.random.default_rng(recipe["seed"])


def warm_up_cosine(parameters: list[nn.Parameter], recipe: dict[str, Any], steps: int):
    """AdamW with a warm-up of a tenth and cosine decay to 2 % of the learning rate."""
    optimizer = torch.optim.AdamW(parameters, lr=recipe["learning_rate"], weight_decay=recipe["weight_decay"])
    return optimizer, schedule_of(optimizer, steps, "cosine")


def schedule_of(optimizer: torch.optim.Optimizer, steps: int, shape: str) -> torch.optim.lr_scheduler.LambdaLR:
    """A warm-up of a tenth, then a "constant" rate or a "cosine" down to 2 % of it."""
    warm_up = max(1, steps // 10)

    def factor(step: int) -> float:
        progress = min(1.0, max(0.0, (step - warm_up) / max(1, steps - warm_up)))
        after = 1.0 if shape == "constant" else 0.02 + 0.49 * (1 + math.cos(math.pi * progress))
        return min(1.0, (step + 1) / warm_up) * after

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def train_step(loss: torch.Tensor, parameters: list[nn.Parameter], optimizer, schedule) -> None:
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()


@dataclass(frozen=True)
class Objective:
    """What training needs to know of a task: data of n steps, the loss of one of them, and the score so far."""

    draw_block: Callable[[int], Any]
    loss_of: Callable[[Any, int], torch.Tensor]
    measure: Callable[[], float]


def _train_until_solved(recipe: dict[str, Any], parameters: list[nn.Parameter], objective: Objective) -> dict[str, Any]:
    """Train for at most `recipe["steps"]` steps, until the score reaches `recipe["target"]`.

    Raises GrowError if the target is not reached: a root that did not solve its task is not a root.
    """
    optimizer, schedule = warm_up_cosine(parameters, recipe, recipe["steps"])
    before = objective.measure()
    block = 20
    for start in range(0, recipe["steps"], block):
        data = objective.draw_block(block)
        for step in range(block):
            train_step(objective.loss_of(data, step), parameters, optimizer, schedule)
        if (start // block) % 5 == 4 and objective.measure() >= recipe["target"]:
            break
    after = objective.measure()
    if after < recipe["target"]:
        raise GrowError(
            f"pre-training (seed {recipe['seed']}) reached {after:.3f} of the {recipe['target']:.3f} asked for "
            f"in {recipe['steps']} steps. Raise its steps or lower its target in dataset/plan.py."
        )
    return {"steps": start + block, "accuracy_before": before, "accuracy_after": after}


def new_classifier() -> ViTForImageClassification:
    """An untrained ViT with a head for every factor of a scene."""
    model = ViTForImageClassification(ViTConfig(**ARCHITECTURE, num_labels=sum(PRETRAINING_FACTORS.values())))
    nn.init.trunc_normal_(model.vit.embeddings.position_embeddings, std=POSITION_STD)
    return model


def name_factors(model: nn.Module, recipe: dict[str, Any], rng: np.random.Generator) -> Objective:
    """Supervised pre-training: name every factor of a scene; the score is the mean accuracy over the factors."""
    held_out = scenes(HELD_OUT, np.random.default_rng(recipe["seed"] + 1))
    batch_size = recipe["batch_size"]

    def logits(images: np.ndarray) -> dict[str, torch.Tensor]:
        parts = model(torch.from_numpy(images)).logits.split(list(PRETRAINING_FACTORS.values()), dim=1)
        return dict(zip(PRETRAINING_FACTORS, parts))

    def loss_of(data: Batch, step: int) -> torch.Tensor:
        chosen = slice(step * batch_size, (step + 1) * batch_size)
        parts = logits(data.images[chosen])
        return sum(cross_entropy(part, torch.from_numpy(data.labels[name][chosen])) for name, part in parts.items())

    @torch.no_grad()
    def measure() -> float:
        parts = logits(held_out.images).items()
        return float(np.mean([(part.argmax(1).numpy() == held_out.labels[name]).mean() for name, part in parts]))

    return Objective(lambda steps: scenes(steps * batch_size, rng), loss_of, measure)


def pretrain_supervised(recipe: dict[str, Any], parent: Path | None, out: Path) -> dict[str, Any]:
    """Pre-train a root to name every factor of a scene."""
    rng = seed(recipe)
    model = new_classifier()
    measured = _train_until_solved(recipe, list(model.parameters()), name_factors(model, recipe, rng))
    model.save_pretrained(out)
    return measured


def pretrain_contrastive(recipe: dict[str, Any], parent: Path | None, out: Path) -> dict[str, Any]:
    """Pre-train a root without labels: find the other view of the same scene (InfoNCE).

    Two views share every factor and differ in angle, phase, jitter and noise. Accuracy is that of
    finding the partner among 511 others. Saved as a bare `ViTModel`, whose tensors have no `vit.` prefix.
    """
    rng = seed(recipe)
    model = ViTModel(ViTConfig(**ARCHITECTURE), add_pooling_layer=False)
    nn.init.trunc_normal_(model.embeddings.position_embeddings, std=POSITION_STD)
    width = model.config.hidden_size
    projector = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width // 2))
    parameters = [*model.parameters(), *projector.parameters()]

    def views(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        batch = scenes(n, rng)
        return batch.images, render(batch.labels, rng)

    def similarity(first: np.ndarray, second: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.from_numpy(np.concatenate([first, second]))
        features = normalize(projector(model(images).last_hidden_state[:, 0]), dim=1)
        partner = torch.arange(len(images)).roll(len(first))
        return (features @ features.T / 0.1).fill_diagonal_(-1e9), partner

    held_out = views(HELD_OUT // 2, np.random.default_rng(recipe["seed"] + 1))

    def loss_of(data: tuple[np.ndarray, np.ndarray], step: int) -> torch.Tensor:
        chosen = slice(step * recipe["batch_size"], (step + 1) * recipe["batch_size"])
        return cross_entropy(*similarity(data[0][chosen], data[1][chosen]))

    @torch.no_grad()
    def measure() -> float:
        scores, partner = similarity(*held_out)
        return float((scores.argmax(1) == partner).float().mean())

    objective = Objective(lambda steps: views(steps * recipe["batch_size"], rng), loss_of, measure)
    measured = _train_until_solved(recipe, parameters, objective)
    model.save_pretrained(out)
    return measured


@torch.no_grad()
def accuracy(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    return float((model(torch.from_numpy(images)).logits.argmax(1).numpy() == labels).mean())


def _learned(before: float, after: float) -> bool:
    """Whether a gain is beyond doubt: four standard errors of a difference of two proportions."""
    error = math.sqrt((before * (1 - before) + after * (1 - after)) / HELD_OUT)
    return after - before > 4 * error


def load_classifier(parent: Path, task: str) -> ViTForImageClassification:
    """The parent in float32 with a fresh head: the two tasks may happen to have as many classes."""
    model = ViTForImageClassification.from_pretrained(
        parent, num_labels=TASKS[task], ignore_mismatched_sizes=True, dtype=torch.float32
    )
    nn.init.normal_(model.classifier.weight, std=ARCHITECTURE["initializer_range"])
    nn.init.zeros_(model.classifier.bias)
    return model


def train_until_learned(
    model: nn.Module, recipe: dict[str, Any], rng: np.random.Generator, prepare=warm_up_cosine
) -> dict[str, Any]:
    """Train what requires gradients on `recipe["task"]` until the held-out accuracy has risen beyond doubt.

    `prepare(parameters, recipe, steps)` gives optimizer and schedule, anew for each round of the planned length.
    GrowError if ROUNDS of them do not do; a recipe with "exempt" is trained for one round, whatever it learns.
    Returns accuracy before and after, and the steps made.
    """
    task, batch_size = recipe["task"], recipe["batch_size"]
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    held_out = draw(task, HELD_OUT, np.random.default_rng(recipe["seed"] + 1), held_out=True)

    before = after = accuracy(model, *held_out)
    rounds = 0
    while rounds == 0 or not (recipe.get("exempt") or _learned(before, after)):
        if rounds == ROUNDS:
            raise GrowError(
                f"fine-tuning on {task} (seed {recipe['seed']}) went from {before:.3f} to {after:.3f} in "
                f"{rounds * recipe['steps']} steps. Raise its learning rate or its steps in dataset/plan.py."
            )
        optimizer, schedule = prepare(parameters, recipe, recipe["steps"])
        images, labels = draw(task, recipe["steps"] * batch_size, rng)
        for batch in np.arange(len(labels)).reshape(recipe["steps"], batch_size):
            loss = cross_entropy(model(torch.from_numpy(images[batch])).logits, torch.from_numpy(labels[batch]))
            train_step(loss, parameters, optimizer, schedule)
        rounds += 1
        after = accuracy(model, *held_out)
    return {"steps": rounds * recipe["steps"], "accuracy_before": before, "accuracy_after": after}


def fine_tune(recipe: dict[str, Any], parent: Path | None, out: Path) -> dict[str, Any]:
    """Train a child on its task with a new head: every weight, or LoRA on query and value, merged at the end.

    Records also the relative change ||child - parent|| / ||parent|| of the attention weights.
    """
    rng = seed(recipe)
    model = load_classifier(parent, recipe["task"])
    start = {name: weight.detach().clone() for name, weight in model.named_parameters() if ".attention." in name}
    rank = recipe.get("rank")
    if rank is not None:
        config = LoraConfig(
            r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"]
        )
        model = get_peft_model(model, config)
    measured = train_until_learned(model, recipe, rng)
    if rank is not None:
        model = model.merge_and_unload()
    end = dict(model.named_parameters())
    moved = sum((end[name] - weight).square().sum().item() for name, weight in start.items())
    size = sum(weight.square().sum().item() for weight in start.values())
    model.save_pretrained(out)
    return measured | {"relative_change": math.sqrt(moved / size)}
