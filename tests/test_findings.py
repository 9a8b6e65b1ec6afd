"""What an audit finds, for forges and CI: SARIF, JUnit, accepted findings, the last line and the exit code."""

import json
import re
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import run_here, save_model
from test_heritage import base, moved

from mother.cli.commands import main
from mother.collection.baseline import Judged
from mother.collection.claims import Claim
from mother.collection.verdicts import ABSENT, AGREES, CONTRADICTED, NOT_CONFIRMED, Audit, Verdict
from mother.io.runtime import version
from mother.report.findings import to_junit, to_sarif

KINDS = {"contradicted": "error", "unreadable": "warning", "undecided": "note", "undeclared": "note"}
HOSTILE = "a\x1b[31m\x00\ufffe\u202eb{0}[x](http://evil)<&>\n\udcff"


def run(*arguments: object, code: int = 0) -> str:
    ended, out, err = run_here("mother", arguments, partial(main, "audit"))
    assert ended == code, out[-2000:] + err[-3000:]
    return out if code in (0, 3, 4) else err


def claim(folder: Path, parent: str, before: str = "") -> None:
    (folder / "README.md").write_text(f"---\n{before}base_model: {parent}\n---\n")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A liar, one whose parent is elsewhere, one that says nothing, and one that cannot be read."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "all models"
    root = base(0)
    kept = {"root": root, "silent": moved(root, 1), "absent": moved(root, 2), "liar": base(9)}
    for name, weights in kept.items():
        save_model(folder / name, weights)
    claim(folder / "liar", "root", "license: mit\n")
    claim(folder / "absent", "else/where")
    (folder / "broken").mkdir()
    (folder / "broken" / "model.safetensors").write_bytes(b"\xff" * 100)
    return folder


def check_sarif(content: dict) -> list[dict]:
    """Hold a log against what SARIF 2.1.0 requires; returns the results."""
    assert content["version"] == "2.1.0" and content["$schema"].endswith("sarif-schema-2.1.0.json")
    (one,) = content["runs"]
    driver = one["tool"]["driver"]
    rules = {rule["id"]: rule for rule in driver["rules"]}
    assert driver["version"] == driver["semanticVersion"] == version()
    assert driver["name"] == "MoTHer" and rules.keys() == KINDS.keys()
    for kind, rule in rules.items():
        assert rule["shortDescription"]["text"] and len(rule["help"]["text"]) > 80
        assert rule["defaultConfiguration"]["level"] == KINDS[kind]
    for result in one["results"]:
        assert result["level"] == KINDS[result["ruleId"]] and result["message"]["text"]
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        assert all(isinstance(value, str) for value in result["partialFingerprints"].values())
        for location in result["locations"]:
            place = location["physicalLocation"]
            assert re.fullmatch(r"[A-Za-z0-9._~:/?#@!$&'()*+,;=%-]+", place["artifactLocation"]["uri"])
            assert place.get("region", {"startLine": 1})["startLine"] >= 1
    return one["results"]


def test_sarif_and_junit_of_an_audit(models: Path) -> None:
    out = models.parent / "out"
    text = run(models, "--out", out, code=3)
    assert text.endswith("exit 3: 1 contradiction, 1 unreadable\n")
    results = check_sarif(json.loads((out / "audit.sarif").read_text()))
    found = {result["ruleId"]: result for result in results}
    assert found.keys() == KINDS.keys() and len(results) == 4
    places = {kind: one["locations"][0]["physicalLocation"] for kind, one in found.items()}
    # As a forge wants it: below the current folder, and the line in which the parent is named.
    assert places["contradicted"]["artifactLocation"]["uri"] == "all%20models/liar/README.md"
    assert places["contradicted"]["region"] == {"startLine": 3}
    assert places["undecided"]["region"] == {"startLine": 2}
    assert (
        places["undeclared"]["artifactLocation"]["uri"] == "all%20models/silent"
        and "region" not in places["undeclared"]
    )
    assert "root" in found["undeclared"]["message"]["text"] and "broken" in found["unreadable"]["message"]["text"]
    suite = ElementTree.fromstring((out / "audit.xml").read_text())
    assert suite.tag == "testsuite" and suite.attrib["failures"] == "2" and suite.attrib["skipped"] == "2"
    cases = {case.attrib["classname"]: case for case in suite}
    assert len(suite) == int(suite.attrib["tests"]) == 4 and suite.attrib["errors"] == "0"
    assert {model for model, case in cases.items() if case.find("failure") is not None} == {"liar", "broken"}
    assert cases["absent"].find("skipped").attrib["message"].startswith("undecided: absent says that it is from else")
    kept = json.loads((out / "run.json").read_text())["files"]
    assert {"audit.json", "audit.sarif", "audit.xml"} <= set(kept)


