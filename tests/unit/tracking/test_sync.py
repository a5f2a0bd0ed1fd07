"""Whether to stream, decided without a network where the environment says it, and what waits for an upload."""

from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from keepfrac.tracking import sync
from tests.standin_wandb import StandIn

VARIABLES = ("WANDB_MODE", "WANDB_DISABLED", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE")


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path: Path):
    for name in (*VARIABLES, sync.DECISION):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))


@pytest.mark.parametrize(
    ("environment", "mode", "reason"),
    [
        ({}, "offline", "no key"),
        ({"WANDB_MODE": "disabled"}, "disabled", ""),
        *(({"WANDB_MODE": word}, "disabled", "") for word in ("off", "Disabled", "false")),
        *(({"WANDB_DISABLED": word}, "disabled", "") for word in ("yes", "on", "TRUE", "1", "y")),
        ({"WANDB_DISABLED": "no"}, "offline", "no key"),
        ({"WANDB_DISABLED": "true"}, "disabled", ""),
        ({"WANDB_MODE": "offline", "WANDB_API_KEY": "x"}, "offline", "WANDB_MODE=offline"),
        ({"WANDB_MODE": "dryrun"}, "offline", "WANDB_MODE=dryrun"),
        ({"KEEPFRAC_WANDB": "offline", "WANDB_API_KEY": "x"}, "offline", "KEEPFRAC_WANDB=offline"),
    ],
)
def test_what_is_stated_needs_no_server(monkeypatch, environment, mode, reason):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found, why = sync.decide()
    assert found == mode
    assert reason in why


@pytest.mark.parametrize(("said", "mode"), [("offline", "offline"), ("disabled", "disabled")])
def test_what_the_clients_own_commands_leave_is_kept_to(monkeypatch, tmp_path, said, mode):
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "settings").write_text(f"[default]\nmode = {said}\n")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert sync.decide()[0] == mode


def test_a_key_in_netrc_counts_for_its_host(monkeypatch, tmp_path: Path):
    (tmp_path / "netrc").write_text("machine wandb.example.org login user password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert sync.has_wandb_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://other.example.org")
    assert not sync.has_wandb_key()


def test_the_address_is_that_of_the_client(monkeypatch, tmp_path: Path):
    assert sync.base_url().startswith("https://api.")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "settings").write_text("[default]\nbase_url = https://wandb.example.org/\n")
    assert sync.base_url() == "https://wandb.example.org"
    monkeypatch.setenv("WANDB_BASE_URL", "http://localhost:8080/")
    assert sync.base_url() == "http://localhost:8080"


@contextmanager
def online(monkeypatch):
    with StandIn() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server


def test_the_server_is_asked_who_the_key_belongs_to(monkeypatch):
    with online(monkeypatch) as server:
        assert sync.decide() == ("online", "")
        monkeypatch.setenv("WANDB_API_KEY", "local-" + "f" * 40)
        assert sync.decide() == ("offline", f"127.0.0.1:{server.port} refuses the key (HTTP 401)")
    mode, reason = sync.decide()
    assert mode == "offline"
    assert "does not answer" in reason


def test_an_online_sweep_leaves_its_jobs_to_ask(monkeypatch, tmp_path: Path):
    with online(monkeypatch):
        assert sync.resolve_wandb(tmp_path) is None
        assert sync.DECISION not in sync.os.environ


def attempt(cell: Path, name: str, sent: bool = False) -> Path:
    folder = cell / "wandb" / name
    folder.mkdir(parents=True)
    (folder / "run-x.wandb").touch()
    if sent:
        sync.mark_sent(folder)
    return folder


def test_the_newest_attempt_of_each_run_waits(tmp_path: Path):
    sweep = tmp_path / "multirun" / "sweep"
    attempt(sweep / "a", "run-20260102_000000-x")
    newest = attempt(sweep / "a", "offline-run-20260103_000000-x")
    attempt(sweep / "a", "offline-run-20260101_000000-x")
    attempt(sweep / "b", "offline-run-20260101_000000-y")
    attempt(sweep / "b", "run-20260103_000000-y", sent=True)
    (sweep / "c" / "wandb").mkdir(parents=True)
    for folder in (tmp_path / "multirun", sweep, sweep / "a"):
        assert list(sync.unsent(folder)) == [newest]
    assert list(sync.unsent(sweep / "b")) == []


def test_a_run_under_way_is_not_uploaded(monkeypatch, tmp_path: Path, capsys):
    attempt(tmp_path / "sweep" / "a", "run-20260102_000000-x")
    with online(monkeypatch), FileLock(tmp_path / "sweep" / "a" / ".lock"):
        assert sync.main([str(tmp_path / "sweep")]) == 1
    assert capsys.readouterr().out == f"not uploaded: {tmp_path}/sweep/a (it is running)\n"


def test_a_folder_that_is_none_is_one_line(tmp_path: Path, capsys):
    assert sync.main([str(tmp_path / "nothing")]) == 1
    assert capsys.readouterr().err == f"error: no such folder: {tmp_path}/nothing\n"


def test_the_command_is_one_that_a_shell_takes(monkeypatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    assert sync.command(tmp_path / "multirun" / "demo") == "make sync SWEEP=multirun/demo"
    assert sync.command(Path("/a b/c")) == "make sync SWEEP='/a b/c'"
