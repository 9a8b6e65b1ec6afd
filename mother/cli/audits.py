"""An audit on the terminal: what is to fail it, what is accepted, what models claim and what the weights say."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mother.collection.baseline import Fingerprint, Judged, read_baseline, write_baseline
from mother.collection.state import AUDIT, GRAPH, read_state
from mother.collection.verdicts import FINDINGS, Audit
from mother.errors import InputError
from mother.graph.model_graph import read_model_graph
from mother.graph.text import format_table

UNDECLARED = 10  # of models that claim nothing
ACCEPTED = 20  # findings that are accepted


@dataclass(frozen=True)
class Rules:
    """What the user wants of an audit."""

    fail_on: list[str]
    accepted: frozenset[Fingerprint]
    baseline: Path | None  # that they are from
    write: Path | None  # that all findings are to be written into


def audit_rules(args: Any) -> Rules:
    """Those of the flags. Raises InputError for a finding that there is not, and for a baseline that cannot be used."""
    fail_on = list(dict.fromkeys(kind.strip() for kind in args.fail_on.split(",") if kind.strip()))
    for kind in fail_on:
        if kind not in FINDINGS:
            raise InputError(f"--fail-on {kind}: there is no such finding. Choose from {', '.join(FINDINGS)}.")
    for flag, path in {"--baseline": args.baseline, "--write-baseline": args.write_baseline}.items():
        if path is not None and not args.audit:
            raise InputError(f"{flag} is for audits. Add --audit.")
    if args.write_baseline is not None and args.write_baseline.is_dir():
        raise InputError(f"--write-baseline {args.write_baseline}: this is a folder. Name a file.")
    accepted = read_baseline(args.baseline) if args.baseline is not None else frozenset()
    return Rules(fail_on, accepted, args.baseline, args.write_baseline)


@dataclass(frozen=True)
class Audited:
    """An audit, and how this run takes its findings."""

    audit: Audit
    judged: Judged


def _read_audit(folder: Path) -> Audit:
    """The verdicts in a result folder. Raises InputError where they are damaged."""
    try:
        return Audit.from_json(json.loads((folder / AUDIT).read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{folder / AUDIT} cannot be used ({error}). Run with --overwrite to make it again.") from None


def judge(audit: Audit, left_out: dict[str, str], rules: Rules) -> Audited:
    """Hold an audit against the rules, and write the baseline, if asked for."""
    findings = audit.listed(left_out)
    accepted, by = rules.accepted, rules.baseline
    if rules.write is not None:
        write_baseline(rules.write, findings)
        accepted, by = accepted | {one.fingerprint for one in findings}, rules.write
    return Audited(audit, Judged(findings, rules.fail_on, accepted, str(by) if by is not None else ""))


def judge_kept(folder: Path, rules: Rules) -> Audited:
    """The same for the audit of a kept result, whose findings are written again.

    The rules and the current folder may be others than those of the last run.
    """
    from mother.report.findings import write_findings

    audited = judge(_read_audit(folder), read_model_graph(folder / GRAPH).left_out, rules)
    places = [(source.id, source.location) for source in read_state(folder).sources]
    write_findings(folder, audited.audit, audited.judged, places)
    return audited


def report_audit(audited: Audited) -> None:
    """Print what models claim and what the weights say."""
    found, judged = audited.audit, audited.judged
    print("\naudit: what the models claim, and what the weights say")
    if found.verdicts:
        rows = [[one.model, one.claim.parent, one.claim.file, one.verdict, one.reason] for one in found.verdicts]
        print(format_table(("model", "says it is from", "in", "verdict", "the weights"), rows, left=True))
    else:
        print("no model claims anything")
    if found.undeclared:
        print(f"nothing declared, but the weights name a parent: {len(found.undeclared)} models")
    for model, words in list(found.undeclared.items())[:UNDECLARED]:
        print(f"  {model} is from {words}")
    if len(found.undeclared) > UNDECLARED:
        print("  ... and more: see audit.json")
    counts = Counter(one.verdict for one in found.verdicts)
    print("verdicts: " + (", ".join(f"{count} {verdict}" for verdict, count in counts.items()) or "none"))
    accepted = [one for one in judged.findings if judged.is_accepted(one)]
    if accepted:
        print(f"accepted by {judged.accepted_by}: {len(accepted)} finding{'s' if len(accepted) > 1 else ''}")
    for one in accepted[:ACCEPTED]:
        print(f"  {one.model}: {one.kind}" + (f", {one.file} says {one.says}" if one.says else ""))
    if len(accepted) > ACCEPTED:
        print("  ... and more: see audit.sarif")
    if judged.gone:
        print(f"in {judged.accepted_by}, but not found any more: {judged.gone}")