def test_findings_stay_the_same_and_follow_the_rules_of_each_run(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = models.parent / "out"
    run(models, "--out", out, code=3)

    def written() -> tuple[set[str], set[str], int]:
        results = check_sarif(json.loads((out / "audit.sarif").read_text()))
        uris = {one["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for one in results}
        suite = ElementTree.fromstring((out / "audit.xml").read_text())
        return {str(one["partialFingerprints"]) for one in results}, uris, int(suite.attrib["failures"])

    prints, uris, failures = written()
    assert len(prints) == 4 and failures == 2
    monkeypatch.chdir("/")
    every = "contradicted,undecided,undeclared,unreadable"
    text = run(models, "--out", out, "--fail-on", every, code=3)
    assert "kept: " in text
    assert text.endswith("exit 3: 1 contradiction, 1 undecided claim, 1 model that declares nothing, 1 unreadable\n")
    again, elsewhere, failures = written()
    assert again == prints and failures == 4 and {uri.split("/all%20models")[0] for uri in elsewhere} != uris
    (out / "audit.sarif").unlink()  # a result is whole only with it
    assert "kept: " not in run(models, "--out", out, code=3)
    # A result that is made without an audit keeps no verdicts on what was here before.
    run_here("mother", [models, "--out", out, "--overwrite"], partial(main, "recover"))
    assert not list(out.glob("audit.*"))


def test_accepted_findings_fail_nothing(models: Path) -> None:
    out, accepted = ("--out", models.parent / "out"), models.parent / "accepted.json"
    text = run(models, *out, "--write-baseline", accepted)
    assert text.endswith(f"exit 0: nothing that is to fail (2 accepted by {accepted})\n")
    before = accepted.read_bytes()
    run(models, *out, "--overwrite", "--write-baseline", accepted)
    assert accepted.read_bytes() == before and len(json.loads(before)["findings"]) == 4
    assert run(models, *out, code=3).endswith("exit 3: 1 contradiction, 1 unreadable\n")
    text = run(models, *out, "--baseline", accepted)
    assert f"accepted by {accepted}: 4 findings\n" in text
    assert "\n  liar: contradicted, README.md says root\n" in text and "\n  silent: undeclared\n" in text
    assert text.endswith(f"exit 0: nothing that is to fail (2 accepted by {accepted})\n")
    sarif = json.loads((models.parent / "out" / "audit.sarif").read_text())
    assert all(one["suppressions"][0]["status"] == "accepted" for one in check_sarif(sarif))
    suite = ElementTree.fromstring((models.parent / "out" / "audit.xml").read_text())
    assert suite.attrib["failures"] == "0" and suite.attrib["skipped"] == "4"
    # One accepted finding goes, and another one comes.
    claim(models / "liar", "silent")
    text = run(models, *out, "--baseline", accepted, code=3)
    assert f"in {accepted}, but not found any more: 1\n" in text
    assert text.endswith(f"exit 3: 1 contradiction (1 accepted by {accepted})\n")
    # The figures of a reason may move.
    content = json.loads((models.parent / "out" / "audit.json").read_text())
    reasons = [one["reason"] for one in content["verdicts"]]
    assert reasons and not any(reason in accepted.read_text() for reason in reasons)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        ("", "cannot be used"),
        ("[]", "cannot be used"),
        ("null", "cannot be used"),
        ("5", "cannot be used"),
        ("{}", "cannot be used"),
        ("[" * 100_000, "cannot be used"),
        ('{"format": "mother-baseline/1", "findings": [3]}', "cannot be used"),
        ('{"format": "mother-baseline/1", "findings": 3}', "cannot be used"),
        ('{"format": "mother-baseline/1", "findings": {"a": 1}}', "cannot be used"),
        (
            '{"format": "mother-baseline/1", "findings": [{"model": "a", "finding": "sins", "file": null, '
            '"says": "", "verdict": ""}]}',
            "is no finding",
        ),
        ('{"format": "other", "findings": []}', "does not say"),
    ],
)
def test_a_baseline_that_cannot_be_used_ends_before_anything_is_read(
    content: str | None, words: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "b.json").write_text(content)
    text = run("/nowhere", "--baseline", tmp_path / "b.json", code=2)
    assert words in text and "--write-baseline" in text and len(text.splitlines()) == 1


def test_flags_of_an_audit_need_one(tmp_path: Path) -> None:
    for flag in ("--baseline", "--write-baseline"):
        ended, _, err = run_here("mother", ["x", flag, tmp_path / "b.json"], partial(main, "recover"))
        assert ended == 2 and f"{flag} is for audits" in err
    assert "this is a folder" in run("x", "--write-baseline", tmp_path, code=2)


def verdict(kind: str, model: str = "m", says: str = "p", **facts: object) -> Verdict:
    return Verdict(model, Claim("README.md", says, line=2, **facts), None, kind, "because")


@pytest.mark.parametrize(
    ("verdicts", "undeclared", "left_out", "words"),
    [
        ([], {}, {}, "nothing that is to fail"),
        ([verdict(AGREES)], {}, {}, "nothing that is to fail"),
        ([verdict(CONTRADICTED)], {}, {}, "1 contradiction"),
        ([verdict(CONTRADICTED)] * 2, {}, {}, "2 contradictions"),
        ([verdict(ABSENT)], {}, {}, "1 undecided claim"),
        ([verdict(ABSENT), verdict(NOT_CONFIRMED)], {}, {}, "2 undecided claims"),
        ([], {"a": "b", "c": "d"}, {}, "2 models that declare nothing"),
        ([verdict(NOT_CONFIRMED, unread="damaged")], {}, {"x": "y"}, "2 unreadable"),
    ],
)
def test_findings_in_words(
    verdicts: list[Verdict], undeclared: dict[str, str], left_out: dict[str, str], words: str
) -> None:
    found = Audit(verdicts, undeclared)
    assert Audit.from_json(json.loads(json.dumps(found.to_json()))) == found
    judged = Judged(found.listed(left_out), tuple(KINDS))
    assert judged.outcome()[1] == words
    assert len(judged.findings) == sum(found.findings(len(left_out)).values())


def test_names_of_strangers_break_neither_format() -> None:
    found = Audit([verdict(CONTRADICTED, HOSTILE, HOSTILE), verdict(AGREES, HOSTILE, HOSTILE)], {HOSTILE: HOSTILE})
    judged = Judged(found.listed({HOSTILE: HOSTILE}))
    text = json.dumps(to_sarif(judged, {HOSTILE: f"/x/{HOSTILE}"}), ensure_ascii=False)
    assert all(c.isprintable() for c in text)
    for result in check_sarif(json.loads(text)):
        assert re.search(r"(?<!\\)\[", result["message"]["text"]) is None  # a link
        assert re.search(r"(?<!\{)\{0\}", result["message"]["text"]) is None  # a placeholder
    xml = to_junit(found, judged)
    assert all(c.isprintable() or c == "\n" for c in xml)
    assert len(ElementTree.fromstring(xml)) == 4


def test_places_on_the_hub_are_addresses() -> None:
    judged = Judged(Audit([verdict(CONTRADICTED)]).listed({}))
    for location, expected in {
        "hf://org/m@main:a/b": "hf://org/m@main:a/b/README.md",
        "/x/ü/model.safetensors": "file:///x/%C3%BC/README.md",  # a card lies beside a file of weights
        "/x/#m": "file:///x/%23m/README.md",
    }.items():
        (result,) = check_sarif(to_sarif(judged, {"m": location}))
        assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == expected
