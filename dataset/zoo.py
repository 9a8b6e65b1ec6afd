"""Really train the models of the zoo: one trainer for all architectures, optimizers, precisions and adapters.

Growers as in `vit.py`. A recipe may ask for a `move`, a relative change of the weights; the learning rate is then
found by trying, because what a rate does differs between architectures and optimizers.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dataset.forest import GrowError
from dataset.vit import schedule_of, seed
from dataset.weights import DTYPES, OPTIMIZER, Weights, read_weights
from dataset.wild import SignUpdate
from dataset.zoo_adapters import Adapters
from dataset.zoo_data import Batch, draw_data, loss_of
from dataset.zoo_models import VOCABULARY, build
from dataset.zoo_weights import block_number, cast_all, read_config, relative_change, write_model

BATCH = 12
POOL = 768  # examples that a training draws its batches from
ATTEMPTS = 5  # at a learning rate that makes the move
NEAR = (0.8, 1.25)  # of the move that was asked for
HEADS = ("fc.", "classifier.", "net.6.")  # of classifiers
STATE = ("step", "exp_avg", "exp_avg_sq")  # of AdamW, for each weight


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal by Newton-Schulz steps, for weights of two or more dimensions (Jordan et al., 2024)."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.mul_(0.95).add_(weight.grad)
                direction = self._orthogonal((weight.grad + 0.95 * momentum).flatten(1)).reshape(weight.shape)
                weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=group["lr"])

    @staticmethod
    def _orthogonal(matrix: torch.Tensor) -> torch.Tensor:
        x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
        x = x / (x.norm() + 1e-7)
        for _ in range(5):
            square = x @ x.T
            x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
        return (x.T if matrix.shape[0] > matrix.shape[1] else x) * max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": lambda weights, rate, decay: torch.optim.AdamW(weights, lr=rate, weight_decay=decay),
    "sgd": lambda weights, rate, decay: torch.optim.SGD(weights, lr=rate, momentum=0.9, weight_decay=decay),
    "adafactor": lambda weights, rate, decay: torch.optim.Adafactor(weights, lr=rate, weight_decay=decay),
    "lion": SignUpdate,
    "muon": Muon,
}


def _optimizers(parameters: list[nn.Parameter], recipe: dict[str, Any], rate: float) -> list[torch.optim.Optimizer]:
    """The recipe's optimizer; Muon leaves biases and gains to AdamW."""
    make, decay = OPTIMIZERS[recipe["optimizer"]], recipe.get("decay", 0.0)
    if recipe["optimizer"] != "muon":
        return [make(parameters, rate, decay)]
    small = [weight for weight in parameters if weight.ndim < 2]
    matrices = [weight for weight in parameters if weight.ndim >= 2]
    return [make(matrices, rate, decay)] + ([OPTIMIZERS["adamw"](small, rate / 10, decay)] if small else [])


def split_experts(weights: Weights) -> Weights:
    """One tensor for each expert, as Mixtral's files have, in place of fused ones."""
    found: Weights = {}
    for name, tensor in weights.items():
        place, _, kind = name.rpartition(".")
        if tensor.ndim != 3 or not place.endswith("experts"):
            found[name] = tensor
            continue
        for number, expert in enumerate(tensor):
            parts = expert.chunk(2) if kind == "gate_up_proj" else (expert,)
            for part, label in zip(parts, ("w1", "w3") if len(parts) == 2 else ("w2",)):
                found[f"{place}.{number}.{label}.weight"] = part.clone()
    return found


def fuse_experts(weights: Weights) -> Weights:
    """The inverse of `split_experts`."""
    found = {name: tensor for name, tensor in weights.items() if ".experts." not in name or tensor.ndim == 3}
    places = {name.split(".experts.")[0] for name in weights.keys() - found.keys()}
    for place in sorted(places):
        experts = [
            {label: weights[f"{place}.experts.{number}.{label}.weight"] for label in ("w1", "w2", "w3")}
            for number in range(sum(f"{place}.experts.{k}.w1.weight" in weights for k in range(64)))
        ]
        found[f"{place}.experts.gate_up_proj"] = torch.stack([torch.cat([e["w1"], e["w3"]]) for e in experts])
        found[f"{place}.experts.down_proj"] = torch.stack([e["w2"] for e in experts])
    return found


def state_of(model: nn.Module) -> Weights:
    """The state of a model, tied tensors once."""
    seen: set[int] = set()
    state: Weights = {}
    for name, tensor in model.state_dict().items():
        if tensor.numel() and tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        state[name] = tensor.detach().clone()
    return state


def _load(recipe: dict[str, Any], parent: Path | None) -> tuple[nn.Module, dict[str, Any]]:
    """The parent in float32 and its config, with a longer vocabulary or a new head where asked for."""
    config = {} if parent is None else read_config(parent)
    vocabulary = recipe.get("vocabulary", config.get("vocab_size", VOCABULARY))
    model = build(recipe["architecture"], vocabulary)
    own = model.config.to_dict() if hasattr(model, "config") else {"model_type": f"zoo_{recipe['architecture']}"}
    # Plain networks say their vocabulary, too, so that a child of theirs can be built.
    config = own | {"vocab_size": vocabulary} | {"experts": recipe.get("experts", config.get("experts", "fused"))}
    if parent is None:
        return model, config
    with torch.no_grad():
        state = model.state_dict()
        for name, tensor in fuse_experts(read_weights(parent)).items():
            target = state[name]
            if recipe.get("new_head") and name.startswith(HEADS):
                continue
            if target.shape == tensor.shape:
                target.copy_(tensor)
            else:
                target[: len(tensor)] = tensor.to(target.dtype)  # new rows stay as they were drawn
    return model, config


