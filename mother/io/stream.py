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

AHEAD = (
    1 << 28
)  # budget: bytes of weights in float32 that one step of reading from afar may hold; two are in memory at a time
HANDED = 1 << 18  # budget: bytes that a thread is asked for at a time, of small models
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


class _Reader:
    """Steps on their way from the models: asked for, read by several threads, put into one stack.

    What comes over a network is asked for a step ahead. What disks have brought is copied while nobody computes:
    torch's threads would wait for those that copy.
    """

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        failed: dict[str, CheckpointError],
        pool: ThreadPoolExecutor,
        remote: bool,
        pinned: bool,
    ):
        self.checkpoints, self.failed, self.pool, self.remote, self.pinned = checkpoints, failed, pool, remote, pinned
        self.stack = torch.zeros(0)

    def room(self, layer: Layer, members: list[int]) -> Tensor:
        """Memory for the weights of a layer: that of the last request, if its shape is the same."""
        shape = (len(members), *self.checkpoints[members[0]].shape(layer))
        if self.stack.shape != shape:
            self.stack = torch.zeros(shape, pin_memory=self.pinned)
        return self.stack

    def _wanted(self, step: list[Request]) -> dict[int, dict[str, Tensor | None]]:
        """By model the tensors that a step needs, and the memory that each is read into."""
        wanted: dict[int, dict[str, Tensor | None]] = {}
        for layer, members in step:
            rows = [None] * len(members) if self.remote else self.room(layer, members)
            for place, row in zip(members, rows):
                if self.checkpoints[place].model not in self.failed:
                    wanted.setdefault(place, {})[self.checkpoints[place].layers[layer]] = row
        return wanted

    def _read(self, place: int, rows: dict[str, Tensor | None]) -> dict[str, Tensor]:
        into = {name: row for name, row in rows.items() if row is not None}
        return self.checkpoints[place].read_tensors(list(rows), into)

    def submit(self, step: list[Request]) -> dict[int, Future]:
        """Let the threads read what a step needs, all of one model by one thread."""
        return {place: self.pool.submit(self._read, place, rows) for place, rows in self._wanted(step).items()}

    def _read_some(
        self, some: list[tuple[int, dict[str, Tensor | None]]]
    ) -> dict[int, dict[str, Tensor] | CheckpointError]:
        """What some models hold, or why one cannot be read; for one thread."""
        found: dict[int, dict[str, Tensor] | CheckpointError] = {}
        for place, rows in some:
            try:
                found[place] = self._read(place, rows)
            except CheckpointError as error:
                found[place] = error
        return found

    def _read_here(self, step: list[Request]) -> dict[int, dict[str, Tensor] | CheckpointError]:
        """Let the threads read what a step needs from disks; small models share a thread: each hand-over costs."""
        wanted = list(self._wanted(step).items())
        each = max(1, sum(4 * self.checkpoints[members[0]].entries(layer) for layer, members in step))
        count = max(1, HANDED // each)
        found: dict[int, dict[str, Tensor] | CheckpointError] = {}
        for some in self.pool.map(self._read_some, [wanted[at : at + count] for at in range(0, len(wanted), count)]):
            found |= some
        return found

    def prepare(self, step: list[Request]) -> dict[int, Future]:
        """Begin with a step that comes after the one at hand."""
        if self.remote:
            return self.submit(step)
        self.pool.submit(self._expect, step)
        return {}

    def _expect(self, step: list[Request]) -> None:
        for layer, members in step:
            for place in members:
                self.checkpoints[place].expect(layer)

    def finish(self, step: list[Request], prepared: dict[int, Future]) -> dict[int, dict[str, Tensor]]:
        """The tensors of a step by model. A model that cannot be read goes into `failed`."""
        read = self._read_here(step) if not self.remote else {at: _result(one) for at, one in prepared.items()}
        prepared.clear()  # the futures hold the weights, too
        found: dict[int, dict[str, Tensor]] = {}
        for place, one in read.items():
            if isinstance(one, CheckpointError):
                self.failed.setdefault(self.checkpoints[place].model, one)
            else:
                found[place] = one
        return found

    def fill(
        self, layer: Layer, members: list[int], found: dict[int, dict[str, Tensor]], read: Callable[[], object]
    ) -> Tensor:
        """The stack with the weights of one layer; zeros for models that failed."""
        rows = self.room(layer, members)
        for place, row in zip(members, rows):
            if place not in found or self.checkpoints[place].model in self.failed:
                row.zero_()
            elif (weight := found[place].pop(self.checkpoints[place].layers[layer])) is not row:
                row.copy_(weight)
            read()
        return rows


def _result(future: Future) -> dict[str, Tensor] | CheckpointError:
    """What a thread has read, or why it could not."""
    try:
        return future.result()
    except CheckpointError as error:
        return error


def _at_hand(
    checkpoints: Sequence[Checkpoint], requests: Sequence[Request], read: Callable[[], object]
) -> Iterator[Float[Tensor, "models ..."]]:
    """The same as `read_ahead` of models that are in memory: of small ones asking threads costs more than copying."""
    stack = torch.zeros(0)
    for layer, members in requests:
        some = [weight for place in members if (weight := checkpoints[place].at_hand(layer)) is not None]
        shape = (len(some), *some[0].shape)
        stack = torch.stack(some, out=stack if stack.shape == shape else torch.empty(shape))
        for _ in members:
            read()
        yield stack


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
    if all(checkpoints[place].at_hand(layer) is not None for layer, members in requests for place in members):
        yield from _at_hand(checkpoints, requests, read)
        return
    remote = any(checkpoint.remote for checkpoint in checkpoints)
    steps = _steps(checkpoints, requests, AHEAD if remote else 0)
    with ThreadPoolExecutor(IN_FLIGHT if remote else ON_DISK) as pool:
        reader = _Reader(checkpoints, failed, pool, remote, pinned)
        try:
            step = next(steps, None)
            prepared = reader.prepare(step) if step is not None else {}
            while step is not None:
                following = next(steps, None)
                ahead = reader.prepare(following) if following is not None else {}
                found = reader.finish(step, prepared)
                for layer, members in step:
                    yield reader.fill(layer, members, found, read)
                step, prepared = following, ahead
        except KeyboardInterrupt:
            STOP.set()  # other threads need not wait for what nobody wants any more
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            STOP.clear()
