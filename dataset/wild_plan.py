"""Plan `mini_wild`: the mix of a model hub, with the truth known of every model. Seeds in, manifest out.

Trees of one ViT architecture and one of a small language model. Their models are tuned, adapted, cast, pruned,
quantized, merged and copied; some are absent from the collection, some have no relatives at all. What happens to
whom is written down below; tasks, rates, lengths and names are drawn.
"""

from pathlib import Path
from typing import Any

import numpy as np

from dataset.plan import FULL, SLOW, VERSION, Size, draw_names, root_recipe
from dataset.tasks import TASKS
from mother.graph.manifest import Manifest, Node

WILD = "mini_wild"
DESCRIPTION = "The mix of a model hub: ViTs and small language models, made from one another in every usual way."

# Learning rates, drawn evenly in their logarithm. LoRA starts from a zero update and needs a larger one.
RATES = {
    "adamw": (2e-4, 1e-3),
    "sgd": (2e-2, 6e-2),
    "rmsprop": (1e-4, 4e-4),
    "adafactor": (4e-3, 1e-2),
    "sign": (5e-5, 2e-4),
    "lora": (2e-3, 6e-3),
}
CHANGE = (0.002, 1.5)  # relative change of the block weights that is expected of any training
# Too little to learn anything beyond doubt; planned is about half a per cent.
TINY = {"learning_rate": 4e-5, "steps": 25, "change": [0.002, 0.015], "exempt": True}

TASK_NAMES = [name for name in TASKS if name not in SLOW]
DOMAINS = ("prose", "chat", "code", "python", "instruct")


