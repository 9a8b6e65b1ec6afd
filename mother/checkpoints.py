"""Open a model folder, a safetensors file or a Hub repository; read the tensors asked for, one at a time.

Nothing of a checkpoint is executed, and nothing of it stays in memory: a tensor is read where it stands
in its file and returned in float32.
"""

import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from mother.errors import CheckpointError
from mother.headers import DTYPES, TensorInfo, header_length, parse_header
from mother.layers import Layer, name_layers
from mother.model_graph import HUB_SOURCE

# In the order in which they are looked for: an index, where there is one, knows all shards.
WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
)

ENDS = 65536  # bytes of a file that its fingerprint reads at either end
LARGEST = torch.finfo(torch.float32).max / 4  # differences of two weights, and their ranges, stay finite


@dataclass(frozen=True)
class Checkpoint:
    """An opened model: where each of its tensors lies. Holds no weights."""

    model: str
    tensors: dict[str, tuple[Path, TensorInfo]]
    layers: dict[Layer, str]

    def shape(self, layer: Layer) -> tuple[int, ...]:
        """Shape of a layer's weight."""
        return self.tensors[self.layers[layer]][1].shape

    def read(self, layer: Layer) -> torch.Tensor:
        """Read one weight in float32; raises CheckpointError as `read_tensor` does."""
        return self.read_tensor(self.layers[layer])

    def read_tensor(self, name: str) -> torch.Tensor:
        """Read one tensor by its raw name, in float32.

        Raises CheckpointError if it cannot be read, is not floating point, or holds NaN or infinity.
        """
        file, info = self.tensors[name]
        if info.dtype not in DTYPES:
            raise CheckpointError(
                self.model, file, f"tensor {name} is stored as {info.dtype}", "Give the model in F64, F32, F16 or BF16."
            )
        buffer = bytearray(info.end - info.start)
        try:
            with open(file, "rb", buffering=0) as stream:
                stream.seek(info.start)
                filled = 0
                while filled < len(buffer) and (count := stream.readinto(memoryview(buffer)[filled:])):
                    filled += count
        except OSError as error:
            raise _unreadable(self.model, file, error) from None
        if filled < len(buffer):
            raise CheckpointError(
                self.model, file, f"the file ends inside tensor {name}", "Fetch or save the model again."
            )
        if not buffer:
            return torch.zeros(info.shape)
        weight = torch.frombuffer(buffer, dtype=DTYPES[info.dtype]).reshape(info.shape).float()
        # NaN wins every maximum, so that one look at the weights tells whether they are sound.
        if weight.numel() and not (largest := float(weight.abs().max())) <= LARGEST:
            bad = "NaN" if math.isnan(largest) else "infinity"
            if math.isfinite(largest):
                bad = f"values above {LARGEST:.1e}, whose differences overflow"
            raise CheckpointError(
                self.model, file, f"tensor {name} holds {bad}", "The model is broken: take another snapshot of it."
            )
        return weight

    def fingerprint(self) -> list[tuple[str, int, int, str]]:
        """(path, size, modification time in ns, digest of both ends) of each file: changes whenever a file does.

        Raises CheckpointError where a file has gone.
        """
        facts = []
        for file in sorted({file for file, _ in self.tensors.values()}):
            try:
                with open(file, "rb") as stream:
                    status = os.fstat(stream.fileno())
                    ends = stream.read(ENDS)
                    stream.seek(max(0, status.st_size - ENDS))
                    digest = hashlib.sha256(ends + stream.read(ENDS)).hexdigest()
            except OSError as error:
                raise _unreadable(self.model, file, error) from None
            facts.append((str(file), status.st_size, status.st_mtime_ns, digest))
        return facts


def _unreadable(model: str, file: Path, error: OSError) -> CheckpointError:
    if isinstance(error, FileNotFoundError):
        return CheckpointError(model, file, "there is no such file", "Fetch or save the model again.")
    return CheckpointError(model, file, f"cannot be read: {error.strerror}", "Check the path and its permissions.")


