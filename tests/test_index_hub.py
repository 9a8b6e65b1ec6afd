"""An index of models on the Hub: what a fault that passes must not take away."""

from pathlib import Path

import pytest
from conftest import save_family
from hub_server import Fault, HubServer, use

from mother.collection.find import search
from mother.index.build import build
from mother.index.engine import Engine
from mother.index.store import create_index
from mother.io import hub as client


@pytest.mark.parametrize("keep", [True, False])
def test_models_stay_while_the_hub_cannot_be_reached(
    keep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "WAIT", 0.01)
    monkeypatch.delenv("MOTHER_CACHE", raising=False)
    save_family(tmp_path / "hub/org", 3)
    with HubServer(tmp_path / "hub") as server:
        use(server, monkeypatch, tmp_path, timeout=2)
        sources = search([f"hf://org/m{step}" for step in range(3)]).sources
        index = create_index(tmp_path / "it", 512, 4096, keep)
        assert build(index, sources, Engine()).read == 3
        before = index.rows(["id", "key", "signature"])
        server.faults.append(Fault("status", -1, match="org/m1", value=503))
        found = build(index, sources, Engine())
        assert (found.read, found.there) == (0, 2) and "503" in found.left_out["org/m1"]
        assert index.rows(["id", "key", "signature"]) == before
        # What is gone for good is no model any more.
        server.faults[:] = [Fault("status", -1, match="org/m2", value=404)]
        found = build(index, sources, Engine())
        assert (found.read, found.there) == (0, 2) and list(found.left_out) == ["org/m2"]
        assert index.known()["org/m2"]["error"] is not None and len(index.rows(["id"])) == 2
