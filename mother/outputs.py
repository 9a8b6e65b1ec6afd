"""Write a result in every form: the Model Graph and its exports, pictures, the report."""

from pathlib import Path

from mother.claims import Audit, audit, names_of
from mother.exports import to_dot, to_graphml, to_mermaid, to_newick
from mother.files import write_figure, write_json, write_text
from mother.plots import draw_model_graph
from mother.report import to_html
from mother.workspace import Recovered

PIXELS = 16_000  # height or width of a picture, at most


def audit_of(recovered: Recovered) -> Audit:
    """What the models of a result claim, held against it."""
    names: dict[str, str] = {}
    for source in recovered.sources:
        for name in names_of(source.id, source.location):
            names.setdefault(name, source.id)
    # The last part of a name will do where it is one model's only, and that model's owner is not known.
    local = [source for source in recovered.sources if not source.location.startswith("hf://")]
    short = [source.id.rsplit("/", 1)[-1] for source in local]
    for source, last in zip(local, short):
        if short.count(last) == 1:
            names.setdefault(last, source.id)
    groups = {model: group for group in recovered.groups for model in group.heritage.survey.models}

    def adjacency(one: str, other: str) -> float | None:
        return groups[one].adjacency(one, other) if one in groups and groups[one] is groups.get(other) else None

    claims = {source.id: source.claims for source in recovered.sources}
    return audit(recovered.graph, claims, names, adjacency)


def write_outputs(
    recovered: Recovered, folder: Path, verdicts: Audit | None = None, title: str = "Model Graph"
) -> None:
    """Write all files of a result into a folder. Raises OSError where that cannot be."""
    graph = recovered.graph
    write_text(folder / "model_graph.graphml", to_graphml(graph))
    write_text(folder / "trees.nwk", to_newick(graph))
    write_text(folder / "model_graph.mmd", to_mermaid(graph))
    write_text(folder / "model_graph.dot", to_dot(graph))
    figure = draw_model_graph(graph)
    write_figure(folder / "tree.svg", figure, metadata={"Date": None})
    write_figure(folder / "tree.png", figure, dpi=min(200, PIXELS / max(figure.get_size_inches())))
    write_text(folder / "report.html", to_html(recovered, verdicts, title))
    if verdicts is not None:
        write_json(folder / "audit.json", verdicts.to_json())
    graph.write(folder / "model_graph.json")  # last: it says that the rest is there
