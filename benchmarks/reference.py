"""The paper's recipe written down as plainly as it can be, on numpy, scipy and networkx: what ours is timed against.

Both models of each pair are loaded, layer by layer; nothing is shared between pairs.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import networkx as nx
import numpy as np
import scipy.stats
from safetensors.numpy import load_file

ATTENTION = ("query", "key", "value", "dense")  # kinds as the files name them


def _load(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def layer_statistics(pairs: Sequence[tuple[Path, Path]]) -> float:
    """Seconds for minimum, maximum, mean and deviation of each layer's difference of these pairs."""
    started = time.perf_counter()
    for one, other in pairs:
        first, second = _load(one), _load(other)
        for name in first:
            difference = first[name] - second[name]
            _ = difference.min(), difference.max(), difference.mean(), difference.std()
    return time.perf_counter() - started


def largest_differences(pairs: Sequence[tuple[Path, Path]]) -> float:
    """Seconds for the largest normalised difference of these pairs (l_FT)."""
    started = time.perf_counter()
    for one, other in pairs:
        first, second = _load(one), _load(other)
        _ = max(float(((first[name] - second[name]) + 1).max() / 2) for name in first)
    return time.perf_counter() - started


def mean_differences(pairs: Sequence[tuple[Path, Path]]) -> float:
    """Seconds for the sum over layers of the mean absolute difference of these pairs (clusters of full fine-tuning)."""
    started = time.perf_counter()
    for one, other in pairs:
        first, second = _load(one), _load(other)
        _ = sum(float(np.abs(first[name] - second[name]).mean()) for name in first)
    return time.perf_counter() - started


def ranks(pairs: Sequence[tuple[Path, Path]], kinds: Sequence[str] = ATTENTION) -> float:
    """Seconds for the sum of ranks over the layers of these kinds of these pairs (l_LoRA)."""
    started = time.perf_counter()
    for one, other in pairs:
        first, second = _load(one), _load(other)
        _ = sum(np.linalg.matrix_rank(first[name] - second[name]) for name in first if name.split(".")[-2] in kinds)
    return time.perf_counter() - started


def kurtosis(models: Sequence[Path], kinds: Sequence[str] = ATTENTION) -> float:
    """Seconds for the kurtosis of the layers of these kinds of these models."""
    started = time.perf_counter()
    for model in models:
        weights = _load(model)
        _ = sum(scipy.stats.kurtosis(weights[name].flatten()) for name in weights if name.split(".")[-2] in kinds)
    return time.perf_counter() - started


def arborescence(models: int) -> float:
    """Seconds of networkx for a dense minimum spanning arborescence."""
    rng = np.random.default_rng(0)
    started = time.perf_counter()
    graph = nx.DiGraph()
    weights = rng.random((models, models))
    graph.add_weighted_edges_from((i, j, weights[i, j]) for i in range(models) for j in range(models) if i != j)
    nx.minimum_spanning_arborescence(graph)
    return time.perf_counter() - started
