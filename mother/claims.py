"""What models say of their origin (cards, configurations), and whether the weights agree.

Three places hold claims: the front matter of README.md (`base_model`, `base_model_relation`), `adapter_config.json`
(`base_model_name_or_path`) and `config.json` (`_name_or_path`). They are text that anybody may write: nothing in them
is executed, nor believed.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import networkx as nx
import yaml

from mother.checkpoints import ADAPTER_CONFIG, WEIGHT_FILES, LocalFolder, Place, RemoteFolder
from mother.errors import CheckpointError
from mother.hub import open_repository
from mother.model_graph import HUB_SOURCE, ModelGraph

CARD, CONFIG = "README.md", "config.json"
MOST = 1 << 20  # bytes of a card or configuration that are looked at
SURE = 0.95  # probability from which the weights contradict a claim, or settle an arrow
RELATIONS = {  # base_model_relation of a card -> kinds that fit it
    "finetune": ("fine-tune", "lora", "prune", "cast", "copy"),
    "adapter": ("lora", "fine-tune"),
    "merge": ("merge",),
    "quantized": ("quantize", "cast", "copy"),
}
AGREES, CONTRADICTED = "agrees", "contradicted"
UNSUPPORTED, ABSENT = "not supported", "parent not in the collection"


@dataclass(frozen=True)
class Claim:
    """A model says that it came from another one."""

    file: str  # that says so
    parent: str  # as it is written there
    relation: str | None = None  # one of RELATIONS, or None
    names: tuple[str, ...] = ()  # by which the parent may be known here


def names_of(model: str, location: str) -> list[str]:
    """What a model may be called by others: its id, its repository, its path, and the last part of these."""
    match = HUB_SOURCE.fullmatch(location)
    names = [model, match["repo"]] if match else [model, os.path.realpath(location), location]
    return list(dict.fromkeys(name for name in names if name))


def open_place(model: str, location: str) -> Place | None:
    """The folder that a model's card and configuration lie in, or None. Raises CheckpointError."""
    if location.startswith("hf://"):
        match = HUB_SOURCE.fullmatch(location)
        if match is None:
            return None
        return RemoteFolder(model, open_repository(model, match["repo"], match["revision"]), match["subfolder"])
    path = Path(location)
    if path.is_dir():
        return LocalFolder(model, path)
    return LocalFolder(model, path.parent) if path.name in WEIGHT_FILES else None


def _read_text(place: Place, name: str) -> str | None:
    try:
        if not place.has(name):
            return None
        file = place.open(name)
        return bytes(file.read([(0, min(file.size, MOST))])[0]).decode("utf-8", errors="replace")
    except CheckpointError:
        return None


def _read_object(text: str | None) -> dict[str, Any]:
    try:
        content = json.loads(text) if text else None
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


