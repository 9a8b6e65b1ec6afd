"""How far a run is: a bar on a terminal, a line for each stage elsewhere."""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Step = Callable[..., object]


def progress(title: str) -> Callable[[int], Step]:
    """Progress in the form that `mother/` takes: over the bytes of models while these are read, else over tensors."""

    def start(total: int) -> Step:
        in_bytes = title == "reading"
        if not sys.stderr.isatty():
            size = f"{total / 1e6:,.1f} MB" if in_bytes else f"{total:,} tensors"
            print(f"{title}: {size}", file=sys.stderr, flush=True)
            return lambda count=1: None
        from tqdm import tqdm

        bar = tqdm(
            total=total,
            desc=title,
            unit="B" if in_bytes else "tensor",
            unit_scale=in_bytes,
            leave=False,
            file=sys.__stderr__,
        )

        def step(count: int = 1) -> None:
            bar.update(count)
            if bar.n >= total:
                bar.close()

        return step

    return start


def no_progress(title: str) -> Callable[[int], Step]:
    """Say nothing."""
    return lambda total: lambda count=1: None


def each(items: Iterable[Any], total: int, title: str, unit: str) -> Iterator[Any]:
    """The items one by one, with a bar over them on a terminal."""
    if not sys.stderr.isatty():
        print(f"{title}: {total:,} {unit}s", file=sys.stderr, flush=True)
        yield from items
        return
    from tqdm import tqdm

    yield from tqdm(items, total=total, desc=title, unit=unit, file=sys.__stderr__)
