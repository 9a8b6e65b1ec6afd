"""A build that is run again: what changed, went, or has another name, against an index that is built anew."""

import os
import shutil
from pathlib import Path

from conftest import run_here, save_family, save_model, vit_weights
from test_index import built

from index import main
from mother.collection.find import search, with_claims
from mother.index.build import Built, build
from mother.index.engine import Engine
from mother.index.graph import index_graph
from mother.index.store import Index, create_index


def rebuilt(index: Index, *names: Path, only: bool = False) -> Built:
    """What the command does."""
    words = [str(name) for name in names]
    return build(index, with_claims(search(words)).sources, Engine(), named=words, only=only)


def graph_of(index: Index, work: Path) -> tuple[object, ...]:
    """Nodes with their attributes, edges with theirs, and what is left out."""
    found = index_graph(index, work, Engine())
    edges = sorted((edge.parent, edge.child, str(sorted(edge.attributes.items()))) for edge in found.edges)
    return {one: str(sorted(facts.items())) for one, facts in found.nodes.items()}, edges, found.left_out


def tidy(index: Index) -> bool:
    """Whether there is a sketch of each model that could be read, and no other."""
    kept = {path.stem for path in index.sketches.glob("*.safetensors")}
    return kept == {row["key"] for row in index.known().values() if row["key"] is not None}


def test_a_run_over_the_same_folder_gives_what_a_new_index_has(tmp_path: Path) -> None:
    """One model changes, one goes, one gets another name, one is new, one is damaged, one takes the name of another."""
    folder = tmp_path / "models"
    save_family(folder)
    save_model(folder / "late", vit_weights(8))
    index = built(tmp_path / "it", folder)
    save_model(folder / "m2", vit_weights(5))
    shutil.rmtree(folder / "m1")
    (folder / "m4").rename(folder / "renamed")
    save_model(folder / "new", vit_weights(6))
    (folder / "m3").rename(folder / "m3 before")
    save_model(folder / "m3", vit_weights(7))
    (folder / "late/model.safetensors").write_bytes(b"no more")
    found = rebuilt(index, folder)
    assert found.gone == {"m4", "m1"} and set(found.left_out) == {"late"} and tidy(index)
    fresh = built(tmp_path / "fresh", folder)
    assert graph_of(index, tmp_path / "a") == graph_of(fresh, tmp_path / "b")
    assert rebuilt(index, folder).gone == frozenset() and len(index.shards()) == 1
    assert graph_of(index, tmp_path / "a") == graph_of(fresh, tmp_path / "b")


def test_what_has_moved_is_no_copy_of_itself(tmp_path: Path) -> None:
    """Models that are named one by one: what is not named stays, and so does what was removed after it was read."""
    folder = tmp_path / "models"
    save_family(folder)
    index = built(tmp_path / "it", *sorted(folder.glob("m?")))
    (folder / "m1").rename(tmp_path / "elsewhere")
    shutil.rmtree(folder / "m2")
    shutil.copytree(folder / "m0", tmp_path / "copied")
    assert rebuilt(index, tmp_path / "elsewhere", tmp_path / "copied").gone == {"m1"}
    assert set(index.known()) == {"m0", "m2", "m3", "m4", "elsewhere", "copied"}
    nodes, edges, left_out = graph_of(index, tmp_path / "work")
    assert not left_out and set(nodes) == {"m2", "m3", "m4", "elsewhere", "copied"} and "'m0'" in nodes["copied"]
    assert len(edges) == 4
    assert rebuilt(index, folder / "m3", only=True).gone == {"m0", "m2", "m4", "elsewhere", "copied"}
    assert set(index.known()) == {"m3"} and tidy(index)


def test_a_folder_that_is_not_there_takes_nothing_out(tmp_path: Path) -> None:
    """As one on a disk that is not mounted; by a link it is the same folder."""
    save_family(tmp_path / "disk")
    save_model(tmp_path / "one", vit_weights(3))
    index = built(tmp_path / "it", tmp_path / "disk", tmp_path / "one")
    os.rename(tmp_path / "disk", tmp_path / "away")
    (tmp_path / "disk").mkdir()
    before = set(index.known())
    assert rebuilt(index, tmp_path / "disk", tmp_path / "one").gone == frozenset() and set(index.known()) == before
    os.rmdir(tmp_path / "disk")
    os.symlink(tmp_path / "away", tmp_path / "disk")
    found = rebuilt(index, tmp_path / "disk", tmp_path / "one")
    assert not found.left_out and set(index.known()) == before


def test_what_a_model_says_is_written_anew_without_reading_it(tmp_path: Path) -> None:
    save_model(tmp_path / "models/m0", vit_weights(0))
    save_model(tmp_path / "models/m1", vit_weights(1))
    index = built(tmp_path / "it", tmp_path / "models")
    before = {row["id"]: row for row in index.rows(["id", "claims", "key"])}
    (tmp_path / "models/m1/README.md").write_text("---\nbase_model: m0\n---\n")
    written = (index.sketches / f"{before['m1']['key']}.safetensors").stat().st_mtime_ns
    rebuilt(index, tmp_path / "models")
    after = {row["id"]: row for row in index.rows(["id", "claims", "key"])}
    assert after["m0"] == before["m0"] and after["m1"]["key"] == before["m1"]["key"]
    assert "m0" in after["m1"]["claims"] and before["m1"]["claims"] == "[]"
    assert (index.sketches / f"{after['m1']['key']}.safetensors").stat().st_mtime_ns == written


def test_an_id_that_has_left_may_come_back(tmp_path: Path) -> None:
    index = create_index(tmp_path / "it", 4, 1024, False)
    row = {"location": "/a", "group": "0" * 16, "key": "k"}
    index.write(0, [row | {"id": "a"}, row | {"id": "b"}])
    index.write(1, [{"id": "a"}])
    assert set(index.known()) == {"b"} and [one["id"] for one in index.rows(["id"])] == ["b"]
    index.write(2, [row | {"id": "a", "key": "other"}])
    for _ in range(2):
        assert {one: known["key"] for one, known in index.known().items()} == {"a": "other", "b": "k"}
        index.compact()
    index.write(index.next_number(), [{"id": "b"}])
    index.compact()
    assert [one["id"] for one in index.rows(["id"])] == ["a"] and len(index.shards()) == 1


def test_searches_and_graphs_write_nothing_into_an_index(tmp_path: Path) -> None:
    """An index may lie where it can only be read."""
    save_family(tmp_path / "models")
    save_model(tmp_path / "asked/model", {name: one + 1e-3 for name, one in vit_weights(0).items()})
    index = built(tmp_path / "it", tmp_path / "models")

    def state() -> dict[str, tuple]:
        """Of all that is in the folder: size, and when it was written."""
        paths = [index.folder, *sorted(index.folder.rglob("*"))]
        return {str(path): (at := path.stat()) and (at.st_size, at.st_mtime_ns) for path in paths}

    for path in [*index.folder.rglob("*"), index.folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = state()
    words = (["search", tmp_path / "asked/model"], ["graph", "--to", tmp_path / "graph", "--family", "m0"])
    try:
        for some in words:
            code, out, err = run_here("index.py", [*some, "--in", index.folder], main)
            assert code == 0 and "m0" in out, err
        assert state() == before
    finally:
        for path in [index.folder, *index.folder.rglob("*")]:
            path.chmod(0o755)
