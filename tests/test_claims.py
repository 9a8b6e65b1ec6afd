"""What models say of their origin, and what the weights say to that."""

import json
from pathlib import Path

import pytest

from mother.collection.audit import ABSENT, AGREES, CONTRADICTED, UNSUPPORTED, Audit, audit
from mother.collection.claims import Claim, front_matter, read_claims
from mother.graph.model_graph import Edge, ModelGraph


def card(folder: Path, text: str, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(text, encoding="utf-8")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def said(folder: Path) -> list[tuple[str, str, str | None]]:
    return [(claim.file, claim.parent, claim.relation) for claim in read_claims("m", str(folder))]


def test_all_places_are_read(tmp_path: Path) -> None:
    text = "---\nlicense: mit\nbase_model: org/base\nbase_model_relation: finetune\n---\n# Card\nbase_model: no\n"
    folder = card(
        tmp_path / "m", text, config={"_name_or_path": "org/other"}, adapter_config={"base_model_name_or_path": "b"}
    )
    assert said(folder) == [
        ("README.md", "org/base", "finetune"),
        ("adapter_config.json", "b", None),
        ("config.json", "org/other", None),
    ]
    text = "---\nbase_model:\n- a/one\n- a/two\nbase_model_relation: merge\n---\n"
    assert said(card(tmp_path / "merge", text)) == [("README.md", "a/one", "merge"), ("README.md", "a/two", "merge")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# no front matter",
        "---\nbase_model: [\n---\n",
        "---\n- a\n- b\n---\n",
        "---\nbase_model: {a: b}\n---\n",
        "---\nbase_model: 3\n---\n",
        "---\nbase_model: !!python/object/apply:os.system ['touch executed']\n---\n",
        "---\na: &a [x, x]\nb: &b [*a, *a]\nbase_model: *b\n---\n",
        "---\n" + "[" * 5000 + "\n---\n",
        "---\nbase_model: ''\n---\n",
        "---\nbase_model: " + "x" * 1000 + "\n---\n",
    ],
)
def test_damaged_or_hostile_cards_say_nothing(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert said(card(tmp_path / "m", text, config="{", adapter_config="[1]")) == []
    assert not (tmp_path / "executed").exists()


def test_the_model_itself_is_no_claim(tmp_path: Path) -> None:
    folder = card(tmp_path / "m", "---\nbase_model: .\n---\n", config={"_name_or_path": str(tmp_path / "m")})
    assert said(folder) == []
    assert front_matter("---\r\na: 1\r\n---\r\n") == {"a": 1}


def edge(parent: str, child: str, kind: str = "fine-tune", **facts: object) -> Edge:
    return Edge(parent, child, {"kind": kind, "adjacency": 0.99, "arrow": 0.99, "direction": "known"} | facts)


NODES = {
    "root": {"tree": "0", "group": "g", "aliases": ["twin"]},
    **{name: {"tree": "0", "group": "g"} for name in ("child", "grandchild", "quantized", "unsure", "sibling")},
    "stranger": {"tree": "1", "group": "g"},
    "llama": {"tree": "2", "group": "h"},
}
GRAPH = ModelGraph(
    "g",
    NODES,
    (
        edge("root", "child"),
        edge("child", "grandchild", "lora", rank=8),
        edge("root", "quantized", "quantize", bits=4),
        edge("root", "unsure", arrow=0.6, direction="unknown"),
        edge("root", "sibling"),
    ),
    {"broken": "NaN"},
)


@pytest.mark.parametrize(
    ("model", "parent", "relation", "verdict", "words"),
    [
        ("child", "root", None, AGREES, "fine-tune, edge 0.99"),
        ("child", "org/root", "finetune", AGREES, "fine-tune"),
        ("child", "twin", None, AGREES, "fine-tune"),
        ("twin", "root", None, AGREES, "equal weights"),
        ("grandchild", "root", "finetune", AGREES, "through child"),
        ("grandchild", "child", "adapter", AGREES, "lora"),
        ("quantized", "root", "quantized", AGREES, "quantize"),
        ("quantized", "root", "finetune", CONTRADICTED, "it says finetune, the weights quantize"),
        ("child", "root", "merge", CONTRADICTED, "it says merge"),
        ("root", "child", None, CONTRADICTED, "reverse: root came first"),
        ("root", "unsure", None, UNSUPPORTED, "reverse"),
        ("unsure", "root", None, UNSUPPORTED, "not sure"),
        ("stranger", "root", None, CONTRADICTED, "unrelated"),
        ("llama", "root", None, UNSUPPORTED, "cannot be compared"),
        ("sibling", "child", None, CONTRADICTED, "the weights name root"),
        ("child", "someone/else", None, ABSENT, "no model here"),
        ("child", "broken", None, ABSENT, "could not be used"),
        ("broken", "root", None, UNSUPPORTED, "could not be used"),
    ],
)
def test_verdicts(model: str, parent: str, relation: str | None, verdict: str, words: str) -> None:
    names = {name: name for name in [*NODES, "twin", "broken"]} | {"org/root": "root"}
    claims = {model: (Claim("README.md", parent, relation, (parent,)),)}
    found = audit(GRAPH, claims, names, lambda i, j: 0.01)
    (one,) = found.verdicts
    assert one.verdict == verdict and words in one.reason
    assert found.exit_code == {AGREES: 0, CONTRADICTED: 3}.get(verdict, 4)


def test_one_verdict_a_parent_and_what_is_not_declared() -> None:
    twice = (Claim("README.md", "root", None, ("root",)), Claim("config.json", "root", None, ("root",)))
    found = audit(GRAPH, {"child": twice, "grandchild": (), "root": ()}, {"root": "root"}, lambda i, j: None)
    assert len(found.verdicts) == 1 and found.exit_code == 0
    assert set(found.undeclared) == {"grandchild"} and "child (lora" in found.undeclared["grandchild"]
    assert Audit([]).exit_code == 4  # nothing was claimed, so nothing agrees
