"""The account of what a run delivered: what is gone, cut off or another file's is seen."""

import pytest

from keepfrac.storage import delivered, results

SIZES = {"model/config.json": 30, "model/model.safetensors": 300_000, "export/model.onnx": 9_000, "metrics.csv": 20}


@pytest.fixture
def folder(tmp_path):
    for number, (name, size) in enumerate(SIZES.items()):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes((number + 31 * i) % 256 for i in range(size)))
    return tmp_path


def test_it_lists_what_is_for_users_of_the_model(folder):
    files = delivered.account(folder)
    assert set(files) == {"model/config.json", "model/model.safetensors", "export/model.onnx"}
    assert len(set(files.values())) == 3 and delivered.missing(folder, files) is None
    (folder / "model" / "notes.txt").write_text("of a user")
    assert delivered.missing(folder, files) is None


@pytest.mark.parametrize("name", [name for name in SIZES if "/" in name])
def test_a_file_that_is_gone_or_another_is_named(folder, name):
    files, path = delivered.account(folder), folder / name
    content = path.read_bytes()
    others = [content[:-1], b"", content + b"0", b"\xee" + content[1:], content[:-1] + b"\xee"]
    for other in others:
        path.write_bytes(other)
        assert delivered.missing(folder, files) == f"{name} is not what the run delivered"
    path.unlink()
    assert delivered.missing(folder, files) == f"{name} is gone"


def test_a_cell_is_done_with_its_files_and_one_of_before_the_list_without(folder):
    record = {"status": "done", "identity": "abc"}
    results.write(folder, record | {"delivered": delivered.account(folder)})
    assert results.is_done(folder, "abc") and not results.is_done(folder, "abd")
    (folder / "model" / "config.json").unlink()
    assert not results.is_done(folder, "abc") and results.finished_run(folder, "abc")
    results.write(folder, record)
    assert results.is_done(folder, "abc")
