"""Models of honest people that an audit may get wrong: merges, quantizations and wrappers of every kind, and families
whose root was never annealed.

`make_honest` writes models made from grown ones by arithmetic; `grow_unannealed` trains small language models.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GROWN = Path(__file__).parent.parent / ".cache" / "audit"  # where the families without annealing are kept
Weights = dict[str, Tensor]
FAMILIES = {1: 3e-3, 2: 6e-3, 3: 1e-3}  # seed of a family without annealing -> rate of its root

# name -> (parent, recipe): children of very different moves, which share the drift of a root that was never annealed.
PLAN: dict[str, tuple[str | None, dict[str, Any]]] = {
    "base": (None, {"domain": "prose", "steps": 600}),
    "tiny": ("base", {"domain": "chat", "learning_rate": 1e-4, "steps": 30}),
    "small": ("base", {"domain": "prose", "learning_rate": 3e-4, "steps": 100}),
    "medium": ("base", {"domain": "code", "learning_rate": 1e-3, "steps": 200}),
    "large": ("base", {"domain": "python", "learning_rate": 3e-3, "steps": 400}),
    "cool": ("base", {"domain": "prose", "learning_rate": 5e-4, "steps": 300, "schedule": "cosine"}),
    "go_on": ("base", {"domain": "prose", "steps": 200}),
    "sgd": ("base", {"domain": "instruct", "learning_rate": 5e-2, "steps": 150, "optimizer": "sgd"}),
    "decay": ("base", {"domain": "chat", "learning_rate": 5e-4, "steps": 300, "weight_decay": 1.0}),
    "medium_a": ("medium", {"domain": "python", "learning_rate": 3e-4, "steps": 150}),
    "medium_b": ("medium", {"domain": "chat", "learning_rate": 5e-4, "steps": 150}),
    "large_a": ("large", {"domain": "instruct", "learning_rate": 2e-4, "steps": 100}),
    "tiny_a": ("tiny", {"domain": "code", "learning_rate": 5e-4, "steps": 150}),
}


def _grow_family(folder: Path, seed: int) -> None:
    """Train what is missing of one family, one thread."""
    from dataset.families import load_llama, train_on_text
    from dataset.vit import seed as seeded
    from dataset.wild import prepare

    torch.set_num_threads(1)
    for name, (parent, recipe) in PLAN.items():
        if (folder / name / "done").exists():
            continue
        common = {"optimizer": "adamw", "schedule": "constant", "weight_decay": 0.01, "exempt": True}
        whole = common | {"learning_rate": FAMILIES[seed], "seed": 1000 * seed + sum(map(ord, name))} | recipe
        drawn = seeded(whole)
        model = load_llama(folder / parent if parent is not None else None)
        train_on_text(model, whole, drawn, prepare)
        model.save_pretrained(folder / name)
        (folder / name / "done").touch()


def grow_unannealed(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Train the families, or what is missing of them; returns for each the parents of its models."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(_grow_family, [(folder / f"unannealed_{seed}", seed) for seed in FAMILIES])
    parents = {name: [parent] if parent else [] for name, (parent, _) in PLAN.items()}
    return {f"unannealed_{seed}": parents for seed in FAMILIES}


def _matrices(weights: Weights) -> list[str]:
    return [name for name, one in weights.items() if one.ndim == 2 and ".layer" in name]


def _combined(parts: list[tuple[float, Weights]]) -> Weights:
    return {name: sum(factor * one[name] for factor, one in parts) for name in parts[0][1]}


def _merges(root: Weights, kids: list[Weights]) -> Iterator[tuple[str, list[int], Weights]]:
    """(name, which children it was made of, weights): -1 is the root."""
    a, b, c, d = kids[:4]
    yield "half", [0, 1], _combined([(0.5, a), (0.5, b)])
    yield "uneven", [0, 1], _combined([(0.85, a), (0.15, b)])
    yield "three", [0, 1, 2], _combined([(0.5, a), (0.3, b), (0.2, c)])
    yield "four", [0, 1, 2, 3], _combined([(0.25, one) for one in (a, b, c, d)])
    yield "five", [-1, 0, 1, 2, 3], _combined([(0.2, one) for one in (root, a, b, c, d)])
    yield "task_arithmetic", [-1, 0, 1], _combined([(0.2, root), (0.4, a), (0.4, b)])
    yield "more_than_sum", [-1, 0, 1], _combined([(-0.6, root), (0.8, a), (0.8, b)])
    yield "negation", [-1, 0], _combined([(1.4, root), (-0.4, a)])
    yield "with_root", [-1, 0], _combined([(0.6, root), (0.4, a)])
    names = sorted(_matrices(a))
    upper = set(names[len(names) // 2 :])
    yield "layers_of_two", [0, 1], {name: (b if name in upper else a)[name] for name in a}
    yield "every_other_layer", [0, 1], {name: (b if name in names[::2] else a)[name] for name in a}
    generator = torch.Generator().manual_seed(0)
    dare = {}
    for name in a:
        keep = [(torch.rand(a[name].shape, generator=generator) < 0.4).float() / 0.4 for _ in (a, b)]
        dare[name] = root[name] + 0.5 * keep[0] * (a[name] - root[name]) + 0.5 * keep[1] * (b[name] - root[name])
    yield "dare", [-1, 0, 1], dare
    yield "bfloat16", [0, 1], {name: one.bfloat16() for name, one in _combined([(0.5, a), (0.5, b)]).items()}


def _quantized(rounded: Callable[[Tensor], Tensor], levels: int, block: int | None, weight: Tensor) -> Tensor:
    blocks = weight.reshape(-1, block) if block and weight.numel() % block == 0 else weight
    step = blocks.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / levels
    return (rounded(blocks / step) * step).reshape(weight.shape)


def _quantizations(weights: Weights) -> Iterator[tuple[str, Weights]]:
    generator = torch.Generator().manual_seed(1)

    def stochastic(values: Tensor) -> Tensor:
        return (values + torch.rand(values.shape, generator=generator)).floor()

    ways = {
        "int8_row": (torch.round, 127, None),
        "int4_block": (torch.round, 7, 32),
        "int8_floor": (torch.floor, 127, None),
        "int4_floor": (torch.floor, 7, 32),
        "int8_stochastic": (stochastic, 127, None),
        "int4_stochastic": (stochastic, 7, 32),
        "int8_truncated": (torch.trunc, 127, None),
    }
    inside = _matrices(weights)
    for name, (rounded, levels, block) in ways.items():
        for part, chosen in (("all", inside), ("some", inside[::3])):
            made = {key: _quantized(rounded, levels, block, weights[key]) for key in chosen}
            yield f"{name}_{part}", weights | made
    yield (
        "bfloat16_stochastic",
        {
            key: (one.view(torch.int32) + torch.randint(0, 1 << 16, one.shape, generator=generator, dtype=torch.int32))
            .bitwise_and(-65536)
            .view(torch.float32)
            for key, one in weights.items()
        },
    )


def _renamed(weights: Weights) -> Iterator[tuple[str, Weights]]:
    """The same weights as other software saves them."""
    for wrapper in ("_orig_mod.", "net.", "ema.", "student.backbone.", "_forward_module.", "x.y.z."):
        yield f"wrapped_{wrapper.strip('._').replace('.', '_')}", {wrapper + key: one for key, one in weights.items()}
    for pattern, words in (("meta", ("blk", "wq")), ("odd", ("stage", "proj"))):
        yield (
            f"renamed_{pattern}",
            {key.replace("encoder.layer", words[0]).replace("query", words[1]): one for key, one in weights.items()},
        )
    yield "transposed", {key: (one.T.contiguous() if one.ndim == 2 else one) for key, one in weights.items()}
    fewer = {key: one for key, one in weights.items() if ".layer.1." not in key and ".layers.1." not in key}
    yield "a_layer_dropped", fewer
    order = torch.randperm(
        next(one.shape[0] for key, one in weights.items() if key.endswith("layernorm_before.weight"))
    )
    inner = {key: one[order] for key, one in weights.items() if one.ndim == 2 and one.shape[0] == len(order)}
    yield "rows_in_another_order", weights | inner


def make_honest(folder: Path, root: Path, kids: list[Path], parents: dict[str, list[str]]) -> dict[str, list[str]]:
    """Write models made from a grown root and its children into `folder`; adds what each truly comes from."""
    loaded = [
        {key.removeprefix("vit."): one for key, one in load_file(path / "model.safetensors").items()}
        for path in (root, *kids)
    ]  # roots are saved without their head
    shared = sorted(set.intersection(*({(key, one.shape) for key, one in weights.items()} for weights in loaded)))
    base, *rest = ({key: one[key].float() for key, _ in shared} for one in loaded)
    names = [path.name for path in (root, *kids)]

    def keep(name: str, weights: Weights, of: list[str]) -> None:
        (folder / name).mkdir(parents=True, exist_ok=True)
        save_file({key: one.contiguous() for key, one in weights.items()}, folder / name / "model.safetensors")
        parents[name] = of

    for name, made_of, weights in _merges(base, rest):
        keep(f"merge_{name}", weights, [names[at + 1] for at in made_of])
    for name, weights in _quantizations(rest[0]):
        keep(f"quantized_{name}", weights, [names[1]])
    for name, weights in _renamed(rest[1]):
        keep(f"form_{name}", weights, [names[2]])
    return parents
