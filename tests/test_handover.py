"""What is handed to other tools is read back by them: CycloneDX's schema, prov, mergekit, the Hub's cards."""

import io
import json
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
import yaml
from conftest import run_here, save_model
from huggingface_hub import ModelCard
from test_heritage import base, moved

from mother.cli.commands import main
from mother.collection.licence_table import LICENCES
from mother.collection.spdx import IDS, spdx_id
from mother.errors import escaped
from mother.graph.model_graph import Edge, ModelGraph
from mother.report.bom import to_cyclonedx, to_prov
from mother.report.crate import METADATA, to_crate
from mother.report.handover import card_facts, card_patch, file_name, merge_recipes

ODD = '<script>"a\\b\u202e\x1b[31m'
FILES = {"a": [{"file": "model.safetensors", "size": 5, "sha256": "0" * 64}]}
KNOWN = {"adjacency": 0.99, "arrow": 0.98, "direction": "known"}


@pytest.fixture
def graph() -> ModelGraph:
    nodes: dict[str, dict] = {name: {"tree": "0"} for name in ("a", "b", "mix", "q", "open", "lost", ODD)}
    nodes["b"] |= {"aliases": ["copy of b"]}
    nodes |= {"hidden parent of x": {"tree": "1", "hidden": True}, "x": {"tree": "1"}}
    edges = [Edge("a", "b", {"kind": "fine-tune", **KNOWN}), Edge("a", ODD, {"kind": "lora", "rank": 4, **KNOWN})]
    edges += [Edge(p, "mix", {"kind": "merge", "coefficient": c} | KNOWN) for p, c in (("a", 0.3), ("b", 0.6))]
    edges += [Edge(parent, "lost", {"kind": "merge"} | KNOWN) for parent in ("a", "b")]
    edges += [Edge("a", "q", {"kind": "quantize (gguf Q4_K)", **KNOWN})]
    edges += [Edge("a", "open", {"kind": "fine-tune", "adjacency": 0.99, "arrow": 0.6, "direction": "unknown"})]
    edges += [Edge("hidden parent of x", "x", {"kind": None, "hidden": True})]
    return ModelGraph("g", nodes, tuple(edges))


def test_cyclonedx_keeps_to_its_schema(graph: ModelGraph) -> None:
    validation = pytest.importorskip("cyclonedx.validation.json")
    from cyclonedx.schema import SchemaVersion

    text = to_cyclonedx(graph, FILES, "2020-01-01", "1", {"a": "apache-2.0"})
    validator = validation.JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    content = json.loads(text)
    broken = json.loads(text)
    broken["components"][0]["pedigree"]["parents"] = []
    assert validator.validate_str(json.dumps(broken)) is not None
    models = {one["name"]: one for one in content["components"]}
    assert len(models) == 8 and models["a"]["components"][0]["hashes"][0]["content"] == "0" * 64
    (parent,) = models["b"]["pedigree"]["ancestors"]
    assert parent["name"] == "a" and parent["evidence"]["identity"][0]["confidence"] == pytest.approx(0.9702)
    assert {one["name"] for one in models["b"]["pedigree"]["descendants"]} == {"mix", "lost"}
    said = [one["evidence"]["identity"][0]["methods"][0]["value"] for one in models["mix"]["pedigree"]["ancestors"]]
    assert len(set(said)) == 1 and said[0].startswith("mix was made from a and b by merging.")
    assert models["b"]["pedigree"]["variants"][0]["name"] == "copy of b" and "notes" in models["x"]["pedigree"]
    assert to_cyclonedx(graph, FILES, "2020-01-01", "1", {"a": "apache-2.0"}) == text