class _Grove:
    """Collects the nodes of a manifest; its methods add one and return it, parents first."""

    def __init__(self, size: Size, seed: int) -> None:
        self.size = size
        self.rng = np.random.default_rng([seed, 20240528])
        self.names = iter(draw_names(self.rng, 200))
        self.nodes: list[Node] = []
        self.trees = 0

    def _add(self, recipe: dict[str, Any], parents: tuple[Node, ...] = (), source: str | None = None, **facts) -> Node:
        """A node made from none, one or several parents, which are all of one tree."""
        name = next(self.names)
        if not parents:
            facts["tree"], self.trees = self.trees, self.trees + 1
        elif len(parents) == 1:
            facts |= {"parent": parents[0].id, "tree": parents[0].tree}
        else:
            facts |= {"parents": tuple(parent.id for parent in parents), "tree": parents[0].tree}
        node = Node(name, source or f"models/{WILD}/{name}", recipe=recipe, **facts)
        self.nodes.append(node)
        return node

    def _seed(self) -> int:
        return int(self.rng.integers(1 << 31))

    def _rate(self, optimizer: str) -> float:
        low, high = np.log(RATES[optimizer])
        return float(f"{np.exp(self.rng.uniform(low, high)):.2e}")

    def shared_root(self, number: int, absent: bool = False) -> Node:
        """The root of a tree of the other splits."""
        recipe = root_recipe(number, self.size)
        kind = recipe["grower"].removeprefix("vit:pretrain_")
        return self._add(recipe, source=f"models/roots/{kind}_{number}", task=kind, absent=absent)

    def lone_root(self, kind: str, seed: int, steps: int, target: float) -> Node:
        """A root of its own, trained briefly."""
        recipe = root_recipe({"supervised": 0, "contrastive": 1}[kind], self.size)
        return self._add(recipe | {"seed": seed, "steps": steps, "target": target}, task=kind)

    def snapshot(self, parent: Node | None, steps: int) -> Node:
        """The next snapshot of a pre-training at a constant rate; without a parent the first."""
        recipe = {
            "grower": "wild:pretrain_snapshot",
            "version": VERSION,
            "seed": self._seed(),
            "optimizer": "adamw",
            "schedule": "constant",
            "learning_rate": 2e-3,
            "weight_decay": 0.05,
            "batch_size": 64,
            "steps": steps,
        }
        if parent is None:
            return self._add(recipe, task="supervised")
        return self._add(recipe | {"change": list(CHANGE)}, (parent,), task="supervised", kind="fine-tune")

    def tune(self, parent: Node | None, absent: bool = False, **options: Any) -> Node:
        """Training of all weights, or of some. `options` add to the recipe, or replace what would be drawn."""
        optimizer = options.setdefault("optimizer", "adamw")
        recipe = self._training("task" if "domain" not in options else "domain", parent, optimizer) | options
        kind = None if parent is None else "fine-tune"
        task = recipe.get("task", recipe.get("domain"))
        return self._add(recipe, () if parent is None else (parent,), kind=kind, task=task, absent=absent)

    def lora(self, parent: Node, rank: int, targets: str = "qv", absent: bool = False, **options: Any) -> Node:
        """LoRA, merged. The update of DoRA has full rank: it also scales rows of the parent's weights."""
        field = "task" if "domain" not in options else "domain"
        recipe = self._training(field, parent, "lora") | {"optimizer": "adamw"}
        recipe |= {"rank": rank, "targets": targets} | options
        known = None if recipe.get("dora") else rank
        return self._add(recipe, (parent,), kind="lora", task=recipe[field], rank=known, absent=absent)

    def _training(self, field: str, parent: Node | None, rates: str) -> dict[str, Any]:
        """What all training has in common. The drawn task is not the parent's."""
        recipe = {
            "grower": "wild:tune",
            "version": VERSION,
            "seed": self._seed(),
            "optimizer": rates,
            "schedule": str(self.rng.choice(["cosine", "constant"])),
            "learning_rate": self._rate(rates),
            "weight_decay": 0.0,
            "steps": int(self.rng.integers(self.size.steps[0], self.size.steps[1] + 1)),
            "change": list(CHANGE),
            "dtype": "float32",
        }
        if field == "task":
            free = [task for task in TASK_NAMES if parent is None or task != parent.task]
            recipe |= {"task": str(self.rng.choice(free)), "batch_size": 32}
        return recipe

    def _made(self, parent: Node, kind: str, **options: Any) -> Node:
        # Its task is the parent's: nothing was learned.
        recipe = {"grower": f"weights:{kind}", "version": VERSION} | options
        return self._add(recipe, (parent,), kind=kind, task=parent.task)

    def cast(self, parent: Node, through: str, dtype: str | None = None) -> Node:
        """In a coarser type; stored in it, or as float32 where `dtype` says so."""
        return self._made(parent, "cast", through=through, dtype=dtype or through)

    def prune(self, parent: Node, share: float | None = None) -> Node:
        """A share of the smallest weights of each tensor, or two of every four."""
        return self._made(parent, "prune", **({"pattern": "2:4"} if share is None else {"share": share}))

    def quantize(self, parent: Node, scheme: str, dtype: str = "float32") -> Node:
        """A round trip through few bits, stored as `dtype`."""
        return self._made(parent, "quantize", scheme=scheme, dtype=dtype)

    def copy(self, parent: Node, form: str) -> Node:
        """The same values in another form."""
        return self._made(parent, "copy", form=form)

    def linear(self, parents: list[tuple[Node, float]]) -> Node:
        """A weighted mean."""
        nodes, shares = zip(*parents)
        return self._merge(nodes, coefficients=tuple(shares), method="linear")

    def slerp(self, first: Node, second: Node, t: float) -> Node:
        """Spherical interpolation."""
        return self._merge((first, second), method="slerp", t=t)

    def of_updates(self, method: str, parents: tuple[Node, ...], base: Node) -> Node:
        """TIES or DARE on the updates since a common ancestor."""
        options = {"seed": self._seed()} if method == "dare" else {}
        return self._merge(parents, method=method, density=0.5, base=base.id, **options)

    def _merge(self, parents: tuple[Node, ...], coefficients: tuple[float, ...] | None = None, **options: Any) -> Node:
        recipe = {"grower": "weights:merge", "version": VERSION, "dtype": "float32"} | options
        if coefficients:
            recipe["coefficients"] = list(coefficients)
        return self._add(recipe, parents, kind="merge", coefficients=coefficients)


def _snapshots(grove: _Grove) -> None:
    """One pre-training run that never cools down: children of its snapshots share its drift."""
    first = grove.snapshot(None, 240)
    second = grove.snapshot(first, 60)
    third = grove.snapshot(second, 40)
    for optimizer in ("adamw", "adamw", "sgd", "sign"):
        child = grove.tune(second, optimizer=optimizer, schedule="constant")
    grove.lora(child, 4, "qkvo")
    grove.lora(third, 8)
    grove.tune(third, weight_decay=0.1)
    grove.quantize(third, "int4-block")
    grove.copy(first, "bytes")


