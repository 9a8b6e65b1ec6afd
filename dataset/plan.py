"""Plan the mini splits: which models there are, and how each is trained. Seeds in, manifest out.

The structure is that of VTHR, the paper's data set: five Model Trees of a root, four children and sixteen
grandchildren. Tasks, learning rates, decay, lengths and ranks are drawn for each model. Ids are random
names, so that no method can read heritage, or break ties, by them.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset.tasks import TASKS
from mother.graph.manifest import Manifest, Node

SPLITS = {
    "mini_ft": "Fully fine-tuned ViTs, 5 trees of 21.",
    "mini_lora_v": "LoRA of varying rank on query and value, merged; 5 trees of 21 ViTs.",
    "mini_lora_f": "LoRA of rank 8 on query and value, merged; 5 trees of 21 ViTs.",
}
RANKS = (2, 4, 8, 16)  # VTHR draws from 8, 16, 32, 64 at eight times the width
FIXED_RANK = 8  # VTHR: 16

# Accuracy at which pre-training counts as solved. Supervised: mean over ten factors whose chance
# levels are 1/3 to 1/6. Contrastive: the right one of 511 images, chance 0.002.
SOLVED = {"supervised": 0.93, "contrastive": 0.90}

VERSION = 1  # raise it when a task or a grower changes: models of another version are grown again

SLOW = {"count": 2, "texture": 2, "digits": 2}  # times as many steps: these are learned late


@dataclass(frozen=True)
class Size:
    """How large a forest is and how long its models are trained."""

    trees: int = 5
    children: int = 4
    grandchildren: int = 4
    root_steps: int = 2000  # at most; pre-training stops when its task is solved
    steps: tuple[int, int] = (20, 60)  # of fine-tuning, drawn per model
    solved: float = 1.0  # share of SOLVED that is asked for


FULL = Size()
QUICK = Size(trees=2, children=2, grandchildren=2, root_steps=200, steps=(16, 32), solved=0.5)  # for the tests


def draw_names(rng: np.random.Generator, count: int) -> list[str]:
    """Distinct pronounceable names of six letters."""
    names: set[str] = set()
    while len(names) < count:
        letters = [rng.choice(list(alphabet)) for alphabet in ("bdfgklmnprstvz", "aeiou") * 3]
        names.add("".join(letters))
    return [str(name) for name in rng.permutation(sorted(names))]


def root_recipe(tree: int, size: Size) -> dict:
    """How the root of a tree is pre-trained: trees 0, 2 and 4 with labels, 1 and 3 without."""
    kind = ("supervised", "contrastive")[tree % 2]
    return {
        "grower": f"vit:pretrain_{kind}",
        "version": VERSION,
        "seed": 1000 * (tree + 1),
        "learning_rate": {"supervised": 2e-3, "contrastive": 1e-3}[kind],
        "weight_decay": 0.05,
        "batch_size": {"supervised": 64, "contrastive": 48}[kind],
        "steps": size.root_steps,
        "target": SOLVED[kind] * size.solved,
    }


def _child_recipe(split: str, task: str, rng: np.random.Generator, size: Size) -> dict:
    # LoRA starts from a zero update and needs a larger rate for the same length.
    low, high = (2e-4, 1e-3) if split == "mini_ft" else (2e-3, 6e-3)
    recipe = {
        "grower": "vit:fine_tune",
        "version": VERSION,
        "seed": int(rng.integers(1 << 31)),
        "task": task,
        "learning_rate": float(f"{np.exp(rng.uniform(np.log(low), np.log(high))):.2e}"),
        "weight_decay": float(rng.choice([0.0, 0.01, 0.1])),
        "batch_size": 32,
        "steps": int(rng.integers(size.steps[0], size.steps[1] + 1)) * SLOW.get(task, 1),
    }
    if split == "mini_lora_v":
        recipe["rank"] = int(rng.choice(RANKS))
    elif split == "mini_lora_f":
        recipe["rank"] = FIXED_RANK
    return recipe


def plan(split: str, folder: Path, size: Size = FULL) -> Manifest:
    """The manifest of one split; `folder` is where it will be written, models go to `models/` in it."""
    rng = np.random.default_rng([list(SPLITS).index(split), 20240528])
    names = iter(draw_names(rng, size.trees * (1 + size.children * (1 + size.grandchildren))))

    def child(parent: Node, siblings: list[str]) -> Node:
        # Siblings get different tasks while there are enough, and nobody its parent's.
        free = [task for task in TASKS if task not in siblings and task != parent.task]
        task = str(rng.choice(free or list(TASKS)))
        siblings.append(task)
        recipe = _child_recipe(split, task, rng, size)
        name = next(names)
        return Node(name, f"models/{split}/{name}", parent.id, parent.tree, task, recipe.get("rank"), recipe)

    nodes: list[Node] = []
    for tree in range(size.trees):
        recipe = root_recipe(tree, size)
        kind = recipe["grower"].removeprefix("vit:pretrain_")
        # The three splits share their roots, as VTHR's do.
        root = Node(next(names), f"models/roots/{kind}_{tree}", None, tree, kind, None, recipe)
        nodes.append(root)
        children_tasks: list[str] = []
        for _ in range(size.children):
            nodes.append(parent := child(root, children_tasks))
            grandchildren_tasks: list[str] = []
            nodes.extend(child(parent, grandchildren_tasks) for _ in range(size.grandchildren))
    return Manifest(split, tuple(nodes), folder, SPLITS[split])


# (id, parent, what it is trained on, learning rate, steps)
_LLAMAS = [
    ("Llama-2-7b", None, "prose", 3e-3, 200),
    ("CodeLlama-7b", "Llama-2-7b", "code", 1e-3, 80),
    ("CodeLlama-7b-Instruct", "CodeLlama-7b", "instruct", 5e-4, 50),
    ("CodeLlama-7b-Python", "Llama-2-7b", "python", 1e-3, 80),
    ("Llama-2-7b-chat", "Llama-2-7b", "chat", 5e-4, 50),
]
_UNETS = [
    ("v1-1", None, "scenes", 2e-3, 80),
    ("v1-2", "v1-1", "scenes", 1e-3, 60),
    ("v1-3", "v1-2", "scenes", 7e-4, 40),
    ("v1-4", "v1-2", "scenes", 7e-4, 50),
    ("v1-5", "v1-4", "scenes", 7e-4, 40),
]
FAMILIES = {"mini_llama": ("families:train_llama", _LLAMAS), "mini_sd": ("families:train_unet", _UNETS)}
ZOO = "mini_zoo"
MINI_HUB = "mini_hub"


def plan_family(name: str, folder: Path) -> Manifest:
    """The manifest of a miniature family. Truth as the authors use it."""
    grower, members = FAMILIES[name]
    nodes = []
    for seed, (model, parent, domain, rate, steps) in enumerate(members, start=1):
        recipe = {"grower": grower, "version": VERSION, "seed": seed, "domain": domain}
        recipe |= {"learning_rate": rate, "weight_decay": 0.01, "steps": steps}
        nodes.append(Node(model, f"models/{name}/{model}", parent, 0, domain, None, recipe))
    return Manifest(name, tuple(nodes), folder, "A miniature family, grown for the tests.")
