"""Bytes that were fetched once are not fetched again, and nothing stays on disk."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import save_model, vit_weights
from hub_server import HubServer, use
from test_checkpoints import assert_same, read_all

from mother import spool
from mother.checkpoints import open_checkpoint
from mother.spool import Spool, current, spooled


def test_spans_come_back_as_they_were(tmp_path: Path) -> None:
    kept = Spool(tmp_path)
    content = [bytes([k % 251]) * (k * 997 % 5000) for k in range(200)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda k: kept.keep(("f", k, k + len(content[k])), content[k]), range(200)))
        back = list(pool.map(lambda k: kept.take(("f", k, k + len(content[k]))), range(200)))
    assert back == content and kept.take(("g", 0, 4)) is None
    assert not list(tmp_path.iterdir())  # the file has no name
    kept.close()


@pytest.mark.parametrize("asked", ["0", "nonsense", "10"])
def test_what_finds_no_place_is_not_kept(asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTHER_SPOOL", asked)
    kept = Spool(tmp_path)
    kept.keep(("f", 0, 8), b"12345678")
    kept.keep(("f", 8, 16), b"12345678")
    room = {"0": 0, "10": 1, "nonsense": 2}[asked]
    assert [kept.take(("f", k, k + 8)) is not None for k in (0, 8)] == [room > 0, room > 1]
    kept.close()


def no_space(*_: object) -> int:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("call", ["pwrite", "pread"])
def test_a_disk_that_fails_only_makes_it_forget(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Spool(tmp_path)
    monkeypatch.setattr(spool.os, call, no_space)
    kept.keep(("f", 0, 8), b"12345678")
    assert kept.take(("f", 0, 8)) is None
    kept.close()
    blocked = tmp_path / "file"
    blocked.touch()
    kept = Spool(blocked / "below")
    kept.keep(("f", 0, 8), b"12345678")
    assert kept.take(("f", 0, 8)) is None
    kept.close()


def test_a_second_look_asks_the_hub_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_model(tmp_path / "hub" / "org" / "m", vit_weights(1, 4, 48))
    with HubServer(tmp_path / "hub") as server:
        use(server, monkeypatch, tmp_path, timeout=2)
        checkpoint = open_checkpoint("m", "hf://org/m")
        look: Callable[[], dict] = lambda: {layer: checkpoint.read(layer) for layer in checkpoint.layers}
        with spooled(tmp_path / "spool"):
            look()
            server.requests.clear()
            with spooled(tmp_path / "spool"):
                assert_same(look(), read_all(folder))
            assert_same(look(), read_all(folder))
            assert not server.requests and current() is not None
        assert current() is None and not list((tmp_path / "spool").iterdir())
        look()
        assert server.requests