def _language_models(grove: _Grove) -> None:
    """A tree of another architecture, whose root stopped at a constant rate."""
    rates = {"schedule": "constant", "learning_rate": 1e-3}
    root = grove.tune(None, domain="prose", steps=160, **(rates | {"learning_rate": 3e-3}))
    chat = grove.tune(root, domain="chat", steps=40, **rates)
    code = grove.tune(root, domain="code", steps=50, weight_decay=0.1, **rates)
    python = grove.tune(root, domain="python", steps=50, optimizer="rmsprop", schedule="cosine")
    instruct = grove.tune(code, domain="instruct", steps=40, schedule="cosine", learning_rate=5e-4)
    adapter = {"steps": 40, "schedule": "cosine"}
    grove.lora(root, 4, "qv", domain="instruct", **adapter)
    adapted = grove.lora(code, 8, "linear", domain="python", **adapter)
    grove.lora(chat, 2, "qkvo", domain="code", **adapter)
    half = grove.cast(chat, "bfloat16")
    grove.lora(half, 8, "qkvo", domain="instruct", dtype="bfloat16", **adapter)
    grove.tune(half, domain="python", steps=40, dtype="bfloat16", schedule="cosine", learning_rate=6e-4)
    grove.tune(python, domain="chat", steps=30, optimizer="sign", schedule="cosine")
    grove.tune(root, domain="chat", steps=40, vocabulary=160, schedule="cosine", learning_rate=8e-4)
    grove.tune(instruct, domain="instruct", schedule="constant", **TINY)
    grove.prune(code, 0.5)
    grove.quantize(adapted, "int8-row", "bfloat16")
    grove.linear([(chat, 0.5), (code, 0.5)])
    grove.copy(python, "shards")


def _deep_tree(grove: _Grove) -> None:
    """Six generations, and a bit of everything, in single precision."""
    root = grove.shared_root(0)
    tuned = grove.tune(root, weight_decay=0.1, schedule="cosine")
    decayed = grove.tune(root, optimizer="sign", weight_decay=1.0, trains="attention", learning_rate=2e-4)
    partial = grove.tune(root, trains="last-1")
    adapted = grove.lora(tuned, 8)
    further = grove.tune(adapted, optimizer="sgd", schedule="constant")
    deeper = grove.lora(further, 2, "qkvo")
    grove.tune(deeper, **TINY)
    grove.cast(deeper, "bfloat16")
    sparse = grove.prune(adapted, 0.5)
    grove.tune(sparse)
    grove.tune(tuned, **TINY)
    grove.cast(tuned, "float16")
    grove.quantize(tuned, "int8-tensor")
    grove.copy(decayed, "shards")
    grove.lora(decayed, 4, "linear", rslora=True, learning_rate=1e-3)
    merged = grove.linear([(tuned, 0.5), (decayed, 0.5)])
    grove.tune(merged, optimizer="adafactor")
    grove.slerp(partial, further, 0.3)


def _half_precision(grove: _Grove) -> None:
    """A lineage that goes on in bfloat16 and float16, beside one in float32."""
    root = grove.shared_root(1)
    half = grove.cast(root, "bfloat16")
    adapted = grove.lora(half, 4, dtype="bfloat16")
    grove.lora(adapted, 8, "linear", dtype="bfloat16")
    tuned = grove.tune(adapted, dtype="bfloat16", schedule="cosine")
    grove.copy(tuned, "float32")
    grove.tune(half, optimizer="sgd", dtype="bfloat16")
    grove.lora(half, 16, dora=True, dtype="bfloat16")
    bare = grove.tune(root, weight_decay=1.0, saved_as="backbone")
    grove.tune(bare, **TINY)
    grove.copy(bare, "prefix")
    small = grove.lora(bare, 1, dtype="float16")
    grove.tune(small, dtype="float16")
    grove.quantize(bare, "nf4-block", "bfloat16")
    other = grove.tune(root, optimizer="rmsprop", schedule="constant")
    grove.prune(other)
    grove.cast(other, "bfloat16", "float32")
    grove.slerp(bare, other, 0.5)


def _absent_branch(grove: _Grove) -> None:
    """An internal node that nobody published, and merges of its siblings."""
    root = grove.shared_root(2)
    absent = grove.tune(root, absent=True, weight_decay=0.1)
    grove.tune(absent)
    grove.lora(absent, 8, "qkvo")
    grove.tune(absent, optimizer="adafactor", schedule="constant")
    grove.lora(absent, 2)
    first = grove.tune(root)
    # A decay that is seen: one per mille a step.
    second = grove.tune(root, weight_decay=1.0, learning_rate=1e-3, schedule="constant")
    third = grove.tune(root, trains="last-2")
    grove.of_updates("ties", (first, second), root)
    grove.of_updates("dare", (first, third), root)
    grove.linear([(first, 0.5), (second, 0.3), (third, 0.2)])
    scaled = grove.lora(root, 16, "linear", dora=True)
    grove.tune(scaled, saved_as="pooler")