class _PlainLoader(yaml.SafeLoader):
    """Builds nothing but plain values, and follows no aliases, which may multiply without end."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not followed")
        return super().compose_node(parent, index)


def front_matter(text: str) -> dict[str, Any]:
    """The YAML block at the head of a card; {} where there is none or it is damaged."""
    match = re.match(r"\ufeff?\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    if match is None:
        return {}
    try:
        content = yaml.load(match[1], Loader=_PlainLoader)  # noqa: S506  a safe loader, made safer
    except (yaml.YAMLError, ValueError, RecursionError, TypeError):
        return {}
    return content if isinstance(content, dict) else {}


def _as_claim(file: str, parent: Any, place: Place, relation: Any = None) -> Claim | None:
    """A claim, unless it says nothing or names the model itself."""
    if not isinstance(parent, str) or not parent.strip() or len(parent) > 500:
        return None
    parent = "".join(letter if letter.isprintable() else "\ufffd" for letter in parent.strip())
    names = [parent, parent.rstrip("/")]
    own: set[str] = set()
    if isinstance(place, LocalFolder):
        own = {os.path.realpath(place.path), str(place.path)}
        try:
            names.append(os.path.realpath(place.path / Path(parent).expanduser()))
        except (OSError, ValueError, RuntimeError):
            pass
    else:
        own = {place.repository.repo}
    names = list(dict.fromkeys([*names, parent.rstrip("/").rsplit("/", 1)[-1]]))
    if own & set(names):
        return None
    known = relation if isinstance(relation, str) and relation in RELATIONS else None
    return Claim(file, parent, known, tuple(names))


def read_claims(model: str, location: str) -> tuple[Claim, ...]:
    """All that a model says of its origin, each parent once; nothing where it says nothing or cannot be read."""
    try:
        place = open_place(model, location)
    except CheckpointError:
        place = None
    if place is None:
        return ()
    card = front_matter(_read_text(place, CARD) or "")
    parents = card.get("base_model")
    parents = parents if isinstance(parents, list) else [parents]
    claims = [_as_claim(CARD, parent, place, card.get("base_model_relation")) for parent in parents[:100]]
    adapter = _read_object(_read_text(place, ADAPTER_CONFIG))
    claims.append(_as_claim(ADAPTER_CONFIG, adapter.get("base_model_name_or_path"), place))
    claims.append(_as_claim(CONFIG, _read_object(_read_text(place, CONFIG)).get("_name_or_path"), place))
    return tuple(claim for claim in claims if claim is not None)


@dataclass(frozen=True)
class Verdict:
    """What the weights say to a claim."""

    model: str
    claim: Claim
    parent: str | None  # id of the model that is meant
    verdict: str  # one of AGREES, CONTRADICTED, UNSUPPORTED, ABSENT
    reason: str

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        said = {"file": self.claim.file, "says": self.claim.parent, "relation": self.claim.relation}
        return {"model": self.model, **said, "parent": self.parent, "verdict": self.verdict, "reason": self.reason}


@dataclass
class Audit:
    """The verdicts on all claims of a collection, and parents that nobody named."""

    verdicts: list[Verdict]
    undeclared: dict[str, str] = field(default_factory=dict)  # model -> what the weights say of it

    @property
    def exit_code(self) -> int:
        """0 where all claims agree, 3 where one is contradicted, 4 where one, or all for want of any, is undecided."""
        found = {verdict.verdict for verdict in self.verdicts}
        return 3 if CONTRADICTED in found else 0 if found == {AGREES} else 4

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
            "undeclared": self.undeclared,
            "exit_code": self.exit_code,
        }


def _line(graph: nx.DiGraph, parent: str, child: str) -> str:
    facts = graph.edges[parent, child]
    kind = facts.get("kind") or "unknown kind"
    return f"{kind}, edge {facts.get('adjacency', 1):.2f}, arrow {facts.get('arrow', 1):.2f}"


def _judge(
    graph: nx.DiGraph, model: str, parent: str, claim: Claim, adjacency: Callable[[str, str], float | None]
) -> tuple[str, str]:
    """Verdict and reason on a claim between two models of the graph. Copies stand for one another."""
    node = {alias: key for key, facts in graph.nodes.items() for alias in (key, *facts.get("aliases", ()))}
    child, above = node[model], node[parent]
    if child == above:
        return AGREES, f"{model} and {parent} have equal weights"
    if graph.nodes[child].get("group") != graph.nodes[above].get("group"):
        return UNSUPPORTED, "their shapes cannot be compared"
    if graph.nodes[child]["tree"] != graph.nodes[above]["tree"]:
        return CONTRADICTED, "their weights are unrelated: they do not differ from independently initialised models"
    if graph.has_edge(above, child):
        facts = graph.edges[above, child]
        if claim.relation and facts.get("kind") and facts["kind"] not in RELATIONS[claim.relation]:
            exact = facts["kind"] in ("merge", "quantize", "prune", "cast") or claim.relation in ("merge", "quantized")
            return (CONTRADICTED if exact else UNSUPPORTED), f"it says {claim.relation}, the weights {facts['kind']}"
        if facts.get("direction") == "unknown":
            return (
                UNSUPPORTED,
                f"they are parent and child, but which is which is not sure: {_line(graph, above, child)}",
            )
        return AGREES, _line(graph, above, child)
    if nx.has_path(graph, above, child):
        way = nx.shortest_path(graph, above, child)
        return AGREES, "through " + ", ".join(way[1:-1])
    if graph.has_edge(child, above) or nx.has_path(graph, child, above):
        way = nx.shortest_path(graph, child, above)
        arrow = 1.0
        for one, other in zip(way, way[1:]):
            arrow = min(arrow, graph.edges[one, other].get("arrow", 1.0))
        words = f"the weights say the reverse: {model} came first (arrow {arrow:.2f})"
        return (CONTRADICTED if arrow >= SURE else UNSUPPORTED), words
    probability = adjacency(parent, model)
    own = next(iter(graph.predecessors(child)), None)
    instead = f"; the weights name {own} ({_line(graph, own, child)})" if own is not None else "; it has no parent here"
    words = f"they are related, but the probability of this edge is {probability or 0:.2f}{instead}"
    sure = own is not None and graph.edges[own, child].get("adjacency", 0) >= SURE and (probability or 0) <= 1 - SURE
    return (CONTRADICTED if sure else UNSUPPORTED), words


def audit(
    graph: ModelGraph,
    claims: dict[str, Sequence[Claim]],
    names: dict[str, str],
    adjacency: Callable[[str, str], float | None],
) -> Audit:
    """Hold what models claim against a Model Graph.

    `claims` are those of each model, `names` what models are called (see `names_of`) -> id, and `adjacency(i, j)` the
    probability that two models are parent and child, where it is known.
    """
    known = graph.to_networkx()
    there = set(known) | {alias for facts in graph.nodes.values() for alias in facts.get("aliases", ())}
    place = {alias: key for key, facts in graph.nodes.items() for alias in (key, *facts.get("aliases", ()))}
    verdicts, undeclared = [], {}
    for model, said in claims.items():
        decided: set[str] = set()
        for claim in said:
            parent = next((names[name] for name in claim.names if name in names), None)
            if parent == model or parent in decided:
                continue
            if model not in there:
                verdicts.append(
                    Verdict(model, claim, parent, UNSUPPORTED, "it could not be used (see what was left out)")
                )
            elif parent is None or parent not in there:
                reason = "it could not be used" if parent is not None else "no model here has this name"
                verdicts.append(Verdict(model, claim, parent, ABSENT, reason))
            else:
                verdicts.append(Verdict(model, claim, parent, *_judge(known, model, parent, claim, adjacency)))
                decided.add(parent)
        if not said and model in place:
            parents = [one for one in known.predecessors(place[model]) if not known.nodes[one].get("hidden")]
            if parents and place[model] == model:
                undeclared[model] = "; ".join(f"{parent} ({_line(known, parent, model)})" for parent in parents)
    return Audit(verdicts, undeclared)
