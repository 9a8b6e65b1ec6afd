"""An opened adapter, on its base or alone. It holds no weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from mother.errors import CheckpointError
from mother.io.adapter_updates import Update, applied
from mother.io.adapters import Adapter
from mother.io.checkpoint import Checkpoint, filled
from mother.io.places import File


@dataclass(frozen=True)
class AdaptedCheckpoint(Checkpoint):
    """A model that is an adapter on a base, or an adapter alone (`base` is None)."""

    adapter: Adapter
    config: File  # of the adapter, which says how large the update is; its weights where there is none
    parts: Checkpoint
    base: Checkpoint | None
    update_of: dict[str, str]  # tensor -> module of the adapter that changes it

    def read_tensors(
        self, names: Sequence[str], into: Mapping[str, "torch.Tensor"] = MappingProxyType({})
    ) -> dict[str, "torch.Tensor"]:
        """See Checkpoint; updates are applied in float32."""
        whole = self.adapter.whole if self.base is not None else {}  # alone it is what it adds
        own = {name: whole[name] for name in names if name in whole}
        updates = {name: self.adapter.updates[self.update_of[name]] for name in names if name in self.update_of}
        read = self._read_parts([*updates.values()], [*own.values()])
        from_base = [name for name in names if name not in own] if self.base is not None else []
        found = self.base.read_tensors(from_base) if self.base is not None else {}
        for name, update in updates.items():
            parts = {part: read[raw] for part, raw in update.parts.items()}
            weight = read[own[name]] if name in own else found.get(name)
            if weight is None and (nothing := self.factors_alone()) is not None:
                raise nothing
            found[name] = self._sound(name, self.config, applied(update, parts, weight))
        return filled(found | {name: read[raw] for name, raw in own.items() if name not in updates}, into)

    def _read_parts(self, updates: Sequence[Update], more: Sequence[str] = ()) -> dict[str, "torch.Tensor"]:
        """The tensors that updates are made of, each once; scales may be stored as whole numbers."""
        import torch

        names = {part for update in updates for part in update.parts.values()} | set(more)
        scales = {update.parts["alpha"] for update in updates if "alpha" in update.parts}
        read = self.parts.read_tensors(sorted(names - scales))
        stored = self.parts.read_stored(sorted(scales)) if scales else {}
        return read | {name: torch.tensor(float(value.flat[0])) for name, value in stored.items()}

    def added(self, name: str) -> "torch.Tensor":
        """What the adapter adds to a weight of its base, in float32. Raises CheckpointError."""
        if (nothing := self.factors_alone()) is not None:
            raise nothing
        update = self.adapter.updates[self.update_of[name]]
        read = self._read_parts([update])
        parts = {role: read[raw] for role, raw in update.parts.items()}
        return self._sound(name, self.config, applied(update, parts, None))

    def factors_alone(self) -> CheckpointError | None:
        """The error of factors of weights, where they are asked what they add; None of other kinds."""
        factors = next((one for one in self.adapter.updates.values() if not one.adds), None)
        if factors is None:
            return None
        reason = f"is an adapter of type IA3: {factors.module} has factors, which are nothing without its base"
        return CheckpointError(self.model, self.config, reason, "Give its base.")

    def before(self, name: str) -> "torch.Tensor":
        """A weight that the adapter changes as its base has it, in float32. Raises CheckpointError."""
        whole = self.adapter.whole.get(name)
        return self.parts.read_tensor(whole) if whole is not None else self.base.read_tensor(name)

    def applied_to(self, name: str, weight: "torch.Tensor", dtype: str = "float32") -> "torch.Tensor":
        """A weight with the adapter's update, in float32; of factors that were rounded to `dtype` first."""
        from mother.numeric.floats import cast

        update = self.adapter.updates[self.update_of[name]]
        read = self._read_parts([update])
        parts = {role: read[raw] if role == "alpha" else cast(read[raw], dtype) for role, raw in update.parts.items()}
        return self._sound(name, self.config, applied(update, parts, weight))

    def files(self) -> list[File]:
        """The files of the adapter, with its configuration, and those of its base."""
        own = [self.config, *self.parts.files(), *(self.base.files() if self.base is not None else [])]
        return list({str(file): file for file in own}.values())

    def fingerprint(self) -> list[tuple[str, int, int, str]]:
        """See Checkpoint."""
        own = [self.config.fingerprint(), *self.parts.fingerprint()]
        return own + (self.base.fingerprint() if self.base is not None else [])
