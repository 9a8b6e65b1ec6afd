"""Models whose weights are packed: each weight, in float32, under the name that it had before."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from mother.errors import CheckpointError, shown
from mother.io.checkpoint import Checkpoint, check_sizes, filled
from mother.io.layers import name_layers
from mother.io.packings import (
    ENDS,
    FLOAT8,
    LOOKED_INTO,
    MARK,
    Infos,
    Packed,
    Settings,
    cast_to_float8,
    experts,
    packed,
    scaled_alone,
)
from mother.io.pickle_names import WRAPPING
from mother.io.places import File, Place
from mother.io.reader import TensorInfo
from mother.io.runtime import memory

MOST_SMALL = 1 << 16  # bytes of a tensor that says what another one is
UNREAD = {"q_weight": "EXL2", "W_q": "HQQ"}  # layouts that are known by a name, and not read
UNREAD_METHODS = ("torchao", "EXL2", "EXL3", "HQQ", "AQLM", "QuIP", "VPTQ", "SpQR", "HIGGS", "EETQ", "Quanto", "BitNet")
UNREAD_LAYOUTS = frozenset("gemv gemv_fast marlin bitblas".split())  # of AWQ and GPTQ: for kernels of one GPU
CONFIG = "config.json"
CONFIGS = (CONFIG, "quantize_config.json")
MOST_CONFIG = 1 << 22  # bytes
INTEGERS = ("I8", "U8", "I32", "U32")


@dataclass(frozen=True)
class PackedCheckpoint(Checkpoint):
    """A model some of whose weights are packed."""

    raw: Checkpoint
    packed: dict[str, Packed]  # by the name of the weight
    settings: str  # digest of the configuration that says how they are packed

    def read_tensors(
        self, names: Sequence[str], into: Mapping[str, "torch.Tensor"] = MappingProxyType({})
    ) -> dict[str, "torch.Tensor"]:
        """See Checkpoint; packed weights are computed in float32."""
        import torch

        plain = [name for name in names if name not in self.packed]
        found = self.raw.read_tensors(plain, into) if plain else {}
        for name in names:
            if name not in self.packed:
                continue
            one, (file, _) = self.packed[name], self.tensors[name]
            stored = self.raw.read_stored([raw for role, raw in one.parts.items() if role not in one.as_bytes])
            content = self.raw.read_bytes([one.parts[role] for role in one.as_bytes])
            stored |= {raw: np.frombuffer(part, dtype=np.uint8) for raw, part in content.items()}
            try:
                with np.errstate(all="ignore"):  # what is not finite is refused later
                    values = one.unpack({role: stored[raw] for role, raw in one.parts.items()}).reshape(one.shape)
            except (ValueError, IndexError, OverflowError) as error:
                reason = f"tensor {name} ({one.storage}) cannot be unpacked: {shown(str(error), 200)}"
                raise CheckpointError(self.model, file, reason, "Fetch or save the model again.") from None
            values = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
            found[name] = self._sound(name, file, values)
        return filled(found, into)

    def files(self) -> list[File]:
        """See Checkpoint."""
        return self.raw.files()

    def fingerprint(self) -> list[tuple[str, int, int, str]]:
        """See Checkpoint; what the configuration says belongs to it."""
        return [*self.raw.fingerprint(), (f"packed {self.settings}", 0, 0, "")]


def _settings(place: Place) -> tuple[Settings, str]:
    """What the configuration says of the quantization, and the digest of its file; {} where it says nothing."""
    for name in CONFIGS:
        if not place.has(name):
            continue
        file = place.open(name)
        content = file.head(min(file.size, MOST_CONFIG))
        try:
            found = json.loads(content.decode("utf-8"))
            found = found if name != CONFIG else found.get("quantization_config") or found.get("quantization")
        except (ValueError, RecursionError, AttributeError):
            continue
        if isinstance(found, dict):
            return found, hashlib.sha256(content).hexdigest()
    return {}, ""


def _modules(tensors: Mapping[str, tuple[File, TensorInfo]]) -> dict[str, dict[str, TensorInfo]]:
    """The tensors of each module that has more than a plain weight, by what stands behind its name."""
    ends = sorted(ENDS, key=len, reverse=True)
    found: dict[str, dict[str, TensorInfo]] = {}
    for name, (_, info) in tensors.items():
        end = next((end for end in ends if name.endswith(f".{end}")), None)
        if end is not None:
            found.setdefault(name.removesuffix(f".{end}"), {})[end] = info
    return {stem: infos for stem, infos in found.items() if len(infos) > 1 or infos.keys() & UNREAD.keys()}


def _refuse_unread(raw: Checkpoint, place: Place, modules: Mapping[str, Infos], settings: Settings) -> None:
    """Raise CheckpointError for a layout that is not read, by its name."""
    unread = {UNREAD[end] for infos in modules.values() for end in infos.keys() & UNREAD.keys()}
    # Its scales of 4 bits are in the order of the GPU's units.
    comfy = [one["weight"] for one in modules.values() if {"comfy_quant", "weight"} <= one.keys()]
    unread |= {"FP4 of ComfyUI" for weight in comfy if weight.dtype == "U8"}
    method, *layout = (str(settings.get(key, "")).lower() for key in ("quant_method", "version", "checkpoint_format"))
    unread |= {name for name in UNREAD_METHODS if name.lower() == method}
    unread |= {info.dtype for _, info in raw.tensors.values() if info.dtype in WRAPPING}
    unread |= {f"{method} in the layout {one}" for one in layout if one in UNREAD_LAYOUTS}
    if unread:
        reason = f"its weights are packed as {' and '.join(sorted(unread))}, which is not read"
        raise CheckpointError(raw.model, place, reason, "Give the model that was packed.")


def _found(raw: Checkpoint, modules: Mapping[str, Infos], settings: Settings) -> dict[str, Packed]:
    """The packed weights of a model by their names; raises CheckpointError where the parts of one do not fit."""
    small = [f"{stem}.{end}" for stem, infos in modules.items() for end in infos if end in LOOKED_INTO]
    small = [name for name in small if raw.tensors[name][1].end - raw.tensors[name][1].start <= MOST_SMALL]
    said, found = raw.read_bytes(small), {}
    for stem, infos in modules.items():
        inside = {end: said[f"{stem}.{end}"] for end in infos if f"{stem}.{end}" in said}
        try:
            one = packed(stem, infos, inside, settings)
        except (ValueError, KeyError, RecursionError, OverflowError) as error:
            file = raw.tensors[f"{stem}.{next(iter(infos))}"][0]
            raise CheckpointError(raw.model, file, str(error), "Fetch or save the model again.") from None
        if one is not None:
            found[f"{stem}.weight"] = one
    return found


def _found_experts(raw: Checkpoint) -> dict[str, Packed]:
    """The weights of experts of gpt-oss, which are no modules; raises CheckpointError where their parts do not fit."""
    found = {}
    for name, (file, info) in raw.tensors.items():
        stem = name.removesuffix("_blocks")
        if stem == name or info.dtype != "U8" or f"{stem}_scales" not in raw.tensors:
            continue
        try:
            found[stem] = experts(stem, {"blocks": info, "scales": raw.tensors[f"{stem}_scales"][1]})
        except ValueError as error:
            raise CheckpointError(raw.model, file, str(error), "Fetch or save the model again.") from None
    return found


def _found_alone(raw: Checkpoint, settings: Settings) -> dict[str, Packed]:
    """Tensors in FP8 that are no weights of modules and have scales; raises CheckpointError where these do not fit."""
    infos = {name: info for name, (_, info) in raw.tensors.items()}
    found = {}
    for name, info in infos.items():
        scale = next((one for one in (f"{name}_scale_inv", f"{name}_scale") if one in infos), None)
        if info.dtype not in FLOAT8 or name.endswith(".weight") or scale is None:
            continue
        try:
            found[name] = scaled_alone(name, scale, infos, settings)
        except ValueError as error:
            raise CheckpointError(
                raw.model, raw.tensors[name][0], str(error), "Fetch or save the model again."
            ) from None
    return found


def unpacked(place: Place, raw: Checkpoint) -> Checkpoint:
    """The same model with its packed weights as plain ones; raises CheckpointError for a layout that is not read."""
    modules = _modules(raw.tensors)
    integers = any(info.dtype in INTEGERS and len(info.shape) == 2 for _, info in raw.tensors.values())
    integers = integers or any(info.dtype in FLOAT8 for _, info in raw.tensors.values())
    settings, said = _settings(place) if modules or integers else ({}, "")
    _refuse_unread(raw, place, modules, settings)
    found = _found(raw, modules, settings) | _found_experts(raw) | _found_alone(raw, settings)
    used = {part for one in found.values() for part in one.parts.values()}
    used |= {f"{stem}.{end}" for stem, infos in modules.items() if f"{stem}.weight" in found for end in infos}
    cast = {name: info for name, (_, info) in raw.tensors.items() if info.dtype in FLOAT8 and name not in used}
    found |= {name: cast_to_float8(name, info) for name, info in cast.items()}
    used |= cast.keys()
    if not found:
        return raw
    found = {name: one for name, one in found.items() if name.rpartition(".")[2] != MARK}
    tensors = {name: there for name, there in raw.tensors.items() if name not in used}
    for name, one in found.items():
        parts = [raw.tensors[part] for part in one.parts.values()]
        file, info = max(parts, key=lambda part: part[1].end - part[1].start)
        tensors[name] = (file, TensorInfo("F32", one.shape, info.start, info.end, one.storage))
    check_sizes(raw.model, tensors, memory(), "can have at most")
    kept = {"index": raw.index, "aside": raw.aside, "state": raw.state}
    return PackedCheckpoint(raw.model, tensors, name_layers(tensors), raw, found, said, **kept)
