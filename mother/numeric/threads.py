"""Work on a few cores: in threads where LAPACK uses one for a small matrix, in chunks that stay in the cache elsewhere.

Threads of Python that each ask torch for threads of its own keep one another waiting: what runs beside others must use
one core (`in_threads` sees to it) or numpy.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

CACHE_ENTRIES = 1 << 18  # budget: entries of all models that are worked on at a time
GPU_ENTRIES = 1 << 26  # budget: and on a GPU


def in_threads(work: Callable[[Any], object], items: Sequence[Any]) -> list[Any]:
    """The work for each item, each by one of as many threads as torch would use for one. Results in their order."""
    threads = torch.get_num_threads()
    if threads == 1 or len(items) < 2:
        return [work(item) for item in items]
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(work, items))
    finally:
        torch.set_num_threads(threads)


def in_parts(look: Callable[[list[int]], None], pairs: list[int], largest: int, device: torch.device) -> None:
    """Look at pairs in parts of at most `largest`; on a CPU one thread each: LAPACK uses no more for one matrix."""
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    step = max(1, min(largest, -(-len(pairs) // threads)))
    parts = [pairs[start : start + step] for start in range(0, len(pairs), step)]
    if device.type == "cpu":
        in_threads(look, parts)
    else:
        for part in parts:
            look(part)


def in_chunks(
    weights: Float[Tensor, "models ..."], cached: int = CACHE_ENTRIES
) -> Sequence[Float[Tensor, "models entries"]]:
    """The weights of all models in stretches of entries that fit the cache; on a GPU in large ones."""
    flat = weights.flatten(1)
    return flat.split(max(1024, (GPU_ENTRIES if flat.is_cuda else cached) // len(flat)), dim=1)
