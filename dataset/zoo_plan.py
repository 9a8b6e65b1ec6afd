"""Plan the zoo: families of twelve architectures, each of which plays one of five plots. Seeds in, manifest out."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataset.plan import ZOO, draw_names
from dataset.zoo_data import has_vocabulary, tasks_of
from dataset.zoo_models import ARCHITECTURES
from dataset.zoo_plots import PLOTS
from mother.graph.manifest import Manifest, Node

SMALL_ZOO = "small_zoo"
VERSION = 1  # raise it when a task or a grower changes: models of another version are grown again
DESCRIPTION = "Small families of twelve architectures, really trained, each of which plays one of five plots."
RATES = {"adamw": 1e-3, "sgd": 3e-2, "adafactor": 5e-3, "lion": 1e-4, "muon": 3e-3}  # where trying a move starts
ROOT_STEPS = 220
LONGER = {"bert": 2.0, "clip": 2.0, "lstm": 1.5}  # times as many steps of roots: these learn late
# Models of a family: a plot has more, and which of its leaves are left out is drawn, so that no two families are alike.
SIZES = {"drift": 10, "optimizers": 11, "precision": 14, "merges": 15, "gaps": 14}
# What tells one kind of model from another, so that the rare ones are not left out.
TELLING = ("grower", "method", "scheme", "share", "optimizer", "decay", "train_dtype", "keep_mask", "frozen", "experts")
TELLING += ("vocabulary", "new_head", "prefix", "shards", "dora", "rank", "targets", "keep_vectors", "continues")


class Family:
    """Collects the nodes of one tree after another; its methods add one and return it, parents first."""

    def __init__(self, name: str, seed: int, count: int) -> None:
        self.name = name
        self.rng = np.random.default_rng([seed, 20261125])
        self.names = iter(draw_names(self.rng, count))
        self.nodes: list[Node] = []
        self.trees = 0
        self.architecture = self.plot = ""
        self.tasks: list[str] = []
        self.experts: str | None = None

    def begin(self, architecture: str, plot: str, experts: str | None = None) -> None:
        """A new family. What its models learn is drawn in an order that its plot counts through."""
        self.architecture, self.plot, self.experts = architecture, plot, experts
        self.tasks = [str(task) for task in self.rng.permutation(tasks_of(architecture))]

    @property
    def has_vocabulary(self) -> bool:
        """Whether its models learn characters."""
        return has_vocabulary(self.architecture)

    def _add(self, recipe: dict[str, Any], parents: tuple[Node, ...] = (), **facts: Any) -> Node:
        name = next(self.names)
        if not parents:
            facts["tree"], self.trees = self.trees, self.trees + 1
        else:
            facts["tree"] = parents[0].tree
            ids = tuple(parent.id for parent in parents)
            facts |= {"parent": ids[0]} if len(ids) == 1 else {"parents": ids}
        told = {"version": VERSION, "architecture": self.architecture, "plot": self.plot}
        node = Node(name, f"models/{self.name}/{name}", recipe=recipe | told, **facts)
        self.nodes.append(node)
        return node

    def _seed(self) -> int:
        return int(self.rng.integers(1 << 31))

    def root(self, steps: int = ROOT_STEPS, absent: bool = False, **options: Any) -> Node:
        """A model trained from scratch; `schedule` "constant" leaves it not annealed."""
        steps = round(steps * LONGER.get(self.architecture, 1.0)) if steps > 20 else steps
        recipe = self._training(0, steps, self._root_rate) | {"decay": 0.05}
        recipe |= {"experts": self.experts} if self.experts else {}
        return self._add(recipe | options, task=recipe["task"], absent=absent)

    @property
    def _root_rate(self) -> float:
        return 1e-2 if self.architecture == "lstm" else 3e-3

    def _training(self, task: int, steps: int, rate: float) -> dict[str, Any]:
        return {
            "grower": "zoo:train",
            "seed": self._seed(),
            "task": self.tasks[task % len(self.tasks)],
            "optimizer": "adamw",
            "learning_rate": rate,
            "schedule": "cosine",
            "steps": steps,
            "dtype": "float32",
        }

    def tune(self, parent: Node, task: int, move: float, absent: bool = False, **options: Any) -> Node:
        """Training of all weights that are not `frozen`, by the given relative change; 0: at a fixed rate."""
        steps = 30 if move < 0.04 else 50 if move < 0.2 else 110
        optimizer = options.get("optimizer", "adamw")
        # A small move needs a small rate: the trials then start near.
        rate = float(f"{RATES[optimizer] * (max(move, 0.002) / 0.05):.3g}")
        recipe = self._training(task, steps, rate) | ({"move": move} if move else {}) | options
        return self._add(recipe, (parent,), kind="fine-tune", task=recipe["task"], absent=absent)

    def go_on(self, parent: Node, steps: int, keep: bool = False) -> Node:
        """The next snapshot of the parent's run, whose optimizer is kept."""
        recipe = self._training(0, steps, self._root_rate) | {"decay": 0.05, "schedule": "constant", "continues": True}
        recipe |= {"keep_state": True} if keep else {}
        return self._add(recipe, (parent,), kind="fine-tune", task=recipe["task"])

    def reward(self, parent: Node, task: int, rate: float) -> Node:
        """Steps as small as those of reinforcement learning: most entries round back to the parent's."""
        return self.tune(parent, task, 0, steps=30, learning_rate=rate, schedule="constant", dtype="bfloat16")

    def lora(
        self, parent: Node, task: int, rank: int, move: float = 0.05, absent: bool = False, **options: Any
    ) -> Node:
        """LoRA or DoRA, merged. The update of DoRA has full rank: it also scales rows of the parent's weights."""
        recipe = self._training(task, 50, float(f"{0.2 * move:.3g}")) | {"move": move, "rank": rank} | options
        known = None if recipe.get("dora") else rank
        return self._add(recipe, (parent,), kind="lora", task=recipe["task"], rank=known, absent=absent)

    def made(self, parent: Node, kind: str, **options: Any) -> Node:
        """A cast, pruned, quantized or copied model."""
        return self._add({"grower": f"zoo_weights:{kind}"} | options, (parent,), kind=kind, task=parent.task)

    def merge(self, method: str, parents: Sequence[Node], dtype: str, base: Node | None = None, **options: Any) -> Node:
        """A merge; the coefficients of a linear one are a fact of its node."""
        recipe = {"grower": "zoo_weights:merge", "method": method, "dtype": dtype} | options
        recipe |= {"base": base.id} if base is not None else {}
        recipe |= {"seed": self._seed()} if method == "dare" else {}
        shares = tuple(options["coefficients"]) if method == "linear" else None
        return self._add(recipe, tuple(parents), kind="merge", coefficients=shares)


