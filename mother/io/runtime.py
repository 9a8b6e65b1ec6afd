"""What a run needs of its machine: the device, the versions of libraries, and whether it was asked to stop."""

import hashlib
import platform
import threading
from functools import cache
from importlib import metadata
from pathlib import Path

from mother.errors import InputError

STOP = threading.Event()  # set where a run is stopped, so that no thread waits for another try
IN_FLIGHT = 8  # budget: models that are read at once over a network
ON_DISK = 2  # budget: and from disks
NUMERIC = ("torch", "numpy", "numba", "scipy", "safetensors")  # libraries that the numbers depend on


def choose_device(device: str = "auto") -> tuple["torch.device", str]:
    """The device to compute on and why: a GPU when there is one, unless another is asked for.

    Raises InputError for a device that is not there.
    """
    import torch

    if device != "auto":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"the device {device!r} cannot be used: {reason} Use auto or cpu.") from None
        if torch.device(device).type == "meta":
            raise InputError(f"{device!r} is no device to compute on: it holds no numbers. Use auto or cpu.")
        return torch.device(device), "as asked"
    if torch.cuda.is_available():
        return torch.device("cuda"), f"auto: {torch.cuda.get_device_name()}"
    return torch.device("cpu"), f"auto: no CUDA device; {torch.get_num_threads()} threads"


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
