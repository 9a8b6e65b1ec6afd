"""Work in threads: LAPACK uses one core for a small matrix, and chunks that stay in a core's cache need no more."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch


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
