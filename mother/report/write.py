"""Write a result in every form: the Model Graph and its exports, pictures, the report."""

from pathlib import Path

from mother.collection.audit import Audit
from mother.collection.workspace import Recovered
from mother.graph.exports import to_dot, to_graphml, to_mermaid, to_newick
from mother.graph.figures import draw_model_graph
from mother.io.files import write_figure, write_json, write_text
from mother.report.html import to_html

PIXELS = 16_000  # height or width of a picture, at most


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