@pytest.mark.parametrize(
    ("declared", "wanted"),
    [
        ("apache-2.0", [{"id": "Apache-2.0"}]),
        ("gpl-3.0", [{"id": "GPL-3.0"}]),
        ("odc-by", [{"id": "ODC-By-1.0"}]),
        ("llama3.1", [{"name": "llama3.1"}]),
        ("other", [{"name": "other"}]),
        ("mit and gemma", [{"id": "MIT"}, {"name": "gemma"}]),
        ("research and education", [{"name": "research and education"}]),
    ],
)
def test_licences_have_spdx_ids_where_there_is_one(declared: str, wanted: list[dict], graph: ModelGraph) -> None:
    validation = pytest.importorskip("cyclonedx.validation.json")
    from cyclonedx.schema import SchemaVersion

    validator = validation.JsonStrictValidator(SchemaVersion.V1_6)
    text = to_cyclonedx(graph, FILES, "2020-01-01", "1", {"a": declared})
    assert validator.validate_str(text) is None
    (model,) = (one for one in json.loads(text)["components"] if one["name"] == "a")
    assert [one["license"] for one in model["licenses"]] == [one | {"acknowledgement": "declared"} for one in wanted]
    # The schema has the list of SPDX: a name that is not in it is refused as an identifier.
    broken = json.loads(text)
    broken["components"][0]["licenses"] = [{"license": {"id": "llama3.1"}}]
    assert validator.validate_str(json.dumps(broken)) is not None


def test_ids_of_licences_are_those_of_spdx() -> None:
    spdx = pytest.importorskip("cyclonedx.spdx")
    assert all(spdx.is_supported_id(one) for one in IDS.values())
    # Whatever SPDX knows of the licences with a table of their own is known by its identifier, too.
    assert {name: spdx_id(name) for name in LICENCES} == {name: spdx.fixup_id(name) for name in LICENCES}


def test_prov_is_read_by_its_library(graph: ModelGraph) -> None:
    model = pytest.importorskip("prov.model")
    found = model.ProvDocument.deserialize(io.StringIO(to_prov(graph, FILES)), format="json")
    assert len(list(found.get_records(model.ProvEntity))) == len(graph.nodes)
    assert len(list(found.get_records(model.ProvDerivation))) == len(graph.edges)


def test_recipes_are_mergekits(graph: ModelGraph) -> None:
    recipes, unknown = merge_recipes(graph)
    assert unknown == ["lost"]
    ((_, text),) = recipes.items()
    content = yaml.safe_load(text)
    # The fields that mergekit documents for `linear`; its own class reads them where it is installed.
    assert set(content) == {"merge_method", "models", "parameters"} and content["merge_method"] == "linear"
    weights = {one["model"]: one["parameters"]["weight"] for one in content["models"]}
    assert weights == {"a": 0.3, "b": 0.6} and content["parameters"] == {"normalize": False}


def test_mergekit_itself_reads_recipes(graph: ModelGraph) -> None:
    config = pytest.importorskip("mergekit.config")
    ((_, text),) = merge_recipes(graph)[0].items()
    found = config.MergeConfiguration.model_validate(yaml.safe_load(text))
    assert {str(one) for one in found.referenced_models()} == {"a", "b"}


def test_cards_say_only_what_is_sure(graph: ModelGraph) -> None:
    assert card_facts(graph, "b") == {"base_model": ["a"], "base_model_relation": "finetune"}
    assert card_facts(graph, "mix") == {"base_model": ["a", "b"], "base_model_relation": "merge"}
    assert card_facts(graph, "q")["base_model_relation"] == "quantized"
    assert not card_facts(graph, "open") and not card_facts(graph, "x") and not card_facts(graph, "a")


@pytest.mark.parametrize(
    "card", [None, "# Title\n", "---\nlicense: mit\n---\n# Title\nwithout an end", "---\nlicense: mit\n---\n"]
)
def test_patches_apply_and_the_hubs_client_reads_the_card(graph: ModelGraph, card: str | None, tmp_path: Path) -> None:
    git = shutil.which("git") or pytest.skip("needs git")
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    patch = card_patch(card_facts(graph, ODD) | {"base_model": ["org/ünï"]}, card)
    subprocess.run([git, "apply", "-"], input=patch.encode(), cwd=tmp_path, check=True)
    found = ModelCard.load(tmp_path / "README.md")
    assert found.data.base_model == ["org/ünï"] and found.data.base_model_relation == "finetune"
    assert not card or ("mit" in card) == (found.data.license == "mit")
    assert not card or card.rsplit("---\n")[-1] in found.content


