"""Files: whole or not at all; one holder of a folder's lock."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from keepfrac.errors import Held
from keepfrac.storage.cache import cache_folder
from keepfrac.storage.files import HANDED, flush, locked, remove_scratch, replacing, take_lock, write_atomically

HALF = """
import sys, time
from pathlib import Path
from keepfrac.storage.files import replacing
with replacing(Path(sys.argv[1]) / "model") as new:
    new.write_text("half")
    print("half", flush=True)
    time.sleep(60)
"""


def test_a_file_and_a_folder_take_their_place_at_the_end(tmp_path):
    with replacing(tmp_path / "model") as new:
        new.mkdir()
        (new / "weights").write_text("1")
        assert not (tmp_path / "model").exists()
    write_atomically(tmp_path / "deep" / "text", "é")
    assert (tmp_path / "model" / "weights").read_text() == "1"
    assert (tmp_path / "deep" / "text").read_text(encoding="utf-8") == "é"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "model"]


def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path):
    write_atomically(tmp_path / "a", "former")
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a") as new:
        new.with_name("other").write_text("half")
    assert (tmp_path / "a").read_text() == "former" and [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_is_put_in_place_is_on_the_disk_before_and_after(tmp_path, monkeypatch):
    """Files and folders before they take their place, then the folder that names them."""
    flushed, fsync = [], os.fsync

    def record(number):
        flushed.append((os.fspath(Path(f"/proc/self/fd/{number}").readlink()), (tmp_path / "model").exists()))
        fsync(number)

    monkeypatch.setattr(os, "fsync", record)
    with replacing(tmp_path / "model") as new:
        (new / "inner").mkdir(parents=True)
        (new / "inner" / "weights").write_text("1")
    names = [os.path.relpath(path, new.parent) for path, _ in flushed[:-1]]
    assert names == ["model/inner/weights", "model/inner", "model"]
    assert [there for _, there in flushed] == [False, False, False, True] and flushed[-1][0] == str(tmp_path)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    flush(tmp_path)
    flush(tmp_path / "gone")


def test_what_a_killed_process_left_half_written_goes_and_nothing_else(tmp_path):
    stays = [".lock", ".hydra", "results.json", "resume.ckpt", "export/model.onnx", ".gitignore"]
    for name in (*stays, ".best.pt.4711", ".resume.ckpt.12", "export/.model.onnx.ab_3x9zq/model.onnx"):
        write_atomically(tmp_path / name, "text")
    process = subprocess.Popen([sys.executable, "-c", HALF, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout.readline()
    process.kill()
    process.communicate()
    assert len(list(tmp_path.glob(".model.*/model"))) == 1
    remove_scratch(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == set(stays)
    assert not list(tmp_path.glob(".model.*"))


def test_a_lock_has_one_holder(tmp_path):
    with locked(tmp_path / "cell"):
        for take in (lambda: locked(tmp_path / "cell").__enter__(), lambda: take_lock(tmp_path / "cell")):
            with pytest.raises(Held, match="another process"):
                take()
    with locked(tmp_path / "cell"):
        pass


def test_a_lock_goes_over_to_the_process_that_is_started_with_it(tmp_path):
    lock = take_lock(tmp_path)
    assert lock is not None
    code = "import sys, pathlib; from keepfrac.storage.files import locked\n"
    code += "with locked(pathlib.Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    environment = os.environ | {HANDED: str(lock)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "pass_fds": (lock,), "env": environment}
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], **pipes) as process:
        os.close(lock)
        assert process.stdout.readline() == b"in\n"
        with pytest.raises(Held):
            take_lock(tmp_path)
        process.stdin.close()
        assert process.wait() == 0
    with locked(tmp_path):
        pass


def test_a_lock_of_another_folder_is_not_this_ones(tmp_path, monkeypatch):
    lock = take_lock(tmp_path / "one")
    monkeypatch.setenv(HANDED, str(lock))
    with locked(tmp_path / "two"), pytest.raises(Held):
        take_lock(tmp_path / "two")
    assert os.environ[HANDED] == str(lock)
    os.close(lock)


def test_the_cache_is_where_the_system_says(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("tokens") == tmp_path / "keepfrac" / "tokens"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("tokens") == tmp_path / ".cache" / "keepfrac" / "tokens"
