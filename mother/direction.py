"""Which of two models came first: the paper's kurtosis."""

from typing import Literal

import numpy as np
from jaxtyping import Float

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
