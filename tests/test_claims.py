"""What models say of their origin, and what the weights say to that."""

import json
import time
from pathlib import Path

import pytest

from mother.collection.audit import ABSENT, AGREES, NOT_CONFIRMED, Audit, audit
from mother.collection.claims import Claim, front_matter, place_of, read_claims
from mother.collection.names import Match, Names
from mother.collection.verdicts import FINDINGS, exit_code
from mother.graph.model_graph import Edge, ModelGraph


def card(folder: Path, text: str, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(text, encoding="utf-8")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def said(folder: Path) -> list[tuple[str, str, str | None]]:
    return [(claim.file, claim.parent, claim.relation) for claim in read_claims(place_of("m", str(folder)))]


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
        "---\n- a\n- b\n---\n",
        "---\nbase_model: {a: b}\n---\n",
        "---\nbase_model: ''\n---\n",
        "---\nbase_model: null\n---\n",
        "---\nbase_model: [~]\n---\n",
        "---\nbase_model:\n---\n",
        "---\nbase_model: " + "x" * 1000 + "\n---\n",
    ],
)
def test_cards_that_say_nothing(text: str, tmp_path: Path) -> None:
    assert said(card(tmp_path / "m", text, config="{", adapter_config="[1]")) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("---\nbase_model: [\n---\n", "damaged"),
        ("---\n" + "[" * 5000 + "\n---\n", "nested too deeply"),
        ("---\nbase_model: a\nx: " + "y" * (1 << 18) + "\n---\n", "262"),
        ("---\nbase_model: a\n" + "y: z\n" * (1 << 16), "does not end"),
        ("---\nbase_model: *nowhere\n---\n", "damaged"),
    ],
)
def test_cards_that_cannot_be_read_are_said(text: str, words: str, tmp_path: Path) -> None:
    """A card that is made unreadable must not pass for one that claims nothing."""
    started = time.monotonic()
    (claim,) = read_claims(place_of("child", str(card(tmp_path / "m", text))))
    assert claim.unread is not None and words in claim.unread and time.monotonic() - started < 5
    found = audit(GRAPH, {"child": (claim,)}, Names([]))
    assert found.verdicts[0].verdict == NOT_CONFIRMED and "could not be read" in found.verdicts[0].reason
    assert exit_code(found.findings()) == 4 and found.findings()["unreadable"] == 1


@pytest.mark.parametrize(
    ("text", "parent"),
    [
        ("---\nx: &b org/base\nbase_model: *b\n---\n", "org/base"),  # an alias hides nothing
        ("---\nbase_model: 12:30:45\n---\n", "12:30:45"),
        ("---\nbase_model: 2024-01-01\nwhen: !!timestamp 99999-99-99\n---\n", "2024-01-01"),
        ("---\nbase_model: 3\n---\n", "3"),
        ("---\nbase_model: !!python/object/apply:os.system ['touch executed']\n---\n", "touch executed"),
        ("---\na: &a {k: &s x}\nb: &b {<<: [*a, *a]}\nc: {<<: [*b, *b]}\nbase_model: *s\n---\n", "x"),
    ],
)
def test_all_of_a_card_is_text(text: str, parent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert said(card(tmp_path / "m", text)) == [("README.md", parent, None)]
    assert not (tmp_path / "executed").exists()


def test_the_model_itself_is_no_claim(tmp_path: Path) -> None:
    folder = card(tmp_path / "m", "---\nbase_model: .\n---\n", config={"_name_or_path": str(tmp_path / "m")})
    assert said(folder) == []
    assert front_matter("---\r\na: 1\r\n---\r\n") == {"a": "1"}


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
        ("child", "root", None, AGREES, "fine-tune, parent and child: sure (99 %)"),
        ("child", "org/root", "finetune", AGREES, "fine-tune"),
        ("child", "twin", None, AGREES, "fine-tune"),
        ("twin", "root", None, AGREES, "equal weights"),
        ("grandchild", "root", "finetune", AGREES, "through child"),
        ("grandchild", "child", "adapter", AGREES, "lora"),
        ("quantized", "root", "quantized", AGREES, "quantize"),
        ("quantized", "root", "finetune", NOT_CONFIRMED, "says finetune where the weights show quantize"),
        ("child", "root", "merge", NOT_CONFIRMED, "says merge where the weights show fine-tune"),
        ("root", "child", None, NOT_CONFIRMED, "the graph has root above it"),
        ("root", "unsure", None, NOT_CONFIRMED, "the graph has root above it"),
        ("unsure", "root", None, NOT_CONFIRMED, "not sure"),
        ("stranger", "root", None, NOT_CONFIRMED, "different trees"),
        ("llama", "root", None, NOT_CONFIRMED, "different trees"),
        ("sibling", "child", None, NOT_CONFIRMED, "has it below root"),
        ("child", "someone/else", None, ABSENT, "no model here"),
        ("child", "broken", None, ABSENT, "could not be used"),
        ("broken", "root", None, NOT_CONFIRMED, "could not be used"),
    ],
)
def test_verdicts(model: str, parent: str, relation: str | None, verdict: str, words: str) -> None:
    names = Names((name, f"/models/{name}") for name in [*NODES, "twin", "broken"])
    claims = {model: (Claim("README.md", parent, relation),)}
    found = audit(GRAPH, claims, names)
    (one,) = found.verdicts
    assert one.verdict == verdict and words in one.reason
    assert exit_code(found.findings()) == 0  # without a test nothing is contradicted
    assert exit_code(found.findings(), FINDINGS) == (0 if verdict == AGREES else 4)


