"""Stream a collection layer by layer through statistics: every weight is read once, one layer is in memory."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mother.errors import CheckpointError
from mother.io.checkpoint import Checkpoint
from mother.io.layers import Layer, is_backbone, sort_key
from mother.io.open import lacks
from mother.io.runtime import versions
from mother.io.snapshots import Snapshot
from mother.io.stream import read_ahead

STATISTICS_SCHEMA = 1  # raise it when a statistic changes its meaning: what was kept is measured again

# Weights of one layer (models, rows, columns) -> (models, ...) or, for pairs, (models, models); or several of these
Statistic = Callable[[Tensor], Tensor | dict[str, Tensor]]


def square_layers(checkpoint: Checkpoint, kinds: Iterable[str] | None) -> dict[Layer, tuple[int, ...]]:
    """Shapes of the square 2-D weights of the given kinds, or of all kinds (None).

    Paper: only square matrices are used. Without `kinds`, weights outside the blocks are left out where
    they belong to a head or an embedding, which are resized, tied or new in each model.
    """
    wanted = None if kinds is None else set(kinds)
    found = {}
    for layer in checkpoint.layers:
        shape = checkpoint.shape(layer)
        if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 2:
            continue
        if layer.kind in wanted if wanted is not None else is_backbone(layer):
            found[layer] = shape
    return found


def comparable(
    checkpoints: Sequence[Checkpoint], kinds: Iterable[str] | None
) -> tuple[list[Checkpoint], list[Layer], dict[str, str]]:
    """The largest group of models with equal square layers of these kinds, and why the others are left out.

    Returns (models in their order, layers in theirs, reason by id of each model left out). Of two groups
    of one size the one whose first model comes first is taken.
    """
    left_out: dict[str, str] = {}
    groups: dict[frozenset, list[Checkpoint]] = {}
    shapes: dict[frozenset, dict[Layer, tuple[int, ...]]] = {}
    for checkpoint in checkpoints:
        layers = square_layers(checkpoint, kinds)
        if not layers:
            asked = ", ".join(kinds) if kinds is not None else "any kind"
            left_out[checkpoint.model] = str(lacks(checkpoint, f"square layers of {asked}"))
            continue
        signature = frozenset(layers.items())
        groups.setdefault(signature, []).append(checkpoint)
        shapes[signature] = layers
    if not groups:
        return [], [], left_out
    chosen = max(groups, key=lambda signature: len(groups[signature]))
    reference = shapes[chosen]
    for signature, members in groups.items():
        if signature == chosen:
            continue
        layer = min(
            (
                layer
                for layer in {**reference, **shapes[signature]}
                if reference.get(layer) != shapes[signature].get(layer)
            ),
            key=sort_key,
        )
        here, there = shapes[signature].get(layer, "missing"), reference.get(layer, "missing")
        for member in members:
            left_out[member.model] = (
                f"model {member.model}: layer {layer} is {here} here and {there} in the {len(groups[chosen])} models "
                "compared. Only models of one shape can be compared: give it a collection of its own."
            )
    return groups[chosen], sorted(reference, key=sort_key), left_out


@dataclass
class Measured:
    """Statistics of a collection: `arrays[name]` has shape (layers, models[, models])."""

    models: list[str]
    layers: list[Layer]
    arrays: dict[str, np.ndarray]
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    read: str = ""  # digest of the files that were read, once they are kept as results
    transient: bool = False  # whether a model is left out for a reason that may pass

    def keep(self, models: Sequence[str]) -> "Measured":
        """The same for some of the models."""
        chosen = [self.models.index(model) for model in models]
        arrays = {}
        for name, array in self.arrays.items():
            array = array[:, chosen]
            arrays[name] = array[:, :, chosen] if name.startswith("pair_") else array
        return replace(self, models=list(models), arrays=arrays)


def stream(
    checkpoints: Sequence[Checkpoint],
    layers: Sequence[Layer],
    device: torch.device,
    failed: dict[str, CheckpointError],
    read: Callable[[], object] = lambda: None,
) -> Iterator[tuple[Layer, Tensor]]:
    """Yield each layer with the weights of all models, float32 (models, rows, columns), on `device`.

    A model that cannot be read goes into `failed` with its error, and its weights are zeros from there on.
    `read()` is called after each tensor. The tensor yielded is overwritten by the next layer of its shape.
    """
    requests = [(layer, list(range(len(checkpoints)))) for layer in layers]
    weights = read_ahead(checkpoints, requests, failed, read, pinned=device.type == "cuda")
    for layer, stack in zip(layers, weights):
        yield layer, stack.to(device)


def measure(
    checkpoints: Sequence[Checkpoint],
    kinds: Iterable[str] | None,
    statistics: dict[str, Statistic],
    device: torch.device,
    progress: Callable[[int], Any] = lambda total: lambda: None,
    snapshot: Snapshot | None = None,
) -> Measured:
    """Read the square layers of these kinds once and compute all statistics of each.

    Models of another shape, without such layers, or that turn out broken are left out with the reason.
    Names of pairwise statistics begin with "pair_". One that gives several arrays names them itself.
    `progress(total)` returns a function that is called once for each of the `total` tensors read. With a `snapshot`
    an interrupted run goes on.
    """
    group, layers, left_out = comparable(checkpoints, kinds)
    if not group:
        return Measured([], [], {}, left_out)
    failed: dict[str, CheckpointError] = {}
    collected: dict[str, list[np.ndarray]] = defaultdict(list)
    done = 0
    snapshot = snapshot or Snapshot(None, {})
    if (kept := snapshot.load()) is not None:
        done, arrays, refused = kept
        collected.update({name: list(rows) for name, rows in arrays.items()})
        failed = {model: CheckpointError(model, *words) for model, words in refused.items()}

    def so_far() -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
        words = {model: [error.file, error.reason, error.remedy] for model, error in failed.items()}
        return {name: np.stack(rows) for name, rows in collected.items()}, words

    read = progress(len(group) * (len(layers) - done)) if done < len(layers) else None
    for _, weights in stream(group, layers[done:], device, failed, read or (lambda: None)):
        for name, statistic in statistics.items():
            found = statistic(weights)
            for each, values in found.items() if isinstance(found, dict) else [(name, found)]:
                collected[each].append(values.cpu().numpy())
        done += 1
        if not any(error.transient for error in failed.values()):
            snapshot.save(done, so_far)
    arrays = {name: np.stack(rows) for name, rows in collected.items()}
    left_out |= {model: str(error) for model, error in failed.items()}
    measured = Measured([checkpoint.model for checkpoint in group], layers, arrays, left_out)
    measured.transient = any(error.transient for error in failed.values())
    return measured.keep([model for model in measured.models if model not in failed])


def measure_once(
    path: Path, key: dict[str, Any], compute: Callable[[Snapshot], Measured], overwrite: bool = False
) -> tuple[Measured, float, bool]:
    """What `compute(snapshot)` measures, or what an earlier run kept at `path` under the same key and versions.

    The snapshot lets an interrupted measurement go on. Returns (measurements, seconds that computing took, whether
    they were reused).
    """
    key = key | {"versions": versions(), "schema": STATISTICS_SCHEMA}
    finished, part = Snapshot(path, key), Snapshot(path.with_suffix(".part.npz"), key)
    if overwrite:
        part.clear()
    elif (kept := finished.load()) is not None:
        _, arrays, facts = kept
        layers = [Layer(*layer) for layer in facts["layers"]]
        measured = Measured(facts["models"], layers, arrays, facts["left_out"], facts["notes"], key["read"])
        return measured, finished.before, True
    started = time.perf_counter()
    measured = compute(part)
    measured.read = key["read"]
    seconds = part.before + time.perf_counter() - started
    if not measured.transient:  # else the next run tries again
        names = ("models", "layers", "left_out", "notes")
        facts = {name: getattr(measured, name) for name in names}
        finished.save(len(measured.layers), lambda: (measured.arrays, facts), now=True, seconds=seconds)
        part.clear()
    return measured, seconds, False
