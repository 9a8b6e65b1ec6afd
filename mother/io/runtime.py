"""What a run needs of its machine: the device, the versions of libraries, and whether it was asked to stop."""

import hashlib
import os
import platform
import re
import resource
import threading
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

from mother.errors import InputError

VERSION = "0.2.0"  # of this software, for a checkout that is not installed
STOP = threading.Event()  # set where a run is stopped, so that no thread waits for another try
IN_FLIGHT = 8  # budget: models that are read at once over a network
ON_DISK = 2  # budget: and from disks
NUMERIC = ("torch", "numpy", "numba", "scipy", "safetensors")  # libraries that the numbers depend on


def version() -> str:
    """The version of this software that is installed, or that of the checkout."""
    try:
        return metadata.version("mother")
    except metadata.PackageNotFoundError:
        return VERSION


def choose_device(device: str = "auto") -> tuple["torch.device", str]:
    """The device to compute on and why: a GPU when there is one, unless another is asked for.

    Raises InputError for a device that is not there.
    """
    import torch

    if device != "auto":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise InputError(f"the device {device!r} cannot be used: {reason}. Use auto or cpu.") from None
        if torch.device(device).type == "meta":
            raise InputError(f"{device!r} is no device to compute on: it holds no numbers. Use auto or cpu.")
        return torch.device(device), "as asked"
    if torch.cuda.is_available():
        return torch.device("cuda"), f"auto: {torch.cuda.get_device_name()}"
    return torch.device("cpu"), f"auto: no CUDA device; {torch.get_num_threads()} threads"


@cache
def memory() -> int:
    """Bytes of memory that this process may have at most: the machine's, or those of a limit that is set for it."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    found += [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit > 0]  # no limit is -1
    with suppress(OSError, ValueError):  # of a container; "max" where it has none
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(found)


def free_memory() -> int:
    """Bytes that can be had at this moment, counting what the system keeps of files and would give up."""
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return min(memory(), 1024 * int(found[1]) if found else memory())


@cache
def versions() -> dict[str, str]:
    """Versions of what the numbers depend on, without importing any of it."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in NUMERIC}


@cache
def code_digest() -> str:
    """Digest of the source of this package: a result is kept only for the code that made it."""
    digest = hashlib.sha256()
    package = Path(__file__).parent.parent
    for path in sorted([*package.rglob("*.py"), *package.rglob("*.json")]):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]
