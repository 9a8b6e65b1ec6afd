"""Which of two models came first, by the paper: kurtosis, and the stage that somebody must know."""

from dataclasses import replace
from typing import Literal

import numpy as np
from jaxtyping import Float

from mother.paper.measure import Measured

Stage = Literal["specialization", "generalization"]


def kurtosis_direction(kurtosis: Float[np.ndarray, "models"], stage: Stage) -> Float[np.ndarray, "models models"]:
    """T[i, j] = 1 where kurtosis contradicts that i is the parent of j, else 0 (paper: edge direction).

    Fine-tuning ("specialization") lowers kurtosis, so T[i, j] = 1 where k_j > k_i; continued pre-training
    ("generalization", as of Stable Diffusion) raises it, so T[i, j] = 1 where k_j < k_i. Equal kurtosis
    says nothing: 0 both ways. The stage is not in the weights; somebody must know it.
    """
    if not np.isfinite(kurtosis).all():
        raise ValueError("kurtosis must be finite: leave out the layers or models where it is not")
    if stage not in ("specialization", "generalization"):
        raise ValueError(f"stage must be 'specialization' or 'generalization', not {stage!r}")
    parent, child = kurtosis[:, None], kurtosis[None, :]
    return (child > parent if stage == "specialization" else child < parent).astype(float)


def direction_kurtosis(measured: Measured, kind: str | None) -> tuple[Measured, Float[np.ndarray, "models"]]:
    """Sum of kurtosis over the layers of one kind, or of all layers (None): k in the paper.

    A layer of which some model's weights are all equal has no kurtosis there: it is left out for all
    models, so that sums stay comparable. If none remains, the models with constant layers are left out
    instead. Returns what is kept, with notes that say so, and k.
    """
    chosen = [place for place, layer in enumerate(measured.layers) if kind is None or layer.kind == kind]
    kurtosis = measured.arrays["kurtosis"][chosen]
    usable = np.isfinite(kurtosis)
    notes, left_out = list(measured.notes), dict(measured.left_out)
    whole = usable.all(axis=1)
    if not chosen:
        notes.append(f"no square layers of kind {kind} were read: nothing tells the arrows, only the distance counts")
    elif not whole.any():
        kept = [model for model, fine in zip(measured.models, usable.all(axis=0)) if fine]
        for model in (model for model in measured.models if model not in kept):
            layer = measured.layers[chosen[int(np.flatnonzero(~usable[:, measured.models.index(model)])[0])]]
            left_out[model] = (
                f"model {model}: all entries of layer {layer} are equal, so it has no kurtosis, and no layer is left "
                "that every model has. Leave it out of the manifest, or use another direction layer."
            )
        kurtosis = kurtosis[:, usable.all(axis=0)]
        whole = np.ones(len(chosen), dtype=bool)
        measured = measured.keep(kept)
    elif not whole.all():
        for place in np.flatnonzero(~whole):
            models = [model for model, fine in zip(measured.models, usable[place]) if not fine]
            notes.append(
                f"layer {measured.layers[chosen[place]]} is left out of the direction: all its entries are equal in "
                f"{', '.join(models)}"
            )
    return replace(measured, left_out=left_out, notes=notes), kurtosis[whole].sum(axis=0)
