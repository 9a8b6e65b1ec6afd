"""Which files of a folder are loaded, whatever else lies beside them: as transformers and diffusers choose.

What is looked at must be what users load. A file that no loader takes unasked says nothing about the model, and a file
that is loaded must not be hidden by another one.
"""

import json
import re
from typing import Any

from mother.errors import CheckpointError, shown
from mother.io.places import File, Place, check_inside, is_plain
from mother.io.readers import SUFFIXES

# In the order in which they are looked for. transformers takes a whole file before an index, diffusers an index before
# a whole file; both take pickles last. diffusers takes an index of pickles only where it was told to.
TRANSFORMERS_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
DIFFUSERS_FILES = (
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.bin.index.json",
)
WEIGHT_FILES = (*TRANSFORMERS_FILES, *DIFFUSERS_FILES)
# An index of a variant, such as fp16: it is loaded only where its name is asked for.
VARIANT_INDEX = re.compile(
    r"((diffusion_pytorch_)?model\.safetensors|(diffusion_)?pytorch_model\.bin)\.index\.[^.]+\.json"
)

ANY_DATA = (".h5", ".hdf5")  # which may hold a model, or data beside one

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
ADAPTER_CONFIG = "adapter_config.json"
CONFIG = "config.json"
EXPLICIT = "transformers_weights"  # the key of a configuration that names the weights
MAX_JSON = 50_000_000  # bytes of an index or a configuration
DAMAGED = (ValueError, RecursionError)  # what json raises; huge integers and text that is not UTF-8 are ValueErrors


def read_text(model: str, file: File) -> str:
    """The text of a small file, whole. Raises CheckpointError."""
    if file.size > MAX_JSON:
        raise CheckpointError(model, file, f"it has {file.size} bytes", "Do not trust this checkpoint.")
    try:
        return file.head(file.size).decode("utf-8")
    except UnicodeDecodeError:
        raise CheckpointError(model, file, "it is not UTF-8", "Fetch or save the model again.") from None


def is_later_shard(name: str) -> bool:
    """Whether this is a part of a GGUF model that its first part leads to."""
    return re.fullmatch(r".+-[0-9]{5}-of-[0-9]{5}\.gguf", name) is not None and "-00001-of-" not in name


def is_index(name: str) -> bool:
    """Whether a file's name is that of an index of shards."""
    return name.endswith(".index.json") or VARIANT_INDEX.fullmatch(name) is not None


def read_index(model: str, index: File) -> dict[str, str]:
    """Tensor -> name of its shard, which lies beside the index. Raises CheckpointError."""
    text = read_text(model, index)
    try:
        weight_map = json.loads(text)["weight_map"]
        names = set(weight_map.values())
    except (*DAMAGED, KeyError, TypeError, AttributeError):
        raise CheckpointError(
            model, index, "the index has no weight_map of file names", "Fetch or save the model again."
        ) from None
    for name in names:
        if not is_plain(name):
            reason = f"the index names the shard {shown(name, 300)}, outside its folder"
            raise CheckpointError(model, index, reason, "Do not trust this checkpoint.")
    if not names:
        raise CheckpointError(model, index, "the index names no shard", "Fetch or save the model again.")
    return weight_map


def _configuration(place: Place) -> dict[str, Any]:
    """config.json of a folder; {} where there is none, or one that no loader could read either."""
    if not place.has(CONFIG):
        return {}
    file = place.open(CONFIG)
    if file.size > MAX_JSON:  # it might name other weights than those that we would read
        raise CheckpointError(place.model, file, f"it has {file.size} bytes", "Do not trust this checkpoint.")
    try:
        content = json.loads(file.head(file.size).decode("utf-8"))
    except DAMAGED:
        return {}
    return content if isinstance(content, dict) else {}


def _explicit(place: Place, config: dict[str, Any]) -> str | None:
    """The weights that a configuration names, as transformers takes them; raises CheckpointError for other names."""
    name = config.get(EXPLICIT)
    if name is None or name == ADAPTER_FILES[1]:  # which transformers leaves to PEFT
        return None
    file = place.open(CONFIG)
    if not is_plain(name):
        reason = f"{EXPLICIT} is {shown(name, 300)}, outside its folder"
        raise CheckpointError(place.model, file, reason, "Do not trust this checkpoint.")
    if not name.endswith((".safetensors", ".safetensors.index.json")):
        reason = f"{EXPLICIT} is {shown(name, 300)}, which is no safetensors file"
        raise CheckpointError(place.model, file, reason, "Name the weights that are loaded.")
    if not place.has(name):
        reason = f"{EXPLICIT} is {shown(name, 300)}, and there is no such file"
        raise CheckpointError(place.model, file, reason, "Fetch or save the model again.")
    check_inside(place, file, name)
    return name


def loaded_unasked(place: Place) -> str | None:
    """Name of the weight file or index that a loader takes from a folder; None where it would have to be told."""
    there = [name for name in WEIGHT_FILES if place.has(name)]
    config = _configuration(place)
    if "_class_name" in config and "model_type" not in config:  # diffusers wrote it
        return next((name for name in DIFFUSERS_FILES if name in there), there[0] if there else None)
    return _explicit(place, config) or (there[0] if there else None)


def the_only_one(place: Place) -> str | None:
    """Name of weights that nobody takes unasked, where they are the only ones: a variant, or a name of its own.

    Raises CheckpointError where there are several.
    """
    names = [name for name in place.names() if name not in ADAPTER_FILES]
    found = [name for name in names if VARIANT_INDEX.fullmatch(name)]
    found = found or [name for name in names if name.endswith(".safetensors")]
    found = found or [name for name in names if name.lower().endswith(SUFFIXES) and not is_later_shard(name)]
    found = [name for name in found if not name.lower().endswith(ANY_DATA)] or found
    if len(found) > 1:
        kind = "indices of variants" if is_index(found[0]) else "weight files and no index"
        raise CheckpointError(place.model, place, f"has {len(found)} {kind}", "Name one of them.")
    return found[0] if found else None


def is_model(place: Place) -> bool:
    """Whether a folder is one model, and no place of weight files that are a model each."""
    try:
        return loaded_unasked(place) is not None or any(VARIANT_INDEX.fullmatch(name) for name in place.names())
    except CheckpointError:  # opening it says why
        return True