def _freeze(model: nn.Module, frozen: str) -> None:
    """Freeze "embeddings", or the "first-half" of the blocks with everything before them."""
    blocks = {name: block_number(name) for name, _ in model.named_parameters()}
    half = (max(number for number in blocks.values() if number is not None) + 1) / 2
    for name, weight in model.named_parameters():
        block = blocks[name]
        outside = any(part in name for part in ("embed", "wte", "wpe", "shared", "stem", "conv_in"))
        weight.requires_grad = not (outside or (frozen == "first-half" and block is not None and block < half))


def _trained(recipe: dict[str, Any], model: nn.Module, rate: float, data: Batch, state: Path | None, out: Path) -> None:
    """One training: all of the recipe's steps at a rate."""
    rng = np.random.default_rng(recipe["seed"] + 1)
    rounding = DTYPES[recipe.get("train_dtype", "float32")]
    masks = {n: p == 0 for n, p in model.named_parameters() if p.ndim >= 2} if recipe.get("keep_mask") else {}
    adapters = Adapters(model, recipe) if "rank" in recipe else None
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    trained = list(weights.values()) if adapters is None else adapters.parameters
    optimizers = _optimizers(trained, recipe, rate)
    schedules = [schedule_of(optimizer, recipe["steps"], recipe["schedule"]) for optimizer in optimizers]
    if state is not None:
        kept = load_file(state)
        for name, weight in weights.items():
            if f"step.{name}" in kept:
                optimizers[0].state[weight] = {key: kept[f"{key}.{name}"] for key in STATE}
        # A run that goes on has no second warm-up.
        schedules = [torch.optim.lr_scheduler.LambdaLR(optimizers[0], lambda step: 1.0)]
    model.train(adapters is None)
    for _ in range(recipe["steps"]):
        rows = torch.from_numpy(rng.integers(0, len(data[0]), BATCH))
        if adapters is not None:
            adapters.put()
        loss_of(recipe["architecture"], model, tuple(part[rows] for part in data)).backward()
        if adapters is not None:
            adapters.pull()
        nn.utils.clip_grad_norm_(trained, 1.0)
        for optimizer, schedule in zip(optimizers, schedules):
            optimizer.step()
            schedule.step()
        model.zero_grad()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if rounding != torch.float32 and weight.requires_grad and adapters is None:
                    weight.copy_(weight.to(rounding))  # parameters themselves are of the type: no master weights
                if name in masks:
                    weight.masked_fill_(masks[name], 0)
    if adapters is not None:
        adapters.put()
    if recipe.get("keep_state"):
        kept = {
            f"{key}.{n}": optimizers[0].state[w][key]
            for n, w in weights.items()
            for key in STATE
            if w in optimizers[0].state
        }
        save_file({name: tensor.contiguous() for name, tensor in kept.items()}, out / OPTIMIZER)


def train(recipe: dict[str, Any], parent: Path | None, out: Path) -> dict[str, Any]:
    """Train a root or a child; "rank" trains LoRA (with "dora" DoRA), "continues" goes on with the parent's run."""
    rng = seed(recipe)
    architecture, task = recipe["architecture"], recipe["task"]
    model, config = _load(recipe, parent)
    data = draw_data(architecture, task, POOL, rng)
    held_out = draw_data(architecture, task, 64, np.random.default_rng(recipe["seed"] + 7))

    @torch.no_grad()
    def measure() -> float:
        model.eval()
        return float(loss_of(architecture, model, held_out))

    if "frozen" in recipe:
        _freeze(model, recipe["frozen"])
    start, before = {n: t.clone() for n, t in model.state_dict().items()}, measure()
    # Measured against the parent's file: rows of a longer vocabulary are no move, and neither is a new head.
    new = HEADS if recipe.get("new_head") else ()
    kept = {} if parent is None else {n: t for n, t in read_weights(parent).items() if not n.startswith(new)}
    old = fuse_experts(kept)
    rate, move = recipe["learning_rate"], recipe.get("move")
    state = parent / OPTIMIZER if parent is not None and recipe.get("continues") else None
    for attempt in range(ATTEMPTS):
        model.load_state_dict(start)
        torch.manual_seed(recipe["seed"] + 3)
        _trained(recipe, model, rate, data, state, out)
        after = measure()
        if move is None:
            break
        change = relative_change(old, state_of(model))
        if NEAR[0] <= change / move <= NEAR[1]:
            break
        if attempt < ATTEMPTS - 1:
            rate *= float(np.clip(move / change, 0.1, 8)) if np.isfinite(change) and change > 0 else 0.2
    if not np.isfinite(after):
        raise GrowError(f"training (seed {recipe['seed']}) ended with a loss of {after}.")
    weights = cast_all(state_of(model), DTYPES[recipe["dtype"]])
    write_model(split_experts(weights) if config["experts"] == "split" else weights, config, out)
    measured = {"steps": recipe["steps"], "rate": rate, "loss_before": before, "loss_after": after}
    if parent is not None:
        measured["relative_change"] = relative_change(kept, read_weights(out))
    return measured
