"""results.json: whole or not at all."""

import pytest

from keepfrac.storage import results


def test_what_is_written_is_read(tmp_path):
    results.write(tmp_path, {"status": "done", "identity": "abc", "scores": {"test/accuracy": 0.5}})
    found = results.read(tmp_path)
    assert found["schema_version"] == results.SCHEMA_VERSION and found["scores"] == {"test/accuracy": 0.5}
    assert results.is_done(tmp_path, "abc") and not results.is_done(tmp_path, "abd")
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"status": "done"}', '{"schema_version": 1, "status": "done", "identity": "abc", "cost": [1]}'],
)
def test_a_torn_or_foreign_file_is_no_result(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    assert results.read(tmp_path) is None and not results.is_done(tmp_path, "abc")


def test_a_failed_write_leaves_the_former_file(tmp_path, monkeypatch):
    results.write(tmp_path, {"status": "done", "identity": "abc"})

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError):
        results.write(tmp_path, {"status": "failed", "identity": "abc"})
    assert results.is_done(tmp_path, "abc") and [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_cells_of_a_sweep_and_of_a_single_run(tmp_path):
    for name, status in (("b", "done"), ("a", "failed")):
        results.write(tmp_path / name, {"status": status, "identity": name})
    (tmp_path / "empty").mkdir()
    assert [folder.name for folder, _ in results.cells(tmp_path)] == ["a", "b"]
    assert [folder.name for folder, _ in results.finished(tmp_path)] == ["b"]
    assert [folder.name for folder, _ in results.cells(tmp_path / "b")] == ["b"]
