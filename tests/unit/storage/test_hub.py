import os
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from keepfrac.errors import UserError
from keepfrac.storage import hub


@pytest.fixture(autouse=True)
def undecided(monkeypatch, tmp_path):
    for switch in (hub.DECISION, *hub.OFFLINE_SWITCHES, "HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.setenv(switch, "")  # set first, so that what the code sets is undone
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


@pytest.fixture
def endpoint(monkeypatch):
    """A server on this machine whose answer the test chooses."""

    class Answer(BaseHTTPRequestHandler):
        status = 200
        asked = 0

        def do_HEAD(self):
            type(self).asked += 1
            self.send_response(type(self).status)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield Answer
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(("status", "answers"), [(200, True), (404, True), (403, False), (407, False), (500, False)])
def test_a_status_decides_and_the_decision_is_handed_on(endpoint, status, answers):
    endpoint.status = status
    assert hub.hub_answers() is answers
    assert os.environ[hub.DECISION] == ("online" if answers else "offline")
    assert hub.hub_answers() is answers
    assert endpoint.asked == 1


@pytest.mark.parametrize("switch", hub.OFFLINE_SWITCHES)
def test_offline_switches_decide_without_asking(endpoint, monkeypatch, switch):
    monkeypatch.setenv(switch, "1")
    assert hub.resolve_hub() is False
    assert endpoint.asked == 0
    assert all(os.environ[name] == "1" for name in hub.OFFLINE_SWITCHES)


@pytest.mark.parametrize("hangs", [False, True])
def test_a_refused_connection_is_offline_at_once_and_a_hanging_name_server_after_some_patience(monkeypatch, hangs):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    if hangs:
        monkeypatch.setattr(hub.urllib.request, "urlopen", lambda *args, **kwargs: time.sleep(2))
        monkeypatch.setattr(hub, "PATIENCE_SECONDS", 0.2)
    began = time.monotonic()
    assert hub.hub_answers() is False
    assert time.monotonic() - began < 1


def test_a_decision_that_is_neither_is_an_error(monkeypatch):
    monkeypatch.setenv(hub.DECISION, "maybe")
    with pytest.raises(UserError, match="KEEPFRAC_HUB=maybe: allowed are online and offline"):
        hub.hub_answers()


def test_the_cache_counts_where_it_is_complete(tmp_path):
    snapshot = tmp_path / "hf/hub/models--owner--net/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").touch()
    assert not hub.in_cache("owner/net")
    (snapshot / "model.safetensors").touch()
    assert hub.in_cache("owner/net")
    assert not hub.in_cache("owner/data", "dataset")
    table = tmp_path / "hf/datasets/owner___data/default/0.0.0/abc/data-train.arrow"
    table.parent.mkdir(parents=True)
    table.touch()
    assert hub.in_cache("owner/data", "dataset")
