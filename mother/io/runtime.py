"""What a run needs of its machine: the device, the versions of libraries, and whether it was asked to stop."""

import platform
import threading

import numpy as np
import torch

from mother.errors import InputError


def choose_device(device: str = "auto") -> tuple[torch.device, str]:
    """The device to compute on and why: a GPU when there is one, unless another is asked for.

    Raises InputError for a device that is not there.
    """
    if device != "auto":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"the device {device!r} cannot be used: {reason} Use auto or cpu.") from None
        return torch.device(device), "as asked"
    if torch.cuda.is_available():
        return torch.device("cuda"), f"auto: {torch.cuda.get_device_name()}"
    return torch.device("cpu"), f"auto: no CUDA device; {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    import numba
    import safetensors
    import scipy

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "numba": numba.__version__,
        "scipy": scipy.__version__,
        "safetensors": safetensors.__version__,
    }


STOP = threading.Event()  # set where a run is stopped, so that no thread waits for another try

IN_FLIGHT = 8  # models that are read at once over a network

ON_DISK = 2  # and from disks
