"""Where the work of an index is done: here, in a pool of processes, or as tasks of Ray. The functions are the same.

A job is a function of plain values that writes what it makes to a file of its own, so that one that is done twice does
no harm. A worker that dies costs the jobs that it was at; they are given to another one.
"""

import multiprocessing
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from mother.errors import InputError

RETRIES = 3  # times that a job is given to another worker where one died
ANSWER = 5.0  # seconds in which a cluster's address must answer: Ray itself tries for minutes, and warns all the time
HERE = ("local", "auto")  # addresses that name no machine: a cluster of this command's own, one that runs here
AHEAD = 2  # budget: jobs for each worker that are handed out at a time, so that none waits and no queue grows


@dataclass(frozen=True)
class Engine:
    """How many workers, and where: `ray` is None (processes of this machine), "local", or a cluster's address."""

    workers: int = 1
    ray: str | None = None

    def run(self, function: Callable[..., Any], jobs: Sequence[tuple]) -> Iterator[Any]:
        """What `function(*job)` returns for each job, as they end; jobs are read when there is room for them."""
        if self.ray is not None:
            yield from _on_ray(function, jobs, self.workers, self.ray)
        elif self.workers > 1 and len(jobs) > 1:
            yield from _in_processes(function, jobs, self.workers)
        else:
            for job in jobs:
                yield function(*job)


def _in_processes(function: Callable[..., Any], jobs: Sequence[tuple], workers: int) -> Iterator[Any]:
    """Jobs in a pool of processes; the pool is made anew where a process of it died."""
    left, died = list(range(len(jobs))), 0
    while left:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            try:
                waiting, running = iter(list(left)), {}
                while left:
                    while len(running) < AHEAD * workers and (at := next(waiting, None)) is not None:
                        running[pool.submit(function, *jobs[at])] = at
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        result = future.result()
                        left.remove(running.pop(future))
                        yield result
            except BrokenProcessPool:
                died += 1
                if died > RETRIES:
                    raise InputError(
                        f"a process of the pool was killed {died} times, perhaps for memory. Use fewer --workers."
                    ) from None
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def check_address(address: str) -> None:
    """Raises InputError where nothing answers at a cluster's address: host:port, or ray://host:port."""
    scheme, _, rest = address.rpartition("://")
    if address in HERE or scheme not in ("", "ray"):
        return
    try:
        parts = urlsplit(f"//{rest}")
        if not parts.hostname or not parts.port:
            raise ValueError("it is no host:port")
        socket.create_connection((parts.hostname, parts.port), ANSWER).close()
    except (OSError, ValueError) as error:
        raise InputError(_no_ray(address, error)) from None


def _no_ray(address: str, error: Exception) -> str:
    return f"there is no Ray at {address}: {error}. Give --ray local, auto, host:port or ray://host:port."


def _on_ray(function: Callable[..., Any], jobs: Sequence[tuple], workers: int, address: str) -> Iterator[Any]:
    """Jobs as tasks of Ray, which starts a task again where its worker died. Raises InputError without a cluster."""
    try:
        import ray
    except ImportError:
        raise InputError("--ray needs Ray, which is not installed. Install `mother[ray]`.") from None
    started = not ray.is_initialized()
    if started:
        check_address(address)
        quiet = {"include_dashboard": False} if address == "local" else {}
        here = {"num_cpus": workers, "_node_ip_address": "127.0.0.1"} if address == "local" else {"address": address}
        try:
            ray.init(**here, **quiet, log_to_driver=False, logging_level="error")
        except Exception as error:  # of a node that does not start in time Ray raises a plain one
            raise InputError(_no_ray(address, error)) from None
    try:
        task, waiting, running = ray.remote(max_retries=RETRIES)(function), iter(jobs), []
        width = AHEAD * max(workers, int(ray.cluster_resources().get("CPU", workers)))
        while True:
            while len(running) < width and (job := next(waiting, None)) is not None:
                running.append(task.remote(*job))
            if not running:
                return
            done, running = ray.wait(running, num_returns=1)
            yield ray.get(done[0])
    finally:
        if started:
            ray.shutdown()