def _read_header(model: str, file: Path) -> dict[str, TensorInfo]:
    try:
        with open(file, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = header_length(stream.read(8), size)
            return parse_header(stream.read(length), size)
    except OSError as error:
        raise _unreadable(model, file, error) from None
    except ValueError as error:
        raise CheckpointError(model, file, str(error), "Fetch or save the model again.") from None


def _shards(model: str, index: Path) -> list[Path]:
    """The shard files that an index names; they must lie beside it."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except OSError as error:
        raise _unreadable(model, index, error) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(
            model, index, "the index has no weight_map of file names", "Fetch or save the model again."
        ) from None
    for name in names:
        if (
            not isinstance(name, str)
            or not name.isprintable()
            or name in ("", ".", "..")
            or any(part in name for part in ("/", "\\", "\0"))
        ):
            raise CheckpointError(
                model, index, f"the index names the shard {name!r}, outside its folder", "Do not trust this checkpoint."
            )
    return [index.parent / name for name in names]


def _find_weights(model: str, location: Path) -> Path:
    """The weight file or index of a local model."""
    try:
        return _look_for_weights(model, location)
    except OSError as error:  # no permission, or a name that no file can have
        raise _unreadable(model, location, error) from None


def _look_for_weights(model: str, location: Path) -> Path:
    if location.is_file():
        if location.suffix == ".safetensors" or location.name.endswith(".safetensors.index.json"):
            return location
        raise CheckpointError(model, location, "is not a safetensors file", "Save the model with save_pretrained.")
    if not location.is_dir():
        raise CheckpointError(model, location, "there is no such file or folder", "Mend the source in the manifest.")
    for name in WEIGHT_FILES:
        if (location / name).exists():
            return location / name
    names = sorted(entry.name for entry in location.iterdir())
    if "adapter_config.json" in names:
        raise CheckpointError(
            model,
            location,
            "is a PEFT adapter, not a model",
            "Merge it into its base (merge_and_unload) and save that.",
        )
    files = [name for name in names if name.endswith(".safetensors")]
    if len(files) == 1:
        return location / files[0]
    if files:
        raise CheckpointError(model, location, f"has {len(files)} safetensors files and no index", "Name one of them.")
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) for name in names):
        raise CheckpointError(
            model, location, "has pickled weights only", "Convert them to safetensors; pickles can run code."
        )
    found = ", ".join(names[:5]) or "nothing"
    raise CheckpointError(model, location, f"has no weights, only {found}", "Fetch or save the model again.")


def _download(model: str, source: str) -> Path:
    """Fetch the weights of a Hub repository into the Hugging Face cache; returns the weight file or index."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    match = HUB_SOURCE.fullmatch(source)
    place = {"repo_id": match["repo"], "revision": match["revision"], "subfolder": match["subfolder"]}
    try:
        for name in WEIGHT_FILES:
            try:
                found = Path(hf_hub_download(filename=name, **place))
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                continue
            if name.endswith(".index.json"):
                for shard in _shards(model, found):
                    hf_hub_download(filename=shard.name, **place)
            return found
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            model,
            source,
            f"could not be fetched: {reason}",
            "Check the name, your access (`hf auth login`) and the network.",
        ) from None
    raise CheckpointError(model, source, "has no safetensors weights", "Name another revision, or a ':subfolder'.")


def open_checkpoint(model: str, location: str | Path) -> Checkpoint:
    """Open a local path or an `hf://` source; reads headers only. Raises CheckpointError."""
    if isinstance(location, str) and location.startswith("hf://"):
        weights = _download(model, location)
    else:
        weights = _find_weights(model, Path(location))
    files = _shards(model, weights) if weights.suffix == ".json" else [weights]
    tensors: dict[str, tuple[Path, TensorInfo]] = {}
    for file in files:
        for name, info in _read_header(model, file).items():
            if name in tensors:
                raise CheckpointError(model, file, f"tensor {name} stands in two shards", "Fetch or save it again.")
            tensors[name] = (file, info)
    return Checkpoint(model, tensors, name_layers(tensors))
