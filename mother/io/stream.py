"""Read layers of many models ahead of what computes with them, several models in flight, within a bound of memory."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from jaxtyping import Float
from torch import Tensor

from mother.errors import CheckpointError
from mother.io.checkpoint import Checkpoint
from mother.io.layers import Layer
from mother.io.runtime import IN_FLIGHT, ON_DISK, STOP

AHEAD = 1 << 28  # bytes of weights in float32 that one step of reading from afar may hold; two are in memory at a time
Request = tuple[Layer, list[int]]  # a layer, and places of the models that have it


def _steps(checkpoints: Sequence[Checkpoint], requests: Sequence[Request], ahead: int) -> Iterator[list[Request]]:
    """Requests in groups of at most so many bytes: neighbours of a remote file then come with one request."""
    step: list[Request] = []
    filled = 0
    for layer, members in requests:
        size = sum(4 * checkpoints[place].entries(layer) for place in members)
        if step and filled + size > ahead:
            yield step
            step, filled = [], 0
        step.append((layer, members))
        filled += size
    if step:
        yield step


def read_ahead(
    checkpoints: Sequence[Checkpoint],
    requests: Sequence[Request],
    failed: dict[str, CheckpointError],
    read: Callable[[], object] = lambda: None,
    pinned: bool = False,
) -> Iterator[Float[Tensor, "models ..."]]:
    """For each request the weights of its models in float32, which the next one of the same shape overwrites.

    A model that cannot be read goes into `failed` with its error, and is not asked again: its weights are zeros.
    `read()` is called after each tensor. `pinned`: in memory that a GPU copies from faster.
    """
    remote = any(checkpoint.remote for checkpoint in checkpoints)
    stack = torch.zeros(0)
    with ThreadPoolExecutor(IN_FLIGHT if remote else ON_DISK) as pool:
        waiting: list[tuple[list[Request], dict[int, Future]]] = []
        steps = _steps(checkpoints, requests, AHEAD if remote else 0)

        def room(layer: Layer, members: list[int]) -> Tensor:
            nonlocal stack
            shape = (len(members), *checkpoints[members[0]].shape(layer))
            if stack.shape != shape:
                stack = torch.zeros(shape, pin_memory=pinned)
            return stack

        def submit(step: list[Request]) -> dict[int, Future]:
            wanted: dict[int, dict[str, Tensor | None]] = {}
            for layer, members in step:
                rows = [None] * len(members) if remote else room(layer, members)
                for place, row in zip(members, rows):
                    if checkpoints[place].model not in failed:
                        wanted.setdefault(place, {})[checkpoints[place].layers[layer]] = row
            futures = {}
            for place, rows in wanted.items():
                into = {name: row for name, row in rows.items() if row is not None}
                futures[place] = pool.submit(checkpoints[place].read_tensors, list(rows), into)
            return futures

        def expect(step: list[Request]) -> None:
            for layer, members in step:
                for place in members:
                    checkpoints[place].expect(layer)

        def ask() -> None:
            step = next(steps, None)
            if step is not None:
                if not remote:
                    pool.submit(expect, step)
                waiting.append((step, submit(step) if remote else {}))

        try:
            ask()
            while waiting:
                ask()  # the next step is on its way while this one is worked on
                step, futures = waiting.pop(0)
                if not remote:
                    # What disks have brought is copied while nobody computes: torch's threads wait for one another.
                    futures = submit(step)
                found: dict[int, dict[str, Tensor]] = {}
                for place, future in futures.items():
                    try:
                        found[place] = future.result()
                    except CheckpointError as error:
                        failed.setdefault(checkpoints[place].model, error)
                futures.clear()  # they hold the weights, too
                for layer, members in step:
                    rows = room(layer, members)
                    for place, row in zip(members, rows):
                        if place not in found or checkpoints[place].model in failed:
                            row.zero_()
                        elif (weight := found[place].pop(checkpoints[place].layers[layer])) is not row:
                            row.copy_(weight)
                        read()
                    yield rows
        except KeyboardInterrupt:
            STOP.set()  # other threads need not wait for what nobody wants any more
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            STOP.clear()
