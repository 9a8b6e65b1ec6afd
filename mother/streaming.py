"""Read layers of many models ahead of what computes with them, several models in flight, within a bound of memory."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from mother.checkpoints import Checkpoint
from mother.errors import CheckpointError
from mother.hub import STOP
from mother.layers import Layer

AHEAD = 1 << 28  # bytes of weights in float32 that one step of reading from afar may hold; two are in memory at a time
IN_FLIGHT = 8  # models that are read at once over a network
ON_DISK = 2  # and from disks

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
    room: Callable[[Layer], torch.Tensor] | None = None,
) -> Iterator[tuple[list[int], list[torch.Tensor]]]:
    """For each request the places of the models that could be read, and their weights in float32, as stored.

    A model that cannot be read goes into `failed` with its error, and is not asked again. `read()` is called after
    each tensor. Who empties the list that is yielded frees its memory before more is read. From disks, tensors are
    read into `room(layer)`, (models, *shape), after the request before has been worked on.
    """
    remote = any(checkpoint.remote for checkpoint in checkpoints)
    with ThreadPoolExecutor(IN_FLIGHT if remote else ON_DISK) as pool:
        waiting: list[tuple[list[Request], dict[int, Future]]] = []
        steps = _steps(checkpoints, requests, AHEAD if remote else 0)

        def submit(step: list[Request]) -> dict[int, Future]:
            names: dict[int, dict[str, torch.Tensor | None]] = {}
            for layer, members in step:
                stack = None if remote or room is None else room(layer)
                for place in members:
                    if checkpoints[place].model not in failed:
                        row = None if stack is None else stack[place]
                        names.setdefault(place, {})[checkpoints[place].layers[layer]] = row
            futures = {}
            for place, rows in names.items():
                into = {name: row for name, row in rows.items() if row is not None}
                futures[place] = pool.submit(checkpoints[place].read_tensors, list(rows), into)
            return futures

        def ask() -> None:
            step = next(steps, None)
            if step is None:
                return
            if not remote:
                for layer, members in step:
                    for place in members:
                        checkpoints[place].expect(layer)
            waiting.append((step, submit(step) if remote else {}))

        try:
            ask()
            while waiting:
                ask()  # the next step is on its way while this one is worked on
                step, futures = waiting.pop(0)
                if not remote:
                    # What disks have brought is copied while nobody computes: torch's threads wait for one another.
                    futures = submit(step)
                found: dict[int, dict[str, torch.Tensor]] = {}
                for place, future in futures.items():
                    try:
                        found[place] = future.result()
                    except CheckpointError as error:
                        failed.setdefault(checkpoints[place].model, error)
                futures.clear()  # they hold the weights, too
                for layer, members in step:
                    there = [at for at in members if at in found and checkpoints[at].model not in failed]
                    weights = [found[at].pop(checkpoints[at].layers[layer]) for at in there]
                    for _ in members:
                        read()
                    yield there, weights
        except KeyboardInterrupt:
            STOP.set()  # other threads need not wait for what nobody wants any more
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            STOP.clear()
