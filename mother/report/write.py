"""Write a result in every form: the Model Graph and its exports, pictures, the report."""

from pathlib import Path

from mother.collection.baseline import Judged
from mother.collection.state import AUDIT, EVIDENCE, begin_result, collection_facts, finish_result
from mother.collection.verdicts import Audit
from mother.collection.workspace import Recovered
from mother.graph.drawing import draw_once
from mother.graph.exports import to_dot, to_graphml, to_mermaid, to_newick
from mother.graph.model_graph import GRAPH
from mother.io.files import write_json, write_text
from mother.report.findings import JUNIT, SARIF, write_findings
from mother.report.html import report_data, to_html
from mother.report.measured import evidence_of

TITLE = "Model Graph"
SUMMARY = "summary.json"
FILES = "files.json"  # that each model was read from: name, size, SHA-256


def write_outputs(
    recovered: Recovered,
    folder: Path,
    verdicts: Audit | None = None,
    title: str = TITLE,
    command: str = "",
    judged: Judged | None = None,
    drawn: bool = True,
) -> None:
    """Write all files of a result into a folder; `command` is what the report says it was made with.

    `judged` are the findings as this run takes them; without it none is accepted. Pictures of the whole graph only
    where it is `drawn`: of thousands of models nobody reads them. Raises OSError where that cannot be.
    """
    graph = recovered.graph
    begin_result(folder)
    evidence = evidence_of(recovered)
    evidence.write(folder / EVIDENCE)
    data = report_data(recovered, evidence, verdicts, title, command)
    texts = {
        "model_graph.graphml": to_graphml(graph),
        "trees.nwk": to_newick(graph),
        "model_graph.mmd": to_mermaid(graph),
        "model_graph.dot": to_dot(graph),
        "report.html": to_html(data),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    pictures = draw_once(folder / "tree", ("svg", "png", "pdf"), "draw_model_graph", graph) if drawn else []
    audited = [AUDIT, SARIF, JUNIT]
    if verdicts is not None:
        write_json(folder / AUDIT, verdicts.to_json())
        judged = judged or Judged(verdicts.listed(graph.left_out))
        write_findings(folder, verdicts, judged, [(source.id, source.location) for source in recovered.sources])
    else:  # verdicts on what was here before would stand beside a graph that they are not of
        for name in audited:
            (folder / name).unlink(missing_ok=True)
    write_json(folder / FILES, recovered.files)
    write_json(folder / SUMMARY, data["summary"])
    graph.write(folder / GRAPH)
    files = [*texts, FILES, SUMMARY, EVIDENCE, *(picture.name for picture in pictures), GRAPH]
    files += audited if verdicts is not None else []
    finish_result(folder, collection_facts(recovered.state, title), files)
