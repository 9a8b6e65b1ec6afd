"""MoTHer: recover the family tree of neural networks from their weights."""

import os
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import networkx


def recover(
    models: str | PathLike | Sequence[str | PathLike],
    out: str | PathLike | None = None,
    *,
    error: float = 0.01,
    sketch: int = 1 << 16,
    device: str = "auto",
    state: str | None = None,
) -> "networkx.DiGraph":
    """Recover the Model Graph of some models: who is related, who was made from whom, by which operation, how surely.

    models    one or more of: a model's folder or weight file, a folder of such, a manifest (.json), a repository of the
              Hugging Face Hub as `owner/name[@revision][:subfolder]`
    out       folder for the results and for what was measured, so that a second call reads nothing again; None keeps
              nothing
    error     probability of a single false relation among independently initialised models
    sketch    entries that are compared of each matrix, at most
    device    "auto", "cpu", "cuda", ...
    state     of a checkpoint that holds several sets of weights the one with this word in its name, such as "ema"

    Returns a networkx DiGraph, edges from parent to child. Graph attributes: `left_out` (id -> why) and `not_read`
    (path -> why). Nodes: `tree`, `group` (architecture), `root` (probability), `aliases` (copies), `hidden`. Edges:
    `kind` ("fine-tune", "lora",
    "cast", "prune", "quantize", "merge"; None beside hidden ancestors), `adjacency` and `arrow` (probabilities in
    0..1), `direction` ("known" or "unknown"), `compared` (share of entries), `relative_change` (norm of the difference
    over that of the parent), and what belongs to the kind: `rank`, `dora`, `dtype`, `bits`, `zeros`, `coefficients`.

    Raises mother.errors.InputError where nothing can be used; models that cannot be used are left out.
    """
    from contextlib import nullcontext
    from pathlib import Path

    from mother.cli.locks import alone_in
    from mother.collection.find import search, with_claims
    from mother.collection.workspace import recover_sources
    from mother.errors import InputError
    from mother.io.runtime import choose_device
    from mother.report.write import write_outputs

    names = [models] if isinstance(models, str | PathLike) else list(models)
    if not names:
        raise InputError("name models: paths, or owner/name.")
    found = with_claims(search([os.fspath(name) for name in names], state=state))
    folder = Path(out) if out is not None else None
    chosen = choose_device(device)[0]
    with alone_in(folder) if folder is not None else nullcontext():
        recovered = recover_sources(found.sources, folder, chosen, error, sketch, gaps=found.gaps)
        if folder is not None:
            write_outputs(recovered, folder)
    graph = recovered.graph.to_networkx()
    graph.graph["left_out"] = dict(recovered.graph.left_out)
    graph.graph["not_read"] = dict(recovered.graph.not_read)
    return graph