def test_one_verdict_a_parent_and_what_is_not_declared() -> None:
    twice = (Claim("README.md", "root"), Claim("adapter_config.json", "root"), Claim("config.json", "sibling"))
    names = Names((name, f"/models/{name}") for name in NODES)
    found = audit(GRAPH, {"child": twice, "grandchild": (), "root": (), "unsure": ()}, names)  # an original, maybe
    assert len(found.verdicts) == 1 and exit_code(found.findings()) == 0
    assert set(found.undeclared) == {"grandchild"} and "child (lora" in found.undeclared["grandchild"]
    assert exit_code(found.findings(), ["undeclared"]) == 4 and exit_code(found.findings(left_out=1)) == 4
    assert exit_code(Audit([]).findings(), FINDINGS) == 0  # who claims nothing does not lie


HUB = ("meta/Llama", "hf://meta/Llama@main")
EVIL = ("evil/Llama", "hf://evil/Llama")
CACHED = ("org/base", "/home/u/hub/models--org--base/snapshots/0123")
LOCAL = ("Llama", "/models/Llama")


@pytest.mark.parametrize(
    ("places", "file", "said", "of", "expected"),
    [
        ([HUB, EVIL], "README.md", "meta/Llama", "x", Match("meta/Llama", True)),
        ([HUB, EVIL], "README.md", "https://huggingface.co/meta/Llama", "x", Match("meta/Llama", True)),
        ([EVIL], "README.md", "meta/Llama", "x", None),  # another owner's
        ([EVIL], "README.md", "Llama", "x", None),
        ([LOCAL], "README.md", "meta/Llama", "x", Match("Llama", False)),  # nobody says whose it is
        ([LOCAL], "README.md", "meta/Llama", "Llama", None),  # a model is not its own parent
        ([LOCAL, HUB], "README.md", "meta/Llama", "x", Match("meta/Llama", True)),
        ([CACHED], "README.md", "org/base", "x", Match("org/base", True)),
        ([CACHED], "README.md", "other/base", "x", None),  # the owner of a folder of the cache is known
        (
            [("meta/base", "/m/meta/base"), ("evil/base", "/m/evil/base")],
            "README.md",
            "meta/base",
            "x",
            Match("meta/base", False),
        ),
        ([("evil/base", "/m/evil/base")], "README.md", "meta/base", "x", None),
        ([("run", "/m/out/checkpoint-500")], "config.json", "out/checkpoint-500", "x", Match("run", False)),
        ([("run", "/m/other/checkpoint-500")], "config.json", "out/checkpoint-500", "x", None),  # not its whole tail
        ([("run", "/m/other/checkpoint-500")], "config.json", "/data/out/checkpoint-500", "x", None),
        ([LOCAL, ("Llama (2)", "/other/Llama")], "README.md", "meta/Llama", "x", None),  # which of the two?
        ([LOCAL], "README.md", "../..", "x", None),
    ],
)
def test_a_claim_means_a_model_by_owner_and_name(
    places: list[tuple[str, str]], file: str, said: str, of: str, expected: Match | None
) -> None:
    assert Names(places).find(Claim(file, said), of) == expected


def test_an_unknown_owner_is_said() -> None:
    names = Names([("root", "/models/root"), ("child", "/models/child")])
    (one,) = audit(GRAPH, {"child": (Claim("README.md", "org/root"),)}, names).verdicts
    assert one.verdict == AGREES and one.reason.startswith("root, whose owner is unknown: fine-tune")


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("---\nlicense: mit\nbase_model: a/b\n---\n", [3]),
        ("\ufeff\n\n---\nbase_model:\n- a/one\n# of the second\n- a/two\n---\n", [5, 7]),
        ("---\r\nx: 1\r\nbase_model: [a/one,\r\n  a/two]\r\n---\r\n", [3, 4]),
        ("---\nx: &b a/b\ny: 1\nbase_model: *b\n---\n", [4]),  # an alias stands where it is used
        ("---\nx: &all [a/one, a/two]\nbase_model: *all\n---\n", [3, 3]),
        ("---\nx: &one a/one\nbase_model:\n- *one\n- a/two\n---\n", [4, 5]),
        ("---\nbase_model: a/one\nbase_model: a/two\n---\n", [3]),  # the last one counts
        ("---\nx: {base_model: no}\nbase_model: >\n  a/b\n---\n", [3]),
        ("---\nbase_model: [a/one, ~, a/two]\n---\n", [2, 2]),
    ],
)
def test_the_line_of_a_claim_in_a_card(text: str, lines: list[int], tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "README.md").write_bytes(text.encode())
    assert [claim.line for claim in read_claims(place_of("m", str(folder)))] == lines


def test_the_line_of_a_claim_in_a_configuration(tmp_path: Path) -> None:
    text = '{"x": {"_name_or_path": "no"},\n "y": "_name_or_path", "z": ["}", "\\"{"],\n "\\u005fname_or_path"\n : "a"}'
    adapter = '{\n\n"base_model_name_or_path": "b"}'
    folder = card(tmp_path / "m", "", config=text, adapter_config=adapter)
    assert [(claim.file, claim.line) for claim in read_claims(place_of("m", str(folder)))] == [
        ("adapter_config.json", 3),
        ("config.json", 3),
    ]
