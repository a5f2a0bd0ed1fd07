import json

import pytest

from tests.bench import bench_runtimes
from tests.bench.bench_runtimes import main, matrices, sides, zero_share
from tests.tiny import tiny

QUICK = ("--repeats", "2", "--batches", "2", "1", "--lengths", "8")


@pytest.fixture
def folder(tmp_path):
    """A run's folder with a small model."""
    tiny().save_pretrained(tmp_path / "run" / "model")
    return tmp_path / "run"


def test_a_share_of_each_matrix_is_left_and_the_dense_side_has_no_zeros(folder):
    nets = sides(folder, 0.05)
    sparse = matrices(nets["sparse"])
    assert len(sparse) == 18  # three layers of six
    for weight in sparse.values():
        assert int((weight != 0).sum()) == round(0.05 * weight.numel())
    assert zero_share(nets["dense"]) == 0


def test_a_model_with_zeros_stays_as_it_is(tmp_path):
    net = tiny()
    first = next(iter(matrices(net).values()))
    first.data[0] = 0.0
    net.save_pretrained(tmp_path)
    assert zero_share(sides(tmp_path, None)["sparse"]) == zero_share(net) > 0


def test_without_zeros_and_without_keep_there_is_nothing_to_compare(folder, capsys):
    assert main([str(folder), *QUICK]) == 1
    assert "--keep" in capsys.readouterr().out


def test_what_is_not_installed_is_said_and_torch_is_measured(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench_runtimes, "find_spec", lambda name: None)
    assert main([str(folder), *QUICK, "--keep", "0.1", "--out", str(tmp_path / "rows.json")]) == 0
    said = capsys.readouterr().out
    assert "openvino: not installed: pip install onnx onnxscript openvino" in said
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(one["runtime"], one["side"], one["batch"]) for one in rows] == [
        ("torch", side, batch) for batch in (2, 1) for side in ("dense", "sparse")
    ]
    assert all(0 < one["p50_ms"] <= one["p95_ms"] for one in rows)


def test_all_runtimes_give_the_models_own_outputs(folder, tmp_path):
    for package in sorted({name for packages in bench_runtimes.RUNTIMES.values() for name in packages}):
        pytest.importorskip(package)
    assert main([str(folder), *QUICK, "--keep", "0.1", "--out", str(tmp_path / "rows.json")]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) == 12 and {one["runtime"] for one in rows} == set(bench_runtimes.RUNTIMES)
    assert all(one["differs"] < 1e-4 for one in rows)
