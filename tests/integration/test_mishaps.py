"""What goes wrong outside: a full disk, a damaged checkpoint, shared rows, a process without the project."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from keepfrac.errors import Held, UserError
from keepfrac.run import identity
from keepfrac.run.run import run
from keepfrac.storage import results
from keepfrac.training.checkpoint_files import CHECKPOINT

CONF = Path(__file__).resolve().parents[2] / "conf"


@pytest.fixture
def small_disk():
    """No file of this process may grow beyond 1 MiB: what a full disk does to a checkpoint."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, former[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, former)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_one_clear_error_and_the_run_can_go_on(composed, small_disk):
    cfg = composed("checkpoint_every=2")
    with pytest.raises(UserError, match="free space and type the same command again"):
        run(cfg)
    folder = identity.cell(cfg).folder
    assert results.read(folder)["status"] == "failed"
    assert not [path for path in folder.iterdir() if path.name.startswith(".") and path.name != ".lock"]
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert run(cfg)["status"] == "done"


def test_a_damaged_checkpoint_begins_the_run_anew(composed):
    cfg = composed("epochs=1")
    folder = identity.cell(cfg).folder
    folder.mkdir(parents=True)
    (folder / CHECKPOINT).write_bytes(b"torn")
    assert run(cfg)["status"] == "done"


def test_a_result_of_other_code_is_told_and_made_again_on_request(composed, monkeypatch, caplog):
    cfg = composed("steps=1", "probe_steps=0")
    made = run(cfg)["provenance"]["fingerprints"]
    assert made == {"code": identity.cell(cfg).code, "data": identity.data(identity.plain(cfg)["task"])[:16]}
    caplog.set_level("WARNING")
    assert run(cfg)["status"] == "done" and not caplog.messages
    monkeypatch.setattr(identity, "fingerprint_of_code", lambda *_: "edited")
    assert run(cfg)["provenance"]["fingerprints"] == made
    assert caplog.messages == [f"by other code ({made['code']}, now edited): rerun=changed runs it again"]
    again = run(composed("steps=1", "probe_steps=0", "rerun=changed"))
    assert again["provenance"]["fingerprints"] == made | {"code": "edited"}


def test_a_cell_that_another_process_runs_is_left_to_it(composed):
    import filelock

    cfg = composed()
    folder = identity.cell(cfg).folder
    folder.mkdir(parents=True)
    with filelock.FileLock(folder / ".lock"), pytest.raises(Held, match="another process"):
        run(cfg)


def test_a_model_that_saw_a_tasks_rows_is_not_judged_on_it(composed, glue_data):
    tuned = run(composed("epochs=1"))
    folder = identity.cell(composed("epochs=1")).folder
    tuned["provenance"]["trained_on"] = ["rotten_tomatoes"]
    results.write(folder, tuned)
    overrides = ["task=sst2", f"task.data_dir={glue_data}", "task.rows=64", "model=from_run", f"model.run={folder}"]
    cfg = composed_task(overrides)
    with pytest.raises(UserError, match="shares rows with rotten_tomatoes"):
        run(cfg)


def composed_task(overrides: list[str]):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=[*overrides, "logger=csv", "epochs=0", "name=overlap"])


def test_the_delivered_model_loads_where_the_project_is_absent(composed, tmp_path):
    cfg = composed("method=norm", "epochs=1")
    run(cfg)
    model = identity.cell(cfg).folder / "model"
    code = (
        "import sys; from transformers import pipeline;"
        "print(pipeline('text-classification', model=sys.argv[1])('the film was lovely')[0]['label']);"
        "assert not {'src', 'keepfrac'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, model],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.stdout.split()[-1] in ("good", "bad")


def test_a_secret_in_the_configuration_reaches_no_file(composed, monkeypatch):
    typed = {"model.name": "sk-abcdefghij0123456789", "task.name": "ghp_0123456789abcdefABCDEF0123456789abcd"}
    places = {"WANDB_API_KEY": "local-" + "5ecre7" * 7, "DB_PASSWORD": "hunt3r"}
    for name, secret in places.items():
        monkeypatch.setenv(name, secret)
    words = [*(f"{key}={value}" for key, value in typed.items()), "distill.name=${oc.env:WANDB_API_KEY}"]
    words += ["hardware.name=${oc.env:DB_PASSWORD}", "logger=wandb", "steps=1", "probe_steps=0", "name=secret"]
    monkeypatch.setattr(sys, "argv", ["src.main", *words])
    cfg = composed(*words)
    run(cfg)
    sweep = identity.cell(cfg).folder.parent
    files = [path for path in sweep.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    secrets = [*typed.values(), *places.values()]
    assert not [
        (path, one) for path in files for one in secrets if one in str(path) or one.encode() in path.read_bytes()
    ]
