"""Models on the Hub: the bytes that are asked for, and every fault of a network, over real sockets."""

import gc
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import save_model, vit_weights
from hub_server import Fault, HubServer, use
from test_checkpoints import assert_same, read_all, shard

from mother.collection.find import search, with_claims
from mother.collection.workspace import recover_sources
from mother.errors import CheckpointError
from mother.io import hub as client
from mother.io import remote as remote_file
from mother.io import traffic
from mother.io.checkpoint import Checkpoint
from mother.io.layers import Layer
from mother.io.open import open_checkpoint
from mother.io.spool import Spool
from mother.paper.measure import measure, square_layers
from mother.paper.statistics import kurtosis

REPO = "org/model"
CPU = torch.device("cpu")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub with one model, whose client waits no longer than a test can."""
    monkeypatch.setattr(client, "WAIT", 0.01)
    monkeypatch.delenv("MOTHER_CACHE", raising=False)
    save_model(tmp_path / "hub" / REPO, vit_weights(1, 4, 48))
    with HubServer(tmp_path / "hub") as server:
        use(server, monkeypatch, tmp_path, timeout=2)
        yield server


def local(server: HubServer, repo: str = REPO) -> dict[Layer, torch.Tensor]:
    return read_all(server.folder / repo)


def remote(source: str = f"hf://{REPO}") -> dict[Layer, torch.Tensor]:
    checkpoint = open_checkpoint("m", source)
    return {layer: checkpoint.read(layer) for layer in checkpoint.layers}


def sent(server: HubServer) -> int:
    return sum(request.bytes_sent for request in server.requests if request.file.endswith((".safetensors", ".bin")))


def test_every_form_of_a_repository(hub: HubServer) -> None:
    folder = hub.folder
    shard(folder / "org" / "sharded", vit_weights(1, 4, 48))
    save_model(folder / "org" / "nested" / "unet", vit_weights(1, 4, 48))
    weights = vit_weights(1, 4, 48)
    (folder / "org" / "pickled").mkdir()
    torch.save(weights, folder / "org" / "pickled" / "pytorch_model.bin")
    hub.revisions["org/sharded"] = {"v1": hub.commit("org/sharded")}
    for source in (
        f"hf://{REPO}",
        "hf://org/sharded@v1",
        f"hf://org/sharded@{hub.commit('org/sharded')}",
        "hf://org/nested:unet",
        "hf://org/pickled",
    ):
        assert_same(local(hub), remote(source))


def test_only_the_bytes_wanted_are_asked_for(hub: HubServer) -> None:
    """A ViT-B-shaped repository: four attention weights of each block, a third of the file."""
    weights: dict[str, torch.Tensor] = {}
    for block in range(3):
        stem = f"vit.encoder.layer.{block}"
        for name in ("attention.attention.query", "attention.attention.key", "attention.attention.value"):
            weights |= {f"{stem}.{name}.weight": torch.randn(768, 768), f"{stem}.{name}.bias": torch.zeros(768)}
        weights |= {f"{stem}.attention.output.dense.weight": torch.randn(768, 768)}
        weights |= {f"{stem}.attention.output.dense.bias": torch.zeros(768)}
        weights |= {f"{stem}.intermediate.dense.weight": torch.randn(3072, 768)}
        weights |= {f"{stem}.output.dense.weight": torch.randn(768, 3072)}
        weights |= {f"{stem}.layernorm_before.weight": torch.ones(768)}
    save_model(hub.folder / "org" / "vit", weights)
    checkpoints = [open_checkpoint("m", "hf://org/vit")]
    layers = square_layers(checkpoints[0], None)
    assert len(layers) == 12
    wanted = sum(4 * 768 * 768 for _ in layers)
    header = (hub.folder / "org" / "vit" / "model.safetensors").stat().st_size - sum(
        4 * weight.numel() for weight in weights.values()
    )
    measure(checkpoints, ("query", "key", "value", "output"), {"kurtosis": kurtosis}, CPU)
    assert sent(hub) <= 1.02 * wanted + max(header, remote_file.HEAD_BYTES)
    # The description, one resolve, the header, and the weights: those that stand side by side at once.
    assert len(hub.requests) <= 3 + len(layers)
    assert sum(request.method == "HEAD" for request in hub.requests) <= 2  # a redirect is not a second one

    # What was seen once is kept: opening again asks for nothing but the commit.
    hub.requests.clear()
    open_checkpoint("m", "hf://org/vit")
    assert [request.path for request in hub.requests] == ["/api/models/org/vit/revision/main"]


def test_tokens_stay_with_the_hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.gated[REPO] = "token"
    assert_same(local(hub), remote())
    assert not any(request.authorization for request in hub.requests if request.path.startswith("/cdn"))
    assert all(request.authorization for request in hub.requests if not request.path.startswith("/cdn"))


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", 2, "resolve", value=503),
        Fault("status", 2, "/api/", value=500),
        Fault("status", 1, "model.safetensors", value=(429, 0)),
        Fault("reset", 3, "model.safetensors", "GET"),
        Fault("short", 2, "model.safetensors", "GET"),
        Fault("drop", 2, "model.safetensors"),
        Fault("stall", 1, "model.safetensors", "GET", value=4),
        Fault("wrong_range", 2, "model.safetensors", "GET"),
        Fault("ignore_range", -1, "model.safetensors", "GET"),
        Fault("expired", 1, "model.safetensors", after=1),
        Fault("no_etag", -1, "model.safetensors"),
        Fault("gzip", -1, "model.safetensors"),
        Fault("drop", 1, "/api/"),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.match.strip('/')}",
)
def test_transient_faults_end_well(fault: Fault, hub: HubServer) -> None:
    fault.met = 0
    hub.faults.append(fault)
    assert_same(local(hub), remote())
    # Who asks for identity is never sent gzip.
    assert any(request.fault == fault.kind for request in hub.requests) == (fault.kind != "gzip")


def test_an_interrupted_body_goes_on_where_it_broke(hub: HubServer) -> None:
    checkpoint = open_checkpoint("m", f"hf://{REPO}")
    hub.requests.clear()
    hub.faults.append(Fault("short", 1, "model.safetensors", "GET", value=1000))
    layer = next(iter(checkpoint.layers))
    assert torch.equal(checkpoint.read(layer), local(hub)[layer])
    first, second = (request.range for request in hub.requests if request.method == "GET")
    assert second == (first[0] + 1000, first[1])


FINAL = {
    "absent": ("hf://org/absent", None, "no such repository", "hf auth login"),
    "revision": (f"hf://{REPO}@other", None, "no such revision", "branch or commit"),
    "subfolder": (f"hf://{REPO}:unet", None, "no weights", "subfolder"),
    "server": (f"hf://{REPO}", Fault("status", -1, "model.safetensors", value=502), "HTTP 502", "later"),
    "busy": (f"hf://{REPO}", Fault("status", -1, "/api/", value=429), "come back later", "kept"),
    "forbidden": (f"hf://{REPO}", Fault("status", -1, "/api/", value=403), "refuses .HTTP 403", "your access"),
    "truncated": (f"hf://{REPO}", Fault("truncated", -1, "model.safetensors", value=5000), "truncated", "again"),
    "reset": (f"hf://{REPO}", Fault("reset", -1, "model.safetensors", "GET", value=0), "breaks again", "kept"),
    "stalls": (f"hf://{REPO}", Fault("stall", -1, "model.safetensors", "GET", value=3), "breaks again", "later"),
    "expired": (f"hf://{REPO}", Fault("expired", -1, "model.safetensors"), "refuses access", "again"),
}


@pytest.mark.parametrize("kind", FINAL)
def test_final_faults_say_what_to_do(kind: str, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "RETRIES", 2)
    if kind == "stalls":
        monkeypatch.setattr(client.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    source, fault, words, remedy = FINAL[kind]
    if fault is not None:
        fault.met = 0
        hub.faults.append(fault)
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=words) as error:
        remote(source)
    assert "model m" in str(error.value) and "hf://" in str(error.value) and remedy in str(error.value)
    assert "\n" not in str(error.value) and "signature" not in str(error.value) and time.monotonic() - started < 20


def test_gated_repositories_say_which_step_is_missing(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated[REPO] = "licence"
    with pytest.raises(CheckpointError, match="not logged in.*hf auth login"):
        remote()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(CheckpointError, match=f"Accept the licence at .*{REPO}") as error:
        remote()
    assert "hf_secret" not in str(error.value)


def test_a_file_that_changes_while_it_is_read(hub: HubServer) -> None:
    checkpoint = open_checkpoint("m", f"hf://{REPO}")
    layers = list(checkpoint.layers)
    checkpoint.read(layers[0])
    hub.faults.append(Fault("changed", 1, "model.safetensors"))
    with pytest.raises(CheckpointError, match="changed while"):
        for layer in layers[1:]:
            checkpoint.read(layer)


def test_an_index_that_names_a_missing_shard(hub: HubServer) -> None:
    folder = shard(hub.folder / "org" / "sharded", vit_weights(1))
    next(folder.glob("*-b.safetensors")).unlink()
    with pytest.raises(CheckpointError, match="model-b.safetensors, and there is no such file"):
        remote("hf://org/sharded")


def test_the_commit_is_pinned_when_the_branch_moves_on(hub: HubServer) -> None:
    expected = local(hub)
    checkpoint = open_checkpoint("m", f"hf://{REPO}")
    fingerprint = checkpoint.fingerprint()
    hub.revisions[REPO] = {hub.commit(REPO): hub.commit(REPO)}
    assert_same(expected, {layer: checkpoint.read(layer) for layer in checkpoint.layers})
    save_model(hub.folder / REPO, vit_weights(2, 4, 48))
    hub.touch(REPO)
    assert open_checkpoint("m", f"hf://{REPO}").fingerprint() != fingerprint


def test_offline_with_a_warm_cache(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = open_checkpoint("m", f"hf://{REPO}")
    hub.requests.clear()
    monkeypatch.setattr(client.constants, "HF_HUB_OFFLINE", True)
    again = open_checkpoint("m", f"hf://{REPO}")
    assert again.tensors.keys() == seen.tensors.keys() and again.fingerprint() == seen.fingerprint()
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE"):
        again.read(next(iter(again.layers)))
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE"):
        open_checkpoint("m", "hf://org/unseen")
    assert not hub.requests


def test_other_models_go_on(hub: HubServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(client, "RETRIES", 3)
    for name in ("a", "b", "broken"):
        save_model(hub.folder / "org" / name, vit_weights(3, 4, 48))
    checkpoints = [open_checkpoint(name, f"hf://org/{name}") for name in ("a", "b", "broken")]
    hub.faults.append(Fault("status", -1, "org/broken", value=500))
    hub.faults.append(Fault("reset", 2, "model.safetensors", "GET"))
    measured = measure(checkpoints, ("value",), {"kurtosis": kurtosis}, CPU)
    assert measured.models == ["a", "b"] and "HTTP 500" in measured.left_out["broken"]
    assert "signature" not in capfd.readouterr().err


def test_several_models_are_in_flight(hub: HubServer) -> None:
    checkpoints: list[Checkpoint] = []
    for number in range(8):
        save_model(hub.folder / "org" / f"m{number}", vit_weights(number, 4, 48))
        checkpoints.append(open_checkpoint(f"m{number}", f"hf://org/m{number}"))
    for number in range(8):
        hub.faults.append(Fault("stall", 1, f"org/m{number}/model.safetensors", "GET", value=1))
    started = time.monotonic()
    measured = measure(checkpoints, ("value",), {"kurtosis": kurtosis}, CPU)
    assert len(measured.models) == 8 and time.monotonic() - started < 6


def test_a_pickle_is_looked_through_once(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    (hub.folder / "org" / "pickled").mkdir()
    torch.save(vit_weights(1, 4, 48), hub.folder / "org" / "pickled" / "pytorch_model.bin")
    seen = open_checkpoint("m", "hf://org/pickled")
    hub.requests.clear()
    assert open_checkpoint("m", "hf://org/pickled").tensors.keys() == seen.tensors.keys()
    assert [request.path for request in hub.requests] == ["/api/models/org/pickled/revision/main"]
    monkeypatch.setattr(client.constants, "HF_HUB_OFFLINE", True)
    assert open_checkpoint("m", "hf://org/pickled").tensors.keys() == seen.tensors.keys()


def test_waits_are_those_that_the_server_asks_for(monkeypatch: pytest.MonkeyPatch, hub: HubServer) -> None:
    waits: list[float] = []
    monkeypatch.setattr(client, "pause", waits.append)
    hub.faults.append(Fault("status", 3, "/api/", value=(429, 7)))
    open_checkpoint("m", f"hf://{REPO}")
    assert waits == [7.0, 7.0, 7.0]


def test_a_changed_file_is_read_anew_by_the_next_run(hub: HubServer) -> None:
    checkpoint = open_checkpoint("m", f"hf://{REPO}")
    other = save_model(hub.folder / "other", vit_weights(2, 4, 48)) / "model.safetensors"
    hub.faults.append(Fault("changed", 1, "model.safetensors", value=other.read_bytes()))
    with pytest.raises(CheckpointError, match="changed while"):
        for layer in checkpoint.layers:
            checkpoint.read(layer)
    again = open_checkpoint("m", f"hf://{REPO}")
    assert again.fingerprint() != checkpoint.fingerprint()


@pytest.mark.usefixtures("interruptible")
def test_stopping_does_not_wait_for_tries(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "WAIT", 30.0)
    save_model(hub.folder / "org" / "other", vit_weights(2, 4, 48))
    checkpoints = [open_checkpoint(name, f"hf://{name}") for name in (REPO, "org/other")]
    hub.faults.append(Fault("reset", -1, "org/other/model.safetensors", "GET", value=0))
    main = threading.main_thread().ident
    timer = threading.Timer(1, lambda: signal.pthread_kill(main, signal.SIGINT))
    timer.start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        measure(checkpoints, ("value",), {"kurtosis": kurtosis}, CPU)
    assert time.monotonic() - started < 5 and not client.STOP.is_set()


def test_requests_and_bytes_are_counted_as_the_server_counts_them(hub: HubServer) -> None:
    save_model(hub.folder / "org" / "counted", vit_weights(3))
    traffic.taken()
    hub.requests.clear()
    checkpoint = open_checkpoint("m", "hf://org/counted")
    checkpoint.read_tensors(list(checkpoint.tensors))
    found = traffic.taken()
    assert found.requests == len(hub.requests) > 2
    assert found.bytes >= sum(request.bytes_sent for request in hub.requests if request.file) > 0
    assert traffic.taken() == traffic.Traffic() and str(found).startswith(f"{found.requests} requests, ")


def test_requests_for_cards_are_counted_and_made_once(hub: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "hub" / REPO
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    traffic.taken()
    hub.requests.clear()
    sources = with_claims(search([f"hf://{REPO}"])).sources
    assert [source.licence for source in sources] == ["mit"]
    recovered = recover_sources(sources, tmp_path / "out", CPU)
    cards = [request for request in hub.requests if request.file.endswith("README.md") and request.method == "GET"]
    assert len(cards) == 1 and recovered.traffic.requests >= len(hub.requests) > len(cards)


def test_the_card_and_the_configuration_are_read_once(hub: HubServer, tmp_path: Path) -> None:
    (hub.folder / REPO / "config.json").write_text('{"model_type": "vit"}')
    hub.requests.clear()
    recover_sources(with_claims(search([f"hf://{REPO}"])).sources, tmp_path / "out", CPU)
    asked = [request.method for request in hub.requests if request.file == "config.json"]
    assert sorted(asked) == ["GET", "HEAD"]


def test_what_is_spooled_is_asked_for_once(hub: HubServer) -> None:
    """Also where its folder is gone, or cannot be written."""
    checkpoint, spool = open_checkpoint("m", f"hf://{REPO}"), Spool()
    kept, names = spool.of(checkpoint), list(checkpoint.tensors)
    assert spool.of(kept).tensors == kept.tensors and kept.fingerprint() == checkpoint.fingerprint()
    whole = {name: kept.read_tensor(name) for name in names}
    hub.requests.clear()
    again = spool.of(open_checkpoint("m", f"hf://{REPO}")).read_tensors(names)
    assert not sent(hub) and all(torch.equal(again[name], whole[name]) for name in names)
    folder = spool.folder
    shutil.rmtree(folder)
    assert all(torch.equal(kept.read_tensor(name), whole[name]) for name in names) and sent(hub)
    spool = Spool()
    kept = spool.of(checkpoint)
    del spool
    gc.collect()
    assert not folder.exists() and torch.equal(kept.read_tensor(names[0]), whole[names[0]])


def test_of_models_on_disk_nothing_is_spooled(tmp_path: Path) -> None:
    checkpoint, spool = open_checkpoint("m", save_model(tmp_path / "m", vit_weights(1))), Spool()
    assert spool.of(checkpoint) is checkpoint and spool.folder is None