def test_a_crate_is_read_by_its_library(graph: ModelGraph, tmp_path: Path) -> None:
    library = pytest.importorskip("rocrate.rocrate")
    declared = {"a": "apache-2.0", "b": "llama2", "q": "mit and gemma", "mix": "house rules"}
    found = {"findings": "found", "date": "2020-01-01", "licences": {"declared": declared}}
    (tmp_path / METADATA).write_text(to_crate(graph, FILES, found, "1", ["model_graph.json"]), encoding="utf-8")
    graph.write(tmp_path / "model_graph.json")
    crate = library.ROCrate(tmp_path)
    models = {one["name"]: one for one in crate.contextual_entities if one.get("additionalType")}
    assert crate.root_dataset["datePublished"][:10] == "2020-01-01"
    spdx = "https://spdx.org/licenses/"
    assert (models["a"]["license"].id, models["a"]["license"]["name"]) == (f"{spdx}Apache-2.0", "Apache-2.0")
    assert models["b"]["license"].id == LICENCES["llama2"].source and models["mix"]["license"] == "house rules"
    assert [one.id for one in models["q"]["license"]] == [f"{spdx}MIT", LICENCES["gemma"].source]
    assert [one.id for one in crate.data_entities] == ["model_graph.json"]
    assert {one["name"] for one in models["mix"]["isBasedOn"]} == {"a", "b"} and escaped(ODD) in models
    made = [one for one in crate.get_by_type("CreateAction") if models["mix"] in one["result"]]
    sure = [one["value"] for action in made for one in action["additionalProperty"] if one["name"] == "adjacency"]
    wanted = [edge.attributes["adjacency"] for edge in graph.edges if edge.child == "mix"]
    assert len(made) == len(wanted) == 2 and sure == wanted
    assert [one["value"] for one in models["a"]["identifier"]] == [FILES["a"][0]["sha256"]]


def test_files_stay_in_their_folder() -> None:
    names = [file_name(model, at) for at, model in enumerate(["../../etc", "a/b", "a_b", ".", "x" * 999, "\x00"])]
    assert len(set(names)) == 6 and all("/" not in name and len(name) < 100 and ".." not in name for name in names)


def test_export_from_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = base(0)
    for name, weights in {"root": root, "child": moved(root, 1), "merged": moved(root, 2)}.items():
        save_model(tmp_path / "models" / name, weights)
    ended, _, err = run_here("mother", ["models", "--quiet"], partial(main, "recover"))
    assert not ended, err
    for kind, file in {"cyclonedx": "bom.cdx.json", "prov": "provenance.json", "rocrate": METADATA}.items():
        ended, out, err = run_here("mother", [kind], partial(main, "export"))
        assert not ended and f"exports/{kind}/{file}" in out, err
        assert "child" in (tmp_path / "results/recover/exports" / kind / file).read_text()
    assert run_here("mother", ["cards"], partial(main, "export"))[0] == 0
    assert "nothing to write" in run_here("mother", ["mergekit"], partial(main, "export"))[1]
    for folder in ("results", "results/other"):  # where the result is, and beside it
        ended, _, err = run_here("mother", ["prov", "--to", folder], partial(main, "export"))
        assert (
            ended == 2
            and err == f"error: {folder} holds no result. Give one that does, such as --to results/recover.\n"
        )
    (tmp_path / "results/recover/run.json").unlink()
    for command, words in (("export", ["prov"]), ("explain", ["root", "child"])):
        ended, _, err = run_here("mother", words, partial(main, command))
        assert ended == 2 and "is not whole: its run has not ended. Run `python recover.py" in err
