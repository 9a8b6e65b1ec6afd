"""The training that a model hub sees: many optimizers, frozen layers, kinds of LoRA, precisions, snapshots.

Growers as in `vit.py`. Whatever is trained is trained in float32 and rounded once, to the type it is stored in,
also when its parent is stored in half precision: child = round(parent + update).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, ViTForImageClassification, ViTModel

from dataset.families import load_llama, train_on_text
from dataset.forest import GrowError
from dataset.vit import (
    load_classifier,
    name_factors,
    new_classifier,
    schedule_of,
    seed,
    train_step,
    train_until_learned,
)
from dataset.weights import DTYPES, OPTIMIZER, relative_change

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
TARGETS = {
    "qv": ["q_proj", "v_proj"],
    "qkvo": ATTENTION,
    "linear": [*ATTENTION, "fc1", "fc2", "gate_proj", "up_proj", "down_proj"],
}


class SignUpdate(torch.optim.Optimizer):
    """Every weight moves by the learning rate, up or down as momentum says; decay is decoupled (as in Lion)."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                direction = (0.9 * momentum + 0.1 * weight.grad).sign()
                weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=group["lr"])
                momentum.mul_(0.99).add_(weight.grad, alpha=0.01)


OPTIMIZERS = {
    "adamw": lambda weights, rate, decay: torch.optim.AdamW(weights, lr=rate, weight_decay=decay),
    "sgd": lambda weights, rate, decay: torch.optim.SGD(weights, lr=rate, momentum=0.9, weight_decay=decay),
    "rmsprop": lambda weights, rate, decay: torch.optim.RMSprop(weights, lr=rate, weight_decay=decay),
    "adafactor": lambda weights, rate, decay: torch.optim.Adafactor(weights, lr=rate, weight_decay=decay),
    "sign": SignUpdate,
}


def prepare(parameters: list[nn.Parameter], recipe: dict[str, Any], steps: int):
    """Optimizer and schedule of a recipe."""
    optimizer = OPTIMIZERS[recipe["optimizer"]](parameters, recipe["learning_rate"], recipe["weight_decay"])
    return optimizer, schedule_of(optimizer, steps, recipe["schedule"])


def _freeze(model: PreTrainedModel, trains: str) -> None:
    """Leave only the head and what `trains` names: "attention", or the "last-1", "last-2", ... blocks."""
    depth = model.config.num_hidden_layers
    if trains == "attention":
        trained = [".attention."]
    else:
        trained = [f".layers.{block}." for block in range(depth - int(trains.removeprefix("last-")), depth)]
    for name, weight in model.named_parameters():
        weight.requires_grad = name.startswith("classifier.") or any(part in name for part in trained)


def _adapted(model: PreTrainedModel, recipe: dict[str, Any]) -> nn.Module:
    """The model with the recipe's LoRA around it."""
    config = LoraConfig(
        r=recipe["rank"],
        lora_alpha=2 * recipe["rank"],
        target_modules=TARGETS[recipe["targets"]],
        use_rslora=recipe.get("rslora", False),
        use_dora=recipe.get("dora", False),
        modules_to_save=["classifier"] if "task" in recipe else None,
    )
    return get_peft_model(model, config)


def _save(model: PreTrainedModel, recipe: dict[str, Any], out: Path) -> None:
    """Save in the recipe's type: with its head, or as a bare "backbone", or as one with a new "pooler"."""
    form = recipe.get("saved_as", "whole")
    if form == "backbone":
        model = model.vit
    elif form == "pooler":
        pooled = ViTModel(model.config, add_pooling_layer=True)
        pooled.load_state_dict(model.vit.state_dict() | {k: v for k, v in pooled.state_dict().items() if "pooler" in k})
        model = pooled
    model.to(DTYPES[recipe["dtype"]]).save_pretrained(out)


def _measure_change(recipe: dict[str, Any], parent: Path, out: Path) -> dict[str, float]:
    """The relative change of the block weights; GrowError where it is not in the planned range."""
    change, (low, high) = relative_change(parent, out), recipe["change"]
    if not low <= change <= high:
        raise GrowError(
            f"training (seed {recipe['seed']}) moved the weights by {change:.2g} of their norm, planned is "
            f"{low} to {high}. Change its learning rate in dataset/wild_plan.py."
        )
    return {"relative_change": change}


def tune(recipe: dict[str, Any], parent: Path | None, out: Path) -> dict[str, Any]:
    """Train on a `task` (ViT) or on text of a `domain` (language model; without a parent, from scratch).

    All weights, those that `trains` names, or LoRA of `rank` on `targets`, merged at the end. A language
    model's vocabulary may be resized to `vocabulary` before.
    """
    rng = seed(recipe)
    if "task" in recipe:
        model, train = load_classifier(parent, recipe["task"]), train_until_learned
    else:
        model, train = load_llama(parent), train_on_text
        if "vocabulary" in recipe:
            model.resize_token_embeddings(recipe["vocabulary"])
    if "rank" in recipe:
        adapted = _adapted(model, recipe)
        measured = train(adapted, recipe, rng, prepare)
        model = adapted.merge_and_unload()
    else:
        if "trains" in recipe:
            _freeze(model, recipe["trains"])
        measured = train(model, recipe, rng, prepare)
    _save(model, recipe, out)
    return measured if parent is None else measured | _measure_change(recipe, parent, out)


def pretrain_snapshot(recipe: dict[str, Any], parent: Path | None, out: Path) -> dict[str, Any]:
    """The next steps of one long pre-training at a constant rate, from scratch or from the snapshot before.

    The optimizer's state is kept beside the weights, so that a chain of snapshots is one run.
    """
    rng = seed(recipe)
    model = new_classifier() if parent is None else ViTForImageClassification.from_pretrained(parent)
    objective = name_factors(model, recipe, rng)
    weights = dict(model.named_parameters())
    optimizer, schedule = prepare(list(weights.values()), recipe, recipe["steps"])
    if parent is not None:
        _restore(optimizer, weights, load_file(parent / OPTIMIZER))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)  # no second warm-up
    before, block = objective.measure(), 20
    for _ in range(recipe["steps"] // block):
        data = objective.draw_block(block)
        for step in range(block):
            train_step(objective.loss_of(data, step), list(weights.values()), optimizer, schedule)
    after = objective.measure()
    model.save_pretrained(out)
    state = {f"{key}.{name}": optimizer.state[weight][key] for name, weight in weights.items() for key in STATE}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, out / OPTIMIZER)
    measured = {"steps": recipe["steps"], "accuracy_before": before, "accuracy_after": after}
    return measured if parent is None else measured | _measure_change(recipe, parent, out)


STATE = ("step", "exp_avg", "exp_avg_sq")  # of AdamW, for each weight


def _restore(
    optimizer: torch.optim.Optimizer, weights: dict[str, nn.Parameter], state: dict[str, torch.Tensor]
) -> None:
    for name, weight in weights.items():
        optimizer.state[weight] = {key: state[f"{key}.{name}"] for key in STATE}