def _cast(rng: np.random.Generator, architectures: Sequence[str]) -> list[tuple[str, str, str | None]]:
    """Two roots of every architecture with different plots; each plot goes to four architectures or more of twelve."""
    order, plots = rng.permutation(architectures), rng.permutation(list(PLOTS))
    played = []
    for place, architecture in enumerate(order):
        turns = (place, place + 2 + place // 5)
        for turn, experts in zip(turns, ("split", "fused")):
            form = experts if architecture == "moe" else None
            played.append((str(architecture), str(plots[turn % len(plots)]), form))
    return played


def _signature(node: Node, nodes: dict[str, Node]) -> tuple[Any, ...]:
    """What kind of model a node is, roughly: of merges dtype and number of parents count, the move where it is tiny."""
    told = tuple(str(node.recipe.get(key)) for key in TELLING)
    # Children and grandchildren of merges are trained as others are, but rare.
    merged = [nodes[name].kind == "merge" for name in _line(node, nodes)]
    tiny = node.recipe.get("move", 0) <= 0.002
    form = (node.recipe["dtype"], len(node.all_parents)) if node.kind == "merge" else tiny
    return (node.kind, *told, form, any(merged))


def _line(node: Node, nodes: dict[str, Node]) -> list[str]:
    """The parent and the grandparent of a node, unless it has several."""
    parent = nodes.get(node.parent or "")
    return [] if parent is None else [parent.id, *([parent.parent] if parent.parent else [])]


def _leaves(nodes: list[Node]) -> list[Node]:
    """Models that nobody is made from and that can be left out; an absent parent keeps two children."""
    children = Counter(name for node in nodes for name in (*node.all_parents, node.recipe.get("base")))
    absent = {node.id for node in nodes if node.absent}
    return [
        node
        for node in nodes
        if node.all_parents
        and not children[node.id]
        and not any(name in absent and children[name] <= 2 for name in node.all_parents)
    ]


def _thinned(families: list[tuple[list[Node], int]], rng: np.random.Generator) -> tuple[Node, ...]:
    """All families at their sizes; of the leaves those go whose kind is the most frequent in the zoo."""
    known = {node.id: node for nodes, _ in families for node in nodes}
    signatures = {name: _signature(node, known) for name, node in known.items()}
    count = Counter(signatures.values())
    while any(len(nodes) > size for nodes, size in families):
        # By turns, so that what is rare is lost in no family before the others have lost what is frequent.
        for nodes, size in families:
            if len(nodes) > size:
                leaves = _leaves(nodes)
                most = max(count[signatures[node.id]] for node in leaves)
                frequent = [node for node in leaves if count[signatures[node.id]] == most]
                gone = frequent[int(rng.integers(len(frequent)))]
                nodes.remove(gone)
                count[signatures[gone.id]] -= 1
    return tuple(node for nodes, _ in families for node in nodes)


def plan_zoo(folder: Path, seed: int = 0, architectures: Sequence[str] | None = None) -> Manifest:
    """The zoo of a seed, which draws weights, tasks, and who plays what; `folder` is where it will be written."""
    name = ZOO if seed == 0 else f"{ZOO}_{seed}"
    family = Family(name, seed, 500)
    families: list[tuple[list[Node], int]] = []
    for architecture, plot, experts in _cast(family.rng, architectures or ARCHITECTURES):
        family.begin(architecture, plot, experts)
        start = len(family.nodes)
        PLOTS[plot](family)
        families.append((family.nodes[start:], SIZES[plot]))
    return Manifest(name, _thinned(families, np.random.default_rng([seed, 7])), folder, DESCRIPTION)


def plan_strangers(folder: Path, count: int = 340, seed: int = 1000) -> Manifest:
    """`count` roots without relatives, equally many of every architecture."""
    family = Family("zoo_strangers", seed, count + 10)
    for number in range(count):
        architecture = ARCHITECTURES[number % len(ARCHITECTURES)]
        family.begin(architecture, "stranger", ("split", "fused")[number // 12 % 2] if architecture == "moe" else None)
        schedule = str(family.rng.choice(["cosine", "constant"]))
        family.root(int(family.rng.integers(60, 121)), schedule=schedule)
    return Manifest(
        "zoo_strangers", tuple(family.nodes), folder, "Models of the zoo's architectures without relatives."
    )


# Rate, decay and steps of children that leave an early snapshot far behind: by AdamW, under a cosine schedule.
DISTANT = {
    "far": (3e-3, 0.05, 100),
    "farther": (1e-2, 0.05, 150),
    "decayed": (1e-2, 2.0, 150),
    "gone": (1e-2, 4.0, 200),
    "vanished": (1e-2, 8.0, 200),
}


def plan_distant(folder: Path, roots: int = 2, seed: int = 2000) -> Manifest:
    """Relatives that hardly resemble one another: children trained long from a snapshot of 20 steps, not annealed."""
    family = Family("zoo_distant", seed, 6 * roots * len(ARCHITECTURES) + 10)
    for number in range(roots * len(ARCHITECTURES)):
        architecture = ARCHITECTURES[number % len(ARCHITECTURES)]
        family.begin(architecture, "distant", "split" if architecture == "moe" else None)
        early = family.root(20, schedule="constant")
        for task, (rate, decay, steps) in enumerate(DISTANT.values(), start=1):
            family.tune(early, task, 0, learning_rate=rate, decay=decay, steps=steps)
    return Manifest("zoo_distant", tuple(family.nodes), folder, "Relatives that hardly resemble one another.")


def plan_small_zoo(folder: Path) -> Manifest:
    """Two families for the tests: what each plot has at its core."""
    family = Family(SMALL_ZOO, 7, 60)
    family.begin("lstm", "precision")
    PLOTS["precision"](family, small=True)
    family.begin("mlp", "merges")
    PLOTS["merges"](family, small=True)
    return Manifest(SMALL_ZOO, tuple(family.nodes), folder, DESCRIPTION)