def _absent_adapter(grove: _Grove) -> None:
    """Another missing parent, made by LoRA, and the other ways to quantize and prune."""
    root = grove.shared_root(3)
    absent = grove.lora(root, 8, absent=True)
    first, second = grove.tune(absent), grove.tune(absent, optimizer="rmsprop")
    grove.lora(absent, 16)
    grove.prune(absent, 0.2)
    grove.linear([(first, 0.7), (second, 0.3)])
    tuned = grove.tune(root, schedule="cosine")
    grove.quantize(tuned, "int8-row")
    grove.quantize(tuned, "uint8-row", "float16")
    grove.prune(tuned, 0.8)
    grove.copy(tuned, "bytes")
    grove.lora(tuned, 1, "qkvo")


def _absent_root(grove: _Grove) -> None:
    """A tree whose root is missing."""
    root = grove.shared_root(4, absent=True)
    first = grove.tune(root, weight_decay=0.1)
    grove.lora(root, 8, "linear")
    grove.tune(root, optimizer="sign", saved_as="backbone")
    grove.tune(root, optimizer="sgd", schedule="constant")
    second = grove.lora(first, 4)
    third = grove.tune(second)
    grove.lora(third, 2)


def _without_relatives(grove: _Grove) -> None:
    """Roots on their own, two of them from one recipe with different seeds."""
    grove.lone_root("supervised", 11, 120, 0.4)
    grove.lone_root("supervised", 12, 120, 0.4)
    grove.lone_root("contrastive", 13, 120, 0.3)


def plan_wild(folder: Path, size: Size = FULL) -> Manifest:
    """The manifest; `folder` is where it will be written. With another size than FULL, a small one for the tests."""
    grove = _Grove(size, 4)
    if size == FULL:
        # Long training first, so that two processes end at about the same time.
        for part in (_snapshots, _language_models, _deep_tree, _half_precision):
            part(grove)
        for part in (_absent_branch, _absent_adapter, _absent_root, _without_relatives):
            part(grove)
    else:
        _some_of_each(grove)
    return Manifest(WILD, tuple(grove.nodes), folder, DESCRIPTION)


def _some_of_each(grove: _Grove) -> None:
    """Every operation once, on the roots of the quick splits; most of the training is too short to be learning."""
    brief = {"steps": 10, "exempt": True}
    root = grove.shared_root(0)
    tuned = grove.tune(root, weight_decay=1.0, trains="last-2", **brief)
    other = grove.tune(root, optimizer="sign", learning_rate=2e-4, saved_as="backbone", **brief)
    grove.tune(tuned, **(TINY | {"steps": 20}))
    grove.lora(tuned, 4, "linear", rslora=True, learning_rate=2e-3, **brief)
    grove.lora(root, 2, dora=True, **brief)
    grove.tune(root, optimizer="rmsprop", task="tone", absent=True)
    grove.cast(tuned, "float16")
    half = grove.cast(other, "bfloat16")
    grove.cast(tuned, "bfloat16", "float32")
    grove.lora(half, 2, dtype="bfloat16", learning_rate=1e-2, **brief)
    for share in (0.5, None):
        grove.prune(tuned, share)
    for scheme in ("int8-tensor", "int8-row", "uint8-row", "int4-block", "nf4-block"):
        grove.quantize(tuned, scheme)
    grove.quantize(other, "int8-row", "bfloat16")
    for form in ("bytes", "shards"):
        grove.copy(tuned, form)
    grove.copy(half, "float32")
    grove.copy(other, "prefix")
    grove.linear([(tuned, 0.7), (other, 0.3)])
    grove.slerp(tuned, other, 0.3)
    for method in ("ties", "dare"):
        grove.of_updates(method, (tuned, other), root)
    first = grove.snapshot(None, 20)
    grove.snapshot(first, 20)
    text = grove.tune(None, domain="prose", steps=20, schedule="constant", learning_rate=3e-3)
    grove.lora(text, 2, domain="code", vocabulary=160, **brief)
    grove.prune(text, 0.2)
