"""Open an adapter on its base, or alone. What is an adapter is seen by the names of its tensors."""

from collections.abc import Mapping
from dataclasses import replace

from mother.errors import CheckpointError
from mother.io.adapted_checkpoint import AdaptedCheckpoint
from mother.io.adapter_config import REMEDY
from mother.io.adapter_names import is_adapter, other_kind
from mother.io.adapter_updates import Update, fits, oriented, outputs, update_shape
from mother.io.adapters import Adapter, left_aside, names_in_base, parse_adapter
from mother.io.checkpoint import Checkpoint, check_sizes
from mother.io.layers import canonical_name, name_layers
from mother.io.places import File, Place
from mother.io.reader import TensorInfo
from mother.io.runtime import memory
from mother.io.safetensors import metadata
from mother.io.weights import read_text

OF_DIFFUSERS = "lora_adapter_metadata"  # in the header of its files


def with_base(place: Place, opened: Checkpoint, base: Checkpoint | None, config: File | None = None) -> Checkpoint:
    """What was opened: as an adapter where it is one, else as it is. Raises CheckpointError."""
    if config is None and not is_adapter(opened.tensors):
        if kind := other_kind(opened.tensors):
            reason = f"is an adapter of type {kind}, not LoRA, DoRA, LoHa, LoKr, VeRA or IA3"
            raise CheckpointError(opened.model, place, reason, REMEDY)
        if base is not None:
            reason = "has a base but is no adapter"
            raise CheckpointError(opened.model, place, reason, "Leave out its base in the manifest.")
        wrapped = next((name for name in opened.tensors if name.endswith(".base_layer.weight")), None)
        if wrapped is not None:
            reason = f"holds a model and an adapter that is not merged into it ({wrapped})"
            raise CheckpointError(opened.model, place, reason, REMEDY)
        return opened
    infos = {name: info for name, (_, info) in opened.tensors.items()}
    file = next(iter(opened.tensors.values()))[0] if opened.tensors else place
    text = read_text(opened.model, config) if config is not None else None
    header = metadata(file).get(OF_DIFFUSERS) if config is None else None
    adapter = parse_adapter(opened.model, place, text, infos, header)
    if base is None:
        return _alone(place, opened, adapter, infos, config or file)
    return _on_base(place, opened, adapter, infos, base, config)


def on_base(alone: AdaptedCheckpoint, base: Checkpoint) -> AdaptedCheckpoint:
    """An adapter that was opened alone on a base, without opening it again. Raises CheckpointError as `with_base`."""
    infos = {name: info for name, (_, info) in alone.parts.tensors.items()}
    return _on_base(alone.config, alone.parts, alone.adapter, infos, base, alone.config)


def _alone(
    place: Place, parts: Checkpoint, adapter: Adapter, infos: Mapping[str, TensorInfo], config: File
) -> AdaptedCheckpoint:
    """An adapter as what it adds. Of a DoRA it is B A, as the lengths of rows are those of the base.

    Factors (IA3) are listed, and cannot be read: they add nothing.
    """
    update_of = {f"{module}.weight": module for module in adapter.updates}
    file = next(iter(parts.tensors.values()))[0]
    tensors = {
        name: (file, TensorInfo("F32", update_shape(adapter.updates[module], infos), 0, 0))
        for name, module in update_of.items()
    }
    check_sizes(parts.model, tensors, memory(), "can have at most")
    return AdaptedCheckpoint(parts.model, tensors, name_layers(tensors), adapter, config, parts, None, update_of)


def _on_base(
    place: Place | File,
    parts: Checkpoint,
    adapter: Adapter,
    infos: Mapping[str, TensorInfo],
    base: Checkpoint,
    config: File | None,
) -> AdaptedCheckpoint:
    """An adapter on a base that has all weights that it changes. Raises CheckpointError for another one."""
    found = names_in_base(adapter, list(base.tensors))
    others = left_aside(adapter, found)
    shapes = {name: info.shape for name, (_, info) in base.tensors.items()}
    updates: dict[str, Update] = {}
    update_of: dict[str, str] = {}
    for module, target in found.items():
        if module in others:
            continue
        update = oriented(adapter.updates[module], target or "", shapes, infos)
        if target is None or not fits(update, shapes[target], infos):
            there = "is missing" if target is None else f"has the shape {shapes[target]}"
            shape = update_shape(update, infos)
            reason = f"it updates {module}, a weight of shape {shape}, which {there} in its base"
            raise CheckpointError(parts.model, place, reason, "Give its own base.")
        updates[module], update_of[target] = update, module
        bias = f"{target.removesuffix('weight')}bias"
        if update.kind == "ia3" and bias in shapes and shapes[bias] == outputs(update, infos):
            update_of[bias] = module
    # Whole tensors, too, go by the base's own names, whatever wrappers the adapter was saved with.
    plain = {canonical_name(name): name for name in base.tensors}
    whole = {}
    for name, raw in adapter.whole.items():
        name = name.replace(".base_layer.", ".")
        whole[name if name in base.tensors else plain.get(canonical_name(name), name)] = raw
    aside = [f"{len(others)} updates of other parts of a pipeline"] if others else []
    # With a configuration a tensor that its base has not may be a new head.
    strange = {name for name in whole.keys() - base.tensors.keys() if config is None or ".lora_" in name}
    if strange:
        aside.append(f"{len(strange)} tensors that its base has not")
        whole = {name: raw for name, raw in whole.items() if name not in strange}
    tensors = dict(base.tensors) | {name: parts.tensors[raw] for name, raw in whole.items()}
    adapter = replace(adapter, updates=updates, whole=whole)
    file = config or next(iter(parts.tensors.values()))[0]
    layers = name_layers(tensors)
    return AdaptedCheckpoint(
        parts.model, tensors, layers, adapter, file, parts, base, update_of, aside=(*base.aside, *aside)
    )
